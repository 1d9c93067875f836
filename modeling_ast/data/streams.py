"""Data sets that are read while they arrive, for those that do not fit on a disk."""

from functools import partial
from typing import Any

from datasets import Audio, Dataset, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from modeling_ast.data.bad_clips import BadClips, ReplacedRows
from modeling_ast.data.label_tables import DataError, composed, read_label_table
from modeling_ast.data.sources import SPLIT_ALIASES, AudioSplits, DecodeAudio, class_names

SHUFFLE_BUFFER = 1000  # clips, not decoded


def load_streamed_splits(
    dataset_name: str,
    *,
    dataset_config_name: str | None = None,
    audio_column_name: str = "audio",
    label_column_name: str = "label",
    multi_label: bool = False,
    label_file: str | None = None,
    seed: int = 0,
) -> AudioSplits:
    """As `load_splits`, with a stream to train on; the held-out clips are kept on disk, in the cache of `datasets`.

    The stream's shards are shuffled, and then its clips within a window of 1,000 of them.

    Args:
        dataset_name: A data set on the Hub, or a folder of Parquet files, with splits train and validation.
        dataset_config_name: Configuration of a Hub data set.
        audio_column_name: Column with the sound.
        label_column_name: Column with the label or labels: names, class indices, or lists of either.
        multi_label: Whether a clip may have several labels.
        label_file: Label table, as `read_label_table` takes it. Needed where the data set does not name its classes.
        seed: Of the order.

    Raises:
        DataError: No such data set, a missing split or column, or labels that nothing names.
    """
    try:
        streams = load_dataset(dataset_name, dataset_config_name, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{dataset_name}: cannot be streamed ({' '.join(str(error).split())}).") from error
    splits = {SPLIT_ALIASES[name.lower()]: rows for name, rows in streams.items() if name.lower() in SPLIT_ALIASES}
    for name in ("train", "validation"):
        if name not in splits:
            raise DataError(f"{dataset_name}: expected splits train and validation, got {', '.join(streams)}.")
    for column in (audio_column_name, label_column_name):
        if column not in (splits["train"].features or {}):
            found = ", ".join(splits["train"].features or {})
            raise DataError(f"{dataset_name}: expected a column {column!r}, got {found}.")
    known_names = class_names(splits["train"].features[label_column_name])
    if label_file is not None:
        table = read_label_table(label_file)
        label_names, index = table.names, table.index_of()
    elif known_names is not None:
        label_names, index = known_names, {composed(name): number for number, name in enumerate(known_names)}
    else:
        raise DataError(f"{dataset_name}: a stream does not tell all its labels in advance; name them by label_file.")
    to_row = partial(
        _to_row,
        audio_column=audio_column_name,
        label_column=label_column_name,
        known_names=known_names,
        index=index,
        multi_label=multi_label,
    )
    # Not an audio feature: `datasets` would need torchcodec to write one.
    audio = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"audio": audio, "labels": [Value("int64")] if multi_label else Value("int64")})
    rows = {
        name: stream.cast_column(audio_column_name, Audio(decode=False)).map(
            to_row, remove_columns=list(stream.features), features=features
        )
        for name, stream in splits.items()
    }
    try:
        held_out = {name: _keep(stream) for name, stream in rows.items() if name != "train"}
    except DatasetGenerationError as error:
        raise DataError(f"{dataset_name}: {error.__cause__}") from error
    train = rows["train"].shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    return AudioSplits(train, held_out["validation"], held_out.get("test"), label_names)


def decode(
    rows: Dataset | IterableDataset, sampling_rate: int, bad_clips: BadClips | None = None
) -> Dataset | IterableDataset | ReplacedRows:
    """Rows with `waveform` and `labels`, read when asked for, of a table or of a stream.

    Args:
        rows: With `audio`, not decoded, and `labels`.
        sampling_rate: Of the waveforms, in Hz.
        bad_clips: Where clips that cannot be decoded are noted. In a table another clip stands in for each of them, a
            stream goes on without. `None`, or a limit of 0, raises an error when one is asked for.
    """
    bad_clips = bad_clips if bad_clips is not None and bad_clips.limit else None
    if isinstance(rows, IterableDataset):
        return rows.map(DecodeAudio(sampling_rate, bad_clips), batched=True, batch_size=1, remove_columns=["audio"])
    rows = rows.with_transform(DecodeAudio(sampling_rate))
    return rows if bad_clips is None else ReplacedRows(rows, bad_clips)


def _keep(stream: IterableDataset) -> Dataset:
    return Dataset.from_generator(partial(iter, stream), features=stream.features)


def _to_row(
    row: dict[str, Any],
    audio_column: str,
    label_column: str,
    known_names: list[str] | None,
    index: dict[str, int],
    multi_label: bool,
) -> dict[str, Any]:
    value = row[label_column]
    values = value if isinstance(value, list) else [value]
    names = [known_names[label] if known_names and isinstance(label, int) else str(label) for label in values]
    if not multi_label and len(names) != 1:
        raise DataError(f"Expected one label a clip, got {value!r} in column {label_column!r}.")
    if unknown := [name for name in names if name not in index]:
        raise DataError(f"The label {unknown[0]!r} of column {label_column!r} is not in the label table.")
    numbers = [index[name] for name in names]
    return {"audio": row[audio_column], "labels": numbers if multi_label else numbers[0]}
