"""What people say of recordings, as it is: to learn from it, or to compare it with what was found."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from datasets import Dataset, Value, concatenate_datasets

from modeling_ast.data.clip_tables import SPLITS, Stretches, Table, to_rows
from modeling_ast.data.held_out import add_groups, read_groups
from modeling_ast.data.label_columns import read_labels
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import DataArguments, RecipeError, parse_data_arguments
from modeling_ast.data.sources import DataSource
from modeling_ast.data.stretches import refuse_stretch_keys

logger = logging.getLogger(__name__)

# Keys of a recipe that say how annotations are to be read, and what is alike in some recordings.
KEYS = frozenset(
    (
        *("audio_column_name", "audio_dir", "label_column_name", "label_separator"),
        *("start_column_name", "end_column_name"),
    )
)
GROUP_KEYS = frozenset(("group_column_name", "group_pattern"))
Annotations = dict[str, list[tuple[float, float, str]]]  # start, end and label, of each recording by its path


@dataclass(frozen=True)
class LabelledStretch:
    """A stretch of a recording of which all labels are known.

    Attributes:
        audio: Absolute path of the recording, links followed; it need not be there.
        start: Second at which the stretch begins.
        end: Second at which it ends; infinity means with the recording.
        labels: In the order of the rows; empty means that it has none of the labels.
        group: What it has in common with others; `None` where nothing tells.
    """

    audio: str
    start: float
    end: float
    labels: tuple[str, ...] = ()
    group: str | None = None


def read_labelled_stretches(name: str, keys: Sequence[str] = (), multi_label: bool = True) -> list[LabelledStretch]:
    """The stretches that something labels, each once, in its order; rows of one stretch say its labels together.

    Args:
        name: Whatever training reads paths of recordings from: a list, with or without start and end; a label file, or
            a folder of recordings with such files beside them, where an empty one labels the whole recording with
            none; a sub-folder a class. What it holds out is left out.
        keys: `["--key", "value", ...]`, of `KEYS` and `GROUP_KEYS`.
        multi_label: Whether a stretch may have several labels, or none, also with separators between them.

    Raises:
        RecipeError: Keys without effect.
        DataError: As from `DataSource`; sounds that lie in tables; a stretch in two groups.
    """
    source = _open(name, keys, KEYS | GROUP_KEYS, multi_label)
    args, tables = source.args, source._read(source.name, SPLITS, max_missing=None)
    if "train" not in tables:
        raise DataError(f"{name}: expected a split called train, got {', '.join(tables)}.")
    table = tables.pop("train")
    if tables:
        logger.warning(f"{name}: what it holds out is left out: {', '.join(tables)}.")
    if not isinstance(table.rows.features[table.audio_column], Value):
        raise DataError(f"{name}: expected paths of recordings in {table.audio_column!r}, got sounds.")
    if table.stretches is None:
        refuse_stretch_keys(args)
    elif multi_label:
        table = _with_unmarked(table)
    groups = [None] * len(table.rows)
    if args.has_groups:
        groups = read_groups(add_groups(to_rows(table), table, args.group_column_name, args.group_pattern))
    found, places = {}, {}
    for row, (path, start, end, labels) in enumerate(_labelled_rows(table, args, multi_label)):
        audio = places.get(path) or places.setdefault(path, os.path.realpath(path))
        known, group = found.setdefault((audio, start, end), ([], groups[row]))
        if group != groups[row]:
            raise DataError(f"{table.where(row)}: expected one group for a stretch, got {group} and {groups[row]}.")
        known += labels
    return [LabelledStretch(*key, tuple(dict.fromkeys(labels)), group) for key, (labels, group) in found.items()]


def read_truth(name: str, keys: Sequence[str] = ()) -> Annotations:
    """What is annotated in each recording, by its path; an end is infinite where it is the recording's.

    Equal stretches of one label count once.

    Args:
        name: Of a list with start and end, of a label file, or of a folder of recordings with such files beside them.
        keys: `["--key", "value", ...]`, of `KEYS`.

    Raises:
        RecipeError: Keys without effect.
        DataError: As from `DataSource`; no such list.
    """
    source = _open(name, keys, KEYS, multi_label=True)
    truth: Annotations = {}
    names: dict[str, str] = {}  # a recording may have several, by links
    for table in source._read(source.name, SPLITS).values():
        if table.stretches is None:
            raise DataError(
                f"{name}: expected annotated recordings, a list with the columns start and end or label files of "
                "Audacity or Raven beside recordings, got whole files."
            )
        for path, start, end, labels in _labelled_rows(_with_unmarked(table), source.args, multi_label=True):
            events = truth.setdefault(names.setdefault(os.path.realpath(path), path), [])
            events += [event for label in labels if (event := (start, end, label)) not in events]
    return truth


def _open(name: str, keys: Sequence[str], effective: frozenset[str], multi_label: bool) -> DataSource:
    given = {key.removeprefix("--").partition("=")[0] for key in keys if key.startswith("--")}
    if idle := sorted(given - effective):
        raise RecipeError(f"No effect on annotations: {', '.join(idle)}.")
    _, data_args, _ = parse_data_arguments(None, [f"--dataset_name={name}", *keys], "annotations")
    source = DataSource(data_args, multi_label)
    source._check()
    return source


def _with_unmarked(table: Table) -> Table:
    """Recordings that were looked through, and in which nothing is marked, as rows without a label."""
    marked = table.stretches
    if not (count := len(marked.unmarked)):
        return table
    own = {table.audio_column: list(marked.unmarked), table.label_column: [""] * count}
    rows = concatenate_datasets([table.rows, Dataset.from_dict(own, features=table.rows.features)])
    starts, ends = np.append(marked.starts, np.zeros(count)), np.append(marked.ends, np.full(count, math.inf))
    return replace(table, rows=rows, stretches=Stretches(starts, ends))


def _labelled_rows(
    table: Table, args: DataArguments, multi_label: bool
) -> Iterator[tuple[str, float, float, list[str]]]:
    """Path, start, end and labels of each row."""
    labels = read_labels(table, args.label_separator, multi_label)
    names = (labels.names[code] for code in labels.codes)
    count = len(table.rows)
    marked = table.stretches or Stretches(np.zeros(count), np.full(count, math.inf))
    paths = table.column(table.audio_column).to_pylist()
    for path, start, end, length in zip(paths, marked.starts.tolist(), marked.ends.tolist(), labels.lengths):
        yield path, start, end, list(islice(names, int(length)))
