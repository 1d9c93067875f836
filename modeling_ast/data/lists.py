"""Lists of clips: tables of text, JSON lines and the original's JSON file, with the sounds that they name."""

import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from modeling_ast.data.clip_tables import Table, expect_columns, refuse_parts, suffix_of
from modeling_ast.data.labels import DataError, open_text, read_rows

logger = logging.getLogger(__name__)


ROWS_AT_ONCE = 100_000  # of a list, while they are Python objects


def list_columns(path: Path) -> list[str]:
    """What the columns of a list are called, of JSON lines by the first."""
    if suffix_of(path) == ".jsonl":
        return list(next(_read_json_lines(path), (0, {}))[1])
    return next(read_rows(path), (0, []))[1]


def read_table(
    path: Path, columns: list[str], audio_dir: str | None, max_missing: int | None, are_parts: bool = False
) -> Dataset:
    """The named columns of a list, the first of them the paths of its sounds, of which so many may not be there, or
    (`None`) any; see `read_columns`."""
    columns, parts = list(dict.fromkeys(columns)), []
    rows = read_columns(path, columns, are_parts)
    try:
        while part := list(islice(rows, ROWS_AT_ONCE)):
            parts.append(pa.table([pa.array(values) for values in zip(*part)], names=columns))
        table = pa.concat_tables(parts, promote_options="default") if parts else None
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # JSON lines may hold anything
        raise DataError(f"{path}: expected values of one kind in each column ({error}).") from error
    if table is None:
        raise DataError(f"{path}: holds no rows.")
    if not pa.types.is_string(table.column(0).type):
        raise DataError(f"{path}: expected paths in {columns[0]!r}, got {table.column(0).type}.")
    names = pc.fill_null(table.column(0), "")
    paths = _find_files(names, [path.parent / (audio_dir or "")], path, "row", max_missing)
    return Dataset(table.set_column(0, columns[0], paths))


def read_columns(path: Path, columns: list[str], are_parts: bool = False) -> Iterator[list[Any]]:
    """What stands in the named columns of each row of a list.

    Args:
        path: Of the list.
        columns: All that matter.
        are_parts: Whether they say which part of a file is the clip; else it is refused that others seem to.
    """
    check_others = (lambda *_: None) if are_parts else refuse_parts
    if suffix_of(path) == ".jsonl":
        for number, row in _read_json_lines(path):
            expect_columns(f"{path}, line {number}", list(row), columns, list(row.values()))
            check_others(path, row.keys() - set(columns))
            values = (row[column] for column in columns)
            yield [value.strip() if isinstance(value, str) else value for value in values]
        return
    rows = read_rows(path)
    _, names = next(rows, (0, []))
    first = [row for _, row in islice(rows, 1)]
    expect_columns(path, names, columns, *first)
    check_others(path, set(names) - set(columns))
    places = [names.index(column) for column in columns]
    for row in chain(first, (row for _, row in rows)):
        yield [row[place] for place in places]


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and content of each line that is not empty."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=partial(_to_dict, path=path))
            except DataError:
                raise
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a table of names and values, got {row!r:.80}.")
            yield number, row


def read_json(path: Path, audio_dir: str | None, max_missing: int | None, has_labels: bool = True) -> Table:
    entries = read_data_json(path, has_labels)
    files = [entry["wav"] for entry in entries]
    roots = [Path.cwd(), path.parent] if audio_dir is None else [path.parent / audio_dir]
    paths = _find_files(pa.chunked_array([pa.array(files, pa.string())]), roots, path, "entry", max_missing)
    columns, options = {"wav": paths}, {"unit": "entry", "has_columns": False, "has_separators": True}
    if has_labels:
        columns["labels"] = pa.array([entry["labels"] for entry in entries], pa.string())
    return Table(Dataset(pa.table(columns)), str(path), "wav", "labels" if has_labels else None, **options)


def read_data_json(path: Path, has_labels: bool = True) -> list[dict[str, str]]:
    """The entries of a data file in the original's format, `{"data": [{"wav", "labels"}, ...]}`.

    Other keys are ignored. Comment lines at the top, such as the original's own sample has, are passed over.

    Args:
        path: Of the file.
        has_labels: Whether entries need `labels`.

    Raises:
        DataError: No JSON, a key that is there twice, an entry without the two keys, or with keys that say which part
            of its file it is.
    """
    keys = ("wav", "labels") if has_labels else ("wav",)
    try:
        with open_text(path) as file:
            text = file.read()
        # Line numbers in errors stay right.
        text = re.sub(r"\A(\s*(#|//).*\n)+", lambda comment: "\n" * comment.group().count("\n"), text)
        content = json.loads(text, object_pairs_hook=partial(_to_dict, path=path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists within lists
        raise DataError(f"{path}: not JSON that can be read ({error}).") from error
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        example = '{"data": [{"wav": path, "labels": "a,b"}, ...]}'
        raise DataError(f"{path}: expected the format of the original, {example}.")
    if not entries:
        raise DataError(f"{path}: holds no entries.")
    for number, entry in enumerate(entries, start=1):
        if not (isinstance(entry, dict) and all(_is_text(entry.get(key)) for key in keys)):
            expected = "wav and labels, both text" if has_labels else "wav, a text"
            raise DataError(f"{path}, entry {number}: expected {expected}, got {entry}.")
        refuse_parts(path, entry.keys() - {"wav", "labels"})
    return entries


def _is_text(value: Any) -> bool:
    """JSON can spell half a character, `\\ud800`, which is none."""
    return isinstance(value, str) and (value.isascii() or not re.search("[\ud800-\udfff]", value))


def _to_dict(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise DataError(f"{path}: a key is there twice in {pairs}.")
    return entry


def _find_files(
    names: pa.ChunkedArray, roots: list[Path], source: Path, unit: str, max_missing: int | None
) -> pa.ChunkedArray:
    """Absolute path of each file, below the first root that has it, or else that it would have below the first one.

    A folder is listed once: asking for millions of files one by one takes many minutes on a network's disk.
    """
    folders = {}  # as written: where it is, and what is in it, a root

    def find(name: str) -> str | None:
        return next((path for way in ways_to_write(name) if (path := find_as_written(way)) is not None), None)

    def find_as_written(name: str) -> str | None:
        folder, base = os.path.split(name)
        if folder not in folders:
            places = (_list_folder(os.path.join(root, folder)) for root in roots)
            folders[folder] = [place for place in places if place is not None]
        for place, files in folders[folder]:
            # Asked again: the file may go by another spelling, or the folder may not be listed.
            if base in files or os.path.isfile(place + base):
                return place + base
        return None

    parts, missing = [], []  # of the missing ones: number and path
    for chunk in names.chunks:
        found = chunk.to_pylist()
        for number, name in enumerate(found):
            found[number] = find(name)
            if found[number] is None:
                found[number] = os.path.abspath(os.path.join(roots[0], name))
                missing.append((sum(map(len, parts)) + number + 1, found[number]))
        parts.append(pa.array(found, pa.string()))
    if missing and max_missing is not None:
        number, path = missing[0]
        what = f"{source}: {len(missing)} of {len(names)} files are not there, such as {unit} {number}: {path}."
        if len(missing) > max_missing or len(missing) == len(names):
            raise DataError(f"{what} Is audio_dir right?")
        logger.warning(what)
    return pa.chunked_array(parts)


def ways_to_write(path: str) -> Iterator[str]:
    """A path as it is, and as other systems write it: `/` for `\\`, accents as a part of a letter or beside it."""
    yield path
    for slashed in (path, path.replace("\\", "/")):
        yield from (unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))


def _list_folder(folder: str) -> tuple[str, frozenset[str]] | None:
    """The folder, absolute and ready for a name, and the names of the files in it; `None` where it is none."""
    if not os.path.isdir(folder):
        return None
    try:
        with os.scandir(folder) as entries:
            names = frozenset(entry.name for entry in entries if entry.is_file())
    except PermissionError:  # its files may be readable all the same
        names = frozenset()
    return os.path.join(os.path.realpath(folder), ""), names
