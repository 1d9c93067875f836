"""Which clips of a data set are held out from training: by a fold, by groups, by a column, or by a draw."""

import logging
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from modeling_ast.data.clip_tables import SPLIT_ALIASES, SPLITS, Table, filter_rows, find_distinct
from modeling_ast.data.clips import has_stretches, iterate_clips
from modeling_ast.data.labels import DataError, composed, name_some

logger = logging.getLogger(__name__)

GROUP_COLUMN = "clip_group"  # of rows, where clips are in groups


def find_folds(table: Table, column: str) -> tuple[list[str], np.ndarray]:
    """The folds and which of them each row is in."""
    values, codes = find_distinct(table.column(column))
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


def hold_out_fold(rows: Dataset, table: Table, column: str, eval_fold: int | str) -> dict[str, Dataset]:
    folds, codes = find_folds(table, column)
    held_out = _fold_name(eval_fold)
    if held_out not in folds:
        raise DataError(f"Expected eval_fold to be one of {', '.join(sort_folds(folds))}, got {eval_fold}.")
    return _select(rows, ["validation" if fold == held_out else "train" for fold in folds], codes)


def sort_folds(folds: Iterable[str]) -> list[str]:
    """Each once, numbers by their size."""
    return sorted(
        set(folds), key=lambda fold: (int(fold), "") if re.fullmatch(r"-?\d{1,18}", fold) else (math.inf, fold)
    )


def split_by_column(rows: Dataset, table: Table, column: str) -> dict[str, Dataset]:
    parts, codes = find_distinct(table.column(column))
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
    return {split: filter_rows(rows, own == number) for number, split in enumerate(SPLITS) if number in own}


def add_groups(rows: Dataset, table: Table, column: str | None, pattern: str | None) -> Dataset:
    """The same rows with the name of each clip's group, of a column, or of what a pattern finds in the file's name.

    Raises:
        DataError: A cell without a name, or a file's name in which the pattern finds nothing.
    """
    if column is not None:
        names, codes = find_folds(table, column)
        groups = pa.array(names, pa.string()).take(pa.array(codes))
    else:
        paths = [clip.path or "" for clip in iterate_clips(rows)]
        groups = pa.array(_find_in_names(paths, table, re.compile(pattern)), pa.string())
    return rows.add_column(GROUP_COLUMN, groups)


def _find_in_names(paths: Iterable[str], table: Table, pattern: re.Pattern) -> list[str]:
    groups = []
    for row, path in enumerate(paths):
        found = pattern.search(PurePath(path).name)
        group = found[pattern.groups] if found else None  # in brackets, or without them all of it
        if not group:
            raise DataError(
                f"{table.where(row)}: expected group_pattern {pattern.pattern!r} to find a group in the name of the "
                f"file, got {PurePath(path).name!r}."
            )
        groups.append(composed(group))
    return groups


def hold_out_made_fold(rows: Mapping[str, Dataset], eval_fold: str, num_folds: int | None) -> dict[str, Dataset]:
    """A group, or a fold of groups or of clips, of all clips together; what held out some before does no more."""
    if len(rows) > 1:
        sizes = " and ".join(f"{len(part)} clips of {split}" for split, part in rows.items())
        logger.warning(f"{sizes} are taken together, to hold out {eval_fold} of all of them.")
    pooled = concatenate_datasets(list(rows.values()))
    names = _find_undivided(pooled)
    folds = names if num_folds is None else make_folds(names, _labels_of(pooled), num_folds).astype(str).astype(object)
    held_out = eval_fold if eval_fold in set(folds) else _fold_name(eval_fold)  # names of a pattern are as they are
    if held_out not in set(folds):
        raise DataError(f"Expected eval_fold to be one of {name_some(sort_folds(folds))}, got {eval_fold}.")
    if (folds == held_out).all():
        raise DataError(f"Expected two groups or more, to hold out one, got {held_out} alone.")
    return {"train": filter_rows(pooled, folds != held_out), "validation": filter_rows(pooled, folds == held_out)}


def read_groups(rows: Dataset) -> list[str] | None:
    """The group of each clip, decoded or not; `None` where clips are in none."""
    if GROUP_COLUMN not in rows.column_names:
        return None
    return rows.with_format("arrow").select_columns([GROUP_COLUMN])[:][GROUP_COLUMN].to_pylist()


def _find_undivided(rows: Dataset) -> np.ndarray:
    """What no draw divides, of each clip: its group, or else its file, which is a recording where it is a stretch."""
    groups = read_groups(rows)
    if groups is None:
        groups = [clip.path or str(row) for row, clip in enumerate(iterate_clips(rows))]
    return np.array(groups, dtype=object)


def make_folds(groups: np.ndarray, labels: np.ndarray | None, num_folds: int) -> np.ndarray:
    """The fold of each clip, from 1 on: of like sizes and none of them with a part of a group.

    Args:
        groups: Of the clips, (clips,). Where each has one to itself, they are shuffled, always alike, whatever
            order they come in.
        labels: Class indices (clips,), of which each fold gets a like share as far as groups allow it; `None` of
            clips with several labels or without, where the sizes alone are alike.
        num_folds: How many.

    Raises:
        DataError: Fewer groups than folds.
    """
    if (num_groups := len(set(groups))) < num_folds:
        raise DataError(f"Expected {num_folds} clips or groups, or more, for as many folds, got {num_groups}.")
    # A class with fewer clips than folds cannot be shared out, which scikit-learn warns of, or refuses for all.
    is_stratified = labels is not None and np.unique(labels, return_counts=True)[1].max() >= num_folds
    is_alone = num_groups == len(groups)
    if is_alone:
        splitter = (StratifiedKFold if is_stratified else KFold)(num_folds, shuffle=True, random_state=0)
    else:
        splitter = (StratifiedGroupKFold if is_stratified else GroupKFold)(num_folds)
    folds, order = np.zeros(len(groups), int), np.argsort(groups) if is_alone else np.arange(len(groups))
    labels = None if labels is None else labels[order]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        for number, (_, held_out) in enumerate(splitter.split(folds, labels, None if is_alone else groups), start=1):
            folds[order[held_out]] = number
    return folds


def _labels_of(rows: Dataset) -> np.ndarray | None:
    """Class indices, where each clip has one."""
    if "labels" not in rows.column_names:
        return None
    labels = rows.with_format("arrow").select_columns(["labels"])[:]["labels"]
    return None if pa.types.is_nested(labels.type) else labels.to_numpy()


def refuse_divided_groups(rows: Mapping[str, Dataset], source: str) -> None:
    """
    Raises:
        DataError: A group of which two splits have clips.
    """
    seen = {}
    for split, part in rows.items():
        for group in dict.fromkeys(read_groups(part)):
            if (other := seen.setdefault(group, split)) != split:
                raise DataError(
                    f"{source}: expected no group in two splits, got {group} in {other} and {split}. Hold out whole "
                    "groups by eval_fold, as `modeling-ast folds` does with each in turn, or leave out the key of "
                    "groups."
                )


def hold_out_some(rows: Dataset, dataset_name: str, fraction: float) -> dict[str, Dataset]:
    """A share of the clips, drawn at random, of one label a clip a like share of every label; with about so many some
    groups, where there are groups, or recordings, of stretches."""
    if GROUP_COLUMN in rows.column_names or has_stretches(rows):
        return _hold_out_some_groups(rows, dataset_name, fraction)
    count = math.ceil(fraction * len(rows))
    if count == len(rows):
        raise DataError(f"{dataset_name}: too few clips to hold some out, got {count}.")
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()
    if (labels := _labels_of(rows)) is not None:
        drawn = drawn[np.argsort(_places_in_class(labels[drawn]), kind="stable")]
    is_held_out = np.zeros(len(rows), bool)
    is_held_out[drawn[:count]] = True
    logger.warning(
        f"{dataset_name} holds out nothing to choose the epoch on: {count} of its training clips, drawn at random, do "
        "not train but validate (validation_fraction)."
    )
    return {"train": filter_rows(rows, ~is_held_out), "validation": filter_rows(rows, is_held_out)}


def _places_in_class(labels: np.ndarray) -> np.ndarray:
    """How far each clip lies in the row of those of its class, in (0, 1): the first ones are of all classes alike."""
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.argsort(codes, kind="stable")
    places = np.empty(len(labels))
    places[by_class] = np.arange(len(labels)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return (places + 0.5) / sizes[codes]


def _hold_out_some_groups(rows: Dataset, dataset_name: str, fraction: float) -> dict[str, Dataset]:
    groups = _find_undivided(rows)
    if len(set(groups)) < 2:
        raise DataError(f"{dataset_name}: expected two groups or more, to hold out one, got {groups[0]} alone.")
    is_held_out = _choose_groups(groups, rows, fraction)
    logger.warning(
        f"{dataset_name} holds out nothing to choose the epoch on: {is_held_out.sum()} of its {len(rows)} training "
        f"clips do not train but validate (validation_fraction), all of {name_some(sort_folds(groups[is_held_out]))}, "
        "since groups are not divided."
    )
    return {"train": filter_rows(rows, ~is_held_out), "validation": filter_rows(rows, is_held_out)}


def _choose_groups(groups: np.ndarray, rows: Dataset, fraction: float) -> np.ndarray:
    """Whether each clip is of groups that have about a fraction of the clips together, and of those of each label.

    One after the other, each the one after which the shares of all clips and of each label are nearest to the fraction
    (by the sum of the squared differences), until none brings them nearer.
    """
    names, codes = np.unique(groups, return_inverse=True)
    clips, labels = np.arange(len(rows)), np.zeros(len(rows), int)
    if "labels" in rows.column_names:
        column = rows.with_format("arrow").select_columns(["labels"])[:]["labels"].combine_chunks()
        if pa.types.is_nested(column.type):
            clips, column = np.repeat(clips, column.value_lengths().to_numpy(zero_copy_only=False)), column.flatten()
        labels = column.to_numpy(zero_copy_only=False)
    counts = np.zeros((len(names), 2 + labels.max(initial=0)), np.float32)  # the last column: of all clips
    np.add.at(counts, (codes[clips], labels), 1)
    counts[:, -1] = np.bincount(codes)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).numpy()  # of equal ones, any
    shares = counts[order][:, counts.any(axis=0)] / counts.sum(axis=0)[counts.any(axis=0)]
    lacking, costs = np.full(shares.shape[1], fraction, np.float32), (shares**2).sum(axis=1)
    chosen = []
    while len(chosen) < len(names) - 1:
        gains = 2 * shares @ lacking - costs
        best = int(gains.argmax())
        if chosen and gains[best] <= 0:
            break
        chosen.append(best)
        lacking, costs[best] = lacking - shares[best], np.inf
    return np.isin(codes, order[chosen])


def expect_files(rows: Dataset, source: str, split: str) -> None:
    paths = [audio["path"] for audio in rows["audio"]]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise DataError(
            f"{source}: {len(missing)} of {len(paths)} files of the {split} split are not there, such as "
            f"{missing[0]}. Only training clips can be done without: take the rows out of the file."
        )
