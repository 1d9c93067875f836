"""The folder of a run: what may be in it before, and what is left of an earlier one."""

import re
import shutil
from pathlib import Path

from modeling_ast.training.arguments import ASTTrainingArguments
from modeling_ast.training.recipes import RECIPE_NAME, Arguments, RecipeError, save_recipe

AVERAGE_FOLDER = "weight_average"


def check_output_dir(output_dir: Path, training_args: ASTTrainingArguments) -> None:
    """A folder that holds a run is only used to continue that run, or to start anew when asked."""
    is_new_run = training_args.do_train and not training_args.resume_from_checkpoint
    if output_dir.exists() and not output_dir.is_dir():
        raise RecipeError(f"Expected output_dir to be a folder, got the file {output_dir}.")
    checkpoint = training_args.resume_from_checkpoint
    if isinstance(checkpoint, str) and not Path(checkpoint).is_dir():
        raise RecipeError(f"Expected resume_from_checkpoint to be true or a checkpoint's folder, got {checkpoint}.")
    if is_new_run and (output_dir / RECIPE_NAME).is_file() and not training_args.overwrite_output_dir:
        raise RecipeError(
            f"{output_dir} holds a run already. Continue it with --resume_from_checkpoint true, replace it with "
            "--overwrite_output_dir true, or choose another --output_dir."
        )


def prepare_output_dir(output_dir: Path, arguments: Arguments) -> None:
    """Make the folder, with the recipe in it, and without what is left of a run that this one replaces."""
    output_dir.mkdir(parents=True, exist_ok=True)
    training_args = arguments[-1]
    if (output_dir / RECIPE_NAME).is_file() and not training_args.resume_from_checkpoint:
        for path in output_dir.iterdir():
            if path.is_dir() and (re.fullmatch(r"checkpoint-\d+", path.name) or path.name == AVERAGE_FOLDER):
                shutil.rmtree(path)
            elif path.name in ("trainer_state.json", "README.md") or path.match("*_results.json"):
                path.unlink()
            elif path.suffix in (".csv", ".png"):  # records and pictures
                path.unlink()
    save_recipe(arguments, output_dir / RECIPE_NAME)
