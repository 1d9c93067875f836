"""Label tables: which label is output number what. Three come with the package.

A table is a CSV file with the columns index, mid and display_name, as the original reads it. The mid is a label's name
in data files: it holds no comma, which many display names do ("Male speech, man speaking"). One's own table may do
without the column.
"""

import csv
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

# Source: class_labels_indices.csv of AudioSet, and of egs/esc50 and egs/speechcommands of YuanGongND/ast.
SHIPPED_TABLES = ("audioset", "esc50", "speech_commands_v2")


_MAX_MESSAGE = 1000  # characters


def plain(message: str) -> str:
    """A message without what a terminal would obey, and of a length that can be read: files say what they like."""
    message = message[: 2 * _MAX_MESSAGE] + message[max(2 * _MAX_MESSAGE, len(message) - _MAX_MESSAGE) :]
    shown = "".join(repr(each)[1:-1] if is_control(each) and each not in "\n\t" else each for each in message)
    half = _MAX_MESSAGE // 2
    return shown if len(shown) <= _MAX_MESSAGE else f"{shown[:half]} ... {shown[-half:]}"


def is_control(character: str) -> bool:
    """Whether it is a control character, or half of one that does not fit in UTF-16, which no file can hold."""
    return unicodedata.category(character) in ("Cc", "Cs")


class DataError(ValueError):
    """A data set that is not as its arguments say. The message names the file, the entry and what was expected."""

    def __init__(self, message: str):
        super().__init__(plain(message))


@dataclass(frozen=True)
class LabelTable:
    """Labels in the order of a model's outputs: number `i` is called `mids[i]` in data files, `names[i]` by people."""

    mids: list[str]
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def index_of(self) -> dict[str, int]:
        """The number of a label by its mid, its display name or the number itself, as a word.

        Where a display name is a number too, numbers are names alone.
        """
        numbers = {str(index): index for index in range(len(self))}
        if not numbers.keys().isdisjoint(self.names):
            numbers = {}
        every_way = [
            numbers,
            *({name: index for index, name in enumerate(names)} for names in (self.mids, self.names)),
        ]
        return {name: index for names in every_way for name, index in names.items()}


def read_label_table(name_or_path: str | os.PathLike) -> LabelTable:
    """Read a label table.

    Args:
        name_or_path: "audioset" (527 labels), "esc50" (50), "speech_commands_v2" (35), or the path of a CSV file with
            the columns index, mid and display_name; without a column mid, display names are the mids.

    Raises:
        DataError: No such table; the column index or display_name, a mid or a name is missing; a column or an index
            stands twice, or an index is missing; two labels share a mid or a name, or one's mid is another's name; a
            row with more columns than the first line; control characters in a mid or a name.

    Source:
        The format is the original's (`class_labels_indices.csv`).
    """
    if name_or_path in SHIPPED_TABLES:
        path = files("modeling_ast.data") / "tables" / f"{name_or_path}.csv"
    else:
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise DataError(
                f"{name_or_path}: no such label table. Expected the path of a CSV file, or one of "
                f"{', '.join(SHIPPED_TABLES)}."
            )
    entries = {}
    for line, (index, mid, name) in _read_entries(path):
        if not mid or not name:
            raise DataError(f"{path}, line {line}: expected a mid and a display name, got {mid!r} and {name!r}.")
        if wrong := find_control((mid, name)):
            raise DataError(f"{path}, line {line}: expected names without control characters, got {wrong!r}.")
        if not re.fullmatch("[0-9]{1,9}", index):
            raise DataError(f"{path}, line {line}: expected an index of 0 or more, got {index!r}.")
        if int(index) in entries:
            raise DataError(f"{path}, line {line}: the index {index} stands there twice.")
        entries[int(index)] = (mid, name)
    if not entries:
        raise DataError(f"{path}: holds no labels.")
    if missing := [index for index in range(len(entries)) if index not in entries]:
        raise DataError(
            f"{path}: expected {len(entries)} labels with the indices 0 to {len(entries) - 1}, but {missing[0]} is "
            "missing."
        )
    mids, names = ([entries[index][part] for index in range(len(entries))] for part in (0, 1))
    _refuse_ambiguous(path, mids, names)
    return LabelTable(mids, names)


def _read_entries(path) -> list[tuple[int, list[str]]]:
    """Line number and index, mid and display name of each row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        with csv_faults(path, reader):
            found = reader.fieldnames or ()
            for column in ("index", "display_name"):
                if column not in found:
                    raise DataError(
                        f"{path}: expected the columns index, mid and display_name in its first line, {column} is "
                        f"missing in {', '.join(found) or 'an empty file'}."
                    )
            columns = ("index", "mid" if "mid" in found else "display_name", "display_name")
            if twice := [column for column in columns if found.count(column) > 1]:
                raise DataError(f"{path}: the column {twice[0]} is there twice.")
            return [(reader.line_num, _pick(row, columns, path, reader.line_num)) for row in reader]


def _pick(row: dict[str | None, str | None], columns: Iterable[str], path, line: int) -> list[str]:
    if None in row:  # what is left over
        raise DataError(f"{path}, line {line}: more columns than in the first line. Is a name with a comma in quotes?")
    return [(row[column] or "").strip() for column in columns]


def whole_rows(path, reader: Any, width: int) -> Iterator[list[str]]:
    """The rows that a CSV reader still has; an empty line is none.

    Raises:
        DataError: A row has another number of columns; with the line.
    """
    for row in reader:
        if len(row) == width:
            yield row
        elif row:
            raise DataError(f"{path}, line {reader.line_num}: expected {width} columns, got {len(row)}.")


@contextmanager
def csv_faults(path, reader: Any) -> Iterator[None]:
    """Turn what Python's CSV readers raise of a file into an error that names the line.

    Raises:
        DataError: What is read inside is not CSV in UTF-8.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {find_undecodable(path)}: not CSV in UTF-8 ({error.reason}).") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: not CSV in UTF-8 ({error}).") from error


def find_undecodable(path) -> int:
    """Number of the first line of a file that is not UTF-8. Files are decoded in blocks, which hide where it is."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return number


def find_control(names: Iterable[str]) -> str | None:
    """The first of some names with a control character in it, such as a NUL byte or the end of a line."""
    return next((name for name in names if any(map(is_control, name))), None)


def _refuse_ambiguous(path, mids: list[str], names: list[str]) -> None:
    """One way to write a label for two of them."""
    owner = {}
    for index, ways in enumerate(zip(mids, names)):
        for way in set(ways):
            if owner.setdefault(way, index) != index:
                raise DataError(f"{path}: {way!r} stands for the labels {owner[way]} and {index}.")


def read_paper_eval_ids() -> frozenset[str]:
    """YouTube ids of the 19,185 evaluation clips of AudioSet behind the published numbers, of 20,371 there once were.

    Source:
        `egs/audioset/data/sanity_check` of YuanGongND/ast.
    """
    text = (files("modeling_ast.data") / "tables" / "audioset_paper_eval_ids.csv").read_text(encoding="utf-8")
    return frozenset(text.split()[1:])
