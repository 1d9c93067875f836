"""How well events in recordings are found, against annotations: counts of what is right, missed and invented."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from modeling_ast.inference.timeline import Event

DECIMALS = 6  # of a second, to which times are compared: those of results have no more
Count = Callable[[Sequence[Event], Sequence[Event]], "Counts"]  # of the events of one label in one recording


@dataclass(frozen=True)
class Counts:
    """What was found, missed and invented; those of several recordings or labels add up.

    Attributes:
        hits: True events that were found, or segments.
        misses: Those that were not.
        inventions: Found ones that are none.
    """

    hits: int = 0
    misses: int = 0
    inventions: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.hits + other.hits, self.misses + other.misses, self.inventions + other.inventions)

    @property
    def precision(self) -> float | None:
        """`None` where nothing was found."""
        found = self.hits + self.inventions
        return self.hits / found if found else None

    @property
    def recall(self) -> float | None:
        """`None` where there is nothing to find."""
        true = self.hits + self.misses
        return self.hits / true if true else None

    @property
    def f1(self) -> float | None:
        """`None` where there is nothing to find and nothing was found."""
        total = 2 * self.hits + self.misses + self.inventions
        return 2 * self.hits / total if total else None


def count_by_collars(
    truth: Sequence[Event],
    found: Sequence[Event],
    onset_seconds: float = 0.2,
    offset_seconds: float = 0.2,
    offset_share: float = 0.2,
) -> Counts:
    """Events that begin and end about where a true one does; each is matched once, and as many as can be.

    Args:
        truth: What there is, of one label.
        found: What was found, of the same.
        onset_seconds: By which a start may differ.
        offset_seconds: By which an end may differ,
        offset_share: or by so much of the length of the true event, where that is more.

    Source: event-based metrics of Mesaros, Heittola, Virtanen, "Metrics for Polyphonic Sound Event Detection" (2016),
        with the usual collars of DCASE.
    """
    true, other = map(_to_array, (truth, found))
    starts, ends = (np.abs(true[:, None, side] - other[None, :, side]) for side in (0, 1))
    collars = np.maximum(offset_seconds, offset_share * np.diff(true))
    may_match = (np.round(starts - onset_seconds, DECIMALS) <= 0) & (np.round(ends - collars, DECIMALS) <= 0)
    hits = int((maximum_bipartite_matching(csr_array(may_match), perm_type="column") >= 0).sum()) if truth else 0
    return Counts(hits, len(truth) - hits, len(found) - hits)


def count_by_intersection(
    truth: Sequence[Event], found: Sequence[Event], detection_share: float = 0.5, truth_share: float = 0.5
) -> Counts:
    """Events that lie in true ones for most of their length, and true ones that such events cover for most of theirs.

    One long event may so be found in pieces, and pieces as one event.

    Args:
        truth: What there is, of one label.
        found: What was found, of the same.
        detection_share: Of a found event that has to lie in true ones; else it is invented (detection tolerance).
        truth_share: Of a true event that such found ones have to cover; else it is missed (ground truth intersection).

    Source: Bilen et al., "A Framework for the Robust Evaluation of Sound Event Detection", ICASSP 2020.
    """
    true, other = map(_to_array, (truth, found))
    both = np.minimum(true[:, None, 1], other[None, :, 1]) - np.maximum(true[:, None, 0], other[None, :, 0])
    overlaps = both.clip(min=0)  # (true, found)
    is_relevant = np.round(overlaps.sum(axis=0) - detection_share * np.diff(other)[:, 0], DECIMALS) >= 0
    covered = overlaps[:, is_relevant].sum(axis=1)
    hits = int((np.round(covered - truth_share * np.diff(true)[:, 0], DECIMALS) >= 0).sum())
    return Counts(hits, len(truth) - hits, int((~is_relevant).sum()))


def count_by_segments(truth: Sequence[Event], found: Sequence[Event], segment_seconds: float = 1.0) -> Counts:
    """Segments of a recording, side by side from its start, in which a label is, even for a part of them.

    Args:
        truth: What there is, of one label.
        found: What was found, of the same.
        segment_seconds: Length of a segment.

    Source: segment-based metrics of Mesaros, Heittola, Virtanen, 2016.
    """
    true, other = (_segments(events, segment_seconds) for events in (truth, found))
    return Counts(len(true & other), len(true - other), len(other - true))


def _segments(events: Iterable[Event], length: float) -> set[int]:
    ends = _to_array(events) / length
    spans = zip(np.floor(np.round(ends[:, 0], DECIMALS)), np.ceil(np.round(ends[:, 1], DECIMALS)))
    return {number for first, last in spans for number in range(int(first), int(last))}


def _to_array(events: Iterable[Event]) -> np.ndarray:
    """Starts and ends, (events, 2)."""
    return np.array([[event.start, event.end] for event in events]).reshape(-1, 2)


def overlap(one: Event, other: Event) -> float:
    """Seconds that two events have in common."""
    return max(0.0, min(one.end, other.end) - max(one.start, other.start))


def count_events(
    recordings: Iterable[tuple[Sequence[Event], Sequence[Event]]], label_names: Iterable[str], count: Count
) -> dict[str, Counts]:
    """Counts of each label over all recordings, each a pair of what there is and what was found."""
    counts = dict.fromkeys(label_names, Counts())
    for truth, found in recordings:
        for label in counts:
            own = ([event for event in events if event.label == label] for events in (truth, found))
            counts[label] += count(*own)
    return counts


def summarize(counts: Mapping[str, Counts]) -> dict[str, float | None]:
    """Precision, recall and F1 of all labels together (micro), and the mean F1 of those with an event (macro)."""
    total = sum(counts.values(), Counts())
    scores = [each.f1 for each in counts.values() if each.f1 is not None]
    macro = float(np.mean(scores)) if scores else None
    return {"precision": total.precision, "recall": total.recall, "f1": total.f1, "macro_f1": macro}


def match_events(
    truth: Sequence[Event], found: Sequence[Event], min_overlap: float = 0.5, labels_must_agree: bool = True
) -> list[tuple[int, int]]:
    """Pairs of a true and a found event that are the same one, each in one pair at most.

    Args:
        truth: What there is.
        found: What was found.
        min_overlap: Time that both cover, as a share of the time that either covers, of two that may be the same.
        labels_must_agree: Whether they can be the same only with the same label.

    Returns:
        Indices into both, of the pairing that has most overlap in all.
    """
    overlaps = np.zeros((len(truth), len(found)))
    for i, true in enumerate(truth):
        for j, other in enumerate(found):
            both = overlap(true, other)
            if both > 0 and (true.label == other.label or not labels_must_agree):
                overlaps[i, j] = both / (max(true.end, other.end) - min(true.start, other.start))
    overlaps[overlaps < min_overlap] = 0
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(-overlaps)) if overlaps[i, j] > 0]
