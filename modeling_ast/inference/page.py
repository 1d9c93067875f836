"""What a page about one recording asks of a model: what is in it, when, and where the model looks."""

import math
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Condition
from typing import Any

import numpy as np
import soundfile
import torch

from modeling_ast.audio import AUDIO_SUFFIXES, AudioError, read_blocks
from modeling_ast.data.folders import find_sounds
from modeling_ast.data.labels import DataError, plain
from modeling_ast.data.synthetic import CLASSES, SAMPLING_RATE, generate_clip
from modeling_ast.inference.explanations import explain_attention
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline
from modeling_ast.inference.plots import plot_attention, plot_timeline
from modeling_ast.inference.timeline import Event, Timeline, audacity_labels
from modeling_ast.inference.windows import Window

TOP_K = 5
BATCH_SIZE = 8
# Stretches that can be looked into, the strongest ones: an hour has thousands.
MAX_STRETCHES = 100
# Of a recording's name, in the names of files about it: room for the rest in the 255 bytes that file systems take.
_MAX_STEM_BYTES = 200
_TURN_SECONDS = 10.0  # of a recording, tagged at the default overlap of windows, before others have their turn


class Stopped(Exception):  # noqa: N818, nothing is wrong
    """Raised by who is told how far a recording was read, and wants no more of it."""


class Turn:
    """A lock, used by `with`, that is got in the order in which it was asked for.

    Of a `threading.Lock` the thread that had it may be the next again, and again.
    """

    def __init__(self):
        self._queue, self._moves = deque(), Condition()

    def __enter__(self):
        place = object()
        with self._moves:
            self._queue.append(place)
            try:
                self._moves.wait_for(lambda: self._queue[0] is place)
            except BaseException:  # an interrupt: nobody is to wait for who has left
                self._queue.remove(place)
                self._moves.notify_all()
                raise

    def __exit__(self, *error):
        with self._moves:
            self._queue.popleft()
            self._moves.notify_all()


@dataclass(frozen=True)
class TaggedRecording:
    """What is in a recording, and what is needed to ask further.

    Attributes:
        path: Of the recording.
        windows: The pipeline's keywords of windows.
        tags: The best labels, as the pipeline gives them.
        timeline: Of the recording.
        events: By start, as `Timeline.find_events` gives them.
        stretches: The events that can be looked into, the strongest first; without events the strongest row alone.
        folder: Of pictures and files about it.
    """

    path: Path
    windows: Mapping[str, Any]
    tags: list[dict[str, Any]]
    timeline: Timeline
    events: list[Event]
    stretches: list[Event]
    folder: Path

    def forget(self) -> None:
        """Delete pictures and files."""
        shutil.rmtree(self.folder, ignore_errors=True)  # they may be gone with the folder that they were in


class Tagger:
    """A model that tags recordings, several at a time: ten seconds of each in turn, so that short ones are soon done.

    Args:
        classifier: The pipeline.
        folder: For pictures and files; each recording gets a folder in it.
        max_seconds: Length of the longest recording. Where windows overlap more than by default it is as much shorter
            as they cost more.
    """

    def __init__(
        self, classifier: ASTAudioClassificationPipeline, folder: str | os.PathLike, max_seconds: float = math.inf
    ):
        self.classifier, self.folder, self.max_seconds = classifier, folder, max_seconds
        self.extractor = classifier.feature_extractor
        self.turn = Turn()

    def tag(
        self,
        path: str | os.PathLike,
        windows: Mapping[str, Any],
        threshold: float | None = None,
        report: Callable[[float], Any] = lambda share: None,
    ) -> TaggedRecording:
        """Find the tags and events of a recording, read in blocks.

        Args:
            path: Of the recording.
            windows: `chunk_length_s` and `stride_length_s`, as the pipeline takes them.
            threshold: Score of an event; `None` means the model's own, or 0.5.
            report: Told the share of the file that has been read, in [0, 1], before each block; it raises `Stopped`
                where nobody waits for the rest.

        Raises:
            AudioError: A recording that cannot be used; the message calls it by its name, without its folder.
            ValueError: Windows or a threshold that cannot work.
        """
        rate, name = self.extractor.sampling_rate, Path(path).name
        with closing(self._read(path, windows, report)) as pieces:
            result = self.classifier(
                {"pieces": pieces, "sampling_rate": rate, "path": name},
                **{**windows, "top_k": TOP_K, "threshold": 0, "return_timeline": True, "batch_size": BATCH_SIZE},
            )
        timeline = result["timeline"]
        events = timeline.find_events(threshold)
        stretches = sorted(events, key=lambda event: -event.score)[:MAX_STRETCHES] or [_strongest_row(timeline)]
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return TaggedRecording(Path(path), windows, result["tags"], timeline, events, stretches, folder)

    def _read(
        self, path: str | os.PathLike, windows: Mapping[str, Any], report: Callable[[float], Any] = lambda share: None
    ) -> Iterator[torch.Tensor]:
        """Blocks of a recording, each at its turn, which lasts until the next one is asked for."""
        cutter, name = self.classifier.window_cutter(**windows), Path(path).name
        share = min(1.0, 1.5 * cutter.hop / cutter.length)  # by default the hop is two thirds of the window
        try:
            file = open(path, "rb")
        except (OSError, ValueError) as error:  # a name that no file can have
            raise AudioError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
        with file:
            size = max(1, os.fstat(file.fileno()).st_size)
            rate, max_seconds = self.extractor.sampling_rate, self.max_seconds * share
            for block in read_blocks(file, rate, name, share * _TURN_SECONDS, max_seconds):
                with self.turn:
                    report(min(1.0, file.tell() / size))
                    yield block

    def draw_timeline(self, tagged: TaggedRecording, report: Callable[[float], Any] = lambda share: None) -> Path:
        """The picture of a recording, which is read once more.

        Args:
            tagged: The recording.
            report: As in `tag`.

        Raises:
            AudioError: The file cannot be used any longer.
        """
        picture = tagged.folder / "timeline.png"
        with closing(self._read(tagged.path, tagged.windows, report)) as pieces:
            plot_timeline(pieces, self.extractor, tagged.timeline, tagged.events, picture, title=tagged.path.name)
        return picture

    def draw_attention(self, tagged: TaggedRecording, number: int) -> Path:
        """The picture of the last layer's attention in the window in which a stretch is strongest.

        Args:
            tagged: The recording.
            number: Of the stretch.

        Raises:
            AudioError: The file, which is read once more, cannot be used any longer.
        """
        event = tagged.stretches[number]
        window, start_seconds = self.read_window(tagged, _strongest_row_of(tagged.timeline, event))
        # Padded as the pipeline padded it.
        is_as_trained = window.is_whole_recording and tagged.windows.get("chunk_length_s") is None
        with self.turn:
            attention = explain_attention(
                self.classifier.model,
                self.extractor,
                window.waveform,
                padding=self.extractor.padding if is_as_trained else "longest",
                start_seconds=start_seconds,
            )
        picture = tagged.folder / f"attention_{number}.png"
        plot_attention(attention, picture, title=f"the window in which {event.label} is strongest")
        return picture

    def read_window(self, tagged: TaggedRecording, row: int) -> tuple[Window, float]:
        """The window that covers a row of the timeline, and the second at which it starts.

        Raises:
            AudioError: The file, which is read once more, cannot be used any longer.
        """
        cutter = self.classifier.window_cutter(**tagged.windows)
        with closing(self._read(tagged.path, tagged.windows)) as pieces:
            return next(islice(cutter.cut(pieces), row, None)), row * cutter.hop / self.extractor.sampling_rate

    def write_files(self, tagged: TaggedRecording) -> list[Path]:
        """The events as labels for Audacity, and all scores over time as CSV."""
        stem = os.fsencode(tagged.path.stem)[:_MAX_STEM_BYTES].decode(errors="ignore")
        events, scores = (tagged.folder / f"{stem}_{name}" for name in ("events.txt", "scores.csv"))
        events.write_text(audacity_labels(tagged.events), encoding="utf-8")
        tagged.timeline.write_csv(scores)
        return [events, scores]


def _strongest_row(timeline: Timeline) -> Event:
    """The row with the highest score of all."""
    row, column = np.unravel_index(timeline.scores.argmax(), timeline.scores.shape)
    start, end = timeline.times[row : row + 2].tolist()
    return Event(timeline.label_names[column], start, end, float(timeline.scores[row, column]))


def _strongest_row_of(timeline: Timeline, event: Event) -> int:
    scores = timeline.scores[:, timeline.label_names.index(event.label)]
    rows = np.flatnonzero((timeline.times[:-1] >= event.start) & (timeline.times[1:] <= event.end))
    return int(rows[scores[rows].argmax()])


# Examples


def find_examples(folder: Path) -> list[Path]:
    """The recordings in a folder and below, by name; one whose name is no UTF-8 would keep all from the page.

    Raises:
        DataError: No such folder, or none in it.
    """
    paths = sorted(Path(path).resolve() for path in find_sounds(folder))
    for path in [path for path in paths if plain(str(path)) != str(path)]:
        print(f"{plain(str(path))} is no example: its name cannot be shown.", file=sys.stderr)
        paths.remove(path)
    if not paths:
        raise DataError(f"Expected a folder with recordings ({', '.join(AUDIO_SUFFIXES)}) as examples, got {folder}.")
    return paths


def write_examples(folder: Path) -> list[Path]:
    """Three recordings of generated sounds, one behind the other, in a new folder."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    kinds = {"four sounds": 4, "all kinds": len(CLASSES), "a minute": 60}
    paths = []
    for name, count in kinds.items():
        order = torch.randperm(len(CLASSES), generator=generator).repeat(-(-count // len(CLASSES)))[:count]
        clips = [generate_clip(CLASSES[index], generator) for index in order]
        paths.append(folder / f"{name}.wav")
        soundfile.write(paths[-1], torch.cat(clips).numpy(), SAMPLING_RATE)
    return paths
