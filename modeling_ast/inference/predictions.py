"""What a model says of clips whose labels are known: decisions, figures of each label, and a table of all clips."""

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modeling_ast.data.files import written_beside
from modeling_ast.data.metrics import per_class_metrics, positive_labels
from modeling_ast.inference.timeline import DEFAULT_THRESHOLD

CLASS_COLUMNS = ("label", "clips", "predicted", "precision", "recall", "F1", "AP", "AUC")


def label_thresholds(label_names: Sequence[str], thresholds: Mapping[str, float] | None) -> np.ndarray:
    """The score from which on each label counts as present: the one fitted to the model, else 0.5. (num_labels,)"""
    return np.array([(thresholds or {}).get(name, DEFAULT_THRESHOLD) for name in label_names])


def decide(probabilities: np.ndarray, problem_type: str, thresholds: np.ndarray) -> np.ndarray:
    """Which labels a model names, as booleans (clips, num_labels).

    Args:
        probabilities: Of shape (clips, num_labels).
        problem_type: "single_label_classification" names the most probable label, others each from its threshold on.
        thresholds: Of the labels, (num_labels,).
    """
    if problem_type == "single_label_classification":
        return probabilities.argmax(axis=1)[:, None] == np.arange(probabilities.shape[1])
    return probabilities >= thresholds


def class_figures(
    probabilities: np.ndarray, decisions: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> list[dict[str, Any]]:
    """`CLASS_COLUMNS` of each label; `None` for what cannot be told.

    Args:
        probabilities: Of shape (clips, num_labels).
        decisions: As from `decide`.
        labels: Class indices or multi-hot.
        label_names: Of the columns.

    Raises:
        DivergedError, ValueError: As from `per_class_metrics`.
    """
    positives = positive_labels(probabilities, labels)
    hits, named, present = (each.sum(axis=0) for each in (decisions & positives, decisions, positives))
    rows = []
    for known, hit, predicted, clips in zip(
        per_class_metrics(probabilities, labels, label_names), hits.tolist(), named.tolist(), present.tolist()
    ):
        rows.append(
            {
                "label": known["label"],
                "clips": clips,
                "predicted": predicted,
                "precision": hit / predicted if predicted else None,
                "recall": hit / clips if clips else None,
                "F1": 2 * hit / (predicted + clips) if clips else None,
                "AP": known["AP"],
                "AUC": known["AUC"],
            }
        )
    return rows


def write_class_figures(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """What `class_figures` gives as a CSV table; empty where a value cannot be told."""
    with written_beside(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CLASS_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_predictions(
    path: str | os.PathLike,
    clips: Sequence[tuple[str, str]],
    probabilities: np.ndarray,
    decisions: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
) -> None:
    """A CSV table with a row a clip.

    Its columns: path; split; truth and prediction, of several labels with semicolons between; score, the highest
    probability; and `p_LABEL` for each label, its probability.

    Args:
        path: Of the table.
        clips: Path and split of each; empty where there is none.
        probabilities: Of shape (clips, num_labels).
        decisions: As from `decide`.
        labels: Class indices or multi-hot.
        label_names: Of the columns.
    """
    names = np.array(label_names, dtype=object)
    with written_beside(path) as unfinished:
        # Names of files may hold bytes that are no UTF-8.
        with open(unfinished, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "split", "truth", "prediction", "score", *(f"p_{name}" for name in names)])
            for clip, row, named, present in zip(
                clips, probabilities, decisions, positive_labels(probabilities, labels)
            ):
                truth, prediction = (";".join(names[each]) for each in (present, named))
                writer.writerow([*clip, truth, prediction, *(f"{value:.6g}" for value in (row.max(), *row))])
