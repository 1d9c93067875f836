"""The journal of results over many recordings: a line of JSON each, of which memory holds what is asked for often."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError
from modeling_ast.data.parts import Part, part_named

_NAME = "results.jsonl"


class Entry(NamedTuple):
    """What is kept in memory of a line."""

    file: Path
    position: int  # of the line in the file, in bytes
    stamp: tuple[int, ...] | None
    has_error: bool
    place: str | None
    seconds: float
    num_rows: int  # of its list


class Journal:
    """Lines of results, each with the `path` of a recording; of several lines of a path the last counts.

    They are in `results.jsonl`, and those of the parts of a divided run in a file each, `results-2-of-3.jsonl`, until
    they are joined. A path has lines in one of these besides `results.jsonl`: files of another division are joined
    first.

    Attributes:
        entries: By path, those of all files.

    Args:
        folder: Of the files, which are made with their first lines.
        part: Whose file gets new lines; the beginning of a line that was cut off is removed from it. `None` changes
            nothing.
        list_name: Of the list in a line whose rows are counted.
        is_result: Whether a line is one of those that are written of a recording that can be used.
        remedy: What to tell who has other lines in these files.

    Raises:
        DataError: Another line than those that are written here; to read alone, lines of parts that were not joined.
    """

    def __init__(
        self,
        folder: Path,
        part: Part | None,
        list_name: str,
        is_result: Callable[[Mapping[str, Any]], bool],
        remedy: str,
    ):
        self.folder, self.part, self._list_name = folder, part, list_name
        self._is_result, self._remedy = is_result, remedy
        self.entries: dict[str, Entry] = {}
        self._own = part and folder / (part.name("results") + ".jsonl")
        parts = _part_files(folder)
        if part is not None:
            self._join([path for path in parts if part_named(path.stem).count != part.count])
        elif parts:
            raise DataError(f"{folder} holds results of a run in parts that has not ended: bring it to its end first.")
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

    def lines(self, paths: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """The lines that count, read again.

        Args:
            paths: Of which recordings; `None` means all, in the order of their paths.
        """
        return map(json.loads, self._read_again(sorted(self.entries) if paths is None else paths))

    def join(self) -> None:
        """Bring the lines of all parts, none of which is at work any longer, into `results.jsonl`.

        Parts that were given different lists of files may have chosen one place twice: what is there is one's or the
        other's, and the lines of both are left out.
        """
        self._join(_part_files(self.folder))

    def replace(self, lines: Iterator[Mapping[str, Any]]) -> None:
        """Write `results.jsonl` anew; the lines may come out of `lines()`."""
        self._write(map(_to_line, lines))
        self.read()

    def _join(self, parts: list[Path]) -> None:
        if parts:
            self._read([path for path in (self.folder / _NAME, *parts) if path.exists()])
            self._forget_shared_places()
            self._write(self._read_again(sorted(self.entries)))
            for path in parts:
                path.unlink()
            self.read()

    def _read_again(self, paths: Iterable[str]) -> Iterator[bytes]:
        with ExitStack() as stack:
            files = {}
            for entry in map(self.entries.__getitem__, paths):
                if entry.file not in files:
                    files[entry.file] = stack.enter_context(open(entry.file, "rb"))
                files[entry.file].seek(entry.position)
                yield files[entry.file].readline()

    def _write(self, lines: Iterable[bytes]) -> None:
        with written_beside(self.folder / _NAME) as unfinished, open(unfinished, "wb") as file:
            file.writelines(lines)

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
                        raise DataError(f"{path}, line {number}: not a line of results. {self._remedy}")
                    self._keep(entry, path, position)
                    position += len(line)

    def _forget_shared_places(self) -> None:
        counts = Counter(entry.place.casefold() for entry in self.entries.values() if entry.place)
        shared = {place for place, count in counts.items() if count > 1}
        for path in [path for path, entry in self.entries.items() if (entry.place or "").casefold() in shared]:
            del self.entries[path]

    def _keep(self, entry: Mapping[str, Any], file: Path, position: int) -> None:
        stamp = tuple(entry["stamp"]) if isinstance(entry.get("stamp"), list) else None
        seconds, rows = entry.get("seconds", 0.0), entry.get(self._list_name, ())
        self.entries[entry["path"]] = Entry(
            file, position, stamp, "error" in entry, entry.get("place"), seconds, len(rows)
        )

    def _is_entry(self, entry: Mapping[str, Any]) -> bool:
        """Whether a line is one that is written here, with nothing in it that leads out of the folder."""
        if "error" in entry:
            return isinstance(entry.get("path"), str) and isinstance(entry["error"], str) and "place" not in entry
        return isinstance(entry.get("path"), str) and self._is_result(entry)


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
