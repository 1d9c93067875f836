"""The stretches of a store that are most like a given one."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from modeling_ast.data.files import written_beside
from modeling_ast.inference.embedding_store import EmbeddingStore

_FIRST_CANDIDATES = 256  # asked of an index, and then four times as many, until enough of them are apart


@dataclass(frozen=True)
class Match:
    """A stretch like the one that was asked for.

    Attributes:
        path: Of the recording, as the store has it.
        start: In seconds.
        end: In seconds.
        similarity: Cosine of the two vectors, at most 1.
    """

    path: str
    start: float
    end: float
    similarity: float


@dataclass(frozen=True)
class Stretch:
    """Where in a recording something is: its absolute path, and seconds."""

    audio: str
    start: float
    end: float


def search(
    store: EmbeddingStore, vector: np.ndarray, top_k: int, asked: Stretch | None = None, approximate: bool = False
) -> list[Match]:
    """The nearest stretches, best first, no two of which overlap, nor any with the one that is asked for.

    Args:
        store: Of all recordings.
        vector: What is looked for, (size,).
        top_k: How many.
        asked: Where it comes from, which is no find; `None` where it is nowhere.
        approximate: Whether an index of usearch is asked, which is built once and lies beside the store: much faster
            in millions of rows, and may miss some.
    """
    ranked = _ask_index(store, vector) if approximate else _compare_all(store, vector)
    matches, taken = [], {}
    if asked is not None:
        numbers = _numbers_of(store, asked.audio) or store.find_moved([asked.audio]).values()
        taken |= {number: [(asked.start, asked.end)] for number in numbers}
    for row, similarity in ranked:
        number, start, end = int(store.recordings[row]), float(store.starts[row]), float(store.ends[row])
        if all(end <= first or last <= start for first, last in taken.get(number, ())):
            taken.setdefault(number, []).append((start, end))
            matches.append(Match(store.names[number], start, end, similarity))
            if len(matches) == top_k:
                break
    return matches


def _numbers_of(store: EmbeddingStore, audio: str) -> list[int]:
    return [number for number, name in enumerate(store.names) if store.find(name) == audio]


def _compare_all(store: EmbeddingStore, vector: np.ndarray) -> Iterator[tuple[int, float]]:
    """All rows and how similar they are, best first; the vectors are gone through block by block."""
    vector = vector.astype(np.float32) / max(np.linalg.norm(vector), 1e-12)
    similarities = np.empty(len(store), np.float32)
    for first, block in store.blocks():
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        similarities[first : first + len(block)] = block @ vector / np.maximum(lengths, 1e-12)
    for row in np.argsort(-similarities, kind="stable"):
        yield int(row), float(similarities[row])


def _ask_index(store: EmbeddingStore, vector: np.ndarray) -> Iterator[tuple[int, float]]:
    """The rows that an index finds, best first, until it has no more."""
    index, seen = open_index(store), set()
    for step in count():
        wanted = min(len(store), _FIRST_CANDIDATES * 4**step)
        found = index.search(vector.astype(np.float32), wanted)
        for row, distance in zip(found.keys.tolist(), found.distances.tolist()):
            if row not in seen:
                seen.add(row)
                yield row, 1 - distance
        if wanted == len(store):
            return


def open_index(store: EmbeddingStore) -> Any:
    """The index of a store, a graph in half precision, from the file beside it; it is built where there is none.

    An index of another state of the table is built anew. Without usearch it cannot be imported.
    """
    from usearch.index import Index

    path = store.path.with_suffix(".usearch")
    told = path.with_suffix(".usearch.json")
    status = os.stat(store.path)
    state = {"size": status.st_size, "changed": status.st_mtime_ns, "rows": len(store)}
    if path.is_file() and told.is_file() and json.loads(told.read_text(encoding="utf-8")) == state:
        return Index.restore(path, view=True)
    index = Index(ndim=store.size, metric="cos", dtype="f16")
    for first, block in store.blocks():
        index.add(np.arange(first, first + len(block)), block)
    with written_beside(path) as unfinished:
        index.save(unfinished)
    with written_beside(told) as unfinished:
        unfinished.write_text(json.dumps(state), encoding="utf-8")
    return index
