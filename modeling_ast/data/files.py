"""Atomic writing: a file or folder is written under another name beside its place, and renamed when it is whole."""

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Within the folder that the whole one will be in. By the underscore the Hub's uploads of a run leave it out.
UNFINISHED_FOLDER = "_unfinished"
_NUMBERS = itertools.count()


@contextmanager
def written_beside(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """Where to write a file that gets its name when it is whole, and is removed where it does not become so.

    Args:
        path: Of the file, in a folder that is there. What it is written to meanwhile has the same suffix, by which
            libraries choose a format, and a name that no other file of this or another process has.
        durable: Whether it must be whole even if the machine fails, not only the process. That waits for the disk:
            too long for each of a million clips.
    """
    path = Path(path)
    unfinished = path.with_name(f".{os.getpid()}.{next(_NUMBERS)}.unfinished{path.suffix}")
    try:
        yield unfinished
        if durable:
            _wait_for_disk(unfinished)
        unfinished.replace(path)
        if durable:
            _wait_for_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_folder(folder: str | os.PathLike) -> Path:
    """Where a folder is written until `finish_folder` gives it its name."""
    folder = Path(folder)
    return folder.parent / UNFINISHED_FOLDER / folder.name


def finish_folder(folder: str | os.PathLike) -> None:
    """Give a folder that was written its name, in place of one that has it already."""
    folder, unfinished = Path(folder), unfinished_folder(folder)
    _wait_for_files(unfinished)
    if folder.is_dir():  # a folder with files in it cannot be replaced
        folder.rename(unfinished.with_name(f"{folder.name}.old"))
    unfinished.rename(folder)
    _wait_for_disk(folder.parent)
    shutil.rmtree(unfinished.parent)


@contextmanager
def folder_written_beside(folder: str | os.PathLike) -> Iterator[Path]:
    """Where to write a folder that gets its name when it is whole."""
    unfinished = unfinished_folder(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        finish_folder(folder)
    finally:
        shutil.rmtree(unfinished.parent, ignore_errors=True)


@contextmanager
def files_written_beside(folder: str | os.PathLike) -> Iterator[Path]:
    """Where to write files that join those of a folder when all of them are whole."""
    folder = Path(folder)
    unfinished = folder / UNFINISHED_FOLDER / "files"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        _wait_for_files(unfinished)
        for path in sorted(unfinished.iterdir()):
            path.replace(folder / path.name)
        _wait_for_disk(folder)
    finally:
        shutil.rmtree(unfinished.parent, ignore_errors=True)


def write_json(path: str | os.PathLike, contents: Mapping[str, Any]) -> None:
    """A file for people and programs, which has its name when it is whole.

    Raises:
        ValueError: A number that is not finite, which JSON does not have.
    """
    text = json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with written_beside(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no UTF-8


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Where to write a folder that is not there yet, or is empty, by several processes at once too.

    It has its name already, and gets its place when it is whole, unless that holds something by then. A link to a
    folder stays one, and so does the empty volume that a container is given, which cannot be replaced.

    Raises:
        OSError: Another process was faster.
    """
    folder = Path(os.path.realpath(folder))
    is_volume = os.path.ismount(folder)
    parent = folder if is_volume else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=parent) as beside:
        unfinished = Path(beside) / (folder.name or "files")
        unfinished.mkdir()
        yield unfinished
        if not is_volume:
            unfinished.rename(folder)
            return
        if os.listdir(folder) != [Path(beside).name]:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))
        for path in sorted(unfinished.iterdir()):
            path.rename(folder / path.name)


def remove_folder(folder: str | os.PathLike) -> None:
    """Remove a folder without leaving half of it under its name."""
    rest = unfinished_folder(folder)
    rest.parent.mkdir(exist_ok=True)
    shutil.rmtree(rest, ignore_errors=True)
    Path(folder).rename(rest)
    shutil.rmtree(rest.parent)


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Remove what a process that was killed left half-written in a folder. No other process may be writing into it."""
    shutil.rmtree(Path(folder) / UNFINISHED_FOLDER, ignore_errors=True)
    for path in Path(folder).glob(".*.unfinished*"):
        path.unlink()


def _wait_for_files(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _wait_for_disk(path)


def _wait_for_disk(path: Path) -> None:
    """Until the file, or the names in a folder, would survive a failure of the machine."""
    if path.is_dir() and os.name != "posix":  # folders cannot be opened elsewhere
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
