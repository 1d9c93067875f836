"""The main job, by the script's own `main`: sounds in, a classifier out that anybody can load, and no surprises."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from modeling_ast import load_waveform
from modeling_ast.data import synthetic
from modeling_ast.data.synthetic import CLASSES, CLIPS_PER_CLASS, generate_clip, synthetic_folder
from modeling_ast.training.recipes import RecipeError
from modeling_ast.training.trainer import ASTTrainer

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "run_audio_classification.py"
DEMO = ROOT / "configs" / "demo.yaml"
main = runpy.run_path(str(SCRIPT))["main"]

NETWORK = ["--hidden_size=32", "--num_hidden_layers=1", "--num_attention_heads=2", "--intermediate_size=64"]
# Three epochs of five steps, each of them logged.
SMALL = [*NETWORK, "--num_train_epochs=3", "--max_train_samples=80", "--per_device_train_batch_size=16"]
SMALL += ["--learning_rate=3e-3", "--logging_strategy=steps", "--logging_steps=1", "--disable_tqdm=true"]
STEPS_PER_EPOCH = 5


@pytest.fixture(scope="module", autouse=True)
def few_sounds(tmp_path_factory, one_thread):
    """A cache of its own, with 12 of the 90 clips a class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(synthetic, "CLIPS_PER_CLASS", {"train": 8, "validation": 2, "test": 2})
        yield


@pytest.fixture
def all_sounds(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("full")))
    monkeypatch.setattr(synthetic, "CLIPS_PER_CLASS", CLIPS_PER_CLASS)


def run(*argv) -> dict[str, float]:
    return main([str(argument) for argument in argv])


@pytest.fixture(scope="module")
def demo(tmp_path_factory, few_sounds) -> tuple[Path, dict[str, float]]:
    """The folder and the metrics of a small run."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return folder, run(DEMO, *SMALL, "--num_train_epochs=10", "--output_dir", folder)


def held_out_clips() -> list[Path]:
    folder = synthetic_folder()
    return [folder / line for line in (folder / "testing_list.txt").read_text().split()]


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def metrics_of(results: dict[str, float]) -> dict[str, float]:
    """Without what a clock says."""
    return {key: value for key, value in results.items() if not key.endswith(("_runtime", "_per_second"))}


def assert_same_weights(folder: Path, other: Path) -> None:
    weights, expected = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name


# What a run leaves


def test_loss_falls(demo):
    folder, _ = demo
    history = losses(folder)
    assert len(history) == 10 * STEPS_PER_EPOCH
    assert np.mean(history[-STEPS_PER_EPOCH:]) < 0.85 * np.mean(history[:STEPS_PER_EPOCH])


def test_everything_is_saved(demo):
    folder, results = demo
    files = "model.safetensors config.json preprocessor_config.json recipe.yaml README.md trainer_state.json"
    assert not [name for name in files.split() if not (folder / name).is_file()]
    assert (folder / "example.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((folder / "all_results.json").read_text())
    assert metrics_of(results).items() <= saved.items()
    assert {"train_loss", "validation_accuracy", "test_accuracy", "test_baseline_accuracy"} <= saved.keys()
    assert [path.name for path in folder.glob("checkpoint-*")] and not list(folder.parent.glob("*.unfinished"))


def test_folder_reloads_by_the_auto_classes_with_the_outputs_of_the_run(demo):
    folder, results = demo
    model = AutoModelForAudioClassification.from_pretrained(folder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert (extractor.mean, extractor.std, extractor.max_length) == (-7.33, 4.83, 96)
    clips = held_out_clips()
    labels = torch.tensor([model.config.label2id[clip.parent.name] for clip in clips])
    waveforms = [load_waveform(clip) for clip in clips]
    inputs = extractor([waveform - waveform.mean() for waveform in waveforms], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, labels=labels)
    assert outputs.loss.item() == pytest.approx(results["test_loss"], abs=1e-5)
    assert (outputs.logits.argmax(-1) == labels).float().mean() == pytest.approx(results["test_accuracy"])


def test_pipeline_gives_the_scores_of_the_model_called_by_hand(demo):
    folder, _ = demo
    waveform = load_waveform(held_out_clips()[0])
    tags = pipeline("audio-classification", model=str(folder))(
        {"raw": waveform.numpy(), "sampling_rate": 16000}, top_k=None
    )
    model = AutoModelForAudioClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**AutoFeatureExtractor.from_pretrained(folder)(waveform, return_tensors="pt")).logits[0]
    scores = {tag["label"]: tag["score"] for tag in tags}
    assert [scores[name] for name in CLASSES] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-6)


def test_model_card_says_what_was_reached(demo):
    folder, results = demo
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "audio-classification"
    (reported,) = [entry for entry in card.data.eval_results if entry.metric_type == "accuracy"]
    assert (reported.metric_value, reported.dataset_split) == (results["test_accuracy"], "test")
    assert reported.dataset_name == "synthetic" and card.data.model_name == "demo"
    assert f"| test | accuracy | {results['test_accuracy']:.4f} |" in card.text
    assert all(name in card.text for name in CLASSES)
    assert (folder / "recipe.yaml").read_text().strip() in card.text


@pytest.mark.slow
def test_saved_recipe_gives_the_same_run_again(demo, tmp_path):
    folder, results = demo
    assert metrics_of(run(folder / "recipe.yaml", "--output_dir", tmp_path)) == metrics_of(results)
    assert_same_weights(tmp_path, folder)


def test_evaluation_alone_gives_the_same_metrics(demo, tmp_path):
    folder, results = demo
    argv = [
        "--model_name_or_path",
        folder,
        "--dataset_name",
        "synthetic",
        "--do_train",
        "false",
        "--dataloader_pin_memory=false",
    ]
    again = run(*argv, "--output_dir", tmp_path)
    assert again["test_accuracy"] == results["test_accuracy"]
    assert again["validation_accuracy"] == results["validation_accuracy"]
    assert again["test_loss"] == pytest.approx(results["test_loss"], abs=1e-5)
    assert {path.name for path in tmp_path.iterdir()} >= {"test_results.json", "example.png"}
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "README.md").exists()


def test_sounds_can_be_read_by_workers(demo, tmp_path):
    """Without augmentation, which every worker draws for itself, to the same losses."""
    argv = [*SMALL, "--num_train_epochs=1", "--max_train_samples=48", "--roll_frames=0", "--linear_baseline=false"]
    run(DEMO, *argv, "--output_dir", tmp_path / "none")
    run(DEMO, *argv, "--output_dir", tmp_path / "two", "--dataloader_num_workers=2")
    assert losses(tmp_path / "two") == losses(tmp_path / "none")


# Runs in one folder


@pytest.fixture
def cautious(tmp_path) -> Path:
    """The demo's recipe without `overwrite_output_dir`."""
    lines = [line for line in DEMO.read_text().splitlines() if "overwrite_output_dir" not in line]
    (tmp_path / "cautious.yaml").write_text("\n".join(lines))
    return tmp_path / "cautious.yaml"


def test_second_run_in_a_folder_is_refused_unless_asked_for(cautious, tmp_path):
    argv = [cautious, *SMALL, "--num_train_epochs=1", "--max_train_samples=32", "--output_dir", tmp_path / "run"]
    run(*argv)
    before = load_file(tmp_path / "run" / "model.safetensors")
    with pytest.raises(
        RecipeError, match="run holds a run already.*resume_from_checkpoint true.*overwrite_output_dir"
    ):
        run(*argv, "--seed=1")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    (tmp_path / "run" / "checkpoint-99").mkdir()  # longer than the next run
    run(*argv, "--seed=1", "--overwrite_output_dir")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_run_that_found_no_data_is_not_in_the_way_of_the_next(cautious, tmp_path):
    argv = [cautious, *SMALL, "--num_train_epochs=1", "--max_train_samples=16", "--output_dir", tmp_path / "run"]
    with pytest.raises(ValueError, match="no such file or folder"):
        run(*argv, "--dataset_name", tmp_path / "mistyped")
    assert "test_accuracy" in run(*argv)


MASKED = ["--freq_mask_bins=24", "--time_mask_frames=24", "--load_best_model_at_end=false"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, few_sounds) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(DEMO, *SMALL, *MASKED, "--output_dir", folder)
    return folder


@pytest.mark.parametrize("step", [3, STEPS_PER_EPOCH + 3, 2 * STEPS_PER_EPOCH + 1])
def test_interrupted_run_resumes_as_if_nothing_had_been(uninterrupted, tmp_path, monkeypatch, step):
    """With roll and masks, whose draws must go on where they were; before the first checkpoint, and after."""
    train, taken = ASTTrainer.training_step, []

    def training_step(*args, **kwargs):
        taken.append(1)
        if len(taken) == step:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    argv = [DEMO, *SMALL, *MASKED, "--output_dir", tmp_path]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ASTTrainer, "training_step", training_step)
        run(*argv)
    assert not (tmp_path / "model.safetensors").exists()
    torch.rand(7)  # whatever the next process has drawn
    run(*argv, "--resume_from_checkpoint", "true")
    assert losses(tmp_path) == losses(uninterrupted)
    assert_same_weights(tmp_path, uninterrupted)


# Other data


def test_several_labels_a_clip_from_a_csv_file(tmp_path):
    kinds, generator = ["beeps", "chirp_up", "drone", "steam"], torch.Generator().manual_seed(0)
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "tags", "part"])
        for number in range(48):
            names = [kinds[number % 4], kinds[(number + 1 + number // 4 % 3) % 4]]
            sound = sum(generate_clip(name, generator) for name in names) / 2
            soundfile.write(tmp_path / f"{number}.wav", sound.numpy(), 16000)
            part = ["train", "train", "val", "test"][number // 12]
            table.writerow([f"{number}.wav", ";".join(names), part])
    columns = ["--audio_column_name=name", "--label_column_name=tags", "--split_column_name=part"]
    argv = [*columns, "--label_separator=;", "--problem_type=multi_label_classification"]
    argv += ["--metric_for_best_model=mAP", "--output_dir", tmp_path / "run"]
    results = run(DEMO, *SMALL, "--dataset_name", tmp_path / "clips.csv", *argv)
    assert 0.4 < results["test_mAP"] <= 1 and 0.5 < results["test_baseline_mAP"] <= 1
    assert results["test_classes_without_positives"] == 0
    assert np.mean(losses(tmp_path / "run")[:3]) > np.mean(losses(tmp_path / "run")[-3:])
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert [entry.metric_value for entry in card.data.eval_results] == [results["test_mAP"]]
    tags = pipeline("audio-classification", model=str(tmp_path / "run"))(
        {"raw": load_waveform(tmp_path / "0.wav").numpy(), "sampling_rate": 16000}, top_k=None
    )
    assert sorted(tag["label"] for tag in tags) == kinds
    assert abs(sum(tag["score"] for tag in tags) - 1) > 1e-3  # each on its own


def test_run_starts_from_the_model_of_another_run(demo, tmp_path):
    """With other sounds to tell apart, on longer clips."""
    folder = tmp_path / "sounds"
    for kind in ("bell", "clicks"):
        (folder / kind).mkdir(parents=True)
        for number in range(6):
            clip = generate_clip(kind, torch.Generator().manual_seed(number)).repeat(2)
            soundfile.write(folder / kind / f"{number}.wav", clip.numpy(), 16000)
    argv = ["--dataset_name", folder, "--validation_fraction=0.34", "--max_length=192", "--do_train"]
    argv += ["--dataloader_pin_memory=false"]
    results = run("--model_name_or_path", demo[0], *argv, "--num_train_epochs=1", "--output_dir", tmp_path / "run")
    assert "validation_accuracy" in results and "test_accuracy" not in results
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "bell", 1: "clicks"} and model.config.max_length == 192
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "run").mean == -7.33
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert [entry.dataset_split for entry in card.data.eval_results] == ["validation"]


# What goes wrong is said in one line


def command_line(monkeypatch, *argv) -> str:
    """What the script ends with, in this process."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert isinstance(stop.value.code, str)  # which Python prints to stderr, with exit code 1
    return stop.value.code


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--num_train_epoch", "3"], "Unknown: --num_train_epoch 3"),
        (["--eval_strategy", "sometimes"], "sometimes"),
        (["--freq_mask_bins=-1"], "freq_mask_bins"),
        (["--dataset_name", "/nowhere"], "/nowhere: no such file or folder"),
        (["--dataset_name", "/nowhere.csv"], "/nowhere.csv: no such file"),
        (["--dataset_name", "nobody/nothing"], "nobody/nothing: no such file or folder"),
        (["--eval_fold", "1"], "fold_column_name"),
        (["--metric_for_best_model", "recall"], "Expected metric_for_best_model to be accuracy or loss"),
        (["--hidden_size=33"], "num_attention_heads"),
        (["--max_length=8"], "max_length"),
        (["--model_name_or_path", "nobody/nothing"], "nobody/nothing"),
        (["--std", "0"], "Expected std above 0"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_said_without_a_traceback(argv, words, monkeypatch, tmp_path):
    said = command_line(monkeypatch, DEMO, *SMALL, "--output_dir", tmp_path, *argv)
    assert said.startswith("error: ") and re.search(words, said)
    assert "Traceback" not in said and "\n" not in said.strip()


def test_other_sizes_than_the_model_has_are_refused(demo, monkeypatch, tmp_path):
    argv = ["--model_name_or_path", demo[0], "--output_dir", tmp_path, "--hidden_size", "48"]
    said = command_line(monkeypatch, DEMO, *SMALL, *argv)
    assert "Expected hidden_size" in said and "got 48" in said


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_sound_file_ends_in_one_line_with_its_path(workers, monkeypatch, tmp_path):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(8):
            clip = generate_clip("noise", torch.Generator().manual_seed(number))
            soundfile.write(tmp_path / kind / f"{number}.wav", clip.numpy(), 16000)
    (tmp_path / "validation_list.txt").write_text("a/0.wav\nb/1.wav\n")
    (tmp_path / "b" / "5.wav").write_text("no sound at all")
    argv = ["--dataset_name", tmp_path, "--output_dir", tmp_path / "run", "--dataloader_num_workers", workers]
    said = command_line(monkeypatch, DEMO, *SMALL, *argv)
    assert said.startswith(f"error: {tmp_path / 'b' / '5.wav'}: cannot be decoded")
    assert "\n" not in said.strip()


@pytest.mark.slow
def test_overwriting_removes_what_the_old_run_left_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    (folder / "mine").mkdir(parents=True)
    argv = [DEMO, *SMALL, "--num_train_epochs=1", "--output_dir", folder]
    run(*argv)
    assert (folder / "mine").is_dir()
    (folder / "checkpoint-99999").mkdir()
    (folder / "old_results.json").write_text("{}")
    run(*argv)
    assert (folder / "mine").is_dir()
    assert not (folder / "checkpoint-99999").exists() and not (folder / "old_results.json").exists()


@pytest.mark.slow
def test_upload_keeps_the_model_card(tmp_path, monkeypatch):
    uploaded = {}
    monkeypatch.setattr("transformers.Trainer.init_hf_repo", lambda self, *args, **options: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: uploaded.update(options))
    trainer_folder = tmp_path / "run"
    monkeypatch.setattr(ASTTrainer, "hub_model_id", "me/run", raising=False)
    run(DEMO, *SMALL, "--num_train_epochs=1", "--save_strategy=no", "--load_best_model_at_end=false",
        "--output_dir", trainer_folder, "--push_to_hub=true")  # fmt: skip
    assert uploaded["folder_path"] == str(trainer_folder)
    assert "An Audio Spectrogram Transformer" in (trainer_folder / "README.md").read_text()


def in_a_fresh_process(*argv, **environment) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [environment.pop("first", None), str(ROOT)]))
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.mark.slow
def test_recipe_that_is_not_there_ends_in_one_line_and_exit_code_1(tmp_path):
    process = in_a_fresh_process(SCRIPT, tmp_path / "nope.yaml")
    assert process.returncode == 1
    assert process.stderr == f"error: {tmp_path / 'nope.yaml'}: cannot be read (No such file or directory).\n"
    assert process.stdout == ""


@pytest.mark.slow
def test_torchaudio_that_cannot_be_loaded_is_one_sentence(tmp_path):
    """What PyPI's torchaudio does beside a torch built for another CUDA."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise RuntimeError('built for CUDA 99')\n")
    process = in_a_fresh_process(SCRIPT, DEMO, first=str(tmp_path))
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "torchaudio" in line and "cannot be loaded with torch" in line and "pip install" in line


# Slow


@pytest.mark.slow
def test_demo_reaches_what_its_recipe_says_and_names_the_right_sounds(all_sounds, tmp_path):
    results = run(DEMO, "--output_dir", tmp_path)
    assert results["test_accuracy"] >= 0.95
    clips = held_out_clips()
    assert len(clips) == 200
    inputs = [{"raw": load_waveform(clip).numpy(), "sampling_rate": 16000} for clip in clips]
    tags = pipeline("audio-classification", model=str(tmp_path))(inputs, top_k=1)
    right = [tag["label"] == clip.parent.name for (tag,), clip in zip(tags, clips)]
    assert np.mean(right) == pytest.approx(results["test_accuracy"])


@pytest.mark.slow
def test_two_processes_train_one_model(all_sounds, tmp_path):
    argv = ["--num_train_epochs=2", "--use_cpu=true", "--ddp_backend=gloo", "--output_dir", tmp_path / "run"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", SCRIPT, DEMO, *argv]
    process = in_a_fresh_process(*launch, OMP_NUM_THREADS="1")
    assert process.returncode == 0, process.stderr[-3000:]
    folder = tmp_path / "run"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    results = json.loads((folder / "all_results.json").read_text())
    assert {"train_loss", "validation_accuracy", "test_accuracy", "test_baseline_accuracy"} <= results.keys()
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 2 * 10  # 600 clips in batches of 2 x 32
    assert (folder / "example.png").is_file() and (folder / "README.md").is_file()
    assert AutoModelForAudioClassification.from_pretrained(folder).config.num_labels == 10
