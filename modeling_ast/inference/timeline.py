"""When it happens: scores over time, and the events in them."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from modeling_ast.data.files import written_beside

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Event:
    """A stretch of time in which a label is present."""

    label: str
    start: float  # seconds from the start of the recording
    end: float
    score: float  # the highest in it


@dataclass
class Timeline:
    """Scores of every label over a recording, row by row without gaps.

    Attributes:
        boundaries: int64 array (rows + 1,), in samples: row i holds from boundaries[i] to boundaries[i + 1].
        scores: float32 array (rows, labels).
        label_names: Of the columns.
        sampling_rate: Of the boundaries, in Hz: times are exact to the sample.
        thresholds: Of labels whose decision was fitted, by name.
    """

    boundaries: np.ndarray
    scores: np.ndarray
    label_names: list[str]
    sampling_rate: int
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def times(self) -> np.ndarray:
        """The boundaries in seconds, float64 (rows + 1,)."""
        return self.boundaries / self.sampling_rate

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return float(self.times[-1])

    def aggregate(self, how: str = "mean") -> np.ndarray:
        """One score a label for the whole recording, float32 (labels,).

        Args:
            how: "mean" over time (a short last row counts for as long as it is) or "max" over the rows.

        Raises:
            ValueError: Another word.
        """
        if how == "mean":
            return np.average(self.scores, axis=0, weights=np.diff(self.boundaries)).astype(np.float32)
        if how == "max":
            return self.scores.max(axis=0)
        raise ValueError(f"Expected aggregate to be mean or max, got {how!r}.")

    def find_events(
        self,
        threshold: float | Mapping[str, float] | None = None,
        low_threshold: float | None = None,
        min_seconds: float = 0.0,
        merge_seconds: float = 0.0,
        ignore: Sequence[str] = (),
    ) -> list[Event]:
        """Stretches in which a label is present, by double threshold (hysteresis).

        An event of a label is a run of rows with scores of at least the low threshold, one of which at least reaches
        the threshold itself. So a score that wavers around the threshold gives one event and not many. Runs with at
        most `merge_seconds` between them become one, and then those shorter than `min_seconds` are left out.

        Args:
            threshold: In scores; one for all labels, or some by label. `None`, and labels without one: those fitted to
                the model (`config.thresholds`), else 0.5.
            low_threshold: At most the threshold; `None` means half of it (itself, where it is negative).
            min_seconds: Length of the shortest event.
            merge_seconds: Length of the longest gap that is closed.
            ignore: Labels that give no events, such as one for background.

        Returns:
            Events by start, then by label.

        Raises:
            ValueError: A label that there is not, a threshold that is no finite number, a low threshold above the
                threshold, or a length that is no number of at least 0.

        Source: double thresholds as in Dinkel and Yu, "Duration Robust Weakly Supervised Sound Event Detection",
            ICASSP 2020.
        """
        given = threshold if isinstance(threshold, Mapping) else {}
        if unknown := [label for label in [*given, *ignore] if label not in self.label_names]:
            raise ValueError(f"Expected labels of the model, got {unknown[0]!r}.")
        if not all(is_number(seconds) and seconds >= 0 for seconds in (min_seconds, merge_seconds)):
            raise ValueError(
                f"Expected min_seconds and merge_seconds of at least 0, got {min_seconds!r} and {merge_seconds!r}."
            )
        optional = (low_threshold,) if isinstance(threshold, Mapping) else (low_threshold, threshold)
        for value in (*given.values(), *(value for value in optional if value is not None)):
            if not is_number(value):
                raise ValueError(f"Expected thresholds to be finite numbers, got {value!r}.")
        highs, lows = {}, {}  # by column
        for index, label in enumerate(self.label_names):
            if label in ignore:
                continue
            if threshold is None or isinstance(threshold, Mapping):
                high = given.get(label, self.thresholds.get(label, DEFAULT_THRESHOLD))
            else:
                high = threshold
            low = min(high, high / 2) if low_threshold is None else low_threshold
            if low > high:
                raise ValueError(f"Expected low_threshold of at most the threshold of {label}, {high}, got {low}.")
            highs[index], lows[index] = high, low
        # Most labels never reach their threshold. To round it to the type of the scores leaves out none that does.
        rounded = np.full(len(self.label_names), np.inf, self.scores.dtype)
        rounded[list(highs)] = list(highs.values())
        reached = np.flatnonzero((self.scores >= rounded).any(axis=0))
        events = []
        for index in filter(highs.__contains__, reached.tolist()):
            events += self._find_events_of(index, highs[index], lows[index], min_seconds, merge_seconds)
        return sorted(events, key=lambda event: (event.start, event.label))

    def _find_events_of(
        self, index: int, high: float, low: float, min_seconds: float, merge_seconds: float
    ) -> list[Event]:
        scores, times = self.scores[:, index], self.times

        def seconds(start: int, end: int) -> float:  # of whole samples: a difference of times would be rounded twice
            return (self.boundaries[end] - self.boundaries[start]) / self.sampling_rate

        is_low = np.concatenate(([False], scores >= low, [False]))
        starts, ends = np.flatnonzero(is_low[1:] & ~is_low[:-1]), np.flatnonzero(is_low[:-1] & ~is_low[1:])
        runs = [[start, end] for start, end in zip(starts, ends) if scores[start:end].max() >= high]
        merged = []
        for start, end in runs:
            if merged and seconds(merged[-1][1], start) <= merge_seconds:
                merged[-1][1] = end
            else:
                merged.append([start, end])
        return [
            Event(self.label_names[index], float(times[start]), float(times[end]), float(scores[start:end].max()))
            for start, end in merged
            if seconds(start, end) >= min_seconds
        ]

    def write_csv(self, path: str | os.PathLike) -> None:
        """The scores as a table: start and end in seconds, and a column a label."""
        with written_beside(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["start", "end", *self.label_names])
            for start, end, row in zip(self.times[:-1], self.times[1:], self.scores):
                # As many digits as give the same float32 again.
                writer.writerow([f"{start:.6f}", f"{end:.6f}", *map(str, np.asarray(row, np.float32))])


def read_timeline(path: str | os.PathLike, sampling_rate: int, thresholds: Mapping[str, float]) -> Timeline:
    """A timeline from the table that `write_csv` wrote, in which its events can be found anew.

    Args:
        path: Of the table.
        sampling_rate: In Hz; to the samples of which times are exact again.
        thresholds: Of labels whose decision was fitted, by name.

    Raises:
        OSError: No such file.
        ValueError: Another table.
    """
    with open(path, newline="", encoding="utf-8") as file:
        (start, end, *label_names), *rows = csv.reader(file)
    if (start, end) != ("start", "end") or not label_names or not rows:
        raise ValueError(f"Expected a table with start, end and a column a label, got {start}, {end}, ...")
    table = np.array(rows, dtype=np.float64)
    boundaries = np.append(table[:, 0], table[-1, 1]) * sampling_rate
    return Timeline(
        boundaries=boundaries.round().astype(np.int64),
        scores=table[:, 2:].astype(np.float32),
        label_names=label_names,
        sampling_rate=sampling_rate,
        thresholds=thresholds,
    )


def is_number(value: Any) -> bool:
    """Whether a value that a user gives is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def audacity_labels(events: Sequence[Event]) -> str:
    """Events as a label track that Audacity imports: start, end and label, with tabs between."""
    # Tabs and line ends in a label would break the format.
    return "".join(f"{event.start:.6f}\t{event.end:.6f}\t{' '.join(event.label.split())}\n" for event in events)
