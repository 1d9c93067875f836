"""How far metrics may be from those of all clips there could be: intervals of 95 %, by a bootstrap.

Clips of one group (a speaker, a site) are drawn together, since they are no independent witnesses. The draws give the
standard error of a metric, from which Student's t with as many degrees of freedom as there are clips or groups, less
one, gives the interval, on the scale of log-odds, where metrics from 0 to 1 spread alike on both sides. It holds the
metric of all clips there could be in 95 of 100 samples (`tests/test_intervals.py`), an accuracy of few groups too;
average precision in some 90 where a class has no more than 25 clips, of which it is higher on average than of many,
and in some 92 of 15 groups.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6, 12 and 13; of a share that is 0 or
1, which leaves no error to draw, Clopper and Pearson (1934).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats
from scipy.special import expit

from modeling_ast.data.metrics import d_prime, positive_labels
from modeling_ast.data.predictions import decide

LEVEL = 0.95
MAX_DRAWS, MIN_DRAWS = 1000, 200
MAX_WORK = 2_000_000_000  # additions: clips x labels x draws
_AT_ONCE = 1 << 24  # numbers, of the weights of clips in some draws


@dataclass(frozen=True)
class Interval:
    """The ends between which 95 % of such intervals have the metric of all clips there could be."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


def metric_intervals(
    metrics: Mapping[str, float],
    probabilities: np.ndarray,
    labels: np.ndarray,
    problem_type: str,
    threshold: float | np.ndarray = 0.5,
    groups: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """Intervals of what `compute_metrics` gives, of the same arguments.

    There are 1,000 draws, or as many as 2 x 10^9 additions allow (clips x labels x draws), but 200 at least: the
    standard error is then known to 5 % of itself. Of 20,000 clips of 527 labels it takes some five seconds.

    Args:
        metrics: What `compute_metrics` gave; others are passed over.
        probabilities: Of shape (clips, num_labels).
        labels: Class indices or multi-hot.
        problem_type: As for `compute_metrics`.
        threshold: As for `compute_metrics`.
        groups: Of the clips, (clips,); `None` where each stands for itself.

    Returns:
        By the names of the metrics; without those that no interval can be told of: of a single clip or group, where
        all draws are alike, but for accuracy, and d' whose interval has no end.

    Raises:
        DivergedError, ValueError: As from `compute_metrics`.
    """
    probabilities = np.asarray(probabilities)
    positives = positive_labels(probabilities, np.asarray(labels))
    units = _number(groups, len(positives))
    num_units = int(units.max()) + 1
    if num_units < 2:
        return {}
    named = decide(probabilities, problem_type, threshold)
    (drawn,) = _draw_metrics([_Prepared(probabilities, named, positives)], units)
    intervals = {}
    for name, value in metrics.items():
        if name == "d_prime" and "mAUC" in intervals:
            ends = d_prime(intervals["mAUC"].low), d_prime(intervals["mAUC"].high)
            if np.isfinite(ends).all():
                intervals[name] = Interval(*ends)
        elif name in drawn and (interval := _on_log_odds(value, drawn[name], num_units)) is not None:
            intervals[name] = interval
        elif name == "accuracy" and value in (0, 1):
            intervals[name] = _of_all_or_none(value, num_units)
    return {name: intervals[name] for name in metrics if name in intervals}


def mean_interval(values: np.ndarray, groups: Sequence[str] | None = None) -> Interval:
    """Of the mean of a number of each clip, such as 1, 0 or -1 by which of two models is right.

    Args:
        values: Of the clips, (clips,).
        groups: As for `metric_intervals`.

    Raises:
        ValueError: A single clip, or a single group.
    """
    units = _number(groups, len(values))
    num_units = int(units.max(initial=-1)) + 1
    if num_units < 2:
        raise ValueError(f"Expected two clips or groups for an interval, got {num_units}.")
    draws = [weights @ values / weights.sum(axis=1) for weights in _draw_weights(units, len(values), MAX_DRAWS)]
    return _around(float(np.mean(values)), np.concatenate(draws), num_units)


def share_interval(flags: np.ndarray, groups: Sequence[str] | None = None) -> Interval | None:
    """Of the share of clips of which something holds.

    Args:
        flags: Whether it does, (clips,).
        groups: As for `metric_intervals`.

    Returns:
        `None` of a single clip or group, of none, and where all draws are alike.
    """
    units, flags = _number(groups, len(flags)), np.asarray(flags, dtype=np.float32)
    num_units = int(units.max(initial=-1)) + 1
    if num_units < 2:
        return None
    if (share := float(flags.mean(dtype=np.float64))) in (0, 1):
        return _of_all_or_none(share, num_units)
    draws = [weights @ flags / weights.sum(axis=1) for weights in _draw_weights(units, len(flags), MAX_DRAWS)]
    return _on_log_odds(share, np.concatenate(draws), num_units)


@dataclass(frozen=True)
class Difference:
    """A metric of two models of the same clips, and the interval of the second less the first; none of one clip."""

    first: float
    second: float
    interval: Interval | None

    @property
    def is_more_than_chance(self) -> bool:
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def metric_differences(
    models: Sequence[tuple[np.ndarray, np.ndarray]], positives: np.ndarray, groups: Sequence[str] | None = None
) -> dict[str, Difference]:
    """What the metrics of two models differ by on the same clips.

    Both are taken of the same clips in every draw: what makes a clip hard for both is no part of the difference.

    Args:
        models: Of both, probabilities (clips, num_labels) and the labels that they name, booleans of that shape.
        positives: The labels of the clips, booleans of that shape.
        groups: As for `metric_intervals`.

    Returns:
        By the name of the metric, of those of `METRICS` that are means and that can be told of both.
    """
    prepared = [_Prepared(scores, named, positives) for scores, named in models]
    units = _number(groups, len(positives))
    num_units, drawn = int(units.max()) + 1, None
    whole = [each.metrics(np.ones((1, len(units)))) for each in prepared]
    if num_units > 1:
        drawn = _draw_metrics(prepared, units)
    found = {}
    for name in whole[0]:
        first, second = (float(each[name][0]) for each in whole)
        if np.isnan(first) or np.isnan(second):  # such as the area of clips that are all of one class
            continue
        interval = None
        if drawn is not None:
            interval = _of_difference(second - first, drawn[1][name] - drawn[0][name], num_units)
        found[name] = Difference(first, second, interval)
    return found


def _draw_metrics(models: Sequence["_Prepared"], units: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The metrics of clips that are drawn anew, with replacement: of each model of the same draws.

    Args:
        models: What each says of the clips.
        units: The number of the clip's group, from 0 on, (clips,).

    Returns:
        Of each model the metrics by name, (draws,); of `METRICS` those that are means.
    """
    size = sum(each.positives.size for each in models)
    num_draws = min(MAX_DRAWS, max(MIN_DRAWS, MAX_WORK // size))
    drawn = [[] for _ in models]
    for weights in _draw_weights(units, len(units), num_draws):
        for each, of_model in zip(models, drawn):
            of_model.append(each.metrics(weights))
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in drawn]


class _Prepared:
    """One model's predictions, sorted once, of which the metrics of any weights of the clips are sums.

    Args:
        scores: Of shape (clips, num_labels).
        named: The labels that are named, booleans of that shape.
        positives: The true ones.
    """

    def __init__(self, scores: np.ndarray, named: np.ndarray, positives: np.ndarray):
        self.positives, self.named = positives.astype(np.float32), named.astype(np.float32)
        self.hits = (named & positives).astype(np.float32)
        has_one_label = (positives.sum(axis=1) == 1).all()
        self.right = positives[np.arange(len(scores)), scores.argmax(axis=1)] if has_one_label else None
        self.classes = [
            _Ranking(scores[:, index], positives[:, index]) for index in np.flatnonzero(positives.any(axis=0))
        ]

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Of weights (draws, clips): how often each clip was drawn. A class that was not drawn is left out."""
        found = {}
        if self.right is not None:
            found["accuracy"] = weights @ self.right / weights.sum(axis=1)
        columns = np.ascontiguousarray(weights.T)  # (clips, draws): sums of rows, which lie together
        with np.errstate(invalid="ignore", divide="ignore"):
            of_classes = [each.precision_and_area(columns) for each in self.classes]
            present, hits = weights @ self.positives, weights @ self.hits
            marked = weights @ self.named + present  # (draws, num_labels)
            f1 = np.where(present > 0, 2 * hits / marked, np.nan)
            for name, values in (
                ("mAP", np.array([precision for precision, _ in of_classes])),
                ("mAUC", np.array([area for _, area in of_classes])),
                ("macro_f1", f1.T),
            ):
                if len(values):
                    is_told = ~np.isnan(values)
                    found[name] = np.where(is_told, values, 0).sum(axis=0) / is_told.sum(axis=0)
            found["micro_f1"] = 2 * hits.sum(axis=1) / marked.sum(axis=1)
        return found


class _Ranking:
    """The clips of one class by their scores, in parts that end where one of the positives stands."""

    def __init__(self, scores: np.ndarray, positives: np.ndarray):
        levels, of_positives = np.unique(-scores[positives], return_inverse=True)  # best first
        place = np.searchsorted(levels, -scores)  # of the first level that is not above it
        is_at = place < len(levels)
        is_at[is_at] = levels[place[is_at]] == -scores[is_at]
        self.reached = _sums(place, len(levels), place < len(levels))  # those from the level before on
        self.at = _sums(place, len(levels), is_at)
        self.hits = _sums(of_positives, len(levels), positives)

    def precision_and_area(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average precision and area under the ROC curve of each draw, of weights (clips, draws)."""
        hits = self.hits @ columns  # (levels, draws)
        all_hits, reached = hits.cumsum(axis=0), (self.reached @ columns).cumsum(axis=0)
        num_positives = all_hits[-1]
        num_negatives = columns.sum(axis=0) - num_positives
        precision = (hits * np.nan_to_num(all_hits / reached)).sum(axis=0) / num_positives
        negatives_at = self.at @ columns - hits
        below = num_negatives - (reached - all_hits)  # negatives whose score is lower than the level
        return precision, (hits * (below + negatives_at / 2)).sum(axis=0) / (num_positives * num_negatives)


def _sums(rows: np.ndarray, num_rows: int, is_counted: np.ndarray) -> sparse.csr_matrix:
    """What adds up clips by row; `rows` are of all clips, or of those that are counted."""
    clips = np.flatnonzero(is_counted)
    rows = rows[clips] if len(rows) == len(is_counted) else rows
    shape = num_rows, len(is_counted)
    return sparse.csr_matrix((np.ones(len(clips), np.float32), (rows, clips)), shape=shape)


def _number(groups: Sequence[str] | None, num_clips: int) -> np.ndarray:
    if groups is None:
        return np.arange(num_clips)
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]


def _draw_weights(units: np.ndarray, num_clips: int, num_draws: int):
    """How often each clip is drawn, (draws, clips), some draws at a time: as often as its group."""
    generator, num_units = np.random.default_rng(0), int(units.max()) + 1
    at_once = max(1, min(num_draws, _AT_ONCE // num_clips))
    for first in range(0, num_draws, at_once):
        size = min(at_once, num_draws - first)
        drawn = generator.integers(num_units, size=(size, num_units))
        counts = np.stack([np.bincount(each, minlength=num_units) for each in drawn])
        yield counts[:, units].astype(np.float32)


def _spread(draws: np.ndarray, num_units: int) -> float:
    """Half of an interval around the mean: the draws of few clips or groups spread too little, by n - 1 in n."""
    error = np.nanstd(draws.astype(np.float64)) * np.sqrt(num_units / (num_units - 1))
    return float(stats.t.ppf((1 + LEVEL) / 2, num_units - 1) * error)


def _around(value: float, draws: np.ndarray, num_units: int) -> Interval:
    spread = _spread(draws, num_units)
    return Interval(value - spread, value + spread)


def _of_difference(value: float, draws: np.ndarray, num_units: int) -> Interval | None:
    """None where all draws are alike though the models are not, as of two clips that one of them alone has right."""
    interval = _around(value, draws, num_units)
    interval = Interval(max(interval.low, -1.0), min(interval.high, 1.0))  # as of few clips
    return interval if interval.low < interval.high or value == 0 else None


def _on_log_odds(value: float, draws: np.ndarray, num_units: int) -> Interval | None:
    spread = _spread(draws, num_units)
    if not 0 < value < 1 or not spread:
        return None
    middle, spread = np.log(value / (1 - value)), spread / (value * (1 - value))
    low, high = (expit(middle + side * spread) for side in (-1, 1))
    return Interval(float(low), float(high))


def _of_all_or_none(value: float, num_units: int) -> Interval:
    end = ((1 - LEVEL) / 2) ** (1 / num_units)
    return Interval(end, 1.0) if value > 0.5 else Interval(0.0, 1 - end)


def as_pairs(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    """For JSON: `[low, high]` by the name of the metric."""
    return {name: [interval.low, interval.high] for name, interval in intervals.items()}


def as_ends(intervals: Mapping[str, Interval], prefix: str = "") -> dict[str, float]:
    """For tables of results: `{prefix}{metric}_low` and `{prefix}{metric}_high`."""
    return {
        f"{prefix}{name}_{end}": getattr(interval, end)
        for name, interval in intervals.items()
        for end in ("low", "high")
    }
