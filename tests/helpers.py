"""What several files of tests need."""

import signal
import sys
from unittest import mock

import pytest

from modeling_ast.commands import command_line


def end_of(command: str, *argv) -> tuple[int, str]:
    """How a command ends in this process: its exit status, and the sentence that it tells last, if it tells one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch.object(sys, "argv", [f"modeling-ast {command}", *map(str, argv)]),
        mock.patch.object(command_line, "_tell", wraps=command_line._tell) as tell,
        pytest.raises(SystemExit) as stop,
    ):
        try:
            command_line.run_command(command)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return stop.value.code, tell.call_args.args[0] if tell.called else ""
