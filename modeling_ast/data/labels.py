"""Label tables: which label is output number what. Three come with the package.

A table is a CSV file with the columns index, mid and display_name, as the original reads it. The mid is a label's name
in data files: it holds no comma, which many display names do ("Male speech, man speaking"). One's own table may do
without the column.

`read_rows` and `open_text` read tables and text as programs write them, here and for lists of clips.
"""

import codecs
import csv
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)

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


def composed(name: str) -> str:
    """A name in the normal form where `é` is one character: file systems and programs differ in how they write it."""
    return unicodedata.normalize("NFC", name)


def read_label_table(name_or_path: str | os.PathLike) -> LabelTable:
    """Read a label table.

    Args:
        name_or_path: "audioset" (527 labels), "esc50" (50), "speech_commands_v2" (35), or the path of a CSV file with
            the columns index, mid and display_name; without a column mid, display names are the mids.

    Raises:
        DataError: No such table; the column index or display_name, a mid or a name is missing; a column or an index
            stands twice, or an index is missing; two labels share a mid or a name, or one's mid is another's name;
            control characters in a mid or a name; and as from `read_rows`.

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
    for line, (index, *both) in _read_entries(path):
        mid, name = map(composed, both)
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


def _read_entries(path) -> Iterator[tuple[int, list[str]]]:
    """Line number and index, mid and display name of each row."""
    rows = read_rows(path)
    _, found = next(rows, (0, []))
    for column in ("index", "display_name"):
        if column not in found:
            raise DataError(
                f"{path}: expected the columns index, mid and display_name in its first line, {column} is "
                f"missing in {', '.join(found) or 'an empty file'}."
            )
    columns = ("index", "mid" if "mid" in found else "display_name", "display_name")
    if twice := [column for column in columns if found.count(column) > 1]:
        raise DataError(f"{path}: the column {twice[0]} is there twice.")
    places = [found.index(column) for column in columns]
    return ((line, [row[place] for place in places]) for line, row in rows)


def read_rows(path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of a table of text; the first row names the columns.

    Programs write tables in many ways: in UTF-8, UTF-16 or cp1252, with commas, semicolons or tabs between the columns
    (here: whichever gives the first row most of them). A warning says what was taken, where it is not UTF-8 with
    commas. Blanks around a cell are dropped, and so are rows without anything in them.

    Args:
        path: A file, also one in a package.

    Raises:
        DataError: As from `open_text`; no CSV, or a row with more or fewer cells than the first; with the line.
    """
    with open_text(path) as file:
        line = width = 0
        try:
            first = next((line for line in file if line.strip()), "")
            separator = max(_SEPARATORS, key=partial(_count_cells, first))
            if separator != ("\t" if path.name.lower().endswith(".tsv") else ","):
                _warn_once(f"{path} is read as a table with a {_SEPARATORS[separator]} between its columns.")
            file.seek(0)
            for row in (reader := _parse(file, separator)):
                line, cells = reader.line_num, [cell.strip() for cell in row]
                if not any(cells):
                    continue
                width = width or len(cells)
                if len(cells) != width:
                    hint = f" Cells with a {_SEPARATORS[separator]} belong in quotes." if len(cells) > width else ""
                    raise DataError(f"{path}, line {line}: expected {width} columns, got {len(cells)}.{hint}")
                yield line, cells
        except csv.Error as error:
            raise DataError(f"{path}, line {line + 1}: not CSV ({error}).") from error


_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


def _parse(lines: Iterable[str], separator: str) -> Any:
    return csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)


def _count_cells(line: str, separator: str) -> int:
    try:
        return len(next(_parse([line], separator), ()))
    except csv.Error:  # too much text between two of them
        return 0


@contextmanager
def open_text(path) -> Iterator[TextIO]:
    """A file of text, opened as UTF-8 or, with a warning, as UTF-16 or cp1252 where it is that.

    Raises:
        DataError: A folder, a pipe or a device; a file that cannot be opened, or is in no such encoding.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device may have no end
            raise DataError(f"{path}: expected a file, got {'a folder' if path.is_dir() else 'a pipe or a device'}.")
        with path.open(encoding=_find_encoding(path), newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {error.encoding.upper()} ({error.reason}).") from error


def _find_encoding(path) -> str:
    wrong, is_utf8, is_cp1252 = None, False, True
    with path.open("rb") as file:
        start = file.read(2)
        if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            _warn_once(f"{path} is read as UTF-16.")
            return "utf-16"
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if _is_in(line, "utf-8"):
                is_utf8 |= not line.isascii()
            else:
                wrong = wrong or (number, line)
                is_cp1252 &= _is_in(line, "cp1252")
    if wrong is None:
        return "utf-8-sig"
    number, line = wrong
    if is_utf8 or not is_cp1252:
        raise DataError(f"{path}, line {number}: not UTF-8{', as others are' if is_utf8 else ' nor cp1252'}.")
    _warn_once(
        f"{path} is not UTF-8 and read as cp1252, in which line {number} is {line.decode('cp1252').strip()!r:.80}."
    )
    return "cp1252"


def _is_in(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


@cache
def _warn_once(message: str) -> None:
    """A file may be opened several times."""
    logger.warning(plain(message))


def name_some(names: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    if not names:
        return "none"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
