"""The clips of a data set as a table, whatever they are read from, and what its splits are called."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Audio, Dataset, IterableDataset, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter

from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 100_000  # of a table, where they are not taken all together

SPLITS = ("train", "validation", "test")
# What people call the three splits, in columns and folders.
SPLIT_ALIASES = {
    **{"train": "train", "training": "train"},
    **{
        "validation": "validation",
        "valid": "validation",
        "val": "validation",
        "dev": "validation",
        "eval": "validation",
    },
    **{"test": "test", "testing": "test"},
}
# A column that says where in its file a clip starts or ends: "start", "end_time", "Begin Time (s)", "offset".
_PART = re.compile(
    r"(t|time|segment|event)?_?(start|begin|onset|offset|end|stop)(_?(time|seconds|secs?|s|ms|samples?|frames?))*"
)


@dataclass
class ClipCounts:
    """How many clips there are, how many of each label, (num_labels,), and how many without any."""

    clips: int
    of_labels: np.ndarray
    without_labels: int = 0


@dataclass
class AudioSplits:
    """Rows `{"audio": {"path", "bytes"}, "labels": int or list of int}` for training, choosing and reporting.

    Clips without labels are rows with `audio` alone; where none has any, there are no `label_names`. Data that are
    evaluated alone may lack any of the three; where they name no splits, all rows are in `train`.
    """

    train: Dataset | None
    validation: Dataset | None
    test: Dataset | None
    label_names: list[str]
    ignore_length: bool = False  # for `load_waveform`, of all clips
    train_counts: ClipCounts | None = None  # of a stream whose shards tell them
    version: str | None = None  # of a stream: tells its clips from all others, also when its files change

    def __iter__(self) -> Iterable[tuple[str, Dataset]]:
        return ((name, split) for name in SPLITS if (split := getattr(self, name)) is not None)


@dataclass(frozen=True)
class Stretches:
    """Where in their recordings the rows of a table are.

    Attributes:
        starts: In seconds, float64 (rows,).
        ends: Infinite where a row goes to the end of its recording.
        unmarked: Recordings that somebody looked through, and in which nothing is marked.
    """

    starts: np.ndarray
    ends: np.ndarray
    unmarked: tuple[str, ...] = ()


@dataclass
class Table:
    """The clips of one split as they are: which columns hold what, and what to call a row in an error."""

    rows: Dataset
    source: str
    audio_column: str = "audio"
    label_column: str | None = "label"  # `None` of clips without labels
    unit: str = "row"
    has_columns: bool = True  # that one may choose by their names
    has_separators: bool | None = None  # between labels; `None`: where several are expected
    is_whole: bool = True  # and not some rows of a stream
    stretches: Stretches | None = None  # of which the rows are, in recordings
    numbers: np.ndarray | None = None  # of the rows that these were made of

    def where(self, row: int) -> str:
        feature = self.rows.features[self.audio_column]
        path = self.rows[int(row)][self.audio_column] if isinstance(feature, Value) else None
        number = row if self.numbers is None else self.numbers[row]
        return f"{self.source}, {self.unit} {number + 1}" + (f" ({path})" if path else "")

    def column(self, name: str) -> pa.Array:
        return self.rows.select_columns([name]).with_format("arrow")[:][name].combine_chunks()


def suffix_of(name: str | Path) -> str:
    """In lower case, as `CLIPS.CSV` is a list too."""
    return Path(name).suffix.lower()


def split_of(name: str) -> str | None:
    return SPLIT_ALIASES.get(name.lower())


def name_splits(
    source: str | Path, names: Iterable[str], given: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """What the source calls each of the splits that it has, among other names.

    Args:
        source: Of all of them.
        names: Its own.
        given: Those of some splits, where it is said; several names of one split with a plus between.

    Raises:
        DataError: Two names of one split, or one that is given and not there.
    """
    splits, names = dict(given), list(names)
    taken = [name for each in given.values() for name in each.split("+")]
    if missing := [name for name in taken if name not in names]:
        raise DataError(f"{source}: expected a split called {missing[0]}, got {', '.join(names)}.")
    for name in names:
        split = None if name in taken else split_of(name)
        if split is not None and split not in given and splits.setdefault(split, name) != name:
            raise DataError(f"{source}: expected one {split} split, got {splits[split]} and {name}.")
    return splits


def choose_splits(
    source: str | Path, found: Mapping[str, Any], given: Mapping[str, str]
) -> dict[str, Dataset | IterableDataset]:
    """The splits as `name_splits` names them.

    Raises:
        DataError: As from `name_splits`.
    """
    splits = {}
    for split, own in name_splits(source, found, given).items():
        parts = [found[name] for name in own.split("+")] if split in given else [found[own]]
        splits[split] = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return splits


def expect_columns(source: str | Path, found: list[str], needed: list[str], values: Sequence[Any] = ()) -> None:
    """
    Args:
        values: Of the first row, where they are known.
    """
    for column in needed:
        if column not in found:
            hint = ""
            others = [value for name, value in zip(found, values) if not _PART.fullmatch(_words(name))]
            if sum(value in ("0", "1", 0, 1) for value in others) > 1:
                hint = " Is there a column a class? Write the names of a clip's classes into one, such as 'dog,cat'."
            elif column == "label":  # which nobody has named, and which may not be there
                hint = " Name it by label_column_name, or read clips without labels by unlabelled: true."
            elif column == "audio":
                hint = " Name it by audio_column_name."
            raise DataError(f"{source}: expected a column {column!r}, got {', '.join(found) or 'none'}.{hint}")
        if found.count(column) > 1:
            raise DataError(f"{source}: the column {column!r} is there {found.count(column)} times.")


def _words(name: str) -> str:
    return re.sub(r"[^a-z]+", "_", name.lower()).strip("_")


def hint_at_splits(source: str | Path, found: Iterable[str]) -> None:
    """Warn of a column that seems to say what is held out, where no key names one."""
    for key, names in (("split_column_name", ("split", "subset", "partition")), ("fold_column_name", ("fold",))):
        if own := [name for name in found if name.lower() in names]:
            logger.warning(f"{source}: the column {own[0]!r} holds nothing out unless {key} names it.")


def refuse_parts(source: str | Path, others: Iterable[str]) -> None:
    if parts := [name for name in others if _PART.fullmatch(_words(name))]:
        raise DataError(
            f"{source}: expected whole files, got columns that seem to say which part of a file is the clip "
            f"({', '.join(sorted(parts))}). Name those with seconds by start_column_name and end_column_name or, "
            "where each file is such a part already, leave these columns out."
        )


def find_distinct(column: pa.Array) -> tuple[list[Any], np.ndarray]:
    """The different values of a column, and which of them each row has."""
    encoded = column.dictionary_encode(null_encoding="encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)


def to_lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32), values)


def is_sound(feature: Any) -> bool:
    """Whether a column holds sounds, decoded or not."""
    return isinstance(feature, Audio) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys())


def filter_rows(rows: Dataset, is_wanted: np.ndarray) -> Dataset:
    if rows.cache_files:  # on disk, perhaps with the sounds in it: an index, and no copy
        return rows.select(np.flatnonzero(is_wanted))
    # In memory, and small but for the paths: later reading a column through an index would take row by row.
    return Dataset(rows.with_format("arrow")[:].filter(pa.array(is_wanted)), info=rows.info)


def keep_on_disk(rows: Dataset) -> Dataset:
    """The same rows, of a file in the cache of `datasets` where they are in memory: what reads it, shares its memory.

    The same rows are the same file, by a digest.

    Raises:
        DataError: The cache cannot be written to.
    """
    if rows.cache_files:
        return rows
    batches = partial(rows.with_format("arrow").iter, ROWS_AT_ONCE)
    digest = blake2b(repr(rows.features).encode(), digest_size=16)
    for table in batches():
        digest.update(table.combine_chunks().to_batches()[0].serialize())
    path = Path(datasets.config.HF_DATASETS_CACHE) / "modeling_ast" / f"{digest.hexdigest()}.arrow"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_beside(path, durable=True) as unfinished:
                with ArrowWriter(features=rows.features, path=str(unfinished)) as writer:
                    for table in batches():
                        writer.write_table(table)
        return Dataset.from_file(str(path))
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot be written or read ({reason}), where all processes of a machine are to find the list of "
            "clips. Set HF_DATASETS_CACHE to a folder on a disk with room."
        ) from error


def to_rows(table: Table, labels: pa.Array | None = None, keep_columns: bool = False) -> Dataset:
    """Rows with `audio`, not decoded, with `labels` where they are given, and perhaps with what is no other sound."""
    others = [
        name
        for name, feature in table.rows.features.items()
        if name not in ("audio", "labels", table.audio_column, table.label_column) and not is_sound(feature)
    ]
    rows = table.rows.select_columns([table.audio_column, *(others if keep_columns else [])])
    if table.audio_column != "audio":
        rows = rows.rename_column(table.audio_column, "audio")
    # Not decoded here: `datasets` would need torchcodec and FFmpeg.
    try:
        rows = rows.cast_column("audio", Audio(decode=False))
        return rows if labels is None else rows.add_column("labels", labels)
    except (pa.ArrowException, TypeError) as error:
        kind = table.rows.features[table.audio_column]
        raise DataError(f"{table.source}: expected sounds in {table.audio_column!r}, got {kind}.") from error
