"""The ensemble is the plain mean of its models' probabilities."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import contents, few_synthetic_sounds, read_csv, save_checkpoint, write_csv
from sklearn.metrics import average_precision_score
from test_conversion import BINS, IN_NAME, original_weights
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from modeling_ast import (
    ASTFeatureExtractor,
    ASTModel,
    load_original_checkpoint,
    load_waveform,
)
from modeling_ast.commands import compare
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data import processes, synthetic
from modeling_ast.data.intervals import metric_intervals
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.synthetic import CLASSES, generate_clip, synthetic_folder
from modeling_ast.loading import ModelError

ROOT = Path(__file__).resolve().parents[1]
from modeling_ast.commands.ensemble import main as main  # noqa: E402

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
# Two models of different length, mel bins, strides and statistics.
SHORT = {"max_length": 64, "num_mel_bins": 32}
LONG = {"max_length": 98, "num_mel_bins": 48, "frequency_stride": 8, "time_stride": 12}
STATISTICS = {64: {"mean": -7.3, "std": 4.8}, 98: {"mean": -6.0, "std": 4.0}}


few_sounds = few_synthetic_sounds(train=1, validation=1, test=2)


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: synthetic\nper_device_eval_batch_size: 8\n")
    return path


def save_model(folder: Path, geometry: dict, seed: int = 0, labels=CLASSES, problem_type: str | None = SINGLE) -> Path:
    config = make_tiny_config(**geometry, id2label=dict(enumerate(labels)), problem_type=problem_type)
    config.label2id = {name: index for index, name in config.id2label.items()}
    model = random_model(config)
    generator = torch.Generator().manual_seed(seed)
    model.classifier.dense.weight.data = torch.randn(model.classifier.dense.weight.shape, generator=generator)
    return save_checkpoint(folder, model, **STATISTICS[geometry["max_length"]])


@pytest.fixture
def short(tmp_path) -> Path:
    return save_model(tmp_path / "short", SHORT)


@pytest.fixture
def long(tmp_path) -> Path:
    return save_model(tmp_path / "long", LONG, seed=1)


def run(*argv) -> dict[str, dict[str, float]]:
    return main([str(argument) for argument in argv])


def held_out(split: str = "test") -> tuple[list[Path], np.ndarray]:
    """Files and class indices, in the order of the classes."""
    folder = synthetic_folder()
    lines = (folder / synthetic.LISTS[split]).read_text().split()
    clips = sorted(folder / line for line in lines)
    return clips, np.array([CLASSES.index(clip.parent.name) for clip in clips])


def by_hand(folder: Path, clips: list[Path], activation=lambda logits: logits.softmax(dim=-1)) -> np.ndarray:
    """Probabilities of a model as anybody would compute them, in its own order of the labels."""
    model = AutoModelForAudioClassification.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    waveforms = [load_waveform(clip) for clip in clips]
    inputs = extractor([waveform - waveform.mean() for waveform in waveforms], return_tensors="pt")
    with torch.no_grad():
        return activation(model(**inputs).logits).numpy()


def expected_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": (probabilities.argmax(axis=1) == labels).mean(),
        "mAP": average_precision_score(np.eye(len(CLASSES))[labels], probabilities, average="macro"),
    }


def agrees(metrics: dict[str, float], expected: dict[str, float]) -> bool:
    return {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def predicted(folder: Path) -> tuple[list[dict[str, str]], np.ndarray]:
    """The rows of the table of predictions, and the probabilities in it."""
    rows = list(csv.DictReader(open(folder / "predictions.csv", newline="")))
    return rows, np.array([[float(row[name]) for name in row if name.startswith("p_")] for row in rows])


# What is computed


def test_ensemble_of_one_is_the_model_alone(recipe, short, tmp_path):
    results = run(short, "--recipe", recipe, "--output_dir", tmp_path / "out")
    assert results["ensemble"] == results[str(short)]
    clips, labels = held_out()
    assert agrees(results["ensemble"], expected_metrics(by_hand(short, clips), labels))


def test_ensemble_is_the_mean_of_the_probabilities_of_models_of_any_geometry(recipe, short, long, tmp_path, capsys):
    results = run(short, long, "--recipe", recipe, "--output_dir", tmp_path / "out")
    clips, labels = held_out()
    probabilities = [by_hand(folder, clips) for folder in (short, long)]
    for folder, values in zip((short, long), probabilities):
        assert agrees(results[str(folder)], expected_metrics(values, labels))
    assert agrees(results["ensemble"], expected_metrics(np.mean(probabilities, axis=0), labels))

    with open(tmp_path / "out" / "ensemble_results.csv", newline="") as file:
        rows = {row.pop("model"): row for row in csv.DictReader(file)}
    assert list(rows) == [str(short), str(long), "ensemble"]
    assert {name: {key: float(cell) for key, cell in row.items() if cell} for name, row in rows.items()} == results
    ends = metric_intervals(results["ensemble"], np.mean(probabilities, axis=0), labels, SINGLE)["mAP"]
    found = [results["ensemble"][f"mAP_{end}"] for end in ("low", "high")]
    assert found == pytest.approx([ends.low, ends.high], abs=1e-4)
    assert {"mAP", "mAUC", "d_prime", "accuracy", "macro_f1", "micro_f1"} <= rows["ensemble"].keys()
    printed = capsys.readouterr().out
    assert f"{results['ensemble']['mAP']:.6g}" in printed and str(tmp_path / "out") in printed


def test_an_ensemble_is_compared_with_its_best_member_on_the_same_clips(recipe, short, long, tmp_path, capsys):
    """As `compare` does it with the predictions of both."""
    results = run(short, long, "--recipe", recipe, "--output_dir", tmp_path / "out")
    best = max((short, long), key=lambda folder: results[str(folder)]["accuracy"])
    run(best, "--recipe", recipe, "--output_dir", tmp_path / "alone")
    assert not (tmp_path / "alone" / "ensemble_difference.csv").exists()
    expected = compare.main([str(tmp_path / "alone"), str(tmp_path / "out")]).differences
    rows = {row["metric"]: row for row in read_csv(tmp_path / "out" / "ensemble_difference.csv")}
    assert rows.keys() == expected.keys() and {row["model"] for row in rows.values()} == {str(best)}
    for name, found in expected.items():
        numbers = [found.first, found.second, found.second - found.first, found.interval.low, found.interval.high]
        columns = ("best", "ensemble", "difference", "low", "high")
        assert [float(rows[name][key]) for key in columns] == pytest.approx(numbers, abs=1e-3)
        assert rows[name]["more_than_chance"] == str(int(found.is_more_than_chance))
    assert f"{best}, the best of them on these clips" in capsys.readouterr().out


def test_predictions_are_written_with_paths_labels_and_names(recipe, short, tmp_path):
    run(short, "--recipe", recipe, "--output_dir", tmp_path / "out")
    rows, probabilities = predicted(tmp_path / "out")
    clips, labels = held_out()
    np.testing.assert_allclose(probabilities, by_hand(short, clips), atol=1e-5)
    assert [(Path(row["path"]).name, row["split"], row["truth"]) for row in rows] == [
        (clip.name, "test", CLASSES[label]) for clip, label in zip(clips, labels, strict=True)
    ]
    assert [row["prediction"] for row in rows] == [CLASSES[best] for best in probabilities.argmax(axis=1)]
    assert list(rows[0])[-len(CLASSES) :] == [f"p_{name}" for name in CLASSES]


def test_labels_of_a_model_may_have_another_order(recipe, short, tmp_path):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    model = AutoModelForAudioClassification.from_pretrained(short)
    for name, tensor in model.classifier.dense.state_dict().items():
        getattr(model.classifier.dense, name).data = tensor[order]
    model.config.id2label = {index: CLASSES[source] for index, source in enumerate(order)}
    model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "other")
    AutoFeatureExtractor.from_pretrained(short).save_pretrained(tmp_path / "other")
    results = run(short, tmp_path / "other", "--recipe", recipe, "--output_dir", tmp_path / "out")
    assert results[str(tmp_path / "other")] == pytest.approx(results[str(short)])
    assert results["ensemble"] == pytest.approx(results[str(short)])


@pytest.mark.parametrize("own, of_the_recipe", [(MULTI, SINGLE), (None, MULTI)], ids=["the model's", "the recipe's"])
def test_probabilities_are_sigmoids_where_the_problem_type_says_so(recipe, tmp_path, own, of_the_recipe):
    """That of the model; that of the recipe where the model has none."""
    folder = save_model(tmp_path / "model", SHORT, problem_type=own)
    run(folder, "--recipe", recipe, "--output_dir", tmp_path / "out", "--problem_type", of_the_recipe)
    _, probabilities = predicted(tmp_path / "out")
    np.testing.assert_allclose(probabilities, by_hand(folder, held_out()[0], torch.sigmoid), atol=1e-5)


def test_clips_may_have_several_labels(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [("a.wav", "bell,siren", 1), ("b.wav", "siren", 1), ("c.wav", "", 1), ("d.wav", "bell", 2)]
    for name, _, _ in rows:
        soundfile.write(tmp_path / name, generate_clip("bell", generator).numpy(), 16000)
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("audio", "label", "fold"), *rows])
    folder = save_model(tmp_path / "model", SHORT, labels=("bell", "siren"), problem_type=MULTI)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {tmp_path / 'clips.csv'}\nproblem_type: {MULTI}\nfold_column_name: fold\n")
    results = run(folder, "--recipe", recipe, "--eval_fold", 1, "--output_dir", tmp_path / "out")
    rows, probabilities = predicted(tmp_path / "out")
    labels = np.array([[1, 1], [0, 1], [0, 0]])
    assert [row["truth"] for row in rows] == ["bell;siren", "siren", ""]
    expected = by_hand(folder, [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")], torch.sigmoid)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert results["ensemble"]["mAP"] == pytest.approx(average_precision_score(labels, expected, average="macro"))
    assert "accuracy" not in results["ensemble"]


def test_split_can_be_chosen(recipe, short, tmp_path):
    validation = run(short, "--recipe", recipe, "--split", "validation", "--output_dir", tmp_path / "out")
    rows, probabilities = predicted(tmp_path / "out")
    clips, labels = held_out("validation")
    np.testing.assert_allclose(probabilities, by_hand(short, clips), atol=1e-5)
    assert agrees(validation["ensemble"], expected_metrics(probabilities, labels))
    assert run(short, "--recipe", recipe, "--split", "test", "--output_dir", tmp_path / "out") == run(
        short, "--recipe", recipe, "--output_dir", tmp_path / "default"
    )


def test_all_clips_of_data_without_splits_are_predicted(recipe, short, tmp_path):
    write_clips(tmp_path, list(CLASSES))
    run(short, "--recipe", recipe, "--dataset_name", tmp_path / "clips.csv", "--output_dir", tmp_path / "out")
    rows, probabilities = predicted(tmp_path / "out")
    assert len(rows) == 2 * len(CLASSES)


def test_checkpoint_of_the_original_takes_the_rest_from_the_recipe(recipe, tmp_path):
    torch.save(original_weights(len(CLASSES)), tmp_path / IN_NAME)
    keys = ["--num_mel_bins", BINS, "--mean", -7.3, "--std", 4.8]
    run(tmp_path / IN_NAME, "--recipe", recipe, "--output_dir", tmp_path / "out", *keys)
    model = load_original_checkpoint(tmp_path / IN_NAME, num_mel_bins=BINS)
    model.save_pretrained(tmp_path / "converted")
    ASTFeatureExtractor(num_mel_bins=BINS, max_length=model.config.max_length, mean=-7.3, std=4.8).save_pretrained(
        tmp_path / "converted"
    )
    rows, probabilities = predicted(tmp_path / "out")
    expected = by_hand(tmp_path / "converted", held_out()[0], torch.sigmoid)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def write_clips(folder: Path, labels: list[str]) -> None:
    rows = [{"audio": f"{index}.wav", "label": label, "fold": 1} for index, label in enumerate(labels)]
    for index, row in enumerate(rows):
        if not (folder / row["audio"]).exists():
            clip = generate_clip(CLASSES[0], torch.Generator().manual_seed(index))
            soundfile.write(folder / row["audio"], clip.numpy(), 16000)
    rows += [{**rows[index], "fold": 2} for index in range(len(rows))]
    write_csv(folder / "clips.csv", rows)


# What is refused


def test_models_with_other_labels_are_refused_by_name(recipe, tmp_path):
    folder = save_model(tmp_path / "model", SHORT, labels=(*CLASSES[:8], "rain", "wind"))
    with pytest.raises(DataError, match=r"8 clips have labels that the model does not know \(steam, whistle\)"):
        run(folder, "--recipe", recipe, "--output_dir", tmp_path / "out")
    first = save_model(tmp_path / "first", SHORT)
    with pytest.raises(ModelError) as error:
        run(first, folder, "--recipe", recipe, "--output_dir", tmp_path / "out")
    assert str(error.value) == (
        f"{folder} cannot be used: Expected the labels of the data, but the model alone has rain, wind and the data "
        "alone have steam, whistle."
    )
    assert not (tmp_path / "out").exists()


def test_weights_that_are_missing_are_not_drawn(recipe, tmp_path):
    config = make_tiny_config(**SHORT, id2label=dict(enumerate(CLASSES)))
    ASTModel(config).save_pretrained(tmp_path / "body")
    ASTFeatureExtractor(**SHORT).save_pretrained(tmp_path / "body")
    with pytest.raises(ModelError, match="body cannot be used: .*weights are missing, such as classifier.dense.bias"):
        run(tmp_path / "body", "--recipe", recipe, "--output_dir", tmp_path / "out")


def test_a_model_without_feature_extractor_is_refused(recipe, short, tmp_path):
    (short / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="short cannot be used: .*preprocessor_config.json"):
        run(short, "--recipe", recipe, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize(
    "features, settings, message",
    [
        ({"num_mel_bins": 64}, {}, "a feature extractor with the model's 32 mel bins, got one with 64"),
        ({}, {"problem_type": "regression"}, "expected a classifier, got a model for regression"),
    ],
)
def test_a_model_that_does_not_fit_or_has_no_probabilities_is_refused(recipe, tmp_path, features, settings, message):
    folder = save_model(tmp_path / "model", SHORT, **settings)
    ASTFeatureExtractor(**{**SHORT, **features}).save_pretrained(folder)
    with pytest.raises(ModelError, match=f"model cannot be used: .*{message}"):
        run(folder, "--recipe", recipe, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "keys, message",
    [
        (["--max_length", "64"], "No effect on an ensemble: max_length. Models bring their own settings"),
        (["--mean=-5", "--learning_rate=1"], "No effect on an ensemble: learning_rate, mean"),
        (["--nonsense", "1"], "No effect on an ensemble: nonsense"),
        (["--dataset_name", "{short}/nothing.csv"], "no such file"),
        (
            ["--dataset_name", "{csv}", "--fold_column_name=fold", "--eval_fold=1", "--split=test"],
            "the split test, got",
        ),
    ],
)
def test_keys_and_splits_that_cannot_be_used_are_named(recipe, short, tmp_path, keys, message):
    write_clips(tmp_path, ["bell", "siren"])
    keys = [key.format(short=short, csv=tmp_path / "clips.csv") for key in keys]
    with pytest.raises((RecipeError, DataError), match=message):
        run(short, "--recipe", recipe, "--output_dir", tmp_path / "out", *keys)


def test_the_same_model_twice_and_a_file_as_output_are_refused(recipe, short, tmp_path):
    with pytest.raises(CommandError, match="Expected different models"):
        run(short, short, "--recipe", recipe, "--output_dir", tmp_path / "out")
    with pytest.raises(CommandError, match="Expected output_dir to be a folder, got the file"):
        run(short, "--recipe", recipe, "--output_dir", recipe)


# Several processes


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 1001])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 20])
def test_shares_of_processes_are_whole_batches_and_all_rows_once(monkeypatch, count, num_processes):
    monkeypatch.setattr(processes, "is_one_of_several", lambda: num_processes > 1)
    shares = []
    for index in range(num_processes):
        state = SimpleNamespace(process_index=index, num_processes=num_processes)
        monkeypatch.setattr(processes, "PartialState", lambda state=state: state)
        shares.append(processes.own_share(count, unit=8))
    assert [row for first, last in shares for row in range(first, last)] == list(range(count))
    assert all(first % 8 == 0 or first == last == count for first, last in shares)
    batches = [-(-(last - first) // 8) for first, last in shares]
    assert max(batches) - min(batches) <= 1


def launch(folder: Path, *argv) -> subprocess.CompletedProcess:
    """The command by two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "modeling_ast.commands.ensemble", *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_give_what_one_gives(short, long, tmp_path):
    for number in range(21):
        (tmp_path / "data" / CLASSES[number % 10]).mkdir(parents=True, exist_ok=True)
        clip = generate_clip(CLASSES[number % 10], torch.Generator().manual_seed(number))
        soundfile.write(tmp_path / "data" / CLASSES[number % 10] / f"{number}.wav", clip.numpy(), 16000)
    paths = sorted((tmp_path / "data").rglob("*.wav"))
    write_csv(tmp_path / "clips.csv", [{"audio": path, "label": path.parent.name} for path in paths])
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"dataset_name: {tmp_path / 'clips.csv'}\nper_device_eval_batch_size: 2\n")
    run(short, long, "--recipe", recipe, "--output_dir", tmp_path / "one")
    done = launch(tmp_path, short, long, "--recipe", recipe, "--output_dir", tmp_path / "two")
    assert done.returncode == 0 and done.stdout.count("Saved in") == 1, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    # What one process cannot use ends both, in one sentence.
    paths[-1].write_bytes(b"no sound")
    done = launch(tmp_path, short, "--recipe", recipe, "--output_dir", tmp_path / "broken")
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(told) == 1 and f"{paths[-1]}: cannot be decoded" in told[0], done.stderr
    assert not (tmp_path / "broken").exists()


@pytest.mark.slow
def test_command_line_ends_with_one_sentence_of_error(tmp_path):
    """Also where a worker process meets it."""
    write_clips(tmp_path, ["bell", "siren"])
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    folder = save_model(tmp_path / "model", SHORT, labels=("bell", "siren"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {tmp_path / 'clips.csv'}\nfold_column_name: fold\neval_fold: 1\n")
    command = [sys.executable, "-m", "modeling_ast.commands.ensemble", folder, "--recipe", recipe]
    command += ["--output_dir", tmp_path / "out", "--dataloader_num_workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "1.wav: cannot be decoded" in last
    assert not (tmp_path / "out").exists()
