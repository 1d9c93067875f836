"""Let trained models say what they find in each augmented clip of a recipe, for a student to be trained on.

    modeling-ast teach RECIPE.yaml --teachers MODEL|MODULE:FUNCTION ... --output FOLDER [--epochs E] [--key value ...]

A student that is trained by this recipe and seed with `teacher_targets: FOLDER` gets the very same clips: the same
order, crops, partners and their weights, gains, masks, rolls and noise. Of each the best `--top_k` probabilities are
stored, the mean of all teachers, 4 bytes each; the student goes through the epochs that are stored again and again.

A teacher is a folder or a name on the Hub of an AST with the recipe's labels, in any order; or a function of a module,
in this folder or installed, which gets a list of waveforms (float32 arrays) at the rate that its attribute
`sampling_rate` names, and gives an array of probabilities for the names in its attribute `labels`; without these it
gives embeddings, and the student learns to predict them.

The same command again goes on where it was stopped, and with more epochs adds them. Under accelerate launch or
torchrun each process takes its share of the files and a GPU of its own; --part K/N is one of N shares, which a SLURM
job array fills in. Exit status: 0, or 2 if nothing can be done.
"""

import argparse
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, check_least
from modeling_ast.data.files import remove_unfinished
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import still_written
from modeling_ast.data.parts import Part, claimed_part, find_part
from modeling_ast.data.processes import together
from modeling_ast.training.arguments import Arguments
from modeling_ast.training.same_run import compare_processes
from modeling_ast.training.stages import build, make_trainer, prepare_clips, read_data
from modeling_ast.training.targets import TargetsFolder
from modeling_ast.training.teachers import Teachers
from modeling_ast.training.teaching import describe_targets, read_teaching_arguments, teach

_TOP_K = 20  # of AudioSet's 527: as CED has it
GOES_ON = "The same command goes on from here."


def main(argv: list[str] | None = None) -> None:
    """Write the targets of a recipe's views.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Raises:
        CommandError, RecipeError, ModelError, DataError, AudioError: Options, keys, a teacher, a data set or a sound
            file that cannot be used.
    """
    args, keys = parse_command_line(argv)
    arguments = read_teaching_arguments(args.recipe, keys, args.output)
    level = logging.INFO if arguments.training.should_log else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    refusal = DataError(still_written(args.output, "--output"))
    with ExitStack() as stack:
        with together():
            stack.enter_context(claimed_part(args.output, args.part, refusal))
        run(args, arguments)


def run(args: argparse.Namespace, arguments: Arguments) -> None:
    """Do what the command line says, and say what has been done."""
    compare_processes(arguments)
    splits = read_data(arguments, needs_labels=False)
    model, extractor = build(arguments, splits)
    of_training = prepare_clips(arguments, splits, extractor)
    thresholds = np.full(len(splits.label_names), 0.5)  # nothing is decided
    trainer = make_trainer(arguments, splits, model, extractor, thresholds, **of_training)
    problem_type, device = arguments.model.problem_type, arguments.training.device
    teachers = Teachers(args.teachers, extractor, problem_type, splits.label_names, device)
    if teachers.label_names is None and args.top_k is not None:
        raise CommandError("Expected no --top_k for embeddings, which are stored whole.")
    teachers.tell_what_they_lack(arguments.augment)
    description = describe_targets(trainer, arguments, teachers, args.top_k or _TOP_K, args.epochs)
    targets = TargetsFolder(args.output, description)
    targets.begin()
    num_new, num_missing = teach(trainer, teachers, targets, args.epochs, args.part)
    print(f"{args.epochs} epoch(s) of {description['views']['draws_per_epoch']} views; {num_new} file(s) of them now.")
    if num_missing:
        print(f"Part {args.part} is done; {num_missing} file(s) of other parts or epochs are not there yet.")
    else:
        remove_unfinished(args.output)  # of what was killed before; no part writes any longer
        print(f"Train with --teacher_targets {args.output}.")


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This command's own arguments, and keys of the recipe."""
    parser = Parser(__doc__)
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="of the student")
    parser.add_argument(
        "--teachers", required=True, nargs="+", metavar="TEACHER", help="folders, names on the Hub, module:function"
    )
    parser.add_argument("--output", required=True, type=Path, help="a folder")
    parser.add_argument("--epochs", type=int, default=1, help="of the student that are taught; default: %(default)s")
    parser.add_argument("--top_k", type=int, help=f"probabilities that are kept; default: {_TOP_K}")
    parser.add_argument("--part", metavar="K/N", help="from 1/N to N/N; default: that of a SLURM job array, or all")
    args, keys = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    check_least(args, epochs=1, top_k=1)
    try:
        args.part: Part = find_part(args.part, os.environ)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if len(set(args.teachers)) < len(args.teachers):
        raise CommandError(f"Expected different teachers, got {', '.join(args.teachers)}.")
    return args, keys


if __name__ == "__main__":
    run_command("teach")
