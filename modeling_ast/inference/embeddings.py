"""What the model hears as vectors: one a recording, one a window, or one a patch of time; and files of them."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from modeling_ast import ASTModel
from modeling_ast.data.files import written_beside
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline, make_pipeline
from modeling_ast.inference.recordings import Recording

LEVELS = ("clip", "window", "patch")
# What can be written of a recording beside its vectors.
COLUMN_TYPES = {
    "path": pa.string(),
    "split": pa.string(),
    "label": pa.string(),
    "labels": pa.list_(pa.string()),
}
# Rows of a Parquet file that are in memory before they are written: 12 MB of base384's vectors.
ROWS_A_GROUP = 4096


@dataclass(frozen=True)
class Embeddings:
    """Vectors of a recording, in the order of time.

    Attributes:
        vectors: float32 array (rows, hidden_size).
        starts: Where the stretch begins that a row was computed from, in seconds, float64 (rows,).
        ends: Where it ends.
    """

    vectors: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class ASTEmbeddingPipeline(ASTAudioClassificationPipeline):
    """The vectors that a classifier decides on, for recordings of any length; see `audio_embedder`.

        embedder = audio_embedder("outputs/demo")
        embedder("street.wav", level="window").vectors

    Recordings, windows, features and batches are those of `ASTAudioClassificationPipeline`, and so are the keywords
    `chunk_length_s`, `stride_length_s`, `padding`, `on_error` and `ignore_length`. The model may have a head or none.
    Results are `Embeddings`. One more keyword:

        level: What a row is. "clip": the recording; the mean over its windows, each by the time that it covers.
            "window": a window; what the head sees of it (`pooler_output`), with the stretch that it hears, which
            overlaps with the next one's. "patch": a column of patches; the mean over frequency of
            `last_hidden_state`, with the 175 ms that a column of 16 frames hears, every `time_stride` frames. Where
            windows overlap, a column is taken from the window that covers its centre, so that time is gone through
            once. Padding has no rows.
    """

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        level = {key: kwargs.pop(key) for key in ("level",) if key in kwargs}
        if level and level["level"] not in LEVELS:
            raise ValueError(f"Expected level to be one of {', '.join(LEVELS)}, got {level['level']!r}.")
        window_params, _, of_scores = super()._sanitize_parameters(**kwargs)
        if of_scores:
            raise TypeError(f"{next(iter(of_scores))!r} says something of scores, and embeddings have none.")
        return window_params, level, level

    def preprocess(
        self, source: Recording, chunk_length_s: float | None = None, stride_length_s: Any = None, **kwargs
    ) -> Iterator[dict[str, Any]]:
        """As in the class above, and with where a window begins and how long it may be, in samples."""
        cutter = self.window_cutter(chunk_length_s, stride_length_s)
        for item in super().preprocess(source, chunk_length_s, stride_length_s, **kwargs):
            if "error" not in item:  # the first window covers its beginning too
                item = {**item, "begin": max(0, item["start"] - cutter.left), "length": cutter.length}
            yield item

    def _forward(self, model_inputs: dict[str, torch.Tensor], level: str = "clip") -> dict[str, torch.Tensor]:
        outputs = self.model.base_model(**model_inputs, return_dict=True)
        if level == "patch":
            grid = self.model.fold_patches(outputs.last_hidden_state)  # (batch, frequency, time, hidden_size)
            return {"vectors": grid.float().mean(dim=1)}
        return {"vectors": outputs.pooler_output.float()}

    def postprocess(self, windows: list[dict[str, Any]], level: str = "clip") -> Embeddings:
        """The result of a recording, from its windows with their `vectors`: (1, hidden_size), or of each column."""
        end = windows[-1]["num_samples"]
        boundaries = np.array([*(window["start"] for window in windows), end])
        reaches = np.array([(window["begin"], min(window["begin"] + window["length"], end)) for window in windows])
        vectors = [window["vectors"][0].numpy() for window in windows]
        if level == "clip":
            rows, stretches = np.average(vectors, axis=0, weights=np.diff(boundaries))[None], np.array([[0, end]])
        elif level == "window":
            rows, stretches = np.stack(vectors), reaches
        else:
            parts = [
                _choose_columns(columns, self._locate_columns(*stretch), *own)
                for columns, stretch, own in zip(vectors, reaches, zip(boundaries, boundaries[1:]))
            ]
            rows, stretches = (np.concatenate(arrays) for arrays in zip(*parts))
        starts, ends = (stretches / self.feature_extractor.sampling_rate).T
        return Embeddings(rows.astype(np.float32), starts, ends)

    def _locate_columns(self, begin: int, end: int) -> np.ndarray:
        """The samples, from and to, that each column of patches without padding hears: int64 (columns, 2)."""
        config, extractor = self.model.config, self.feature_extractor
        frames = extractor.num_frames(end - begin)
        # A clip shorter than one patch is padded to one.
        count = self.model.base_model.embeddings.count_columns(max(frames, config.patch_size))
        starts = begin + np.arange(count) * config.time_stride * extractor.frame_shift
        return np.stack((starts, np.minimum(starts + extractor.num_samples(config.patch_size), end)), axis=1)


def _choose_columns(
    columns: np.ndarray, stretches: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those with their centre in what their window covers; columns behind the located ones are padding."""
    centres = stretches.mean(axis=1)
    is_own = (centres >= start) & (centres < stop)
    return columns[: len(stretches)][is_own], stretches[is_own]


def audio_embedder(model: str | os.PathLike, **kwargs) -> ASTEmbeddingPipeline:
    """The pipeline of a folder or a Hub repository, of an AST with or without a head.

    Args:
        model: Folder or Hub repository.
        **kwargs: Keywords of `transformers.pipeline` (`device`, `dtype`, ...) and of the pipeline. Code that the
            folder or repository brings runs with `trust_remote_code=True` alone; nobody is asked.

    Raises:
        ModelError: As from `load_model`.
        TypeError, ValueError: As from the pipeline.
    """
    return make_pipeline("feature-extraction", model, ASTModel, ASTEmbeddingPipeline, kwargs)


# Files

Items = Iterable[tuple[Mapping[str, Any], Embeddings]]  # what is known of a recording, by column, and its vectors


def write_parquet(
    path: Path, items: Items, columns: Sequence[str], hidden_size: int, metadata: Mapping[str, Any]
) -> int:
    """Embeddings as a table that is written while they come; the file is there when it is whole.

    Its columns are those named, `start` and `end` in seconds, and `embedding` (float32 lists of fixed size).

    Args:
        path: Of the file.
        items: As they come.
        columns: Out of `COLUMN_TYPES`; what each item says of its recording.
        hidden_size: Of the vectors.
        metadata: Where they come from; in the schema's metadata, as JSON, under `modeling_ast`.

    Returns:
        The number of rows.
    """
    fields = [
        *((name, COLUMN_TYPES[name]) for name in columns),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("embedding", pa.list_(pa.float32(), hidden_size)),
    ]
    schema = pa.schema(fields, metadata={"modeling_ast": json.dumps(metadata)})
    num_rows = 0
    with written_beside(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for group in _groups(items):
            parts = [embeddings for _, embeddings in group]
            known = [[record[name] for record, part in group for _ in part.starts] for name in columns]
            vectors = np.concatenate([part.vectors for part in parts])
            arrays = [
                *(pa.array(values, COLUMN_TYPES[name]) for name, values in zip(columns, known)),
                pa.array(np.concatenate([part.starts for part in parts])),
                pa.array(np.concatenate([part.ends for part in parts])),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), hidden_size),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=ROWS_A_GROUP)
            num_rows += len(vectors)
    return num_rows


def write_npy(path: Path, items: Items, columns: Sequence[str], hidden_size: int) -> int:
    """Embeddings as one float32 array (rows, hidden_size), and a CSV file beside it that says what its rows are.

    Written while they come; the array is there when both are whole. Several labels are joined by semicolons. The CSV
    file has the name of the array with .csv in place of .npy.

    Args:
        path: Of the array; ends in .npy.
        items: As they come.
        columns: What each item says of its recording.
        hidden_size: Of the vectors.

    Returns:
        The number of rows.
    """
    num_rows = 0
    with written_beside(path) as unfinished, written_beside(path.with_suffix(".csv")) as unfinished_index:
        with open(unfinished, "wb") as file, open(unfinished_index, "w", newline="", encoding="utf-8") as index:
            table = csv.writer(index)
            table.writerow([*columns, "start", "end"])
            _write_npy_header(file, num_rows, hidden_size)
            length = file.tell()
            for record, embeddings in items:
                known = [record[name] for name in columns]
                known = [";".join(value) if isinstance(value, list) else value for value in known]
                for start, end in zip(embeddings.starts, embeddings.ends):
                    table.writerow([*known, f"{start:.6f}", f"{end:.6f}"])
                file.write(embeddings.vectors.astype("<f4").tobytes())
                num_rows += len(embeddings.vectors)
            file.seek(0)
            _write_npy_header(file, num_rows, hidden_size)
            assert file.tell() == length  # numpy leaves room for any number of rows
        path.unlink(missing_ok=True)  # an older array must not stand beside the new index
    return num_rows


def _write_npy_header(file, num_rows: int, hidden_size: int) -> None:
    shape = (num_rows, hidden_size)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _groups(items: Items) -> Iterator[list[tuple[Mapping[str, Any], Embeddings]]]:
    """So many that they have rows enough to be written; the last group may have fewer."""
    group, num_rows = [], 0
    for item in items:
        group.append(item)
        num_rows += len(item[1].vectors)
        if num_rows >= ROWS_A_GROUP:
            yield group
            group, num_rows = [], 0
    if group:
        yield group
