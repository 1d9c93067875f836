"""A dry run goes through everything but the work, tells what the run will take, and leaves nothing."""

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import fault_campaign as campaign
import pytest
from helpers import contents, write_csv

from modeling_ast import AudioError
from modeling_ast.commands import train as script
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training import dry_run
from modeling_ast.training.faults import Stopped
from modeling_ast.training.trainer import ASTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def few_seconds(monkeypatch):
    monkeypatch.setattr(dry_run, "MEASURED_SECONDS", 0.01)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return campaign.write_recipe(tmp_path_factory.mktemp("data"))


def run(recipe: Path, folder: Path, *argv) -> dict[str, float]:
    return script.main([str(each) for each in (recipe, "--output_dir", folder, "--dry_run", "true", *argv)])


def test_dry_run_counts_what_the_run_does(recipe, tmp_path, caplog):
    caplog.set_level("INFO")
    results = run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert results["dry_run_updates"] == 16 and results["dry_run_evaluations"] == 8  # four epochs of 4, every 2
    assert 0 <= results["dry_run_data_share"] <= 1
    assert results["dry_run_decode_seconds"] > 0 and results["dry_run_features_seconds"] > 0
    assert "to read and decode" in caplog.text and "to get to the device" not in caplog.text
    assert results["dry_run_step_seconds"] > 0 == results["dry_run_transfer_seconds"]
    training = 16 * results["dry_run_seconds_per_update"]
    evaluating = (8 * 8 + 2 * (8 + 8)) / results["dry_run_clips_per_second"]  # the averaged model too
    assert results["dry_run_hours"] * 3600 == pytest.approx(training + evaluating, rel=1e-6)
    for words in ("The whole run is 16 updates", "nothing was written", "16 clips for train"):
        assert words in caplog.text


def test_slow_data_are_told_with_what_to_change(recipe, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    (tmp_path / "slow.py").write_text(
        "import time\ndef slow(waveform, rate):\n    time.sleep(0.2)\n    return waveform\n"
    )
    monkeypatch.chdir(tmp_path)
    results = run(recipe, tmp_path / "run", "--waveform_transform=slow:slow", "--mixup_probability=0.5")
    assert results["dry_run_decode_seconds"] > 0.2 > results["dry_run_features_seconds"]
    workers = int(re.search(r"bottleneck. a process needs dataloader_num_workers: (\d+)", caplog.text)[1])
    assert workers > 1 and "mixup_partner: batch reads no second clip" in caplog.text
    assert "The slowest of them, with 0 worker(s), is reading and decoding" in caplog.text
    caplog.clear()
    monkeypatch.setattr(dry_run, "SLOW_DATA", -1.0)
    monkeypatch.setattr(dry_run, "_time_worker", lambda *_: (1e-9, 1e-9, {}))
    run(recipe, tmp_path / "run", "--dataloader_num_workers=1", "--mixup_probability=0")
    assert "1 workers of a process should do: too few cores, or a slow disk" in caplog.text
    assert "mixup_partner" not in caplog.text


def test_features_where_the_model_is_are_told_apart(recipe, tmp_path, caplog):
    caplog.set_level("INFO")
    results = run(recipe, tmp_path / "run", "--features_on_device=true")
    told = r"ms for what it hands over, [\d.e-]+ ms for its features there; and the model [\d.e-]+ ms"
    assert re.search(told, caplog.text)
    assert results["dry_run_device_features_seconds"] > 0 and results["dry_run_step_seconds"] > 0
    update = 4 * (results["dry_run_device_features_seconds"] + results["dry_run_step_seconds"])
    shared = 1 - results["dry_run_data_share"]
    assert update == pytest.approx(shared * results["dry_run_seconds_per_update"], rel=1e-6)


@pytest.mark.parametrize(("noise", "is_told"), [(0.1, True), (0.0, False)])
def test_a_slow_way_to_the_device_is_told_with_what_to_change(recipe, tmp_path, caplog, monkeypatch, noise, is_told):
    caplog.set_level("INFO")
    monkeypatch.setattr(dry_run, "SLOW_DATA", 1.0)
    monkeypatch.setattr(dry_run, "_time_device", lambda *_: (10.0, 0.0))  # as no CPU takes
    run(recipe, tmp_path / "run", "--features_on_device=true", f"--max_noise={noise}")
    assert "The slowest of them, with 0 worker(s), is the way to the device." in caplog.text
    assert "The way to the device keeps it waiting. accelerator_config" in caplog.text
    assert ("max_noise: 0 takes no noise along" in caplog.text) is is_told


@pytest.mark.parametrize(("step", "slowest"), [(0.006, "reading and decoding"), (0.009, "the model")])
def test_a_worker_does_one_after_the_other(recipe, tmp_path, caplog, monkeypatch, step, slowest):
    caplog.set_level("INFO")
    monkeypatch.setattr(dry_run, "_time_worker", lambda *_: (0.0045, 0.0035, {}))
    monkeypatch.setattr(dry_run._Stopwatch, "seconds_per_update", 4 * step)
    monkeypatch.setattr(dry_run._Stopwatch, "data_share", 0.0)
    run(recipe, tmp_path / "run", "--dataloader_num_workers=1")
    assert f"The slowest of them, with 1 worker(s), is {slowest}." in caplog.text


def test_labels_that_no_clip_to_train_on_has_are_named(recipe, tmp_path, caplog):
    labels = [*campaign.KINDS, "owl"]
    rows = [{"index": number, "mid": name, "display_name": name} for number, name in enumerate(labels)]
    write_csv(tmp_path / "labels.csv", rows)
    run(recipe, tmp_path / "run", f"--label_file={tmp_path / 'labels.csv'}")
    assert "1 label(s) are of no clip to train on, and not learnt: owl." in caplog.text


@pytest.mark.parametrize(("own", "updates"), [([], 12), (["--samples_per_epoch=7"], 6)])
def test_estimate_is_that_of_the_run_in_epochs_too(recipe, tmp_path, own, updates):
    argv = ["--eval_strategy=epoch", "--save_strategy=epoch", "--num_train_epochs=6", "--global_batch_size=8"]
    results = run(recipe, tmp_path / "run", *argv, *own)
    assert results["dry_run_updates"] == updates and results["dry_run_evaluations"] == 6


@pytest.mark.slow
def test_evaluation_alone_is_estimated_too(recipe, tmp_path):
    script.main([str(recipe), "--output_dir", str(tmp_path / "run"), "--max_steps=2"])
    before = contents(tmp_path)
    argv = ["--do_train=false", f"--model_name_or_path={tmp_path / 'run'}"]
    results = run(recipe, tmp_path / "run", *argv)
    assert "dry_run_updates" not in results and math.isfinite(results["dry_run_hours"])
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_dry_run_in_the_folder_of_a_run_changes_nothing(recipe, tmp_path):
    script.main([str(recipe), "--output_dir", str(tmp_path / "run"), "--max_steps=4"])
    before = contents(tmp_path)
    run(recipe, tmp_path / "run", "--max_steps=4")
    assert contents(tmp_path) == before
    with pytest.raises(RecipeError, match="learning_rate: 0.001 saved, 0.5 given"):  # as the run itself would be
        run(recipe, tmp_path / "run", "--max_steps=4", "--learning_rate=0.5")


def test_faults_of_a_run_are_those_of_its_dry_run(recipe, tmp_path):
    with pytest.raises(RecipeError, match="cannot be used"):
        run(recipe, tmp_path / "run", "--hidden_size=33")
    clip = recipe.parent / "validation-2.wav"
    sound = clip.read_bytes()
    clip.write_bytes(b"no sound")
    try:
        with pytest.raises(AudioError, match=str(clip)):
            run(recipe, tmp_path / "run")
    finally:
        clip.write_bytes(sound)
    assert not (tmp_path / "run").exists()


def test_signal_ends_a_dry_run(recipe, tmp_path, monkeypatch):
    step = ASTTrainer.training_step

    def training_step(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    monkeypatch.setattr(ASTTrainer, "training_step", training_step)
    with pytest.raises(Stopped, match="Stopped by SIGTERM. This was a dry run: nothing was written."):
        run(recipe, tmp_path / "new" / "run")
    monkeypatch.setattr(script, "read_data", mock.Mock(side_effect=KeyboardInterrupt))  # before there is a trainer
    with pytest.raises(Stopped, match="Stopped by Ctrl-C. This was a dry run: nothing was written."):
        run(recipe, tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_steps", [1, 3, 4])
def test_runs_of_few_updates_have_a_length(recipe, tmp_path, max_steps):
    results = run(recipe, tmp_path / "run", f"--max_steps={max_steps}")
    assert results["dry_run_updates"] == max_steps and results["dry_run_seconds_per_update"] > 0


@pytest.mark.slow
def test_two_processes_agree_on_the_end_of_a_dry_run(recipe, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "modeling_ast.commands.train", recipe, "--output_dir", tmp_path / "run", "--dry_run", "true"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("This was a dry run") == 1 and not (tmp_path / "run").exists()
