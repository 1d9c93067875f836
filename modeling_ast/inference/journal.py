"""The journal of results over many recordings: a line of JSON each, of which memory holds what is asked for often."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import claimed, still_written
from modeling_ast.inference.timeline import is_number

# What a line lists of a recording, and what each row of a list says.
TABLES = {"tags": ("label", "score"), "events": ("label", "start", "end", "score")}
MEND = "Give another --output_dir, or --overwrite to delete them and begin anew."


class Entry(NamedTuple):
    """What is kept in memory of a line."""

    position: int  # of the line in its file, in bytes
    stamp: tuple[int, ...] | None
    place: str | None  # None of a recording that cannot be used
    seconds: float
    num_events: int


class Journal:
    """Lines of results, each with the `path` of a recording; of several lines of a path the last counts.

    Attributes:
        path: Of the file, which is made with the first line.
        entries: By path, in the order in which they were first written.

    Args:
        path: Of the file. The beginning of a line that was cut off is removed from it.
        is_place: Whether what a line says of the place of further results can be trusted.

    Raises:
        DataError: Another line than those that are written here.
    """

    def __init__(self, path: Path, is_place: Callable[[Any], bool]):
        self.path, self._is_place = path, is_place
        self.entries: dict[str, Entry] = {}
        if not path.exists():
            return
        with open(path, "r+b") as file:
            position = 0
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    file.truncate(position)
                    break
                entry = parse(line)
                if entry is None or not self._is_entry(entry):
                    raise DataError(f"{path}, line {number}: not a line of results. {MEND}")
                self._keep(entry, position)
                position += len(line)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write a line."""
        with open(self.path, "ab") as file:
            position = file.tell()
            file.write(_to_line(entry))
        self._keep(entry, position)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines that count, read again, in the order of `entries`."""
        if not self.entries:
            return
        with open(self.path, "rb") as file:
            for entry in list(self.entries.values()):
                file.seek(entry.position)
                yield json.loads(file.readline())

    def replace(self, lines: Iterator[Mapping[str, Any]]) -> None:
        """Write all lines anew; they may come out of `lines()`."""
        with written_beside(self.path) as unfinished, open(unfinished, "wb") as file:
            file.writelines(map(_to_line, lines))
        self.__init__(self.path, self._is_place)

    def _keep(self, entry: Mapping[str, Any], position: int) -> None:
        stamp = tuple(entry["stamp"]) if isinstance(entry.get("stamp"), list) else None
        figures = (None, 0.0, 0) if "error" in entry else (entry["place"], entry["seconds"], len(entry["events"]))
        self.entries[entry["path"]] = Entry(position, stamp, *figures)

    def _is_entry(self, entry: Mapping[str, Any]) -> bool:
        """Whether a line is one that is written here, with nothing in it that leads out of the folder."""
        if not isinstance(entry.get("path"), str):
            return False
        if "error" in entry:
            return isinstance(entry["error"], str) and "place" not in entry
        if not is_number(entry.get("seconds")) or not self._is_place(entry.get("place")):
            return False
        return all(
            isinstance(entry.get(name), list)
            and all(isinstance(row, dict) and row.keys() == set(columns) for row in entry[name])
            for name, columns in TABLES.items()
        )


@contextmanager
def claimed_results(folder: Path) -> Iterator[None]:
    """While it is entered, no other process can enter it for the same folder of results.

    Raises:
        DataError: Another process is inside, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"Expected output_dir to be a folder, got the file {folder}.")
    with claimed(folder, DataError(still_written(folder))):
        yield


def parse(line: bytes) -> dict[str, Any] | None:
    """The object that a line of JSON says; `None` of anything else."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _to_line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False).encode("ascii") + b"\n"  # with `\u` for bytes that are no UTF-8
