"""Linear classifiers on stored embeddings: fitted in seconds, judged on groups that they have not seen."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from modeling_ast.data.intervals import Interval, metric_intervals
from modeling_ast.data.metrics import accuracy, mean_average_precision
from modeling_ast.data.scores import score_function, to_scores
from modeling_ast.inference.examples import Examples

# scikit-learn's C, the inverse of how much large weights cost. Of standardised features more than 10 changes no more.
STRENGTHS = tuple(10.0**power for power in range(-5, 2))
# Where there is too little to choose by.
DEFAULT_STRENGTH = 0.01
MAX_FOLDS = 5
# Beyond what a layer norm gives: features that vary less are not blown up to rounding errors.
MIN_DEVIATION = 0.01
_PROBABILITY_OF_UNKNOWN = 1e-6  # of a class that a fold has not seen


@dataclass(frozen=True)
class LinearHead:
    """Logits of normalised embeddings: `weight @ (features - mean) / deviation + bias`.

    Attributes:
        mean: Of the features it was fitted on, (features,).
        deviation: Of the same, none below `MIN_DEVIATION`.
        weight: (num_labels, features).
        bias: (num_labels,).
        strength: The C that it was fitted with.
    """

    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Of shape (rows, num_labels)."""
        return (features - self.mean) / self.deviation @ self.weight.T + self.bias


@dataclass(frozen=True)
class Expectation:
    """What a head does on groups that it has not seen.

    Attributes:
        metric: "accuracy" or "mAP".
        value: Of the metric, over all labelled stretches, each predicted by a head that has not seen its group.
        interval: Of 95 %, by the groups; `None` where they leave none to tell (`metric_intervals`).
        num_folds: How often a part of the groups was left out.
        num_groups: How many there are.
        probabilities: Of each stretch, (stretches, num_labels).
    """

    metric: str
    value: float
    interval: Interval | None
    num_folds: int
    num_groups: int
    probabilities: np.ndarray

    def summary(self) -> dict[str, Any]:
        """What can be told in numbers, as JSON holds it; the ends of an interval that there is not are `None`."""
        low, high = (None, None) if self.interval is None else (self.interval.low, self.interval.high)
        numbers = {"value": self.value, "low": low, "high": high}
        return {"metric": self.metric, **numbers, "folds": self.num_folds, "groups": self.num_groups}


def normalize(vectors: np.ndarray, epsilon: float) -> np.ndarray:
    """What the layer norm of a classifier makes of pooled outputs before its weights, in float64.

    Args:
        vectors: Of shape (rows, hidden_size).
        epsilon: Of the layer norm.
    """
    vectors = vectors.astype(np.float64)
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + epsilon)


def fit_heads(
    features: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    problem_type: str,
    strengths: tuple[float, ...] = STRENGTHS,
) -> list[LinearHead]:
    """A head for each strength.

    Args:
        features: As from `normalize`, (rows, features).
        targets: Which row has which label, booleans (rows, num_labels).
        weights: How much each row counts, (rows,).
        problem_type: "single_label_classification" or "multi_label_classification".
        strengths: From the lowest up.
    """
    share = weights / weights.sum()
    mean = share @ features
    deviation = np.maximum(np.sqrt(share @ np.square(features - mean)), MIN_DEVIATION)
    standard = (features - mean) / deviation
    # With an L2 penalty no weights lie outside of what the rows span, and rotation changes none: a few labels are
    # fitted in as many dimensions as there are rows.
    basis = np.linalg.svd(standard, full_matrices=False)[2] if len(features) < features.shape[1] else None
    rotated = standard if basis is None else standard @ basis.T
    fit = _fit_classes if problem_type == "single_label_classification" else _fit_labels
    heads = []
    for strength, (weight, bias) in zip(strengths, fit(rotated, targets, weights, strengths), strict=True):
        heads.append(LinearHead(mean, deviation, weight if basis is None else weight @ basis, bias, strength))
    return heads


def _fit_classes(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strengths: tuple[float, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of one softmax over all classes, a strength each."""
    labels, num_labels = targets.argmax(axis=1), targets.shape[1]
    present, found = np.unique(labels), []
    regression = LogisticRegression(max_iter=2000, warm_start=True)
    for strength in strengths:
        weight = np.zeros((num_labels, features.shape[1]))
        bias = np.full(num_labels, np.log(_PROBABILITY_OF_UNKNOWN))
        if len(present) == 1:
            bias[present] = 0
        else:
            regression.set_params(C=strength).fit(features, labels, weights)
            coefficients, intercepts = regression.coef_, regression.intercept_
            if len(present) == 2:  # of which scikit-learn has the second one's log-odds alone
                coefficients, intercepts = (np.stack((-each[0], each[0])) / 2 for each in (coefficients, intercepts))
            weight[present], bias[present] = coefficients, intercepts
        found.append((weight, bias))
    return found


def _fit_labels(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strengths: tuple[float, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of a sigmoid each, a strength each."""
    shape = (len(strengths), targets.shape[1])
    weight, bias = np.zeros((*shape, features.shape[1])), np.zeros(shape)
    for label, column in enumerate(targets.T):
        regression = LogisticRegression(max_iter=2000, warm_start=True)
        for place, strength in enumerate(strengths):
            if column.all() or not column.any():  # all that is known is how often
                share = (weights[column].sum() + 0.5) / (weights.sum() + 1)
                bias[place, label] = np.log(share / (1 - share))
            else:
                regression.set_params(C=strength).fit(features, column, weights)
                weight[place, label], bias[place, label] = regression.coef_[0], regression.intercept_[0]
    return list(zip(weight, bias))


def choose_head(features: np.ndarray, examples: Examples, seed: int = 0) -> tuple[LinearHead, Expectation | None]:
    """The head of the strength that does best on groups it has not seen, and what to expect of it.

    The groups are dealt into folds, each of which is predicted by heads that have not seen it. The strength is the one
    with the lowest negative log-likelihood on all stretches; what is expected takes for each fold the strength that is
    the best on the others, and so is not flattered by the choice.

    Args:
        features: Of the examples' rows, as from `normalize`.
        examples: What is known.
        seed: Of the folds.

    Returns:
        The head, fitted on all rows, and what to expect; `None` with `DEFAULT_STRENGTH` where a label has no two
        groups, so that nothing can be told.
    """
    targets, weights, problem_type = examples.targets, examples.weights, examples.problem_type
    num_folds = min(MAX_FOLDS, examples.num_groups_a_label())
    if num_folds < 2:
        return fit_heads(features, targets, weights, problem_type, (DEFAULT_STRENGTH,))[0], None
    folds = _deal(examples, num_folds, seed)
    row_folds = folds[examples.stretches]
    # (strengths, rows, num_labels)
    probabilities = np.zeros((len(STRENGTHS), *targets.shape))
    for fold in range(num_folds):
        held_out = row_folds == fold
        heads = fit_heads(features[~held_out], targets[~held_out], weights[~held_out], problem_type)
        for place, head in enumerate(heads):
            logits = head.logits(features[held_out])
            probabilities[place, held_out] = to_scores(logits, score_function(problem_type))
    probabilities = np.stack([examples.average(each) for each in probabilities])  # (strengths, stretches, num_labels)
    losses = np.stack([_losses(each, examples.truth, problem_type) for each in probabilities])
    chosen = [losses[:, folds != fold].mean(axis=1).argmin() for fold in range(num_folds)]
    expected = probabilities[np.array(chosen)[folds], np.arange(len(folds))]
    strength = STRENGTHS[losses.mean(axis=1).argmin()]
    head = fit_heads(features, targets, weights, problem_type, (strength,))[0]
    return head, _expect(expected, examples, num_folds)


def _deal(examples: Examples, num_folds: int, seed: int) -> np.ndarray:
    """The fold of each stretch."""
    truth, folds = examples.truth, np.zeros(len(examples.truth), int)
    # One label a stretch, of several the rarest: the folds get alike shares of what there is least of.
    rarity = np.where(truth, truth.sum(axis=0), len(truth) + 1)
    kinds = np.where(truth.any(axis=1), rarity.argmin(axis=1), truth.shape[1])
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class in y", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(truth, kinds, examples.groups)):
            folds[held_out] = fold
    return folds


def _losses(probabilities: np.ndarray, truth: np.ndarray, problem_type: str) -> np.ndarray:
    """Negative log-likelihood of each stretch, (stretches,)."""
    probabilities = np.clip(probabilities, 1e-9, 1 - 1e-9)
    if problem_type == "single_label_classification":
        return -np.log(probabilities[truth])
    return -np.log(np.where(truth, probabilities, 1 - probabilities)).mean(axis=1)


def _expect(probabilities: np.ndarray, examples: Examples, num_folds: int) -> Expectation:
    """The metric of all stretches, with its interval."""
    truth, groups, problem_type = examples.truth, examples.groups, examples.problem_type
    if problem_type == "single_label_classification":
        metric, value = "accuracy", accuracy(probabilities, truth)
    else:
        metric, value = "mAP", mean_average_precision(probabilities, truth)
    intervals = metric_intervals({metric: value}, probabilities, truth, problem_type, groups=groups)
    return Expectation(metric, value, intervals.get(metric), num_folds, len(np.unique(groups)), probabilities)
