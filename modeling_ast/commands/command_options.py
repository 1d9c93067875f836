"""Options that several commands have, and how their values are checked."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class CommandError(ValueError):
    """A command line that cannot be used. The message says what was expected and what came."""


class Parser(argparse.ArgumentParser):
    """A command's own: its module's docstring is the help, and options are written in full."""

    def __init__(self, doc: str, **options: Any):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )


def add_ignore_length(parser: argparse.ArgumentParser) -> None:
    """The option of commands that read sound files."""
    parser.add_argument(
        "--ignore_length",
        action="store_true",
        help="read files whose headers announce more sound than they hold, or less, as far as they go",
    )


def parse_clips_options(doc: str, argv: Sequence[str] | None, kind: str) -> tuple[argparse.Namespace, list[str]]:
    """The command line of a command that runs a model over clips: its own options, and keys of data.

    Args:
        doc: Of the command.
        argv: Without the program.
        kind: Folder of the results in `outputs`.

    Raises:
        CommandError: A file where a folder is to be.
    """
    from modeling_ast.data.clip_tables import SPLITS

    parser = Parser(doc)
    parser.add_argument("model", metavar="MODEL", help="folder or name on the Hub")
    parser.add_argument("data", metavar="DATA", help="folder, list, Parquet, name on the Hub, or recipe (.yaml)")
    parser.add_argument("--split", choices=SPLITS, help="of the data; default: all clips")
    parser.add_argument(
        "--output_dir", type=Path, help=f"default: a folder in outputs/{kind}, called after model and data"
    )
    args, keys = parser.parse_known_args(argv)
    if args.output_dir is not None and args.output_dir.is_file():
        raise CommandError(f"Expected output_dir to be a folder, got the file {args.output_dir}.")
    args.recipe = args.data if Path(args.data).suffix in (".yaml", ".yml") else None
    return args, keys if args.recipe else [f"--dataset_name={args.data}", *keys]


def add_bulk_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that run a model over many recordings, with a journal of what is done."""
    parser.add_argument("--batch_size", type=int, default=8, help="windows at a time; default: %(default)s")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read files; default: 0, this one")
    add_device(parser)
    add_ignore_length(parser)
    parser.add_argument("--part", metavar="K/N", help="from 1/N to N/N; default: that of a SLURM job array, or all")
    parser.add_argument("--retry", action="store_true", help="try recordings again that could not be used")
    parser.add_argument("--overwrite", action="store_true", help="delete the results that are there and begin anew")


def check_bulk_options(args: argparse.Namespace, environment: Mapping[str, str], **least: float) -> None:
    """Check the options of `add_bulk_options`, and put the part of this process in the place of the one that is given.

    Args:
        args: Of the command line.
        environment: Of the process, which may say its part.
        least: The lowest values of further numbers.

    Raises:
        CommandError: One of them cannot be.
    """
    from modeling_ast.data.parts import find_part

    check_least(args, batch_size=1, num_workers=0, **least)
    try:
        args.part = find_part(args.part, environment)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if args.overwrite and args.part.count > 1:
        raise CommandError(
            f"Expected no --overwrite of part {args.part}, which would delete what others have written."
        )


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option of commands that run a model where they are told to."""
    parser.add_argument("--device", type=device, help="such as cpu or cuda:1; default: a GPU where there is one")


def check_least(args: argparse.Namespace, **least: float) -> None:
    """Check numbers, those that are given, by their lowest values.

    Raises:
        CommandError: One of them is lower, or infinite.
    """
    for name, lowest in least.items():
        value = getattr(args, name)
        if value is not None and not lowest <= value < math.inf:  # nor NaN
            bound = "that is finite" if value == math.inf else f"of at least {lowest}"
            raise CommandError(f"Expected {name} {bound}, got {value}.")


def check_new_folder(folder: Path) -> None:
    """Check a folder that is to be written.

    Raises:
        CommandError: It is there already, and not empty, or this process stands in it.
    """
    if folder.resolve() == Path.cwd():
        raise CommandError(f"Expected a new or empty folder to write to, got {folder}, in which this was started.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CommandError(
            f"Expected a new or empty folder to write to, but {folder} is there: empty it, or choose another."
        )


def device(text: str) -> str:
    """An option's value that names a device; argparse makes the sentence of what it raises."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch has all of these for a device
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"expected a device of this machine, got {text!r} ({reason})") from error
    return text
