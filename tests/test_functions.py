"""Functions of the user's own are found by their names."""

import pytest

from modeling_ast.data.functions import import_function
from modeling_ast.data.recipes import RecipeError


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text("import math\n\nNUMBER = 3\n\n\ndef halve(x):\n    return x / 2\n")
    (tmp_path / "broken_code.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])


def test_a_function_is_found_in_the_folder_of_the_command_and_in_what_is_installed(own_module):
    assert import_function("own_code:halve", "waveform_transform")(4) == 2
    assert import_function("own_code:math.sqrt", "waveform_transform")(9) == 3
    assert import_function("os.path:basename", "waveform_transform")("a/b") == "b"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_code.halve", "Expected a_key as module:function, got own_code.halve"),
        ("own_code:", "Expected a_key as module:function"),
        ("no_such_code:halve", "a_key: expected no_such_code:halve in an installed module or one in .*no_such_code"),
        ("os.no_such:halve", "a_key: .* there is no os.no_such"),
        ("own_code:double", "a_key: expected the function double in own_code, got nothing"),
        ("own_code:NUMBER", "a_key: expected the function NUMBER in own_code, got 3"),
    ],
)
def test_what_is_no_function_is_refused_in_a_sentence(own_module, name, words):
    with pytest.raises(RecipeError, match=words):
        import_function(name, "a_key")


def test_a_module_that_fails_is_one_sentence_that_says_where(own_module, tmp_path):
    words = r"^a_key: broken_code cannot be imported \(ModuleNotFoundError in .*broken_code.py, line 1: No module"
    with pytest.raises(RecipeError, match=words) as found:
        import_function("broken_code:halve", "a_key")
    assert isinstance(found.value.__cause__, ModuleNotFoundError)


def test_a_function_is_found_beside_a_recipe_too(own_module, tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "code_beside.py").write_text("def double(x):\n    return 2 * x\n")
    with pytest.raises(RecipeError, match="there is no code_beside"):
        import_function("code_beside:double", "a_key")
    assert import_function("code_beside:double", "a_key", tmp_path / "recipes")(4) == 8
