"""Label tables: which label is output number what. Three come with the package.

A table is a CSV file with the columns index, mid and display_name, as the original reads it. The mid is a label's name
in data files: it holds no comma, which many display names do ("Male speech, man speaking"). One's own table may do
without the column.
"""

import csv
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

# Source: class_labels_indices.csv of AudioSet, and of egs/esc50 and egs/speechcommands of YuanGongND/ast.
SHIPPED_TABLES = ("audioset", "esc50", "speech_commands_v2")


class DataError(ValueError):
    """A data set that is not as its arguments say. The message names the file, the entry and what was expected."""


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
        DataError: No such table; the column index or display_name, a mid or a name is missing; an index is missing or
            stands twice; two labels share a mid or a name, or one's mid is another's name.

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
        if not index.isdecimal():
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
        try:
            found = reader.fieldnames or ()
            for column in ("index", "display_name"):
                if column not in found:
                    raise DataError(
                        f"{path}: expected the columns index, mid and display_name in its first line, {column} is "
                        f"missing in {', '.join(found) or 'an empty file'}."
                    )
            columns = ("index", "mid" if "mid" in found else "display_name", "display_name")
            return [(reader.line_num, [(row[column] or "").strip() for column in columns]) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {reader.line_num + 1}: not CSV in UTF-8 ({error}).") from error


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
