"""The polyphonic sound detection score: how well timelines find events over all thresholds at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modeling_ast.inference.scoring import DECIMALS
from modeling_ast.inference.timeline import Event, Timeline


@dataclass(frozen=True)
class PSDSettings:
    """What counts as found, and what it costs to be wrong.

    Attributes:
        detection_share: Of a found event that has to lie in true ones of its label; else it is invented.
        truth_share: Of a true event that found ones, which are not invented, have to cover.
        cross_share: Of an invented event that lies in true ones of another label, which it is then taken for; `None`
            leaves that out.
        cross_weight: Of the rate of such confusions in the rate of invented events.
        spread_weight: Of the deviation among labels, which is taken from the mean.
        max_rate: Invented events an hour up to which is counted.
    """

    detection_share: float
    truth_share: float
    cross_share: float | None = None
    cross_weight: float = 0.0
    spread_weight: float = 1.0
    max_rate: float = 100.0


# Those of DCASE, task 4: one asks for when events are, the other for which ones there are.
SCENARIOS = {
    "psds1": PSDSettings(detection_share=0.7, truth_share=0.7),
    "psds2": PSDSettings(detection_share=0.1, truth_share=0.1, cross_share=0.3, cross_weight=0.5),
}


def polyphonic_score(
    recordings: Sequence[tuple[Sequence[Event], Timeline]], label_names: Sequence[str], settings: PSDSettings
) -> tuple[float, dict[str, float]]:
    """The area under the curve of found over invented events, in [0, 1], of all labels and of each.

    At each threshold an event is a run of rows whose score is above it, without lengths and gaps. All thresholds are
    taken, exactly.

    Args:
        recordings: What is true of each, and its scores; true events of a label do not overlap.
        label_names: Those that count, all of them in the timelines and each with true events.
        settings: What is right.

    Raises:
        ValueError: A label without a true event.

    Source: Bilen et al., "A Framework for the Robust Evaluation of Sound Event Detection", ICASSP 2020; that all
        thresholds can be taken at once: Ebbers, Haeb-Umbach, Serizel, "Threshold Independent Evaluation of Sound Event
        Detection Scores", ICASSP 2022.
    """
    seconds = sum(timeline.seconds for _, timeline in recordings)
    true = {label: [e for truth, _ in recordings for e in truth if e.label == label] for label in label_names}
    if lacking := [label for label, events in true.items() if not events]:
        raise ValueError(f"Expected true events of each label, got none of {lacking[0]}.")
    true_seconds = np.array([sum(e.end - e.start for e in events) for events in true.values()])
    curves = {}
    for number, label in enumerate(label_names):
        changes = [_changes(*recording, label, label_names, settings) for recording in recordings]
        changes = np.concatenate([np.zeros((0, 3 + len(label_names))), *changes])
        thresholds, groups = np.unique(-changes[:, 0], return_inverse=True)
        steps = np.zeros((len(thresholds), changes.shape[1] - 1))
        np.add.at(steps, groups, changes[:, 1:])
        hits, invented, *crossed = steps.cumsum(axis=0).T
        rates = invented / seconds
        if settings.cross_weight and len(label_names) > 1:
            others = np.arange(len(label_names)) != number
            crossing = (np.array(crossed)[others] / true_seconds[others, None]).mean(axis=0)
            rates = rates + settings.cross_weight * crossing
        curves[label] = _staircase(3600 * rates, hits / len(true[label]), settings.max_rate)
    rates = np.unique(np.concatenate([own for own, _ in curves.values()]))
    found = np.array([_at(rates, *curve) for curve in curves.values()])
    shares = np.maximum(0.0, found.mean(axis=0) - settings.spread_weight * found.std(axis=0))
    of_each = {label: _area(*curve, settings.max_rate) for label, curve in curves.items()}
    return _area(rates, shares, settings.max_rate), of_each


def _staircase(rates: np.ndarray, shares: np.ndarray, max_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The most that is found at each rate, or below it, from a rate of 0 on."""
    rates, shares = np.append(0.0, rates), np.append(0.0, shares)
    order = np.lexsort((shares, rates))
    rates, shares = rates[order], np.maximum.accumulate(shares[order])
    is_last = np.append(rates[1:] > rates[:-1], True) & (rates <= max_rate)
    return rates[is_last], shares[is_last]


def _at(rates: np.ndarray, own: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return shares[np.searchsorted(own, rates, side="right") - 1]


def _area(rates: np.ndarray, shares: np.ndarray, max_rate: float) -> float:
    return float((np.diff(np.append(rates, max_rate)) * shares).sum() / max_rate)


class _Run:
    """Rows side by side above a threshold: their place, and how many seconds of what is true lie in them."""

    __slots__ = ("first", "stop", "own", "others")

    def __init__(self, first: int, stop: int, own: dict[int, float], others: np.ndarray):
        self.first, self.stop, self.own, self.others = first, stop, own, others


def _changes(
    truth: Sequence[Event], timeline: Timeline, label: str, label_names: Sequence[str], settings: PSDSettings
) -> np.ndarray:
    """What changes in the counts of a label as the threshold falls below each score of a recording.

    Returns:
        Rows of a score, and the change of hits, of invented events and, of each label, of confusions with it.
    """
    times = timeline.times.round(DECIMALS)
    scores = timeline.scores[:, timeline.label_names.index(label)]
    own = [event for event in truth if event.label == label]
    pieces = _overlaps_by_row(times, own)
    others = np.zeros((len(scores), len(label_names)))
    for number, name in enumerate(label_names) if settings.cross_share is not None else ():
        for row, shares in _overlaps_by_row(times, [e for e in truth if e.label == name]).items():
            others[row, number] = sum(shares.values())
    needed = [settings.truth_share * (event.end - event.start) for event in own]
    covered, runs_by_end, runs_by_start = [0.0] * len(own), {}, {}
    result = []
    for row in np.argsort(-scores, kind="stable").tolist():
        change = np.zeros(2 + len(label_names))
        run = _Run(row, row + 1, dict(pieces.get(row, {})), others[row])
        touched = [each for each in (runs_by_end.pop(row, None), runs_by_start.pop(row + 1, None)) if each]
        before = {event for each in (run, *touched) for event in each.own}
        before = {event: _is_found(covered[event], needed[event]) for event in before}
        for each in touched:
            change -= _count(each, times, settings, covered, -1)
            run.first, run.stop = min(run.first, each.first), max(run.stop, each.stop)
            run.others = run.others + each.others
            for event, seconds in each.own.items():
                run.own[event] = run.own.get(event, 0.0) + seconds
        for each in touched:  # of which one side goes on as the new run's
            runs_by_start.pop(each.first, None)
            runs_by_end.pop(each.stop, None)
        runs_by_start[run.first] = runs_by_end[run.stop] = run
        change += _count(run, times, settings, covered, 1)
        change[0] = sum(_is_found(covered[event], needed[event]) - was for event, was in before.items())
        if change.any():
            result.append((scores[row], *change))
    return np.array(result).reshape(-1, 3 + len(label_names))


def _is_found(covered: float, needed: float) -> bool:
    return bool(covered > 0 and round(covered - needed, DECIMALS) >= 0)


def _count(run: _Run, times: np.ndarray, settings: PSDSettings, covered: list[float], sign: int) -> np.ndarray:
    """Invented events and confusions that a run is, after its part in the covered time of true events came or went."""
    length = times[run.stop] - times[run.first]
    counts = np.zeros(2 + len(run.others))
    if round(sum(run.own.values()) - settings.detection_share * length, DECIMALS) >= 0:
        for event, seconds in run.own.items():
            covered[event] += sign * seconds
        return counts
    counts[1] = 1
    if settings.cross_share is not None:
        counts[2:] = (np.round(run.others - settings.cross_share * length, DECIMALS) >= 0) & (run.others > 0)
    return counts


def _overlaps_by_row(times: np.ndarray, events: Sequence[Event]) -> Mapping[int, dict[int, float]]:
    """Seconds that each row has in common with each event, of those that have some."""
    found = {}
    for number, event in enumerate(events):
        first = max(0, int(np.searchsorted(times, event.start, side="right")) - 1)
        for row in range(first, len(times) - 1):
            if times[row] >= event.end:
                break
            seconds = min(times[row + 1], event.end) - max(times[row], event.start)
            if seconds > 0:
                found.setdefault(row, {})[number] = seconds
    return found
