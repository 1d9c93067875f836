"""Functions of the user's own, which a recipe or a command names: `module:function`."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeling_ast.data.recipes import RecipeError


def import_function(name: str, option: str, folder: str | os.PathLike | None = None) -> Callable[..., Any]:
    """What can be called by a name, of an installed module or one in the folder that the command is started in.

    Args:
        name: `module:function`; the module may lie in packages, with dots between.
        option: The key or option that names it, for messages.
        folder: Where modules are looked for too, from now on, such as that of a recipe.

    Raises:
        RecipeError: Another form, no such module, one that fails, or nothing in it that has this name and can be
            called.
    """
    match = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)", name)
    if match is None:
        raise RecipeError(f"Expected {option} as module:function, got {name}.")
    module_name, path = match.groups()
    folders = [os.getcwd()] if folder is None else [os.getcwd(), os.path.abspath(folder)]
    sys.path += [each for each in dict.fromkeys(folders) if each not in sys.path]
    try:
        found = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            where = f"an installed module or one in {' or '.join(dict.fromkeys(folders))}"
            raise RecipeError(f"{option}: expected {name} in {where}, but there is no {error.name}.") from error
        raise RecipeError(f"{option}: {module_name} cannot be imported ({describe_fault(error)}).") from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        got = "nothing" if found is None else repr(found)
        raise RecipeError(f"{option}: expected the function {path} in {module_name}, got {got}.")
    return found


def read_code(name: str) -> bytes:
    """The file of the module of a function that was imported; nothing of one without a file.

    Args:
        name: `module:function`, as for `import_function`.
    """
    path = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return Path(path).read_bytes() if path else b""


def describe_fault(error: Exception) -> str:
    """What an error in such a function, or in its module, says, and in which line it came up there."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is that of the call
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    where = f" in {frames[0].filename}, line {frames[0].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())}"
