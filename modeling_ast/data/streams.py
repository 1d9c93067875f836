"""Data sets that are read while they arrive, for those that do not fit on a disk."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Audio, Dataset, DatasetInfo, Features, IterableDataset, Value

from modeling_ast.data.clip_tables import (
    AudioSplits,
    ClipCounts,
    Table,
    choose_splits,
    expect_columns,
    name_splits,
)
from modeling_ast.data.folders import look_into
from modeling_ast.data.label_columns import (
    LabelIndex,
    class_names,
    index_labels,
    index_model_labels,
    leave_out_unlabelled,
    number_labels,
    read_labels,
    refuse_unknown,
)
from modeling_ast.data.labels import DataError, composed
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.shards import (
    BUILDERS,
    READING_ERRORS,
    builder_of,
    describe_cause,
    find_builder,
    keep,
    open_sound_streams,
    read_clip_counts,
    version_of,
)

FEW_SHARDS = 256  # so many files can be opened before a run, to divide them
ROWS_AT_ONCE = 16  # whose labels are looked up together


def load_streamed_splits(
    data_args: DataArguments, multi_label: bool = False, teacher_labels: Sequence[str] | None = None
) -> AudioSplits:
    """A stream to train on, in its own order, and the held-out clips, kept on disk, in the cache of `datasets`.

    A shard of the stream is a file or, of few Parquet files, a row group. The first clips of a stream are one shard.

    Args:
        data_args: Of a data set on the Hub or a folder of Parquet files, tar archives, or sound files with a list
            `metadata.csv`, with splits train and validation (of clips without labels, train alone will do); with a
            `label_file` where it does not name its classes. `max_train_samples` takes the first clips of the stream.
        multi_label: Whether a clip may have several labels.
        teacher_labels: As for `DataSource`.

    Raises:
        DataError: No such data set, sound files alone, a missing split or column, labels that nothing
            names, or a held-out clip without a label that they hold; a training clip without one when it is read.
    """
    source, audio_column = data_args.dataset_name, data_args.audio_column_name
    splits, version, counts = _open_splits(data_args)
    for name, stream in splits.items():
        limit = data_args.max_train_samples if name == "train" else data_args.max_eval_samples
        splits[name] = stream if limit is None else stream.take(limit)
    names = class_names(splits["train"].features.get(data_args.label_column_name))
    if data_args.unlabelled:
        index = index_model_labels(teacher_labels or (), data_args.label_file)
    elif names is None and data_args.label_file is None:
        raise DataError(f"{source}: a stream does not tell all its labels in advance; name them by label_file.")
    else:
        index = index_labels(names, data_args.label_file, source)
    # Not an audio feature: `datasets` would need torchcodec to write one.
    audio = {"bytes": Value("binary"), "path": Value("string")}
    label = {"labels": [Value("int64")] if multi_label else Value("int64")}
    labelled, rows = data_args.labelled_splits(teacher_labels is not None), {}
    for name, stream in splits.items():
        label_feature = stream.features.get(data_args.label_column_name) if name in labelled else None
        options = {"label_feature": label_feature, "index": index, "multi_label": multi_label}
        rows[name] = stream.cast_column(audio_column, Audio(decode=False)).map(
            partial(_to_rows, data_args=data_args, **options),
            batched=True,
            batch_size=ROWS_AT_ONCE,
            remove_columns=list(stream.features),
            features=Features({"audio": audio} | (label if label_feature is not None else {})),
        )
    if teacher_labels is not None and data_args.unlabelled:
        rows = leave_out_unlabelled(rows, source)
    # What makes other rows of the same files.
    columns = audio_column, data_args.label_column_name, data_args.label_separator
    settings = f"{columns} {data_args.split_names} {data_args.max_eval_samples}"
    versions = {
        name: version and f"{name}\n{settings} {(multi_label, index) if 'labels' in each.features else None} {version}"
        for name, each in rows.items()
    }
    held_out = {name: keep(each, source, versions[name]) for name, each in rows.items() if name != "train"}
    train = rows["train"]
    if data_args.max_train_samples is not None:
        # Else `datasets` would take some from each shard.
        train = IterableDataset.from_generator(_read_in_order, train.features, {"rows": train})
    elif train.num_shards < FEW_SHARDS:
        train = _divide_files(train, source)
    if data_args.max_train_samples is not None:
        counts = None  # which are of all clips
    if counts is not None:
        counts = _number_counts(counts, names or [], index)
    version = versions["train"] and f"{versions['train']} {data_args.max_train_samples}"
    told = {"train_counts": counts, "version": version}
    return AudioSplits(train, held_out.get("validation"), held_out.get("test"), index.names, **told)


def _number_counts(counts: ClipCounts, names: list[str], index: LabelIndex) -> ClipCounts:
    """Counts in the order of the classes of a data set, in that of the labels."""
    of_labels = np.zeros(len(index.names), np.int64)
    for name, count in zip(names, counts.of_labels):
        if (number := index.numbers.get(composed(name))) is not None:  # else a clip with it is an error
            of_labels[number] += count
    return ClipCounts(counts.clips, of_labels, counts.without_labels)


def _read_in_order(rows: IterableDataset) -> Iterator[dict[str, Any]]:
    for batch in rows.iter(batch_size=1):  # not by its own `__iter__`, which divides it among data workers
        yield {name: values[0] for name, values in batch.items()}


def _divide_files(rows: IterableDataset, source: str) -> IterableDataset:
    try:
        return rows.reshard()
    except READING_ERRORS as error:
        raise DataError(f"{source}: cannot be streamed ({describe_cause(error)}).") from error


def _open_splits(data_args: DataArguments) -> tuple[dict[str, IterableDataset], str | None, ClipCounts | None]:
    """The streams of train, validation and perhaps test, with their columns, what tells their version, and what there
    is of training clips, where the shards tell it."""
    dataset_name, folder = data_args.dataset_name, Path(data_args.dataset_name).expanduser()
    found = look_into(folder) if folder.is_dir() else None
    if found is not None and not found.parquet and builder_of(found) is None:
        raise DataError(
            f"{dataset_name}: expected Parquet files, tar archives or a list metadata.csv of sound files to stream, "
            f"found {'sound files such as ' + found.sounds[0] if found.sounds else 'none'}. Leave streaming out to "
            "read what lies on this disk."
        )
    try:
        builder = find_builder(dataset_name, folder, data_args.dataset_config_name, found)
        streams = (
            open_sound_streams(builder, dataset_name) if builder.name in BUILDERS else builder.as_streaming_dataset()
        )
    except DataError:
        raise
    except READING_ERRORS as error:
        raise DataError(f"{dataset_name}: cannot be streamed ({describe_cause(error)}).") from error
    splits = choose_splits(dataset_name, streams, data_args.split_names)
    needed = ["train"] if data_args.unlabelled else ["train", "validation"]
    if any(name not in splits for name in needed):
        raise DataError(f"{dataset_name}: expected splits {' and '.join(needed)}, got {', '.join(streams)}.")
    columns = [data_args.audio_column_name, *([] if data_args.unlabelled else [data_args.label_column_name])]
    expect_columns(dataset_name, list(splits["train"].features or {}), columns)
    of_train = name_splits(dataset_name, streams, data_args.split_names)["train"]
    of_train = of_train.split("+") if "train" in data_args.split_names else [of_train]
    try:
        return splits, version_of(builder), read_clip_counts(builder, of_train)
    except READING_ERRORS as error:
        raise DataError(f"{dataset_name}: cannot be streamed ({describe_cause(error)}).") from error


class _Rows(Table):
    """Some rows of a stream, which have no numbers that anybody knows: a clip is called by its path."""

    def where(self, row: int) -> str:
        audio = self.rows[int(row)][self.audio_column] or {}
        return f"{self.source} ({audio.get('path') or 'a clip without a path'})"


def _to_rows(
    rows: dict[str, list], data_args: DataArguments, label_feature: Any, index: LabelIndex, multi_label: bool
) -> dict[str, list]:
    audios, column = rows[data_args.audio_column_name], data_args.label_column_name
    if label_feature is None:
        return {"audio": audios}
    # For the look-up alone, so without the sounds.
    paths = [{"path": (audio or {}).get("path")} for audio in audios]
    features = Features({"audio": {"path": Value("string")}, column: label_feature})
    content = pa.table({"audio": paths, column: rows[column]}, schema=features.arrow_schema)
    info = DatasetInfo(features=features)
    table = _Rows(Dataset(content, info, fingerprint=""), data_args.dataset_name, label_column=column, is_whole=False)
    labels = read_labels(table, data_args.label_separator, multi_label)
    refuse_unknown({"": labels}, index, {"": table})
    return {"audio": audios, "labels": number_labels(labels, index, multi_label).to_pylist()}
