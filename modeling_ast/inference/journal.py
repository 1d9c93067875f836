"""The journal of results over many recordings: a line of JSON each, of which memory holds what is asked for often."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError
from modeling_ast.inference.parts import Part, part_named
from modeling_ast.inference.timeline import is_number

# What a line lists of a recording, and what each row of a list says.
TABLES = {"tags": ("label", "score"), "events": ("label", "start", "end", "score")}
_NAME = "results.jsonl"
MEND = "Give another --output_dir, or --overwrite to delete them and begin anew."


class Entry(NamedTuple):
    """What is kept in memory of a line."""

    file: Path
    position: int  # of the line in the file, in bytes
    stamp: tuple[int, ...] | None
    place: str | None  # None of a recording that cannot be used
    seconds: float
    num_events: int


class Journal:
    """Lines of results, each with the `path` of a recording; of several lines of a path the last counts.

    They are in `results.jsonl`, and those of the parts of a divided run in a file each, `results-2-of-3.jsonl`, until
    they are joined. A path has lines in one of these besides `results.jsonl`: files of another division are joined
    first.

    Attributes:
        entries: By path, those of all files.

    Args:
        folder: Of the files, which are made with their first lines.
        part: Whose file gets new lines; the beginning of a line that was cut off is removed from it.
        is_place: Whether what a line says of the place of further results can be trusted.

    Raises:
        DataError: Another line than those that are written here.
    """

    def __init__(self, folder: Path, part: Part, is_place: Callable[[Any], bool]):
        self.folder, self.part, self._is_place = folder, part, is_place
        self.entries: dict[str, Entry] = {}
        self._own = folder / (part.name("results") + ".jsonl")
        self._join([path for path in _part_files(folder) if part_named(path.stem).count != part.count])
        self.read()

    def read(self) -> None:
        """Read what all parts have written by now."""
        self._read(journal_files(self.folder))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write a line."""
        with open(self._own, "ab") as file:
            position = file.tell()
            file.write(_to_line(entry))
        self._keep(entry, self._own, position)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines that count, read again, in the order of their paths."""
        with ExitStack() as stack:
            files = {}
            for path in sorted(self.entries):
                entry = self.entries[path]
                if entry.file not in files:
                    files[entry.file] = stack.enter_context(open(entry.file, "rb"))
                files[entry.file].seek(entry.position)
                yield json.loads(files[entry.file].readline())

    def join(self) -> None:
        """Bring the lines of all parts, none of which is at work any longer, into `results.jsonl`."""
        self._join(_part_files(self.folder))
        self.read()

    def replace(self, lines: Iterator[Mapping[str, Any]]) -> None:
        """Write `results.jsonl` anew; the lines may come out of `lines()`."""
        path = self.folder / _NAME
        with written_beside(path) as unfinished, open(unfinished, "wb") as file:
            file.writelines(map(_to_line, lines))
        self.read()

    def _join(self, parts: list[Path]) -> None:
        if parts:
            self._read([path for path in (self.folder / _NAME, *parts) if path.exists()])
            self.replace(self.lines())
            for path in parts:
                path.unlink()

    def _read(self, paths: list[Path]) -> None:
        self.entries = {}
        for path in paths:
            with open(path, "r+b" if path == self._own else "rb") as file:
                position = 0
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):  # another part is about to write it, or it was cut off
                        if path == self._own:
                            file.truncate(position)
                        break
                    entry = parse(line)
                    if entry is None or not self._is_entry(entry):
                        raise DataError(f"{path}, line {number}: not a line of results. {MEND}")
                    self._keep(entry, path, position)
                    position += len(line)

    def _keep(self, entry: Mapping[str, Any], file: Path, position: int) -> None:
        stamp = tuple(entry["stamp"]) if isinstance(entry.get("stamp"), list) else None
        figures = (None, 0.0, 0) if "error" in entry else (entry["place"], entry["seconds"], len(entry["events"]))
        self.entries[entry["path"]] = Entry(file, position, stamp, *figures)

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


def journal_files(folder: Path) -> list[Path]:
    """The files that are there, `results.jsonl` first."""
    return [path for path in (folder / _NAME,) if path.exists()] + _part_files(folder)


def _part_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("results-*.jsonl") if part_named(path.stem).count > 1)


def parse(line: bytes) -> dict[str, Any] | None:
    """The object that a line of JSON says; `None` of anything else."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _to_line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False).encode("ascii") + b"\n"  # with `\u` for bytes that are no UTF-8
