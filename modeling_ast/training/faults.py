"""How a run ends early: by a signal, or by a fault of the disk or the machine that is told in one sentence."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import PickleError
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint import CheckpointException

from modeling_ast.conversion import why_unreadable
from modeling_ast.data.recipes import RecipeError

GOES_ON = "The same command with --resume_from_checkpoint true goes on from what is saved."
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What torch, pickle and JSON make of a file that is not what it should be.
_UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, PickleError)


class SaveError(OSError):
    """A checkpoint or another file of a run that cannot be written."""


class Stopped(KeyboardInterrupt):
    """A run that a signal ended.

    Args:
        number: Of the signal.
        message: What to tell.
    """

    def __init__(self, number: int, message: str | None = None):
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"Stopped by {name}{message or f'. {GOES_ON}'}")
        self.number = number


class StopRequest:
    """While it is entered, the first SIGTERM or Ctrl-C is only noted; the second one ends the run at once.

    The same one again within a second is still the first: it was sent to the process and to its group.

    Signals are heard by the main thread of the process that enters it, and ignored by processes that it starts: a
    worker that Ctrl-C reaches too must not take the update with it that is still to be saved.
    """

    def __init__(self):
        self.number: int | None = None

    def __enter__(self) -> "StopRequest":
        self.number, self.process, self.previous = None, os.getpid(), {}
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that reached any process of the run; all of them have to call it together."""
        if accelerator.num_processes == 1:
            return self.number
        own = torch.tensor([self.number or 0], device=accelerator.device)
        return accelerator.gather(own).max().item() or None  # of two different ones the same in all processes

    def _note(self, number: int, frame) -> None:
        if os.getpid() != self.process:
            return
        if number == self.number and time.monotonic() < self.noted + 1:
            return
        if self.number is not None:
            raise Stopped(number)
        self.number, self.noted = number, time.monotonic()


@contextmanager
def saving(what: str | os.PathLike) -> Iterator[None]:
    """Every error of writing is a `SaveError`, which says what could not be written.

    Raises:
        SaveError: The libraries raised an error of their own: torch a RuntimeError, safetensors an Exception.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        cause = _cause(error)
        reason = getattr(cause, "strerror", None) or str(cause).strip().splitlines()[0]
        _raise_from(SaveError(f"{what} cannot be saved ({reason}). What was saved before is whole. {GOES_ON}"), error)


@contextmanager
def loading(checkpoint: str | os.PathLike, is_of_this_run: bool) -> Iterator[None]:
    """What is wrong with a checkpoint is told by a `RecipeError`; what is wrong with the machine stays what it is.

    Args:
        checkpoint: What is read.
        is_of_this_run: Whether the run has it in its own folder, and goes on from another one without it.

    Raises:
        RecipeError: A file is missing, broken, or of another model.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (RecipeError, torch.OutOfMemoryError):
        raise
    except (*_UNREADABLE, SafetensorError, CheckpointException) as error:
        cause = _cause(error)
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):  # of the disk
            raise cause from error
        reason = "it is of another model" if "size mismatch" in str(cause).lower() else why_unreadable(cause)
        advice = "Remove it, and the same command goes on from the one before it, if there is one."
        if not is_of_this_run:
            advice = "Give another one as resume_from_checkpoint."
        _raise_from(RecipeError(f"{checkpoint} cannot be continued from ({reason}). {advice}"), error)


def _cause(error: BaseException) -> BaseException:
    """What a process met, where shards were to be read or written: torch's own error has the tracebacks of all."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _raise_from(raised: Exception, error: BaseException) -> NoReturn:
    raised.of_all_processes = isinstance(error, CheckpointException)  # which torch raises in all of them
    raise raised from error
