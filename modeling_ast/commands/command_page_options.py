"""Options of commands that open a page: where, and to whom."""

import argparse
from pathlib import Path

from modeling_ast.commands.command_options import CommandError


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that open a page."""
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 opens the page to the network; default: %(default)s"
    )
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help="only they can open the page; or a file with one such line for each"
    )


def check_page_options(args: argparse.Namespace) -> None:
    """Check the port of `add_page_options`, and put the accounts in the place of what names them.

    Raises:
        CommandError: There is no such port, or as from `read_accounts`.
    """
    if not 1 <= args.port <= 65535:
        raise CommandError(f"Expected port from 1 to 65535, got {args.port}.")
    args.auth = args.auth and read_accounts(args.auth)


def port_taken(args: argparse.Namespace) -> str:
    """What to tell where the page cannot be opened."""
    return f"{args.host}:{args.port} cannot be opened; --port chooses another."


def read_accounts(auth: str) -> list[tuple[str, str]]:
    """Users and passwords, from a file or from the command line, where other users of the machine can read them.

    Raises:
        CommandError: A line without both, or a file that cannot be read.
    """
    try:
        lines = Path(auth).read_text(encoding="utf-8").split("\n") if Path(auth).is_file() else [auth]
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"Expected auth to be a file in UTF-8 that can be read, got {auth} ({error}).") from error
    accounts = [line.strip().partition(":") for line in lines if line.strip()]
    if not accounts or not all(user and password for user, _, password in accounts):
        raise CommandError("Expected auth to be USER:PASSWORD, or a file with such lines; got something else.")
    return [(user, password) for user, _, password in accounts]
