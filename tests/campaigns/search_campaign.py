"""How long a search takes in generated stores, exactly and by an index, and what the index misses.

    python tests/campaigns/search_campaign.py FOLDER [--rows 100000 1000000] [--size 768] [--queries 10] [--exact_only]

Vectors lie in clusters, as embeddings do: 1,000 centres, and normal noise of their size about each. A store is written
once, in FOLDER. Times are seconds of one process, with those of its processor; memory is the most that the process had
beyond what it had before. Found is the share of the 20 nearest stretches that the index finds, too.
"""

import argparse
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.parquet_tables import ROWS_A_GROUP, SETTINGS_KEY
from modeling_ast.inference.search import open_index, search

TOP_K = 20
SETTINGS = '{"model": "generated", "fingerprint": "", "level": "window"}'


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--exact_only", action="store_true", help="build no index: of a million rows that takes long")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    print(
        "| rows | opening (s) | a search (s) | of processor | memory (MB) | index (processor s) | by it (s) | found |"
    )
    print("|---|---|---|---|---|---|---|---|")
    spawn = multiprocessing.get_context("spawn")
    for number in args.rows:
        path = args.folder / f"{number}_{args.size}.parquet"
        if not path.exists():
            write_store(path, number, args.size)
        # In a process of its own, whose most memory is that of the searches.
        process = spawn.Process(target=measure, args=(path, args.queries, args.exact_only))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def write_store(path: Path, number: int, size: int) -> None:
    """Windows of recordings of an hour, 3,600 each."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(1000, size)).astype(np.float32)
    fields = {"path": pa.string(), "start": pa.float64(), "end": pa.float64()}
    schema = pa.schema(fields | {"embedding": pa.list_(pa.float32(), size)}, metadata={SETTINGS_KEY: SETTINGS})
    with pq.ParquetWriter(path.with_suffix(".unfinished"), schema) as writer:
        for first in range(0, number, ROWS_A_GROUP):
            rows = np.arange(first, min(first + ROWS_A_GROUP, number))
            noise = generator.normal(size=(len(rows), size)).astype(np.float32)
            vectors = centres[generator.integers(len(centres), size=len(rows))] + noise
            columns = [
                pa.array([f"{row // 3600:05}.wav" for row in rows.tolist()]),
                pa.array(rows % 3600 * 1.0),
                pa.array(rows % 3600 + 1.0),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size),
            ]
            writer.write_table(pa.table(columns, schema=schema))
    path.with_suffix(".unfinished").rename(path)


def measure(path: Path, num_queries: int, exact_only: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    store = EmbeddingStore(path)
    opening = time.perf_counter() - begin
    rows = np.random.default_rng(1).choice(len(store), num_queries, replace=False)
    vectors = store.vectors(rows) + 0.3 * np.random.default_rng(2).normal(size=(num_queries, store.size))
    begin, processor = time.perf_counter(), time.process_time()
    exact = [search(store, vector, TOP_K) for vector in vectors]
    seconds, processor = (time.perf_counter() - begin) / num_queries, (time.process_time() - processor) / num_queries
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    cells = (f"{len(store):,}", f"{opening:.2f}", f"{seconds:.2f}", f"{processor:.2f}", f"{memory:.0f}")
    if exact_only:
        print(f"| {' | '.join(cells)} | | | |", flush=True)
        return
    begin = time.process_time()
    open_index(store)
    building, begin = time.process_time() - begin, time.perf_counter()
    fast = [search(store, vector, TOP_K, approximate=True) for vector in vectors]
    by_index = (time.perf_counter() - begin) / num_queries
    names = [[{(match.path, match.start) for match in found} for found in each] for each in (exact, fast)]
    found = np.mean([len(first & second) / len(first) for first, second in zip(*names)])
    print(f"| {' | '.join(cells)} | {building:.0f} | {by_index:.3f} | {found:.3f} |", flush=True)


if __name__ == "__main__":
    main()
