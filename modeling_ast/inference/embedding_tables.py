"""Embeddings of many recordings, files or the clips of a data set: a journal of them, and one table at the end."""

import logging
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset, Subset

from modeling_ast.audio import AudioError
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.clips import iterate_clips
from modeling_ast.data.parts import Part
from modeling_ast.inference.bulk import run_pending
from modeling_ast.inference.embeddings import ASTEmbeddingPipeline, Embeddings
from modeling_ast.inference.parquet_tables import to_text, write_rows
from modeling_ast.inference.results_folder import UNDIVIDED, ResultsFolder
from modeling_ast.inference.sound_files import SoundFile, stamp_of
from modeling_ast.inference.timeline import is_number

logger = logging.getLogger(__name__)

END_BYTES = 2**16  # of a sound in a table that are looked at, so that not all of a large one need be read
# What can be written of a recording beside its vectors.
_COLUMN_TYPES = {
    "path": pa.string(),
    "split": pa.string(),
    "label": pa.string(),
    "labels": pa.list_(pa.string()),
}


class Files(Dataset):
    """Sounds as they are found (`files[index]`), and what is written of each."""

    columns = ("path",)
    ignore_length = False

    def __init__(self, files: list[SoundFile]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        return self.files[index].path

    def describe(self, index: int) -> dict[str, Any]:
        return {"path": to_text(self.files[index].path)}

    def begin(self, index: int) -> float:
        """Second of its recording at which a sound begins."""
        return 0.0


class Clips(Dataset):
    """The clips of some splits of a data set (`clips[index]`), and what is written of each.

    Attributes:
        files: What each is known by: its split, its number there and its path.
    """

    def __init__(self, splits: AudioSplits, names: Sequence[str], multi_label: bool):
        self.ignore_length = splits.ignore_length
        chosen = {name: rows for name, rows in splits if name in names}
        self.rows = datasets.concatenate_datasets(list(chosen.values()))
        self.splits = np.repeat(list(chosen), [len(rows) for rows in chosen.values()])
        self.label_names, self.multi_label = splits.label_names, multi_label
        self.labels = self.rows.select_columns("labels") if self.label_names else None
        own = ("labels" if multi_label else "label",) if self.label_names else ()
        self.columns = ("path", "split", *own)
        numbers = (number for rows in chosen.values() for number in range(len(rows)))
        clips, stamps = list(iterate_clips(self.rows)), _stamps(self.rows)
        self.paths = pa.array([clip.path for clip in clips])
        self.begins = np.array([clip.start or 0.0 for clip in clips])
        self.files = [
            SoundFile(f"{split} {number}, {clip.name or ''}", "", stamp)
            for split, number, clip, stamp in zip(self.splits.tolist(), numbers, clips, stamps, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        audio = self.rows[index]["audio"]
        return {**audio, "path": audio["path"] or f"row {index}"}  # sounds that lie in a table may have no name

    def describe(self, index: int) -> dict[str, Any]:
        path = self.paths[index].as_py() or f"row {index}"
        known = {"path": to_text(path), "split": str(self.splits[index])}
        if self.labels is None:
            return known
        labels = self.labels[index]["labels"]
        if self.multi_label:
            return {**known, "labels": [self.label_names[label] for label in labels]}
        return {**known, "label": self.label_names[labels]}

    def begin(self, index: int) -> float:
        """Second of its recording at which a clip begins."""
        return float(self.begins[index])


def _stamps(rows: datasets.Dataset) -> Iterator[list[int]]:
    """By which sounds are known again: as files are; of those in a table, by the length and a CRC-32 of their ends."""
    for batch in rows.select_columns(["audio"]).with_format("arrow").iter(100):
        for chunk in batch["audio"].chunks:
            for content, path in zip(chunk.field("bytes"), chunk.field("path").to_pylist()):
                if content.is_valid:
                    ends = memoryview(content.as_buffer())
                    yield [len(ends), zlib.crc32(ends[-END_BYTES:], zlib.crc32(ends[:END_BYTES]))]
                else:
                    yield stamp_of(path) if path else [0, 0]


class EmbeddingsFolder(ResultsFolder):
    """The journal of a table of embeddings, in a folder beside it that has its name and ends in `.journal`.

    A line, or one with an error:

        {"path", "seconds", "starts", "ends", "vectors", "stamp"}

    `vectors` are float32 numbers, little-endian, row by row, in base64: so a line has all digits, and one that was cut
    off is known. The folder may be deleted when no more recordings come; what is in the table would then be computed
    anew.

    Args:
        output: The table, ending in `.parquet`.
        settings: As for `ResultsFolder`.
        recordings: Of the run, with all its parts.
        size: Of the vectors.
        overwrite: Whether to forget what there is. A table stays until another one takes its place.
        part: Of a divided run, which this process does.

    Raises:
        DataError: There are embeddings with other settings, or something else in their place.
    """

    option, unit, list_name = "--output", "recording", "starts"

    def __init__(
        self,
        output: str | os.PathLike,
        settings: Mapping[str, Any],
        recordings: Files | Clips,
        size: int,
        overwrite: bool = False,
        part: Part = UNDIVIDED,
    ):
        self.output, self.recordings, self.size = Path(output), recordings, size
        super().__init__(journal_folder(self.output), settings, overwrite, part)

    def add(self, file: SoundFile, embeddings: Embeddings) -> None:
        """Write the vectors of a recording.

        Raises:
            AudioError: They are not finite.
        """
        if not np.isfinite(embeddings.vectors).all():  # which no distance is told of
            raise AudioError(f"{file.path}: the model's vectors are not finite.")
        starts, ends = embeddings.starts.tolist(), embeddings.ends.tolist()
        vectors = b64encode(embeddings.vectors.astype("<f4")).decode("ascii")
        line = {"path": file.path, "seconds": ends[-1], "starts": starts, "ends": ends}
        self.journal.append({**line, "vectors": vectors, "stamp": file.stamp})

    def is_result(self, entry: Mapping[str, Any]) -> bool:
        """Whether a line, with a path and without an error, is one that is written here."""
        starts, ends, vectors = (entry.get(name) for name in ("starts", "ends", "vectors"))
        if not (isinstance(starts, list) and isinstance(ends, list) and isinstance(vectors, str)):
            return False
        num_bytes = 4 * self.size * len(starts)
        is_whole = len(starts) == len(ends) and len(vectors) == 4 * -(-num_bytes // 3)
        return is_whole and is_number(entry.get("seconds")) and all(map(is_number, starts + ends))

    def write_tables(self, files: Sequence[SoundFile]) -> None:
        """The vectors of the recordings of the run, in their order, those apart that cannot be used.

        Columns of the table are those that describe the recordings, `start` and `end` in seconds of the recording,
        also where a clip is a stretch of it, and `embedding` (float32 lists of fixed size).

        Raises:
            AudioError: None can be used.
        """
        usable = [index for index, file in enumerate(files) if not self.entries[file.path].has_error]
        if not usable:
            raise AudioError("Expected recordings that can be used, got none: no table is written.")
        if others := len(self.entries.keys() - {file.path for file in files}):
            logger.warning(f"{others} recording(s) that were embedded before are not named now, and not in the table.")
        lines = self.journal.lines(files[index].path for index in usable)
        rows = (
            {**self.recordings.describe(index), "start": begin + start, "end": begin + end, "embedding": vector}
            for index, begin, line in zip(usable, map(self.recordings.begin, usable), lines)
            for start, end, vector in zip(line["starts"], line["ends"], self._to_vectors(line["vectors"]))
        )
        fields = {
            **{name: _COLUMN_TYPES[name] for name in self.recordings.columns},
            "start": pa.float64(),
            "end": pa.float64(),
            "embedding": pa.list_(pa.float32(), self.size),
        }
        whole = self.path / self.output.name  # in this folder, where what a killed process leaves is removed
        write_rows(whole, rows, fields, self.settings)
        whole.replace(self.output)

    def _to_vectors(self, text: str) -> np.ndarray:
        return np.frombuffer(b64decode(text), "<f4").reshape(-1, self.size)


def journal_folder(output: Path) -> Path:
    """Where the journal of a table is."""
    return output.with_suffix(".journal")


def embed_recordings(
    embedder: ASTEmbeddingPipeline, folder: EmbeddingsFolder, retry: bool = False, **options: Any
) -> int:
    """Embed the recordings of the folder's part whose vectors it does not hold yet.

    Args:
        embedder: Whichever.
        folder: Of the results.
        retry: Whether recordings that could not be used are tried again.
        options: Of the embedder.

    Returns:
        The number of recordings that were embedded now.
    """
    files = folder.recordings.files
    pending = folder.pending(files, retry)
    is_pending = {file.path for file in pending}
    recordings = Subset(folder.recordings, [index for index, file in enumerate(files) if file.path in is_pending])
    run_pending(embedder, folder, files, pending, recordings, folder.add, "Embedding", **options)
    return len(pending)
