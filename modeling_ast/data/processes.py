"""The processes that a launcher starts: how all of them learn of an error of one, and what one decides for all."""

import os
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.environment import get_cpu_distributed_information

from modeling_ast.data.recipes import RecipeError

T = TypeVar("T")


def join_launched() -> bool:
    """Make the group of the processes that a launcher has started, if there are several, each with a GPU of its own.

    Returns:
        Whether this process is the main one, or alone.

    Raises:
        RecipeError: Other machines would not find this one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not torch.cuda.is_available() and (fault := host_name_fault()):
            raise RecipeError(fault)
        PartialState(cpu=not torch.cuda.is_available())
    return not is_one_of_several() or PartialState().is_main_process


def own_share(count: int, unit: int) -> tuple[int, int]:
    """From where to where, of so many rows, this process takes its share, so that batches are those of one process.

    Args:
        count: Of the rows, of all processes.
        unit: Rows that stay together.
    """
    if not is_one_of_several():
        return 0, count
    state, num_units = PartialState(), -(-count // unit)
    first, last = (num_units * (state.process_index + more) // state.num_processes for more in (0, 1))
    return min(first * unit, count), min(last * unit, count)


def process_name() -> str:
    """What to call this process."""
    return f"process {torch.distributed.get_rank() if is_group() else 0} ({platform.node()})"


def is_one_of_several() -> bool:
    return is_group() and torch.distributed.get_world_size() > 1


def gather_values(value: T) -> list[T]:
    """What each process has, in the order of their ranks; all processes have to call it together."""
    return gather_object([value]) if is_one_of_several() else [value]


def decided_by_main(decide: Callable[[], T]) -> T:
    """What the main process alone finds; the others are told. All processes have to call it together.

    Raises:
        RecipeError: The main process met an error, which it has raised.
    """
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
    if isinstance(error, ValueError) and not is_group():
        _join_before_error()
    message = None if error is None else f"{process_name()}: {str(error) or type(error).__name__}"
    messages = list(filter(None, gather_values(message)))
    if error is not None:
        raise_in_all(error)
    if messages:
        raise_in_all(RecipeError(messages[0]))


def raise_in_all(error: BaseException) -> NoReturn:
    """Raise an error that all processes raise, marked as such: the first one of each machine tells it."""
    error.of_all_processes = True
    raise error


def host_name_fault() -> str | None:
    """Why the other machines would not find this one without GPUs: gloo tells them the address of its own name."""
    place, main_address = get_cpu_distributed_information(), os.environ.get("MASTER_ADDR", "localhost")
    is_one_machine = place.local_world_size == place.world_size or main_address == "localhost"
    if is_one_machine or "GLOO_SOCKET_IFNAME" in os.environ or main_address.startswith("127."):
        return None
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "no address"
    if not address.startswith("127.") and address != "no address":
        return None
    return (
        f"The name of this machine, {name}, leads to {address}, where no other machine finds it. Set "
        "GLOO_SOCKET_IFNAME (with GPUs NCCL_SOCKET_IFNAME) to the network interface that leads to the others "
        "(such as eth0), or mend /etc/hosts."
    )


def _join_before_error() -> None:
    """Join the group before an error is told that came before it: the others may wait there already."""
    if get_cpu_distributed_information().world_size > 1 and host_name_fault() is None:
        with suppress(RuntimeError):  # they have ended too, or cannot be reached
            PartialState()


def is_group() -> bool:
    """Whether processes have joined, be it one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
