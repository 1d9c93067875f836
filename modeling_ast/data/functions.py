"""Functions of the user's own, which a recipe or a command names: `module:function`."""

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from modeling_ast.data.recipes import RecipeError


def import_function(name: str, option: str) -> Callable[..., Any]:
    """What can be called by a name, of an installed module or one in the folder that the command is started in.

    Args:
        name: `module:function`; the module may lie in packages, with dots between.
        option: The key or option that names it, for messages.

    Raises:
        RecipeError: Another form, no such module, or nothing in it that has this name and can be called. What goes
            wrong within the module is not caught.
    """
    match = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)", name)
    if match is None:
        raise RecipeError(f"Expected {option} as module:function, got {name}.")
    module_name, path = match.groups()
    if "" not in sys.path and os.getcwd() not in sys.path:  # as of a command that is not started by `python -m`
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise RecipeError(
            f"{option}: expected {name} in an installed module or one in {os.getcwd()}, but there is no {error.name}."
        ) from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        got = "nothing" if found is None else repr(found)
        raise RecipeError(f"{option}: expected the function {path} in {module_name}, got {got}.")
    return found
