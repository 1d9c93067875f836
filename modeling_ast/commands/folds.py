"""Train on every fold of a data set, one after the other, and summarise.

    modeling-ast folds configs/esc50.yaml [--folds 1 2 3 4 5] [--accelerate_config FILE] [--key value ...]

Each fold is held out in turn: `accelerate launch scripts/run_audio_classification.py` with `--eval_fold`, which the
recipe need not name, into `fold_NAME` below its `output_dir`. What is finished is not run again, and what was
interrupted goes on; so several machines can each take some of the folds, and `modeling-ast summarize` brings them
together.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from modeling_ast.commands import summarize
from modeling_ast.commands.command_line import run_command
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.sources import sort_folds
from modeling_ast.data.splits import read_folds
from modeling_ast.training.arguments import NOT_TRAINING, parse_arguments
from modeling_ast.training.folds import FoldError

TRAINING = ["-m", "modeling_ast.commands.train"]


def main(argv: list[str] | None = None) -> dict | None:
    """Run the folds.

    Returns:
        The summary, or `None` where the folder holds other folds too.

    Raises:
        RecipeError: Arguments that cannot be used, or a recipe without folds.
        DataError: A data set whose folds cannot be read.
        FoldError: A run that failed, or a fold whose name can be no folder's.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="recipe with fold_column_name; it needs no eval_fold, which is given for each")
    parser.add_argument("--folds", nargs="+", help="folds to hold out; all that the data set has if not given")
    parser.add_argument("--accelerate_config", help="file of configs/accelerate, for the launcher")
    arguments, keys = parser.parse_known_args(argv)
    _, data_args, _, training_args = parse_arguments([arguments.recipe, *keys, NOT_TRAINING])
    if data_args.fold_column_name is None:
        raise RecipeError(f"Expected fold_column_name in {arguments.recipe}, got none.")
    if any(key.partition("=")[0] == "--eval_fold" for key in keys):
        raise RecipeError("Expected the folds to hold out as --folds, got --eval_fold.")
    folds = arguments.folds or sort_folds(read_folds(data_args)[1])
    if wrong := [fold for fold in folds if not re.fullmatch(r"[^/\\\0]+", fold)]:
        raise FoldError(f"Expected folds whose names can be folders', got {wrong[0]!r}.")
    output_dir = Path(training_args.output_dir)

    for fold in folds:
        folder = output_dir / f"fold_{fold}"
        if (folder / "all_results.json").is_file() and not training_args.overwrite_output_dir:
            print(f"Fold {fold} is finished: {folder}.", flush=True)
            continue
        print(f"Fold {fold}: {folder}.", flush=True)
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
        if arguments.accelerate_config:
            launcher += ["--config_file", arguments.accelerate_config]
        own = [f"--eval_fold={fold}", f"--output_dir={folder}"]
        if not training_args.overwrite_output_dir:
            own.append("--resume_from_checkpoint=true")
        status = subprocess.run([*launcher, *TRAINING, arguments.recipe, *keys, *own]).returncode
        if status:
            raise FoldError(f"Fold {fold} failed (exit status {status}). The same command goes on where it stopped.")
    if {folder.name for folder in output_dir.glob("fold_*")} != {f"fold_{fold}" for fold in folds}:
        print(f"There are other folds: once all are finished, modeling-ast summarize {output_dir}.")
        return None
    metric = (training_args.metric_for_best_model or "accuracy").removeprefix("eval_")
    return summarize.main([str(output_dir), "--metric", "accuracy" if metric == "loss" else metric])


if __name__ == "__main__":
    run_command("folds")
