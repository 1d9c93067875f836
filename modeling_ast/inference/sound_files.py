"""The sound files of a run over many: those that are named, in folders, or in lists."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeling_ast.audio import AUDIO_SUFFIXES
from modeling_ast.data.folders import find_sounds
from modeling_ast.data.labels import DataError, read_rows

# A list of recordings ends in one of these, and a table names them in one of these columns.
_LIST_SUFFIXES, _LIST_COLUMNS = (".txt", ".csv", ".tsv"), ("path", "audio")
# Bytes of a name that leave room, of the 255 that file systems take, for a suffix and a number.
_MAX_NAME_BYTES = 240


@dataclass(frozen=True, slots=True)
class SoundFile:
    """A file to tag.

    Attributes:
        path: As it was given; of a file in a folder, the folder as it was given and the way from there.
        place: What its own results are called, in a folder for each format: the way to the file, with the name of the
            folder that was given first; a name that would be too long with a suffix is cut.
        stamp: Size in bytes and time of change in nanoseconds, by which one knows that it is still the same.
    """

    path: str
    place: str
    stamp: list[int]


def match_moved(paths: Iterable[str], others: Sequence[str], is_there: Callable[[str], bool]) -> dict[str, int]:
    """Numbers of recordings that some seem to be under other paths: those of the same name that are no longer there.

    Args:
        paths: Of the recordings in question; those whose names are not theirs alone, on either side, are left out.
        others: Where they may have been.
        is_there: Whether one of `others` still is.
    """
    by_name: dict[str, tuple[list[str], list[int]]] = {}
    for path in paths:
        by_name.setdefault(os.path.basename(path), ([], []))[0].append(path)
    for number, other in enumerate(others) if by_name else ():
        alike = by_name.get(os.path.basename(other))
        if alike is not None and not is_there(other):
            alike[1].append(number)
    return {path[0]: number[0] for path, number in by_name.values() if len(path) == len(number) == 1}


def find_files(sources: Iterable[str | os.PathLike], output_dir: str | os.PathLike) -> list[SoundFile]:
    """The sound files that are named, and those in the folders that are named and below, each once.

    A source that ends in .txt, .csv or .tsv is a list: of files and folders, one a line, or in a column `path` (or
    `audio`) of a table; their paths start beside the list, or else in the working directory.

    In folders, what `find_sounds` passes over is, and what lies in the folder of the results. A file that is reached
    in several ways, by links too, is taken as it is reached first.

    Args:
        sources: Files and folders.
        output_dir: Of the results.

    Returns:
        In the order of the sources, those of a folder by name.

    Raises:
        DataError: A source that does not exist, a list that cannot be read, or no file at all.
    """
    found, results = {}, Path(output_dir).resolve()
    sources = [
        path for source in map(Path, sources) for path in (_read_list(source) if _is_list(source) else [source])
    ]
    for source in sources:
        if source.is_dir():
            name = source.resolve().name
            # Results that lie among the recordings, and not in a folder of their own, hide none of them.
            is_inside = source.resolve() in results.parents
            for path in sorted(find_sounds(source)):
                way = Path(os.path.relpath(path, source))
                if not (is_inside and Path(path).resolve().is_relative_to(results)):
                    found.setdefault(os.path.realpath(path), (str(source / way), (name / way).as_posix()))
        elif source.exists():
            found.setdefault(os.path.realpath(source), (str(source), source.name))
        else:
            raise DataError(f"{source}: no such file or folder.")
    if not found:
        raise DataError(
            f"No sound files ({', '.join(AUDIO_SUFFIXES)}) in {', '.join(map(str, sources))}, nor below. A file with "
            "another suffix is taken when it is named itself."
        )
    return [SoundFile(path, _cut_name(place), stamp_of(path)) for path, place in found.values()]


def _is_list(source: Path) -> bool:
    return source.suffix.lower() in _LIST_SUFFIXES and source.is_file()


def _read_list(path: Path) -> list[Path]:
    """The sources that a list names."""
    try:
        if path.suffix.lower() == ".txt":  # names of files may be no UTF-8
            names = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        else:
            header, *rows = [cells for _, cells in read_rows(path)] or [[]]
            columns = [header.index(name) for name in _LIST_COLUMNS if name in header]
            if not columns:
                raise DataError(f"{path}: expected a column {' or '.join(_LIST_COLUMNS)}, got {', '.join(header)}.")
            names = [cells[columns[0]] for cells in rows]
    except (OSError, DataError) as error:
        raise DataError(f"{path}: the list cannot be read ({error}).") from error
    sources = [Path(name.strip()) for name in names if name.strip()]
    if not sources:
        raise DataError(f"{path}: the list names no files.")
    sources = [beside if (beside := path.parent / source).exists() else source for source in sources]
    if missing := [source for source in sources if not os.path.lexists(source)]:
        raise DataError(f"{path}, a list of recordings: {missing[0]!s:.200} is not there.")
    return sources


def _cut_name(place: str) -> str:
    name = os.fsencode(Path(place).name)
    if len(name) <= _MAX_NAME_BYTES:
        return place
    return Path(place).with_name(name[:_MAX_NAME_BYTES].decode(errors="ignore")).as_posix()


def stamp_of(path: str) -> list[int]:
    """Size in bytes and time of change in nanoseconds."""
    if not os.path.exists(path):  # a link that leads nowhere, which reading it will report
        return [0, 0]
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
