"""The processes of a run: how they join, how all of them learn of an error of one, and what one decides for all."""

import os
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, str_to_bool
from accelerate.utils.environment import get_cpu_distributed_information
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from modeling_ast.data.recipes import RecipeError

T = TypeVar("T")


def join_on_cpus(args: TrainingArguments) -> None:
    """Make the group of processes without GPUs, before Transformers does, which leaves `ddp_timeout` out there.

    It takes a group that is there as it is.

    Raises:
        ValueError: The launcher was asked for several processes and started one, or the others would not find this
            machine.
    """
    place = get_cpu_distributed_information()
    if place.world_size == 1:
        # `accelerate launch` says where the main process is, where there are to be several, and their ranks elsewhere.
        if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "RANK" not in os.environ:
            raise ValueError(
                "accelerate launch was asked for several processes without GPUs, and started one, which would train "
                "alone. Start them with --multi_gpu in place of --cpu and with the recipe's key use_cpu true, or ask "
                "for one process."
            )
    elif args.use_cpu or str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "False")):
        if place.local_world_size < place.world_size:
            _check_host_name()
        PartialState(cpu=True, backend=args.ddp_backend, timeout=timedelta(seconds=args.ddp_timeout))


def refuse_lone_processes(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: This process is one of a group, and would train alone.
    """
    if _is_group() and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ValueError(
            f"Expected use_cpu true for {torch.distributed.get_world_size()} processes that find no GPU: without it "
            "each of them would train alone."
        )


def _check_host_name() -> None:
    """Gloo tells the other machines the address that this one's own name leads to."""
    main_address = os.environ.get("MASTER_ADDR", "localhost")
    if "GLOO_SOCKET_IFNAME" in os.environ or main_address == "localhost" or main_address.startswith("127."):
        return
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "no address"
    if address.startswith("127.") or address == "no address":
        raise ValueError(
            f"The name of this machine, {name}, leads to {address}, where no other machine finds it. Set "
            "GLOO_SOCKET_IFNAME (with GPUs NCCL_SOCKET_IFNAME) to the network interface that leads to the others "
            "(such as eth0), or mend /etc/hosts."
        )


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


def raise_in_all(error: BaseException) -> NoReturn:
    """Raise an error that all processes raise, marked as such: the first one of each machine tells it."""
    error.of_all_processes = True
    raise error


def _is_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
