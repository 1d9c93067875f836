"""A yardstick for events that are found: a plain energy gate."""

from collections.abc import Iterable, Sequence

import torch
from splicing import frame_levels, sounding_frames

from modeling_ast.fbank import frame_length, frame_shift
from modeling_ast.inference.scoring import event_scores
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
