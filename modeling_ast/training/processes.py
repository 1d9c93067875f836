"""The processes of a run: how all of them learn of an error of one, and what one decides for all."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from modeling_ast.data.recipes import RecipeError

T = TypeVar("T")


def process_name() -> str:
    """What to call this process."""
    return f"process {PartialState().process_index} ({platform.node()})"


def is_one_of_several() -> bool:
    return _is_group() and torch.distributed.get_world_size() > 1


def gather_values(value: T) -> list[T]:
    """What each process has, in the order of their ranks; all processes have to call it together."""
    return gather_object([value]) if is_one_of_several() else [value]


def decided_by_main(decide: Callable[[], T]) -> T:
    """What the main process alone finds; the others are told. All processes have to call it together."""
    if not is_one_of_several():
        return decide()
    with together():
        decision = decide() if PartialState().is_main_process else None
    return broadcast_object_list([decision])[0]


@contextmanager
def together() -> Iterator[None]:
    """An error that one process meets within it ends all of them; all processes have to enter it together.

    What is within it must not wait for other processes where another one may have met an error before.

    Raises:
        RecipeError: Another process met an error, which it has raised.
    """
    error = None
    try:
        yield
    except Exception as own_error:
        error = own_error
    message = None if error is None else f"{process_name()}: {str(error) or type(error).__name__}"
    messages = list(filter(None, gather_values(message)))
    if error is not None:
        raise_in_all(error)
    if messages:
        raise_in_all(RecipeError(messages[0]))


def raise_in_all(error: Exception) -> NoReturn:
    """Raise an error that all processes raise, marked as such: the first one of each machine tells it."""
    error.of_all_processes = True
    raise error


def _is_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
