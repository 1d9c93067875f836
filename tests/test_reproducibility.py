"""One run is one result: for any number of processes, accumulation steps and workers, interrupted or not."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile
import torch
from datasets import Audio, ClassLabel, Dataset
from helpers import without_key_biases
from safetensors.torch import load_file

from modeling_ast.commands import train as script
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.training.averaging import RunningAverage
from modeling_ast.training.results import EpochRecord
from modeling_ast.training.trainer import ASTTrainer

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "run_audio_classification.py"

# Clips of each kind: 19 train in batches of 8 (three updates an epoch, the last one completed), 7 and 5 are held out.
CLIPS = {
    "train": {"beeps": 9, "drone": 5, "noise": 3, "steam": 2},
    "validation": {"beeps": 2, "drone": 2, "noise": 2, "steam": 1},
    "test": {"beeps": 2, "drone": 1, "noise": 1, "steam": 1},
}
STEPS_PER_EPOCH, NUM_EPOCHS = 3, 3

pytestmark = pytest.mark.usefixtures("no_pictures_in_module")

# All that draws or remembers: mixup, crop, masks, noise, roll, warm-up, decay, rates by layer, Adam, means of
# predictions and weights.
RECIPE = """
model_name_or_path: tiny224
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 64
max_length: 64
num_mel_bins: 32
split_column_name: split
mixup_probability: 0.5
random_crop: true
freq_mask_bins: 8
time_mask_frames: 16
max_noise: 0.1
roll_frames: 5
do_train: true
num_train_epochs: 3
global_batch_size: 8
per_device_eval_batch_size: 4
learning_rate: 1e-3
lr_scheduler_type: constant_with_warmup
warmup_steps: 2
layer_learning_rate_decay: 0.75
lr_step_first_epochs: 1
lr_step_factor: 0.5
decoupled_weight_decay: false
weight_decay: 1e-4
max_grad_norm: 1.0
weight_average_start: 2
eval_strategy: epoch
logging_strategy: steps
logging_steps: 1
use_cpu: true
dataloader_pin_memory: false
disable_tqdm: true
seed: 3
"""
MORE_AUGMENTATION = ["--mixup_partner=batch", "--mixup_alpha=0.8", "--gain_db=6"]
MORE_AUGMENTATION += ["--num_freq_masks=2", "--num_time_masks=2", "--waveform_transform=speed_and_noise:change"]
# Beside the recipe; with generators of Python, numpy and torch.
FUNCTION = """
import random
import numpy as np
import torch

def change(waveform, sampling_rate):
    times = np.arange(0, len(waveform) - 1, random.uniform(0.8, 1.25))
    noise = np.random.uniform(0, 0.01) * torch.randn(len(times)).numpy()
    return np.interp(times, np.arange(len(waveform)), waveform) + noise
"""
# Soft cross entropy, shuffled; the same of clips at their own lengths, 48 to 98 frames, with all other augmentation;
# and BCE of one or two labels a clip, of which rare ones are drawn more often. The latter two with weights in the
# loss and epochs that are no passes over the clips.
VARIANTS = {
    "shuffled": [],
    "free": ["--max_length=98", "--padding=longest", "--samples_per_epoch=22", *MORE_AUGMENTATION]
    + ["--class_weights=balanced"],
    "balanced": ["--problem_type=multi_label_classification", "--label_column_name=labels"]
    + ["--class_balanced_sampling=true", "--samples_per_epoch=20", "--pos_weight=2"],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, one_thread) -> Path:
    """The recipe, beside its data."""
    folder, generator = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(0)
    rows, kinds = [], list(CLIPS["train"])
    for split, counts in CLIPS.items():
        for kind in (kind for kind, count in counts.items() for _ in range(count)):
            name, other = f"{len(rows)}.wav", kinds[len(rows) % len(kinds)]
            clip = generate_clip(kind, generator)[: 8000 + 500 * (len(rows) % 17)]  # 0.5 to 1 s
            soundfile.write(folder / name, clip.numpy(), 16000)
            rows.append([name, split, kind, kind if kind == other else f"{kind},{other}"])
    with open(folder / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([["audio", "split", "label", "labels"], *rows])
    (folder / "speed_and_noise.py").write_text(FUNCTION)
    (folder / "recipe.yaml").write_text(f"dataset_name: {folder / 'clips.csv'}\n{RECIPE}")
    return folder / "recipe.yaml"


def run(*argv) -> dict[str, float]:
    return script.main([str(argument) for argument in argv])


def results(folder: Path) -> list[dict[str, float]]:
    with open(folder / "results.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def updates(folder: Path) -> list[dict[str, float]]:
    """Loss, norm of the gradient and rate of each update."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [
        {name: entry[name] for name in ("step", "loss", "grad_norm", "learning_rate")}
        for entry in history
        if "loss" in entry
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def reported(folder: Path) -> dict[str, float]:
    """All metrics of a run, without what a clock says."""
    saved = json.loads((folder / "all_results.json").read_text())
    return {key: value for key, value in saved.items() if not key.endswith(("_runtime", "_per_second", "_time"))}


def assert_equal_up_to_rounding(folder: Path, expected: Path) -> None:
    """The same updates, though sums were made in another order."""
    assert len(updates(expected)) == STEPS_PER_EPOCH * NUM_EPOCHS
    for actual_update, update in zip(updates(folder), updates(expected), strict=True):
        assert actual_update == pytest.approx(update, rel=1e-5)
    assert len(results(expected)) == NUM_EPOCHS
    for actual_row, row in zip(results(folder), results(expected), strict=True):
        assert actual_row.keys() == row.keys()
        for name, value in row.items():
            tolerance = 1e-5 if name.endswith("loss") else 1e-12
            assert actual_row[name] == pytest.approx(value, rel=tolerance), name
    assert reported(folder) == pytest.approx(reported(expected), rel=1e-5)
    for part in ("", "weight_average"):
        actual, wanted = weights(folder / part), weights(expected / part)
        assert actual.keys() == wanted.keys()
        for name, tensor in without_key_biases(wanted).items():
            torch.testing.assert_close(actual[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def assert_identical(folder: Path, expected: Path) -> None:
    """Bit for bit."""
    assert updates(folder) == updates(expected)
    assert (folder / "results.csv").read_text() == (expected / "results.csv").read_text()
    assert len(results(folder)) == NUM_EPOCHS
    actual, wanted = reported(folder), reported(expected)
    del actual["train_loss"], wanted["train_loss"]  # see below
    assert actual == wanted
    for part in ("", "weight_average"):
        actual, wanted = weights(folder / part), weights(expected / part)
        assert actual.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(actual[name], wanted[name])] == []


@pytest.fixture(
    scope="module", params=["shuffled", *(pytest.param(x, marks=pytest.mark.slow) for x in ("free", "balanced"))]
)
def whole(request, recipe, tmp_path_factory) -> tuple[Path, list]:
    """Folder and arguments of a run in one go, by one process."""
    return run_once(tmp_path_factory, recipe, *VARIANTS[request.param])


def run_once(tmp_path_factory, *argv) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(*argv, "--save_strategy=no", "--output_dir", folder)
    return folder, list(argv)


# The same seed, the same run


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_seed_makes_the_same_run(whole, tmp_path, workers):
    folder, argv = whole
    torch.rand(7)  # whatever was drawn before it began
    run(*argv, f"--dataloader_num_workers={workers}", "--save_strategy=no", "--output_dir", tmp_path)
    assert_identical(tmp_path, folder)
    assert reported(tmp_path)["train_loss"] == reported(folder)["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["free"], indirect=True)
def test_the_same_seed_makes_the_same_run_in_a_process_of_its_own(whole, tmp_path):
    """With other hashes, by which sets are ordered, and with the files read through one worker."""
    folder, argv = whole
    command = [SCRIPT, *argv, "--dataloader_num_workers=1", "--save_strategy=no", "--output_dir", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    process = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert_identical(tmp_path, folder)


STREAM_STEPS = 8  # three passes of 19 clips
STREAM_OPTIONS = ["--streaming=true", f"--max_steps={STREAM_STEPS}", "--eval_strategy=steps", "--eval_steps=2"]
STREAM_OPTIONS += ["--weight_average_start=2", "--weight_average_steps=3", *MORE_AUGMENTATION]
# What needs to know all clips in advance.
NOT_FOR_STREAMS = ("split_column_name", "num_train_epochs", "lr_step", "weight_average", "eval_strategy")


@pytest.fixture(scope="module")
def stream(recipe) -> list:
    """Arguments of a run on a stream of two shards, which two workers share."""
    folder = recipe.parent / "parquet"
    folder.mkdir()
    with open(recipe.parent / "clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for split in CLIPS:
        own = [row for row in rows if row["split"] == split]
        shards = 2 if split == "train" else 1
        for shard in range(shards):
            clips = own[shard::shards]
            sounds = [{"bytes": (recipe.parent / row["audio"]).read_bytes(), "path": row["audio"]} for row in clips]
            labels = [list(CLIPS["train"]).index(row["label"]) for row in clips]
            table = Dataset.from_dict({"audio": sounds, "label": labels})
            table = table.cast_column("audio", Audio(decode=False))
            table = table.cast_column("label", ClassLabel(names=list(CLIPS["train"])))
            table.to_parquet(folder / f"{split}-0000{shard}-of-0000{shards}.parquet")
    lines = [line for line in RECIPE.split("\n") if line and not line.startswith(NOT_FOR_STREAMS)]
    (folder.parent / "stream.yaml").write_text("\n".join([f"dataset_name: {folder}", *lines]))
    return [folder.parent / "stream.yaml", *STREAM_OPTIONS]


@pytest.mark.slow
@pytest.mark.parametrize("workers, padding", [(0, "max_length"), (2, "longest")])
def test_the_same_seed_makes_the_same_run_on_a_stream(stream, tmp_path, workers, padding):
    first, again = tmp_path / "first", tmp_path / "again"
    for folder in (first, again):
        argv = [f"--padding={padding}", f"--dataloader_num_workers={workers}", "--save_strategy=no"]
        run(*stream, *argv, "--output_dir", folder)
    assert_same_stream(again, first)
    assert reported(again) == reported(first)


def assert_same_stream(folder: Path, expected: Path) -> None:
    assert len(updates(expected)) == STREAM_STEPS and updates(folder) == updates(expected)
    assert len(results(expected)) == STREAM_STEPS // 2 and results(folder) == results(expected)
    for part in ("", "weight_average"):
        found, wanted = weights(folder / part), weights(expected / part)
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# The same updates, however they are divided


@pytest.mark.slow
def test_accumulated_batches_make_the_same_updates(whole, tmp_path):
    folder, argv = whole
    run(*argv, "--gradient_accumulation_steps=2", "--output_dir", tmp_path)
    assert_equal_up_to_rounding(tmp_path, folder)


def test_features_that_are_computed_where_the_model_is_make_the_same_updates(whole, tmp_path):
    folder, argv = whole
    run(*argv, "--features_on_device=true", "--dataloader_num_workers=1", "--output_dir", tmp_path)
    assert_equal_up_to_rounding(tmp_path, folder)
    saved = {
        name: json.loads((path / "trainer_state.json").read_text()) for name, path in zip("ab", (tmp_path, folder))
    }
    assert saved["a"]["total_flos"] == saved["b"]["total_flos"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["free"], indirect=True)
def test_two_processes_go_on_with_features_of_workers_after_those_computed_where_the_model_is(whole, tmp_path):
    argv = [*whole[1], "--features_on_device=true", "--save_strategy=steps", "--save_steps=2"]
    argv += ["--output_dir", tmp_path / "run"]
    assert launch(tmp_path, *argv, stop_at=6).returncode != 0
    process = launch(tmp_path, *argv, "--resume_from_checkpoint=true", "--features_on_device=false")
    assert process.returncode == 0, process.stderr[-3000:]
    assert_equal_up_to_rounding(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_another_seed_makes_another_run(whole, tmp_path):
    """Which shows that the comparisons of this file see something."""
    folder, argv = whole
    run(*argv, "--seed=4", "--output_dir", tmp_path)
    with pytest.raises(AssertionError):
        assert_equal_up_to_rounding(tmp_path, folder)


def launch(tmp_path: Path, *argv, stop_at: int | None = None, own: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """The script as two processes; `stop_at` lets both die in that update, as on a machine that is switched off.

    `own` are lines of a program that come before.
    """
    lines = ["import os, runpy, sys", "from modeling_ast.training.trainer import ASTTrainer", *own]
    if stop_at is not None:
        lines += ["train, taken = ASTTrainer.training_step, []", "def training_step(*args, **kwargs):"]
        lines += [f"    taken.append(1) if len(taken) < {stop_at - 1} else os._exit(7)"]
        lines += ["    return train(*args, **kwargs)", "ASTTrainer.training_step = training_step"]
    lines += [f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"]
    (tmp_path / "program.py").write_text("\n".join(lines))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "program.py"]
    return subprocess.run(
        [sys.executable, *map(str, [*launcher, *argv]), "--ddp_backend=gloo"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def by_two(whole, tmp_path_factory) -> Path:
    """Folder of the same run by two processes."""
    folder = tmp_path_factory.mktemp("by_two")
    process = launch(folder, *whole[1], "--save_strategy=no", "--output_dir", folder / "run")
    assert process.returncode == 0, process.stderr[-3000:]
    return folder / "run"


@pytest.mark.slow
def test_two_processes_make_the_same_updates_as_one(whole, by_two):
    assert_equal_up_to_rounding(by_two, whole[0])
    assert [path.name for path in by_two.parent.iterdir() if path.is_dir()] == ["run"]
    assert {path.name for path in whole[0].iterdir()} <= {path.name for path in by_two.iterdir()}
    assert (by_two / "README.md").is_file() and (by_two / "example.png").is_file()


DRAWN = """
import torch
train = ASTTrainer.training_step
def training_step(trainer, *args, **kwargs):
    with open(f"{trainer.args.output_dir}_{trainer.args.process_index}", "a") as file:
        print(torch.rand(()).item(), file=file)
    return train(trainer, *args, **kwargs)
ASTTrainer.training_step = training_step
"""


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["free"], indirect=True)
def test_each_process_draws_dropout_of_its_own(whole, tmp_path):
    argv = [*whole[1], "--save_strategy=no", "--max_steps=2", "--output_dir", tmp_path / "run"]
    process = launch(tmp_path, *argv, own=DRAWN.splitlines())
    assert process.returncode == 0, process.stderr[-3000:]
    numbers = [number for rank in range(2) for number in (tmp_path / f"run_{rank}").read_text().split()]
    assert len({*numbers}) == len(numbers) == 4


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["free"], indirect=True)  # whose epochs go on through passes
def test_two_processes_resume_as_if_nothing_had_been(whole, by_two, tmp_path):
    """Stopped in the second epoch, with the first of its updates saved."""
    argv = [*whole[1], "--save_strategy=steps", "--save_steps=2", "--output_dir", tmp_path / "run"]
    process = launch(tmp_path, *argv, stop_at=6)
    assert process.returncode != 0 and not (tmp_path / "run" / "model.safetensors").exists()
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    process = launch(tmp_path, *argv, "--resume_from_checkpoint=true")
    assert process.returncode == 0, process.stderr[-3000:]
    assert_identical(tmp_path / "run", by_two)


@pytest.mark.slow
def test_two_processes_resume_a_stream_as_if_nothing_had_been(stream, tmp_path):
    """Of two shards, which four data workers share."""
    argv = [*stream, "--padding=longest", "--dataloader_num_workers=2"]
    process = launch(tmp_path, *argv, "--save_strategy=no", "--output_dir", tmp_path / "whole")
    assert process.returncode == 0, process.stderr[-3000:]
    argv += ["--save_strategy=steps", "--save_steps=2", "--output_dir", tmp_path / "run"]
    assert launch(tmp_path, *argv, stop_at=6).returncode != 0
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    process = launch(tmp_path, *argv, "--resume_from_checkpoint=true")
    assert process.returncode == 0, process.stderr[-3000:]
    assert_same_stream(tmp_path / "run", tmp_path / "whole")


# Interrupted and resumed, with dropout too, whose draws are the process's own


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory) -> tuple[Path, list]:
    dropout = ["--hidden_dropout_prob=0.1", "--attention_probs_dropout_prob=0.1"]
    dropout += ["--num_hidden_layers=2", "--drop_path_rate=0.3"]
    return run_once(tmp_path_factory, recipe, *VARIANTS["balanced"], *dropout)


def interrupt(monkeypatch, owner: type, method: str, count: int, *argv) -> None:
    """Run until a method is called for the so-manieth time: there the run ends, as by Ctrl-C or by a power cut."""
    original, calls = getattr(owner, method), []

    def stop_or_call(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, method, stop_or_call)
        run(*argv)
    torch.rand(7)  # whatever the next process has drawn


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_is_one_that_was_not_interrupted(stream, tmp_path, monkeypatch, workers):
    argv = [*stream, f"--dataloader_num_workers={workers}", "--hidden_dropout_prob=0.1"]
    run(*argv, "--save_strategy=no", "--output_dir", tmp_path / "whole")
    argv += ["--save_strategy=steps", "--save_steps=2", "--output_dir", tmp_path / "run"]
    interrupt(monkeypatch, ASTTrainer, "training_step", 6, *argv)
    run(*argv, "--resume_from_checkpoint=true")
    assert_same_stream(tmp_path / "run", tmp_path / "whole")


# Saved within an epoch (checkpoint 4, of three updates each), at its end (3), or both; step 5 is in the second epoch.
@pytest.mark.parametrize(
    "step, save",
    [
        (6, ["--save_strategy=steps", "--save_steps=2"]),
        pytest.param(5, ["--save_strategy=steps", "--save_steps=3"], marks=pytest.mark.slow),
        pytest.param(2, ["--save_strategy=steps", "--save_steps=1"], marks=pytest.mark.slow),
        pytest.param(9, ["--save_strategy=steps", "--save_steps=2"], marks=pytest.mark.slow),
        pytest.param(8, ["--save_strategy=epoch"], marks=pytest.mark.slow),
        pytest.param(3, ["--save_strategy=epoch"], marks=pytest.mark.slow),
        pytest.param(8, ["--save_strategy=epoch", "--save_total_limit=1"], marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, int) else " ".join(value).replace("--save_", ""),
)
def test_interrupted_run_resumes_as_if_nothing_had_been(uninterrupted, tmp_path, monkeypatch, step, save):
    """And goes on with another number of workers."""
    folder, argv = uninterrupted
    argv = [*argv, *save, "--output_dir", tmp_path]
    interrupt(monkeypatch, ASTTrainer, "training_step", step, *argv)
    assert not (tmp_path / "model.safetensors").exists()
    if step > STEPS_PER_EPOCH:  # what is done can be read meanwhile
        assert results(tmp_path) == results(folder)[: (step - 1) // STEPS_PER_EPOCH]
    run(*argv, "--resume_from_checkpoint=true", "--dataloader_num_workers=2")
    assert_identical(tmp_path, folder)


# Nothing is better by a thousand: the run ends two epochs after its first.
EARLY = ["--early_stopping_patience=2", "--early_stopping_threshold=1000", "--num_train_epochs=6"]
EARLY += ["--save_strategy=epoch", "--load_best_model_at_end=true", "--metric_for_best_model=mAP"]


@pytest.fixture(scope="module")
def stopped_early(recipe, tmp_path_factory) -> tuple[Path, list, list]:
    """Folder and arguments of a run, and what the callback warned of."""
    folder, warnings = tmp_path_factory.mktemp("runs") / "early", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer_callback.logger.warning", warnings.append)
        run(recipe, *EARLY, "--output_dir", folder)
    return folder, [recipe, *EARLY], warnings


@pytest.mark.slow
def test_a_run_without_progress_stops_early_and_its_last_evaluations_warn_of_nothing(stopped_early):
    folder, _, warnings = stopped_early
    assert len(results(folder)) == 3 and len(updates(folder)) == 3 * STEPS_PER_EPOCH
    assert warnings == []


# In the second and third epoch, and between the last checkpoint and the trained model.
@pytest.mark.slow
@pytest.mark.parametrize("method, count", [("training_step", 8), ("training_step", 4), ("save_end", 1)])
def test_a_resumed_run_stops_early_where_a_whole_one_does(stopped_early, tmp_path, monkeypatch, method, count):
    folder, argv, _ = stopped_early
    argv = [*argv, "--output_dir", tmp_path]
    interrupt(monkeypatch, ASTTrainer, method, count, *argv)
    run(*argv, "--resume_from_checkpoint=true")
    assert_identical(tmp_path, folder)


@pytest.mark.slow
def test_run_that_is_interrupted_twice_resumes_as_if_nothing_had_been(uninterrupted, tmp_path, monkeypatch):
    folder, argv = uninterrupted
    argv = [*argv, "--save_strategy=steps", "--save_steps=1", "--output_dir", tmp_path]
    interrupt(monkeypatch, ASTTrainer, "training_step", 5, *argv)
    interrupt(monkeypatch, ASTTrainer, "training_step", 3, *argv, "--resume_from_checkpoint=true")
    run(*argv, "--resume_from_checkpoint=true")
    assert_identical(tmp_path, folder)


@pytest.mark.slow
def test_run_resumes_with_batches_divided_in_another_way(whole, tmp_path, monkeypatch):
    """As on another number of devices; up to rounding."""
    folder, argv = whole
    argv = [*argv, "--save_strategy=steps", "--save_steps=2", "--output_dir", tmp_path]
    interrupt(monkeypatch, ASTTrainer, "training_step", 6, *argv)
    run(*argv, "--resume_from_checkpoint=true", "--gradient_accumulation_steps=2")
    assert_equal_up_to_rounding(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, method",
    [(ASTTrainer, "_save_optimizer_and_scheduler"), (ASTTrainer, "_save_rng_state"), (EpochRecord, "save_state")]
    + [(RunningAverage, "save")],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("limit", [[], ["--save_total_limit=1"]], ids=["all kept", "one kept"])
def test_half_a_checkpoint_is_not_resumed_from(uninterrupted, tmp_path, monkeypatch, owner, method, limit):
    """Stopped while the second epoch, the first to be averaged, was being saved."""
    folder, argv = uninterrupted
    argv = [*argv, "--save_strategy=epoch", *limit, "--output_dir", tmp_path]
    interrupt(monkeypatch, owner, method, 1 if owner is RunningAverage else 2, *argv)
    assert not (tmp_path / "checkpoint-6").exists()  # only a whole one gets its name
    run(*argv, "--resume_from_checkpoint=true")
    assert_identical(tmp_path, folder)


@pytest.mark.slow
def test_resumed_run_reports_the_training_loss_of_all_its_updates(uninterrupted, tmp_path, monkeypatch):
    folder, argv = uninterrupted
    argv = [*argv, "--save_strategy=steps", "--save_steps=2", "--output_dir", tmp_path]
    interrupt(monkeypatch, ASTTrainer, "training_step", 9, *argv)
    assert run(*argv, "--resume_from_checkpoint=true")["train_loss"] == pytest.approx(reported(folder)["train_loss"])
