"""A table of embeddings as a store: whose stretches are looked up, searched and learnt from."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_ast import ASTFeatureExtractor, ASTModel
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.labels import DataError
from modeling_ast.inference.parquet_tables import SETTINGS_KEY
from modeling_ast.inference.sound_files import match_moved
from modeling_ast.loading import ModelError, load_model

_WINDOW_KEYS = ("chunk_length_s", "stride_length_s")


class EmbeddingStore:
    """A table that `modeling-ast embed` wrote, of which memory holds where each row is, and not its vector.

    Attributes:
        path: Of the table.
        settings: Of the embeddings: the model's name and fingerprint, what a row is, the windows.
        size: Of the vectors.
        names: Paths of the recordings, as the table has them.
        recordings: Whose stretch each row is, an index into `names`: int32 (rows,).
        starts: Where it begins, in seconds: float64 (rows,).
        ends: Where it ends.

    Args:
        path: Of the table.

    Raises:
        DataError: No such table, one that `embed` did not write, or one whose rows are no stretches to search.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._file = pq.ParquetFile(self.path, read_dictionary=["path"])
            schema = self._file.schema_arrow
            self.settings = json.loads((schema.metadata or {})[SETTINGS_KEY.encode()])
            self.size = schema.field("embedding").type.list_size
            table = self._file.read(["path", "start", "end"])
        except (OSError, ValueError, KeyError, AttributeError) as error:  # those of pyarrow are ValueErrors too
            raise DataError(f"{self.path}: expected a table that `modeling-ast embed` wrote ({error}).") from error
        if self.settings.get("level") not in ("clip", "window"):
            raise DataError(
                f"{self.path}: expected embeddings of windows or clips, got level {self.settings.get('level')}. "
                "Compute them with --level window."
            )
        paths = table["path"].unify_dictionaries().combine_chunks()
        self.names = paths.dictionary.to_pylist()
        self.recordings = paths.indices.to_numpy()
        self.starts, self.ends = (table[name].to_numpy() for name in ("start", "end"))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def windows(self) -> dict[str, float | list[float]]:
        """The pipeline's keywords of the windows that the rows are."""
        return {name: self.settings[name] for name in _WINDOW_KEYS if name in self.settings}

    def find(self, name: str) -> str:
        """Where a recording is, of a path as the table has it: as seen from here, or else from beside the table."""
        beside = self.path.parent / name
        return os.path.realpath(beside if beside.exists() and not os.path.exists(name) else name)

    def rows_by_recording(self) -> dict[str, np.ndarray]:
        """The rows of each recording in the order of time, by its absolute path, from here or from beside it."""
        order = np.lexsort((self.starts, self.recordings))
        borders = np.searchsorted(self.recordings[order], np.arange(len(self.names) + 1))
        found = {}
        # Where they are counts before where others of the same names would be.
        for places in (self.find, os.path.realpath, lambda name: os.path.realpath(self.path.parent / name)):
            for index, name in enumerate(self.names):
                found.setdefault(places(name), order[borders[index] : borders[index + 1]])
        return found

    def find_moved(self, paths: Iterable[str]) -> dict[str, int]:
        """Numbers of the recordings that some seem to be which the table does not have, as `match_moved` tells."""
        return match_moved(paths, self.names, lambda name: os.path.exists(self.find(name)))

    def rows_of(self, number: int) -> np.ndarray:
        """The rows of a recording in the order of time."""
        rows = np.flatnonzero(self.recordings == number)
        return rows[np.argsort(self.starts[rows], kind="stable")]

    def blocks(self, groups: Sequence[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """The vectors, block by block: number of the first row, and float32 (rows, size).

        Args:
            groups: Which blocks; `None` means all.
        """
        firsts = self._firsts()
        for group in range(self._file.num_row_groups) if groups is None else groups:
            column = self._file.read_row_group(group, ["embedding"])["embedding"]
            yield int(firsts[group]), _to_array(column, self.size)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some rows, in their order: float32 (rows, size)."""
        found = np.empty((len(rows), self.size), np.float32)
        groups = np.searchsorted(self._firsts(), rows, side="right") - 1
        for group in np.unique(groups).tolist():
            places = np.flatnonzero(groups == group)
            ((first, block),) = self.blocks([group])
            found[places] = block[rows[places] - first]
        return found

    def expect_pooled(self) -> None:
        """Check that the vectors are what a classifier sees.

        Raises:
            DataError: They are more than that.
        """
        if self.settings.get("readout", "pooled") != "pooled":
            raise DataError(
                f"{self.path}: expected embeddings that a classifier sees, got readout rows. Embed without it."
            )

    def load_model(self, name: str | None = None) -> tuple[ASTModel, ASTFeatureExtractor]:
        """The model that the vectors are of, without a head, and its feature extractor.

        Args:
            name: Folder or name on the Hub; `None` means the one that the table names.

        Raises:
            ModelError: It cannot be used, or is another one.
        """
        name = name or self.settings["model"]
        model, extractor = load_model(name, ASTModel)
        if fingerprint_model(model, extractor) != self.settings["fingerprint"]:
            raise ModelError(
                f"{name} cannot be used: the embeddings in {self.path} are of another model, or of this one before "
                "it changed. --model says where it is, or embed again."
            )
        return model, extractor

    def _firsts(self) -> np.ndarray:
        """The number of each block's first row."""
        groups = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        return np.cumsum([0, *groups[:-1]])


def _to_array(column: pa.ChunkedArray, size: int) -> np.ndarray:
    return pc.list_flatten(column).to_numpy().reshape(-1, size)
