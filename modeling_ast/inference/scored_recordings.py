"""What a folder of results says of annotated recordings, beside what is true of them, and how well that agrees."""

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from modeling_ast.data.labels import DataError, name_some
from modeling_ast.data.truth import Annotations
from modeling_ast.inference.psds import SCENARIOS, polyphonic_score
from modeling_ast.inference.scoring import (
    Counts,
    count_by_collars,
    count_by_intersection,
    count_by_segments,
    count_events,
    match_events,
    summarize,
)
from modeling_ast.inference.sound_files import match_moved
from modeling_ast.inference.tags_folder import TagsFolder
from modeling_ast.inference.timeline import Event, Timeline

logger = logging.getLogger(__name__)

_COMMAS = " Cells of labels are divided at commas, unless --label_separator says otherwise."


@dataclass(frozen=True)
class ScoredRecording:
    """A recording that was tagged and annotated; `timeline` where it was kept."""

    path: str
    truth: list[Event]
    found: list[Event]
    timeline: Timeline | None


@dataclass(frozen=True)
class Criteria:
    """When a found event is right.

    Attributes:
        onset_seconds: By which its start may differ, and its end,
        offset_share: or its end by so much of the length of the true event, where that is more.
        detection_share: Of a found event that has to lie in true ones, by intersection.
        truth_share: Of a true event that found ones have to cover, by intersection.
        segment_seconds: Of the segments that are compared one by one.
    """

    onset_seconds: float = 0.2
    offset_share: float = 0.2
    detection_share: float = 0.5
    truth_share: float = 0.5
    segment_seconds: float = 1.0


def read_scored(folder: TagsFolder, truth: Annotations) -> list[ScoredRecording]:
    """The annotated recordings with what was found in them.

    Recordings are the same by their paths. Of results whose own recording is no longer where it was, since folders
    have moved, they are the same by the name of the file, if no other has it; that is said.

    Raises:
        DataError: An annotated recording without results, an annotation behind the end of its recording, results
            without events, or as from `TagsFolder.results`.
    """
    if folder.settings.get("thresholds") is None:
        raise DataError(f"{folder.path}: expected results with events, got those of a regression model.")
    places, scored, passed_over = _places(truth, list(folder.entries)), {}, []
    for line, timeline in folder.results():
        if (path := places.get(os.path.realpath(line["path"]))) is None:
            passed_over.append(line["path"])
            continue
        if path in scored:
            raise DataError(f"{folder.path}: {line['path']} and {scored[path].path} may both be {path}.")
        found = [Event(**event) for event in line["events"]]
        scored[path] = ScoredRecording(line["path"], _to_events(path, truth[path], line["seconds"]), found, timeline)
    if moved := [path for path, each in scored.items() if os.path.realpath(path) != os.path.realpath(each.path)]:
        logger.warning(f"{len(moved)} recording(s) are taken for moved ones of the same names: {name_some(moved)}.")
    if missing := sorted(truth.keys() - scored.keys()):
        raise DataError(f"{folder.path}: {len(missing)} annotated recording(s) have no results: {name_some(missing)}.")
    if passed_over:
        logger.warning(f"{len(passed_over)} recording(s) without annotations are left out: {name_some(passed_over)}.")
    return list(scored.values())


def _places(annotated: Iterable[str], tagged: Sequence[str]) -> dict[str, str]:
    """Annotated recordings by where they are, and by where they were when they were tagged."""
    places, known = {os.path.realpath(path): path for path in annotated}, set(map(os.path.realpath, tagged))
    missing = [path for real, path in places.items() if real not in known]
    moved = match_moved(missing, tagged, os.path.exists)
    return places | {os.path.realpath(tagged[number]): path for path, number in moved.items()}


def _to_events(path: str, annotations: Sequence[tuple[float, float, str]], seconds: float) -> list[Event]:
    """What is annotated, by start; stretches of one label that overlap are one event, as a timeline has them."""
    events: dict[str, list[Event]] = {}
    for start, end, label in sorted(annotations):
        if start >= seconds:
            raise DataError(f"{path}: {label} is annotated at {start:g} s, behind the end at {seconds:g} s.")
        if 2 * (min(end, seconds) - start) < end - start < math.inf:
            raise DataError(f"{path}: {label} is annotated up to {end:g} s, far behind the end at {seconds:g} s.")
        own = events.setdefault(label, [])
        if own and start < own[-1].end:
            start, end = own[-1].start, max(end, own.pop().end)
        own.append(Event(label, start, min(end, seconds), 1.0))
    return sorted((event for own in events.values() for event in own), key=lambda event: (event.start, event.end))


def choose_labels(recordings: Sequence[ScoredRecording], wanted: Sequence[str] | None) -> list[str]:
    """The labels that count: those that are annotated anywhere, or those that are wanted.

    Raises:
        DataError: No annotation at all, a label that is neither annotated nor found, or one that the model, whose
            timelines name its labels, does not know.
    """
    annotated = {event.label for recording in recordings for event in recording.truth}
    found = {event.label for recording in recordings for event in recording.found}
    known = {label for recording in recordings if recording.timeline for label in recording.timeline.label_names}
    labels = sorted(annotated) if wanted is None else list(dict.fromkeys(wanted))
    if unknown := [label for label in labels if known and label not in known]:
        raise DataError(
            f"Expected labels of the model, got {name_some(unknown)}. Write them as the model does, or leave them out "
            f"by --labels.{_COMMAS if any(',' in label for label in known) else ''}"
        )
    if strange := [label for label in labels if label not in annotated | found | known]:
        raise DataError(f"Expected labels that are annotated or found, got {name_some(strange)}.")
    if not annotated & set(labels):
        raise DataError("Expected annotated events to compare with, got none of the labels that count.")
    if others := sorted(found - set(labels)):
        logger.warning(f"Events of labels that are annotated nowhere do not count: {name_some(others)} (--labels).")
    return labels


def score_recordings(
    recordings: Sequence[ScoredRecording], labels: Sequence[str], criteria: Criteria
) -> dict[str, Any]:
    """How well the events agree with the annotations, and the timelines where all are there.

    Args:
        recordings: To compare.
        labels: Those that count.
        criteria: When an event is right.

    Returns:
        Of `collars`, `intersection` and `segments` what `summarize` gives, and under `labels` the counts of each
        label; `onset_error`, the median of events that overlap by half, in seconds; `psds1` and `psds2`, of the labels
        that are annotated. `None` for what cannot be told.
    """
    pairs = [
        ([e for e in r.truth if e.label in labels], [e for e in r.found if e.label in labels]) for r in recordings
    ]
    onset, share = criteria.onset_seconds, criteria.offset_share
    of_intersection = {"detection_share": criteria.detection_share, "truth_share": criteria.truth_share}
    ways = {
        "collars": partial(count_by_collars, onset_seconds=onset, offset_seconds=onset, offset_share=share),
        "intersection": partial(count_by_intersection, **of_intersection),
        "segments": partial(count_by_segments, segment_seconds=criteria.segment_seconds),
    }
    results: dict[str, Any] = {"recordings": len(recordings)}
    counts = {way: count_events(pairs, labels, count) for way, count in ways.items()}
    results |= {way: summarize(each) for way, each in counts.items()}
    errors = [abs(found[j].start - truth[i].start) for truth, found in pairs for i, j in match_events(truth, found)]
    results["onset_error"] = float(np.median(errors)) if errors else None
    of_label = {}
    if all(recording.timeline is not None for recording in recordings):
        annotated = [label for label in labels if any(e.label == label for truth, _ in pairs for e in truth)]
        timelines = [(truth, recording.timeline) for (truth, _), recording in zip(pairs, recordings)]
        for name, settings in SCENARIOS.items() if annotated else ():
            results[name], of_label[name] = polyphonic_score(timelines, annotated, settings)
    results["labels"] = {
        label: {
            "true": sum(event.label == label for truth, _ in pairs for event in truth),
            "found": sum(event.label == label for _, found in pairs for event in found),
            **{way: _describe(each[label]) for way, each in counts.items()},
            **{name: each.get(label) for name, each in of_label.items()},
        }
        for label in labels
    }
    return results


def _describe(counts: Counts) -> dict[str, float | None]:
    return {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}


def score_table(results: Mapping[str, Any]) -> str:
    """What `score_recordings` gives in Markdown, a row a label."""
    scores = [name for name in SCENARIOS if name in results]
    ways = ("collars", "intersection", "segments")
    heads = ["label", "true", "found", *(f"{way}: {name}" for way in ways for name in ("P", "R", "F1")), *scores]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    totals = {key: sum(each[key] for each in results["labels"].values()) for key in ("true", "found")}
    for label, each in [*results["labels"].items(), ("all", {**results, **totals})]:
        cells = [_percent(each[way][name]) for way in ways for name in ("precision", "recall", "f1")]
        cells += ["" if each[name] is None else f"{each[name]:.3f}" for name in scores]
        lines.append(f"| {' '.join(label.split())} | {each['true']} | {each['found']} | {' | '.join(cells)} |")
    macro = ", ".join(f"{_percent(results[way]['macro_f1'])} ({way})" for way in ways)
    lines.append(f"\nMean F1 of the labels: {macro}.")
    if results["onset_error"] is not None:
        lines.append(
            f"Median error of starts, of events that overlap by half: {1000 * results['onset_error']:.0f} ms."
        )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None or math.isnan(share) else f"{100 * share:.1f} %"
