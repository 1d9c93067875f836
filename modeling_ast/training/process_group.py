"""How the processes of a training run join, on CPUs too, and what they cannot be."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import str_to_bool
from accelerate.utils.environment import get_cpu_distributed_information
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from modeling_ast.data.processes import host_name_fault, is_group


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
        if fault := host_name_fault():
            raise ValueError(fault)
        PartialState(cpu=True, backend=args.ddp_backend, timeout=timedelta(seconds=args.ddp_timeout))


def refuse_lone_processes(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: This process is one of a group, and would train alone.
    """
    if is_group() and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ValueError(
            f"Expected use_cpu true for {torch.distributed.get_world_size()} processes that find no GPU: without it "
            "each of them would train alone."
        )
