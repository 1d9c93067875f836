"""Train on every fold of a data set, one after the other, and summarise.

    modeling-ast folds configs/esc50.yaml [--folds 1 2 3 4 5] [--accelerate_config FILE] [--key value ...]
    modeling-ast folds outputs/esc50 [--metric accuracy]

Each fold is held out in turn: `accelerate launch -m modeling_ast.commands.train` with `--eval_fold`, which the recipe
need not name, into `fold_NAME` below its `output_dir`. Folds are those of `fold_column_name`, or groups such as
speakers (`group_column_name`, `group_pattern`): each alone, or some at a time with `--num_folds K`, which without
groups deals the clips into K folds. What is finished is not run again, and what was interrupted goes on; so several
machines can each take some of the folds.

Of a folder with such runs it is the summary alone: the metric of each fold, mean and deviation, at the epoch with the
best mean (the paper's way, and optimistic: the same clips choose and report) and at the last epoch, from each
`results.csv`. It is printed, and written to `folds.json` there.
"""

import argparse
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from psutil import NoSuchProcess, Process

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser
from modeling_ast.data.recipes import RECIPE_NAME, RecipeError
from modeling_ast.data.sources import list_folds
from modeling_ast.training.arguments import parse_arguments
from modeling_ast.training.folds import describe_summary, save_summary
from modeling_ast.training.output_dir import recipe_differences

GOES_ON = "The same command goes on where it stopped."
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
TRAINING = ["-m", "modeling_ast.commands.train"]


def main(argv: list[str] | None = None) -> dict | None:
    """Run the folds, and summarise them.

    Returns:
        The summary, or `None` where the folder holds other folds too.

    Raises:
        CommandError: Options that do not go together, or a run that failed.
        RecipeError: Arguments that cannot be used, a recipe without folds, or a fold whose name can be no folder's.
        DataError: A data set whose folds cannot be read, no runs, or runs that do not belong together.
    """
    arguments, keys = parse_command_line(argv)
    if arguments.source.is_dir():
        return summarize(arguments.source, arguments.metric or "accuracy")
    recipe = str(arguments.source)
    _, data_args, _, training_args = parse_arguments([recipe, *keys, "--do_train=false"])
    if data_args.fold_column_name is None and not data_args.makes_folds:
        raise RecipeError(
            f"Expected num_folds, fold_column_name, group_column_name or group_pattern in {recipe}, got none."
        )
    if any(key.partition("=")[0] == "--eval_fold" for key in keys):
        raise RecipeError("Expected the folds to hold out as --folds, got --eval_fold.")
    folds = arguments.folds or list_folds(data_args)
    if wrong := [fold for fold in folds if not re.fullmatch(r"[^/\\\0]+", fold)]:
        raise RecipeError(f"Expected folds whose names can be folders', got {wrong[0]!r}.")
    output_dir, is_new = Path(training_args.output_dir), training_args.overwrite_output_dir

    launcher = [*LAUNCHER, *(["--config_file", arguments.accelerate_config] if arguments.accelerate_config else [])]
    for fold in folds:
        folder = output_dir / f"fold_{fold}"
        own = [f"--eval_fold={fold}", f"--output_dir={folder}"]
        if not is_new and is_finished(folder, [recipe, *keys, *own]):
            print(f"Fold {fold} is finished: {folder}.", flush=True)
            continue
        print(f"Fold {fold}: {folder}.", flush=True)
        if not is_new:
            own.append("--resume_from_checkpoint=true")
        if status := launch([*launcher, *TRAINING, recipe, *keys, *own]):
            raise CommandError(f"Fold {fold} failed (exit status {status}). {GOES_ON}")
    if {folder.name for folder in output_dir.glob("fold_*")} != {f"fold_{fold}" for fold in folds}:
        print(f"There are other folds: once all are finished, modeling-ast folds {output_dir}.")
        return None
    chosen_by = (training_args.metric_for_best_model or "accuracy").removeprefix("eval_")
    return summarize(output_dir, arguments.metric or ("accuracy" if chosen_by == "loss" else chosen_by))


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the keys of a recipe."""
    parser = Parser(__doc__, usage="%(prog)s RECIPE|OUTPUT_DIR [options] [--key value ...]")
    parser.add_argument("source", type=Path, metavar="RECIPE|OUTPUT_DIR", help="with folds or groups; or of the runs")
    parser.add_argument("--folds", nargs="+", help="folds to hold out (default: all that the data set has)")
    parser.add_argument("--accelerate_config", metavar="FILE", help="of configs/accelerate, for the launcher")
    parser.add_argument(
        "--metric", help="column of results.csv (default: the one that chooses the epoch, or accuracy)"
    )
    arguments, keys = parser.parse_known_args(argv)
    if arguments.source.is_dir() and (keys or arguments.folds or arguments.accelerate_config):
        raise CommandError(f"Expected --metric alone with the folder of runs {arguments.source}; a recipe trains.")
    return arguments, keys


def is_finished(folder: Path, argv: list[str]) -> bool:
    """Whether a fold's run has ended, and is this recipe's: another one's the training refuses, or makes longer."""
    if not all((folder / name).is_file() for name in ("all_results.json", RECIPE_NAME)):
        return False
    return not recipe_differences(folder / RECIPE_NAME, parse_arguments(argv))


def launch(command: list[str]) -> int:
    """The exit status of a training, which a signal ends in its own way: what it has begun is put away.

    A signal may reach all processes, of which the launcher would only show its traceback, or this one alone.
    """
    # As the launcher inherits it; a training sets its own.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    process = subprocess.Popen(command)
    for number, handler in before.items():
        signal.signal(number, handler)
    try:
        return process.wait()
    except KeyboardInterrupt as stop:
        end_launched(process, stop)


def end_launched(process: subprocess.Popen, stop: KeyboardInterrupt) -> NoReturn:
    """Wait for a training that a signal ends and that tells so; before there is one, end the launcher."""
    number = getattr(stop, "number", signal.SIGINT)
    if process.poll() is None:
        training = Process(process.pid).children(recursive=True)
        for each in training:
            with suppress(NoSuchProcess):
                each.send_signal(number)
        if not training:
            process.kill()
    if process.wait() in (0, -signal.SIGKILL):
        raise stop
    sys.exit(128 + number)


def summarize(output_dir: Path, metric: str) -> dict:
    """Print and save the summary of all runs in a folder, and return it."""
    summary = save_summary(output_dir, metric)
    print(describe_summary(summary))
    return summary


if __name__ == "__main__":
    run_command("folds")
