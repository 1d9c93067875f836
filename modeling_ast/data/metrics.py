"""Metrics of predictions on a data set, as pure functions of probabilities and labels.

`probabilities` and `scores` are of shape (clips, num_labels); scores may be any monotone function of probabilities
of one label. `labels` are class indices (clips,) or multi-hot (clips, num_labels), integers, floats or booleans.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy.special import ndtri
from transformers.utils import logging

from modeling_ast.data.files import written_beside
from modeling_ast.data.scores import score_function, to_scores

logger = logging.get_logger(__name__)

COUNT_LEFT_OUT = "classes_without_positives"

# What `compute_metrics` gives, in the order of tables: its words, and the Hub's identifier of those that it compares.
# Result tables, the best epoch, ensembles and model cards go by it.
METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "mAP": ("mAP", "mAP"),
    "mAUC": ("mean AUC", "mAUC"),
    "d_prime": ("d′", "d_prime"),
    "macro_f1": ("macro F1", "f1"),
    "micro_f1": ("micro F1", "f1"),
    COUNT_LEFT_OUT: ("classes without positives, left out of the means", None),
}
# For `evaluate.load`: the same metrics as an `evaluate.Metric`, found without a network.
AUDIO_TAGGING_METRIC = str(Path(__file__).parent / "audio_tagging")


class DivergedError(ValueError):
    """Scores that are no numbers, as of a model whose training diverged."""


def to_probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Logits to float32 probabilities: a sigmoid each for several labels a clip, one softmax for a single label.

    Raises:
        ValueError: A problem type without probabilities.
    """
    if problem_type not in ("multi_label_classification", "single_label_classification"):
        raise ValueError(
            "Expected problem_type multi_label_classification or single_label_classification, which have "
            f"probabilities, got {problem_type}."
        )
    return to_scores(logits, score_function(problem_type))


def multi_hot(labels: Iterable[int | Sequence[int]], num_labels: int) -> np.ndarray:
    """The `labels` of rows, one class index or a list of them each, as booleans of shape (clips, num_labels)."""
    return np.array([np.isin(np.arange(num_labels), clip) for clip in labels]).reshape(-1, num_labels)


def check_finite(scores: np.ndarray) -> None:
    """
    Raises:
        DivergedError: Scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise DivergedError("Expected finite scores, got NaN or infinite ones. Did the training diverge?")


def positive_labels(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which clip has which label, as booleans of the shape of the scores.

    Raises:
        DivergedError: Scores that are not finite.
        ValueError: Scores of no clip, or labels that do not fit them.
    """
    if scores.ndim != 2 or len(scores) == 0:
        raise ValueError(f"Expected scores of shape (clips, num_labels) of at least one clip, got {scores.shape}.")
    check_finite(scores)
    if labels.shape not in (scores.shape, scores.shape[:1]):
        raise ValueError(
            f"Expected labels of shape {scores.shape[:1]} or {scores.shape}, as the scores, got {labels.shape}."
        )
    if labels.dtype == bool:
        return labels
    known = np.arange(scores.shape[1]) if labels.ndim == 1 else (0, 1)
    if not np.isin(labels, known).all():
        raise ValueError(f"Expected labels from {known[0]} to {known[-1]}, got {np.setdiff1d(labels, known)[:5]}.")
    return labels[:, None] == known if labels.ndim == 1 else labels == 1


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of clips whose highest score is the label's.

    Args:
        scores: Of shape (clips, num_labels).
        labels: Class indices (clips,), or one-hot or soft labels (clips, num_labels).
    """
    labels = labels.argmax(axis=1) if labels.ndim == 2 else labels
    return float((scores.argmax(axis=1) == labels).mean())


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each class (num_labels,); NaN for a class without positives.

    Raises:
        DivergedError, ValueError: As from `positive_labels`.

    Source: scikit-learn's, as in the original: the step-wise sum over the precision-recall curve, which is the mean,
    over the positive clips, of the precision among all clips that score at least as high. So the scores alone have to
    be sorted, not the clips by them, which takes a fraction of the time.
    """
    positives = positive_labels(scores, labels)
    return _per_class(_precision_of_class, scores, positives, positives.any(axis=0))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class (num_labels,); NaN for one without positives or without negatives.

    Raises:
        DivergedError, ValueError: As from `positive_labels`.

    Source: the share of pairs of a positive and a negative clip that are in the right order, of which ties are half
    right (Mann and Whitney, 1947).
    """
    positives = positive_labels(scores, labels)
    return _per_class(_area_of_class, scores, positives, positives.any(axis=0) & ~positives.all(axis=0))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """mAP: the mean of `average_precision` over the classes that have positives.

    Raises:
        DivergedError: As from `positive_labels`.
        ValueError: No class has a positive clip; or as from `positive_labels`.
    """
    return _mean(average_precision(scores, labels), "a class with positive clips for mAP")


def d_prime(mean_auc: float) -> float:
    """How far apart, in deviations, two normal distributions are whose AUC is `mean_auc`; of 1 it is infinite.

    Source: the original: sqrt(2) times the standard normal quantile of the mean AUC (not a mean over classes).
    """
    return float(np.sqrt(2) * ndtri(mean_auc))


def f1(
    probabilities: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray | None = 0.5
) -> tuple[float, float]:
    """Macro F1, over the classes that have positives, and micro F1, over all decisions.

    Args:
        probabilities: Of shape (clips, num_labels).
        labels: Class indices or multi-hot.
        threshold: A label is predicted where its probability is at least this, one for all or one a label; `None`
            predicts the highest alone.

    Raises:
        DivergedError: As from `positive_labels`.
        ValueError: No class has a positive clip; or as from `positive_labels`.
    """
    positives = positive_labels(probabilities, labels)
    if threshold is None:
        predicted = probabilities.argmax(axis=1)[:, None] == np.arange(probabilities.shape[1])
    else:
        predicted = probabilities >= threshold
    hits = (predicted & positives).sum(axis=0)
    marked = predicted.sum(axis=0) + positives.sum(axis=0)  # twice the hits, plus what is missed or invented
    has_positives = positives.any(axis=0)
    macro = _mean(2 * hits[has_positives] / marked[has_positives], "a class with positive clips for F1")
    return macro, float(2 * hits.sum() / marked.sum())


def compute_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    problem_type: str,
    threshold: float | np.ndarray = 0.5,
    label_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """All metrics of one set of predictions, finite numbers only.

    A class without positives is left out of the means, and so is one without negatives for the AUC; a warning
    names them. What cannot be told is not in the result: everything but the count without any label, mAUC and d'
    where no class has positives and negatives, d' alone where it is infinite (mAUC of 0 or 1).

    Args:
        probabilities: As `to_probabilities` gives them, of shape (clips, num_labels). The original takes sigmoids
            of every model; after a softmax mAP and mAUC of a single-label model differ a little from its figures.
        labels: Class indices or multi-hot.
        problem_type: Decides what F1 takes for predicted: at the threshold for "multi_label_classification", the
            highest for "single_label_classification".
        threshold: For F1 with several labels a clip, in [0, 1]: one for all, or one a label, (num_labels,).
        label_names: For the warning; `None` means `LABEL_0` and so on.

    Returns:
        `accuracy` (where every clip has exactly one label), `mAP`, `mAUC`, `d_prime`, `macro_f1`, `micro_f1`,
        `classes_without_positives`.

    Raises:
        DivergedError: Probabilities that are not finite.
        ValueError: No clips, labels that do not fit the probabilities, or another number of label names than of
            columns.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    positives = positive_labels(probabilities, labels)
    has_positives = positives.any(axis=0)
    _warn_of_left_out(has_positives, positives.all(axis=0), _names(label_names, len(has_positives)))
    metrics = {}
    if (positives.sum(axis=1) == 1).all():
        metrics["accuracy"] = accuracy(probabilities, positives)
    if has_positives.any():
        metrics["mAP"] = mean_average_precision(probabilities, positives)
        areas = roc_auc(probabilities, positives)
        if not np.isnan(areas).all():
            metrics["mAUC"] = float(np.nanmean(areas))
            if np.isfinite(d_prime(metrics["mAUC"])):
                metrics["d_prime"] = d_prime(metrics["mAUC"])
        is_single = problem_type == "single_label_classification"
        metrics["macro_f1"], metrics["micro_f1"] = f1(probabilities, positives, None if is_single else threshold)
    return metrics | {COUNT_LEFT_OUT: int((~has_positives).sum())}


def per_class_metrics(
    probabilities: np.ndarray, labels: np.ndarray, label_names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """`label`, `AP`, `AUC` and `positives` (number of clips) of each class; `None` for what cannot be told.

    Raises:
        DivergedError, ValueError: As from `compute_metrics`.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    positives = positive_labels(probabilities, labels)
    values = zip(
        _names(label_names, positives.shape[1]),
        average_precision(probabilities, positives),
        roc_auc(probabilities, positives),
        positives.sum(axis=0),
    )
    return [
        {
            "label": name,
            "AP": None if np.isnan(precision) else float(precision),
            "AUC": None if np.isnan(area) else float(area),
            "positives": int(count),
        }
        for name, precision, area, count in values
    ]


def write_figures(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Figures of labels, a row each, as a table with a header; empty where one cannot be told."""
    with written_beside(path) as unfinished:
        pandas.DataFrame(rows).to_csv(unfinished, index=False, lineterminator="\r\n")


def _per_class(metric: Callable, scores: np.ndarray, positives: np.ndarray, is_defined: np.ndarray) -> np.ndarray:
    """A metric of the sorted scores of all clips, and of the positive ones."""
    values = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(is_defined):
        own = scores[:, index]
        values[index] = metric(np.sort(own), np.sort(own[positives[:, index]]))
    return values


def _precision_of_class(of_all: np.ndarray, of_positives: np.ndarray) -> float:
    hits = len(of_positives) - np.searchsorted(of_positives, of_positives)  # that score at least as high as each
    return np.mean(hits / (len(of_all) - np.searchsorted(of_all, of_positives)))


def _area_of_class(of_all: np.ndarray, of_positives: np.ndarray) -> float:
    lower, lower_or_equal = (  # negatives, for each positive clip
        np.searchsorted(of_all, of_positives, side) - np.searchsorted(of_positives, of_positives, side)
        for side in ("left", "right")
    )
    return np.mean(lower + lower_or_equal) / 2 / (len(of_all) - len(of_positives))


def _mean(values: np.ndarray, needed: str) -> float:
    """Mean of what is not NaN."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        raise ValueError(f"Expected {needed}, got none.")
    return float(values.mean())


def _names(label_names: Sequence[str] | None, num_labels: int) -> list[str]:
    names = [f"LABEL_{index}" for index in range(num_labels)] if label_names is None else list(label_names)
    if len(names) != num_labels:
        raise ValueError(f"Expected {num_labels} label names, one a column of the scores, got {len(names)}.")
    return names


def _warn_of_left_out(has_positives: np.ndarray, is_everywhere: np.ndarray, names: list[str]) -> None:
    """Once for the same classes, not after every epoch anew."""
    if not has_positives.any():
        logger.warning_once("No clip that is evaluated has a label, so that there is no mAP, AUC and F1.")
        return
    parts = []
    for left_out, kind, metrics in (
        (~has_positives, "positive", "mAP, mAUC and macro F1"),
        (is_everywhere, "negative", "mAUC"),
    ):
        found = [name for name, is_left_out in zip(names, left_out) if is_left_out]
        if found:
            more = f" and {len(found) - 20} more" if len(found) > 20 else ""
            listed = ", ".join(found[:20]) + more
            parts.append(
                f"{len(found)} of {len(names)} classes have no {kind} clip and are left out of {metrics}: {listed}."
            )
    if parts:
        logger.warning_once(" ".join(parts))
