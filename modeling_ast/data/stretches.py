"""Rows that are stretches of recordings: where they are, the windows of long ones, and the background between them."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from modeling_ast.audio import AudioError, read_seconds
from modeling_ast.data.clip_tables import Stretches, Table, expect_columns
from modeling_ast.data.label_columns import Labels
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import DataArguments

logger = logging.getLogger(__name__)

# Of the shorter of a clip and an annotation both must cover so much that the clip has its label.
MIN_SHARE = 0.5
_CLIPS_AT_ONCE = 1000  # that are compared with all annotations of a recording
_AUDIO = {"bytes": Value("binary"), "path": Value("string"), "start": Value("float64"), "end": Value("float64")}


def find_time_columns(names: Sequence[str], args: DataArguments, source: str | Path) -> list[str]:
    """The columns of a list that say where clips start and end in their files; none of a list of whole files.

    Args:
        names: Of all columns.
        args: Which name them.
        source: The list.

    Raises:
        DataError: One of two columns that a recipe names is there alone.
    """
    columns = [args.start_column_name, args.end_column_name]
    found = [name for name in columns if name in names]
    if found and {"start_column_name", "end_column_name"} & set(args.given_stretch_keys):
        expect_columns(source, list(names), columns)
    return columns if len(found) == 2 else []


def read_stretches(table: Table, start_column: str, end_column: str) -> Table:
    """A table whose rows say where in their files they are, with that as its `stretches`, and without the two columns.

    Raises:
        DataError: What is no time, or an end that is not behind its start.
    """
    times = [_to_seconds(table, name) for name in (start_column, end_column)]
    starts, ends = np.nan_to_num(times[0], nan=0.0), np.nan_to_num(times[1], nan=math.inf, posinf=math.inf)
    if (wrong := ends <= starts).any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{table.where(row)}: expected an end behind the start of {starts[row]:g} s, got {ends[row]:g} s. A point "
            "in time holds no sound."
        )
    rows = table.rows.remove_columns([start_column, end_column])
    return replace(table, rows=rows, stretches=Stretches(starts, ends))


def _to_seconds(table: Table, column: str) -> np.ndarray:
    """Numbers, also as text, with a decimal comma too; NaN where there is none."""
    seconds = np.empty(len(table.rows))
    for row, value in enumerate(table.column(column).to_pylist()):
        text = "" if value is None else str(value).strip().replace(",", ".")
        try:
            seconds[row] = float(text) if text else math.nan
        except ValueError:
            seconds[row] = -1
        if seconds[row] < 0 or (text and not math.isfinite(seconds[row])):
            raise DataError(f"{table.where(row)}: expected seconds of at least 0 in {column!r}, got {value!r}.")
    return seconds


def cut_tables(
    tables: dict[str, Table], labels: dict[str, Labels], args: DataArguments, multi_label: bool, allow_bad: bool
) -> tuple[dict[str, Table], dict[str, Labels]]:
    """The tables of all splits with, in the place of stretches and their labels, the clips that they give.

    Args:
        tables: By split.
        labels: Of those that have some.
        args: As for `cut_stretches`.
        multi_label: Likewise.
        allow_bad: Likewise.

    Raises:
        DataError: As from there; keys without effect.
        AudioError: As from there.
    """
    stretches = [split for split, table in tables.items() if table.stretches is not None]
    if not stretches:
        refuse_stretch_keys(args)
    if args.background == "keep" and not (multi_label and labels):
        raise DataError(
            "Expected several labels a clip (problem_type multi_label_classification) with background keep, whose "
            "clips have none, got one label a clip, or clips without labels."
        )
    tables, labels = dict(tables), dict(labels)
    for split in stretches:
        tables[split], own = cut_stretches(tables[split], labels.get(split), args, multi_label, allow_bad)
        labels |= {} if own is None else {split: own}
    return tables, labels


def refuse_stretch_keys(args: DataArguments) -> None:
    """Refuse keys of stretches that are given for whole files.

    Raises:
        DataError: There are some.
    """
    if idle := args.given_stretch_keys:
        raise DataError(
            f"{args.dataset_name}: {', '.join(idle)} has no effect on whole files. Stretches are told by a list with "
            f"the columns {args.start_column_name} and {args.end_column_name}, or by label files beside recordings."
        )


def cut_stretches(
    table: Table, labels: Labels | None, args: DataArguments, multi_label: bool, allow_bad: bool = False
) -> tuple[Table, Labels | None]:
    """The clips that the rows of a table give, with their labels: margins, windows, and the background.

    With several labels a clip each clip has the labels of all rows of its recording of which enough lies in it, and
    equal stretches are one clip. Otherwise each clip has the label of its row.

    Args:
        table: With `stretches`.
        labels: Of its rows; `None` without.
        args: What is made of them.
        multi_label: Whether a clip may have several labels.
        allow_bad: Whether recordings that cannot be read are passed over where their length is asked for.

    Raises:
        AudioError: A recording whose length is asked for cannot be read.
        DataError: No recording has so much background as is to be kept.
    """
    marked, window = table.stretches, args.window_seconds
    places, recordings = _find_recordings(table)
    ends = marked.ends + args.margin_seconds
    lengths = _read_lengths(recordings, places, ends, args, allow_bad)
    if args.margin_seconds:  # which ends with the recording
        last = np.where(lengths[places] > 0, np.maximum(lengths[places], marked.ends), np.inf)
        ends = np.where(np.isinf(ends), ends, np.minimum(ends, last))
    clips = _cut_windows(places, np.maximum(0.0, marked.starts - args.margin_seconds), ends, lengths, window)
    # What is left out is margin alone.
    clips = clips.take(_covers(clips.starts, clips.ends, marked.starts[clips.rows], marked.ends[clips.rows]))
    if args.background == "keep":
        background = _find_background(marked, places, lengths, window)
        if not len(background.rows):
            raise DataError(
                f"{table.source}: expected background, got no stretch of {window:g} s without annotations."
            )
        logger.info(f"{table.source}: {len(background.rows)} clips of {window:g} s are background, without labels.")
        clips = _join([clips, background])
    if multi_label or labels is None:
        clips = clips.take(np.sort(np.unique(clips.identity, axis=1, return_index=True)[1]))
    if labels is not None:
        pairs = _find_labels(clips, places, marked) if multi_label else (np.arange(len(clips.rows)), clips.rows)
        labels = _take_labels(labels, *pairs, len(clips.rows))
    columns = table.rows.with_format("arrow")[:].take(pa.array(clips.rows))
    names = pa.array(recordings, pa.string()).take(pa.array(clips.places))
    columns = columns.set_column(columns.column_names.index(table.audio_column), table.audio_column, names)
    rows = Dataset(columns, info=table.rows.info)
    return replace(table, rows=rows, stretches=Stretches(clips.starts, clips.ends), numbers=clips.rows), labels


def add_stretches(rows: dict[str, Dataset], tables: Mapping[str, Table]) -> dict[str, Dataset]:
    """Rows whose `audio` also says where the clip is in its sound, where any table has stretches.

    The rows of the others, whole sounds, get the same form, so that all go together.

    Args:
        rows: Of each split, as `to_rows` gives them.
        tables: Which they were made of.
    """
    if all(table.stretches is None for table in tables.values()):
        return rows
    return {split: _with_times(each, tables[split].stretches) for split, each in rows.items()}


def _with_times(rows: Dataset, stretches: Stretches | None) -> Dataset:
    parts, position = [], 0
    table = rows.with_format("arrow")[:]
    for chunk in table["audio"].chunks:
        times = [pa.nulls(len(chunk), pa.float64())] * 2
        if stretches is not None:
            part = slice(position, position + len(chunk))
            starts, ends = stretches.starts[part], stretches.ends[part]
            is_open = np.isinf(ends)
            times = [pa.array(starts, mask=is_open & (starts == 0)), pa.array(ends, mask=is_open)]
        parts.append(pa.StructArray.from_arrays([chunk.field("bytes"), chunk.field("path"), *times], names=[*_AUDIO]))
        position += len(chunk)
    features = Features({**rows.features, "audio": _AUDIO})
    table = table.set_column(table.column_names.index("audio"), "audio", pa.chunked_array(parts))
    return Dataset(table.cast(features.arrow_schema))


@dataclass(frozen=True)
class _Clips:
    """Rows whose other columns clips have, the numbers of their recordings, and where they are, in seconds."""

    rows: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @property
    def identity(self) -> np.ndarray:
        return np.stack((self.places, self.starts, self.ends))

    def take(self, chosen: np.ndarray) -> "_Clips":
        return _Clips(*(getattr(self, each.name)[chosen] for each in fields(self)))


def _join(parts: Sequence[_Clips]) -> _Clips:
    return _Clips(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(_Clips)))


def _find_recordings(table: Table) -> tuple[np.ndarray, list[str]]:
    """The number of each row's recording, and the paths of all."""
    encoded = table.column(table.audio_column).dictionary_encode()
    names = encoded.dictionary.to_pylist()
    return encoded.indices.to_numpy(zero_copy_only=False), [*names, *table.stretches.unmarked]


def _read_lengths(
    recordings: list[str], places: np.ndarray, ends: np.ndarray, args: DataArguments, allow_bad: bool
) -> np.ndarray:
    """Seconds of the recordings of which they are needed; 0 of others, and of those that cannot be read."""
    asked = set(range(len(recordings))) if args.background == "keep" or args.margin_seconds else set()
    if args.window_seconds is not None:
        asked |= set(places[np.isinf(ends)].tolist())
    lengths = np.zeros(len(recordings))
    for number in sorted(asked):
        try:
            lengths[number] = read_seconds(recordings[number], ignore_length=args.ignore_length)
        except AudioError as error:
            if not allow_bad:
                raise
            logger.warning(f"{error} It has no background, and neither margins nor windows end with it.")
    return lengths


def _cut_windows(
    places: np.ndarray, starts: np.ndarray, ends: np.ndarray, lengths: np.ndarray, window: float | None
) -> _Clips:
    """Each stretch or, of a longer one, so many windows as cover it, evenly spread from its start to its end."""
    if window is None:
        return _Clips(np.arange(len(starts)), places, starts, ends)
    ends = np.where(np.isinf(ends) & (lengths[places] > starts), lengths[places], ends)
    spare = np.where(np.isinf(ends), 0.0, np.maximum(0.0, ends - starts - window))
    counts = np.ceil(spare / window - 1e-9).astype(int) + 1
    rows = np.repeat(np.arange(len(starts)), counts)
    numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    own_starts = starts[rows] + numbers * (spare / np.maximum(1, counts - 1))[rows]
    return _Clips(rows, places[rows], own_starts, np.where(counts[rows] > 1, own_starts + window, ends[rows]))


def _covers(starts: np.ndarray, ends: np.ndarray, marked_starts: np.ndarray, marked_ends: np.ndarray) -> np.ndarray:
    """Whether clips have the labels of annotations."""
    both = np.minimum(ends, marked_ends) - np.maximum(starts, marked_starts)
    shorter = np.minimum(ends - starts, marked_ends - marked_starts)
    return (both > 0) & (both >= MIN_SHARE * shorter - 1e-9)


def _find_background(marked: Stretches, places: np.ndarray, lengths: np.ndarray, window: float) -> _Clips:
    """As many windows as fit side by side in what is not annotated; other columns are those of the recording's first
    row, or of the table's."""
    found = []
    for number, length in enumerate(lengths):
        own = np.flatnonzero(places == number)
        order = own[np.argsort(marked.starts[own], kind="stable")]
        begins = np.maximum.accumulate(np.append(0.0, marked.ends[order]))  # of what follows each annotation
        stops = np.append(marked.starts[order], length)
        for begin, stop in zip(begins, np.minimum(stops, length)):
            count = max(0, math.floor((stop - begin) / window + 1e-9)) if begin < stop else 0
            starts = begin + (stop - begin - window) * np.arange(count) / max(1, count - 1)
            row = own[0] if len(own) else 0
            found.append(_Clips(np.full(count, row), np.full(count, number), starts, starts + window))
    return _join(found)


def _find_labels(clips: _Clips, places: np.ndarray, marked: Stretches) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a clip and a row whose label it has, by clip."""
    pairs = [np.zeros((2, 0), int)]
    order, row_order = np.argsort(clips.places, kind="stable"), np.argsort(places, kind="stable")
    for number in np.unique(places):
        rows = row_order[slice(*np.searchsorted(places[row_order], [number, number + 1]))]
        own = order[slice(*np.searchsorted(clips.places[order], [number, number + 1]))]
        for part in np.array_split(own, math.ceil(len(own) / _CLIPS_AT_ONCE)):
            some = clips.take(part)
            has = _covers(some.starts[:, None], some.ends[:, None], marked.starts[rows], marked.ends[rows])
            clip, row = np.nonzero(has)
            pairs.append(np.stack((part[clip], rows[row])))
    first, second = np.concatenate(pairs, axis=1)
    by_clip = np.argsort(first, kind="stable")
    return first[by_clip], second[by_clip]


def _take_labels(labels: Labels, clips: np.ndarray, rows: np.ndarray, num_clips: int) -> Labels:
    """The labels of clips, each once, from pairs of a clip and a row."""
    lengths, offsets = labels.lengths[rows], np.cumsum(labels.lengths) - labels.lengths
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    codes = labels.codes[np.repeat(offsets[rows], lengths) + within].astype(np.int64)
    size = max(1, len(labels.names))
    owners, codes = np.divmod(np.unique(np.repeat(clips, lengths) * size + codes), size)
    return Labels(labels.names, codes, np.bincount(owners, minlength=num_clips))
