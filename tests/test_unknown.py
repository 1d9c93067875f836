"""Sounds of none of the labels: how far is too far, who forgets it, and what pipelines say of them."""

import csv
import json
from contextlib import nullcontext

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import make_tiny_config, random_model
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score
from test_pipeline import LABELS, LONGEST, assert_same_tags, by_label, make_extractor, save, swelling
from test_recordings import RATE, noise

from modeling_ast import ASTForAudioClassification, ASTModel
from modeling_ast.commands.tag import main as tag
from modeling_ast.data.intervals import metric_intervals, share_interval
from modeling_ast.data.labels import DataError
from modeling_ast.data.unknown import can_be_unknown
from modeling_ast.inference.export import model_warnings
from modeling_ast.inference.fitted_model import build_classifier
from modeling_ast.inference.linear_heads import LinearHead
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.inference.streaming import StreamTagger
from modeling_ast.inference.unknown_calibration import (
    Described,
    KnownSounds,
    calibrate_unknown,
    captured_vectors,
    check_can_refuse,
    check_enough_clips,
    fit_known_sounds,
)
from modeling_ast.loading import ModelError, load_model
from modeling_ast.training.arguments import ModelArguments
from modeling_ast.training.averaging import average_checkpoints
from modeling_ast.training.building import build_model

pytestmark = pytest.mark.usefixtures("one_thread")
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def draw(seed: int, num_clips: int, width: int = 8) -> np.ndarray:
    """Vectors of which one direction has four times the spread of the others."""
    return np.random.default_rng(seed).normal(size=(num_clips, width)) * np.array([4.0] + [1.0] * (width - 1)) + 3


def make_model(threshold: float | None = 1.0, **config) -> ASTForAudioClassification:
    """A model that knows sounds, of which `threshold` says how near they are."""
    options = {"problem_type": SINGLE, "id2label": dict(enumerate(LABELS)), "head_layer_norm_eps": None, **config}
    options["label2id"] = {name: index for index, name in options["id2label"].items()}
    model = random_model(make_tiny_config(**options))
    if threshold is not None:
        sounds = KnownSounds.fit(draw(0, 60, model.config.hidden_size))
        model.learn_known_sounds(torch.from_numpy(sounds.mean), torch.from_numpy(sounds.factor), threshold)
    return model


# The distance


def test_distances_are_those_of_mahalanobis():
    vectors, others = draw(0, 40), draw(1, 10)
    sounds = KnownSounds.fit(vectors)
    inverse = np.linalg.inv(ledoit_wolf(vectors)[0])
    expected = [mahalanobis(each, vectors.mean(axis=0), inverse) / np.sqrt(8) for each in others]
    np.testing.assert_allclose(sounds.measure(others), expected, rtol=1e-9)
    model = make_model(None)
    width = model.config.hidden_size
    sounds = KnownSounds.fit(draw(0, 60, width))
    model.learn_known_sounds(torch.from_numpy(sounds.mean), torch.from_numpy(sounds.factor), 1.0)
    pooled = torch.randn(5, width)
    with torch.no_grad():
        expected = sounds.measure(model.classifier.layernorm(pooled).numpy())
        np.testing.assert_allclose(model.classifier.measure_distance(pooled), expected, rtol=1e-4)


@pytest.mark.parametrize("share, num_clips", [(0.1, 60), (0.05, 19)])
def test_no_more_than_the_share_of_other_clips_lies_beyond_the_threshold(share, num_clips):
    refused = []
    for seed in range(40):
        sounds, threshold = fit_known_sounds(draw(seed, num_clips), share)
        refused.append((sounds.measure(draw(1000 + seed, 200)) > threshold).mean())
    assert share / 3 < np.mean(refused) < share


def test_groups_are_not_divided():
    """Clips of a group are alike: one that helps to tell where the others lie makes them look near."""
    generator = np.random.default_rng(0)
    centres, groups = 5 * generator.normal(size=(12, 8)), np.repeat(np.arange(12), 10).astype(str)
    vectors = np.repeat(centres, 10, axis=0) + generator.normal(size=(120, 8)) / 10
    by_clip, by_group = (fit_known_sounds(vectors, 0.1, each)[1] for each in (None, groups))
    assert by_group > 1.1 * by_clip


@pytest.mark.parametrize(
    "vectors, groups, message",
    [
        (draw(0, 18), None, "Expected 19 clips or more to fit on, of which 5.00% are refused, got 18"),
        (draw(0, 30), ["a"] * 30, "Expected clips of two groups or more"),
        (np.ones((30, 8)), None, "Expected clips that differ from one another"),
    ],
)
def test_clips_that_nothing_can_be_fitted_to_are_refused(vectors, groups, message):
    with pytest.raises(DataError, match=message):
        fit_known_sounds(vectors, 0.05, groups)


@pytest.mark.parametrize(
    "num_clips, has_test, message",
    [
        (19, True, None),
        (18, True, "19 clips"),
        (24, False, None),
        (23, False, "19 clips or more to fit on, .* got 18"),
    ],
)
def test_too_few_clips_are_told_before_anything_is_predicted(num_clips, has_test, message):
    with pytest.raises(DataError, match=message) if message else nullcontext():
        check_enough_clips(num_clips, 0.05, None, has_test)
    if message is None:  # and they are enough
        known = {
            "validation": Described(draw(0, num_clips, make_model().config.hidden_size), np.arange(num_clips) > 3)
        }
        known |= {"test": known["validation"]} if has_test else {}
        model = make_model(None)
        assert calibrate_unknown(model, known, 0.05)["clips"] == num_clips
    with pytest.raises(DataError, match="of three without test clips"):
        check_enough_clips(100, 0.05, ["a", "b"] * 50, has_test=False)
    check_enough_clips(100, 0.05, ["a", "b"] * 50, has_test=True)


def test_the_interval_of_the_area_goes_by_groups():
    model, width = make_model(None), make_model(None).config.hidden_size
    offsets = np.random.default_rng(0).normal(size=(6, 1)).repeat(20, axis=0)
    vectors, groups = draw(0, 120, width) * np.exp(offsets), np.repeat(np.arange(6), 20).astype(str)
    lengths = []
    for own in (None, groups):
        test = Described(vectors, np.arange(120) > 3, own)
        known = {"validation": Described(draw(1, 60, width), np.arange(60) > 3), "test": test}
        low, high = calibrate_unknown(model, known, 0.1, Described(draw(2, 60, width) * 2))["auroc"]["interval"]
        lengths.append(high - low)
    assert lengths[1] > 2 * lengths[0]


def test_a_share_has_the_interval_of_an_accuracy():
    flags = np.random.default_rng(0).random(90) < 0.2
    probabilities = np.stack([flags, ~flags], axis=1).astype(float)
    for groups in (None, np.arange(90).astype(str).tolist(), (np.arange(90) // 5).astype(str).tolist()):
        (expected,) = metric_intervals(
            {"accuracy": flags.mean()}, probabilities, flags * 0, SINGLE, 0.5, groups
        ).values()
        found = share_interval(flags, groups)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert share_interval(np.zeros(10, bool)).low == 0 < share_interval(np.zeros(10, bool)).high < 0.4
    assert share_interval(np.zeros(1, bool)) is share_interval(np.zeros(0, bool)) is None


def test_what_is_refused_is_told_of_other_clips():
    model = make_model(None)
    width = model.config.hidden_size
    vectors, right = draw(0, 60, width), np.arange(60) % 4 > 0
    far = Described(draw(2, 30, width) + 1)
    alone = calibrate_unknown(model, {"validation": Described(vectors, right)}, 0.1, far)
    threshold, sounds = model.config.unknown_threshold, KnownSounds.fit(vectors)
    assert alone["split"] == "validation" and alone["threshold"] == threshold == fit_known_sounds(vectors, 0.1)[1]
    assert alone["unknown_refused"]["value"] == (sounds.measure(far.vectors) > threshold).mean() > 0.3
    assert 0 < alone["refused"]["value"] < 0.25 and alone["refused"]["clips"] == 60
    test = Described(draw(3, 50, width), np.arange(50) % 2 > 0)
    both = calibrate_unknown(model, {"validation": Described(vectors, right), "test": test}, 0.1, far)
    distances = sounds.measure(test.vectors)
    assert both["split"] == "test" and both["refused"]["value"] == (distances > threshold).mean()
    assert both["accuracy"]["value"] == 0.5
    assert both["accuracy_of_named"]["value"] == test.right[distances <= threshold].mean()
    area = roc_auc_score([0] * 50 + [1] * 30, [*distances, *sounds.measure(far.vectors)])
    assert both["auroc"]["value"] == area and both["auroc"]["interval"][0] < area < 1
    assert "auroc" not in calibrate_unknown(model, {"validation": Described(vectors, right)}, 0.1)
    json.dumps(both, allow_nan=False)


def test_models_that_need_no_unknown_are_refused():
    with pytest.raises(ModelError, match="one label a clip for --unknown, got one with several"):
        check_can_refuse(make_model(None, problem_type=MULTI))
    with pytest.raises(ModelError, match="without a label 'unknown' for --unknown"):
        check_can_refuse(make_model(None, id2label={0: "dog", 1: "unknown"}))


# In the model


def test_known_sounds_are_saved_and_change_no_logits(tmp_path, input_values):
    model = make_model(0.7)
    model.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        expected = random_model(make_tiny_config(head_layer_norm_eps=None))(input_values).logits
        for loader in (ASTForAudioClassification, transformers.ASTForAudioClassification):
            loaded = loader.from_pretrained(tmp_path / "ours").eval()
            torch.testing.assert_close(loaded(input_values).logits, expected, atol=1e-6, rtol=0)
    again = ASTForAudioClassification.from_pretrained(tmp_path / "ours")
    assert again.config.unknown_threshold == 0.7 and can_be_unknown(again.config)
    for name in ("known_mean", "known_factor"):
        assert torch.equal(getattr(again.classifier, name), getattr(model.classifier, name))
    loaded.save_pretrained(tmp_path / "stock")  # which keeps the threshold, and not what it is measured by
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["unknown_threshold"] == 0.7
    make_extractor().save_pretrained(tmp_path / "stock")
    assert knows_nothing(load_model(tmp_path / "stock")[0])


def knows_nothing(model: ASTForAudioClassification) -> bool:
    known = [name for name in model.state_dict() if "known" in name]
    return model.config.unknown_threshold is None and not known


def test_another_head_knows_no_sounds(tmp_path):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    fresh = ASTForAudioClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    reset = ASTForAudioClassification.from_pretrained(folder)
    reset.reset_classifier({0: "rain", 1: "dog"})
    trained_on = build_model(ModelArguments(model_name_or_path=str(folder)), LABELS)
    averaged = average_checkpoints([folder, save(tmp_path / "other", problem_type=SINGLE)])
    body = ASTModel.from_pretrained(folder)
    width = body.config.hidden_size
    head = LinearHead(np.zeros(width), np.ones(width), np.zeros((2, width)), np.zeros(2), 1.0)
    fitted = build_classifier(body, head, ["a", "b"], SINGLE)
    for model in (fresh, reset, trained_on, averaged, fitted):
        assert knows_nothing(model)


def test_an_export_says_that_it_refuses_nothing():
    (warning,) = model_warnings("a model", make_model().config)
    assert "a model calls some sounds unknown: what is exported" in warning
    assert not model_warnings("a model", make_model(None).config)
    assert not model_warnings("a model", make_model(problem_type=MULTI).config)


# In pipelines

RECORDING = swelling(12 * LONGEST)


@pytest.fixture(scope="module")
def taggers(tmp_path_factory) -> tuple:
    """Pipelines of a model that names all, and of the same that refuses half of the windows of a recording: which."""
    plain = save(tmp_path_factory.mktemp("plain"), problem_type=SINGLE)
    free, own = (audio_tagger(plain, top_k=None) for _ in range(2))
    with captured_vectors(free.model) as vectors:
        free(RECORDING)
    vectors = np.concatenate(vectors)
    sounds = KnownSounds.fit(vectors)
    distances = sounds.measure(vectors)
    threshold = np.sort(distances)[len(distances) // 2 - 1 : len(distances) // 2 + 1].mean()
    own.model.learn_known_sounds(torch.from_numpy(sounds.mean), torch.from_numpy(sounds.factor), float(threshold))
    folder = tmp_path_factory.mktemp("refusing")
    own.save_pretrained(folder)
    return free, audio_tagger(folder, top_k=None), distances > threshold


def test_refused_windows_have_no_score_of_a_label(taggers):
    free, tagger, is_refused = taggers
    expected, result = (each(RECORDING, return_timeline=True) for each in (free, tagger))
    timeline = result["timeline"]
    assert timeline.label_names == [*LABELS, "unknown"] and 0 < is_refused.sum() < len(is_refused)
    np.testing.assert_allclose(timeline.scores[~is_refused, :-1], expected["timeline"].scores[~is_refused], atol=1e-5)
    assert not timeline.scores[is_refused, :-1].any() and (timeline.scores[:, -1] == is_refused).all()
    weights = np.diff(timeline.boundaries)
    scores = by_label(result["tags"])
    assert scores["unknown"] == pytest.approx(np.average(is_refused, weights=weights)) and len(scores) == 6
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
    loudest = by_label(tagger(RECORDING, aggregate="max"))
    assert loudest["unknown"] == scores["unknown"]
    assert loudest["dog"] == pytest.approx(timeline.scores[:, 1].max())
    events = timeline.find_events(threshold=1e-6, low_threshold=1e-6)
    for start, refused in zip(timeline.times, is_refused):
        names = {event.label for event in events if event.start <= start < event.end}
        assert names == ({"unknown"} if refused else set(LABELS))
    stream = StreamTagger(tagger)
    stream.push(RECORDING)
    assert by_label(stream.finish()) == pytest.approx(scores, abs=1e-5)


def test_a_recording_is_unknown_or_as_if_nothing_was(taggers):
    free, tagger, _ = taggers
    model, threshold = tagger.model, tagger.model.config.unknown_threshold
    try:
        model.config.unknown_threshold = 1e-6
        for options in ({}, {"top_k": 1}, {"threshold": 0}, {"threshold": 1.0}, {"aggregate": "max"}):
            assert tagger(RECORDING, **options) == tagger(noise(9000)) == [{"score": 1.0, "label": "unknown"}]
        # These are no scores that anything was fitted to.
        for function in ("sigmoid", "none"):
            assert_same_tags(*(each(RECORDING, function_to_apply=function) for each in (tagger, free)))
        model.config.problem_type = MULTI
        assert_same_tags(tagger(RECORDING), free(RECORDING, function_to_apply="sigmoid"))
        model.config.problem_type, model.config.unknown_threshold = SINGLE, 1e6
        assert_same_tags(tagger(RECORDING), free(RECORDING))
        model.config.unknown_threshold = None
        assert_same_tags(tagger(RECORDING), free(RECORDING))
    finally:
        model.config.problem_type, model.config.unknown_threshold = SINGLE, threshold


def test_tables_of_tag_name_what_is_unknown(taggers, tmp_path):
    _, tagger, is_refused = taggers
    tagger.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "sound.wav", RECORDING, RATE, subtype="FLOAT")
    out = ["--output_dir", str(tmp_path / "out")]
    assert tag([str(tmp_path / "sound.wav"), "--model", str(tmp_path / "model"), *out, "--threshold", "0.1"]) == 0
    (line,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert "unknown" in by_label(line["tags"]) and "unknown" in {event["label"] for event in line["events"]}
    with open(tmp_path / "out" / "timelines" / f"{line['place']}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["unknown"] == "1.0" for row in rows] == is_refused.tolist()
    tag(["--events_only", *out, "--threshold", "0.1", "--ignore", "unknown"])
    (again,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert again["events"] == [event for event in line["events"] if event["label"] != "unknown"] != line["events"]
