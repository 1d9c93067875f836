"""Imports go downwards only, the core stays light, and docstrings name the errors that there are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "modeling_ast"
HEAVY = {"datasets", "evaluate", "soundfile", "torchaudio", "sklearn", "matplotlib", "accelerate", "tqdm", "yaml"}
MODULES = sorted(PACKAGE.rglob("*.py"))
RAISES = re.compile(r"^Raises:\n((?: {4}.*\n?)+)", re.MULTILINE)


def _imports(path: Path, everywhere: bool) -> set[str]:
    """Absolute names of what a module imports, inside functions too where `everywhere`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(f"modeling_ast.{node.module}" if node.level else node.module)
    return found


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent == PACKAGE], ids=lambda path: path.stem)
def test_the_core_imports_neither_heavy_packages_nor_the_rooms_above(path):
    assert not {name.split(".")[0] for name in _imports(path, everywhere=False)} & HEAVY
    rooms = ("modeling_ast.data", "modeling_ast.training", "modeling_ast.inference")
    assert not [name for name in _imports(path, everywhere=True) if name.startswith(rooms)]


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent == PACKAGE], ids=lambda path: path.stem)
def test_flat_siblings_are_imported_so_that_custom_code_copying_finds_them(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module
        elif isinstance(node, ast.ImportFrom):
            assert not node.module.startswith("modeling_ast")


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("data", ("modeling_ast.training", "modeling_ast.inference")),
        ("training", ("modeling_ast.inference",)),
        ("inference", ("modeling_ast.training",)),
    ],
)
def test_rooms_import_downwards(room, forbidden):
    paths = sorted((PACKAGE / room).rglob("*.py"))
    assert paths
    for path in paths:
        assert not [name for name in _imports(path, everywhere=True) if name.startswith(forbidden)], path


@pytest.mark.parametrize(
    "name", ["calibrate", "embed", "ensemble", "evaluate", "explain", "export", "page", "predict", "score", "tag"]
)
def test_commands_that_do_not_train_import_nothing_of_training(name):
    imports = _imports(PACKAGE / "commands" / f"{name}.py", everywhere=True)
    assert imports and not [module for module in imports if module.startswith("modeling_ast.training")]


def _documented_errors(node: ast.AST) -> set[str]:
    """Names, without their modules, of the errors in the docstring's `Raises`; several may share a line."""
    section = RAISES.search(ast.get_docstring(node) or "")
    entries = re.findall(r"^ {4}([\w.]+(?:, [\w.]+)*):", section[1], re.MULTILINE) if section else []
    return {name.split(".")[-1] for entry in entries for name in entry.split(", ")}


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All below a function but what belongs to functions and classes in it, and what it may catch itself."""
    caught = node.body if isinstance(node, ast.Try) and node.handlers else ()
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child not in caught:
            yield child
            yield from _own_nodes(child)


def _raised_errors(function: ast.FunctionDef) -> set[str]:
    """Names of the errors that a function itself makes and raises."""
    raised = [node.exc for node in _own_nodes(function) if isinstance(node, ast.Raise)]
    return {error.func.id for error in raised if isinstance(error, ast.Call) and isinstance(error.func, ast.Name)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_docstring_that_names_errors_names_all_that_its_function_raises(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and (documented := _documented_errors(node)):
            assert _raised_errors(node) <= documented, f"{node.name} in line {node.lineno}"


def test_every_documented_error_is_raised_in_a_test():
    documented, expected = set(), set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                documented |= _documented_errors(node)
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises":
                names = ast.walk(node.args[0])
                expected |= {getattr(name, "id", None) or getattr(name, "attr", None) for name in names}
    assert {"ValueError", "AudioError", "DataError", "RecipeError"} <= documented  # or nothing is looked at
    assert sorted(documented - expected) == []
