"""The sound of a row before it is decoded, a file or a stretch of one: what it is called, and how it is read."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from modeling_ast.audio import AudioError, load_part, load_waveform, read_samples, read_seconds

if TYPE_CHECKING:  # tagging does without it
    from datasets import Dataset

BATCH_SIZE = 1000  # rows whose names are read at once


class Clip:
    """What a column `audio` says of a row.

    Args:
        audio: With `path` and `bytes`, either of which may be `None`, and perhaps with `start` and `end`, in seconds:
            the clip is then that stretch of the sound, and no more of it is decoded than that takes. `None` of one is
            the beginning, or the end.

    Attributes:
        source: What is read: the bytes, or else the path.
        name: What tells the clip from all others of the data: the path, and of a stretch also its times, in the form
            of a media fragment, which browsers play: `rain.wav#t=1.5,3`. `None` of bytes without a path.
    """

    def __init__(self, audio: Mapping[str, Any] | None):
        audio = audio or {}
        self.path, self.content = audio.get("path"), audio.get("bytes")
        self.start, self.end = audio.get("start"), audio.get("end")
        self.source = self.content or self.path
        self.name = name_clip(self.path, self.start, self.end)

    @property
    def is_stretch(self) -> bool:
        return self.start is not None or self.end is not None

    def load(
        self, sampling_rate: int, ignore_length: bool = False, choose: Callable[[int], slice] | None = None
    ) -> torch.Tensor:
        """The waveform, as `load_waveform` gives it, or a part of it, as `load_part` does.

        Args:
            sampling_rate: Of the waveform, in Hz.
            ignore_length: As for `load_waveform`.
            choose: Which part of the clip, as for `load_part`; `None` means all.

        Raises:
            AudioError, ImportError: As from `load_waveform`; or the stretch does not lie in the recording.
        """
        how = sampling_rate, self.name, ignore_length
        if not self.is_stretch:
            return load_waveform(self.source, *how) if choose is None else load_part(self.source, choose, *how)

        def choose_within(length: int) -> slice:
            own = self._find(length, sampling_rate)
            part = slice(0, own.stop - own.start) if choose is None else choose(own.stop - own.start)
            return slice(own.start + part.start, own.start + part.stop)

        return load_part(self.source, choose_within, *how)

    def read_samples(self, ignore_length: bool = False) -> tuple[torch.Tensor, int]:
        """What `read_samples` of `modeling_ast.audio` gives, of the stretch alone.

        Raises:
            AudioError: As from there; or the stretch does not lie in the recording.
        """
        return read_samples(self.source, self.name, ignore_length, self._find if self.is_stretch else None)

    def read_seconds(self, ignore_length: bool = False) -> float:
        """Length in seconds; of a stretch whose end is given, without a look at the file.

        Raises:
            AudioError: As from `read_seconds` of `modeling_ast.audio`.
        """
        if self.end is not None:
            return self.end - (self.start or 0.0)
        return max(0.0, read_seconds(self.source, self.name, ignore_length) - (self.start or 0.0))

    def _find(self, length: int, rate: int) -> slice:
        """The stretch in a sound of so many samples; of 0 samples, whose length is not known yet, nothing."""
        if length == 0:
            return slice(0, 0)
        first = round((self.start or 0.0) * rate)
        end = length if self.end is None else round(self.end * rate)
        inside = min(end, length) - first  # what people mark by hand goes a little beyond the end at times
        if inside <= 0 or 2 * inside < end - first:
            raise AudioError(f"{self.name}: expected a stretch of the recording, which has {length / rate:.2f} s.")
        return slice(first, first + inside)


def name_clip(path: str | None, start: float | None, end: float | None) -> str | None:
    """See `Clip.name`.

    Source: W3C Media Fragments URI 1.0, temporal dimension.
    """
    if start is None and end is None:
        return path
    first, last = ("" if each is None else f"{each:.6f}".rstrip("0").rstrip(".") for each in (start, end))
    return f"{path or ''}#t={first}{',' if last else ''}{last}"


def has_stretches(rows: "Dataset") -> bool:
    """Whether rows may be stretches of their sounds."""
    feature = rows.features["audio"]
    return isinstance(feature, dict) and "start" in feature


def iterate_clips(rows: "Dataset") -> Iterator[Clip]:
    """The clips of rows, without their bytes."""
    rows = rows.select_columns(["audio"]).flatten()
    names = [name for name in ("audio.path", "audio.start", "audio.end") if name in rows.column_names]
    for batch in rows.select_columns(names).with_format("arrow").iter(BATCH_SIZE):
        columns = {name.partition(".")[2]: batch[name].to_pylist() for name in names}
        yield from (Clip(dict(zip(columns, values))) for values in zip(*columns.values()))
