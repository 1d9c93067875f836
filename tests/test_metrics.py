"""Metrics equal the original's and an independent count; the linear yardstick is right where the answer is known."""

import csv
import json
import logging
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.metrics import (
    AUDIO_TAGGING_METRIC,
    DivergedError,
    accuracy,
    average_precision,
    compute_metrics,
    d_prime,
    f1,
    mean_average_precision,
    multi_hot,
    per_class_metrics,
    positive_labels,
    roc_auc,
    to_probabilities,
    write_figures,
)
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.baseline import check_classes, linear_baseline

pytestmark = pytest.mark.usefixtures("one_thread")

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
MEANS = {"mAP", "mAUC", "d_prime", "macro_f1", "micro_f1"}


def counted_average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Mean, over the positives, of the precision among all clips that score at least as high."""
    precisions = [is_positive[scores >= score].mean() for score in scores[is_positive]]
    return float(np.mean(precisions))


def counted_auc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Share of pairs of a positive and a negative clip that are in the right order; ties are half right."""
    differences = scores[is_positive][:, None] - scores[~is_positive]
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def multi_label_problem(num_clips: int = 60, num_labels: int = 7) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.random((num_clips, num_labels)), generator.random((num_clips, num_labels)) < 0.2


def single_label_problem(num_clips: int = 60, num_labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((num_clips, num_labels))
    return to_probabilities(logits, SINGLE), generator.integers(0, num_labels, num_clips)


# Parity


def test_metrics_equal_the_original(reference):
    expected = np.load(reference / "metrics.npz")
    scores, labels = expected["predictions"], expected["targets"]
    np.testing.assert_allclose(average_precision(scores, labels), expected["ap"], atol=1e-9, rtol=0)
    np.testing.assert_allclose(roc_auc(scores, labels), expected["auc"], atol=1e-9, rtol=0)
    metrics = compute_metrics(scores, labels, MULTI)
    for name in ("mAP", "mAUC", "d_prime"):
        assert metrics[name] == pytest.approx(float(expected[name]), abs=1e-9), name


def test_single_label_metrics_equal_the_original(reference):
    expected = np.load(reference / "metrics.npz")
    scores, one_hot = expected["single_predictions"], expected["single_targets"]
    for labels in (one_hot, one_hot.astype(int), one_hot.argmax(axis=1)):
        assert accuracy(scores, labels) == pytest.approx(float(expected["single_accuracy"]), abs=1e-9)
        np.testing.assert_allclose(average_precision(scores, labels), expected["single_ap"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("area, expected", [(0.978562, 2.863664), (0.961010, 2.492598)])
def test_d_prime_equals_the_published_logs(area, expected):
    assert d_prime(area) == pytest.approx(expected, abs=2e-5)  # the area is given with six decimals


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["no ties", "some ties", "many ties"])
def test_ap_and_auc_equal_an_independent_count(decimals):
    scores, labels = multi_label_problem()
    scores = scores if decimals is None else scores.round(decimals)
    columns = [(scores[:, k], labels[:, k]) for k in range(labels.shape[1])]
    precisions = [counted_average_precision(*column) for column in columns]
    areas = [counted_auc(*column) for column in columns]
    np.testing.assert_allclose(average_precision(scores, labels.astype(float)), precisions, atol=1e-12)
    np.testing.assert_allclose(roc_auc(scores, labels.astype(int)), areas, atol=1e-12)
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(precisions), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ap_and_auc_equal_scikit_learn(dtype):
    scores, labels = multi_label_problem(num_clips=2000)
    scores[:100] = scores.round(1)[:100]
    scores = (1e6 * scores if dtype is np.float64 else scores).astype(dtype)
    for ours, theirs in ((average_precision, average_precision_score), (roc_auc, roc_auc_score)):
        np.testing.assert_allclose(ours(scores, labels), theirs(labels, scores, average=None), atol=1e-12)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0, 1.1])
def test_f1_at_a_threshold_equals_scikit_learn(threshold):
    probabilities, labels = multi_label_problem()
    probabilities = probabilities.round(1)  # some are at the threshold
    predicted = probabilities >= threshold
    expected = [f1_score(labels, predicted, average=average, zero_division=0) for average in ("macro", "micro")]
    assert f1(probabilities, labels, threshold) == pytest.approx(expected, abs=1e-12)
    metrics = compute_metrics(probabilities, labels, MULTI, threshold)
    assert [metrics["macro_f1"], metrics["micro_f1"]] == pytest.approx(expected, abs=1e-12)


def test_f1_of_a_single_label_is_that_of_the_highest_score():
    probabilities, labels = single_label_problem()
    expected = [f1_score(labels, probabilities.argmax(axis=1), average=average) for average in ("macro", "micro")]
    for threshold in (0.5, 0.9):  # where it has nothing to say
        metrics = compute_metrics(probabilities, labels, SINGLE, threshold)
        assert [metrics["macro_f1"], metrics["micro_f1"]] == pytest.approx(expected, abs=1e-12)


def test_probabilities_equal_those_of_torch_and_stay_finite():
    logits = np.array([[0.0, 1, -2], [90, -90, 3], [1e4, -1e4, 0]])
    expected = {MULTI: torch.tensor(logits).float().sigmoid(), SINGLE: torch.tensor(logits).float().softmax(dim=1)}
    for problem_type, values in expected.items():
        probabilities = to_probabilities(logits.astype(np.float16), problem_type)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, values, atol=1e-6)


# Invariance


def test_metrics_do_not_depend_on_the_order_of_the_clips():
    order = np.random.default_rng(2).permutation(60)
    for (probabilities, labels), problem_type in ((multi_label_problem(), MULTI), (single_label_problem(), SINGLE)):
        expected = compute_metrics(probabilities, labels, problem_type)
        shuffled = compute_metrics(probabilities[order], labels[order], problem_type)
        assert expected.keys() == shuffled.keys() and shuffled == pytest.approx(expected, abs=1e-12)


def test_ap_and_auc_depend_on_the_order_of_the_scores_alone():
    scores, labels = multi_label_problem()
    for metric in (average_precision, roc_auc):
        assert np.array_equal(metric(scores, labels), metric(np.exp(3 * scores), labels))


def test_all_forms_of_labels_give_the_same():
    probabilities, labels = single_label_problem()
    one_hot = np.eye(4)[labels]
    expected = compute_metrics(probabilities, labels, SINGLE)
    for same in (one_hot, one_hot.astype(bool), one_hot.astype(np.int8), labels.astype(float)):
        assert compute_metrics(probabilities, same, SINGLE) == expected
    assert compute_metrics(probabilities, multi_hot(labels, 4), SINGLE) == expected
    assert compute_metrics(probabilities, multi_hot([[int(label)] for label in labels], 4), SINGLE) == expected
    assert multi_hot([[0, 2], []], 3).tolist() == [[True, False, True], [False] * 3]


def test_accuracy_is_given_where_every_clip_has_one_label():
    """Whatever the loss was: Speech Commands trains its single labels with binary cross entropy."""
    probabilities, labels = single_label_problem()
    expected = (probabilities.argmax(axis=1) == labels).mean()
    for problem_type in (SINGLE, MULTI):
        assert compute_metrics(probabilities, np.eye(4)[labels], problem_type)["accuracy"] == expected
    two = np.eye(4)[labels]
    two[0] = 1
    assert "accuracy" not in compute_metrics(probabilities, two, MULTI)


# What cannot be told


@pytest.fixture
def said(caplog) -> pytest.LogCaptureFixture:
    """What the metrics say, as if for the first time: they say each thing once a process."""
    logging.Logger.warning_once.cache_clear()
    caplog.set_level(logging.WARNING, "modeling_ast.data.metrics")
    return caplog


def test_classes_without_positives_are_left_out_counted_and_named_once(said):
    scores, labels = multi_label_problem()
    labels[:, [2, 5]] = False
    kept = [0, 1, 3, 4, 6]
    expected = compute_metrics(scores[:, kept], labels[:, kept], MULTI)
    for _ in range(2):
        metrics = compute_metrics(scores, labels, MULTI, label_names=list("abcdefg"))
    for name in ("mAP", "mAUC", "d_prime", "macro_f1"):
        assert metrics[name] == expected[name], name
    assert (metrics["classes_without_positives"], expected["classes_without_positives"]) == (2, 0)
    # Micro F1 counts decisions, and those on these classes too.
    assert metrics["micro_f1"] == pytest.approx(f1_score(labels, scores >= 0.5, average="micro"))
    (message,) = said.messages
    assert message == "2 of 7 classes have no positive clip and are left out of mAP, mAUC and macro F1: c, f."


def test_a_class_without_negatives_is_left_out_of_the_auc_alone(said):
    scores, labels = multi_label_problem()
    labels[:, 1] = True
    kept = [0, 2, 3, 4, 5, 6]
    metrics = compute_metrics(scores, labels, MULTI)
    assert metrics["mAUC"] == pytest.approx(roc_auc(scores[:, kept], labels[:, kept]).mean(), abs=1e-12)
    assert metrics["mAP"] == pytest.approx((6 * mean_average_precision(scores[:, kept], labels[:, kept]) + 1) / 7)
    assert "1 of 7 classes have no negative clip and are left out of mAUC: LABEL_1." in said.text


def test_without_any_label_there_are_no_means(said):
    scores, labels = multi_label_problem()
    assert compute_metrics(scores, np.zeros_like(labels), MULTI) == {"classes_without_positives": 7}
    assert "No clip that is evaluated has a label" in said.text
    for metric, word in ((mean_average_precision, "mAP"), (f1, "F1")):
        with pytest.raises(ValueError, match=f"clips for {word}, got none"):
            metric(scores, np.zeros_like(labels))


def test_metrics_are_valid_json_whatever_the_predictions():
    perfect = np.eye(3)[[0, 1, 2, 1]]
    assert d_prime(1.0) == np.inf
    metrics = compute_metrics(perfect, np.array([0, 1, 2, 1]), SINGLE)
    assert metrics == {
        **{"accuracy": 1.0, "mAP": 1.0, "mAUC": 1.0, "macro_f1": 1.0, "micro_f1": 1.0},
        "classes_without_positives": 0,
    }
    one_class = compute_metrics(perfect, np.array([1, 1, 1, 1]), SINGLE)
    assert MEANS - one_class.keys() == {"mAUC", "d_prime"} and one_class["classes_without_positives"] == 2
    for some in (metrics, one_class, compute_metrics(*multi_label_problem(), MULTI)):
        assert json.loads(json.dumps(some, allow_nan=False)) == some


@pytest.mark.parametrize(
    "scores, labels, message",
    [
        (np.zeros((2, 3)), np.array([0, 3]), r"Expected labels from 0 to 2, got \[3\]"),
        (np.zeros((2, 3)), np.full((2, 3), 0.5), r"Expected labels from 0 to 1, got \[0.5\]"),
        (np.zeros((2, 3)), np.zeros((2, 4)), r"Expected labels of shape \(2,\) or \(2, 3\), as the scores, got"),
        (np.full((2, 3), np.nan), np.array([0, 1]), "Expected finite scores, got NaN or infinite ones. Did the train"),
        (np.zeros((0, 3)), np.zeros(0), r"at least one clip, got \(0, 3\)"),
    ],
)
def test_scores_and_labels_are_checked(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(scores, labels, SINGLE)


@pytest.mark.parametrize(
    "metric",
    [mean_average_precision, f1, average_precision, roc_auc, per_class_metrics, positive_labels],
)
def test_every_metric_refuses_what_is_no_number_and_labels_that_do_not_fit(metric):
    scores, labels = multi_label_problem()
    with pytest.raises(DivergedError, match="Expected finite scores, got NaN or infinite ones"):
        metric(np.where(np.arange(len(scores))[:, None] == 3, np.inf, scores), labels)
    with pytest.raises(ValueError, match=r"Expected labels of shape .*, as the scores, got \(\d+, 6\)"):
        metric(scores, labels[:, 1:])


def test_other_errors_say_what_was_expected():
    scores, labels = multi_label_problem()
    with pytest.raises(ValueError, match="Expected 7 label names, one a column of the scores, got 2"):
        per_class_metrics(scores, labels, ["a", "b"])
    with pytest.raises(ValueError, match="Expected problem_type .* got regression"):
        to_probabilities(scores, "regression")


# Per class


def test_per_class_table_holds_each_class(tmp_path):
    scores, labels = multi_label_problem()
    labels[:, 2] = False
    labels[:, 4] = True
    rows = per_class_metrics(scores, labels, [f"sound, {letter}" for letter in "abcdefg"])
    assert [row["positives"] for row in rows] == labels.sum(axis=0).tolist()
    assert rows[1]["AP"] == pytest.approx(counted_average_precision(scores[:, 1], labels[:, 1]))
    assert rows[1]["AUC"] == pytest.approx(counted_auc(scores[:, 1], labels[:, 1]))
    assert (rows[2]["AP"], rows[2]["AUC"], rows[4]["AP"], rows[4]["AUC"]) == (None, None, 1.0, None)
    write_figures(tmp_path / "per_class.csv", rows)
    with open(tmp_path / "per_class.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["label", "AP", "AUC", "positives"]
    for written, row in zip(table, rows, strict=True):
        assert {key: value or None for key, value in written.items()} == {
            key: None if value is None else str(value) for key, value in row.items()
        }


# As an evaluate.Metric


@pytest.fixture(scope="module")
def evaluate_metric(tmp_path_factory):
    """Loaded by its folder, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        evaluate = pytest.importorskip("evaluate")
        cache = tmp_path_factory.mktemp("evaluate")
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(cache / "modules"))
        patch.syspath_prepend(cache / "modules")
        yield lambda: evaluate.load(AUDIO_TAGGING_METRIC, cache_dir=str(cache))


@pytest.mark.parametrize("as_tensors", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("problem_type", [MULTI, SINGLE])
def test_evaluate_gives_the_same_metrics(evaluate_metric, problem_type, as_tensors):
    probabilities, labels = multi_label_problem() if problem_type == MULTI else single_label_problem()
    labels = labels.astype(int)
    metric, convert = evaluate_metric(), torch.from_numpy if as_tensors else np.asarray
    for start in range(0, 60, 25):
        part = slice(start, start + 25)
        metric.add_batch(predictions=convert(probabilities[part]), references=convert(labels[part]))
    assert metric.compute(threshold=0.3) == compute_metrics(probabilities, labels, problem_type, 0.3)
    together = metric.compute(predictions=probabilities.tolist(), references=labels.tolist())
    assert together == compute_metrics(probabilities, labels, problem_type)


def test_evaluate_metric_describes_itself(evaluate_metric):
    metric = evaluate_metric()
    assert "mAP" in metric.description and "Interspeech" in metric.citation
    assert "predictions" in metric.inputs_description and "threshold" in metric.inputs_description


def test_each_import_of_the_evaluate_module_stands_on_its_own_line():
    """The scanner of `evaluate` takes `import a, b` for one package."""
    (script,) = Path(AUDIO_TAGGING_METRIC).glob("audio_tagging.py")
    imports = [line for line in script.read_text().splitlines() if line.startswith("import ")]
    assert imports and not [line for line in imports if "," in line]


@pytest.mark.slow
def test_all_metrics_of_audioset_take_a_few_seconds():
    generator = np.random.default_rng(0)
    probabilities = generator.random((19000, 527), dtype=np.float32)
    labels = (generator.random((19000, 527)) < 0.005).astype(np.float32)
    start = process_time()
    compute_metrics(probabilities, labels, MULTI)
    assert process_time() - start < 60  # five on an idle core


# The linear yardstick


def tones(labels: list, num_labels: int) -> Dataset:
    """Clips with a tone of its own for each label, at a level of their own, in weak noise."""
    generator = torch.Generator().manual_seed(len(labels))
    seconds = torch.arange(4800) / 16000
    waveforms = []
    for clip_labels in labels:
        clip = 0.001 * torch.randn(4800, generator=generator)
        for label in clip_labels if isinstance(clip_labels, list) else [clip_labels]:
            level = 0.1 + 0.3 * torch.rand((), generator=generator)
            clip += level * torch.sin(2 * torch.pi * 400 * 2**label * seconds)
        waveforms.append(clip)
    rows = Dataset.from_dict({"number": list(range(len(labels))), "labels": labels})
    return rows.with_transform(
        lambda batch: {"waveform": [waveforms[number] for number in batch["number"]], "labels": batch["labels"]}
    )


@pytest.mark.parametrize(
    "metric, num_labels, kinds",
    [
        ("accuracy", 4, [0, 1, 2, 3]),
        ("accuracy", 2, [0, 1]),
        ("accuracy", 4, [0, 2]),  # two labels of the four never come up
        ("accuracy", 3, [[0], [1], [2]]),  # as Speech Commands has them
        ("mAP", 3, [[0], [1], [2], [0, 1], [1, 2], []]),
        ("mAP", 2, [[0], [1], [0, 1], []]),
        ("mAP", 1, [[0], []]),  # a detector
    ],
)
def test_linear_baseline_solves_what_is_linearly_separable(metric, num_labels, kinds):
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=32)
    train, evaluation = tones(kinds * 5, num_labels), tones(kinds * 2, num_labels)
    assert linear_baseline(train, evaluation, extractor, [*map(str, range(num_labels))])[metric] == 1.0


@pytest.mark.parametrize("labels", [[1, 1, 1], [[1], [1]]], ids=str)
def test_linear_baseline_needs_two_classes_and_says_so_by_the_labels_alone(labels):
    with pytest.raises(RecipeError, match="of two classes at least for linear_baseline, got b alone"):
        check_classes(Dataset.from_dict({"labels": labels}), ["a", "b"])


@pytest.mark.parametrize("labels", [[1, 1, 0], [[1], []], [[1, 0], [1, 0]], [[], []]], ids=str)
def test_linear_baseline_takes_what_can_be_told_apart(labels):
    check_classes(Dataset.from_dict({"labels": labels}), ["a", "b"])


def test_linear_baseline_hears_max_length_frames_and_no_more():
    """The sounds are the same up to there."""
    rows = tones([0, 1] * 8, 2)[:]
    waveforms = [torch.cat((torch.zeros(2000), clip)) for clip in rows["waveform"]]
    later = Dataset.from_dict({"number": list(range(16)), "labels": rows["labels"]}).with_transform(
        lambda batch: {"waveform": [waveforms[number] for number in batch["number"]], "labels": batch["labels"]}
    )
    for max_length, expected in ((10, 0.5), (32, 1.0)):
        extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=max_length)
        assert linear_baseline(later, later, extractor, ["a", "b"])["accuracy"] == expected
