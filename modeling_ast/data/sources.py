"""Data sets from anywhere, all in the same rows: `audio` (not decoded) and `labels`.

A data set is data, never a code path: what differs between two of them is said by the arguments of `load_splits`.
Columns stay in Arrow from the file to the rows, so that two million clips fit into memory as well as two thousand.
"""

import ast
import json
import logging
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Audio, ClassLabel, Dataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from modeling_ast.audio import AUDIO_SUFFIXES, AudioError, load_waveform
from modeling_ast.data.bad_clips import BadClips
from modeling_ast.data.folders import FolderContents, group_by_folder, look_into, visible, warn_left_out
from modeling_ast.data.labels import (
    DataError,
    composed,
    find_control,
    open_text,
    read_label_table,
    read_rows,
)
from modeling_ast.data.synthetic import LISTS, synthetic_folder

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")  # with columns, one of them of paths
LIST_SUFFIXES = (*TABLE_SUFFIXES, ".json")  # whose rows hold paths
FILE_SUFFIXES = (*LIST_SUFFIXES, ".parquet")
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
ROWS_AT_ONCE = 100_000  # of a list, while they are Python objects
# A column that says where in its file a clip starts or ends: "start", "end_time", "Begin Time (s)", "offset".
_PART = re.compile(
    r"(t|time|segment|event)?_?(start|begin|onset|offset|end|stop)(_?(time|seconds|secs?|s|ms|samples?|frames?))*"
)


@dataclass
class AudioSplits:
    """Rows `{"audio": {"path", "bytes"}, "labels": int or list of int}` for training, choosing and reporting.

    Data that are evaluated alone may lack any of the three; where they name no splits, all rows are in `train`.
    """

    train: Dataset | None
    validation: Dataset | None
    test: Dataset | None
    label_names: list[str]
    ignore_length: bool = False  # for `load_waveform`, of all clips

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
    eval_fold: int | str | None = None,
    split_column_name: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    label_file: str | None = None,
    validation_fraction: float = 0.1,
    max_missing: int = 0,
    seed: int = 0,
    cache_dir: str | None = None,
    model_labels: Sequence[str] | None = None,
    leave_out_unknown_labels: bool = False,
) -> AudioSplits:
    """Rows of a data set and its label names.

    With `model_labels` the data are to be evaluated alone: they need no training clips, nothing is drawn from them to
    be held out, and `test_file` and `validation_file` replace clips that the data hold out themselves.

    Where the data has no validation split of its own (split names, lists, a split column, a fold or a file), a part of
    the training rows becomes one.

    Args:
        dataset_name: "synthetic" (generated sounds); a folder with a sub-folder a class (with `validation_list.txt`
            and `testing_list.txt` where they are there), or with such folders below train, validation and test; a
            list: a table of text (.csv, .tsv, .txt; see `read_rows`) or JSON lines (.jsonl), or a JSON file as the
            original reads it, `{"data": [{"wav": path, "labels": "mid1,mid2"}, ...]}`, other keys ignored; a Parquet
            file or a folder of them; else the name of a data set on the Hub.
        dataset_config_name: Configuration of a Hub data set.
        audio_column_name: Column with the sound: a path in a list, an audio feature elsewhere.
        label_column_name: Column with the label or labels: names, class indices, or lists of either, also such lists
            as text (`['a', 'b']`).
        audio_dir: Where the paths of a list start, relative to the list; `None` means beside it, and for the
            original's JSON file the working directory (as in the original) or else beside it.
        label_separator: Between the labels of one clip in a list, if `multi_label`, and in the original's JSON file.
            Display names may hold a comma ("Child speech, kid speaking"), so what a comma separates had better be
            mids.
        multi_label: Whether a clip may have several labels; `labels` is then a list.
        fold_column_name: Column with the number or the name of the fold (a kit, a speaker).
        eval_fold: The fold to hold out: validation. All others train.
        split_column_name: Column that says train, validation or test.
        validation_file: A list or a Parquet file of the clips to choose on; those of `dataset_name` then train.
        test_file: The same for the clips to report on.
        label_file: Label table, as `read_label_table` takes it: what the labels are called and their order. The data
            may name them by mid, display name or index. `None` means the labels that the data holds, sorted.
        validation_fraction: Share of the training rows to hold out where the data holds out none.
        max_missing: Files of training clips in a list that may not be there; their rows stay.
        seed: Of that choice.
        cache_dir: For generated sounds; `None` means the user's cache.
        model_labels: What a trained model calls its outputs, in their order: the labels of the result.
        leave_out_unknown_labels: What happens to labels that are not among those of the model: an error, or they are
            left out, with the clip where it can have one label alone.

    Raises:
        DataError: No such data set, or not as described: a missing column, file or fold, no audio, no labels, a label
            that the table does not hold or the model does not know, columns that say which part of a file is a clip.
    """
    if not 0 < validation_fraction < 1:
        raise DataError(f"Expected validation_fraction between 0 and 1, got {validation_fraction}.")
    if eval_fold is not None and fold_column_name is None:
        raise DataError("Expected fold_column_name with eval_fold, got eval_fold alone.")
    if fold_column_name is not None and eval_fold is None:
        raise DataError(
            "Expected eval_fold with fold_column_name, the fold to hold out, got fold_column_name alone. "
            "`modeling-ast folds` holds out each in turn, and needs none."
        )
    if leave_out_unknown_labels and model_labels is None:
        raise DataError("leave_out_unknown_labels has an effect on the evaluation of a trained model alone.")
    if eval_fold is not None and split_column_name is not None:
        raise DataError("Expected a fold or a split column, got both.")
    files = {split: name for split, name in (("validation", validation_file), ("test", test_file)) if name is not None}
    if files and model_labels is None and (eval_fold is not None or split_column_name is not None):
        names = " and ".join(f"{split}_file" for split in files)
        raise DataError(f"Expected {names} or a fold or split column, got both.")
    if audio_dir is not None and not any(_suffix(name) in LIST_SUFFIXES for name in (dataset_name, *files.values())):
        raise DataError(f"Expected a list ({', '.join(LIST_SUFFIXES)}) with audio_dir, got {dataset_name}.")
    columns = [audio_column_name, label_column_name]
    for name in files.values():  # a misspelt column is told before any clip is looked for
        if _suffix(name) in TABLE_SUFFIXES and Path(name).expanduser().is_file():
            next(_read_columns(Path(name).expanduser(), columns), None)

    read = partial(
        _read,
        audio_column=audio_column_name,
        label_column=label_column_name,
        audio_dir=audio_dir,
        max_missing=max_missing,
    )
    held_out_by = fold_column_name or split_column_name
    tables = read(dataset_name, config_name=dataset_config_name, held_out_by=held_out_by, cache_dir=cache_dir)
    for split, name in files.items():
        if split in tables and model_labels is None:
            raise DataError(f"Expected the {split} clips from {dataset_name} or from {split}_file, got both.")
        if split in tables:
            logger.warning(f"{name} takes the place of the {split} clips of {dataset_name}.")
        if _suffix(name) not in FILE_SUFFIXES:
            raise DataError(f"Expected {split}_file to be a file {', '.join(FILE_SUFFIXES)}, got {name}.")
        tables[split] = read(name, max_missing=0)["train"]
    has_columns = any(table.has_columns for table in tables.values())
    if not has_columns and (audio_column_name, label_column_name) != ("audio", "label"):
        raise DataError(
            f"{dataset_name}: a folder a class has no columns, nor has the original's JSON file, so that their names "
            "have no effect."
        )
    for split, table in tables.items():
        if len(table.rows) == 0:
            raise DataError(f"{table.source}: expected clips in split {split}, got none.")

    if "train" not in tables and (model_labels is None or held_out_by is not None):
        raise DataError(f"{dataset_name}: expected a split called train, got {', '.join(tables)}.")

    # Rows first and splits after: selecting from rows copies no audio, adding a column to a selection would.
    labels = {split: _read_labels(table, label_separator, multi_label) for split, table in tables.items()}
    if model_labels is not None:
        label_names, index = list(model_labels), _index_of_model(model_labels, label_file)
        _report_unknown(labels, index, tables, dataset_name, leave_out_unknown_labels)
    elif label_file is None:
        label_names = _find_label_names(tables["train"], labels.values())
        index, among = {name: number for number, name in enumerate(label_names)}, f"among those of {dataset_name}"
    else:
        label_table = read_label_table(label_file)
        label_names, index, among = label_table.names, label_table.index_of(), f"in the label table {label_file}"
    index = {composed(name): number for name, number in index.items()}  # as `_read_labels` gives them
    rows = {}
    for split, table in tables.items():
        if model_labels is not None:
            numbers, lengths = _look_up_known(labels[split], index, multi_label)
        else:
            numbers, lengths = _look_up(labels[split], index, table, among), labels[split].lengths
        rows[split] = _to_rows(table, _to_lists(numbers, lengths) if multi_label else numbers)
    of_files = {split: rows[split] for split in files}
    if eval_fold is not None:
        rows |= _hold_out_fold(rows["train"], tables["train"], fold_column_name, eval_fold)
    elif split_column_name is not None:
        rows = _split_by_column(rows["train"], tables["train"], split_column_name)
    if model_labels is not None:
        known = {split: _with_known_label(part) for split, part in (rows | of_files).items()}
        rows = {split: part for split, part in known.items() if len(part)}
        if not rows:
            raise DataError(f"{dataset_name}: expected clips with labels of the model, got none.")
        return AudioSplits(*(rows.get(split) for split in SPLITS), label_names)
    if "train" not in rows:
        raise DataError(f"{dataset_name}: expected clips to train on, got {', '.join(rows)} alone.")
    if "validation" not in rows:
        rows |= _hold_out_some(rows["train"], dataset_name, validation_fraction, seed)
    if max_missing and _suffix(dataset_name) in LIST_SUFFIXES:
        for split in rows.keys() - {"train"}:
            _expect_files(rows[split], dataset_name, split)
    return AudioSplits(rows["train"], rows["validation"], rows.get("test"), label_names)


# Reading: a table a split, its columns as they are


@dataclass
class _Table:
    """The clips of one split as they are: which columns hold what, and what to call a row in an error."""

    rows: Dataset
    source: str
    audio_column: str = "audio"
    label_column: str = "label"
    unit: str = "row"
    has_columns: bool = True  # that one may choose by their names
    has_separators: bool = False  # between labels, also where one is expected

    def where(self, row: int) -> str:
        feature = self.rows.features[self.audio_column]
        path = self.rows[int(row)][self.audio_column] if isinstance(feature, Value) else None
        return f"{self.source}, {self.unit} {row + 1}" + (f" ({path})" if path else "")

    def column(self, name: str) -> pa.Array:
        return self.rows.select_columns([name]).with_format("arrow")[:][name].combine_chunks()


def _suffix(name: str | Path) -> str:
    """In lower case, as `CLIPS.CSV` is a list too."""
    return Path(name).suffix.lower()


def _read(
    name: str,
    *,
    audio_column: str,
    label_column: str,
    audio_dir: str | None,
    max_missing: int,
    config_name: str | None = None,
    held_out_by: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, _Table]:
    path = synthetic_folder(cache_dir=cache_dir) if name == "synthetic" else Path(name).expanduser()
    is_local = path.is_absolute() or name.startswith(".") or _suffix(path) in FILE_SUFFIXES
    if is_local and not path.exists():
        raise DataError(f"{name}: no such file or folder.")
    if config_name is not None and path.exists():
        raise DataError(f"Expected a data set on the Hub with dataset_config_name, got {name}.")
    if path.exists() and not path.is_dir() and _suffix(path) not in FILE_SUFFIXES:
        raise DataError(f"{name}: expected a folder or a file {', '.join(FILE_SUFFIXES)}.")
    columns = [audio_column, label_column, *filter(None, [held_out_by])]
    if _suffix(path) in TABLE_SUFFIXES:
        return {"train": _Table(_read_table(path, columns, audio_dir, max_missing), name, audio_column, label_column)}
    if _suffix(path) == ".json":
        tables = {"train": _read_json(path, audio_dir, max_missing)}
    elif path.is_dir() and ((found := look_into(path)).are_classes or not found.parquet):
        splits = _read_class_folders(path, found)
        tables = {split: _Table(rows, name, has_columns=False) for split, rows in splits.items()}
    else:
        splits = _load_dataset(name, path, config_name)
        tables = {split: _Table(rows, name, audio_column, label_column) for split, rows in splits.items()}
    for split, table in tables.items():
        needed = [table.audio_column, table.label_column, *(columns[2:] if split == "train" else [])]
        _expect_columns(name, table.rows.column_names, needed)
        if isinstance(table.rows.features[table.audio_column], Value):  # a path: the file may hold other clips too
            _refuse_parts(name, set(table.rows.column_names) - set(needed))
    return tables


def _expect_columns(source: str | Path, found: list[str], needed: list[str], values: Sequence[Any] = ()) -> None:
    """
    Args:
        values: Of the first row, where they are known.
    """
    for column in needed:
        if column not in found:
            hint = ""
            if sum(value in ("0", "1", 0, 1) for value in values) > 1:
                hint = " Is there a column a class? Write the names of a clip's classes into one, such as 'dog,cat'."
            raise DataError(f"{source}: expected a column {column!r}, got {', '.join(found) or 'none'}.{hint}")
        if found.count(column) > 1:
            raise DataError(f"{source}: the column {column!r} is there {found.count(column)} times.")


def _refuse_parts(source: str | Path, others: Iterable[str]) -> None:
    if parts := [name for name in others if _PART.fullmatch(re.sub(r"[^a-z]+", "_", name.lower()).strip("_"))]:
        raise DataError(
            f"{source}: expected whole files, got columns that seem to say which part of a file is the clip "
            f"({', '.join(sorted(parts))}). Cut the parts into files of their own or, where each file is such a part "
            "already, leave these columns out."
        )


def _load_dataset(name: str, path: Path, config_name: str | None) -> dict[str, Dataset]:
    """Parquet, or the Hub."""
    try:
        if _suffix(path) == ".parquet":
            raw = load_dataset("parquet", data_files=str(path))
        else:
            raw = load_dataset(str(path) if path.is_dir() else name, config_name)
    except (OSError, ValueError, RuntimeError, ImportError, pa.ArrowException, DatasetGenerationError) as error:
        refuse_sound_files(name, error)
        # Missing, out of reach, or broken.
        reason = " ".join(str(error.__cause__ if isinstance(error, DatasetGenerationError) else error).split())
        if path.exists():
            raise DataError(f"{name}: cannot be read as Parquet ({reason}).") from error
        raise DataError(f"{name}: no such file or folder, nor to be had from the Hub ({reason}).") from error
    splits = {split: raw[own] for split, own in name_splits(name, raw).items()}
    if not splits:
        raise DataError(f"{name}: expected splits called {', '.join(SPLITS)}, got {', '.join(raw)}.")
    return splits


def refuse_sound_files(name: str, error: Exception) -> None:
    """Say what it means that `datasets` wants torchcodec.

    Args:
        name: Of the data set.
        error: What `datasets` raised, or what that has for its cause.

    Raises:
        DataError: It does.
    """
    if not any("torchcodec" in str(each) for each in (error, error.__cause__)):
        return
    raise DataError(
        f"{name}: expected Parquet, found sound files or tar archives of them (AudioFolder or WebDataset), which "
        "`datasets` reads with torchcodec alone. Install it with FFmpeg, or download the data set (hf download "
        f"--repo-type dataset {name}), and give a folder a class or a CSV file with the paths and labels."
    ) from error


def _read_class_folders(folder: Path, found: FolderContents) -> dict[str, Dataset]:
    """Sound files below a folder a class; the split from the lists of Speech Commands, or from a folder a split.

    Raises:
        DataError: The folders may be meant as splits or as classes, or they are neither.
    """
    if found.metadata:
        raise DataError(_describe_metadata(folder, found.metadata))
    if not found.sounds and found.archives:
        raise DataError(
            f"{folder}: expected sound files or Parquet files, found {found.describe()}, which are not read. Unpack "
            "them (tar -xf), and list their sounds and labels in a CSV file."
        )
    if found.parquet:
        logger.warning(
            f"{folder}: the sounds in its folders are read, and not the {len(found.parquet)} Parquet file(s) beside "
            f"them, such as {found.parquet[0]}."
        )
    warn_left_out(folder, found.others)
    groups = dict.fromkeys(visible(entry.name for entry in os.scandir(folder) if entry.is_dir()), ())
    groups |= group_by_folder(found.sounds)
    if not (split_folders := _find_split_folders(folder, groups)):
        return _read_classes(folder, groups, read_lists(folder))
    places = (folder, *(folder / name for name in split_folders.values()))
    if lists := [place / name for place in places for name in LISTS.values() if (place / name).is_file()]:
        raise DataError(f"{folder}: expected {lists[0]} or folders {', '.join(split_folders.values())}, got both.")
    return {
        split: _read_classes(folder / name, group_by_folder(groups[name]), {})["train"]
        for split, name in split_folders.items()
    }


def _describe_metadata(folder: Path, metadata: list[str]) -> str:
    files = {_split_of(Path(path).parent.name): path for path in metadata}
    lists = [f"dataset_name {folder / files.get('train', metadata[0])}"]
    lists += [f"{split}_file {folder / files[split]}" for split in SPLITS[1:] if split in files and "train" in files]
    return (
        f"{folder}: expected a sub-folder a class, found sound files whose labels {metadata[0]} tells (an "
        f"AudioFolder). Read such a list itself: {', '.join(lists)}, audio_column_name file_name, and "
        "its label_column_name."
    )


def _split_of(name: str) -> str | None:
    return SPLIT_ALIASES.get(name.lower())


def name_splits(source: str | Path, names: Iterable[str]) -> dict[str, str]:
    """What the source calls each of the splits that it has, among other names.

    Raises:
        DataError: Two names of one split.
    """
    splits = {}
    for name in names:
        if (split := _split_of(name)) is not None and splits.setdefault(split, name) != name:
            raise DataError(f"{source}: expected one {split} split, got {splits[split]} and {name}.")
    return splits


def _find_split_folders(folder: Path, groups: dict[str, list[str]]) -> dict[str, str]:
    """The folder of each split; none where the folders are classes, one of which may be called `train` or `test`.

    A split holds folders of sounds; a class holds sounds. What lies beside splits is passed over.

    Args:
        folder: Of them all.
        groups: Its folders, each with the sounds below it.

    Raises:
        DataError: They may be meant as either.
    """
    named = [name for name in groups if _split_of(name) is not None]
    beside = [name for name in groups if groups[name] and name not in named and not name.startswith("_") and name]
    nested = [name for name in named if groups[name] and all(os.sep in path for path in groups[name])]
    if not named or (beside and not nested and len(named) == 1):
        return {}
    splits = name_splits(folder, sorted(named))
    classes = {name for each in nested for name in group_by_folder(groups[each])}
    if beside and not ("train" in splits and len(nested) > 1 and classes.isdisjoint(beside)):
        raise DataError(
            f"{folder}: expected folders of splits or of classes, got what may be both, {', '.join(named)} beside "
            f"{', '.join(beside[:3])}. If {named[0]} is a split, move what is none elsewhere; if it is a class, "
            "put its sounds into no folders of their own, or list all clips in a CSV file."
        )
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    if others := sorted((folders | groups.keys()) - set(named)):
        counts = [
            f"{name or 'files'} ({len(groups[name])} of sounds)" if groups.get(name) else name for name in others
        ]
        logger.warning(f"{folder}: beside {', '.join(named)}, passed over as no split: {', '.join(counts)}.")
    return {split: splits[split] for split in SPLITS if split in splits}


def _read_classes(folder: Path, groups: dict[str, list[str]], held_out: dict[str, str]) -> dict[str, Dataset]:
    files = {split: {"audio": [], "label": []} for split in SPLITS}
    for name, paths in sorted(groups.items()):
        if name.startswith("_"):  # such as the _background_noise_ of Speech Commands
            logger.warning(f"{folder / name} is not taken for a class: its name starts with '_'.")
            continue
        if name == "":
            logger.warning(
                f"{folder}: {len(paths)} sound file(s) in no class folder are left out, such as {paths[0]}."
            )
            continue
        if not paths:
            logger.warning(f"{folder / name} holds no sound files ({', '.join(AUDIO_SUFFIXES)}), and is no class.")
        for path in paths:
            split = files[held_out.pop(os.path.join(name, path), "train")]
            split["audio"].append(os.path.join(folder, name, path))
            # Some systems write an accent into its letter, others beside it.
            split["label"].append(unicodedata.normalize("NFC", name))
    if held_out:
        raise DataError(
            f"{folder}: held out by a list, but no sound file of a class: {', '.join(list(held_out)[:3])}."
        )
    if not any(columns["audio"] for columns in files.values()):
        raise DataError(
            f"{folder}: expected a sub-folder a class with sound files ({', '.join(AUDIO_SUFFIXES)}) in it, found "
            "none."
        )
    try:
        return {split: Dataset.from_dict(columns) for split, columns in files.items() if columns["audio"]}
    except UnicodeEncodeError as error:
        raise DataError(f"{folder}: expected names of files and folders in UTF-8, got {error.object!r}.") from error


def read_lists(folder: Path) -> dict[str, str]:
    """Split of each clip that `validation_list.txt` and `testing_list.txt` of a folder hold out, by relative path.

    Raises:
        DataError: A list names a file that is not there, or cannot be read (`open_text`).
    """
    held_out = {}
    for split, list_name in LISTS.items():
        if (path := folder / list_name).is_file():
            with open_text(path) as file:
                for number, line in enumerate(file, start=1):
                    if name := line.strip():
                        ways = (way for way in _ways_to_write(name) if os.path.isfile(folder / way))
                        if (way := next(ways, None)) is None:
                            raise DataError(f"{path}, line {number}: no file {name!r}.")
                        held_out[os.path.normpath(way)] = split
    return held_out


def _read_table(path: Path, columns: list[str], audio_dir: str | None, max_missing: int) -> Dataset:
    """The named columns of a list, the first of them the paths of its sounds."""
    columns, parts = list(dict.fromkeys(columns)), []
    rows = _read_columns(path, columns)
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


def _read_columns(path: Path, columns: list[str]) -> Iterator[list[Any]]:
    """What stands in the named columns of each row of a list."""
    if _suffix(path) == ".jsonl":
        for number, row in _read_json_lines(path):
            _expect_columns(f"{path}, line {number}", list(row), columns, list(row.values()))
            _refuse_parts(path, row.keys() - set(columns))
            values = (row[column] for column in columns)
            yield [value.strip() if isinstance(value, str) else value for value in values]
        return
    rows = read_rows(path)
    _, names = next(rows, (0, []))
    first = [row for _, row in islice(rows, 1)]
    _expect_columns(path, names, columns, *first)
    _refuse_parts(path, set(names) - set(columns))
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


def _read_json(path: Path, audio_dir: str | None, max_missing: int) -> _Table:
    files, labels = zip(*read_data_json(path))
    roots = [Path.cwd(), path.parent] if audio_dir is None else [path.parent / audio_dir]
    paths = _find_files(pa.chunked_array([pa.array(files, pa.string())]), roots, path, "entry", max_missing)
    rows = Dataset(pa.table({"wav": paths, "labels": pa.array(labels, pa.string())}))
    return _Table(rows, str(path), "wav", "labels", unit="entry", has_columns=False, has_separators=True)


def read_data_json(path: Path) -> list[tuple[str, str]]:
    """`wav` and `labels` of each entry of a data file in the original's format, `{"data": [{"wav", "labels"}, ...]}`.

    Other keys are ignored. Comment lines at the top, such as the original's own sample has, are passed over.

    Raises:
        DataError: No JSON, a key that is there twice, an entry without the two keys, or with keys that say which part
            of its file it is.
    """
    try:
        with open_text(path) as file:
            text = file.read()
        # Line numbers in errors stay right.
        text = re.sub(r"\A(\s*(#|//).*\n)+", lambda comment: "\n" * comment.group().count("\n"), text)
        content = json.loads(text, object_pairs_hook=partial(_to_entry, path=path))
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
        if not (isinstance(entry, tuple) and _is_text(entry[0]) and _is_text(entry[1])):
            raise DataError(f"{path}, entry {number}: expected wav and labels, both text, got {entry}.")
    return entries


def _is_text(value: Any) -> bool:
    """JSON can spell half a character, `\\ud800`, which is none."""
    return isinstance(value, str) and (value.isascii() or not re.search("[\ud800-\udfff]", value))


def _to_entry(pairs: list[tuple[str, Any]], path: Path) -> dict | tuple:
    """While the file is read: a pair takes a fifth of the memory of a dictionary with all its other keys."""
    entry = _to_dict(pairs, path)
    if not {"wav", "labels"} & entry.keys():
        return entry
    _refuse_parts(path, entry.keys() - {"wav", "labels"})
    return entry.get("wav"), entry.get("labels")


def _to_dict(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise DataError(f"{path}: a key is there twice in {pairs}.")
    return entry


def _find_files(
    names: pa.ChunkedArray, roots: list[Path], source: Path, unit: str, max_missing: int
) -> pa.ChunkedArray:
    """Absolute path of each file, below the first root that has it, or else that it would have below the first one.

    A folder is listed once: asking for millions of files one by one takes many minutes on a network's disk.
    """
    folders = {}  # as written: where it is, and what is in it, a root

    def find(name: str) -> str | None:
        return next((path for way in _ways_to_write(name) if (path := find_as_written(way)) is not None), None)

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
    if missing:
        number, path = missing[0]
        what = f"{source}: {len(missing)} of {len(names)} files are not there, such as {unit} {number}: {path}."
        if len(missing) > max_missing or len(missing) == len(names):
            raise DataError(f"{what} Is audio_dir right?")
        logger.warning(what)
    return pa.chunked_array(parts)


def _ways_to_write(path: str) -> Iterator[str]:
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


# Labels: numbers in arrays, without an object a clip


@dataclass
class _Labels:
    """The labels of each clip: `lengths[i]` of the `codes` belong to clip i, and a code is a number of `names`."""

    names: list[str]
    codes: np.ndarray
    lengths: np.ndarray

    def clip_of(self, code: int) -> int:
        """The first clip with that label."""
        return int(np.searchsorted(np.cumsum(self.lengths), np.argmax(self.codes == code), side="right"))


def class_names(feature: Any) -> list[str] | None:
    """Names of the classes of a label column, or of a column of lists of labels, if the data set tells them."""
    feature = getattr(feature, "feature", feature)  # of a list: what it is a list of
    return feature.names if isinstance(feature, ClassLabel) else None


def label_name(value: Any, names: list[str] | None) -> str | None:
    """What a label is called, as data have it: a name, or a class index, perhaps of a name; `None` where it is none.

    Args:
        value: As it stands in the data.
        names: Of the classes, where the data tell them.
    """
    # -1 is what data sets on the Hub write where a label is not told; as an index it would be the last class.
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value in ("", "-1", -1):
        return None
    if names is None or isinstance(value, str):
        return composed(str(value))
    return composed(names[value]) if 0 <= value < len(names) else None


def _distinct(column: pa.Array) -> tuple[list[Any], np.ndarray]:
    """The different values of a column, and which of them each row has."""
    encoded = column.dictionary_encode(null_encoding="encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)


def _split_text(column: pa.Array, separator: str) -> pa.Array:
    """Lists of what stands between the separators, without spaces around and without empty ones."""
    lists = pc.split_pattern(column, separator)
    texts, owners = pc.utf8_trim_whitespace(pc.list_flatten(lists)), pc.list_parent_indices(lists)
    is_label = pc.not_equal(texts, "")
    lengths = np.bincount(owners.filter(is_label).to_numpy(), minlength=len(column))
    return _to_lists(texts.filter(is_label), lengths)


# A list as a program writes it into a cell: of text in quotes, or of numbers. "[noise]" is a label.
_LIST = re.compile(r"""\[\s*(['"].*['"]|[\d.][\d.,\s]*)?,?\s*\]""", re.DOTALL)


def _parse_lists(table: _Table, column: pa.Array) -> pa.Array | None:
    """Lists of labels from a column of such lists as text, and `None` for any other column."""
    if not pc.any(pc.starts_with(column, "[")).as_py():
        return None
    texts, codes = _distinct(column)
    if not any(_LIST.fullmatch(text) for text in texts if text):
        return None
    lists = [_parse_list(text) if text else [] for text in texts]
    if None in lists:
        wrong = lists.index(None)
        raise DataError(
            f"{table.where(np.argmax(codes == wrong))}: expected a list of labels in {table.label_column!r} as in "
            f"other rows, such as ['dog', 'cat'], got {texts[wrong]!r}."
        )
    return pa.array([lists[code] for code in codes], pa.list_(pa.string()))


def _parse_list(text: str) -> list[str] | None:
    """As JSON or Python writes it."""
    try:
        found = json.loads(text)
    except ValueError:
        if re.search(r"""['"]\s*['"]""", text):  # of NumPy, without commas: Python would make one text of all
            return None
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    is_list = isinstance(found, list) and all(isinstance(item, (str, int)) for item in found)
    return [str(item).strip() for item in found] if is_list else None


def _to_lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32), values)


def _read_labels(table: _Table, separator: str, multi_label: bool) -> _Labels:
    written = values = table.column(table.label_column)
    is_text = pa.types.is_string(written.type) or pa.types.is_large_string(written.type)
    if is_text and (lists := _parse_lists(table, written)) is not None:
        values = lists
    elif is_text and (multi_label or table.has_separators):
        values = _split_text(written, separator)
    lengths = np.ones(len(values), np.int64)
    if any(is_one(values.type) for is_one in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        lengths = pc.list_value_length(values).fill_null(0).to_numpy().astype(np.int64)
        values = pc.list_flatten(values)
    kind = values.type
    if not any(is_one(kind) for is_one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)):
        raise DataError(f"{table.source}: expected text or whole numbers in {table.label_column!r}, got {kind}.")
    found, codes = _distinct(values)
    names = class_names(table.rows.features[table.label_column])
    found = [label_name(value, names) for value in found]
    wrong = written.is_null().to_numpy(zero_copy_only=False) | (not multi_label and lengths != 1)
    wrong[np.repeat(np.arange(len(lengths)), lengths)[np.array([name is None for name in found], bool)[codes]]] = True
    if wrong.any():
        number, expected = int(np.argmax(wrong)), "labels" if multi_label else "one label a clip"
        raise DataError(
            f"{table.where(number)}: expected {expected} in {table.label_column!r}, got {written[number].as_py()!r}."
        )
    is_multi_hot = len(lengths) > 1 and lengths[0] > 1 and (lengths == lengths[0]).all() and not names
    if is_multi_hot and set(found) <= {"0", "1"}:
        raise DataError(
            f"{table.source}: expected lists of labels in {table.label_column!r}, got what looks like multi-hot "
            "vectors."
        )
    labels = _Labels(found, codes, lengths)
    if (wrong := find_control(found)) is not None:
        where = table.where(labels.clip_of(found.index(wrong)))
        raise DataError(f"{where}: expected labels without control characters, got {wrong!r}.")
    return labels


def _find_label_names(table: _Table, labels: Iterable[_Labels]) -> list[str]:
    names = class_names(table.rows.features[table.label_column])
    if names is None:
        # Class indices without names keep their order.
        found = {name for split in labels for name in split.names}
        names = sorted(found, key=lambda name: (int(name), name) if name.isdecimal() else (float("inf"), name))
    if len(names) < 2:
        raise DataError(
            f"{table.source}: expected at least two labels in {table.label_column!r}, got "
            f"{', '.join(names) or 'none'}."
        )
    return names


def _look_up(labels: _Labels, index: dict[str, int], table: _Table, among: str) -> pa.Array:
    """The number of each label."""
    for code, name in enumerate(labels.names):
        if name not in index:
            raise DataError(f"{table.where(labels.clip_of(code))}: the label {name!r} is not {among}.")
    return pa.array(np.array([index[name] for name in labels.names], np.int64)[labels.codes])


def _index_of_model(model_labels: Sequence[str], label_file: str | None) -> dict[str, int]:
    """The output of a model for each way in which data may write its label."""
    index = {composed(name): number for number, name in enumerate(model_labels)}
    if label_file is not None:
        table = read_label_table(label_file)
        ways = {composed(way): composed(table.names[number]) for way, number in table.index_of().items()}
        index = {way: index[name] for way, name in ways.items() if name in index}
    return index


def _report_unknown(
    labels: dict[str, _Labels], index: dict[str, int], tables: dict[str, _Table], source: str, leave_out: bool
) -> None:
    """Say which labels the model does not know.

    Raises:
        DataError: There are some, and they are not to be left out.
    """
    unknown, first, num_clips = set(), None, 0
    for split, each in labels.items():
        is_unknown = np.array([name not in index for name in each.names], bool)[each.codes]
        clips = np.unique(np.repeat(np.arange(len(each.lengths)), each.lengths)[is_unknown])
        unknown |= {each.names[code] for code in np.unique(each.codes[is_unknown])}
        if len(clips):
            first, num_clips = first or tables[split].where(clips[0]), num_clips + len(clips)
    if not unknown:
        return
    names = ", ".join(sorted(unknown)[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    what = f"{source}: {num_clips} clips have labels that the model does not know ({names})"
    if not leave_out:
        raise DataError(f"{what}, such as {first}. Rename them, or leave them out: leave_out_unknown_labels true.")
    logger.warning(f"{what}: left out.")


def _look_up_known(labels: _Labels, index: dict[str, int], multi_label: bool) -> tuple[pa.Array, np.ndarray]:
    """The number of each label that has one, and how many a clip has; without several labels -1 stands for none."""
    numbers = np.array([index.get(name, -1) for name in labels.names], np.int64)[labels.codes]
    if not multi_label:
        return pa.array(numbers), labels.lengths
    owners = np.repeat(np.arange(len(labels.lengths)), labels.lengths)
    return pa.array(numbers[numbers >= 0]), np.bincount(owners[numbers >= 0], minlength=len(labels.lengths))


def _with_known_label(rows: Dataset) -> Dataset:
    numbers = rows.select_columns(["labels"]).with_format("arrow")[:]["labels"].combine_chunks()
    if not pa.types.is_integer(numbers.type):  # lists, of which an empty one is an answer too
        return rows
    is_known = numbers.to_numpy() >= 0
    return rows if is_known.all() else _filter(rows, is_known)


def _to_rows(table: _Table, labels: pa.Array | None = None) -> Dataset:
    rows = table.rows.select_columns([table.audio_column])
    if table.audio_column != "audio":
        rows = rows.rename_column(table.audio_column, "audio")
    # Not decoded here: `datasets` would need torchcodec and FFmpeg.
    try:
        rows = rows.cast_column("audio", Audio(decode=False))
        return rows if labels is None else rows.add_column("labels", labels)
    except (pa.ArrowException, TypeError) as error:
        kind = table.rows.features[table.audio_column]
        raise DataError(f"{table.source}: expected sounds in {table.audio_column!r}, got {kind}.") from error


# Splits


def read_folds(
    dataset_name: str,
    fold_column_name: str,
    *,
    dataset_config_name: str | None = None,
    audio_column_name: str = "audio",
    audio_dir: str | None = None,
) -> tuple[Dataset, list[str]]:
    """The clips of a list or of Parquet files, as rows with `audio`, and the fold of each.

    Args:
        dataset_name: As of `load_splits`, and the others too.
        fold_column_name: Column with the number or the name of the fold.
        dataset_config_name: Configuration of a Hub data set.
        audio_column_name: Column with the sound.
        audio_dir: Where the paths of a list start.

    Raises:
        DataError: No such data set or column, or a cell without a fold.
    """
    table = _read(
        dataset_name,
        audio_column=audio_column_name,
        label_column=fold_column_name,
        audio_dir=audio_dir,
        max_missing=sys.maxsize,
        config_name=dataset_config_name,
    )["train"]
    folds, codes = _find_folds(table, fold_column_name)
    return _to_rows(table), [folds[code] for code in codes]


def _find_folds(table: _Table, column: str) -> tuple[list[str], np.ndarray]:
    """The folds and which of them each row is in."""
    values, codes = _distinct(table.column(column))
    folds = [_fold_name(value) for value in values]
    if None in folds:
        wrong = folds.index(None)
        raise DataError(
            f"{table.where(np.argmax(codes == wrong))}: expected a whole number or a name in {column!r}, got "
            f"{values[wrong]!r}."
        )
    return folds, codes


def _fold_name(value: Any) -> str | None:
    """The same for `1`, "1" and what spreadsheets make of it, such as "1.0"; `None` where it is no fold."""
    text = composed("" if value is None else str(value).strip())
    if number := re.fullmatch(r"(-?\d{1,18})([.,]\d*)?", text):
        is_whole = not (number[2] or "").strip(".,0")
        return str(int(number[1])) if is_whole else None
    return None if text.lower() in ("", "nan", "none", "inf", "-inf") else text


def _hold_out_fold(rows: Dataset, table: _Table, column: str, eval_fold: int | str) -> dict[str, Dataset]:
    folds, codes = _find_folds(table, column)
    held_out = _fold_name(eval_fold)
    if held_out not in folds:
        raise DataError(f"Expected eval_fold to be one of {', '.join(sort_folds(folds))}, got {eval_fold}.")
    return _select(rows, ["validation" if fold == held_out else "train" for fold in folds], codes)


def sort_folds(folds: Iterable[str]) -> list[str]:
    """Each once, numbers by their size."""
    return sorted(
        set(folds), key=lambda fold: (int(fold), "") if re.fullmatch(r"-?\d{1,18}", fold) else (math.inf, fold)
    )


def _split_by_column(rows: Dataset, table: _Table, column: str) -> dict[str, Dataset]:
    parts, codes = _distinct(table.column(column))
    for code, part in enumerate(parts):
        if str(part).lower() not in SPLIT_ALIASES:
            raise DataError(
                f"{table.where(np.argmax(codes == code))}: expected {column} to be one of "
                f"{', '.join(SPLIT_ALIASES)}, got {part!r}."
            )
    return _select(rows, [SPLIT_ALIASES[str(part).lower()] for part in parts], codes)


def _select(rows: Dataset, parts: list[str], codes: np.ndarray) -> dict[str, Dataset]:
    """The rows of each split, where `parts[code]` is the split of a row."""
    own = np.array([SPLITS.index(part) for part in parts])[codes]
    return {split: _filter(rows, own == number) for number, split in enumerate(SPLITS) if number in own}


def _filter(rows: Dataset, is_wanted: np.ndarray) -> Dataset:
    if rows.cache_files:  # on disk, perhaps with the sounds in it: an index, and no copy
        return rows.select(np.flatnonzero(is_wanted))
    # In memory, and small but for the paths: later reading a column through an index would take row by row.
    return Dataset(rows.with_format("arrow")[:].filter(pa.array(is_wanted)), info=rows.info)


def _hold_out_some(rows: Dataset, dataset_name: str, fraction: float, seed: int) -> dict[str, Dataset]:
    count = math.ceil(fraction * len(rows))
    if count == len(rows):
        raise DataError(f"{dataset_name}: too few clips to hold some out, got {count}.")
    # A plain draw: a stratified one would need every class twice.
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    is_held_out = np.zeros(len(rows), bool)
    is_held_out[drawn.numpy()] = True
    logger.warning(
        f"{dataset_name} holds out nothing to choose the epoch on: {count} of its training clips, drawn at random, do "
        "not train but validate (validation_fraction)."
    )
    return {"train": _filter(rows, ~is_held_out), "validation": _filter(rows, is_held_out)}


def _expect_files(rows: Dataset, source: str, split: str) -> None:
    paths = [audio["path"] for audio in rows.with_format(None)["audio"]]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise DataError(
            f"{source}: {len(missing)} of {len(paths)} files of the {split} split are not there, such as "
            f"{missing[0]}. Only training clips can be done without: take the rows out of the file."
        )


class DecodeAudio:
    """Dataset transform: rows to `waveform` (float32 tensors of shape (samples,)) and `labels`, read when asked for.

    Args:
        sampling_rate: Of the waveforms, in Hz.
        bad_clips: Where clips that cannot be decoded are noted, and left out; `None` raises an error.
        ignore_length: As for `load_waveform`.
    """

    def __init__(self, sampling_rate: int, bad_clips: BadClips | None = None, ignore_length: bool = False):
        self.sampling_rate, self.bad_clips, self.ignore_length = sampling_rate, bad_clips, ignore_length

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        """
        Raises:
            AudioError: A clip cannot be decoded, or more of them than are allowed for.
        """
        decoded = {"waveform": [], "labels": []}
        for audio, labels in zip(rows["audio"], rows["labels"]):
            audio = audio or {"bytes": None, "path": None}
            try:
                source = audio["bytes"] or audio["path"]
                waveform = load_waveform(source, self.sampling_rate, audio["path"], self.ignore_length)
            except AudioError as error:
                if self.bad_clips is None:
                    raise
                self.bad_clips.add(audio, error)
                continue
            decoded["waveform"].append(waveform)
            decoded["labels"].append(labels)
        return decoded
