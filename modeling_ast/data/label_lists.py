"""Lists of labelled stretches of recordings, `audio,start,end,label`: who labels a few sounds keeps them in one."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from modeling_ast.data.labels import DataError, read_rows

COLUMNS = ("audio", "start", "end", "label")


@dataclass(frozen=True)
class LabelledStretch:
    """A stretch of a recording of which all labels are known.

    Attributes:
        audio: Absolute path of the recording, links followed; it need not be there.
        start: Second at which the stretch begins.
        end: Second at which it ends; infinity means with the recording.
        labels: In the order of the list; empty means that it has none of the labels.
        group: What the column of groups says; `None` without one.
    """

    audio: str
    start: float
    end: float
    labels: tuple[str, ...] = ()
    group: str | None = None


def read_label_list(
    path: str | os.PathLike,
    audio_dir: str | None = None,
    label_separator: str | None = None,
    group_column_name: str | None = None,
) -> list[LabelledStretch]:
    """The stretches of a list, each once, in its order; rows of one stretch say its labels together.

    The columns are `audio`, a path from the list's folder or from `audio_dir` in it; `start` and `end` in seconds,
    which may be empty or missing: from the beginning, to the end; and `label`, which is empty for a stretch with none
    of the labels. Others are passed over.

    Args:
        path: Of the list, a table of text as `read_rows` takes it.
        audio_dir: Where its paths start; `None` means beside it.
        label_separator: What stands between several labels in a cell; `None` takes a cell for one label.
        group_column_name: Column that says what recordings have in common, such as the place or the speaker.

    Raises:
        DataError: No such table, or rows that cannot be used.
    """
    path = Path(path)
    rows = read_rows(path)
    _, names = next(rows, (0, []))
    for name in ("audio", "label", *([group_column_name] if group_column_name else [])):
        if names.count(name) != 1:
            raise DataError(f"{path}: expected one column {name!r}, got {', '.join(names) or 'none'}.")
    folder, found = path.parent / (audio_dir or ""), {}
    for number, cells in rows:
        row, where = dict(zip(names, cells)), f"{path}, line {number}"
        start, end = (_read_seconds(row, name, empty, where) for name, empty in (("start", 0.0), ("end", math.inf)))
        if not row["audio"] or not 0 <= start < end:
            raise DataError(
                f"{where}: expected the path of a recording, and a start from 0 that is before the end, got "
                f"{row['audio']!r}, {start:g} s to {end:g} s."
            )
        key = os.path.realpath(folder / row["audio"]), start, end
        cell = row["label"]
        labels = [label.strip() for label in cell.split(label_separator)] if label_separator else [cell]
        known = found.setdefault(key, [[], set(), row.get(group_column_name), number])
        known[0] += [label for label in labels if label and label not in known[0]]
        known[1].add(any(labels))
        if len(known[1]) > 1 or known[2] != row.get(group_column_name):
            what = "a label or none" if len(known[1]) > 1 else "one group"
            raise DataError(f"{where}: expected {what} for a stretch, but line {known[3]} says otherwise of the same.")
    if not found:
        raise DataError(f"{path}: holds no rows.")
    return [LabelledStretch(*key, tuple(labels), group) for key, (labels, _, group, _) in found.items()]


def _read_seconds(row: dict[str, str], name: str, empty: float, where: str) -> float:
    if not (text := row.get(name, "")):
        return empty
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: expected seconds as {name}, got {text!r}.")
    return value
