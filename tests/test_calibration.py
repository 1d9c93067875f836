"""Temperature and thresholds are the best there are, go into a model whole, and are never stale."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
import transformers
from conftest import make_tiny_config, random_model
from helpers import contents, few_synthetic_sounds
from scipy import stats
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from test_ensemble import SHORT, by_hand, held_out
from transformers import AutoModelForAudioClassification

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, ASTModel, load_waveform
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.intervals import metric_intervals
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import compute_metrics
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.synthetic import CLASSES, generate_clip, synthetic_folder
from modeling_ast.inference.calibration import (
    expected_calibration_error,
    fit_temperature,
    fit_thresholds,
    fold_temperature,
    measure_splits,
    negative_log_likelihood,
    reliability,
)
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.inference.result_plots import plot_reliability
from modeling_ast.loading import ModelError

ROOT = Path(__file__).resolve().parents[1]
from modeling_ast.commands.calibrate import main as main  # noqa: E402

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
NAMES = ["rain", "dog", "clock", "siren"]


def draw(problem_type: str, num_clips: int = 400, num_labels: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn as the logits say."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(num_clips, num_labels)).astype(np.float32)
    if problem_type == MULTI:
        return logits, generator.random(logits.shape) < expit(logits)
    return logits, np.array([generator.choice(num_labels, p=row / row.sum()) for row in softmax(logits, axis=1)])


def loss(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """By PyTorch."""
    logits, labels = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    if problem_type == SINGLE:
        return F.cross_entropy(logits, labels).item()
    return F.binary_cross_entropy_with_logits(logits, labels.double()).item()


# Thresholds


def decisions(scores: np.ndarray, is_positive: np.ndarray) -> list[dict]:
    """Every way to cut the clips in two by their scores, lowest cut first."""
    cuts = sorted(set(scores.tolist()))
    rows = []
    for below, cut in zip([0.0, *cuts], cuts):
        named = scores >= cut
        hits = int((named & is_positive).sum())
        rows.append(
            {
                "threshold": (below + cut) / 2,
                "precision": hits / int(named.sum()),
                "recall": hits,
                "f1": 2 * hits / int(named.sum() + is_positive.sum()),
            }
        )
    return rows


def some_scores(decimals: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties, or none, and multi-hot labels."""
    logits, labels = draw(MULTI, num_clips=60, seed=seed)
    probabilities = expit(logits)
    return probabilities if decimals is None else probabilities.round(decimals), labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_thresholds_have_the_best_f1_of_all_cuts(decimals, seed):
    probabilities, labels = some_scores(decimals, seed)
    fitted = fit_thresholds(probabilities, labels, NAMES)
    assert list(fitted.thresholds) == NAMES and not fitted.without_positives + fitted.precision_not_reached
    for name, scores, is_positive in zip(NAMES, probabilities.T, labels.T):
        best = max(decisions(scores, is_positive), key=lambda row: (row["f1"], row["threshold"]))
        assert fitted.thresholds[name] == pytest.approx(best["threshold"], abs=1e-12)
        assert f1_score(is_positive, scores >= fitted.thresholds[name]) == pytest.approx(best["f1"])


@pytest.mark.parametrize("target", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("decimals", [None, 1])
def test_wanted_precision_is_reached_with_the_best_recall(decimals, target):
    for seed in range(5):
        probabilities, labels = some_scores(decimals, seed)
        fitted = fit_thresholds(probabilities, labels, NAMES, target_precision=target)
        for name, scores, is_positive in zip(NAMES, probabilities.T, labels.T):
            reaching = [row for row in decisions(scores, is_positive) if row["precision"] >= target]
            if not reaching:
                assert name in fitted.precision_not_reached and name not in fitted.thresholds
                continue
            named = scores >= fitted.thresholds[name]
            assert (named & is_positive).sum() / named.sum() >= target
            assert (named & is_positive).sum() == max(row["recall"] for row in reaching)
            assert fitted.thresholds[name] == pytest.approx(min(row["threshold"] for row in reaching), abs=1e-12)


def test_rounding_changes_no_decision():
    """Scores of one clip differ in the last digits from batch to batch."""
    probabilities, labels = some_scores(None, seed=0)
    fitted = fit_thresholds(probabilities, labels, NAMES)
    cuts = np.array(list(fitted.thresholds.values()))
    for moved in (np.nextafter(probabilities, np.float32(0)), np.nextafter(probabilities, np.float32(1))):
        assert ((moved >= cuts) == (probabilities >= cuts)).all()


def test_labels_that_get_no_threshold_are_named():
    probabilities = np.array([[0.9, 0.2, 0.5, 0.4], [0.8, 0.7, 0.5, 0.6], [0.1, 0.3, 0.5, 0.7]])
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]])
    fitted = fit_thresholds(probabilities, labels, NAMES, target_precision=0.9)
    assert fitted.thresholds == pytest.approx({"rain": 0.45, "dog": 0.5})
    assert (fitted.without_positives, fitted.precision_not_reached) == (("clock",), ("siren",))


def test_a_label_that_every_clip_has_is_named_from_half_the_lowest_score_on():
    scores = np.array([[0.4, 0.6], [0.8, 0.2]])
    assert fit_thresholds(scores, np.array([[1, 0], [1, 1]]), ["rain", "dog"]).thresholds["rain"] == 0.2


def test_class_indices_and_one_hot_labels_give_the_same_thresholds():
    logits, labels = draw(SINGLE)
    probabilities = softmax(logits, axis=1)
    one_hot = np.eye(len(NAMES), dtype=int)[labels]
    assert fit_thresholds(probabilities, labels, NAMES) == fit_thresholds(probabilities, one_hot, NAMES)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target_precision": 0.0}, r"target_precision in \(0, 1\], got 0.0"),
        ({"target_precision": 90}, r"target_precision in \(0, 1\], got 90"),
        ({"probabilities": np.full((2, 4), 1.5)}, r"probabilities in \[0, 1\], got 1.5 to 1.5: are these logits"),
        ({"probabilities": np.full((2, 4), np.nan)}, "finite scores, got NaN"),
        ({"label_names": NAMES[:3]}, "Expected 4 different label names, one a column, got 3"),
        ({"label_names": ["rain"] * 4}, "Expected 4 different label names, one a column, got 1"),
        ({"labels": np.array([0, 4])}, r"labels from 0 to 3, got \[4\]"),
    ],
)
def test_thresholds_refuse_what_they_cannot_be_fitted_to(change, message):
    arguments = {"probabilities": np.full((2, 4), 0.5), "labels": np.array([0, 1]), "label_names": NAMES}
    with pytest.raises(ValueError, match=message):
        fit_thresholds(**{**arguments, **change})


# Temperature


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("known", [0.2, 1.0, 3.0])
def test_a_known_temperature_is_found(problem_type, known):
    logits, labels = draw(problem_type, num_clips=20_000)
    assert fit_temperature(known * logits, labels, problem_type) == pytest.approx(known, rel=0.03)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_no_other_temperature_has_a_lower_loss(problem_type):
    logits, labels = draw(problem_type)
    logits = (4 * logits).astype(np.float64)
    found = fit_temperature(logits, labels, problem_type)
    lowest = loss(logits / found, labels, problem_type)
    assert negative_log_likelihood(logits / found, labels, problem_type) == pytest.approx(lowest, rel=1e-9)
    others = [*np.geomspace(0.05, 50, 200), found * 1.001, found / 1.001]
    assert lowest < min(loss(logits / other, labels, problem_type) for other in others)


def test_temperature_is_refused_where_there_is_none_to_find():
    logits, labels = draw(SINGLE)
    for sure in (1, 1000):
        with pytest.raises(ValueError, match="some are classified wrong, but the smaller the temperature the better"):
            fit_temperature(sure * logits, logits.argmax(axis=1), SINGLE)
    with pytest.raises(ValueError, match="more than chance, but the larger the temperature the better"):
        fit_temperature(-logits, labels, SINGLE)
    logits, labels = draw(MULTI)
    with pytest.raises(ValueError, match="the smaller the temperature the better"):
        fit_temperature(logits, logits > 0, MULTI)
    with pytest.raises(ValueError, match="the larger the temperature the better"):
        fit_temperature(logits, ~labels, MULTI)


@pytest.mark.parametrize("measure", [negative_log_likelihood, reliability, expected_calibration_error])
def test_no_measure_takes_another_problem_or_labels_that_do_not_fit(measure):
    logits, labels = draw(MULTI)
    with pytest.raises(ValueError, match="Expected problem_type out of .*, got regression"):
        measure(expit(logits), labels, "regression")
    with pytest.raises(ValueError, match="exactly one label a clip .* got clips with several or none"):
        measure(expit(logits), labels, SINGLE)
    with pytest.raises(ValueError, match="Expected labels of shape .*, as the scores, got"):
        measure(expit(logits), labels[:, 1:], MULTI)


def test_temperature_refuses_other_problems():
    logits, labels = draw(MULTI)
    with pytest.raises(ValueError, match="exactly one label a clip .* got clips with several or none"):
        fit_temperature(logits, labels, SINGLE)
    with pytest.raises(ValueError, match="Expected problem_type out of .*, got regression"):
        fit_temperature(logits, labels, "regression")


# Calibration error


def by_definition(sure: np.ndarray, right: np.ndarray, num_bins: int) -> float:
    """Guo et al.'s bins ((m - 1) / M, m / M], one clip at a time."""
    error = 0
    for index in range(num_bins):
        inside = [(s, r) for s, r in zip(sure, right) if index / num_bins < s <= (index + 1) / num_bins]
        if inside:
            mean_sure, mean_right = np.mean(inside, axis=0)
            error += len(inside) / len(sure) * abs(mean_sure - mean_right)
    return error


def test_calibration_error_is_that_of_its_definition():
    logits, labels = draw(SINGLE)
    probabilities = softmax(3 * logits, axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    for num_bins in (15, 4):
        expected = by_definition(probabilities.max(axis=1), right, num_bins)
        assert expected > 0.1
        assert expected_calibration_error(probabilities, labels, SINGLE, num_bins) == pytest.approx(expected)
    logits, labels = draw(MULTI)
    probabilities = expit(3 * logits).astype(np.float64)
    expected = by_definition(probabilities.ravel(), labels.ravel(), 15)
    assert expected_calibration_error(probabilities, labels, MULTI) == pytest.approx(expected)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_scores_that_are_true_probabilities_have_no_calibration_error(problem_type):
    logits, labels = draw(problem_type, num_clips=20_000)
    probabilities = softmax(logits, axis=1) if problem_type == SINGLE else expit(logits)
    assert expected_calibration_error(probabilities, labels, problem_type) < 0.015


def test_bins_count_everything_once_and_scores_of_0_and_1_too():
    probabilities, labels = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), np.array([[0, 1], [0, 0], [1, 1]])
    sure, right, counts = reliability(probabilities, labels, MULTI)
    assert (sure.tolist(), right.tolist(), counts.tolist()) == ([0, 0.5, 1], [0, 1, 0.5], [2, 2, 2])


def test_reliability_is_drawn_as_it_is(tmp_path, monkeypatch):
    figures, savefig = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *args, **kw: figures.append(self) or savefig(self, *args, **kw),
    )
    logits, labels = draw(SINGLE)
    curves = {name: reliability(softmax(t * logits, axis=1), labels, SINGLE) for name, t in {"a": 1, "b": 5}.items()}
    plot_reliability(curves, tmp_path / "reliability.png", "a model")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    shares, counts = figures[0].axes
    for line, below, (sure, right, count) in zip(shares.lines[1:], counts.lines, curves.values(), strict=True):
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (sure.tolist(), right.tolist())
        assert below.get_ydata().tolist() == count.tolist()
    assert [text.get_text() for text in shares.get_legend().get_texts()] == ["a", "b"]


# In the model


@pytest.mark.parametrize("loader", [ASTForAudioClassification, transformers.ASTForAudioClassification])
def test_a_folded_temperature_divides_the_logits_wherever_the_model_is_loaded(tmp_path, input_values, loader):
    model = random_model(make_tiny_config(head_layer_norm_eps=None))
    with torch.no_grad():
        before = model(input_values).logits
        fold_temperature(model, 1.7)
        torch.testing.assert_close(model(input_values).logits, before / 1.7, atol=1e-6, rtol=0)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(
            loader.from_pretrained(tmp_path).eval()(input_values).logits, before / 1.7, atol=1e-6, rtol=0
        )


def test_thresholds_survive_saving_and_loading_by_both(tmp_path, tiny_model):
    thresholds = {"LABEL_3": 0.123456789012345, "LABEL_0": 0.5, "LABEL_4": 1.0}
    tiny_model.config.thresholds = thresholds
    tiny_model.save_pretrained(tmp_path / "ours")
    assert ASTForAudioClassification.from_pretrained(tmp_path / "ours").config.thresholds == thresholds
    transformers.ASTForAudioClassification.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "stock")
    assert ASTForAudioClassification.from_pretrained(tmp_path / "stock").config.thresholds == thresholds


def test_a_temperature_drops_thresholds_from_before_it(tiny_model, caplog):
    tiny_model.config.thresholds = {"LABEL_0": 0.3}
    fold_temperature(tiny_model, 2.0)
    assert tiny_model.config.thresholds is None and "before the temperature: dropped" in caplog.text


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused_and_nothing_is_changed(tiny_model, temperature):
    before = tiny_model.classifier.dense.weight.clone()
    with pytest.raises(ValueError, match="Expected a temperature above 0, got"):
        fold_temperature(tiny_model, temperature)
    assert torch.equal(tiny_model.classifier.dense.weight, before)


def test_a_regression_has_no_temperature(tiny_model):
    tiny_model.config.problem_type = "regression"
    with pytest.raises(ValueError, match="Expected a classifier .*, got a model for regression"):
        fold_temperature(tiny_model, 2.0)


@pytest.fixture
def with_thresholds(tmp_path, tiny_model) -> Path:
    tiny_model.config.thresholds = {"LABEL_0": 0.3}
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_fresh_head_has_no_thresholds(with_thresholds, tmp_path):
    model = ASTForAudioClassification.from_pretrained(with_thresholds)
    shared = model.config
    model.reset_classifier({0: "LABEL_0", 1: "dog"})
    assert model.config.thresholds is None and shared.thresholds == {"LABEL_0": 0.3}
    for loader in (ASTForAudioClassification, AutoModelForAudioClassification):
        fresh = loader.from_pretrained(with_thresholds, num_labels=3, ignore_mismatched_sizes=True)
        assert fresh.config.num_labels == 3 and fresh.config.thresholds is None
    ASTModel.from_pretrained(with_thresholds).save_pretrained(tmp_path / "body")  # no head, the same configuration
    assert ASTForAudioClassification.from_pretrained(tmp_path / "body").config.thresholds is None


def test_another_geometry_keeps_head_and_thresholds(with_thresholds):
    model = ASTForAudioClassification.from_pretrained(with_thresholds, max_length=48)
    assert model.config.thresholds == {"LABEL_0": 0.3}


# The script


few_sounds = few_synthetic_sounds(train=2, validation=4, test=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_sounds) -> Path:
    """Random features, on which a head was fitted that is much too sure."""
    folder = tmp_path_factory.mktemp("models") / "model"
    config = make_tiny_config(**SHORT, id2label=dict(enumerate(CLASSES)), problem_type=SINGLE)
    config.label2id = {name: index for index, name in config.id2label.items()}
    model, extractor = random_model(config), ASTFeatureExtractor(**SHORT, mean=-7.3, std=4.8)
    labels, pooled = [], []
    for index, name in enumerate(CLASSES):
        for seed in range(4):
            clip = generate_clip(name, torch.Generator().manual_seed(100 * index + seed))
            features = extractor(clip - clip.mean(), sampling_rate=16000, return_tensors="pt")
            with torch.no_grad():
                output = model.audio_spectrogram_transformer(**features).pooler_output
                pooled.append(model.classifier.layernorm(output)[0].numpy())
            labels.append(index)
    head = LogisticRegression(C=10, max_iter=1000).fit(np.stack(pooled), labels)
    model.classifier.dense.weight.data = 3 * torch.from_numpy(head.coef_).float()
    model.classifier.dense.bias.data = 3 * torch.from_numpy(head.intercept_).float()
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: synthetic\nper_device_eval_batch_size: 8\n")
    return path


@pytest.fixture(scope="module")
def calibrated(trained) -> tuple[Path, dict]:
    """The folder that the script writes, with every default, and what it returns."""
    recipe = trained.parent / "recipe.yaml"
    recipe.write_text("dataset_name: synthetic\n")
    before = contents(trained)
    results = run(trained, "--recipe", recipe, "--output_dir", trained.parent / "out")
    assert contents(trained) == before
    return trained.parent / "out", results


def run(*argv) -> dict:
    return main([str(argument) for argument in argv])


def scores(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    clips, labels = held_out(split)
    return by_hand(folder, clips), labels


def test_a_calibrated_model_is_the_old_one_at_a_temperature_with_thresholds(trained, calibrated):
    out, results = calibrated
    old, labels = scores(trained, "validation")
    temperature = results["temperature"]
    assert temperature > 1.2
    losses = {t: loss(np.log(old) / t, labels, SINGLE) for t in (temperature, temperature * 1.01, temperature / 1.01)}
    assert min(losses, key=losses.get) == temperature
    new, _ = scores(out, "validation")
    np.testing.assert_allclose(new, softmax(np.log(old) / temperature, axis=1), atol=1e-5)
    assert results["validation"]["before"]["nll"] == pytest.approx(loss(np.log(old), labels, SINGLE), rel=1e-4)
    assert results["validation"]["after"]["nll"] == pytest.approx(losses[temperature], rel=1e-4)
    assert results["validation"]["after"]["ece"] < results["validation"]["before"]["ece"]

    thresholds = ASTForAudioClassification.from_pretrained(out).config.thresholds
    assert thresholds == pytest.approx(fit_thresholds(new, labels, CLASSES).thresholds, abs=1e-5)
    assert json.loads((out / "calibration_results.json").read_text()) == results
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_before_and_after_are_told_of_test_clips(trained, calibrated):
    out, results = calibrated
    thresholds = ASTForAudioClassification.from_pretrained(out).config.thresholds
    cuts = np.array([thresholds[name] for name in CLASSES])
    for when, folder, decide_at in (("before", trained, 0.5), ("after", out, cuts)):
        probabilities, labels = scores(folder, "test")
        named, one_hot = probabilities >= decide_at, np.eye(len(CLASSES), dtype=int)[labels]
        measured = results["test"][when]
        assert measured["nll"] == pytest.approx(loss(np.log(probabilities), labels, SINGLE), rel=1e-4)
        macro_f1 = f1_score(one_hot, named, average="macro", zero_division=0)
        assert measured["macro_f1_at_thresholds"] == pytest.approx(macro_f1)
        assert measured["micro_f1_at_thresholds"] == pytest.approx(f1_score(one_hot, named, average="micro"))
        own = compute_metrics(probabilities, labels, SINGLE)  # one name, one meaning
        names = ("accuracy", "macro_f1", "micro_f1")
        assert {name: measured[name] for name in names} == pytest.approx({name: own[name] for name in names})


def test_intervals_are_those_of_the_same_decisions_and_of_a_mean(trained, calibrated):
    """In the results and in the card; of the calibration error there is none."""
    out, results = calibrated
    probabilities, labels = scores(trained, "test")
    measured = results["test"]["before"]
    expected = metric_intervals(measured, probabilities, labels, SINGLE)
    assert {"accuracy", "macro_f1", "micro_f1"} <= expected.keys()
    for name, interval in expected.items():
        assert [measured[f"{name}_low"], measured[f"{name}_high"]] == pytest.approx([interval.low, interval.high])
    named = probabilities >= 0.5
    positives = np.eye(len(CLASSES), dtype=bool)[labels]
    at_half = metric_intervals({"micro_f1": f1_score(positives, named, average="micro")}, probabilities, labels, MULTI)
    assert measured["micro_f1_at_thresholds_low"] == pytest.approx(at_half["micro_f1"].low)
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    width = measured["nll_high"] - measured["nll_low"]
    spread = stats.t.ppf(0.975, len(losses) - 1) * losses.std(ddof=1) / len(losses) ** 0.5
    assert width == pytest.approx(2 * spread, rel=0.15) and measured["nll_low"] < measured["nll"]
    assert not any(key.startswith("ece_") for key in measured)
    chosen_by = results["validation"]["after"]  # which flatter it, and say nothing of others
    assert "nll_low" in results["validation"]["before"] and not any(key.endswith("_low") for key in chosen_by)
    low, high = measured["accuracy_low"], measured["accuracy_high"]
    assert f"{measured['accuracy']:.4f} ({low:.4f} to {high:.4f})" in (out / "README.md").read_text()


def test_groups_widen_the_intervals_and_one_clip_has_none():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 40)
    groups = np.tile(list("abcd"), 20)
    logits = rng.normal(size=(80, 2)) + np.eye(2)[labels] + 2 * np.eye(2)[labels] * (groups == "a")[:, None]
    given = SINGLE, 1.0, np.full(2, 0.5), np.full(2, 0.5)
    (alone, _), (grouped, _) = (
        measure_splits({"test": (logits, labels)}, *given, {"test": each}) for each in (None, list(groups))
    )
    widths = [each["test"]["after"]["nll_high"] - each["test"]["after"]["nll_low"] for each in (alone, grouped)]
    assert widths[1] > 1.5 * widths[0]
    one, _ = measure_splits({"test": (logits[:1], labels[:1])}, *given)
    assert not any(key.endswith("_low") for key in one["test"]["before"])


def test_labels_of_the_model_may_have_another_order(trained, calibrated, recipe, tmp_path):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    model = ASTForAudioClassification.from_pretrained(trained)
    for tensor in (model.classifier.dense.weight, model.classifier.dense.bias):
        tensor.data = tensor.data[order]
    model.config.id2label = {index: CLASSES[source] for index, source in enumerate(order)}
    model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "other")
    ASTFeatureExtractor.from_pretrained(trained).save_pretrained(tmp_path / "other")
    results = run(tmp_path / "other", "--recipe", recipe, "--output_dir", tmp_path / "out")
    assert results["temperature"] == pytest.approx(calibrated[1]["temperature"], rel=1e-4)
    found, expected = (
        ASTForAudioClassification.from_pretrained(out).config.thresholds for out in (tmp_path / "out", calibrated[0])
    )
    assert found == pytest.approx(expected, abs=1e-5)


def test_each_step_can_be_left_out(trained, recipe, tmp_path, caplog):
    options = ["--recipe", recipe, "--output_dir"]
    results = run(trained, *options, tmp_path / "thresholds", "--no_temperature", "--target_precision", 0.8)
    old, labels = scores(trained, "validation")
    fitted = fit_thresholds(old, labels, CLASSES, target_precision=0.8)
    model = ASTForAudioClassification.from_pretrained(tmp_path / "thresholds")
    assert model.config.thresholds == pytest.approx(fitted.thresholds, abs=1e-6)
    assert results["temperature"] is None and results["precision_not_reached"] == list(fitted.precision_not_reached)
    for name, tensor in ASTForAudioClassification.from_pretrained(trained).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    named, one_hot = old >= [fitted.thresholds.get(name, 2) for name in CLASSES], np.eye(len(CLASSES))[labels]
    assert ((named * one_hot).sum(axis=0) >= 0.8 * named.sum(axis=0)).all() and named.any()

    # ... and thresholds of before the temperature do not stay.
    results = run(tmp_path / "thresholds", *options, tmp_path / "temperature", "--no_thresholds")
    assert ASTForAudioClassification.from_pretrained(tmp_path / "temperature").config.thresholds is None
    assert "before the temperature: dropped" in caplog.text and results["temperature"] > 1.2
    assert "without_positives" not in results


def test_what_is_reported_as_unknown_is_what_pipelines_refuse(trained, recipe, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    for index in range(6):
        clip = torch.randn(16000, generator=generator) / 10 if index < 3 else generate_clip(CLASSES[index], generator)
        soundfile.write(tmp_path / f"{index}.wav", clip.numpy(), 16000)
    (tmp_path / "others.txt").write_text("".join(f"{index}.wav\n" for index in range(6)))
    options = ["--unknown", 0.2, "--unknown_sounds", tmp_path / "others.txt", "--output_dir", tmp_path / "out"]
    results = run(trained, "--recipe", recipe, "--no_temperature", "--no_thresholds", *options)["unknown"]
    model = ASTForAudioClassification.from_pretrained(tmp_path / "out")
    assert model.config.thresholds is None and model.config.unknown_threshold == results["threshold"]
    for name, tensor in ASTForAudioClassification.from_pretrained(trained).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    tagger = audio_tagger(tmp_path / "out")
    clips, labels = held_out("test")
    for name, paths in (("refused", clips), ("unknown_refused", [tmp_path / f"{index}.wav" for index in range(6)])):
        windows = [load_waveform(path)[: tagger.window_cutter().length] for path in paths]  # all that the model takes
        answers = [tagger(window, top_k=1)[0]["label"] for window in windows]
        assert results[name]["clips"] == len(paths) and results[name]["interval"][0] <= results[name]["value"]
        assert results[name]["value"] == pytest.approx(np.mean([answer == "unknown" for answer in answers]))
        if name == "refused":
            named = [answer == CLASSES[label] for answer, label in zip(answers, labels) if answer != "unknown"]
            assert results["accuracy_of_named"]["value"] == pytest.approx(np.mean(named))
    assert results["split"] == "test" and results["clips"] == 40 and 0 < results["refused"]["value"] < 1
    row = f"| refused of test clips of the labels | 30 | {results['refused']['value']:.4f} | "
    assert row in (tmp_path / "out" / "README.md").read_text() and row in capsys.readouterr().out


def test_models_and_clips_that_unknown_makes_no_sense_of(trained, recipe, tmp_path):
    options = ["--recipe", recipe, "--no_temperature", "--output_dir", tmp_path / "out"]
    with pytest.raises(DataError, match="Expected 99 clips or more to fit on, of which 1.00% are refused, got 40"):
        run(trained, *options, "--unknown", 0.01)
    model = ASTForAudioClassification.from_pretrained(trained)
    model.config.problem_type = MULTI
    model.save_pretrained(tmp_path / "several")
    ASTFeatureExtractor.from_pretrained(trained).save_pretrained(tmp_path / "several")
    with pytest.raises(ModelError, match="Expected a model with one label a clip for --unknown"):
        run(tmp_path / "several", *options, "--unknown")
    assert not (tmp_path / "out").exists()


def test_the_folder_lies_beside_the_models_and_brings_card_recipe_and_licence(trained, recipe, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for name, content in contents(trained).items():
        (model / name).write_bytes(content)
    card = '---\ntags:\n- mine\n---\n\n# model\n\nMy words.\n\n```python\npipeline("x", model="model")\n```\n'
    (model / "README.md").write_text(card)
    (model / "recipe.yaml").write_text("dataset_name: synthetic\n")
    (model / "LICENSE").write_text("mine")
    (model / "all_results.json").write_text('{"test_accuracy": 0.5}')
    results = run(model, "--recipe", recipe)
    out = tmp_path / "model_calibrated"
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "calibration_results.json"),
        *("calibration.png", "README.md", "recipe.yaml", "LICENSE"),
    }
    text = (out / "README.md").read_text()
    assert "\n# model_calibrated\n\nMy words." in text and 'model="model_calibrated"' in text
    assert f"a temperature of {results['temperature']:.4f}" in text and "10 of 10 labels have a threshold" in text
    row = f"| validation (40) | after | {results['validation']['after']['nll']:.4f} |"
    assert row in text and row in capsys.readouterr().out
    with open(out / "README.md", "a") as file:
        file.write("\n## Limits\n\nMine.\n")
    run(out, "--recipe", recipe, "--output_dir", tmp_path / "again")
    again = (tmp_path / "again" / "README.md").read_text()
    assert again.count("## Calibration") == 1 and again.count("\n## Limits\n\nMine.\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_model_without_card_gets_one(calibrated):
    text = (calibrated[0] / "README.md").read_text()
    assert "# out\n\nAn Audio Spectrogram Transformer" in text and "## Calibration" in text


def test_clips_may_have_several_labels_and_some_labels_no_clip(tmp_path, trained, caplog):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(24):
        sounds = [CLASSES[index % 3], CLASSES[(index // 3) % 3]]
        clip = sum(generate_clip(sound, generator) for sound in sounds) / 2
        soundfile.write(tmp_path / f"{index}.wav", clip.numpy(), 16000)
        rows.append((f"{index}.wav", ",".join(sorted(set(sounds))), 1))
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("audio", "label", "fold"), *rows, ("0.wav", ",".join(CLASSES), 2)])
    model = ASTForAudioClassification.from_pretrained(trained)
    model.config.problem_type = MULTI
    model.save_pretrained(tmp_path / "model")
    ASTFeatureExtractor.from_pretrained(trained).save_pretrained(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {tmp_path / 'clips.csv'}\nproblem_type: {MULTI}\nfold_column_name: fold\n")
    results = run(tmp_path / "model", "--recipe", recipe, "--eval_fold", 1)
    assert results["without_positives"] == list(CLASSES[3:]) and "test" not in results
    assert "7 of 10 labels get no threshold, as no validation clip has them; the metrics count them" in caplog.text
    thresholds = ASTForAudioClassification.from_pretrained(tmp_path / "model_calibrated").config.thresholds
    assert list(thresholds) == list(CLASSES[:3])
    clips = [tmp_path / f"{index}.wav" for index in range(24)]
    old, new = (by_hand(tmp_path / name, clips, lambda logits: logits) for name in ("model", "model_calibrated"))
    np.testing.assert_allclose(new, old / results["temperature"], atol=1e-5)
    labels = np.array([[name in row[1].split(",") for name in CLASSES] for row in rows])
    assert thresholds == pytest.approx(fit_thresholds(expit(new), labels, CLASSES).thresholds, abs=1e-5)
    cuts = np.array([thresholds.get(name, 0.5) for name in CLASSES])
    for when, logits, decide_at in (("before", old, 0.5), ("after", new, cuts)):
        own, measured = compute_metrics(expit(logits), labels, MULTI, decide_at), results["validation"][when]
        assert measured["micro_f1"] == pytest.approx(own["micro_f1"]) and "accuracy" not in measured
        assert "micro_f1_at_thresholds" not in measured


def test_the_problem_type_is_the_recipes_where_the_model_has_none(trained, recipe, tmp_path):
    model = ASTForAudioClassification.from_pretrained(trained)
    model.config.problem_type = None
    model.save_pretrained(tmp_path / "model")
    ASTFeatureExtractor.from_pretrained(trained).save_pretrained(tmp_path / "model")
    assert run(tmp_path / "model", "--recipe", recipe)["problem_type"] == SINGLE
    saved = ASTForAudioClassification.from_pretrained(tmp_path / "model_calibrated")
    assert saved.config.problem_type == SINGLE  # without which the thresholds would mean nothing


def write_list(folder: Path, splits: list[str]) -> Path:
    clips = sorted(synthetic_folder().glob("*/*.wav"))[: len(splits)]
    with open(folder / "clips.csv", "w", newline="") as file:
        rows = [(clip, clip.parent.name, split) for clip, split in zip(clips, splits)]
        csv.writer(file).writerows([("audio", "label", "split"), *rows])
    return folder / "clips.csv"


@pytest.mark.parametrize(
    "splits, keys, expected",
    [
        (["train"] * 30, [], {"validation": 30}),
        (["dev"] * 20 + ["test"] * 10, ["--split_column_name=split"], {"validation": 20, "test": 10}),
        (["train"] * 20 + ["test"] * 10, ["--split_column_name=split"], {"validation": 20, "test": 10}),
    ],
)
def test_data_without_training_clips_or_splits_calibrate_whole(trained, recipe, tmp_path, splits, keys, expected):
    clips = write_list(tmp_path, splits)
    options = ["--no_temperature", "--dataset_name", clips, "--output_dir", tmp_path / "out", *keys]
    results = run(trained, "--recipe", recipe, *options)
    assert {name: results[name]["clips"] for name in ("validation", "test") if name in results} == expected


def test_test_clips_calibrate_nothing(trained, recipe, tmp_path):
    options = ["--dataset_name", write_list(tmp_path, ["test"] * 30), "--split_column_name=split"]
    with pytest.raises(DataError, match="expected clips to calibrate on, got test clips alone"):
        run(trained, "--recipe", recipe, *options)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--no_temperature", "--no_thresholds"], "Nothing to do with both"),
        (["--no_thresholds", "--target_precision=0.9"], "--target_precision has no effect with --no_thresholds"),
        (["--unknown_sounds", "{full}"], "--unknown_sounds has no effect without --unknown"),
        (["--unknown=5"], "Expected --unknown between 0 and 1, got 5.0"),
        (["--test_annotations=a.csv"], "--test_annotations has no effect with --recipe"),
        (["--target_precision=90"], r"--target_precision in \(0, 1\], got 90"),
        (
            ["--max_length", "64", "--mean=-5"],
            "No effect on a calibration: max_length, mean. Models bring their own",
        ),
        (["--nonsense", "1"], "No effect on a calibration: nonsense"),
        (["--dataset_name", "nothing.csv"], "no such file"),
        (["--output_dir", "{model}"], "an --output_dir besides the model's own folder"),
        (["--output_dir", "{full}"], "Expected a new or empty folder to write to, but .*full is there"),
        (["--output_dir", "{full}/something"], "Expected a new or empty folder to write to, but .*something is there"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(trained, recipe, tmp_path, options, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    before = contents(trained)
    options = [option.format(model=trained, full=tmp_path / "full") for option in options]
    with pytest.raises((CommandError, RecipeError, DataError), match=message):
        run(trained, "--recipe", recipe, *options)
    assert contents(trained) == before and not trained.with_name("model_calibrated").exists()


def test_models_that_cannot_be_calibrated_say_why(trained, recipe, tmp_path):
    with pytest.raises(CommandError, match="Expected --output_dir, as ME/model is no folder"):
        run("ME/model", "--recipe", recipe)
    with pytest.raises(ModelError, match="nowhere cannot be used: "):
        run(tmp_path / "nowhere", "--recipe", recipe, "--output_dir", tmp_path / "out")
    model = ASTForAudioClassification.from_pretrained(trained)
    model.classifier.dense.weight.data *= -1
    model.classifier.dense.bias.data *= -1
    model.save_pretrained(tmp_path / "wrong")
    ASTFeatureExtractor.from_pretrained(trained).save_pretrained(tmp_path / "wrong")
    with pytest.raises(ModelError, match="wrong cannot be calibrated: Expected logits that say more than chance"):
        run(tmp_path / "wrong", "--recipe", recipe)
    model.reset_classifier(dict(enumerate((*CLASSES[:9], "rain"))))
    model.save_pretrained(tmp_path / "other")
    ASTFeatureExtractor.from_pretrained(trained).save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match=r"labels that the model does not know \(whistle\)"):
        run(tmp_path / "other", "--recipe", recipe)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("calibrated") or path.name == "out"]


@pytest.mark.slow
def test_command_line_ends_with_one_sentence_of_error(recipe, tmp_path):
    command = [
        sys.executable,
        "-m",
        "modeling_ast.commands.calibrate",
        tmp_path / "nowhere",
        "--recipe",
        recipe,
    ]
    command += ["--no_temperature", "--no_thresholds"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: Nothing to do with both")
