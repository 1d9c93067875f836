"""A finished model is evaluated on any clips, all of them, as the training script evaluates it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import read_csv, save_checkpoint, write_csv
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from modeling_ast import load_waveform
from modeling_ast.commands import evaluate as evaluate_model
from modeling_ast.commands import predict
from modeling_ast.commands import train as run_audio_classification
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import DivergedError
from modeling_ast.data.predictions import decide
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.sources import load_splits
from modeling_ast.data.splits import was_trained_on
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.inference.predictions import class_figures, class_table, label_thresholds
from modeling_ast.inference.unknown_calibration import KnownSounds, captured_vectors
from modeling_ast.loading import ModelError, load_model

LABELS = ("siren", "bell", "whistle")  # not in the order of the alphabet
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
CLIPS = ["bell", "siren", "bell", "whistle", "siren", "bell"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for number, label in enumerate(CLIPS):
        clip = generate_clip(label, torch.Generator().manual_seed(number))
        soundfile.write(folder / f"{number}.wav", clip.numpy(), 16000)
    return folder


def save_model(folder: Path, problem_type: str | None = SINGLE, **config) -> Path:
    config = make_tiny_config(id2label=dict(enumerate(LABELS)), problem_type=problem_type, **config)
    config.label2id = {name: index for index, name in config.id2label.items()}
    model = random_model(config)
    model.classifier.dense.weight.data *= 3
    return save_checkpoint(folder, model, mean=-7.0, std=4.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def write_list(folder: Path, sounds: Path, labels=CLIPS, splits=None, name: str = "clips.csv") -> Path:
    rows = [{"audio": str(sounds / f"{number}.wav"), "label": label} for number, label in enumerate(labels)]
    for row, split in zip(rows, splits or ()):
        row["split"] = split
    return write_csv(folder / name, rows)


def run(*argv) -> dict:
    return evaluate_model.main([str(argument) for argument in argv])


def train_script(*argv) -> dict[str, float]:
    return run_audio_classification.main(["--do_train=false", "--report_to=none", *map(str, argv)])


@pytest.fixture
def no_pictures(monkeypatch):
    for name in [name for name in vars(run_audio_classification) if name.startswith(("plot_", "tag_"))]:
        monkeypatch.setattr(run_audio_classification, name, lambda *args, **options: None)


def by_hand(folder: Path, clips: list[Path], activation) -> np.ndarray:
    from modeling_ast.loading import load_model

    model, extractor = load_model(folder)
    waveforms = [load_waveform(clip) for clip in clips]
    inputs = extractor([waveform - waveform.mean() for waveform in waveforms], return_tensors="pt")
    with torch.no_grad():
        return activation(model.eval()(**inputs).logits).numpy()


# What is evaluated, and what is written


def test_all_clips_are_evaluated_with_the_models_labels(model, sounds, tmp_path, capsys):
    clips = [sounds / f"{number}.wav" for number in range(len(CLIPS))]
    results = run(model, write_list(tmp_path, sounds), "--output_dir", tmp_path / "out")
    expected = by_hand(model, clips, lambda logits: logits.softmax(dim=-1))
    truth = np.array([LABELS.index(label) for label in CLIPS])
    named = expected.argmax(axis=1)
    assert results["clips"] == {"all": 6}
    assert results["metrics"]["accuracy"] == pytest.approx((named == truth).mean())
    precisions = average_precision_score(np.eye(3)[truth], expected, average=None)
    assert results["metrics"]["mAP"] == pytest.approx(precisions.mean(), abs=1e-6)
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == [str(clip) for clip in clips]
    assert [row["truth"] for row in rows] == CLIPS and {row["split"] for row in rows} == {""}
    assert [row["prediction"] for row in rows] == [LABELS[index] for index in named]
    np.testing.assert_allclose([[float(row[f"p_{label}"]) for label in LABELS] for row in rows], expected, atol=1e-5)
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected.max(axis=1), atol=1e-5)
    figures = precision_recall_fscore_support(truth, named, labels=range(3), zero_division=0)
    for index, row in enumerate(read_csv(tmp_path / "out" / "per_class.csv")):
        assert (row["label"], int(row["clips"])) == (LABELS[index], CLIPS.count(LABELS[index]))
        known = [float(row[key] or 0) for key in ("precision", "recall", "F1", "AP")]
        assert known == pytest.approx([*(figures[part][index] for part in range(3)), precisions[index]], abs=1e-6)
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert saved == results and saved["model"] == str(model)
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "whistle" in printed and str(tmp_path / "out") in printed


def test_clips_that_are_unknown_are_told_beside_the_metrics(model, sounds, tmp_path):
    classifier, extractor = load_model(model)
    with captured_vectors(classifier) as vectors, torch.no_grad():
        for number in range(len(CLIPS)):
            waveform = load_waveform(sounds / f"{number}.wav")
            classifier(**extractor(waveform, sampling_rate=16000, return_tensors="pt"))
    known = KnownSounds.fit(np.concatenate(vectors))
    distances = known.measure(np.concatenate(vectors))
    threshold = float(np.sort(distances)[3:5].mean())
    classifier.learn_known_sounds(torch.from_numpy(known.mean), torch.from_numpy(known.factor), threshold)
    for each in (classifier, extractor):
        each.save_pretrained(tmp_path / "model")
    clips = write_list(tmp_path, sounds)
    plain = run(model, clips, "--output_dir", tmp_path / "plain")
    results = run(tmp_path / "model", clips, "--output_dir", tmp_path / "out")
    predict.main([str(tmp_path / "model"), str(clips), "--output_dir", str(tmp_path / "predicted")])
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    is_unknown = distances > threshold
    for table in (rows, read_csv(tmp_path / "predicted" / "predictions.csv")):
        assert [row["unknown"] == "1" for row in table] == is_unknown.tolist() and is_unknown.sum() == 2
    right = np.array([row["truth"] == row["prediction"] for row in rows])
    assert results["metrics"].pop("refused") == pytest.approx(1 / 3)
    assert results["metrics"].pop("accuracy_of_named") == pytest.approx(right[~is_unknown].mean())
    low, high = results["intervals"]["refused"]
    assert 0 < low < 1 / 3 < high < 1 and results["metrics"] == pytest.approx(plain["metrics"])
    assert "unknown" not in read_csv(tmp_path / "plain" / "predictions.csv")[0] and "refused" not in plain["metrics"]


def test_groups_have_figures_and_widen_the_intervals(model, sounds, tmp_path, capsys):
    rows = [{"audio": str(sounds / f"{n}.wav"), "label": label, "site": "ab"[n // 3]} for n, label in enumerate(CLIPS)]
    clips = write_csv(tmp_path / "clips.csv", rows)
    alone = run(model, clips, "--output_dir", tmp_path / "alone")
    results = run(model, clips, "--group_column_name=site", "--output_dir", tmp_path / "out")
    table = read_csv(tmp_path / "out" / "predictions.csv")
    assert [row["group"] for row in table] == list("aaabbb") and results["metrics"] == alone["metrics"]
    right = {site: np.mean([r["truth"] == r["prediction"] for r in table if r["group"] == site]) for site in "ab"}
    figures = [
        {"group": site, "clips": 3, "right": right[site]} for site in sorted("ab", key=lambda site: right[site])
    ]
    assert results["groups"] == figures and "groups" not in alone
    low, high = alone["intervals"]["mAP"]
    assert low < alone["metrics"]["mAP"] < high and alone["intervals"].keys() <= alone["metrics"].keys()
    assert results["intervals"]["mAP"] != [low, high]
    assert f"{low:.4f} to {high:.4f}" in capsys.readouterr().out


def test_the_training_script_gives_the_same_figures(model, sounds, tmp_path, no_pictures):
    clips = write_list(tmp_path, sounds)
    alone = run(model, clips, "--output_dir", tmp_path / "out")["metrics"]
    scripted = train_script(
        "--model_name_or_path", model, "--dataset_name", clips, "--output_dir", tmp_path / "run", "--use_cpu=true"
    )
    assert {name: scripted[f"test_{name}"] for name in alone} == pytest.approx(alone, abs=1e-6)
    assert (tmp_path / "run" / "test_results.json").is_file()
    both = [
        read_csv(folder)
        for folder in (tmp_path / "out" / "predictions.csv", tmp_path / "run" / "predictions_test.csv")
    ]
    keys = ("path", "truth", "prediction")
    assert [[[row[key] for key in keys] for row in table] for table in both] == 2 * [
        [[row[key] for key in keys] for row in both[0]]
    ]
    ends = json.loads((tmp_path / "out" / "evaluation.json").read_text())["intervals"]
    assert {name: [scripted[f"test_{name}_{end}"] for end in ("low", "high")] for name in ends} == {
        name: pytest.approx(pair, abs=1e-6) for name, pair in ends.items()
    }


@pytest.mark.parametrize(
    ("splits", "options", "expected"),
    [
        (["test"] * 6, ["--split_column_name=split"], {"test": 6}),
        (
            ["train", "test", "dev", "train", "test", "dev"],
            ["--split_column_name=split"],
            {"validation": 2, "test": 2},
        ),
        (["train", "test", "dev", "train", "test", "dev"], [], {"test": 6}),
        (["test"] * 6, ["--split_column_name=split", "--test_file={fewer}"], {"test": 4}),
        (["train"] * 6, ["--split_column_name=split", "--test_file={fewer}"], {"test": 4}),
    ],
)
def test_the_training_script_evaluates_what_is_held_out_or_all(
    model, sounds, tmp_path, no_pictures, monkeypatch, splits, options, expected
):
    heard = {}
    monkeypatch.setattr(
        run_audio_classification,
        "evaluate",
        lambda trainer, splits, *_: heard.update({name: len(rows) for name, rows in splits if name != "train"}) or {},
    )
    clips = write_list(tmp_path, sounds, splits=splits)
    fewer = write_list(tmp_path, sounds, CLIPS[:4], name="fewer.csv")
    options = [option.format(fewer=fewer) for option in options]
    own = ["--model_name_or_path", model, "--output_dir", tmp_path / "run", "--use_cpu=true", "--eval_strategy=epoch"]
    train_script(*own, "--dataset_name", clips, *options)
    assert heard == expected


def test_the_training_script_does_not_evaluate_clips_that_trained_the_model(sounds, tmp_path, no_pictures):
    model, clips = save_model(tmp_path / "model"), write_list(tmp_path, sounds)
    (model / "recipe.yaml").write_text(f"dataset_name: {clips}\n")
    own = ["--model_name_or_path", model, "--output_dir", tmp_path / "run", "--use_cpu=true"]
    results = train_script(*own, "--dataset_name", clips, "--validation_fraction=0.34")
    assert "validation_loss" in results and "test_loss" not in results


def test_several_labels_count_from_the_models_thresholds_on(sounds, tmp_path):
    folder = save_model(tmp_path / "model", MULTI, thresholds={"bell": 0.0, "whistle": 1.0})
    labels = ["bell,siren", "siren", "", "bell", "whistle", "bell,whistle"]
    results = run(folder, write_list(tmp_path, sounds, labels), "--output_dir", tmp_path / "out")
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert [row["truth"] for row in rows] == ["siren;bell", "siren", "", "bell", "whistle", "bell;whistle"]
    assert all("bell" in row["prediction"] and "whistle" not in row["prediction"] for row in rows)
    (bell,) = [row for row in results["labels"] if row["label"] == "bell"]
    assert (bell["predicted"], bell["clips"], bell["recall"], bell["precision"]) == (6, 3, 1.0, 0.5)
    assert "accuracy" not in results["metrics"]
    truth = np.array([[label in cell.split(",") for label in LABELS] for cell in labels])
    named = np.array([[label in row["prediction"].split(";") for label in LABELS] for row in rows])
    micro = 2 * (truth & named).sum() / (truth.sum() + named.sum())
    assert results["metrics"]["micro_f1"] == pytest.approx(micro)


@pytest.mark.parametrize(
    ("splits", "options", "expected"),
    [
        (["test"] * 6, [], {"test": 6}),
        (["train", "test", "dev", "train", "test", "train"], [], {"train": 3, "validation": 1, "test": 2}),
        (["train", "test", "dev", "train", "test", "train"], ["--split=test"], {"test": 2}),
        (["train", "test", "dev", "train", "test", "train"], ["--split=train"], {"train": 3}),
    ],
)
def test_a_split_is_evaluated_where_it_is_named_and_else_all(model, sounds, tmp_path, splits, options, expected):
    clips = write_list(tmp_path, sounds, splits=splits)
    options = [*options, "--split_column_name=split", "--output_dir", tmp_path / "out"]
    assert run(model, clips, *options)["clips"] == expected
    assert len(read_csv(tmp_path / "out" / "predictions.csv")) == sum(expected.values())


def test_folders_lists_beside_them_recipes_and_folds_are_data(model, sounds, tmp_path):
    for number, label in enumerate(CLIPS):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / label / f"{number}.wav").write_bytes((sounds / f"{number}.wav").read_bytes())
    out = ["--output_dir", tmp_path / "out"]
    assert run(model, tmp_path / "data", *out)["clips"] == {"all": 6}
    (tmp_path / "data" / "testing_list.txt").write_text(
        "".join(f"{label}/{number}.wav\n" for number, label in enumerate(CLIPS))
    )
    assert run(model, tmp_path / "data", *out)["clips"] == {"test": 6}
    # clips of another list take the place of those of the folder's own
    clips = write_list(tmp_path, sounds, CLIPS[:4])
    assert run(model, tmp_path / "data", "--test_file", clips, *out)["clips"] == {"test": 4}
    recipe = tmp_path / "recipe.yaml"
    folds = write_list(tmp_path, sounds, splits=[1, 1, 2, 2, 2, 2], name="folds.csv")
    recipe.write_text(f"dataset_name: {folds}\nfold_column_name: split\neval_fold: 1\nlearning_rate: 1e-3\n")
    assert run(model, recipe, "--split=validation", *out)["clips"] == {"validation": 2}


def test_data_may_lack_labels_of_the_model(model, sounds, tmp_path):
    results = run(model, write_list(tmp_path, sounds, CLIPS[:3]), "--output_dir", tmp_path / "out")
    assert results["metrics"]["classes_without_positives"] == 1
    assert [row["label"] for row in results["labels"] if row["AP"] is None] == ["whistle"]


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_labels_that_the_model_does_not_know_are_refused_or_left_out(sounds, tmp_path, problem_type, caplog):
    model = save_model(tmp_path / "model", problem_type)
    labels = ["bell", "rain", "siren", "hail", "bell", "rain"]
    arguments = [model, write_list(tmp_path, sounds, labels), "--output_dir", tmp_path / "out"]
    words = (
        r"3 clips have labels that the model does not know \(hail, rain\), such as .*row 2 .*leave_out_unknown_labels"
    )
    with pytest.raises(DataError, match=words):
        run(*arguments)
    with pytest.raises(DataError, match="has an effect on the evaluation of a trained model alone"):
        load_splits(str(arguments[1]), leave_out_unknown_labels=True)
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING):
        results = run(*arguments, "--leave_out_unknown_labels")
    assert "does not know (hail, rain): left out" in caplog.text
    assert sum(results["clips"].values()) == (3 if problem_type == SINGLE else 6)
    truth = [row["truth"] for row in read_csv(tmp_path / "out" / "predictions.csv") if row["truth"]]
    assert truth == ["bell", "siren", "bell"]


def test_a_label_file_says_how_the_data_write_the_models_labels(model, sounds, tmp_path):
    (tmp_path / "labels.csv").write_text("index,mid,display_name\n0,/m/b,bell\n1,/m/c,whistle\n2,/m/s,siren\n")
    mids = {"bell": "/m/b", "whistle": "/m/c", "siren": "2"}
    clips = write_list(tmp_path, sounds, [mids[label] for label in CLIPS])
    run(model, clips, "--label_file", tmp_path / "labels.csv", "--output_dir", tmp_path / "out")
    assert [row["truth"] for row in read_csv(tmp_path / "out" / "predictions.csv")] == CLIPS


def test_clips_that_trained_the_model_are_said_to_flatter_it(sounds, tmp_path, caplog):
    model, clips = save_model(tmp_path / "model"), write_list(tmp_path, sounds)
    (model / "recipe.yaml").write_text(f"dataset_name: {clips}\n")
    with caplog.at_level(logging.WARNING):
        run(model, clips, "--output_dir", tmp_path / "out")
    assert f"was trained on {clips}: on clips that trained it any model is better" in caplog.text


def test_a_fold_that_trained_the_model_is_no_held_out_one(sounds, tmp_path):
    model, clips = save_model(tmp_path / "model"), write_list(tmp_path, sounds)
    rows = read_csv(clips)
    write_csv(clips, [{**row, "fold": number % 2 + 1} for number, row in enumerate(rows)])
    (model / "recipe.yaml").write_text(f"dataset_name: {clips}\neval_fold: '2'\n")
    folds = ["--fold_column_name=fold", "--split", "validation", "--output_dir", tmp_path / "out"]
    with pytest.raises(DataError, match="Expected eval_fold 2, with which .*model was trained, got 1"):
        run(model, clips, *folds, "--eval_fold=1")
    assert run(model, clips, *folds, "--eval_fold=2")["clips"] == {"validation": 3}


def test_data_that_a_recipe_names_from_another_folder_are_known_again(tmp_path, monkeypatch):
    (tmp_path / "er").mkdir()
    clips, other = tmp_path / "er" / "clips.csv", tmp_path / "clips.csv"
    clips.touch()
    other.touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "recipe.yaml").write_text("dataset_name: ./er/clips.csv\n")
    for folder in (tmp_path, tmp_path / "er", tmp_path / "model"):
        monkeypatch.chdir(folder)
        assert was_trained_on(str(tmp_path / "model"), os.path.relpath(clips))
        assert was_trained_on(str(tmp_path / "model"), str(clips))
        assert not was_trained_on(str(tmp_path / "model"), str(other))


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split=test"], "clips.csv: expected clips of the split test, got clips without splits. Of a list"),
        (["--learning_rate=1"], "No effect on an evaluation: learning_rate"),
        (["--validation_fraction=0.3"], "No effect on an evaluation: validation_fraction"),
        (["--nonsense=1"], "No effect on an evaluation: nonsense"),
        (["--label_column_name=kind"], "expected a column 'kind'"),
        (["--output_dir={clips}"], "Expected output_dir to be a folder, got the file"),
        (["--output_dir={clips}/below"], "Expected an output_dir that can be written, got .*below .Not a directory"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(model, sounds, tmp_path, options, words):
    clips = write_list(tmp_path, sounds)
    with pytest.raises((CommandError, RecipeError, DataError), match=words):
        run(model, clips, *(option.format(clips=clips) for option in options))


def test_models_that_cannot_be_evaluated_say_why(sounds, tmp_path):
    clips = write_list(tmp_path, sounds)
    with pytest.raises(ModelError, match="model cannot be used: expected a classifier, got a model for regression"):
        run(save_model(tmp_path / "model", "regression"), clips)
    with pytest.raises(ModelError, match="nowhere cannot be used"):
        run(tmp_path / "nowhere", clips)
    recipe = tmp_path / "stream.yaml"
    recipe.write_text("dataset_name: someone/something\nstreaming: true\n")
    with pytest.raises(RecipeError, match="Expected streaming: false"):
        run(save_model(tmp_path / "other"), recipe)


def test_scores_that_are_not_finite_are_refused_and_nothing_is_written(model, sounds, tmp_path, monkeypatch):
    diverged = np.full((6, 3), np.nan), np.arange(6) % 3
    monkeypatch.setattr(evaluate_model, "predict", lambda *args, **options: diverged)
    with pytest.raises(DivergedError, match="Expected finite scores"):
        run(model, write_list(tmp_path, sounds), "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_figures_of_a_label_are_empty_where_they_cannot_be_told():
    probabilities, labels = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0])
    thresholds = label_thresholds(["a", "b"], {"b": 0.2})
    assert thresholds.tolist() == [0.5, 0.2]
    assert decide(probabilities, MULTI, thresholds).tolist() == [[True, False], [True, True]]
    decisions = decide(probabilities, SINGLE, thresholds)
    a, b = class_figures(probabilities, decisions, labels, ["a", "b"])
    assert (a["precision"], a["recall"], a["F1"]) == (1.0, 1.0, 1.0)
    assert (b["precision"], b["recall"], b["F1"], b["AP"], b["clips"]) == (None, None, None, None, 0)
    assert [line.split() for line in class_table([a, b]).splitlines()[1:]] == [
        ["a", "2", "2", "1", "1", "1", "1"],
        ["b", "0", "0"],
    ]


@pytest.mark.slow
def test_the_command_ends_with_one_sentence_of_error(model, tmp_path):
    command = [sys.executable, "-m", "modeling_ast.commands.evaluate", str(model), str(tmp_path / "nothing.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
