"""Recipes are listed and printed by whoever has only the package."""

import configparser
from pathlib import Path

import pytest

from modeling_ast.commands.command_options import CommandError
from modeling_ast.commands.recipe import main
from modeling_ast.data.recipes import read_recipe

ROOT = Path(__file__).resolve().parents[1]


def test_every_recipe_is_listed_with_its_first_line(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert all(len(line.split()) > 5 for line in lines)


def test_a_recipe_is_printed_as_it_is(capsys, tmp_path):
    main(["esc50"])
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert read_recipe(tmp_path / "my.yaml") == read_recipe(ROOT / "configs" / "esc50.yaml")


def test_a_name_that_is_none_is_one_sentence():
    with pytest.raises(CommandError, match="one of audioset_balanced, .*, got esc5."):
        main(["esc5"])


def test_the_package_that_is_installed_has_every_folder_and_the_recipes():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = setup["options"]["packages"].split()
    folders = {path.parent for path in (ROOT / "modeling_ast").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(packages) == names | {"modeling_ast.configs"}
    data = setup["options.package_data"]
    assert "*.yaml" in data["modeling_ast.configs"] and data["modeling_ast"] == "py.typed"
