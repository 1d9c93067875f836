"""List the recipes that come with the package, or print one, to be changed and trained by.

    modeling-ast recipe
    modeling-ast recipe esc50 > my.yaml

A recipe's head says its task, what to expect, and how the data are prepared.
"""

from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser

PACKAGE = Path(__file__).parents[1]


def main(argv: list[str] | None = None) -> None:
    """Print the list, or the recipe.

    Raises:
        CommandError: No recipe of that name.
    """
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", help="of the recipe; without one, all are listed")
    name = parser.parse_args(argv).name
    recipes = find_recipes()
    if name is None:
        for each, path in recipes.items():
            print(f"{each:20} {path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}")
    elif name in recipes:
        print(recipes[name].read_text(encoding="utf-8"), end="")
    else:
        raise CommandError(f"Expected the name of a recipe, one of {', '.join(recipes)}, got {name}.")


def find_recipes() -> dict[str, Path]:
    """Names and paths of the recipes: in an installed package within it, in a checkout beside it."""
    folder = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


if __name__ == "__main__":
    run_command("recipe")
