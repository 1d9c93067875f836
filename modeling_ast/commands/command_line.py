"""What all commands share: the entry point, exit statuses, signals, and one sentence for what goes wrong.

Exit statuses: 0; 1 where some inputs could not be used; 2 where nothing could be done; 128 and the signal's number
after Ctrl-C (130) and SIGTERM (143), as shells have it. Nothing heavy is imported before a command is chosen.
"""

import argparse
import atexit
import errno
import importlib
import math
import os
import re
import select
import signal
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

NOTHING_DONE = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a machine can run out of, in the words of the system, of torch and of its GPUs; and what helps.
_SCARCE = {
    "files": "too many open files|received 0 items of ancdata",
    "memory": "not enough memory|(can't|cannot|unable to) allocate|out of memory|bad_alloc",
    "disk": "no space left|disk quota exceeded",
}
_REMEDIES = {
    "files": "Allow more of them (ulimit -n 4096), or use fewer worker processes",
    "memory": "Fewer clips at a time need less (in training half the per_device_train_batch_size with twice the "
    "gradient_accumulation_steps), and so do fewer worker processes",
    "disk": "Make room there, or write elsewhere; of checkpoints save_total_limit keeps fewer",
}
# Of a disk or a folder, not of a programme.
_DISK_ERRORS = {
    *(errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
}
# What the backends of `torch.distributed` say in the processes that are left when another one ended.
_LOST_PROCESS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited"),
    "Timed out waiting",
)
# And what they say where the processes do not find one another at the beginning.
_NOT_FOUND = ("waiting for clients", "trying to connect to", "connectFullMesh failed")


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
        CommandError: One of them is lower.
    """
    for name, lowest in least.items():
        value = getattr(args, name)
        if value is not None and not value >= lowest:  # nor NaN
            raise CommandError(f"Expected {name} of at least {lowest}, got {value}.")


def device(text: str) -> str:
    """An option's value that names a device; argparse makes the sentence of what it raises."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch has all of these for a device
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"expected a device of this machine, got {text!r} ({reason})") from error
    return text


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
    """Names of all commands, with the first sentence of each one's docstring, in the order of names."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in ("__init__", "command_line"):
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
    atexit.register(_ignore_signals)
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
        check_torchaudio()
        importlib.import_module("modeling_ast.auto_classes")
        module = importlib.import_module(f"modeling_ast.commands.{name}")
        goes_on = getattr(module, "GOES_ON", "")
        _raise_signals()
        result = module.main()
        sys.stdout.flush()
        stop_at_once()
    except KeyboardInterrupt as stop:
        stop_at_once()
        _close_progress_bars()
        number = getattr(stop, "number", signal.SIGINT)
        _end(stop, str(stop) or _join(_stopped(number), goes_on), 128 + number)
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
        _tell(f"error: {error}")
        sys.exit(NOTHING_DONE)


def stop_at_once(status: int | None = None) -> None:
    """Let a signal end this process in one line, where there is nothing to put away.

    Some libraries catch all errors while they are imported, so that none would end it.

    Args:
        status: Of a process that ends anyway and has told why: a signal, such as a launcher's when the first of its
            processes has ended, then changes neither.
    """
    process = os.getpid()

    def stop(number: int, frame) -> None:
        if os.getpid() == process:  # and not in processes that it starts
            if status is None:
                _tell(_stopped(number))
            os._exit(128 + number if status is None else status)

    for number in _SIGNALS:
        signal.signal(number, stop)


def tell_fault(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """End this process with one sentence, as `sys.excepthook` of a command whose file cannot be imported."""
    if (sentence := fault_sentence(error)) is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        _tell(sentence)
        sys.exit(NOTHING_DONE)


def fault_sentence(error: BaseException, goes_on: str = "") -> str | None:
    """What to tell the user of an error; `None` of one that is a fault of the programme and wants its traceback.

    Args:
        error: Also one that comes out of a worker process.
        goes_on: What can be done after what the machine or another process did.
    """
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error.name)):
        return f"error: {error.name.partition('.')[0]} is not installed: pip install 'modeling_ast[{extra}]'"
    message = str(error)
    if message.startswith("Caught "):  # torch put the worker's traceback before it
        message = message.strip().splitlines()[-1].partition(": ")[2]
    if advice := _remedy(error):
        message = ". ".join(" ".join(message.split()).split(". ")[:3])  # a GPU's own goes on and on
        return _join(f"error: {message.rstrip('.') or 'There is not enough memory'}. {advice}.", goes_on)
    # Also while all read or write a checkpoint, which has an error of its own.
    met = [" ".join(str(each).split()) for each in (error, error.__cause__) if isinstance(each, RuntimeError)]
    if any(words in each for each in met for words in _LOST_PROCESS):
        return _join("error: Another process of this run has ended or hangs, and none goes on without it.", goes_on)
    if type(error).__module__.startswith("modeling_ast.") or type(error) is ImportError:
        return f"error: {message}"  # made to be told
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return _join(f"error: {where}cannot be read or written ({error.strerror}).", goes_on)
    message = " ".join(message.split())
    if isinstance(error, RuntimeError) and message.startswith("DataLoader worker"):
        return _join(
            f"error: A process that reads the data has ended ({message.rstrip('. ')}): killed from outside, or for "
            "want of memory, where fewer of them may do (--dataloader_num_workers).",
            goes_on,
        )
    if isinstance(error, RuntimeError) and any(words in message for words in _NOT_FOUND):
        return (
            "error: This process does not find the others of the run: they have not begun, have ended, or cannot be "
            f"reached ({message.partition(': ')[0].rstrip('.')})."
        )
    return None


def _end(error: BaseException, sentence: str, status: int) -> NoReturn:
    """Tell a sentence; one of what all processes of a run raise is told by the first one of each machine."""
    if not (getattr(error, "of_all_processes", False) and os.environ.get("LOCAL_RANK", "0") != "0"):
        _tell(sentence)
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


def _remedy(error: Exception) -> str | None:
    """What helps where the machine has too little of something; `None` where it is another error."""
    if isinstance(error, MemoryError):
        return _REMEDIES["memory"]
    message = str(error).lower() if isinstance(error, (OSError, RuntimeError, ValueError)) else ""
    return next((_REMEDIES[what] for what, words in _SCARCE.items() if re.search(words, message)), None)


def _extra_of(package: str | None) -> str | None:
    """The extra of this package that brings another one."""
    from packaging.requirements import Requirement

    try:
        needed = map(Requirement, requires("modeling_ast") or ())
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
    module_names = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
    for requirement in needed:
        name = module_names.get(requirement.name.lower(), requirement.name)
        if package and name.lower() == package.partition(".")[0].lower() and requirement.marker:
            return re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker))[1]
    return None


def _raise_signals() -> None:
    """Let a signal raise `KeyboardInterrupt` in this process, so that a command puts away what it has begun.

    Another one within a second is the same: it was sent to the process and to its group.
    """
    process, last = os.getpid(), -math.inf

    def stop(number: int, frame) -> None:
        nonlocal last
        if os.getpid() == process and time.monotonic() > last + 1:
            last = time.monotonic()
            interrupt = KeyboardInterrupt()
            interrupt.number = number
            raise interrupt

    for number in _SIGNALS:
        signal.signal(number, stop)


def _ignore_signals() -> None:
    """At the very end, when what a command does is done, and Python takes seconds to put its modules away."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _close_progress_bars() -> None:
    """Those that are not finished would be drawn once more, below the sentence that a command ends with."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()


def _stopped(number: int) -> str:
    return f"Stopped by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}."


def _join(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _version() -> str:
    from modeling_ast import __version__

    return __version__
