"""A threshold a label, a shortest length and a longest gap of events, chosen by annotated recordings."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modeling_ast.data.classifiers import load_classifier
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.labels import DataError, name_some
from modeling_ast.data.truth import Annotations
from modeling_ast.inference.calibrated_model import write_calibrated_model
from modeling_ast.inference.scored_recordings import (
    Criteria,
    ScoredRecording,
    choose_labels,
    read_scored,
    score_recordings,
)
from modeling_ast.inference.scoring import Counts, count_by_intersection
from modeling_ast.inference.tags_folder import TagsFolder
from modeling_ast.inference.timeline import Timeline
from modeling_ast.loading import ModelError

logger = logging.getLogger(__name__)

CARD_TEXT = """
After training, by {recordings} annotated recordings, {labels} labels got a threshold each, in `config.json`, for the
best F1 of events by intersection, together with these options of `modeling-ast tag`:
`--min_seconds {min_seconds:g} --merge_seconds {merge_seconds:g}`.

{table}
"""
LENGTHS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds of the shortest event and of the longest gap that are tried
MAX_THRESHOLDS = 30  # of a label, with as many of its scores between any two of them


@dataclass(frozen=True)
class EventOptions:
    """What makes events of a timeline, as `Timeline.find_events` takes it."""

    threshold: Mapping[str, float]
    min_seconds: float
    merge_seconds: float


def choose_options(recordings: Sequence[ScoredRecording], labels: Sequence[str], criteria: Criteria) -> EventOptions:
    """The options with the best mean F1 of the labels, by intersection.

    For each pair of lengths every label gets the threshold of its best F1, of equally good ones the highest; of
    equally good lengths the shortest are taken. Events go on down to half of their threshold, as in tagging.

    Args:
        recordings: With timelines.
        labels: To choose for, each of them annotated somewhere.
        criteria: When an event is right.
    """
    best_score, best = -1.0, None
    searches = {label: _Search(recordings, label, criteria) for label in labels}
    for min_seconds in LENGTHS:
        for merge_seconds in LENGTHS:
            found = {label: each.best(min_seconds, merge_seconds) for label, each in searches.items()}
            score = float(np.mean([f1 for f1, _ in found.values()]))
            if score > best_score + 1e-12:
                thresholds = {label: threshold for label, (_, threshold) in found.items()}
                best_score, best = score, EventOptions(thresholds, min_seconds, merge_seconds)
    return best


class _Search:
    """The thresholds of one label, and what events they give."""

    def __init__(self, recordings: Sequence[ScoredRecording], label: str, criteria: Criteria):
        self.label, self.criteria, self.pairs = label, criteria, []
        for recording in recordings:
            column = recording.timeline.label_names.index(label)
            own = recording.timeline.scores[:, [column]]
            timeline = Timeline(recording.timeline.boundaries, own, [label], recording.timeline.sampling_rate)
            self.pairs.append(([event for event in recording.truth if event.label == label], timeline))
        scores = np.unique(np.concatenate([timeline.scores[:, 0] for _, timeline in self.pairs]).astype(float))
        # Midway between two scores, so that a difference of rounding changes no decision.
        middles = (scores[1:] + scores[:-1]) / 2 if len(scores) > 1 else scores
        places = np.unique(np.linspace(0, len(middles) - 1, min(len(middles), MAX_THRESHOLDS)).round().astype(int))
        self.thresholds = middles[places].tolist()

    def best(self, min_seconds: float, merge_seconds: float) -> tuple[float, float]:
        """The best F1, and its threshold."""
        return max((self._f1(each, min_seconds, merge_seconds), each) for each in self.thresholds)

    def _f1(self, threshold: float, min_seconds: float, merge_seconds: float) -> float:
        counts = Counts()
        for truth, timeline in self.pairs:
            found = timeline.find_events(threshold, min_seconds=min_seconds, merge_seconds=merge_seconds)
            shares = self.criteria.detection_share, self.criteria.truth_share
            counts += count_by_intersection(truth, found, *shares)
        return counts.f1 or 0.0


def calibrate_by_annotations(
    source: str, folder: TagsFolder, parts: Sequence[Annotations], output_dir: Path
) -> dict[str, Any]:
    """Choose by some annotated recordings, tell what events were worth before and are after, and write the model.

    Args:
        source: The model, a folder or a name on the Hub.
        folder: Of its results, with timelines.
        parts: What is annotated in the recordings to choose by, and perhaps in others to report on.
        output_dir: New, or empty.

    Returns:
        `thresholds`, by label; `min_seconds`, `merge_seconds`; and what `score_recordings` gives before and after, of
        the recordings that were `chosen on` and `reported on`.

    Raises:
        ModelError: Another model than that of the results, or none.
        DataError: As from `read_scored` and `choose_labels`; results without timelines, no label to choose for, or
            recordings that are in both parts.
    """
    if "csv" not in folder.formats:
        raise DataError(f"{folder.path} holds no timelines that events could be found in (--formats csv).")
    model, extractor = load_classifier(source, "single_label_classification")  # as in pipelines
    if folder.settings["fingerprint"] != fingerprint_model(model, extractor):
        raise ModelError(f"{folder.path} was not tagged with {source} as it is: tag the recordings with it first.")
    scored, criteria, ignored = [read_scored(folder, part) for part in parts], Criteria(), folder.settings["ignore"]
    if scored[1:] and (shared := sorted(set.intersection(*({each.path for each in part} for part in scored)))):
        raise DataError(f"Expected other recordings to report on than to choose by, got {name_some(shared)} in both.")
    labels = choose_labels(scored[0], None)
    if not (chosen := [label for label in labels if label not in ignored]):
        raise DataError(f"Expected annotated labels that tagging did not ignore, got {', '.join(labels)}.")
    labels_of = {"chosen on": labels, "reported on": labels}
    if scored[1:]:
        of_report = choose_labels(scored[1], None)
        if not set(of_report) & set(labels):
            raise DataError(f"Expected recordings to report on with some of {', '.join(labels)}, got none of them.")
        if without := [label for label in of_report if label not in labels]:
            logger.warning(f"Labels that no recording to choose by has keep their thresholds: {name_some(without)}.")
        labels_of["reported on"] = [*labels, *without]
    found = choose_options(scored[0], chosen, criteria)
    model.config.thresholds = {**(model.config.thresholds or {}), **found.threshold}  # of others they stay
    results: dict[str, Any] = {"model": source, "results": str(folder.path), "thresholds": dict(found.threshold)}
    results |= {"min_seconds": found.min_seconds, "merge_seconds": found.merge_seconds}
    for name, recordings in zip(("chosen on", "reported on"), scored):
        after = [replace(each, found=each.timeline.find_events(**vars(found), ignore=ignored)) for each in recordings]
        results[name] = {
            "before": score_recordings(recordings, labels_of[name], criteria),
            "after": score_recordings(after, labels_of[name], criteria),
        }
    lengths = {name: results[name] for name in ("min_seconds", "merge_seconds")}
    numbers = {"recordings": len(scored[0]), "labels": len(found.threshold)}
    section = CARD_TEXT.format(**numbers, **lengths, table=events_table(results))
    write_calibrated_model(source, output_dir, model, extractor, results, section)
    return results


def events_table(results: Mapping[str, Any]) -> str:
    """The figures of events before and after, in Markdown."""
    ways = ("collars", "intersection", "segments")
    heads = [f"{kind} by {way}" for way in ways for kind in ("F1", "mean F1 of the labels")]
    lines = ["| recordings | | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for part in ("chosen on", "reported on"):
        for when in ("before", "after") if part in results else ():
            figures = results[part][when]
            scores = [figures[way][kind] for way in ways for kind in ("f1", "macro_f1")]
            cells = ["" if score is None else f"{score:.4f}" for score in scores]
            lines.append(f"| {part} ({figures['recordings']}) | {when} | {' | '.join(cells)} |")
    return "\n".join(lines)
