"""Files that are there are whole."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NUMBERS = itertools.count()


@contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Where to write a file that gets its name when it is whole, and is removed where it does not become so.

    Args:
        path: Of the file, in a folder that is there. What it is written to meanwhile has the same suffix, by which
            libraries choose a format, and a name that no other file of this or another process has.
    """
    path = Path(path)
    unfinished = path.with_name(f".{os.getpid()}.{next(_NUMBERS)}.unfinished{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
