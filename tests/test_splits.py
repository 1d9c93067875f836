"""The rows of a data set are read once on a machine, and mapped by all of its processes."""

import multiprocessing
import os
import pickle
import socket
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from accelerate import PartialState
from helpers import write_csv

from modeling_ast.data.clip_tables import AudioSplits, keep_on_disk
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.sources import load_splits
from modeling_ast.data.splits import read_once


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "modeling_ast"


def write_list(folder: Path, count: int = 40) -> str:
    rows = [{"audio": f"{number}.wav", "label": "ab"[number % 2] + ",c" * (number % 3)} for number in range(count)]
    folder.mkdir()
    for row in rows:
        (folder / row["audio"]).touch()
    return str(write_csv(folder / "clips.csv", rows))


@pytest.mark.parametrize("rows_at_once", [7, 100])
def test_rows_on_disk_are_those_in_memory(tmp_path, cache, rows_at_once, monkeypatch):
    monkeypatch.setattr("modeling_ast.data.clip_tables.ROWS_AT_ONCE", rows_at_once)
    splits = load_splits(write_list(tmp_path / "data"), multi_label=True)
    for rows in (splits.train, splits.validation, splits.train.shuffle(seed=0).select(range(20))):
        assert not rows.cache_files
        kept = keep_on_disk(rows)
        assert kept[:] == rows[:] and kept.features == rows.features and kept.cache_files
        pickled = pickle.dumps(kept)
        assert len(pickled) < 5000 and pickle.loads(pickled)[:] == rows[:]
        assert keep_on_disk(rows).cache_files == kept.cache_files and keep_on_disk(kept) is kept
    assert len(list(cache.iterdir())) == 3  # no other file, and none that is unfinished


def test_what_lies_on_disk_is_not_copied(tmp_path, cache):
    splits = load_splits(write_list(tmp_path / "data"))
    pq.write_table(splits.train.with_format("arrow")[:], tmp_path / "clips.parquet")
    rows = load_splits(str(tmp_path / "clips.parquet"), label_column_name="labels").train
    assert keep_on_disk(rows) is rows and not cache.exists()


def test_a_cache_that_cannot_be_written_to_is_one_sentence(tmp_path, monkeypatch):
    rows = load_splits(write_list(tmp_path / "data")).train
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "data" / "0.wav")
    with pytest.raises(DataError, match="cannot be written .*Set HF_DATASETS_CACHE to a folder on a disk with room"):
        keep_on_disk(rows)


def read_in_process(place: tuple[int, int], port: int, folder: Path, is_broken: bool) -> None:
    rank, local_rank = place
    names = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    PartialState._reset_state()
    PartialState(cpu=True)
    # Each machine has a cache of its own, and no other one's.
    cache, map_file = folder / f"cache {rank - local_rank}", datasets.table._memory_mapped_arrow_table_from_file
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.table._memory_mapped_arrow_table_from_file = lambda name: map_file(
        name if Path(name).is_relative_to(cache) else "no such file"
    )

    def read() -> AudioSplits:
        (folder / f"{rank} has read").touch()
        if is_broken and rank == 2:
            raise DataError("no such data")
        return load_splits(str(folder / "data" / "clips.csv"))

    try:
        splits = read_once(read)
        found = (splits.label_names, [(name, rows[:], rows.cache_files) for name, rows in splits])
    except (DataError, RecipeError) as error:
        found = str(error)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_first_process_of_each_machine_reads_for_the_others(tmp_path, is_broken):
    """Two of one machine, one of another."""
    write_list(tmp_path / "data")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fork, places = multiprocessing.get_context("fork"), [(0, 0), (1, 1), (2, 0)]
    processes = [fork.Process(target=read_in_process, args=(place, port, tmp_path, is_broken)) for place in places]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    first, second, other = (pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(3))
    assert sorted(path.name for path in tmp_path.glob("* has read")) == ["0 has read", "2 has read"]
    if is_broken:
        assert other == "no such data" and first == second and first.endswith(": no such data")
    else:
        splits = load_splits(str(tmp_path / "data" / "clips.csv"))
        assert first == second
        for label_names, rows_of in (first, other):
            assert label_names == splits.label_names
            assert [each[:2] for each in rows_of] == [(name, rows[:]) for name, rows in splits]
            assert all(files for _, _, files in rows_of)
