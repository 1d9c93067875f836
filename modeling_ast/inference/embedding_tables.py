"""Tables of embeddings: of many recordings, files or the clips of a data set, written while they come."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from modeling_ast.audio import AudioError
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.files import written_beside
from modeling_ast.inference.embeddings import ASTEmbeddingPipeline, Embeddings

# What can be written of a recording beside its vectors.
COLUMN_TYPES = {
    "path": pa.string(),
    "split": pa.string(),
    "label": pa.string(),
    "labels": pa.list_(pa.string()),
}
# Rows of a Parquet file that are in memory before they are written: 12 MB of base384's vectors.
ROWS_A_GROUP = 4096

Items = Iterable[tuple[Mapping[str, Any], Embeddings]]  # what is known of a recording, by column, and its vectors


class Files(Dataset):
    """Sounds as they are found (`files[index]`), and what is written of each."""

    columns = ("path",)
    ignore_length = False

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        return self.paths[index]

    def describe(self, index: int) -> dict[str, Any]:
        return {"path": self.paths[index]}


class Clips(Dataset):
    """The clips of some splits of a data set (`clips[index]`), and what is written of each."""

    def __init__(self, splits: AudioSplits, names: Sequence[str], multi_label: bool):
        self.ignore_length = splits.ignore_length
        chosen = {name: rows for name, rows in splits if name in names}
        self.rows = datasets.concatenate_datasets(list(chosen.values()))
        self.splits = np.repeat(list(chosen), [len(rows) for rows in chosen.values()])
        self.label_names, self.multi_label = splits.label_names, multi_label
        self.columns = ("path", "split", "labels" if multi_label else "label")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        audio = self.rows[index]["audio"]
        return {**audio, "path": audio["path"] or f"row {index}"}  # sounds that lie in a table may have no name

    def describe(self, index: int) -> dict[str, Any]:
        known, labels = {"path": self[index]["path"], "split": str(self.splits[index])}, self.rows[index]["labels"]
        if self.multi_label:
            return {**known, "labels": [self.label_names[label] for label in labels]}
        return {**known, "label": self.label_names[labels]}


def embed(
    embedder: ASTEmbeddingPipeline, recordings: Files | Clips, left_out: list[str], **kwargs
) -> Iterator[tuple[dict[str, Any], Embeddings]]:
    """What is written of each recording that can be used.

    Args:
        embedder: With `on_error="return"`.
        recordings: To embed.
        left_out: Gets the messages of the others.
        kwargs: Of the embedder.

    Raises:
        AudioError: None can be used.
    """
    results = tqdm(embedder(recordings, **kwargs), total=len(recordings), desc="Embedding", unit="recording")
    for index, result in enumerate(results):
        if isinstance(result, Embeddings):
            yield recordings.describe(index), result
        else:
            left_out.append(result["error"])
            tqdm.write(f"left out: {result['error']}", file=sys.stderr)
    if len(left_out) == len(recordings):
        raise AudioError("Expected recordings that can be used, got none: nothing is written.")


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
    rows = (
        {**known, "start": start, "end": end, "embedding": vector}
        for known, part in items
        for start, end, vector in zip(part.starts, part.ends, part.vectors)
    )
    num_rows = 0
    with written_beside(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        while group := list(islice(rows, ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
            num_rows += len(group)
    return num_rows
