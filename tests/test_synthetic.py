"""Generated sounds: reproducible, without overlap of the splits, and whole or not there at all."""

import multiprocessing

import pytest
import soundfile
import torch
from helpers import contents

from modeling_ast.data import synthetic
from modeling_ast.data.synthetic import CLASSES, CLIPS_PER_CLASS, LISTS, generate_clip, synthetic_folder

FEW = {"train": 3, "validation": 1, "test": 2}


@pytest.fixture(autouse=True)
def few_clips(monkeypatch, one_thread):
    monkeypatch.setattr(synthetic, "CLIPS_PER_CLASS", FEW)


def assert_complete(folder) -> None:
    assert len(list(folder.rglob("*.wav"))) == len(CLASSES) * sum(FEW.values())
    assert all((folder / name).is_file() for name in LISTS.values())
    assert [entry for entry in folder.parent.iterdir() if entry.is_dir()] == [folder]  # nothing unfinished beside it


def test_same_seed_writes_the_same_files_and_another_seed_others(tmp_path):
    first, again = (contents(synthetic_folder(seed=3, cache_dir=tmp_path / name)) for name in ("a", "b"))
    assert first == again
    other = contents(synthetic_folder(seed=4, cache_dir=tmp_path / "a"))
    assert other.keys() == first.keys()
    assert not {data for name, data in other.items() if name.endswith(".wav")} & set(first.values())


def test_global_randomness_is_neither_used_nor_moved(tmp_path):
    torch.manual_seed(0)
    first = contents(synthetic_folder(cache_dir=tmp_path / "a"))
    drawn = torch.rand(1)
    assert contents(synthetic_folder(cache_dir=tmp_path / "b")) == first
    torch.manual_seed(0)
    assert torch.rand(1) == drawn


def test_no_clip_stands_in_two_splits(tmp_path):
    folder = synthetic_folder(cache_dir=tmp_path)
    lists = {split: (folder / name).read_text().split() for split, name in LISTS.items()}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.wav")}
    assert {split: len(set(names)) for split, names in lists.items()} == {
        split: len(CLASSES) * FEW[split] for split in LISTS
    }
    assert not set(lists["validation"]) & set(lists["test"])
    assert set(lists["validation"]) | set(lists["test"]) < files
    assert len(set(contents(folder).values())) == len(files) + len(LISTS)  # and no two sounds are the same


def test_ten_classes_of_one_second_at_16_khz_in_full_range(tmp_path):
    folder = synthetic_folder(cache_dir=tmp_path)
    assert sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) == sorted(CLASSES)
    assert len(CLASSES) == 10 and sum(CLIPS_PER_CLASS.values()) == 90
    for path in folder.rglob("*.wav"):
        samples, sampling_rate = soundfile.read(path)
        assert (samples.shape, sampling_rate) == ((16000,), 16000)
        assert 0.01 < abs(samples).max() <= 1


@pytest.mark.parametrize("kind", CLASSES)
def test_clips_of_a_kind_differ_and_stay_in_range(kind):
    generator = torch.Generator().manual_seed(0)
    clips = torch.stack([generate_clip(kind, generator) for _ in range(20)])
    assert clips.shape == (20, 16000) and clips.dtype == torch.float32
    assert clips.isfinite().all() and clips.abs().max() <= 1
    assert len(clips.std(dim=1).unique()) == 20  # loudness, at least


def test_folder_that_is_there_is_used_as_it_is(tmp_path, monkeypatch):
    folder = synthetic_folder(cache_dir=tmp_path)
    monkeypatch.setattr(soundfile, "write", lambda *args, **kwargs: pytest.fail("written again"))
    assert synthetic_folder(cache_dir=tmp_path) == folder


def test_default_place_is_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert synthetic_folder().parent == tmp_path / "modeling_ast"


def _write_at_once(barrier, cache_dir, results):
    barrier.wait(30)
    results.put(synthetic_folder(cache_dir=cache_dir))


def test_two_processes_writing_at_once_end_with_one_complete_folder(tmp_path):
    context = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds to import torch
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_write_at_once, args=(barrier, tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    folders = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    (folder,) = folders
    assert_complete(folder)


def test_process_that_comes_second_takes_the_folder_of_the_first(tmp_path, monkeypatch):
    """The race, with its order fixed: the first finishes while the second is about to."""
    write, process = soundfile.write, {"id": 1}
    monkeypatch.setattr(synthetic.os, "getpid", lambda: process["id"])

    def write_while_another_does(path, *args):
        write(path, *args)
        if process["id"] == 1:
            process["id"] = 2
            synthetic_folder(cache_dir=tmp_path)

    monkeypatch.setattr(soundfile, "write", write_while_another_does)
    assert_complete(synthetic_folder(cache_dir=tmp_path))


@pytest.mark.parametrize("same_process_id", [False, True], ids=["another process", "the same process"])
def test_interrupted_write_is_not_taken_for_whole_and_not_in_the_way(tmp_path, monkeypatch, same_process_id):
    """Process ids come back: in a notebook, and in a container, where the first process is always number 1."""
    written = []

    def write_until_interrupted(path, *args):
        if len(written) == 25:
            raise KeyboardInterrupt
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "write", write_until_interrupted)
        if not same_process_id:
            patch.setattr(synthetic.os, "getpid", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            synthetic_folder(cache_dir=tmp_path)
    assert not (tmp_path / "synthetic_v1_seed0").exists()
    folder = synthetic_folder(cache_dir=tmp_path)
    assert len(list(folder.rglob("*.wav"))) == len(CLASSES) * sum(FEW.values())
