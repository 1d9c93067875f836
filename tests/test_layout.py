"""Imports go downwards only, and the core stays light."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "modeling_ast"
HEAVY = {"datasets", "evaluate", "soundfile", "torchaudio", "sklearn", "matplotlib", "accelerate", "tqdm", "yaml"}
MODULES = sorted(PACKAGE.rglob("*.py"))


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
