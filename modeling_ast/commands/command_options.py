"""Options that several commands have, and how their values are checked."""

import argparse
import math
from collections.abc import Mapping
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


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that open a page: where, and to whom."""
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 opens the page to the network; default: %(default)s"
    )
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help="only they can open the page; or a file with one such line for each"
    )


def check_port(args: argparse.Namespace) -> None:
    """Check the port of `add_page_options`.

    Raises:
        CommandError: There is no such port.
    """
    if not 1 <= args.port <= 65535:
        raise CommandError(f"Expected port from 1 to 65535, got {args.port}.")


def port_taken(args: argparse.Namespace) -> str:
    """What to tell where the page cannot be opened."""
    return f"{args.host}:{args.port} cannot be opened; --port chooses another."


def read_accounts(auth: str) -> list[tuple[str, str]]:
    """Users and passwords, from a file or from the command line, where other users of the machine can read them.

    Raises:
        CommandError: A line without both.
    """
    lines = Path(auth).read_text(encoding="utf-8").split("\n") if Path(auth).is_file() else [auth]
    accounts = [line.strip().partition(":") for line in lines if line.strip()]
    if not accounts or not all(user and password for user, _, password in accounts):
        raise CommandError("Expected auth to be USER:PASSWORD, or a file with such lines; got something else.")
    return [(user, password) for user, _, password in accounts]


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
