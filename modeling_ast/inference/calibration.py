"""Calibration of scores, and a threshold for each label, the score from which on it counts as present.

Three steps, in this order: a temperature is found on validation logits (`fit_temperature`), folded into the classifier
(`fold_temperature`), and thresholds are found on the scores of what results (`fit_thresholds`), to be kept as
`model.config.thresholds`. A temperature changes the scores, so that thresholds from before it mean nothing after it.

Fit on validation clips that the model was not trained on: on its training clips any model is surer than it should be.
What was reached is told by clips that nothing was fitted or chosen on.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import precision_recall_curve

from modeling_ast import ASTForAudioClassification
from modeling_ast.data.intervals import as_ends, mean_interval, metric_intervals
from modeling_ast.data.metrics import accuracy, f1, positive_labels, to_probabilities
from modeling_ast.inference.timeline import DEFAULT_THRESHOLD

logger = logging.getLogger(__name__)

# Where a temperature is looked for: far beyond what trained networks need.
TEMPERATURES = (0.01, 100.0)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification")


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """What training minimises, in float64: mean cross entropy, over clips, or over clips and labels if multi-label.

    Args:
        logits: Of shape (clips, num_labels).
        labels: Class indices or multi-hot.
        problem_type: "single_label_classification" or "multi_label_classification".

    Raises:
        ValueError: Another problem type, labels that do not fit the logits, or, for a single label, clips with several
            labels or none.
    """
    return float(_clip_losses(logits, labels, problem_type).mean())


def _clip_losses(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> np.ndarray:
    logits, positives = _check(logits, labels, problem_type)
    if problem_type == "single_label_classification":
        return -log_softmax(logits, axis=1)[positives]
    return np.logaddexp(0, np.where(positives, -logits, logits)).mean(axis=1)


def fit_temperature(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """The number T for which softmax or sigmoid of logits / T have the lowest negative log-likelihood.

    Args:
        logits: Of shape (clips, num_labels), of validation clips.
        labels: Class indices or multi-hot.
        problem_type: "single_label_classification" or "multi_label_classification".

    Returns:
        Above 1 where the model is surer than it is right, below 1 where it is less sure.

    Raises:
        ValueError: As from `negative_log_likelihood`; or there is no such number, because every clip is classified
            right, or because the logits say no more than chance.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
        https://arxiv.org/abs/1706.04599. The loss is convex in 1 / T, so that its slope has one zero.
    """
    logits, positives = _check(logits, labels, problem_type)
    if problem_type == "single_label_classification":
        beyond_label = logits - logits[positives][:, None]

        def slope(log_temperature: float) -> float:  # of the loss along 1 / T; no difference of large numbers
            return float((softmax(logits / np.exp(log_temperature), axis=1) * beyond_label).sum(axis=1).mean())

    else:
        signed = np.where(positives, -logits, logits)

        def slope(log_temperature: float) -> float:
            return float((expit(signed / np.exp(log_temperature)) * signed).mean())

    lowest, highest = np.log(TEMPERATURES)
    if slope(lowest) <= 0:
        raise ValueError(
            "Expected validation clips of which some are classified wrong, but the smaller the temperature the "
            "better: there is none to find. Take more clips, and such that the model was not trained on, or leave the "
            "scores as they are (--no_temperature)."
        )
    if slope(highest) >= 0:
        raise ValueError(
            "Expected logits that say more than chance, but the larger the temperature the better: there is none to "
            "find. Are these the model's labels, and is it trained?"
        )
    return float(np.exp(brentq(slope, lowest, highest, xtol=1e-10)))


@torch.no_grad()
def fold_temperature(model: ASTForAudioClassification, temperature: float) -> None:
    """Divide the logits of a model by a temperature, in place, through the weights of its classifier.

    So the scores are the same wherever the model is loaded. Which label is the most probable stays. Thresholds that
    the model has are dropped, as they were fitted to other scores: fit them after this.

    Raises:
        ValueError: The temperature is not a finite number above 0, or the model's outputs are no logits.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"Expected a temperature above 0, got {temperature}.")
    if model.config.problem_type == "regression":
        raise ValueError("Expected a classifier to fold a temperature into, got a model for regression.")
    dense = model.classifier.dense
    dense.weight /= temperature
    dense.bias /= temperature
    if model.config.thresholds is not None:
        logger.warning("The thresholds of the model were fitted to its scores before the temperature: dropped.")
        model.config.thresholds = None


@dataclass(frozen=True)
class FittedThresholds:
    """What `fit_thresholds` found.

    Attributes:
        thresholds: By label, as `ASTConfig.thresholds` holds them.
        without_positives: Labels without a threshold because no clip has them.
        precision_not_reached: Labels without a threshold because none gives the wanted precision.
    """

    thresholds: dict[str, float]
    without_positives: tuple[str, ...]
    precision_not_reached: tuple[str, ...]


def fit_thresholds(
    probabilities: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    target_precision: float | None = None,
) -> FittedThresholds:
    """For each label the score from which on it counts as present.

    A threshold lies midway between two neighbouring scores of the clips (below the lowest of them, between it and 0),
    so that a difference of rounding changes no decision. Of equally good ones the highest is taken, which names the
    label least often. Thresholds of labels with few positive clips say little about other clips.

    A label without a threshold is left to whoever decides: the pipeline leaves no such label out, whatever its score,
    and in the timeline its events begin at 0.5.

    Args:
        probabilities: Of shape (clips, num_labels), in the order of the names, of validation clips.
        labels: Class indices or multi-hot.
        label_names: Of the columns.
        target_precision: Share of the clips named that must have the label, in (0, 1]: the threshold is the smallest
            that reaches it, which finds most of the clips. `None` takes the threshold of the best F1.

    Raises:
        ValueError: A precision outside (0, 1], scores that are no probabilities, another number of names than of
            columns, a name that is there twice, or labels that do not fit the scores.
    """
    if target_precision is not None and not 0 < target_precision <= 1:
        raise ValueError(f"Expected target_precision in (0, 1], got {target_precision}.")
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    positives = positive_labels(probabilities, labels)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            f"Expected probabilities in [0, 1], got {probabilities.min():.4g} to {probabilities.max():.4g}: are these "
            "logits?"
        )
    if len(label_names) != probabilities.shape[1] or len(set(label_names)) < len(label_names):
        raise ValueError(
            f"Expected {probabilities.shape[1]} different label names, one a column, got {len(set(label_names))}."
        )
    thresholds, without_positives, precision_not_reached = {}, [], []
    for name, scores, is_positive in zip(label_names, probabilities.T, positives.T):
        if not is_positive.any():
            without_positives.append(name)
            continue
        precision, recall, cuts = precision_recall_curve(is_positive, scores)
        precision, recall = precision[:-1], recall[:-1]  # the last point is that of no clip named
        if target_precision is None:
            f1 = 2 * precision * recall / (precision + recall).clip(min=np.finfo(float).tiny)
            chosen = np.flatnonzero(f1 >= f1.max() - 1e-12)[-1]  # equal but for rounding
        elif (precision >= target_precision).any():
            chosen = np.flatnonzero(precision >= target_precision)[0]
        else:
            precision_not_reached.append(name)
            continue
        below = cuts[chosen - 1] if chosen else 0.0
        thresholds[name] = (float(below) + float(cuts[chosen])) / 2
    return FittedThresholds(thresholds, tuple(without_positives), tuple(precision_not_reached))


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, problem_type: str, num_bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often the model is right, by how sure it is.

    For a single label a clip counts by its highest probability, and is right where that is its label's. For several
    labels every label of every clip counts by its probability, and is right where the clip has it.

    Args:
        probabilities: Of shape (clips, num_labels).
        labels: Class indices or multi-hot.
        problem_type: "single_label_classification" or "multi_label_classification".
        num_bins: Equal parts of [0, 1], each without its lower end.

    Returns:
        For each bin that has any: mean probability, share that is right, and number. Float64, float64 and int64.

    Raises:
        ValueError: As from `negative_log_likelihood`.
    """
    probabilities, positives = _check(probabilities, labels, problem_type)
    if problem_type == "single_label_classification":
        best = probabilities.argmax(axis=1)[:, None]
        probabilities, positives = (np.take_along_axis(array, best, axis=1) for array in (probabilities, positives))
    bins = np.ceil(probabilities.ravel() * num_bins).astype(int).clip(1, num_bins) - 1
    counts = np.bincount(bins, minlength=num_bins)
    filled = counts > 0
    confidence = np.bincount(bins, weights=probabilities.ravel(), minlength=num_bins)[filled] / counts[filled]
    share = np.bincount(bins, weights=positives.ravel(), minlength=num_bins)[filled] / counts[filled]
    return confidence, share, counts[filled]


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, problem_type: str, num_bins: int = 15
) -> float:
    """Mean distance between how sure a model is and how often it is right, over what `reliability` counts.

    Raises:
        ValueError: As from `negative_log_likelihood`.

    Source: Guo et al., 2017, equation 3, with their 15 bins.
    """
    confidence, share, counts = reliability(probabilities, labels, problem_type, num_bins)
    return float(np.average(np.abs(confidence - share), weights=counts))


def calibrate(
    model: ASTForAudioClassification,
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    with_temperature: bool = True,
    with_thresholds: bool = True,
    target_precision: float | None = None,
) -> dict[str, Any]:
    """Find temperature and thresholds, and put them into the model.

    Args:
        model: Whose classifier and configuration change.
        logits: Of shape (clips, num_labels), in the order of the names, of validation clips.
        labels: Class indices or multi-hot.
        label_names: Of the columns.
        with_temperature: Whether to fit one.
        with_thresholds: Whether to fit them.
        target_precision: As for `fit_thresholds`.

    Returns:
        What was found, and which labels have no threshold.

    Raises:
        ValueError: As from `fit_temperature` and `fit_thresholds`.
    """
    problem_type = model.config.problem_type
    results = {"problem_type": problem_type, "temperature": None, "target_precision": target_precision}
    if with_temperature:
        results["temperature"] = fit_temperature(logits, labels, problem_type)
        fold_temperature(model, results["temperature"])
    if not with_thresholds:
        return results
    probabilities = to_probabilities(logits / (results["temperature"] or 1), problem_type)
    fitted = fit_thresholds(probabilities, labels, label_names, target_precision)
    model.config.thresholds = fitted.thresholds
    for key, reason in (
        ("without_positives", "no validation clip has them"),
        ("precision_not_reached", f"no score reaches a precision of {target_precision}"),
    ):
        results[key] = list(getattr(fitted, key))
        if results[key]:
            logger.warning(
                f"{len(results[key])} of {len(label_names)} labels get no threshold, as {reason}; the metrics count "
                f"them from {DEFAULT_THRESHOLD} on: {', '.join(results[key])}."
            )
    return results


def measure_splits(
    predictions: Mapping[str, tuple[np.ndarray, np.ndarray]],
    problem_type: str,
    temperature: float,
    before: np.ndarray,
    after: np.ndarray,
    groups: Mapping[str, Sequence[str] | None] = MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """How good scores and decisions are on each split, before a calibration and after it.

    Args:
        predictions: Logits of before and labels, by split.
        problem_type: "single_label_classification" or "multi_label_classification".
        temperature: By which logits are divided after.
        before: The thresholds of before, (num_labels,).
        after: Those of after.
        groups: Of the clips of a split, as for `metric_intervals`.

    Returns:
        Metrics by split, with the ends of their intervals, but on the validation clips, which chose it, of what comes
        after; and of the last split, which is the one to report, what
        `plot_reliability` draws.
    """
    results = {}
    for split, (logits, labels) in predictions.items():  # validation, and test where there is one
        results[split], curves = {"clips": len(logits)}, {}
        for when, scaled, thresholds in (("before", logits, before), ("after", logits / temperature, after)):
            probabilities = to_probabilities(scaled, problem_type)
            results[split][when] = {
                "nll": negative_log_likelihood(scaled, labels, problem_type),
                "ece": expected_calibration_error(probabilities, labels, problem_type),
                **_measure_decisions(probabilities, labels, problem_type, thresholds),
            }
            given = probabilities, labels, problem_type, thresholds, groups.get(split)
            if (split, when) != ("validation", "after"):  # whose clips have chosen it
                results[split][when] |= _find_ends(results[split][when], scaled, *given)
            curves[f"{split}, {when}"] = reliability(probabilities, labels, problem_type)
    return results, curves


def _measure_decisions(
    probabilities: np.ndarray, labels: np.ndarray, problem_type: str, thresholds: np.ndarray
) -> dict[str, float]:
    """The model's own decisions; of a single label also what its thresholds would decide."""
    macro_f1, micro_f1 = f1(probabilities, labels, thresholds)
    if problem_type == "multi_label_classification":
        return {"macro_f1": macro_f1, "micro_f1": micro_f1}
    of_best = dict(zip(("macro_f1", "micro_f1"), f1(probabilities, labels, None)))
    at_thresholds = {"macro_f1_at_thresholds": macro_f1, "micro_f1_at_thresholds": micro_f1}
    return {"accuracy": accuracy(probabilities, labels), **of_best, **at_thresholds}


def _find_ends(
    measured: Mapping[str, float],
    logits: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    problem_type: str,
    thresholds: np.ndarray,
    groups: Sequence[str] | None,
) -> dict[str, float]:
    """Of the intervals of all but the calibration error, which is no mean of clips: too high on average of few."""
    intervals = metric_intervals(measured, probabilities, labels, problem_type, thresholds, groups)
    if len(set(groups or range(len(labels)))) > 1:
        intervals["nll"] = mean_interval(_clip_losses(logits, labels, problem_type), groups)
    if problem_type == "single_label_classification":
        kind, f1_keys = "multi_label_classification", ("macro_f1", "micro_f1")  # each label from its threshold on
        at_thresholds = {key: measured[f"{key}_at_thresholds"] for key in f1_keys}
        found = metric_intervals(at_thresholds, probabilities, labels, kind, thresholds, groups)
        intervals |= {f"{key}_at_thresholds": interval for key, interval in found.items()}
    return as_ends(intervals)


def _check(scores: np.ndarray, labels: np.ndarray, problem_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores in float64, and booleans of their shape."""
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"Expected problem_type out of {', '.join(PROBLEM_TYPES)}, got {problem_type}.")
    scores = np.asarray(scores, dtype=np.float64)
    positives = positive_labels(scores, np.asarray(labels))
    if problem_type == "single_label_classification" and not (positives.sum(axis=1) == 1).all():
        raise ValueError(f"Expected exactly one label a clip for {problem_type}, got clips with several or none.")
    return scores, positives
