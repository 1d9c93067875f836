"""Training clips that cannot be decoded: replaced by others, counted over all processes, and named in a file."""

import csv
import io
import logging
import os
import random
import zlib
from typing import Any

from datasets import Dataset

from modeling_ast.audio import AudioError

logger = logging.getLogger(__name__)

BAD_CLIPS_NAME = "bad_clips.csv"


class BadClips:
    """Clips that cannot be decoded, with the reasons, in a CSV file (`audio`, `reason`).

    All processes that read the data of a run append to the file, a line at a time; a clip counts once, also where the
    run is continued. Machines without a common folder each count for themselves.

    Args:
        path: The file; it is made with the first bad clip.
        limit: How many may be replaced.
    """

    def __init__(self, path: str | os.PathLike, limit: int):
        self.path, self.limit = os.fspath(path), limit

    def add(self, audio: dict[str, Any], error: AudioError) -> None:
        """Note a clip, unless that was done before.

        Args:
            audio: With `path` and `bytes`, either of which may be `None`.
            error: Of decoding it.

        Raises:
            AudioError: There are more than the limit now.
        """
        name = audio["path"] or f"{len(audio['bytes'])} bytes with CRC-32 {zlib.crc32(audio['bytes']):08x}"
        bad = self.read()
        if name not in bad:
            reason = str(error)
            self._append(name, reason)
            bad[name] = reason
            logger.warning(f"{reason} Another clip takes its place ({len(bad)} of at most {self.limit}).")
        if len(bad) > self.limit:
            raise AudioError(
                f"{len(bad)} training clips cannot be decoded, which is more than max_bad_clips {self.limit}: "
                f"{self.path} names them. The last one was {name}. Mend or remove them, or allow for more."
            ) from error

    def read(self) -> dict[str, str]:
        """The bad clips so far: name to reason, in the order in which they were met."""
        try:
            with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 2]  # not a line that was cut by a fault
        except FileNotFoundError:
            return {}
        return dict(rows[1:])

    def _append(self, *cells: str) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        # In one write, since others may be writing too; a newline first ends a line that was cut by a fault.
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if (size := os.fstat(file).st_size) == 0:
                writer.writerow(("audio", "reason"))
            elif os.pread(file, 1, size - 1) != b"\n":
                text.write("\n")
            writer.writerow(cells)
            os.write(file, text.getvalue().encode("utf-8", "surrogateescape"))
        finally:
            os.close(file)


class ReplacedRows:
    """Decoded rows, in which another one stands in for each that cannot be decoded, always the same one.

    Args:
        rows: Decoded when asked for.
        bad_clips: Where those that cannot be are noted.
    """

    def __init__(self, rows: Dataset, bad_clips: BadClips):
        self.rows, self.bad_clips = rows, bad_clips
        self.files = rows.with_format(None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """
        Raises:
            AudioError: More clips than the limit cannot be decoded.
        """
        try:
            return self.rows.__getitems__(indices)
        except AudioError:
            return [self._read_or_replace(index) for index in indices]

    def _read_or_replace(self, index: int) -> dict[str, Any]:
        draws = random.Random(index)
        while True:
            try:
                return self.rows[index]
            except AudioError as error:
                self.bad_clips.add(self.files[index]["audio"], error)
            index = draws.randrange(len(self.rows))
