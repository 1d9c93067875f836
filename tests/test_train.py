"""The main job, by the script's own `main`: sounds in, a classifier out that anybody can load, and no surprises."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import make_tiny_config, random_model
from helpers import end_of, few_synthetic_sounds, leave_out_pictures, read_csv
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
from transformers.integrations import integration_utils

from modeling_ast import ASTFeatureExtractor, load_waveform
from modeling_ast.commands import train as script
from modeling_ast.data import synthetic
from modeling_ast.data.decoding import decode
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.sources import load_splits
from modeling_ast.data.synthetic import CLASSES, CLIPS_PER_CLASS, generate_clip, synthetic_folder
from modeling_ast.inference import result_plots
from modeling_ast.modeling_ast import ASTPlainLayer
from modeling_ast.training.arguments import parse_arguments
from modeling_ast.training.output_dir import prepare_output_dir
from modeling_ast.training.sampling import sort_by_length

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "run_audio_classification.py"
DEMO = ROOT / "configs" / "demo.yaml"

NETWORK = ["--hidden_size=32", "--num_hidden_layers=1", "--num_attention_heads=2", "--intermediate_size=64"]
# Epochs of five steps, each of them logged.
SMALL = [*NETWORK, "--max_train_samples=80", "--per_device_train_batch_size=16", "--learning_rate=3e-3"]
SMALL += ["--logging_strategy=steps", "--logging_steps=1", "--disable_tqdm=true", "--use_cpu=true"]
SMALL += ["--linear_baseline=false"]
NUM_EPOCHS, STEPS_PER_EPOCH = 6, 5


few_sounds = few_synthetic_sounds(train=8, validation=2, test=2)


@pytest.fixture
def all_sounds(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("full")))
    monkeypatch.setattr(synthetic, "CLIPS_PER_CLASS", CLIPS_PER_CLASS)


def run(*argv) -> dict[str, float]:
    return script.main([str(argument) for argument in argv])


@pytest.fixture(scope="module")
def demo(tmp_path_factory, few_sounds) -> tuple[Path, dict[str, float]]:
    """The folder and the metrics of a small run."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    argv = [f"--num_train_epochs={NUM_EPOCHS}", f"--weight_average_start={NUM_EPOCHS - 1}", "--output_dir", folder]
    return folder, run(DEMO, *SMALL, "--linear_baseline=true", *argv)


@pytest.fixture(scope="module")
def plain(demo, tmp_path_factory) -> tuple[Path, list]:
    """Folder and arguments of an epoch that goes on from there, to compare others with."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    argv = [DEMO, *SMALL, "--model_name_or_path", demo[0], "--num_train_epochs=1"]
    argv += ["--lr_scheduler_type=constant", "--warmup_steps=0", "--learning_rate=1e-3", "--weight_decay=0"]
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        run(*argv, "--output_dir", folder)
    return folder, argv


def held_out_clips() -> list[Path]:
    folder = synthetic_folder()
    return [folder / line for line in (folder / "testing_list.txt").read_text().split()]


def history_of(folder: Path) -> list[dict[str, float]]:
    """What was logged of each update."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in history_of(folder)]


def metrics_of(results: dict[str, float]) -> dict[str, float]:
    """Without what a clock says."""
    return {key: value for key, value in results.items() if not key.endswith(("_runtime", "_per_second", "_time"))}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(folder: Path, other: Path) -> set[str]:
    """Names of the weights that are not the same bit for bit."""
    actual, expected = weights(folder), weights(other)
    assert actual.keys() == expected.keys()
    return {name for name in expected if not torch.equal(actual[name], expected[name])}


# What a run leaves


def test_loss_falls(demo):
    folder, _ = demo
    history = losses(folder)
    assert len(history) == NUM_EPOCHS * STEPS_PER_EPOCH
    assert np.mean(history[-STEPS_PER_EPOCH:]) < 0.85 * np.mean(history[:STEPS_PER_EPOCH])


def test_everything_is_saved(demo):
    folder, results = demo
    files = "model.safetensors config.json preprocessor_config.json recipe.yaml README.md trainer_state.json"
    assert not [name for name in files.split() if not (folder / name).is_file()]
    pictures = ["example", "training_curves"]
    for split in ("validation", "test"):
        pictures += [
            f"{part}{kind}_{split}" for part in ("", "weight_average/") for kind in ("per_class", "confusion")
        ]
    for name in pictures:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    saved = json.loads((folder / "all_results.json").read_text())
    assert metrics_of(results).items() <= saved.items()
    assert {"train_loss", "validation_accuracy", "test_accuracy", "test_baseline_accuracy"} <= saved.keys()
    assert saved["epoch"] == NUM_EPOCHS
    assert [path.name for path in folder.glob("checkpoint-*")] and not list(folder.parent.glob("*.unfinished"))


def test_results_have_a_line_an_epoch(demo):
    folder, results = demo
    rows = read_csv(folder / "results.csv")
    metrics = ["accuracy", "mAP", "mAUC", "d_prime", "macro_f1", "micro_f1"]
    columns = ["epoch", "learning_rate", "train_loss", "validation_loss", *metrics]
    assert list(rows[0]) == [*columns, *(f"cum_{name}" for name in metrics)]
    assert [float(row["epoch"]) for row in rows] == list(range(1, NUM_EPOCHS + 1))
    history = np.reshape(losses(folder), (NUM_EPOCHS, STEPS_PER_EPOCH))
    assert [float(row["train_loss"]) for row in rows] == pytest.approx(history.mean(1).tolist(), abs=1e-4)
    assert [rows[0][f"cum_{name}"] for name in metrics] == [rows[0][name] for name in metrics]
    assert any(row["cum_mAP"] != row["mAP"] for row in rows[1:])
    rates = [float(row["learning_rate"]) for row in rows]
    logged = [entry["learning_rate"] for entry in history_of(folder)]
    assert rates == logged[STEPS_PER_EPOCH - 1 :: STEPS_PER_EPOCH] and rates[-1] < rates[0]
    # The model that is kept is the best of them, as the recipe wants it.
    assert results["validation_accuracy"] == max(float(row["accuracy"]) for row in rows)


def test_classes_have_a_table_in_the_order_of_the_labels(demo):
    folder, results = demo
    for part, prefix in (("", ""), ("weight_average", "average_")):
        for split in ("validation", "test"):
            rows = read_csv(folder / part / f"per_class_{split}.csv")
            assert [row["label"] for row in rows] == list(CLASSES)
            assert {row["positives"] for row in rows} == {"2"}
            assert np.mean([float(row["AP"]) for row in rows]) == pytest.approx(results[f"{prefix}{split}_mAP"])


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
    ends = f"({results['test_accuracy_low']:.4f} to {results['test_accuracy_high']:.4f})"
    assert f"| test | accuracy | {results['test_accuracy']:.4f} {ends} |" in card.text
    assert all(name in card.text for name in CLASSES)
    assert (folder / "recipe.yaml").read_text().strip() in card.text


@pytest.mark.slow
def test_saved_recipe_gives_the_same_run_again(demo, tmp_path):
    folder, results = demo
    assert metrics_of(run(folder / "recipe.yaml", "--output_dir", tmp_path)) == metrics_of(results)
    assert not changed(tmp_path, folder)


@pytest.mark.usefixtures("no_pictures")
def test_evaluation_alone_gives_the_same_metrics_and_leaves_those_of_the_run(demo, tmp_path):
    """In batches that do not come out even."""
    folder, results = demo
    own = shutil.copytree(folder, tmp_path / "run")
    argv = [
        "--model_name_or_path",
        folder,
        "--dataset_name",
        "synthetic",
        "--do_train",
        "false",
        "--dataloader_pin_memory=false",
        "--per_device_eval_batch_size=3",
    ]
    again = run(*argv, "--output_dir", own)
    assert again["test_accuracy"] == results["test_accuracy"]
    assert again["validation_accuracy"] == results["validation_accuracy"]
    assert again["test_loss"] == pytest.approx(results["test_loss"], abs=1e-5)
    evaluation = own / "evaluation"
    assert {path.name for path in evaluation.iterdir()} >= {"test_results.json", "per_class_test.csv"}
    assert not (evaluation / "model.safetensors").exists() and not (evaluation / "README.md").exists()
    files = [path for path in folder.iterdir() if path.is_file()]
    assert all((own / path.name).read_bytes() == path.read_bytes() for path in files)


def test_pictures_that_fail_do_not_end_a_run(demo, tmp_path, monkeypatch, caplog):
    def fail(*args, **options):
        raise ValueError("no room")

    for module, name in (
        (result_plots, "plot_per_class"),
        (result_plots, "plot_confusion_matrix"),
        (script, "plot_tags"),
    ):
        monkeypatch.setattr(module, name, fail)
    argv = ["--model_name_or_path", demo[0], "--dataset_name=synthetic", "--do_train=false", "--use_cpu=true"]
    results = run(*argv, "--dataloader_pin_memory=false", "--output_dir", tmp_path)
    assert results["test_accuracy"] == demo[1]["test_accuracy"]
    assert {path.name for path in tmp_path.iterdir()} >= {"test_results.json", "per_class_test.csv"}
    told = [record.getMessage() for record in caplog.records if "cannot be drawn" in record.getMessage()]
    pictures = [f"{kind}_{split}" for split in ("validation", "test") for kind in ("per_class", "confusion")]
    assert told == [
        f"{tmp_path / name}.png cannot be drawn (no room); all else goes on." for name in (*pictures, "example")
    ]


def test_the_example_is_a_clip_of_medium_length_with_its_label(tmp_path, monkeypatch):
    """With free lengths the held-out rows are sorted by them; the first one was the shortest."""
    drawn, kinds = [], sorted(CLASSES[:2])
    for kind in kinds:
        (tmp_path / kind).mkdir()
        for number in range(8):
            sound = generate_clip(kind, torch.Generator().manual_seed(number))[: 4000 + 800 * number]
            soundfile.write(tmp_path / kind / f"{kind}_{number}.wav", sound.numpy(), 16000)
    splits = load_splits(str(tmp_path), validation_fraction=0.5)
    splits.validation = decode(sort_by_length(splits.validation), 16000)
    lengths = [len(row["waveform"]) for row in splits.validation]
    monkeypatch.setattr(script, "plot_tags", lambda *given: drawn.append(given))
    model = random_model(make_tiny_config(num_labels=2))
    script.tag_example(model, tmp_path, splits, ASTFeatureExtractor(num_mel_bins=32, padding="longest"))
    ((waveform, _, _, path, title, labels, label_names),) = drawn
    assert len(waveform) == lengths[len(lengths) // 2] > lengths[0] and path == tmp_path / "example.png"
    assert label_names == kinds and title.startswith(f"{labels[0]}_")
    assert len(load_waveform(tmp_path / labels[0] / title)) == len(waveform)


@pytest.mark.slow
def test_labels_with_dollars_are_trained_and_drawn(tmp_path, caplog):
    """Between two of them matplotlib saw mathematics, after all of the training."""
    kinds, generator = ["US$$ one $1^", "US$$ two $1^", "$\\frac{1}"], torch.Generator().manual_seed(0)
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audio", "label", "split"])
        for number in range(24):
            name = f"$1^_{number}.wav"
            soundfile.write(tmp_path / name, generate_clip(CLASSES[number % 3], generator).numpy(), 16000)
            table.writerow([name, kinds[number % 3], ["train", "train", "validation", "test"][number // 6]])
    argv = ["--dataset_name", tmp_path / "clips.csv", "--split_column_name=split", "--num_train_epochs=2"]
    run(DEMO, *SMALL, *argv, "--output_dir", tmp_path / "$run^")
    pictures = {f"{kind}_{split}" for kind in ("per_class", "confusion") for split in ("validation", "test")}
    assert {path.stem for path in (tmp_path / "$run^").glob("*.png")} == {*pictures, "example", "training_curves"}
    assert not [record for record in caplog.records if "cannot be drawn" in record.getMessage()]


# Ways to train


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_bfloat16_trains_nearly_as_float32(plain, tmp_path):
    folder, argv = plain
    run(*argv, "--bf16=true", "--output_dir", tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(folder), rel=0.02) and losses(tmp_path) != losses(folder)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.slow
@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointed_layers_run_twice_to_the_same_end(plain, tmp_path, monkeypatch, key):
    folder, argv = plain
    mlp, training = ASTPlainLayer.mlp, []

    def counted(self, hidden_states):
        training.append(self.training)
        return mlp(self, hidden_states)

    monkeypatch.setattr(ASTPlainLayer, "mlp", counted)
    run(*argv, f"--{key}=true", "--output_dir", tmp_path)
    assert sum(training) == 2 * STEPS_PER_EPOCH
    assert losses(tmp_path) == losses(folder) and not changed(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_accumulated_batches_are_counted_and_said(plain, tmp_path, caplog):
    folder, argv = plain
    argv = [word for word in argv if not str(word).startswith("--per_device_train_batch_size")]
    (tmp_path / "recipe.yaml").write_text(DEMO.read_text().replace("per_device_train_batch_size: 32\n", ""))
    argv = [tmp_path / "recipe.yaml", *argv[1:], "--global_batch_size=16", "--gradient_accumulation_steps=2"]
    with caplog.at_level("INFO"):
        run(*argv, "--output_dir", tmp_path / "run")
    assert "16 clips an update: 8 on each of 1 device(s), 2 accumulation step(s)" in caplog.text
    assert losses(tmp_path / "run") == pytest.approx(losses(folder), rel=1e-4)
    saved = (tmp_path / "run" / "recipe.yaml").read_text()  # runs on another number of devices too
    assert "global_batch_size: 16" in saved and "per_device_train_batch_size" not in saved


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_model_trains_as_any_other(plain, tmp_path):
    folder, argv = plain
    torch._dynamo.reset()
    run(*argv, "--torch_compile=true", "--output_dir", tmp_path)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert losses(tmp_path) == pytest.approx(losses(folder), rel=1e-3)
    assert weights(tmp_path).keys() == weights(folder).keys()


@pytest.mark.usefixtures("no_pictures")
def test_frozen_backbone_stays_and_its_head_learns(demo, plain, tmp_path):
    _, argv = plain
    run(*argv, "--freeze_backbone=true", "--output_dir", tmp_path)
    assert changed(tmp_path, demo[0]) == {name for name in weights(tmp_path) if name.startswith("classifier.")}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("decoupled", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_head_learns_at_a_multiple_of_the_rate(demo, plain, tmp_path, decoupled):
    """The first step of Adam is as long as the rate, whatever the gradient."""
    _, argv = plain
    run(*argv, "--head_learning_rate_factor=5", "--max_steps=1", f"--decoupled_weight_decay={decoupled}",
        "--output_dir", tmp_path)  # fmt: skip
    before, after = weights(demo[0]), weights(tmp_path)
    for name in ("classifier.dense.bias", "classifier.layernorm.weight"):
        assert (after[name] - before[name]).abs().median().item() == pytest.approx(5e-3, rel=1e-2)
    for name in ("layernorm.weight", "encoder.layer.0.output.dense.weight"):
        name = f"audio_spectrogram_transformer.{name}"
        assert (after[name] - before[name]).abs().median().item() == pytest.approx(1e-3, rel=1e-2)


# The average of the weights


def test_average_of_the_weights_loads_like_any_model(demo):
    """Here, in stock Transformers, and in a pipeline."""
    folder, results = demo
    clips = held_out_clips()
    waveforms = [load_waveform(clip) for clip in clips]
    extractor = AutoFeatureExtractor.from_pretrained(folder / "weight_average")
    inputs = extractor([waveform - waveform.mean() for waveform in waveforms], return_tensors="pt")
    with torch.no_grad():
        logits = AutoModelForAudioClassification.from_pretrained(folder / "weight_average")(**inputs).logits
        stock = transformers.ASTForAudioClassification.from_pretrained(folder / "weight_average")(**inputs).logits
    torch.testing.assert_close(stock, logits, rtol=0, atol=5e-5)
    labels = torch.tensor([CLASSES.index(clip.parent.name) for clip in clips])
    assert (logits.argmax(-1) == labels).float().mean() == pytest.approx(results["average_test_accuracy"])
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(results["average_test_loss"])
    (tag,) = pipeline("audio-classification", model=str(folder / "weight_average"))(waveforms[0].numpy(), top_k=1)
    assert tag["label"] == CLASSES[logits[0].argmax()]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_average_is_the_mean_of_the_epochs(plain, tmp_path):
    """Of the second to the third of four, though their checkpoints may be deleted."""
    _, argv = plain
    argv = [*argv, "--num_train_epochs=4", "--max_train_samples=16", "--weight_average_start=2"]
    argv += ["--weight_average_end=3", "--load_best_model_at_end=false", "--save_total_limit=4"]
    run(*argv, "--output_dir", tmp_path)
    second, third = (weights(tmp_path / f"checkpoint-{epoch}") for epoch in (2, 3))
    for name, mean in weights(tmp_path / "weight_average").items():
        torch.testing.assert_close(mean, (second[name] + third[name]) / 2, msg=name)
    assert changed(tmp_path / "weight_average", tmp_path / "checkpoint-3")


# Runs in one folder


@pytest.fixture
def cautious(tmp_path) -> Path:
    """The demo's recipe without `overwrite_output_dir`."""
    lines = [line for line in DEMO.read_text().splitlines() if "overwrite_output_dir" not in line]
    (tmp_path / "cautious.yaml").write_text("\n".join(lines))
    return tmp_path / "cautious.yaml"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_second_run_in_a_folder_is_refused_unless_asked_for(cautious, tmp_path):
    argv = [cautious, *SMALL, "--num_train_epochs=1", "--max_train_samples=32", "--output_dir", tmp_path / "run"]
    run(*argv)
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    with pytest.raises(
        RecipeError, match="run holds a run already.*resume_from_checkpoint true.*overwrite_output_dir"
    ):
        run(*argv, "--seed=1")
    assert not changed(tmp_path / "run", tmp_path / "before")
    (tmp_path / "run" / "checkpoint-99").mkdir()  # longer than the next run
    run(*argv, "--seed=1", "--overwrite_output_dir")
    assert changed(tmp_path / "run", tmp_path / "before")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_run_that_found_no_data_is_not_in_the_way_of_the_next(cautious, tmp_path):
    argv = [cautious, *SMALL, "--num_train_epochs=1", "--max_train_samples=16", "--output_dir", tmp_path / "run"]
    with pytest.raises(ValueError, match="no such file or folder"):
        run(*argv, "--dataset_name", tmp_path / "mistyped")
    assert "test_accuracy" in run(*argv)


# Other data


@pytest.mark.usefixtures("no_pictures")
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
    argv += [
        "--num_train_epochs=3",
        "--linear_baseline=true",
        "--metric_for_best_model=mAP",
        "--output_dir",
        tmp_path / "run",
    ]
    results = run(DEMO, *SMALL, "--dataset_name", tmp_path / "clips.csv", *argv)
    assert 0.4 < results["test_mAP"] <= 1 and 0.5 < results["test_baseline_mAP"] <= 1
    assert results["test_classes_without_positives"] == 0
    assert np.mean(losses(tmp_path / "run")[:3]) > np.mean(losses(tmp_path / "run")[-3:])
    card = ModelCard.load(tmp_path / "run" / "README.md")
    reported = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert reported["mAP"] == results["test_mAP"] and "Accuracy" not in reported
    tags = pipeline("audio-classification", model=str(tmp_path / "run"))(
        {"raw": load_waveform(tmp_path / "0.wav").numpy(), "sampling_rate": 16000}, top_k=None
    )
    assert sorted(tag["label"] for tag in tags) == kinds
    assert abs(sum(tag["score"] for tag in tags) - 1) > 1e-3  # each on its own


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
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
    assert {entry.dataset_split for entry in card.data.eval_results} == {"validation"}


# What goes wrong is said in one line


def command_line(monkeypatch, *argv) -> str:
    """What the command ends with, in this process."""
    status, said = end_of("train", *argv)
    assert status == 2
    return said


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
        (
            ["--metric_for_best_model", "recall"],
            "Expected metric_for_best_model to be one of loss, accuracy, mAP,.*recall",
        ),
        (
            ["--global_batch_size=15", "--gradient_accumulation_steps=2"],
            r"global_batch_size 15 cannot be divided by 1 device\(s\) x 2 step\(s\) of accumulation",
        ),
        (["--dataloader_drop_last", "--max_train_samples=8"], "Expected at least one batch of 16 clips, got 8"),
        (["--learning_rate=1e30"], "[Dd]id the training diverge"),
        (
            ["--weight_average_start=3", "--num_train_epochs=2"],
            "Expected weight averaging over epochs of 1 to 2, got 3",
        ),
        (["--mixup_probability=1.5"], r"Expected mixup_probability in \[0, 1\], got 1.5"),
        (["--label_file=nowhere.csv"], "nowhere.csv: no such label table"),
        (["--resume_from_checkpoint", "/nowhere"], "Expected resume_from_checkpoint to be true or.*/nowhere"),
        (["--hidden_size=33"], "num_attention_heads"),
        (["--max_length=8"], "max_length"),
        (["--model_name_or_path", "nobody/nothing"], "nobody/nothing"),
        (["--std", "0"], "Expected std of at least"),
        (["--report_to", "stone_tablets"], "report_to stone_tablets cannot be used: stone_tablets is not supported"),
        (["--report_to", "wandb", "--dataset_name=/nowhere"], "report_to wandb cannot be used: .*pip install wandb"),
        (["--learning_rate=nan", "--dataset_name=/nowhere"], "Expected learning_rate to be a finite number, got nan"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_said_without_a_traceback(argv, words, monkeypatch, tmp_path):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    argv = ["--num_train_epochs=1", *argv]
    said = command_line(monkeypatch, DEMO, *SMALL, "--output_dir", tmp_path, *argv)
    assert said.startswith("error: ") and re.search(words, said)
    assert "Traceback" not in said and "\n" not in said.strip()


def test_other_sizes_than_the_model_has_are_refused(demo, monkeypatch, tmp_path):
    argv = ["--model_name_or_path", demo[0], "--output_dir", tmp_path, "--hidden_size", "48"]
    said = command_line(monkeypatch, DEMO, *SMALL, *argv)
    assert "Expected hidden_size" in said and "got 48" in said


@pytest.mark.slow
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


def test_overwriting_removes_what_the_old_run_left_and_nothing_else(demo, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(demo[0], folder)
    mine = {"mine.csv", "results_of_mine.csv", "photo.png", "example_2.png", "old_results.json", "notes.md", "mine"}
    for name in mine - {"mine"}:
        (folder / name).touch()
    (folder / "mine").mkdir()
    (folder / "checkpoint-99999").mkdir()
    (folder / "bad_clips.csv").touch()
    prepare_output_dir(folder, parse_arguments([str(folder / "recipe.yaml"), "--overwrite_output_dir=true"]))
    assert {path.name for path in folder.iterdir()} == mine | {"recipe.yaml"}


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
def test_recipe_that_is_not_there_ends_in_one_line_and_exit_code_2(tmp_path):
    process = in_a_fresh_process(SCRIPT, tmp_path / "nope.yaml")
    assert process.returncode == 2
    assert process.stderr == f"error: {tmp_path / 'nope.yaml'}: cannot be read (No such file or directory).\n"
    assert process.stdout == ""


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
