"""Data sets from anywhere, all in the same rows: `audio` (not decoded) and `labels`.

A data set is data, never a code path: what differs between two of them is said by the arguments of `load_splits`.
"""

import csv
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Audio, ClassLabel, Dataset, load_dataset

from modeling_ast.audio import load_waveform
from modeling_ast.data.synthetic import LISTS, synthetic_folder

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
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


class DataError(ValueError):
    """A data set that is not as its arguments say. The message names the file, the entry and what was expected."""


@dataclass
class AudioSplits:
    """Rows `{"audio": {"path", "bytes"}, "labels": int or list of int}` for training, choosing and reporting."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    label_names: list[str]

    def __iter__(self) -> Iterable[tuple[str, Dataset]]:
        return ((name, split) for name in SPLITS if (split := getattr(self, name)) is not None)


def load_splits(
    dataset_name: str,
    *,
    dataset_config_name: str | None = None,
    audio_column_name: str = "audio",
    label_column_name: str = "label",
    audio_dir: str | None = None,
    label_separator: str = ",",
    multi_label: bool = False,
    fold_column_name: str | None = None,
    eval_fold: int | None = None,
    split_column_name: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    cache_dir: str | None = None,
) -> AudioSplits:
    """Rows of a data set and its label names.

    Where the data has no validation split of its own (split names, lists, a split column or a fold), a part of the
    training rows becomes one.

    Args:
        dataset_name: "synthetic" (generated sounds); a folder with a sub-folder a class (with `validation_list.txt`
            and `testing_list.txt` where they are there), or with such folders below train, validation and test; a CSV
            file; a Parquet file or a folder of them; else the name of a data set on the Hub.
        dataset_config_name: Configuration of a Hub data set.
        audio_column_name: Column with the sound: a path in a CSV file, an audio feature elsewhere.
        label_column_name: Column with the label or labels: names, class indices, or lists of either.
        audio_dir: Where the paths of a CSV file start, relative to the file; `None` means beside it.
        label_separator: Between the labels of one clip in a CSV file, if `multi_label`.
        multi_label: Whether a clip may have several labels; `labels` is then a list.
        fold_column_name: Column with the number of the fold.
        eval_fold: The fold to hold out: validation. All others train.
        split_column_name: Column that says train, validation or test.
        validation_fraction: Share of the training rows to hold out where the data holds out none.
        seed: Of that choice.
        cache_dir: For generated sounds; `None` means the user's cache.

    Raises:
        DataError: No such data set, or not as described: a missing column, file or fold, no audio, no labels.
    """
    if not 0 < validation_fraction < 1:
        raise DataError(f"Expected validation_fraction between 0 and 1, got {validation_fraction}.")
    if (fold_column_name is None) != (eval_fold is None):
        raise DataError("Expected fold_column_name and eval_fold together, got one of them.")
    if eval_fold is not None and split_column_name is not None:
        raise DataError("Expected a fold or a split column, got both.")
    raw = _read(dataset_name, dataset_config_name, audio_column_name, label_column_name, audio_dir, cache_dir)
    splits = {SPLIT_ALIASES[name.lower()]: rows for name, rows in raw.items() if name.lower() in SPLIT_ALIASES}
    if "train" not in splits:
        raise DataError(f"{dataset_name}: expected a split called train, got {', '.join(raw)}.")
    needed = [audio_column_name, label_column_name, fold_column_name, split_column_name]
    for name, rows in splits.items():
        for column in filter(None, needed if name == "train" else needed[:2]):
            if column not in rows.column_names:
                raise DataError(f"{dataset_name}: expected a column {column!r}, got {', '.join(rows.column_names)}.")
        if len(rows) == 0:
            raise DataError(f"{dataset_name}: expected clips in split {name}, got none.")

    # Rows first and splits after: selecting from rows copies no audio, adding a column to a selection would.
    labels = {
        name: _read_labels(rows, label_column_name, label_separator, multi_label) for name, rows in splits.items()
    }
    label_names = _find_label_names(splits["train"], label_column_name, labels.values())
    index = {name: number for number, name in enumerate(label_names)}
    rows = {}
    for name in splits:
        numbers = [[index[label] for label in clip] for clip in labels[name]]
        rows[name] = _to_rows(splits[name], audio_column_name, numbers, multi_label)

    if eval_fold is not None:
        folds = [str(fold) for fold in splits["train"][fold_column_name]]
        if str(eval_fold) not in folds:
            raise DataError(f"Expected eval_fold to be one of {', '.join(sorted(set(folds)))}, got {eval_fold}.")
        parts = ["validation" if fold == str(eval_fold) else "train" for fold in folds]
        rows |= _select(rows["train"], parts)
    elif split_column_name is not None:
        parts = [str(part).lower() for part in splits["train"][split_column_name]]
        for number, part in enumerate(parts):
            if part not in SPLIT_ALIASES:
                expected = ", ".join(SPLIT_ALIASES)
                raise DataError(f"Expected {split_column_name} to be one of {expected}, got {part!r} in row {number}.")
        rows = _select(rows["train"], [SPLIT_ALIASES[part] for part in parts])
    if "train" not in rows:
        raise DataError(f"{dataset_name}: expected clips to train on, got {', '.join(rows)} alone.")
    if "validation" not in rows:
        try:  # a plain draw: a stratified one would need every class twice
            parts = rows["train"].train_test_split(test_size=validation_fraction, seed=seed)
        except ValueError as error:
            raise DataError(f"{dataset_name}: too few clips to hold some out ({error}).") from error
        rows |= {"train": parts["train"], "validation": parts["test"]}
        logger.warning(
            f"{dataset_name} holds out nothing to choose the epoch on: {len(parts['test'])} of its training clips, "
            "drawn at random, do not train but validate (validation_fraction)."
        )
    return AudioSplits(rows["train"], rows["validation"], rows.get("test"), label_names)


def _read(
    dataset_name: str,
    dataset_config_name: str | None,
    audio_column_name: str,
    label_column_name: str,
    audio_dir: str | None,
    cache_dir: str | None,
) -> dict[str, Dataset]:
    """The data set as it is, a table a split."""
    path = synthetic_folder(cache_dir=cache_dir) if dataset_name == "synthetic" else Path(dataset_name).expanduser()
    is_local = path.is_absolute() or dataset_name.startswith(".") or path.suffix in (".csv", ".parquet")
    if is_local and not path.exists():
        raise DataError(f"{dataset_name}: no such file or folder.")
    if audio_dir is not None and path.suffix != ".csv":
        raise DataError(f"Expected a CSV file with audio_dir, got {dataset_name}.")
    if dataset_config_name is not None and path.exists():
        raise DataError(f"Expected a data set on the Hub with dataset_config_name, got {dataset_name}.")
    if path.suffix == ".csv":
        return _read_csv(path, audio_column_name, audio_dir)
    if path.is_dir() and not any(path.rglob("*.parquet")):
        if (audio_column_name, label_column_name) != ("audio", "label"):
            raise DataError(f"{dataset_name}: a folder a class has no columns, so that their names have no effect.")
        return _read_class_folders(path)
    try:
        if path.suffix == ".parquet":
            return load_dataset("parquet", data_files=str(path))
        return load_dataset(str(path) if path.is_dir() else dataset_name, dataset_config_name)
    except (OSError, ValueError, RuntimeError, pyarrow.ArrowException) as error:  # missing, out of reach, or broken
        reason = " ".join(str(error).split())
        if path.exists():
            raise DataError(f"{dataset_name}: cannot be read as Parquet ({reason}).") from error
        raise DataError(f"{dataset_name}: no such file or folder, nor to be had from the Hub ({reason}).") from error


def _select(rows: Dataset, parts: list[str]) -> dict[str, Dataset]:
    """The rows of each part."""
    return {
        part: rows.select([number for number, own in enumerate(parts) if own == part])
        for part in SPLITS
        if part in parts
    }


def _read_class_folders(folder: Path) -> dict[str, Dataset]:
    """Sound files below a folder a class; the split from the lists of Speech Commands, or from a folder a split."""
    names = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()}
    split_folders = {SPLIT_ALIASES[name]: entry for name, entry in names.items() if name in SPLIT_ALIASES}
    if "train" in split_folders and len(split_folders) == len(names):  # train alone may be the sound of one
        return {split: _read_classes(entry)["train"] for split, entry in split_folders.items()}
    return _read_classes(folder)


def _read_classes(folder: Path) -> dict[str, Dataset]:
    held_out = {}
    for split, list_name in LISTS.items():
        if (folder / list_name).is_file():
            for number, line in enumerate((folder / list_name).read_text(encoding="utf-8").split("\n"), start=1):
                if line.strip():
                    if not (folder / line.strip()).is_file():
                        raise DataError(f"{folder / list_name}, line {number}: no file {line.strip()!r}.")
                    held_out[os.path.normpath(line.strip())] = split
    files = {split: {"audio": [], "label": []} for split in SPLITS}
    for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if class_folder.name.startswith((".", "_")):  # such as the _background_noise_ of Speech Commands
            logger.warning(f"{class_folder} is not taken for a class: its name starts with {class_folder.name[0]!r}.")
            continue
        found = sorted(_find_sounds(class_folder))
        if not found:
            logger.warning(f"{class_folder} holds no sound files ({', '.join(AUDIO_SUFFIXES)}), and is no class.")
        for file in found:
            split = files[held_out.pop(os.path.relpath(file, folder), "train")]
            split["audio"].append(file)
            split["label"].append(class_folder.name)
    if held_out:
        raise DataError(
            f"{folder}: held out by a list, but no sound file of a class: {', '.join(list(held_out)[:3])}."
        )
    if not files["train"]["audio"]:
        raise DataError(
            f"{folder}: expected a sub-folder a class with sound files ({', '.join(AUDIO_SUFFIXES)}) in it, found "
            "none."
        )
    return {split: Dataset.from_dict(columns) for split, columns in files.items() if columns["audio"]}


def _find_sounds(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (os.path.join(parent, name) for name in names if name.lower().endswith(AUDIO_SUFFIXES))


def _read_csv(path: Path, audio_column_name: str, audio_dir: str | None) -> dict[str, Dataset]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader, rows = csv.DictReader(file, strict=True), []
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames)} columns.")
                rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {reader.line_num + 1}: not CSV in UTF-8 ({error}).") from error
        names = reader.fieldnames or ()
    if audio_column_name not in names:
        raise DataError(f"{path}: expected a column {audio_column_name!r}, got {', '.join(names)}.")
    if not rows:
        raise DataError(f"{path}: holds no rows.")
    columns = {name: [row[name] for row in rows] for name in names}
    root = path.parent / (audio_dir or "")
    columns[audio_column_name] = [str((root / name).resolve()) for name in columns[audio_column_name]]
    missing = [number for number, name in enumerate(columns[audio_column_name]) if not os.path.isfile(name)]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(rows)} files are not there, such as row {missing[0] + 1}: "
            f"{columns[audio_column_name][missing[0]]}. Is audio_dir right?"
        )
    return {"train": Dataset.from_dict(columns)}


def _class_names(feature: Any) -> list[str] | None:
    feature = getattr(feature, "feature", feature)  # of a list: what it is a list of
    return feature.names if isinstance(feature, ClassLabel) else None


def _read_labels(rows: Dataset, column: str, separator: str, multi_label: bool) -> list[list[str]]:
    """The names of each clip's labels."""
    names = _class_names(rows.features[column])
    read = []
    for number, value in enumerate(rows[column]):
        if isinstance(value, str) and multi_label:
            value = [label.strip() for label in value.split(separator) if label.strip()]
        values = value if isinstance(value, list) else [value]
        # -1 is what data sets on the Hub write where a label is not told.
        if -1 in values or (not multi_label and (len(values) != 1 or values[0] in (None, ""))):
            expected = "labels" if multi_label else "one label a clip"
            raise DataError(f"Expected {expected}, got {value!r} in row {number} of column {column!r}.")
        read.append([names[label] if names else str(label) for label in values])
    is_multi_hot = len(read) > 1 and len({len(clip) for clip in read}) == 1 and len(read[0]) > 1
    if is_multi_hot and not names and {label for clip in read for label in clip} <= {"0", "1"}:
        raise DataError(f"Expected lists of labels in column {column!r}, got what looks like multi-hot vectors.")
    return read


def _find_label_names(rows: Dataset, column: str, labels: Iterable[list[list[str]]]) -> list[str]:
    found = {label for clips in labels for clip in clips for label in clip}
    names = _class_names(rows.features[column])
    if names is None:
        # Class indices without names keep their order.
        names = sorted(found, key=lambda name: (int(name), name) if name.isdecimal() else (float("inf"), name))
    if len(names) < 2:
        raise DataError(f"Expected at least two labels in column {column!r}, got {', '.join(names) or 'none'}.")
    return names


def _to_rows(rows: Dataset, audio_column_name: str, labels: list[list[int]], multi_label: bool) -> Dataset:
    rows = rows.select_columns([audio_column_name])
    if audio_column_name != "audio":
        rows = rows.rename_column(audio_column_name, "audio")
    # Not decoded here: `datasets` would need torchcodec and FFmpeg.
    rows = rows.cast_column("audio", Audio(decode=False))
    return rows.add_column("labels", labels if multi_label else [clip[0] for clip in labels])


class DecodeAudio:
    """Dataset transform: rows to `waveform` (float32 tensors of shape (samples,)) and `labels`, read when asked for.

    Args:
        sampling_rate: Of the waveforms, in Hz.
    """

    def __init__(self, sampling_rate: int):
        self.sampling_rate = sampling_rate

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        waveforms = [
            load_waveform(audio["bytes"] or audio["path"], self.sampling_rate, audio["path"])
            for audio in rows["audio"]
        ]
        return {"waveform": waveforms, "labels": rows["labels"]}
