"""Decoding: rows to waveforms, when they are asked for.

Training clips that cannot be decoded are counted over all processes, and named in a file.
"""

import csv
import errno
import io
import logging
import os
import zlib
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from modeling_ast.audio import AudioError
from modeling_ast.data.clips import Clip
from modeling_ast.fbank import frame_length

logger = logging.getLogger(__name__)

BAD_CLIPS_NAME = "bad_clips.csv"
_HEADER = ("audio", "reason")
# What says nothing of the clip that was to be read.
_MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}


class BadClips:
    """Clips that cannot be decoded, with the reasons, in a CSV file (`audio`, `reason`).

    All processes that read the data of a run append to the file, a line at a time; a clip counts once, also where the
    run is continued. Machines without a common folder each count for themselves.

    Args:
        path: The file; it is made with the first bad clip.
        limit: How many there may be.
    """

    def __init__(self, path: str | os.PathLike, limit: int):
        self.path, self.limit = os.fspath(path), limit
        self._position, self._known = 0, {}  # up to which the file was read, and what stands there

    def add(self, audio: dict[str, Any] | None, error: AudioError) -> None:
        """Note a clip, unless that was done before.

        Args:
            audio: As `Clip` takes it.
            error: Of decoding it.

        Raises:
            AudioError: There are more than the limit now, or the machine failed, and not the clip.
        """
        cause = error.__cause__
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) in _MACHINE_ERRORS:
            raise error
        name, bad = _name_of(Clip(audio)), self.read()
        if name not in bad:
            reason = str(error)
            self._append(name, reason)
            bad = self.read()
            logger.warning(f"{reason} It is left out ({len(bad)} of at most {self.limit}).")
        if len(bad) > self.limit:
            raise AudioError(
                f"{len(bad)} training clips cannot be decoded, which is more than max_bad_clips {self.limit}: "
                f"{self.path} names them. The last one was {name}. Mend them, remove them from the data and from that "
                "file, or allow for more."
            ) from error

    def read(self) -> dict[str, str]:
        """The bad clips so far: name to reason, in the order in which they were met."""
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._position:  # another file
                    self._position, self._known = 0, {}
                file.seek(self._position)
                text = file.read().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            self._position, self._known = 0, {}
            return self._known
        # Not the header, which two processes may both have begun with.
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if len(row) == 2 and row != [*_HEADER]]
        self._known.update(rows)
        if text.endswith("\n") and text.count('"') % 2 == 0:  # no row of which another process has written a part
            self._position += len(text.encode("utf-8", "surrogateescape"))
        return self._known

    def _append(self, name: str, reason: str) -> None:
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        with open(self.path, "a", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writerows([(name, reason)] if file.tell() else [_HEADER, (name, reason)])


class DecodeAudio:
    """Dataset transform: rows to `waveform` (float32 tensors of shape (samples,)), `path`, and `labels` if there are.

    Of a clip of which a part is read, the rest may be broken: `modeling-ast check` reads all.

    Args:
        sampling_rate: Of the waveforms, in Hz.
        bad_clips: Where clips that cannot be decoded are noted, whose `waveform` is `None`; without it, or with a
            limit of 0, they raise.
        ignore_length: As for `load_waveform`.
    """

    def __init__(
        self,
        sampling_rate: int,
        bad_clips: BadClips | None = None,
        ignore_length: bool = False,
    ):
        self.sampling_rate, self.ignore_length = sampling_rate, ignore_length
        self.bad_clips = bad_clips if bad_clips is not None and bad_clips.limit else None

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        """
        Raises:
            AudioError: A clip cannot be decoded or is shorter than 25 ms, or more of them than are allowed for.
        """
        decoded = [self.decode_row(dict(zip(rows, values))) for values in zip(*rows.values())]
        names = ("waveform", *(["labels"] if "labels" in rows else []), "path")
        return {name: [row[name] for row in decoded] for name in names}

    def decode_row(self, row: dict[str, Any], choose: Callable[[int], slice] | None = None) -> dict[str, Any]:
        """One row.

        Args:
            row: Not decoded.
            choose: Which part of the clip is read, as for `load_part`; `None` means all.

        Raises:
            AudioError: As from a call.
        """
        clip = Clip(row["audio"])
        labels = {"labels": row["labels"]} if "labels" in row else {}
        try:
            waveform = clip.load(self.sampling_rate, self.ignore_length, choose)
            if len(waveform) < frame_length(self.sampling_rate):
                raise AudioError(
                    f"{clip.name or 'a clip'}: expected at least 25 ms of sound, got {len(waveform)} samples at "
                    f"{self.sampling_rate} Hz."
                )
        except AudioError as error:
            if self.bad_clips is None:
                raise
            self.bad_clips.add(row["audio"], error)
            waveform = None
        return {"waveform": waveform, **labels, "path": clip.name}


def decode(
    rows: Dataset,
    sampling_rate: int,
    bad_clips: BadClips | None = None,
    ignore_length: bool = False,
) -> Dataset:
    """Rows with `waveform`, `path`, and `labels` if there are, read when asked for.

    Args:
        rows: With `audio`, not decoded, and perhaps `labels`.
        sampling_rate: Of the waveforms, in Hz.
        bad_clips: Where clips that cannot be decoded are noted; their `waveform` is `None`. `None`, or a limit of 0,
            raises an error when one is asked for.
        ignore_length: As for `load_waveform`.
    """
    return rows.with_transform(DecodeAudio(sampling_rate, bad_clips, ignore_length))


def _name_of(clip: Clip) -> str:
    if clip.content is None:
        return clip.name or "a row without a sound"
    # In tables of sounds the path is what the file was called, often no more than `audio.wav`.
    return f"{clip.name or 'a sound'} ({len(clip.content)} bytes, CRC-32 {zlib.crc32(clip.content):08x})"
