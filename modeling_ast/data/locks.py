"""One folder, one writer: locks that no two processes have at the same time, and folders that are there for now."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where two runs in one folder go unnoticed
    fcntl = None

logger = logging.getLogger(__name__)

RUNNING = "_running"  # by the underscore uploads leave it out
_MAX_TRIES = 100  # to make or lock what others remove again at the same moment


@contextmanager
def claimed(folder: Path, refusal: Exception | None, name: str = RUNNING) -> Iterator[None]:
    """While it is entered, no other process can enter it for the same folder and name: two runs would mix their files.

    The claim is a lock on a file in the folder, which the system lifts however the process ends. It reaches other
    machines as far as the locks of a shared disk do.

    Args:
        folder: Made where it is not there; it goes again if nothing was written into it.
        refusal: What is raised where another process is inside; `None` waits until it has left.
        name: Of the file.
    """
    if fcntl is None:
        yield
        return
    with _claim(folder, refusal, name):
        try:
            yield
        finally:
            (folder / name).unlink(missing_ok=True)


def _claim(folder: Path, refusal: Exception | None, name: str) -> ExitStack:
    """The folder, made where it is not there, and the lock in it; both until the stack is left."""
    path = folder / name
    at_once = fcntl.LOCK_NB if refusal else 0
    for _ in range(_MAX_TRIES) if refusal else count():
        with ExitStack() as stack:
            stack.enter_context(made_for_now(folder))
            try:
                file = stack.enter_context(open(path, "w"))
            except FileNotFoundError:  # another run removed the folder, which it had made
                continue
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | at_once)  # a lock that workers do not inherit
            except (BlockingIOError, PermissionError):  # POSIX leaves the choice
                break
            except OSError as error:
                reason = error.strerror
                logger.warning(f"{folder} knows no locks ({reason}): a second run in it would go unnoticed.")
                return stack.pop_all()
            # Another run may have removed this file between the two steps: the next one would find no lock there.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return stack.pop_all()
    raise refusal


def still_written(output: Path, option: str = "--output_dir") -> str:
    """What to tell who starts a second run that would write to the same place."""
    return f"Another run is writing to {output} at this moment. Wait for it, stop it, or choose another {option}."


@contextmanager
def made_for_now(folder: Path) -> Iterator[None]:
    """A folder and its parents, there meanwhile; what was made of them goes again, unless it holds something."""
    made = [each for each in (folder, *folder.parents) if not each.is_dir()]
    for tries_left in reversed(range(_MAX_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            break
        except (FileNotFoundError, FileExistsError):  # another run removes at this moment what it had made of them
            if not tries_left:
                raise
    try:
        yield
    finally:
        with suppress(OSError):
            for each in made:  # the deepest first
                each.rmdir()


def check_writable(folder: Path, error: type[Exception]) -> None:
    """Find out that results cannot be written before hours have gone by; what has to be made for that goes again.

    Args:
        folder: Of the results.
        error: What is raised where it cannot be written.
    """
    try:
        with made_for_now(folder), tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as found:
        raise error(f"Expected an output_dir that can be written, got {folder} ({found.strerror}).") from found
