"""Data sets from anywhere, all in the same rows: `audio` (not decoded) and `labels`.

A data set is data, never a code path: what differs between two of them is said by a `DataSource`.
Columns stay in Arrow from the file to the rows, so that two million clips fit into memory as well as two thousand.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from datasets import Dataset, Value, concatenate_datasets

from modeling_ast.data.annotations import is_annotated, read_annotated, refuse_near_annotations
from modeling_ast.data.class_folders import read_class_folders
from modeling_ast.data.clip_tables import (
    SPLITS,
    AudioSplits,
    Table,
    choose_splits,
    expect_columns,
    hint_at_splits,
    name_splits,
    refuse_parts,
    suffix_of,
    to_rows,
)
from modeling_ast.data.folders import FolderContents, look_into
from modeling_ast.data.held_out import (
    GROUP_COLUMN,
    add_groups,
    expect_files,
    find_folds,
    hold_out_fold,
    hold_out_made_fold,
    hold_out_some,
    read_groups,
    refuse_divided_groups,
    sort_folds,
    split_by_column,
)
from modeling_ast.data.label_columns import (
    LabelIndex,
    Labels,
    find_label_names,
    index_labels,
    index_model_labels,
    keep_known,
    leave_out_unlabelled,
    number_labels,
    read_labels,
    refuse_unknown,
    report_unknown,
)
from modeling_ast.data.labels import DataError
from modeling_ast.data.lists import list_columns, read_columns, read_json, read_table
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.shards import (
    BUILDERS,
    READING_ERRORS,
    builder_of,
    describe_cause,
    find_builder,
    is_address,
    keep,
    open_sound_streams,
    version_of,
    without_others,
)
from modeling_ast.data.stretches import add_stretches, cut_stretches, cut_tables, find_time_columns, read_stretches
from modeling_ast.data.synthetic import synthetic_folder

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")  # with columns, one of them of paths
LIST_SUFFIXES = (*TABLE_SUFFIXES, ".json")  # whose rows hold paths
FILE_SUFFIXES = (*LIST_SUFFIXES, ".parquet")


@dataclass(frozen=True)
class DataSource:
    """Where the clips of a data set are, and how they are to be read.

    Args:
        args: What a recipe says of them. A folder of classes may hold `validation_list.txt` and `testing_list.txt`, or
            have such folders below train, validation and test; a JSON file is as the original reads it, `{"data":
            [{"wav": path, "labels": "mid1,mid2"}, ...]}`, with paths from the working directory or else from beside
            it. Labels are names, class indices, or lists of either, also such lists as text (`['a', 'b']`). Display
            names may hold a comma ("Child speech, kid speaking"), so what a comma separates had better be mids. A list
            with the columns start and end, and label files of Audacity and Raven beside recordings, name stretches.
        multi_label: Whether a clip may have several labels; `labels` is then a list.
        max_missing: Files of training clips in a list that may not be there; their rows stay.
        model_labels: What a trained model calls its outputs, in their order: the labels of the result.
        teacher_labels: The same of a teacher, for the held-out clips of data without labels to train on. Those that
            have none are left out.
        keep_columns: Whether rows have the data's other columns too, and folds stay together, as they are packed.
    """

    args: DataArguments
    multi_label: bool = False
    max_missing: int = 0
    model_labels: Sequence[str] | None = None
    keep_columns: bool = False
    teacher_labels: Sequence[str] | None = None

    @property
    def name(self) -> str:
        return self.args.dataset_name

    @property
    def files(self) -> dict[str, str]:
        """Those of held-out clips, by split."""
        files = {"validation": self.args.validation_file, "test": self.args.test_file}
        return {split: name for split, name in files.items() if name is not None}

    @property
    def labelled(self) -> tuple[str, ...]:
        return self.args.labelled_splits(self.teacher_labels is not None)

    def load(self) -> AudioSplits:
        """See `load_splits`."""
        self._check()
        tables = self._read_tables()
        labels, index = self._read_labels(tables)
        tables, labels = cut_tables(tables, labels, self.args, self.multi_label, self.max_missing > 0)
        numbers = {split: number_labels(each, index, self.multi_label) for split, each in labels.items()}
        # Rows first and splits after: selecting from rows copies no audio, adding a column to a selection would.
        rows = {split: to_rows(table, numbers.get(split), self.keep_columns) for split, table in tables.items()}
        rows = add_stretches(rows, tables)
        if self.args.has_groups:
            rows = {split: self._add_groups(part, tables[split]) for split, part in rows.items()}
        rows = self._hold_out(rows, tables) if "train" in tables or self.args.makes_folds else rows
        rows = self._choose(rows)
        if self.args.has_groups and self.model_labels is None:
            refuse_divided_groups(rows, self.name)
            if self.keep_columns:
                rows = {split: part.remove_columns(GROUP_COLUMN) for split, part in rows.items()}
        if self.max_missing and suffix_of(self.name) in LIST_SUFFIXES:
            for split in rows.keys() - {"train"}:
                expect_files(rows[split], self.name, split)
        return AudioSplits(*(rows.get(split) for split in SPLITS), index.names)

    def _check(self) -> None:
        """Refuse what makes no sense, and two ways, or half of one, to say what is held out."""
        if not 0 < self.args.validation_fraction < 1:
            raise DataError(f"Expected validation_fraction between 0 and 1, got {self.args.validation_fraction}.")
        if self.args.leave_out_unknown_labels and self.model_labels is None:
            raise DataError("leave_out_unknown_labels has an effect on the evaluation of a trained model alone.")
        lists = [name for name in (self.name, *self.files.values()) if suffix_of(name) in LIST_SUFFIXES]
        if self.args.audio_dir is not None and not lists:
            raise DataError(f"Expected a list ({', '.join(LIST_SUFFIXES)}) with audio_dir, got {self.name}.")
        if self.args.eval_fold is not None and self.args.fold_column_name is None and not self.args.makes_folds:
            raise DataError(
                "Expected fold_column_name, num_folds, group_column_name or group_pattern with eval_fold, got "
                "eval_fold alone."
            )
        if self.args.num_folds is not None and self.args.eval_fold is None:
            raise DataError(
                "Expected eval_fold with num_folds, the fold to hold out, got num_folds alone. `modeling-ast folds` "
                "holds out each in turn, and needs none."
            )
        if self.args.fold_column_name is not None and self.args.eval_fold is None and not self.keep_columns:
            raise DataError(
                "Expected eval_fold with fold_column_name, the fold to hold out, got fold_column_name alone. "
                "`modeling-ast folds` holds out each in turn, and needs none."
            )
        if self.args.eval_fold is not None and self.args.split_column_name is not None:
            raise DataError("Expected a fold or a split column, got both.")
        is_held_out = self.args.eval_fold is not None or self.args.split_column_name is not None
        if self.files and is_held_out and self.model_labels is None:  # else they may replace what a column holds out
            names = " and ".join(f"{split}_file" for split in self.files)
            raise DataError(f"Expected {names} or a fold or split column, got both.")

    def _read_tables(self) -> dict[str, Table]:
        for split, name in self.files.items():  # a misspelt column is told before any clip is looked for
            path = Path(name).expanduser()
            if suffix_of(name) in TABLE_SUFFIXES and path.is_file() and not is_annotated(path, self.args):
                are_parts = bool(find_time_columns(list_columns(path), self.args, path))
                next(read_columns(path, self._columns(split in self.labelled), are_parts), None)
        held_out_by = self.args.fold_column_name or self.args.split_column_name
        of_dataset = self.max_missing, self.args.dataset_config_name, self.args.split_names
        tables = self._read(self.name, self.labelled, list(filter(None, [held_out_by])), *of_dataset)
        is_held_out = self.files or held_out_by or self.args.makes_folds or tables.keys() != {"train"}
        if not (is_held_out or self.args.unlabelled):
            path = Path(self.name).expanduser()
            is_list = suffix_of(path) in TABLE_SUFFIXES and path.is_file() and not is_annotated(path, self.args)
            hint_at_splits(self.name, list_columns(path) if is_list else tables["train"].rows.column_names)
        for split, name in self.files.items():
            tables[split] = self._read_instead(name, split, split in tables)
        has_own_names = self._columns(has_labels=True) != ["audio", "label"]
        if has_own_names and not any(table.has_columns for table in tables.values()):
            raise DataError(
                f"{self.name}: a folder a class has no columns, nor has the original's JSON file, so that "
                "their names have no effect."
            )
        for split, table in tables.items():
            if len(table.rows) == 0:
                raise DataError(f"{table.source}: expected clips in split {split}, got none.")
        if "train" not in tables and (self.model_labels is None or held_out_by is not None):
            raise DataError(f"{self.name}: expected a split called train, got {', '.join(tables)}.")
        return tables

    def _read_instead(self, name: str, split: str, is_there: bool) -> Table:
        """The held-out clips of a file, which may replace those of the data set only where these are evaluated."""
        if is_there and self.model_labels is None:
            raise DataError(f"Expected the {split} clips from {self.name} or from {split}_file, got both.")
        if is_there:
            logger.warning(f"{name} takes the place of the {split} clips of {self.name}.")
        if suffix_of(name) not in FILE_SUFFIXES:
            raise DataError(f"Expected {split}_file to be a file {', '.join(FILE_SUFFIXES)}, got {name}.")
        tables = self._read(name, SPLITS if split in self.labelled else ())
        if len(tables) > 1:
            raise DataError(
                f"Expected {split}_file to name the files of one split, got {', '.join(tables)} by {name}."
            )
        return next(iter(tables.values()))

    def _columns(self, has_labels: bool) -> list[str]:
        return [self.args.audio_column_name, *([self.args.label_column_name] if has_labels else [])]

    def _read(
        self,
        name: str,
        labelled: Sequence[str],
        others: Sequence[str] = (),
        max_missing: int | None = 0,
        config_name: str | None = None,
        split_names: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Table]:
        """
        Args:
            labelled: Which splits have labels, by their names here.
            others: Columns that the training clips need too; all of them need one of groups.
            max_missing: As for `read_table`.
        """
        of_groups = list(filter(None, [self.args.group_column_name]))
        others = [*others, *of_groups]
        path = synthetic_folder() if name == "synthetic" else Path(name).expanduser()
        is_local = path.is_absolute() or name.startswith(".") or suffix_of(path) in FILE_SUFFIXES
        if is_local and not path.exists() and not is_address(name):
            raise DataError(f"{name}: no such file or folder.")
        if config_name is not None and path.exists():
            raise DataError(f"Expected a data set on the Hub with dataset_config_name, got {name}.")
        if path.exists() and not path.is_dir() and suffix_of(path) not in FILE_SUFFIXES:
            raise DataError(f"{name}: expected a folder or a file {', '.join(FILE_SUFFIXES)}.")
        audio_column, has_labels = self.args.audio_column_name, "train" in labelled
        label_columns = {split: self.args.label_column_name for split in labelled}
        found = look_into(path) if path.is_dir() else None
        suffix = "" if is_address(name) else suffix_of(path)
        are_classes = found is not None and builder_of(found) is None and (found.are_classes or not found.parquet)
        if split_names and (are_classes or suffix in LIST_SUFFIXES):
            keys = ", ".join(f"{split}_split_name" for split in split_names)
            raise DataError(f"{name}: {keys} has no effect on lists and on a folder a class.")
        # Where a model hears whatever is there, labels are not looked at, nor are label files.
        hears_all = are_classes and self.args.unlabelled and self.model_labels is not None
        if (are_classes or suffix in TABLE_SUFFIXES) and not hears_all and is_annotated(path, self.args, found):
            table = read_annotated(path, self.args.label_column_name, name, has_labels, found)
            expect_columns(name, table.rows.column_names, list(others))
            return {"train": table}
        if suffix in TABLE_SUFFIXES:
            times = find_time_columns(list_columns(path), self.args, path)
            columns = [*self._columns(has_labels), *others, *times]
            rows = read_table(path, columns, self.args.audio_dir, max_missing, are_parts=bool(times))
            table = Table(rows, name, audio_column, label_columns.get("train"))
            return {"train": read_stretches(table, *times) if times else table}
        if suffix == ".json":
            tables = {"train": read_json(path, self.args.audio_dir, max_missing, has_labels)}
        elif are_classes:
            if has_labels:
                refuse_near_annotations(path, found)
            splits = read_class_folders(path, found, has_labels)
            options = {"label_column": "label" if has_labels else None, "has_columns": False, "has_separators": False}
            tables = {split: Table(rows, name, **options) for split, rows in splits.items()}
        else:
            splits = _load_dataset(name, path, config_name, found, split_names)
            tables = {
                split: Table(rows, name, audio_column, label_columns.get(split)) for split, rows in splits.items()
            }
        for split, table in tables.items():
            if self.args.unlabelled and table.label_column not in table.rows.column_names:
                table.label_column = None
            of_split = others if split == "train" else of_groups
            needed = [table.audio_column, *filter(None, [table.label_column]), *of_split]
            expect_columns(name, table.rows.column_names, needed)
            if isinstance(table.rows.features[table.audio_column], Value):  # a path: the file may hold other clips too
                if times := find_time_columns(table.rows.column_names, self.args, name):
                    tables[split] = read_stretches(table, *times)
                else:
                    refuse_parts(name, set(table.rows.column_names) - set(needed))
        return tables

    def _read_labels(self, tables: dict[str, Table]) -> tuple[dict[str, Labels], LabelIndex]:
        """The labels of each split that has some, and their numbers."""
        tables = {split: table for split, table in tables.items() if table.label_column is not None}
        labels = {
            split: read_labels(table, self.args.label_separator, self.multi_label) for split, table in tables.items()
        }
        if self.args.unlabelled:
            index = index_model_labels(self.teacher_labels or self.model_labels or (), self.args.label_file)
            refuse_unknown(labels, index, tables)
        elif self.model_labels is None:
            names = (
                find_label_names(tables["train"], labels.values(), self.multi_label)
                if self.args.label_file is None
                else None
            )
            index = index_labels(names, self.args.label_file, self.name)
            refuse_unknown(labels, index, tables)
        else:
            index = index_model_labels(self.model_labels, self.args.label_file)
            report_unknown(labels, index, tables, self.name, self.args.leave_out_unknown_labels)
        return labels, index

    def _hold_out(self, rows: dict[str, Dataset], tables: dict[str, Table]) -> dict[str, Dataset]:
        """The splits by a fold or a column, where there is one; what files hold stays."""
        args, of_files = self.args, {split: rows[split] for split in self.files}
        if args.eval_fold is not None and args.makes_folds:
            own = {split: part for split, part in rows.items() if split not in of_files}
            if self.keep_columns:
                return {"train": concatenate_datasets(list(own.values()))} | of_files
            return hold_out_made_fold(own, args.eval_fold, args.num_folds) | of_files
        if args.eval_fold is not None and not self.keep_columns:
            return (
                rows | hold_out_fold(rows["train"], tables["train"], args.fold_column_name, args.eval_fold) | of_files
            )
        if args.split_column_name is not None:
            parts = {}
            for split in [split for split in rows if split not in self.files]:
                table = tables[split]
                has_column = args.split_column_name in table.rows.column_names
                own = (
                    split_by_column(rows[split], table, args.split_column_name) if has_column else {split: rows[split]}
                )
                for name, part in own.items():
                    parts.setdefault(name, []).append(part)
            return {name: concatenate_datasets(each) for name, each in parts.items()} | of_files
        return rows

    def _add_groups(self, rows: Dataset, table: Table) -> Dataset:
        return add_groups(rows, table, self.args.group_column_name, self.args.group_pattern)

    def _choose(self, rows: dict[str, Dataset]) -> dict[str, Dataset]:
        """What there is to evaluate, or to train on and to choose the epoch on; of clips without labels as it is."""
        if self.model_labels is not None and not self.args.unlabelled:
            known = {split: keep_known(part) for split, part in rows.items()}
            known = {split: part for split, part in known.items() if len(part)}
            if not known:
                raise DataError(f"{self.name}: expected clips with labels of the model, got none.")
            return known
        if "train" not in rows and self.model_labels is None:
            raise DataError(f"{self.name}: expected clips to train on, got {', '.join(rows)} alone.")
        if self.args.unlabelled:
            return rows if self.teacher_labels is None else leave_out_unlabelled(rows, self.name)
        has_folds = self.args.fold_column_name is not None or self.args.eval_fold is not None
        if "validation" not in rows and not (self.keep_columns and has_folds):
            return rows | hold_out_some(rows["train"], self.name, self.args.validation_fraction)
        return rows


def load_splits(dataset_name: str, **settings: Any) -> AudioSplits:
    """Rows of a data set and its label names.

    With `model_labels` the data are to be evaluated alone: they need no training clips, nothing is drawn from them to
    be held out, and `test_file` and `validation_file` replace clips that the data hold out themselves.

    Where the data has no validation split of its own (split names, lists, a split column, a fold or a file), a part of
    the training rows becomes one.

    Args:
        dataset_name: As of `DataArguments`.
        settings: Others of it, and of `DataSource`.

    Raises:
        DataError: No such data set, or not as described: a missing column, file or fold, no audio, no labels, a label
            that the table does not hold or the model does not know, columns that say which part of a file is a clip.
    """
    own = {each.name for each in fields(DataSource)} & settings.keys()
    own = {name: settings.pop(name) for name in own}
    return DataSource(DataArguments(dataset_name, **settings), **own).load()


def read_folds(data_args: DataArguments) -> tuple[Dataset, list[str]]:
    """The clips of a data set that has a column of folds, or groups, as rows with `audio`, and the fold of each, or
    where groups make the folds, its group.

    Raises:
        DataError: No such data set or column, or a cell, or a file's name, without a fold or a group.
    """
    source = DataSource(data_args)
    of_dataset = sys.maxsize, data_args.dataset_config_name, data_args.split_names
    tables = source._read(data_args.dataset_name, (), list(filter(None, [data_args.fold_column_name])), *of_dataset)
    tables = tables if data_args.makes_folds else {"train": tables["train"]}
    for split, table in tables.items():
        if table.stretches is not None:
            tables[split], _ = cut_stretches(table, None, data_args, multi_label=True, allow_bad=True)
    rows = add_stretches({split: to_rows(table) for split, table in tables.items()}, tables)
    if data_args.makes_folds:
        pooled = concatenate_datasets([source._add_groups(part, tables[split]) for split, part in rows.items()])
        return pooled, read_groups(pooled)
    folds, codes = find_folds(tables["train"], data_args.fold_column_name)
    return rows["train"], [folds[code] for code in codes]


def list_folds(data_args: DataArguments) -> list[str]:
    """The folds, or groups, to hold out in turn, each once, numbers by their size.

    Raises:
        DataError: As from `read_folds`.
    """
    if data_args.num_folds is not None:
        return [str(number) for number in range(1, data_args.num_folds + 1)]
    return sort_folds(read_folds(data_args)[1])


def _load_dataset(
    name: str, path: Path, config_name: str | None, found: FolderContents | None, split_names: Mapping[str, str]
) -> dict[str, Dataset]:
    """Parquet, tar archives, lists of sound files, or the Hub."""
    try:
        builder = find_builder(name, path, config_name, found)
        if builder.name in BUILDERS:
            version = version_of(builder)
            streams = open_sound_streams(builder, name)
            raw = {split: keep(stream, name, version and f"{split}\n{version}") for split, stream in streams.items()}
        else:
            builder = without_others(builder, name_splits(name, builder.config.data_files or (), split_names))
            builder.download_and_prepare()
            raw = builder.as_dataset()
    except DataError:
        raise
    except READING_ERRORS as error:  # missing, out of reach, or broken
        if path.exists():
            kind = " as Parquet" if found is None or builder_of(found) is None else ""
            raise DataError(f"{name}: cannot be read{kind} ({describe_cause(error)}).") from error
        if is_address(name):
            raise DataError(f"{name}: cannot be read ({describe_cause(error)}).") from error
        raise DataError(
            f"{name}: no such file or folder, nor to be had from the Hub ({describe_cause(error)})."
        ) from error
    splits = choose_splits(name, raw, split_names)
    if not splits:
        raise DataError(f"{name}: expected splits called {', '.join(SPLITS)}, got {', '.join(raw)}.")
    return splits
