"""The folder of a run: whether it is free, may be continued or replaced, and which files in it are the run's."""

import dataclasses
import inspect
import logging
import re
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_ast.data.clip_tables import SPLITS
from modeling_ast.data.files import remove_folder, remove_unfinished, written_beside
from modeling_ast.data.locks import check_writable, still_written
from modeling_ast.data.locks import claimed as claimed_folder
from modeling_ast.data.recipes import RECIPE_NAME, RecipeError, read_settings
from modeling_ast.training.adapters import ADAPTER_FOLDER
from modeling_ast.training.arguments import Arguments, ASTTrainingArguments
from modeling_ast.training.saved_recipes import save_recipe

logger = logging.getLogger(__name__)

AVERAGE_FOLDER = "weight_average"
EVALUATION_FOLDER = "evaluation"  # of a finished run, without training
_MODEL_FOLDERS = (AVERAGE_FOLDER, ADAPTER_FOLDER)
# All files that a run writes into its folder, whose others are the user's: only these go when a run is replaced.
_PARTS = f"({'|'.join(SPLITS)})"
_RUN_FILES = re.compile(
    rf"model\.safetensors|config\.json|preprocessor_config\.json|training_args\.bin|trainer_state\.json|README\.md"
    rf"|(all|baseline|probe|(average_)?{_PARTS})_results\.json|results\.csv|bad_clips\.csv|per_class_{_PARTS}\.(csv|png)"
    rf"|loss_weights\.csv|predictions_{_PARTS}\.csv"
    rf"|confusion_{_PARTS}\.png|training_curves\.png|example\.png"
)
# What may not change between the parts of a run, since it moves the result: of our own keys all but these,
_FREE_KEYS = set(
    """
    overwrite_output_dir dry_run max_bad_clips remove_unused_columns ddp_find_unused_parameters
    global_batch_size per_device_train_batch_size features_on_device
    """.split()  # the trainer checks the batch of all devices; how it is divided moves the result by rounding alone
)
# and of Transformers' these alone, which adds others with every version.
_MOVING_KEYS = set(
    """
    do_train seed data_seed full_determinism
    num_train_epochs max_steps dataloader_drop_last auto_find_batch_size
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
    optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    label_smoothing_factor neftune_noise_alpha
    bf16 fp16 tf32 bf16_full_eval fp16_full_eval
    eval_strategy eval_steps eval_delay
    load_best_model_at_end metric_for_best_model greater_is_better
    accelerator_config parallelism_config fsdp fsdp_config deepspeed
    """.split()
)
# A run may be made longer; its schedule is then the longer run's from there on.
_LENGTH_KEYS = ("num_train_epochs", "max_steps")


def check_output_dir(output_dir: Path, arguments: Arguments) -> None:
    """A folder that holds a run is only used to continue that run, or to start anew when asked.

    Raises:
        RecipeError: It is a file, cannot be written, or holds another run, or the same one and nothing was asked.
    """
    training_args = arguments.training
    if output_dir.is_file():  # one look: another process may make the folder for now, and remove it
        raise RecipeError(f"Expected output_dir to be a folder, got the file {output_dir}.")
    checkpoint = training_args.resume_from_checkpoint
    if isinstance(checkpoint, str) and not Path(checkpoint).is_dir():
        raise RecipeError(f"Expected resume_from_checkpoint to be true or a checkpoint's folder, got {checkpoint}.")
    if not training_args.do_train:
        return
    if training_args.should_save:
        check_writable(output_dir, RecipeError)  # before the data is read and the model is made
    if not (output_dir / RECIPE_NAME).is_file() or (training_args.overwrite_output_dir and not checkpoint):
        return
    differences = recipe_differences(output_dir / RECIPE_NAME, arguments)
    if not checkpoint:
        others = f" Its recipe differs: {_describe(differences)}." if differences else ""
        raise RecipeError(
            f"{output_dir} holds a run already.{others} Continue it with --resume_from_checkpoint true, replace it "
            "with --overwrite_output_dir true, or choose another --output_dir."
        )
    for key in _LENGTH_KEYS:
        before, now = map(float, differences.get(key, (0, 0)))
        if 0 < before < now:
            del differences[key]
    if differences:
        raise RecipeError(
            f"{output_dir} holds another run, which cannot be continued with this recipe: "
            f"{_describe(differences)}. Give the values that it began with, choose another --output_dir, or "
            "replace it with --overwrite_output_dir true and --resume_from_checkpoint false."
        )


def claimed(output_dir: Path) -> AbstractContextManager[None]:
    """While it is entered, no other run can enter it for the same folder.

    Raises:
        RecipeError: When it is entered: another run is writing there.
    """
    return claimed_folder(output_dir, RecipeError(still_written(output_dir)))


def recipe_differences(recipe: Path, arguments: Arguments) -> dict[str, tuple[Any, Any]]:
    """What the recipe of a run and given arguments say otherwise, of the keys that can move the result.

    Returns:
        Key to the saved value and the given one; `None` for what is not said.

    Raises:
        RecipeError: The recipe cannot be read.
    """
    saved, given = read_settings(recipe), _settings(arguments)
    differences = {}
    own_keys = {name for block in arguments for kind in type(block).__mro__ for name in _own_keys(kind)}
    for key in sorted((saved.keys() | given.keys()) & (own_keys - _FREE_KEYS | _MOVING_KEYS)):
        before, now = (settings.get(key, _default(key, arguments)) for settings in (saved, given))
        if before != now:
            differences[key] = before, now
    return differences


def prepare_output_dir(output_dir: Path, arguments: Arguments) -> None:
    """Make the folder, with the recipe in it, and without what is left of a run that this one replaces."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for folder in (output_dir, *(output_dir / name for name in _MODEL_FOLDERS)):
        remove_unfinished(folder)
    if (output_dir / RECIPE_NAME).is_file():
        if not arguments.training.resume_from_checkpoint:
            _remove_run(output_dir)
        elif differences := recipe_differences(output_dir / RECIPE_NAME, arguments):
            logger.warning(f"The run is made longer ({_describe(differences)}).")
            (output_dir / TRAINER_STATE_NAME).unlink(missing_ok=True)  # which says that the training has ended
        else:
            return  # what the run began with stays written down
    with written_beside(output_dir / RECIPE_NAME, durable=True) as unfinished:
        save_recipe(arguments, unfinished)


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint of a run."""
    # Before folders were written beside and renamed, this file was the last one of a checkpoint.
    whole = [path.parent for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    whole = [path for path in whole if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name)]
    return str(max(whole, key=checkpoint_step)) if whole else None


def checkpoint_to_go_on_from(training_args: ASTTrainingArguments) -> str | None:
    """The one that the recipe names; with `true` the newest of the run, if it has one."""
    resume = training_args.resume_from_checkpoint
    return last_whole_checkpoint(training_args.output_dir) if resume is True else resume


def checkpoint_step(folder: str | Path) -> int:
    """Updates before a checkpoint, by its name."""
    return int(Path(folder).name.rpartition("-")[2])


def remove_old_checkpoints(run_dir: Path, limit: int | None, best: str | None) -> None:
    """Remove all but so many; the newest and the best stay. The Trainer's own way can leave a half of one.

    Args:
        run_dir: With the checkpoints.
        limit: How many stay; `None` means all.
        best: The best checkpoint, where there is one.
    """
    checkpoints = [path for path in run_dir.glob("*") if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name)]
    checkpoints.sort(key=checkpoint_step)
    kept = {path.name for path in checkpoints[-1:]} | ({Path(best).name} if best else set())
    removable = [path for path in checkpoints if path.name not in kept]
    too_many = len(checkpoints) - max(limit, len(kept)) if limit else 0
    for path in removable[: max(0, too_many)]:
        remove_folder(path)


def _remove_run(output_dir: Path) -> None:
    for path in output_dir.iterdir():
        if path.is_dir() and (
            re.fullmatch(r"checkpoint-\d+", path.name) or path.name in (*_MODEL_FOLDERS, EVALUATION_FOLDER)
        ):
            remove_folder(path)
        elif path.is_file() and re.fullmatch(_RUN_FILES, path.name):
            path.unlink()


def _settings(arguments: Arguments) -> dict[str, str | list[str]]:
    """As a saved recipe has them, since it is one that they are compared with."""
    with tempfile.TemporaryDirectory() as folder:
        save_recipe(arguments, Path(folder) / RECIPE_NAME)
        return read_settings(Path(folder) / RECIPE_NAME)


def _own_keys(kind: type) -> Iterable[str]:
    """Those that a block's class of this package names itself."""
    return inspect.get_annotations(kind) if kind.__module__.partition(".")[0] == __package__.partition(".")[0] else ()


def _default(key: str, arguments: Arguments) -> str | None:
    """What a recipe leaves out, as it would be written."""
    for block in arguments:
        for field in dataclasses.fields(block):
            if field.name == key and field.default not in (dataclasses.MISSING, None):
                return yaml.safe_dump(getattr(field.default, "value", field.default)).split("\n")[0]
    return None


def _describe(differences: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(
        f"{key}: {_shown(before)} saved, {_shown(now)} given" for key, (before, now) in differences.items()
    )


def _shown(value: str | list[str] | None) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else ", ".join(value)
