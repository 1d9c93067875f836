"""A yardstick for events that are found: a plain energy gate."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from splicing import frame_levels, sounding_frames

from modeling_ast.fbank import frame_length, frame_shift
from modeling_ast.inference.scoring import match_events
from modeling_ast.inference.timeline import Event


def energy_gate(
    waveform: torch.Tensor,
    sampling_rate: int,
    threshold_db: float,
    min_seconds: float = 0.0,
    merge_seconds: float = 0.0,
    label: str = "sound",
) -> list[Event]:
    """Events wherever it is louder than a threshold. It cannot tell what sounds.

    Args:
        waveform: Of shape (samples,).
        sampling_rate: In Hz.
        threshold_db: Level of a frame of 25 ms, relative to full scale.
        min_seconds: Length of the shortest event.
        merge_seconds: Length of the longest gap that is closed.
        label: Of all events.
    """
    levels = frame_levels(waveform, sampling_rate)
    shift, length = frame_shift(sampling_rate) / sampling_rate, frame_length(sampling_rate) / sampling_rate
    events = []
    for start, stop in sounding_frames(levels, threshold_db, round(merge_seconds / shift)):
        begin, end = start * shift, (stop - 1) * shift + length
        if end - begin >= min_seconds:
            events.append(Event(label, begin, end, float(levels[start:stop].max())))
    return events


def best_energy_gate(
    waveform: torch.Tensor,
    sampling_rate: int,
    truth: Sequence[Event],
    thresholds_db: Iterable[float],
    **lengths: float,
) -> tuple[float, list[Event]]:
    """The threshold that suits a gate best on this very recording (which it could not know), and its events.

    Args:
        waveform: Of shape (samples,).
        sampling_rate: In Hz.
        truth: What there is.
        thresholds_db: To try.
        **lengths: `min_seconds` and `merge_seconds` of `energy_gate`.

    Raises:
        ValueError: There is nothing to find.
    """
    gates = [(level, energy_gate(waveform, sampling_rate, level, **lengths)) for level in thresholds_db]
    return max(gates, key=lambda gate: event_scores(truth, gate[1], labels_must_agree=False)["f1"])


def event_scores(
    truth: Sequence[Event], found: Sequence[Event], min_overlap: float = 0.5, labels_must_agree: bool = True
) -> dict[str, float]:
    """Precision, recall and F1 of events, in [0, 1], and the median error of the onsets of those found, in seconds.

    Args:
        truth: What there is.
        found: What was found.
        min_overlap: As in `match_events`.
        labels_must_agree: As in `match_events`.

    Returns:
        `precision` (0 where nothing was found), `recall`, `f1`, and `onset_error` (NaN where nothing is right).

    Raises:
        ValueError: There is nothing to find.
    """
    if not truth:
        raise ValueError("Expected at least one true event, got none.")
    pairs = match_events(truth, found, min_overlap, labels_must_agree)
    errors = [abs(found[j].start - truth[i].start) for i, j in pairs]
    return {
        "precision": len(pairs) / len(found) if found else 0.0,
        "recall": len(pairs) / len(truth),
        "f1": 2 * len(pairs) / (len(truth) + len(found)),
        "onset_error": float(np.median(errors)) if errors else float("nan"),
    }
