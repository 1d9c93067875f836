"""What models say of clips: decisions, and the table `predictions.csv` that commands write and compare."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from datasets import Dataset

from modeling_ast.data.clips import iterate_clips
from modeling_ast.data.files import written_beside
from modeling_ast.data.held_out import read_groups
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import positive_labels

PREDICTIONS_NAME = "predictions.csv"
_PROBABILITY = "p_"


def decide(probabilities: np.ndarray, problem_type: str, thresholds: float | np.ndarray) -> np.ndarray:
    """Which labels a model names, as booleans (clips, num_labels).

    Args:
        probabilities: Of shape (clips, num_labels).
        problem_type: "single_label_classification" names the most probable label, others each from its threshold on.
        thresholds: Of the labels, (num_labels,), or one for all.
    """
    if problem_type == "single_label_classification":
        return probabilities.argmax(axis=1)[:, None] == np.arange(probabilities.shape[1])
    return probabilities >= thresholds


def list_clips(chosen: Mapping[str, Dataset]) -> pandas.DataFrame:
    """What tells clips apart, a row each: path (of a stretch with its times), group where there are some, and split.

    Args:
        chosen: Rows by split, decoded or not; those of data without splits by "all", which is left empty. A sound in a
            table may have no path.
    """
    parts = []
    for split, rows in chosen.items():
        part = {"path": [clip.name or "" for clip in iterate_clips(rows.with_format("arrow"))]}
        if (groups := read_groups(rows)) is not None:
            part["group"] = groups
        parts.append(pandas.DataFrame({**part, "split": "" if split == "all" else split}))
    return pandas.concat(parts, ignore_index=True)


def write_predictions(
    path: str | os.PathLike,
    clips: pandas.DataFrame,
    probabilities: np.ndarray,
    decisions: np.ndarray,
    labels: np.ndarray | None,
    label_names: Sequence[str],
) -> None:
    """A CSV table with a row a clip.

    Its columns: those of `list_clips`; truth, where it is known, and prediction, of several labels with semicolons
    between; score, the highest probability; and `p_LABEL` for each label, its probability.

    Args:
        path: Of the table.
        clips: As from `list_clips`.
        probabilities: Of shape (clips, num_labels).
        decisions: As from `decide`.
        labels: Class indices or multi-hot; `None` of clips without.
        label_names: Of the columns.
    """
    names = np.array(label_names, dtype=object)
    table = clips.copy()
    if labels is not None:
        positives = positive_labels(probabilities, labels) if len(table) else []  # of mistakes there may be none
        table["truth"] = [";".join(names[present]) for present in positives]
    table["prediction"] = [";".join(names[named]) for named in decisions]
    table["score"] = probabilities.max(axis=1)
    table = table.join(pandas.DataFrame(probabilities, columns=[f"{_PROBABILITY}{name}" for name in names]))
    options = {"index": False, "float_format": "%.6g", "lineterminator": "\r\n"}
    with written_beside(path) as unfinished:  # names of files may hold bytes that are no UTF-8
        table.to_csv(unfinished, errors="backslashreplace", **options)


def read_predictions(path: Path) -> pandas.DataFrame:
    """What `write_predictions` wrote, text as it was.

    Raises:
        DataError: No such table.
    """
    try:
        header = pandas.read_csv(path, nrows=0)
        numbers = [name for name in header if name.startswith(_PROBABILITY)]
        kinds = {name: float if name in numbers else str for name in header}
        table = pandas.read_csv(path, keep_default_na=False, dtype=kinds)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a table of predictions, which cannot be read ({error}).") from error
    if not numbers or not {"path", "truth", "prediction"} <= set(table):
        raise DataError(f"{path}: expected columns path, truth, prediction and p_LABEL, got {', '.join(table)[:200]}.")
    return table


def label_names_of(table: pandas.DataFrame) -> list[str]:
    """The labels of a table of predictions, in its order."""
    return [name.removeprefix(_PROBABILITY) for name in table if name.startswith(_PROBABILITY)]


def probabilities_of(table: pandas.DataFrame, label_names: Sequence[str]) -> np.ndarray:
    """(clips, num_labels), of these labels."""
    return table[[f"{_PROBABILITY}{name}" for name in label_names]].to_numpy()


def named_labels(column: Sequence[str], label_names: Sequence[str]) -> np.ndarray:
    """Which labels a column of truth or prediction names, as booleans (clips, num_labels).

    A name may hold a semicolon itself: of what stands between some, the longest that is a name is taken.

    Raises:
        DataError: A name that is none of the labels.
    """
    places = {name: index for index, name in enumerate(label_names)}
    named = np.zeros((len(column), len(places)), bool)
    for row, cell in enumerate(column):
        parts = cell.split(";") if cell else []
        while parts:
            ends = (end for end in range(len(parts), 0, -1) if ";".join(parts[:end]) in places)
            if (end := next(ends, None)) is None:
                raise DataError(f"Expected labels of the table, {', '.join(label_names)[:200]}, got {parts[0]!r}.")
            named[row, places[";".join(parts[:end])]] = True
            parts = parts[end:]
    return named


def group_figures(groups: Sequence[str], decisions: np.ndarray, positives: np.ndarray) -> list[dict[str, Any]]:
    """Of each group: its name, its clips, and the share whose labels are named exactly, worst first.

    Args:
        groups: Of the clips, (clips,).
        decisions: As from `decide`.
        positives: Booleans, (clips, num_labels).
    """
    right = (decisions == positives).all(axis=1)
    table = pandas.DataFrame({"group": groups, "clips": 1, "right": right}).groupby("group", sort=True)
    figures = table.agg(clips=("clips", "size"), right=("right", "mean")).sort_values("right", kind="stable")
    return [{"group": name, "clips": int(row.clips), "right": float(row.right)} for name, row in figures.iterrows()]
