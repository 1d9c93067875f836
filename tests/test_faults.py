"""Whatever ends a run before its end is told in one sentence, and the same command goes on as if nothing had been."""

import csv
import dataclasses
import errno
import io
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fault_campaign as campaign
import numpy as np
import pytest
import soundfile
import torch
from helpers import end_of
from torch._utils import ExceptionWrapper
from transformers import Trainer, TrainerState, TrainingArguments

from modeling_ast import AudioError, load_waveform
from modeling_ast.commands import train as script
from modeling_ast.commands.command_faults import fault_sentence
from modeling_ast.commands.command_options import CommandError, check_new_folder
from modeling_ast.data import locks
from modeling_ast.data.decoding import BadClips
from modeling_ast.data.files import (
    files_written_beside,
    folder_written_beside,
    new_folder,
    remove_unfinished,
    written_beside,
)
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training import output_dir
from modeling_ast.training.arguments import Arguments, parse_arguments
from modeling_ast.training.averaging import RunningAverage
from modeling_ast.training.faults import GOES_ON, loading
from modeling_ast.training.output_dir import last_whole_checkpoint
from modeling_ast.training.saved_recipes import save_recipe
from modeling_ast.training.trainer import ASTTrainer

pytestmark = [
    pytest.mark.usefixtures("one_thread", "no_pictures_in_module"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, one_thread) -> Path:
    """Of 16 updates, four an epoch, with a checkpoint after every second one."""
    return campaign.write_recipe(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(recipe, folder)
    return folder


def run(recipe: Path, folder: Path, *argv) -> dict[str, float]:
    return script.main([str(argument) for argument in (recipe, "--output_dir", folder, *argv)])


def ending(*argv) -> tuple[int, str]:
    """Exit status and last words of a run, as the command ends it."""
    recipe, folder, *rest = argv
    return end_of("train", recipe, "--output_dir", folder, *rest)


def before_update(monkeypatch, number: int, do) -> None:
    """Something happens while an update is made, once."""
    original, calls = ASTTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            do(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ASTTrainer, "training_step", training_step)


def train_and_before_update(number: int, does: str, condition: str = "True") -> str:
    """A program that trains, in a process of its own."""
    return "\n".join(
        [
            "import multiprocessing, os, runpy, signal, time",
            "from modeling_ast.training.trainer import ASTTrainer",
            "train, taken = ASTTrainer.training_step, []",
            "def training_step(*args, **kwargs):",
            "    taken.append(1)",
            f"    if len(taken) == {number} and {condition}:",
            f"        {does}",
            "    return train(*args, **kwargs)",
            "ASTTrainer.training_step = training_step",
            f"runpy.run_path({str(campaign.SCRIPT)!r}, run_name='__main__')",
        ]
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def checkpoints(folder: Path) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")}


def assert_same_command_ends_as_undisturbed(recipe: Path, folder: Path, undisturbed: Path, *argv) -> None:
    run(recipe, folder, *argv)
    assert campaign.run_difference(0, folder, undisturbed) is None


# Files and folders that are there are whole


class Unlucky(Exception):
    pass


def test_what_is_not_written_to_its_end_is_not_there(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(Unlucky), written_beside(tmp_path / "old.csv", durable=True) as unfinished:
        unfinished.write_text("half")
        raise Unlucky
    with pytest.raises(Unlucky), folder_written_beside(tmp_path / "folder") as unfinished:
        (unfinished / "half").touch()
        raise Unlucky
    with pytest.raises(Unlucky), files_written_beside(tmp_path) as unfinished:
        (unfinished / "half").touch()
        raise Unlucky
    with pytest.raises(Unlucky), new_folder(tmp_path / "new") as unfinished:
        (unfinished / "half").touch()
        raise Unlucky
    with pytest.raises(OSError), new_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "old.csv").read_text() == "old"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "old.csv"]
    assert not list(tmp_path.glob("**/*half*")) and not list(tmp_path.glob(".*.unfinished*"))


def test_what_is_written_to_its_end_takes_the_place_of_what_was_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    (tmp_path / "a").write_text("old")
    with folder_written_beside(tmp_path / "folder") as unfinished:
        (unfinished / "new").touch()
    with files_written_beside(tmp_path) as unfinished:
        (unfinished / "a").write_text("new")
        (unfinished / "b").write_text("new")
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as unfinished:
        assert unfinished.name == "empty"  # by which a model card calls the model
        (unfinished / "new").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "new"
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "empty", "a", "b"}


def test_an_empty_volume_is_written_into(tmp_path, monkeypatch):
    volume = tmp_path / "volume"
    volume.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == volume)
    number = volume.stat().st_ino
    with pytest.raises(Unlucky), new_folder(volume) as unfinished:
        (unfinished / "half").touch()
        raise Unlucky
    assert not list(volume.iterdir())
    with new_folder(volume) as unfinished:
        assert unfinished.name == "volume"
        (unfinished / "part").mkdir()
        (unfinished / "part" / "a.txt").touch()
    assert [str(path.relative_to(volume)) for path in volume.rglob("*")] == ["part", "part/a.txt"]
    with pytest.raises(OSError, match="not empty"), new_folder(volume) as unfinished:  # another was faster
        (unfinished / "part").touch()
    assert [str(path.relative_to(volume)) for path in volume.rglob("*")] == ["part", "part/a.txt"]
    assert volume.stat().st_ino == number and len(list(tmp_path.iterdir())) == 1


def test_a_link_to_an_empty_folder_stays_one(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with new_folder(tmp_path / "link") as unfinished:
        (unfinished / "a.txt").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "a.txt").exists()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match="in which this was started"):
        check_new_folder(Path("."))


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    for name in ("_unfinished/checkpoint-4/model.safetensors", ".12.0.unfinished.csv", "mine.csv", "checkpoint-2/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.csv", "checkpoint-2"}


def test_newest_whole_checkpoint_is_taken(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "_unfinished/checkpoint-12"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "trainer_state.json").touch()
    (tmp_path / "checkpoint-11").mkdir()  # of a version that wrote them in place
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_checkpoint_names_itself_and_the_best_one_by_their_own_paths(undisturbed):
    for step in checkpoints(undisturbed):
        state = TrainerState.load_from_json(undisturbed / f"checkpoint-{step}" / "trainer_state.json")
        assert state.global_step == step
        assert Path(state.best_model_checkpoint).parent == undisturbed
    assert Path(state.best_model_checkpoint).is_dir()
    assert len(checkpoints(undisturbed)) == 2 and 16 in checkpoints(undisturbed)  # as save_total_limit says


def test_checkpoint_is_uploaded_under_its_own_name(recipe, tmp_path, monkeypatch):
    """In the background, where it must not move."""
    uploaded = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *args, **options: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda *args, **options: None)
    monkeypatch.setattr(
        Trainer,
        "_push_from_checkpoint",
        lambda self, folder: uploaded.append((folder, (Path(folder) / "trainer_state.json").is_file())),
    )
    run(recipe, tmp_path / "run", "--push_to_hub=true", "--max_steps=4")
    assert uploaded == [(str(tmp_path / "run" / f"checkpoint-{step}"), True) for step in (2, 4)]


# Interrupted


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("owner, method", [(script, "evaluate"), (script, "write_model_card")])
def test_run_that_ends_after_its_training_is_finished_without_training_again(
    recipe, undisturbed, tmp_path, monkeypatch, owner, method
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, method, lambda *args, **options: interrupt())
        run(recipe, tmp_path / "run")
    monkeypatch.setattr(ASTTrainer, "training_step", interrupt)
    assert_same_command_ends_as_undisturbed(recipe, tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_run_whose_last_update_is_within_an_epoch_ends_there_when_it_is_resumed_there(recipe, tmp_path, monkeypatch):
    argv = ["--max_steps=6", "--load_best_model_at_end=false", "--weight_average_start=1"]
    run(recipe, tmp_path / "whole", *argv)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ASTTrainer, "save_end", interrupt)
        run(recipe, tmp_path / "run", *argv)
    assert 6 in checkpoints(tmp_path / "run") and not (tmp_path / "run" / "model.safetensors").exists()
    monkeypatch.setattr(ASTTrainer, "training_step", interrupt)
    assert_same_command_ends_as_undisturbed(recipe, tmp_path / "run", tmp_path / "whole", *argv)


@pytest.mark.slow
def test_run_goes_on_where_its_folder_has_moved(recipe, undisturbed, tmp_path, monkeypatch):
    """With the best checkpoint, which it knows by its path."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ASTTrainer, "save_end", interrupt)
        run(recipe, tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert_same_command_ends_as_undisturbed(recipe, tmp_path / "new", undisturbed)


@pytest.mark.slow
def test_only_the_best_checkpoint_stays_where_one_is_to_be_kept(recipe, undisturbed, tmp_path):
    run(recipe, tmp_path / "run", "--save_total_limit=1")
    state = TrainerState.load_from_json(tmp_path / "run" / "trainer_state.json")
    assert checkpoints(tmp_path / "run") == {state.best_global_step}


# Signals: 7 is within the second epoch, 8 its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("update", [pytest.param(7, marks=pytest.mark.slow), 8])
def test_signal_stops_a_run_after_its_update_with_a_checkpoint(
    recipe, undisturbed, tmp_path, monkeypatch, capsys, number, update
):
    with monkeypatch.context() as patch:
        before_update(patch, update, lambda trainer: os.kill(os.getpid(), number))
        before = signal.getsignal(number)
        assert ending(recipe, tmp_path / "run")[0] == 128 + number
        assert signal.getsignal(number) == before
    said = capsys.readouterr().err.splitlines()[-1]
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert said.startswith(f"Stopped by {name} after update {update}: {tmp_path / 'run' / f'checkpoint-{update}'} is")
    assert update in checkpoints(tmp_path / "run")
    run(recipe, tmp_path / "run", "--save_total_limit=2")
    for file in ("model.safetensors", "weight_average/model.safetensors", "results.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (undisturbed / file).read_bytes()


def press_twice():
    """To the process and to its group, at once, and a while later to both again."""
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.1)


def test_second_signal_stops_a_run_at_once(recipe, tmp_path, monkeypatch, capsys):
    before_update(monkeypatch, 7, lambda trainer: press_twice())
    assert ending(recipe, tmp_path / "run")[0] == 143
    assert "Stopped by SIGTERM. " in capsys.readouterr().err
    assert max(checkpoints(tmp_path / "run")) == 6


@pytest.mark.slow
def test_signal_to_the_script_and_its_workers_is_told_in_one_line(recipe, tmp_path):
    """Of a scheduler, to all processes of the job, whatever they do at that moment."""
    command = [sys.executable, campaign.SCRIPT, recipe, "--output_dir", tmp_path / "run", "--num_train_epochs=1000"]
    command.append("--dataloader_num_workers=1")
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    while process.poll() is None and not (tmp_path / "run" / "checkpoint-4").is_dir():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 143 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("Stopped by SIGTERM")


# A disk that is full, or cannot be written


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """Of 8 MB, by the system."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path / "disk")]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path / "disk"
    # Lazily: weights that were loaded from it may still be mapped into memory.
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def fill(disk: Path) -> None:
    """But for 64 kB."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    os.truncate(disk / "filler", os.path.getsize(disk / "filler") - 2**16)


def test_full_disk_leaves_the_checkpoints_from_before(recipe, undisturbed, small_disk, monkeypatch):
    with monkeypatch.context() as patch:
        before_update(patch, 7, lambda trainer: fill(small_disk))
        status, said = ending(recipe, small_disk / "run")
    assert status == 2 and "\n" not in said
    assert said.startswith(f"error: {small_disk / 'run' / 'checkpoint-8'} cannot be saved (") and "space" in said
    assert max(checkpoints(small_disk / "run")) == 6 and not (small_disk / "run" / "_unfinished").exists()
    (small_disk / "filler").unlink()
    assert_same_command_ends_as_undisturbed(recipe, small_disk / "run", undisturbed)


@pytest.mark.parametrize(
    "owner, method, error",
    [
        (RunningAverage, "save", OSError(errno.ENOSPC, "No space left on device")),
        (torch, "save", RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")),
    ],
)
def test_disk_that_fills_anywhere_in_a_checkpoint_is_told(recipe, tmp_path, monkeypatch, owner, method, error):
    def fail(*_, **__):
        raise error

    before_update(monkeypatch, 11, lambda trainer: monkeypatch.setattr(owner, method, fail))
    status, said = ending(recipe, tmp_path / "run")
    assert status == 2 and re.search(r"checkpoint-12 cannot be saved \((No space|Pytorch).*--resume_from", said)
    assert checkpoints(tmp_path / "run") >= {10} and not (tmp_path / "run" / "_unfinished").exists()


def test_disk_that_cannot_be_written_is_told_at_once(recipe, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, said = ending(recipe, small_disk / "run")
    assert status == 2 and said == (
        f"error: Expected an output_dir that can be written, got {small_disk / 'run'} (Read-only file system)."
    )


def test_file_in_the_way_of_a_folder_on_the_disk_is_told_at_once(recipe, tmp_path):
    (tmp_path / "file").touch()
    for folder, words in (
        ("file", "to be a folder, got the file"),
        ("file/run", r"can be written.*\(Not a directory"),
    ):
        status, said = ending(recipe, tmp_path / folder)
        assert status == 2 and re.search(f"^error: Expected (an )?output_dir.*{words}", said)


# Data and those who read it


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "content",
    [pytest.param(None, marks=pytest.mark.slow), b"RIFF no sound"],
    ids=["vanished", "broken"],
)
def test_data_file_that_goes_within_an_epoch_is_named(recipe, undisturbed, tmp_path, monkeypatch, workers, content):
    clip = recipe.parent / "train-5.wav"
    sound = clip.read_bytes()

    def damage(trainer):
        clip.unlink() if content is None else clip.write_bytes(content)

    try:
        with monkeypatch.context() as patch:
            before_update(patch, 5, damage)
            status, said = ending(recipe, tmp_path / "run", f"--dataloader_num_workers={workers}")
    finally:
        clip.write_bytes(sound)
    assert status == 2 and said.startswith(f"error: {clip}: ") and "\n" not in said.strip()
    assert checkpoints(tmp_path / "run")
    assert_same_command_ends_as_undisturbed(recipe, tmp_path / "run", undisturbed)


@pytest.fixture(scope="module")
def bad_clips(recipe, tmp_path_factory) -> Path:
    """The recipe, with four training clips of the sixteen that cannot be used, in four ways."""
    folder = tmp_path_factory.mktemp("bad") / "data"
    shutil.copytree(recipe.parent, folder)
    (folder / "train-3.wav").unlink()
    (folder / "train-7.wav").write_bytes(b"RIFF no sound")
    (folder / "train-11.wav").write_bytes((folder / "train-11.wav").read_bytes()[:500])
    soundfile.write(folder / "train-13.wav", np.zeros(399), 16000)
    text = recipe.read_text().replace(str(recipe.parent.resolve()), str(folder.resolve()))
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


BAD = {"train-3.wav": "no such file", "train-7.wav": "cannot be decoded", "train-11.wav": "truncated"}
BAD |= {"train-13.wav": "expected at least 25 ms of sound, got 399 samples"}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("padding", ["max_length", pytest.param("longest", marks=pytest.mark.slow)])
def test_bad_clip_is_replaced_counted_and_named(bad_clips, tmp_path, caplog, workers, padding):
    argv = [f"--dataloader_num_workers={workers}", "--max_bad_clips=4", "--linear_baseline=true"]
    results = run(bad_clips, tmp_path / "run", *argv, f"--padding={padding}")
    with open(tmp_path / "run" / "bad_clips.csv", newline="") as file:
        named = {Path(row["audio"]).name: row["reason"] for row in csv.DictReader(file)}
    assert named.keys() == BAD.keys() and all(words in named[name] for name, words in BAD.items())
    assert results["train_bad_clips"] == 4
    assert "4 training clip(s) could not be decoded" in caplog.text and "bad_clips.csv names them" in caplog.text
    assert math.isfinite(results["train_loss"])


@pytest.mark.slow
def test_bad_clip_is_replaced_by_the_same_one_however_many_read(bad_clips, tmp_path):
    for workers in (0, 2):
        run(bad_clips, tmp_path / str(workers), "--max_bad_clips=4", f"--dataloader_num_workers={workers}")
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == (tmp_path / "2" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_bad_clip_beyond_the_limit_stops_the_run_which_goes_on_with_another_limit(bad_clips, tmp_path):
    argv = [bad_clips, tmp_path / "run", "--mixup_probability=0"]
    status, said = ending(*argv, "--max_bad_clips=3")
    assert status == 2 and "\n" not in said
    assert said.startswith("error: 4 training clips cannot be decoded, which is more than max_bad_clips 3")
    assert str(tmp_path / "run" / "bad_clips.csv") in said
    assert run(*argv, "--max_bad_clips=5")["train_bad_clips"] == 4
    with pytest.raises(RecipeError, match=r"Expected max_bad_clips in \[0, inf\), got -1"):
        run(*argv, "--max_bad_clips=-1")


def test_bad_clip_that_is_held_out_ends_the_run_by_its_name(bad_clips, tmp_path):
    clip = bad_clips.parent / "validation-1.wav"
    sound = clip.read_bytes()
    clip.write_bytes(b"")
    try:
        status, said = ending(bad_clips, tmp_path / "run", "--max_bad_clips=4")
    finally:
        clip.write_bytes(sound)
    assert status == 2 and said.startswith(f"error: {clip}")


def test_bad_clips_are_counted_once_over_processes(tmp_path):
    noted = [BadClips(tmp_path / "bad.csv", limit=4) for _ in range(2)]
    names = ["a, b.wav", 'c\n"d".wav', "e\rf.wav"]
    for bad in noted:
        for name in names:
            bad.add({"path": name, "bytes": None}, AudioError("broken"))
    header = (tmp_path / "bad.csv").read_text().splitlines(keepends=True)[0]
    with open(tmp_path / "bad.csv", "a") as file:
        file.write(header)  # of two that began at once
    names.append("d.wav")
    noted[0].add({"path": "d.wav", "bytes": None}, AudioError("no sound"))
    assert list(noted[1].read()) == names
    with pytest.raises(AudioError, match="5 training clips .* more than max_bad_clips 4: .*bad.csv.* g.wav"):
        noted[1].add({"path": "g.wav", "bytes": None}, AudioError("broken"))


def test_bad_clip_that_is_held_out_and_missing_ends_the_run_before_it_begins(bad_clips, tmp_path):
    clip = bad_clips.parent / "test-1.wav"
    sound = clip.read_bytes()
    clip.unlink()
    try:
        status, said = ending(bad_clips, tmp_path / "run", "--max_bad_clips=3")
    finally:
        clip.write_bytes(sound)
    assert status == 2 and f"1 of 8 files of the test split are not there, such as {clip}" in said
    assert not (tmp_path / "run").exists()


def test_bad_clips_alone_end_the_run_whatever_the_limit(bad_clips, tmp_path, monkeypatch):
    clips = {clip: clip.read_bytes() for clip in bad_clips.parent.glob("train-*.wav")}
    monkeypatch.setattr("modeling_ast.training.rows.MAX_DRAWS", 50)
    try:
        for clip in clips:
            clip.write_bytes(b"no sound")
        status, said = ending(bad_clips, tmp_path / "run", "--max_bad_clips=1000")
    finally:
        for clip, sound in clips.items():
            clip.write_bytes(sound)
    assert status == 2 and said.startswith("error: 50 training clips in a row cannot be decoded")


def test_bad_clips_are_told_apart_by_what_they_hold_where_all_have_one_name(tmp_path):
    bad = BadClips(tmp_path / "folder" / "bad.csv", limit=4)
    for content in (b"1", b"2", b"1", None):
        bad.add({"path": "audio.wav", "bytes": content}, AudioError("broken"))
    bad.add(None, AudioError("broken"))
    assert len(bad.read()) == 4


def test_bad_clips_are_read_once_each_though_another_process_notes_them_too(tmp_path, monkeypatch):
    rows = []

    def read(text, **options):
        for row in csv_reader(text, **options):
            rows.append(row)
            yield row

    csv_reader = csv.reader
    monkeypatch.setattr("modeling_ast.data.decoding.csv.reader", read)
    path = tmp_path / "bad.csv"
    one, other = BadClips(path, limit=300), BadClips(path, limit=300)
    for number in range(100):
        one.add({"path": f'{number} "a"\n.wav', "bytes": None}, AudioError('"broken"\n'))
        other.add({"path": f"{number} b.wav", "bytes": None}, AudioError(""))
    assert list(one.read()) == list(other.read()) and len(one.read()) == 200
    assert len(rows) == 2 * 201
    with open(path, "a") as file:  # which another process is about to finish
        file.write('"last.wav","bro')
    one.read()
    with open(path, "a") as file:
        file.write('ken"\n')
    assert one.read()["last.wav"] == "broken" and len(one.read()) == 201
    path.write_text('"audio","reason"\n"a.wav","broken"\n')  # mended by its user
    assert one.read() == {"a.wav": "broken"}


def test_bad_machine_is_no_bad_clip(tmp_path, monkeypatch):
    (tmp_path / "a.wav").touch()
    bad = BadClips(tmp_path / "bad.csv", limit=4)

    def no_more_files(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_more_files)
        with pytest.raises(AudioError, match="Too many open files") as caught:
            load_waveform(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="Too many open files"):
        bad.add({"path": str(tmp_path / "a.wav"), "bytes": None}, caught.value)
    assert not (tmp_path / "bad.csv").exists()


@pytest.mark.slow
def test_worker_that_is_killed_is_told_in_one_sentence(recipe, undisturbed, tmp_path):
    """In a process of its own: torch raises the error from a signal handler, whatever holds a lock at that moment."""
    program = tmp_path / "program.py"
    kill = "os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL); time.sleep(10)"  # which ends at once
    program.write_text(train_and_before_update(6, kill))
    command = [sys.executable, program, recipe, "--output_dir", tmp_path / "run", "--dataloader_num_workers=1"]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment())
    said = process.stderr.splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert re.match(r"error: A process that reads the data has ended .*--dataloader_num_workers", said)
    assert_same_command_ends_as_undisturbed(recipe, tmp_path / "run", undisturbed)


def too_many_files():
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        open(os.devnull)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def too_small_disk():
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def raise_again(error: Exception):
    raise error


def too_little_memory_for_a_clip():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soundfile, "SoundFile", lambda *_, **options: raise_again(MemoryError()))
        load_waveform(io.BytesIO(b"RIFF"), name="a.wav")


def in_a_worker(do):
    try:
        do()
    except Exception:
        ExceptionWrapper(where="in DataLoader worker process 0").reraise()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the limits and devices of Linux")
@pytest.mark.parametrize(
    ("do", "words"),
    [
        (too_many_files, r"Too many open files.*\. Allow more of them \(ulimit -n"),
        (too_small_disk, r"No space left on device\. Make room there"),
        (lambda: torch.empty(2**50), r"allocate.*\. Fewer clips at a time need less"),
        (lambda: np.empty(2**50), r"Unable to allocate.*\. Fewer clips at a time need less"),
        (lambda: raise_again(MemoryError()), r"There is not enough memory\. Fewer clips"),
        (
            lambda: raise_again(
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1. x. y.")
            ),
            r"CUDA out of memory\. Tried to allocate 2 GiB\. GPU 0 has 1\. Fewer clips",
        ),
        (too_little_memory_for_a_clip, r"a.wav: cannot be decoded \(not enough memory\).*\. Fewer clips"),
        (lambda: raise_again(RuntimeError("received 0 items of ancdata")), r"0 items of ancdata\. Allow more"),
    ],
    ids=["files", "disk", "torch", "numpy", "Python", "a GPU", "a decoder", "shared files"],
)
@pytest.mark.parametrize("where", ["here", "in a worker"])
def test_what_the_machine_has_too_little_of_is_told_with_what_helps(do, words, where):
    with pytest.raises(Exception) as caught:  # noqa: B017
        do() if where == "here" else in_a_worker(do)
    said = fault_sentence(caught.value, GOES_ON)
    assert re.match(f"error: .*{words}.*--resume_from_checkpoint true goes on", said) and "\n" not in said


def test_faults_of_the_programme_keep_their_traceback():
    for error in (KeyError("x"), RuntimeError("shapes"), FileNotFoundError(errno.ENOENT, "No such file", "x")):
        assert fault_sentence(error) is None


# Numbers that are none


def spoil(what: str):
    def do(trainer):
        with torch.no_grad():
            parameter = next(trainer.model.parameters())
            parameter.grad = None
            if what == "loss":
                trainer.model.classifier.dense.bias.fill_(float("nan"))
            else:  # of a weight that this batch's loss does not feel: the next update is still finite
                parameter.register_hook(lambda gradient: gradient * float("inf"))

    return do


@pytest.mark.parametrize(
    "what, words",
    [("loss", "The loss of update 7 is no finite number"), ("gradient", "is no finite number")],
)
def test_diverged_run_stops_and_leaves_the_last_good_checkpoint(recipe, tmp_path, monkeypatch, what, words):
    before_update(monkeypatch, 7, spoil(what))
    argv = ["--logging_strategy=no", "--eval_strategy=no", "--load_best_model_at_end=false", "--max_grad_norm=0"]
    status, said = ending(recipe, tmp_path / "run", *argv)
    assert status == 2 and words in said and "did the training diverge? Try a lower learning_rate" in said
    assert f"{tmp_path / 'run' / 'checkpoint-6'} is from before." in said
    assert max(checkpoints(tmp_path / "run")) == 6


# The folder of another run


@pytest.fixture
def interrupted(recipe, tmp_path, monkeypatch) -> Path:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_update(patch, 4, interrupt)
        run(recipe, tmp_path / "run")
    return tmp_path / "run"


def test_folder_of_another_run_is_refused_with_the_difference(recipe, interrupted):
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    argv = [recipe, interrupted, "--learning_rate=0.002", "--roll_frames=3"]
    status, said = ending(*argv)
    assert status == 2 and "holds another run" in said
    assert "learning_rate: 0.001 saved, 0.002 given; roll_frames: 0 saved, 3 given" in said
    status, said = ending(*argv, "--resume_from_checkpoint=false")
    assert status == 2 and "holds a run already. Its recipe differs: learning_rate: 0.001 saved, 0.002 given" in said
    with pytest.raises(RecipeError, match="num_train_epochs: 4.0 saved, 2.0 given"):  # shorter
        run(recipe, interrupted, "--num_train_epochs=2")
    with pytest.raises(RecipeError, match="Expected updates of 4 clips, as in .*checkpoint-2, got 8"):
        script.main([str(without_global_batch(recipe)), f"--output_dir={interrupted}"])
    assert {path: path.read_bytes() for path in before} == before


def without_global_batch(recipe: Path) -> Path:
    path = recipe.with_name("divided.yaml")
    path.write_text(recipe.read_text().replace("global_batch_size: 4", "per_device_train_batch_size: 8"))
    return path


def test_folder_of_another_run_is_replaced_where_asked(recipe, interrupted):
    argv = ["--learning_rate=0.002", "--resume_from_checkpoint=false", "--overwrite_output_dir=true", "--max_steps=2"]
    run(recipe, interrupted, *argv)
    assert "learning_rate: 0.002" in (interrupted / "recipe.yaml").read_text()


def test_keys_that_move_no_result_do_not_make_it_another_run(recipe, interrupted, undisturbed):
    argv = ["--gradient_accumulation_steps=1", "--save_steps=4", "--save_total_limit=3", "--log_level=warning"]
    run(recipe, interrupted, *argv)
    assert (interrupted / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def saved(recipe, tmp_path_factory) -> Path:
    """The saved recipe of a run, with what a later version of Transformers might have added to it."""
    path = tmp_path_factory.mktemp("saved") / "recipe.yaml"
    save_recipe(parse_arguments([str(recipe), "--output_dir=x"]), path)
    path.write_text(path.read_text() + "brand_new_switch: true\nbrand_new_names: [a, b]\ntrackio_bucket_id: mine\n")
    return path


@pytest.mark.parametrize(
    ("argv", "keys"),
    [
        ([], set()),
        (["--torch_empty_cache_steps=3", "--dataloader_num_workers=3", "--logging_steps=7"], set()),
        (["--max_bad_clips=3", "--global_batch_size=8", "--output_dir=y", "--torch_compile_mode=default"], set()),
        (["--seed=5"], {"seed"}),
        (["--adam_beta2=0.9", "--label_smoothing_factor=0.1"], {"adam_beta2", "label_smoothing_factor"}),
        (["--eval_steps=4", "--eval_delay=1"], {"eval_steps", "eval_delay"}),
        (["--hidden_dropout_prob=0.3", "--random_crop"], {"hidden_dropout_prob", "random_crop"}),
        (["--gain_db=3", "--waveform_transform=math:sqrt"], {"gain_db", "waveform_transform"}),
        (["--dataset_name=z", "--freeze_backbone"], {"dataset_name", "freeze_backbone"}),
        (["--window_seconds=5", "--background=keep"], {"window_seconds", "background"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_keys_that_can_move_the_result_and_no_others_make_it_another_run(recipe, saved, argv, keys):
    arguments = parse_arguments([str(recipe), "--output_dir=x", "--load_best_model_at_end=false", *argv])
    assert output_dir.recipe_differences(saved, arguments).keys() == keys | {"load_best_model_at_end"}


def test_keys_of_transformers_that_move_the_result_are_keys_of_it():
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    own_names = {name for block in Arguments.__annotations__.values() for name in block.__annotations__}
    assert output_dir._MOVING_KEYS <= names and output_dir._FREE_KEYS <= own_names


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_run_goes_on_with_the_clips_that_it_began_with_alone(tmp_path, split):
    recipe, clips = campaign.write_recipe(tmp_path / "data"), tmp_path / "data" / "clips.csv"
    run(recipe, tmp_path / "run", "--max_steps=4")
    lines = clips.read_text().splitlines()
    clips.write_text("\n".join([*lines, next(line for line in lines if f",{split}," in line)]))
    status, said = ending(recipe, tmp_path / "run", "--max_steps=6")
    purpose = {"train": "to train on", "validation": "to evaluate on"}[split]
    assert status == 2 and f"Expected the clips {purpose} that the run began with, " in said and ", got " in said
    clips.write_text("\n".join(lines))
    run(recipe, tmp_path / "run", "--max_steps=6")


@pytest.mark.slow
def test_a_run_that_found_a_smaller_batch_goes_on_with_it(recipe, tmp_path, monkeypatch):
    own = tmp_path / "recipe.yaml"
    own.write_text(recipe.read_text().replace("global_batch_size: 4", "per_device_train_batch_size: 8"))
    argv, original = [own, tmp_path / "run", "--auto_find_batch_size=true"], ASTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        if len(inputs["labels"]) > 4:
            raise RuntimeError("CUDA out of memory.")
        return original(self, model, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ASTTrainer, "training_step", training_step)
        run(*argv, "--max_steps=4")
    run(*argv, "--max_steps=6")
    assert TrainerState.load_from_json(tmp_path / "run" / "trainer_state.json").train_batch_size == 4


def test_checkpoint_without_its_optimiser_is_not_continued_from(recipe, tmp_path):
    argv = [recipe, tmp_path / "run", "--save_only_model=true"]
    run(*argv, "--max_steps=4")
    status, said = ending(*argv, "--max_steps=6")
    assert status == 2 and "checkpoint-4 cannot be continued from: it holds no state of the optimiser" in said


@pytest.mark.slow
def test_longer_run_is_not_another_run_and_goes_on(recipe, tmp_path, caplog):
    run(recipe, tmp_path, "--max_steps=4")
    run(recipe, tmp_path, "--max_steps=6")
    assert "The run is made longer (max_steps: 4 saved, 6 given)" in caplog.text
    assert TrainerState.load_from_json(tmp_path / "trainer_state.json").global_step == 6


@pytest.mark.slow
def test_folder_of_a_run_that_is_still_going_on_is_refused(recipe, tmp_path, monkeypatch):
    said = []

    def start_another(trainer):
        command = [sys.executable, "-m", "modeling_ast.commands.train", recipe]
        command += ["--output_dir", tmp_path / "run", "--max_steps=4"]
        said.append(subprocess.run(command, capture_output=True, text=True))

    with monkeypatch.context() as patch:
        before_update(patch, 3, start_another)
        run(recipe, tmp_path / "run", "--max_steps=4")
    assert said[0].returncode == 2
    assert said[0].stderr.strip().splitlines()[-1].startswith(f"error: Another run is writing to {tmp_path / 'run'}")
    assert not list((tmp_path / "run").glob("_*"))


def enter_and_leave(folder: Path, seconds: float, trespasses) -> None:
    """A hot loop of claims; another process that is inside at the same time is counted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(RecipeError), output_dir.claimed(folder):
            try:
                os.mkdir(folder / "inside")
            except FileExistsError:
                trespasses.value += 1
                return
            os.rmdir(folder / "inside")


def test_no_two_processes_hold_a_folder_however_often_they_come_and_go(tmp_path):
    fork = multiprocessing.get_context("fork")
    trespasses = fork.Value("i", 0)
    processes = [fork.Process(target=enter_and_leave, args=(tmp_path / "a" / "run", 0.3, trespasses)) for _ in "123"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0] and trespasses.value == 0


def wait_to_count(folder: Path, number: int) -> None:
    for _ in range(number):
        with locks.claimed(folder, None, "_counting"):
            count = int((folder / "count").read_text())
            (folder / "count").write_text(str(count + 1))


def test_who_waits_for_a_claim_gets_it_alone(tmp_path):
    (tmp_path / "count").write_text("0")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=wait_to_count, args=(tmp_path, 100)) for _ in "123"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "300" and [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_claim_that_was_lifted_while_it_was_made_is_made_again(tmp_path, monkeypatch):
    """Who left has removed the file that was already open: the next one would make another, and find no lock on it."""
    lock, calls = locks.fcntl.lockf, []

    def leave_first(*args):
        calls.append(1)
        if len(calls) <= 2:
            (tmp_path / "_running").unlink()
        lock(*args)

    monkeypatch.setattr(locks.fcntl, "lockf", leave_first)
    with output_dir.claimed(tmp_path):
        assert len(calls) == 3 and (tmp_path / "_running").is_file()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["model.safetensors"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("trainer_state.json", "optimizer.pt", "epoch_loss.pt")],
)
def test_checkpoint_that_was_damaged_is_named(recipe, interrupted, name):
    checkpoint = Path(last_whole_checkpoint(interrupted))
    for content in (b"", b"PK\x03\x04 nothing", (checkpoint / name).read_bytes()[:-40]):
        (checkpoint / name).write_bytes(content)
        status, said = ending(recipe, interrupted)
        assert status == 2 and said.startswith(f"error: {checkpoint} cannot be continued from (") and "\n" not in said
    shutil.rmtree(checkpoint)
    run(recipe, interrupted)


@pytest.mark.slow
def test_end_that_was_damaged_is_made_again(recipe, undisturbed, tmp_path, caplog):
    run(recipe, tmp_path / "run")
    for name in ("model.safetensors", "train_results.json"):
        (tmp_path / "run" / name).write_bytes(b"{")
        assert_same_command_ends_as_undisturbed(recipe, tmp_path / "run", undisturbed)
        assert "its last part is done again" in caplog.text
        caplog.clear()


def test_checkpoint_is_not_blamed_for_the_machine(recipe, interrupted, tmp_path):
    checkpoint = last_whole_checkpoint(interrupted)
    for error in (torch.OutOfMemoryError("no memory"), OSError(errno.ESTALE, "Stale file handle")):
        with pytest.raises(type(error)), loading(checkpoint, is_of_this_run=True):
            raise error
    argv = [recipe, tmp_path / "other", f"--resume_from_checkpoint={checkpoint}", "--hidden_size=64"]
    status, said = ending(*argv)
    assert status == 2 and "it is of another model" in said and "Give another one" in said and "Remove" not in said


def test_disk_that_knows_no_locks_is_said_and_used(recipe, tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", no_locks)
    run(recipe, tmp_path / "run", "--max_steps=2")
    assert (
        "a second run in it would go unnoticed" in caplog.text and (tmp_path / "run" / "model.safetensors").is_file()
    )


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_two_processes_end_when_one_of_them_is_killed(recipe, tmp_path, launcher):
    kill = f"open({str(tmp_path / 'killed')!r}, 'w').close(); os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "program.py").write_text(train_and_before_update(7, kill, condition="os.environ['RANK'] == '1'"))
    two = ["--standalone", "--nproc_per_node=2"]
    if launcher.startswith("accelerate"):
        two = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        two.append("--main_process_port=0")
    argv = [*two, tmp_path / "program.py", recipe, "--output_dir", tmp_path / "run", "--ddp_backend=gloo"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", launcher, *map(str, argv)],
            env=environment(),
            stdout=log,
            stderr=log,
        )
        while process.poll() is None and not (tmp_path / "killed").is_file():
            time.sleep(0.1)
        assert (tmp_path / "killed").is_file(), (tmp_path / "log").read_text()[-3000:]
        assert process.wait(timeout=300) != 0
    assert max(checkpoints(tmp_path / "run")) == 6 and not list((tmp_path / "run").glob("checkpoint-8"))


# The campaign


def test_table_counts_and_names_what_was_lost():
    rows = [campaign.Row("fire", 3, 3), campaign.Row("water", 2, 1, ["wet"])]
    assert campaign.table(rows).splitlines()[2:] == [
        "| fire | 3 | 3 | 0 |",
        "| water | 2 | 1 | 1 |",
        "",
        "- water: wet",
    ]


@pytest.mark.slow
def test_tests_are_counted_as_faults(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip('no disk')\n"
    )
    row = campaign.tests_row("some", [str(tmp_path / "test_some.py")])
    assert (row.tried, row.survived, row.lost) == (2, 1, 1)
    assert row.reasons == ["test_b failed", "not tried: test_c (no disk)"]
    assert campaign.tests_row("none", [str(tmp_path / "test_some.py"), "-k", "nothing"]).lost == 1


@pytest.mark.slow
def test_run_that_is_killed_three_times_ends_as_an_undisturbed_one(tmp_path, capsys):
    assert campaign.main(["--kills=3", "--groups", "kills", "--output_dir", str(tmp_path)]) == 0
    assert "| `kill -9` at a random moment of a run | 3 | 3 | 0 |" in capsys.readouterr().out


def test_run_that_lost_something_is_seen(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    assert campaign.run_difference(0, tmp_path / "run", undisturbed) is None
    (tmp_path / "run" / ".1.0.unfinished.csv").touch()
    assert "other files: .1.0.unfinished.csv" in campaign.run_difference(0, tmp_path / "run", undisturbed)
    text = (tmp_path / "run" / "results.csv").read_text()
    (tmp_path / "run" / "results.csv").write_text(text[:-20])
    assert campaign.run_difference(0, tmp_path / "run", undisturbed) == "results.csv differs"
    assert campaign.run_difference(1, tmp_path / "run", undisturbed).startswith("exit status 1")
