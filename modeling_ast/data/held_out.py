"""Which clips of a data set are held out from training: by a fold, by a column, or by a draw."""

import logging
import math
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from modeling_ast.data.clip_tables import SPLIT_ALIASES, SPLITS, Table, filter_rows, find_distinct
from modeling_ast.data.clips import has_stretches, iterate_clips
from modeling_ast.data.labels import DataError, composed

logger = logging.getLogger(__name__)


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


def hold_out_some(rows: Dataset, dataset_name: str, fraction: float) -> dict[str, Dataset]:
    """A share of the clips, drawn at random; of stretches some recordings, with about so many of them."""
    if has_stretches(rows):
        return _hold_out_recordings(rows, dataset_name, fraction)
    count = math.ceil(fraction * len(rows))
    if count == len(rows):
        raise DataError(f"{dataset_name}: too few clips to hold some out, got {count}.")
    # A plain draw: a stratified one would need every class twice.
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    is_held_out = np.zeros(len(rows), bool)
    is_held_out[drawn.numpy()] = True
    logger.warning(
        f"{dataset_name} holds out nothing to choose the epoch on: {count} of its training clips, drawn at random, do "
        "not train but validate (validation_fraction)."
    )
    return {"train": filter_rows(rows, ~is_held_out), "validation": filter_rows(rows, is_held_out)}


def _hold_out_recordings(rows: Dataset, dataset_name: str, fraction: float) -> dict[str, Dataset]:
    recordings, owners, counts = np.unique(
        [clip.path for clip in iterate_clips(rows)], return_inverse=True, return_counts=True
    )
    if len(recordings) == 1:
        raise DataError(
            f"{dataset_name}: expected several recordings, to hold some of them out, got {recordings[0]} alone. Say "
            "which stretches validate by split_column_name or validation_file."
        )
    drawn = torch.randperm(len(recordings), generator=torch.Generator().manual_seed(0)).numpy()
    number = 1 + np.searchsorted(np.cumsum(counts[drawn])[:-1], fraction * len(rows))
    is_held_out = np.isin(owners, drawn[: min(number, len(recordings) - 1)])
    logger.warning(
        f"{dataset_name} holds out nothing to choose the epoch on: {is_held_out.sum()} of its {len(rows)} training "
        f"clips, those of {min(number, len(recordings) - 1)} recording(s) drawn at random, do not train but validate "
        "(validation_fraction)."
    )
    return {"train": filter_rows(rows, ~is_held_out), "validation": filter_rows(rows, is_held_out)}


def expect_files(rows: Dataset, source: str, split: str) -> None:
    paths = [audio["path"] for audio in rows["audio"]]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise DataError(
            f"{source}: {len(missing)} of {len(paths)} files of the {split} split are not there, such as "
            f"{missing[0]}. Only training clips can be done without: take the rows out of the file."
        )
