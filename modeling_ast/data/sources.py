"""Data sets from anywhere, all in the same rows: `audio` (not decoded) and `labels`.

A data set is data, never a code path: what differs between two of them is said by the arguments of `load_splits`.
Columns stay in Arrow from the file to the rows, so that two million clips fit into memory as well as two thousand.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from modeling_ast.data.class_folders import read_class_folders
from modeling_ast.data.clip_tables import (
    SPLITS,
    AudioSplits,
    Table,
    expect_columns,
    name_splits,
    refuse_parts,
    suffix_of,
    to_rows,
)
from modeling_ast.data.folders import look_into
from modeling_ast.data.held_out import expect_files, find_folds, hold_out_fold, hold_out_some, split_by_column
from modeling_ast.data.label_columns import (
    find_label_names,
    index_labels,
    index_model_labels,
    keep_known,
    number_labels,
    read_labels,
    refuse_unknown,
    report_unknown,
)
from modeling_ast.data.labels import DataError
from modeling_ast.data.lists import read_columns, read_json, read_table
from modeling_ast.data.synthetic import synthetic_folder

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")  # with columns, one of them of paths
LIST_SUFFIXES = (*TABLE_SUFFIXES, ".json")  # whose rows hold paths
FILE_SUFFIXES = (*LIST_SUFFIXES, ".parquet")


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
    files = {split: name for split, name in (("validation", validation_file), ("test", test_file)) if name is not None}
    if not 0 < validation_fraction < 1:
        raise DataError(f"Expected validation_fraction between 0 and 1, got {validation_fraction}.")
    if leave_out_unknown_labels and model_labels is None:
        raise DataError("leave_out_unknown_labels has an effect on the evaluation of a trained model alone.")
    if audio_dir is not None and not any(suffix_of(name) in LIST_SUFFIXES for name in (dataset_name, *files.values())):
        raise DataError(f"Expected a list ({', '.join(LIST_SUFFIXES)}) with audio_dir, got {dataset_name}.")
    _check_held_out(fold_column_name, eval_fold, split_column_name, files if model_labels is None else {})

    read = partial(_read, audio_column=audio_column_name, label_column=label_column_name, audio_dir=audio_dir)
    _check_columns(files.values(), [audio_column_name, label_column_name])
    held_out_by = fold_column_name or split_column_name
    tables = read(
        dataset_name,
        max_missing=max_missing,
        config_name=dataset_config_name,
        held_out_by=held_out_by,
        cache_dir=cache_dir,
    )
    tables |= {
        split: _read_instead(read, name, split, dataset_name, split in tables, model_labels is not None)
        for split, name in files.items()
    }
    needs_train = model_labels is None or held_out_by is not None
    has_own_columns = (audio_column_name, label_column_name) != ("audio", "label")
    _check_tables(tables, dataset_name, needs_train, has_own_columns)

    labels = {split: read_labels(table, label_separator, multi_label) for split, table in tables.items()}
    if model_labels is None:
        label_names = find_label_names(tables["train"], labels.values()) if label_file is None else None
        index = index_labels(label_names, label_file, dataset_name)
        refuse_unknown(labels, index, tables)
    else:
        index = index_model_labels(model_labels, label_file)
        report_unknown(labels, index, tables, dataset_name, leave_out_unknown_labels)

    # Rows first and splits after: selecting from rows copies no audio, adding a column to a selection would.
    rows = {split: to_rows(table, number_labels(labels[split], index, multi_label)) for split, table in tables.items()}
    of_files = {split: rows[split] for split in files}
    if eval_fold is not None:
        rows |= hold_out_fold(rows["train"], tables["train"], fold_column_name, eval_fold) | of_files
    elif split_column_name is not None:
        rows = split_by_column(rows["train"], tables["train"], split_column_name) | of_files
    if model_labels is not None:
        known = {split: keep_known(part) for split, part in rows.items()}
        rows = {split: part for split, part in known.items() if len(part)}
        if not rows:
            raise DataError(f"{dataset_name}: expected clips with labels of the model, got none.")
    elif "train" not in rows:
        raise DataError(f"{dataset_name}: expected clips to train on, got {', '.join(rows)} alone.")
    elif "validation" not in rows:
        rows |= hold_out_some(rows["train"], dataset_name, validation_fraction, seed)
    if max_missing and suffix_of(dataset_name) in LIST_SUFFIXES:
        for split in rows.keys() - {"train"}:
            expect_files(rows[split], dataset_name, split)
    return AudioSplits(*(rows.get(split) for split in SPLITS), index.names)


def _check_held_out(
    fold_column_name: str | None, eval_fold: int | str | None, split_column_name: str | None, files: dict[str, str]
) -> None:
    """Refuse two ways, or half of one, to say what is held out.

    Args:
        fold_column_name, eval_fold, split_column_name: As of `load_splits`.
        files: Those of held-out clips, by split, unless they may replace what a column holds out.
    """
    if eval_fold is not None and fold_column_name is None:
        raise DataError("Expected fold_column_name with eval_fold, got eval_fold alone.")
    if fold_column_name is not None and eval_fold is None:
        raise DataError(
            "Expected eval_fold with fold_column_name, the fold to hold out, got fold_column_name alone. "
            "`modeling-ast folds` holds out each in turn, and needs none."
        )
    if eval_fold is not None and split_column_name is not None:
        raise DataError("Expected a fold or a split column, got both.")
    if files and (eval_fold is not None or split_column_name is not None):
        names = " and ".join(f"{split}_file" for split in files)
        raise DataError(f"Expected {names} or a fold or split column, got both.")


def _check_columns(files: Iterable[str], columns: list[str]) -> None:
    """Tell a misspelt column before any clip is looked for."""
    for name in files:
        if suffix_of(name) in TABLE_SUFFIXES and Path(name).expanduser().is_file():
            next(read_columns(Path(name).expanduser(), columns), None)


def _read_instead(
    read: Callable[..., dict[str, Table]], name: str, split: str, dataset_name: str, is_there: bool, replaces: bool
) -> Table:
    """The held-out clips of a file.

    Args:
        read: Reads it.
        name: The file.
        split: Which of them.
        dataset_name: What trains.
        is_there: Whether that brings such a split itself.
        replaces: Whether the file may take its place.
    """
    if is_there and not replaces:
        raise DataError(f"Expected the {split} clips from {dataset_name} or from {split}_file, got both.")
    if is_there:
        logger.warning(f"{name} takes the place of the {split} clips of {dataset_name}.")
    if suffix_of(name) not in FILE_SUFFIXES:
        raise DataError(f"Expected {split}_file to be a file {', '.join(FILE_SUFFIXES)}, got {name}.")
    return read(name, max_missing=0)["train"]


def _check_tables(tables: dict[str, Table], dataset_name: str, needs_train: bool, has_own_columns: bool) -> None:
    """Refuse empty splits, a missing one, and names of columns where there are none."""
    if has_own_columns and not any(table.has_columns for table in tables.values()):
        raise DataError(
            f"{dataset_name}: a folder a class has no columns, nor has the original's JSON file, so that their names "
            "have no effect."
        )
    for split, table in tables.items():
        if len(table.rows) == 0:
            raise DataError(f"{table.source}: expected clips in split {split}, got none.")
    if needs_train and "train" not in tables:
        raise DataError(f"{dataset_name}: expected a split called train, got {', '.join(tables)}.")


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
    folds, codes = find_folds(table, fold_column_name)
    return to_rows(table), [folds[code] for code in codes]


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
) -> dict[str, Table]:
    path = synthetic_folder(cache_dir=cache_dir) if name == "synthetic" else Path(name).expanduser()
    is_local = path.is_absolute() or name.startswith(".") or suffix_of(path) in FILE_SUFFIXES
    if is_local and not path.exists():
        raise DataError(f"{name}: no such file or folder.")
    if config_name is not None and path.exists():
        raise DataError(f"Expected a data set on the Hub with dataset_config_name, got {name}.")
    if path.exists() and not path.is_dir() and suffix_of(path) not in FILE_SUFFIXES:
        raise DataError(f"{name}: expected a folder or a file {', '.join(FILE_SUFFIXES)}.")
    columns = [audio_column, label_column, *filter(None, [held_out_by])]
    if suffix_of(path) in TABLE_SUFFIXES:
        return {"train": Table(read_table(path, columns, audio_dir, max_missing), name, audio_column, label_column)}
    if suffix_of(path) == ".json":
        tables = {"train": read_json(path, audio_dir, max_missing)}
    elif path.is_dir() and ((found := look_into(path)).are_classes or not found.parquet):
        splits = read_class_folders(path, found)
        tables = {split: Table(rows, name, has_columns=False) for split, rows in splits.items()}
    else:
        splits = _load_dataset(name, path, config_name)
        tables = {split: Table(rows, name, audio_column, label_column) for split, rows in splits.items()}
    for split, table in tables.items():
        needed = [table.audio_column, table.label_column, *(columns[2:] if split == "train" else [])]
        expect_columns(name, table.rows.column_names, needed)
        if isinstance(table.rows.features[table.audio_column], Value):  # a path: the file may hold other clips too
            refuse_parts(name, set(table.rows.column_names) - set(needed))
    return tables


def _load_dataset(name: str, path: Path, config_name: str | None) -> dict[str, Dataset]:
    """Parquet, or the Hub."""
    try:
        if suffix_of(path) == ".parquet":
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
