"""Which labels a recording gets, by its timeline."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from modeling_ast.inference.timeline import Timeline


def choose_tags(
    timeline: Timeline,
    aggregate: str,
    threshold: float | Mapping[str, float] | None,
    top_k: int | None,
    at_least_one: bool,
    tells_unknown: bool,
) -> list[dict[str, Any]]:
    """The labels of a recording, best first.

    Args:
        timeline: Of the recording.
        aggregate: "mean" or "max", as for `Timeline.aggregate`.
        threshold: Labels with lower scores are left out; one for all, or some by label; `None` means the timeline's.
        top_k: How many at most; `None` for all.
        at_least_one: Whether the best one stays in any case.
        tells_unknown: Whether the last label is that of sounds of none of the others. Its score is its share of the
            time, with either aggregate; where that is all of it, it is the only one, and where it is none, it is out.

    Returns:
        `[{"score": ..., "label": ...}, ...]`.
    """
    scores, names = timeline.aggregate(aggregate), timeline.label_names
    if tells_unknown:
        scores[-1] = timeline.aggregate("mean")[-1]
        if not scores[:-1].any():  # it is nothing else, in no order
            return [{"score": 1.0, "label": names[-1]}]
    minimum = timeline.thresholds if threshold is None else threshold
    if isinstance(minimum, Mapping):
        minimum = np.array([minimum.get(name, -np.inf) for name in names])
    is_low = scores < minimum  # NaN, as of a model whose training diverged, stays in sight
    is_low[-1] |= tells_unknown and scores[-1] == 0
    order = np.argsort(-scores, kind="stable")
    is_kept = ~is_low[order]
    is_kept[0] |= at_least_one
    chosen = order[is_kept][:top_k]
    return [{"score": float(scores[index]), "label": names[index]} for index in chosen]
