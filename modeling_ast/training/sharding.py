"""A model that several GPUs share (FSDP): where it can be, and which checkpoints a run can go on from."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import str_to_bool
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import nn
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN

from modeling_ast.data.recipes import RecipeError

_WHOLE, _FULL, _SHARDED = "without FSDP", "with FSDP's FULL_STATE_DICT", "with FSDP's SHARDED_STATE_DICT"
_SHARDS_FOLDER = f"{FSDP_MODEL_NAME}_0"
_SAVED_AS = {_SHARDS_FOLDER: _SHARDED, f"{FSDP_MODEL_NAME}.bin": _FULL, OPTIMIZER_NAME: _WHOLE}


def refuse_unusable_fsdp(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: FSDP was asked for, by the launcher or the recipe, where Accelerate would leave it out without a
            word, in its first version, with a batch size that is to be found, or so that other processes than the main
            one have no weights to evaluate.
    """
    if not (args.fsdp or str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false"))):
        return
    if args.distributed_state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise ValueError(
            "FSDP needs GPUs, and accelerate launch or torchrun also for one process: elsewhere Accelerate leaves it "
            "out. Leave it out of the recipe and of the launcher's file (configs/accelerate/multi_gpu.yaml has none)."
        )
    version = int((args.fsdp_plugin_args or {}).get("fsdp_version", os.environ.get("FSDP_VERSION", "1")))
    if version != 2:
        raise ValueError(f"Expected fsdp_version 2, got {version}, which Accelerate takes where its file says none.")
    if args.auto_find_batch_size:
        raise ValueError("auto_find_batch_size cannot begin anew with a sharded model: set global_batch_size.")
    if str_to_bool(os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")):
        raise ValueError(
            "Expected fsdp_cpu_ram_efficient_loading false, got true: then the main process alone reads a model, and "
            "the others would evaluate one that was not trained with weights that they do not have."
        )


def check_strategy(checkpoint: Path, accelerator: Accelerator) -> None:
    """Check that a run can read what another one saved.

    Raises:
        RecipeError: It was saved with FSDP and the run is without it, or the other way round, or in another layout.
    """
    saved = next((strategy for name, strategy in _SAVED_AS.items() if (checkpoint / name).exists()), None)
    own = _strategy(accelerator)
    if saved is None or saved == own:  # what holds none of these is told elsewhere
        return
    shards = checkpoint / _SHARDS_FOLDER
    raise RecipeError(
        f"{checkpoint} was saved {saved}, and cannot be continued from {own}. Go on with the file of Accelerate "
        "(--config_file) that the run began with, or start a new one from these weights by model_name_or_path"
        + (f", made whole by accelerate merge-weights {shards} {checkpoint}." if saved == _SHARDED else ".")
    )


def check_whole_files(checkpoint: Path, accelerator: Accelerator, model: nn.Module) -> None:
    """Read what the main process alone reads of a checkpoint, since the others would wait for it where it cannot.

    Raises:
        OSError, RuntimeError, ValueError: A file that cannot be read, or of another model.
    """
    if _strategy(accelerator) == _FULL and accelerator.is_main_process:
        names = (f"{FSDP_MODEL_NAME}.bin", OPTIMIZER_NAME_BIN)
        weights, _ = (torch.load(checkpoint / name, mmap=True, weights_only=True) for name in names)
        model.load_state_dict(weights)


def check_optimizer(checkpoint: Path) -> None:
    """Without the optimiser's state, Transformers' own begins with a new one, and says nothing.

    Raises:
        RecipeError: It is not there.
    """
    if not [*checkpoint.glob("optimizer*"), *checkpoint.glob("global_step*")]:  # the latter DeepSpeed's
        raise RecipeError(
            f"{checkpoint} cannot be continued from: it holds no state of the optimiser, as one that save_only_model "
            "true has saved. Start a new run from it by model_name_or_path."
        )


def save_whole_models(accelerator: Accelerator) -> None:
    """From here on `Trainer.save_model` saves one file, in place of none where checkpoints are of shards."""
    if _strategy(accelerator) == _SHARDED:
        accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")


def _strategy(accelerator: Accelerator) -> str:
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return _WHOLE if plugin is None else f"with FSDP's {plugin.state_dict_type.name}"
