"""The entry point of all commands: exit statuses, and the one line that a command ends with.

Exit statuses: 0; 1 where some inputs could not be used; 2 where nothing could be done; 128 and the signal's number
after Ctrl-C (130) and SIGTERM (143), as shells have it. Nothing heavy is imported before a command is chosen.
"""

import argparse
import atexit
import importlib
import os
import re
import select
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from modeling_ast.commands.command_faults import fault_sentence, stop_sentence
from modeling_ast.commands.command_signals import ignore_signals, raise_signals, stop_at_once, tell

NOTHING_DONE = 2


def main() -> NoReturn:
    """The entry point `modeling-ast`."""
    stop_at_once()
    names = commands()
    parser = argparse.ArgumentParser(
        prog="modeling-ast",
        description="Train, run and export Audio Spectrogram Transformers.",
        epilog="commands:\n" + "".join(f"  {name:12}{line}\n" for name, line in names.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s COMMAND [arguments]",
    )
    parser.add_argument("command", metavar="COMMAND", choices=list(names), help="one of those below; COMMAND --help")
    parser.add_argument("--version", action="version", version=_version())
    name = parser.parse_args(sys.argv[1:2]).command
    sys.argv[:2] = [f"modeling-ast {name}"]
    run_command(name)


def commands() -> dict[str, str]:
    """Names of all commands, with the first sentence of each one's docstring, in the order of names.

    Each file here is one, but those that they share, which are called `command_...`.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        if not path.stem.startswith("command_"):
            docstring = path.read_text(encoding="utf-8").split('"""')[1]
            found[path.stem] = re.split(r"(?<=\.)\s|\n\n", docstring, maxsplit=1)[0].replace("\n", " ")
    return found


def run_command(name: str) -> NoReturn:
    """Run a command as this process, and end it with its exit status.

    Args:
        name: Of its module, whose `main()` is called. Where that returns a whole number, it is the exit status. Where
            the module has a `GOES_ON`, that is told when a signal or the machine ends the command.
    """
    goes_on = ""
    atexit.register(ignore_signals)
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
        check_torchaudio()
        importlib.import_module("modeling_ast.auto_classes")
        module = importlib.import_module(f"modeling_ast.commands.{name}")
        goes_on = getattr(module, "GOES_ON", "")
        raise_signals()
        result = module.main()
        sys.stdout.flush()
        stop_at_once()
    except KeyboardInterrupt as stop:
        stop_at_once()
        _close_progress_bars()
        number = getattr(stop, "number", signal.SIGINT)
        _end(stop, str(stop) or stop_sentence(number, goes_on), 128 + number)
    except Exception as error:
        stop_at_once()
        if isinstance(error, BrokenPipeError) and _is_read_no_more():
            sys.exit(128 + signal.SIGPIPE)
        _close_progress_bars()
        sentence = fault_sentence(error, goes_on)
        if sentence is None:
            raise
        _end(error, sentence, NOTHING_DONE)
    sys.exit(result if isinstance(result, int) else 0)


def check_torchaudio() -> None:
    """End this process where torchaudio cannot be loaded: Transformers would fail on it without naming it."""
    from modeling_ast.resampling import require_torchaudio

    try:
        require_torchaudio()
    except ImportError as error:
        tell(f"error: {error}")
        sys.exit(NOTHING_DONE)


def tell_fault(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """End this process with one sentence, as `sys.excepthook` of a command whose file cannot be imported."""
    if (sentence := fault_sentence(error)) is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        tell(sentence)
        sys.exit(NOTHING_DONE)


def _end(error: BaseException, sentence: str, status: int) -> NoReturn:
    """Tell a sentence; one of what all processes of a run raise is told by the first one of each machine."""
    if not (getattr(error, "of_all_processes", False) and os.environ.get("LOCAL_RANK", "0") != "0"):
        tell(sentence)
    stop_at_once(status)
    sys.exit(status)


def _is_read_no_more() -> bool:
    """Whether who read what this process prints has enough, such as `head`; nothing more is printed then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _close_progress_bars() -> None:
    """Those that are not finished would be drawn once more, below the sentence that a command ends with."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()


def _version() -> str:
    from modeling_ast import __version__

    return __version__
