"""Metrics equal the original's and an independent count; the linear yardstick is right where the answer is known."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.metrics import accuracy, compute_metrics, mean_average_precision
from modeling_ast.training.baseline import linear_baseline

pytestmark = pytest.mark.usefixtures("one_thread")

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def counted_average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Mean, over the positives, of the precision among all clips that score at least as high."""
    precisions = [is_positive[scores >= score].mean() for score in scores[is_positive]]
    return float(np.mean(precisions))


def multi_label_problem(num_clips: int = 60, num_labels: int = 7) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((num_clips, num_labels)), generator.random((num_clips, num_labels)) < 0.2


def test_map_equals_the_original(reference):
    expected = np.load(reference / "metrics.npz")
    score, missing = mean_average_precision(expected["predictions"], expected["targets"])
    assert (score, missing) == (pytest.approx(float(expected["mAP"]), abs=1e-9), 0)
    for index, average_precision in enumerate(expected["ap"]):
        column = slice(index, index + 1)
        score, _ = mean_average_precision(expected["predictions"][:, column], expected["targets"][:, column])
        assert score == pytest.approx(average_precision, abs=1e-9)


def test_accuracy_equals_the_original(reference):
    expected = np.load(reference / "metrics.npz")
    for labels in (expected["single_targets"], expected["single_targets"].argmax(axis=1)):
        score = accuracy(expected["single_predictions"], labels)
        assert score == pytest.approx(float(expected["single_accuracy"]), abs=1e-9)


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["no ties", "some ties", "many ties"])
def test_map_equals_an_independent_count(decimals):
    scores, labels = multi_label_problem()
    scores = scores if decimals is None else scores.round(decimals)
    expected = np.mean([counted_average_precision(scores[:, k], labels[:, k]) for k in range(labels.shape[1])])
    assert mean_average_precision(scores, labels.astype(float)) == (pytest.approx(expected, abs=1e-12), 0)


def test_map_depends_on_the_order_of_the_scores_alone():
    scores, labels = multi_label_problem()
    assert mean_average_precision(scores, labels) == mean_average_precision(1 / (1 + np.exp(-scores)), labels)


def test_classes_without_positives_are_left_out_and_counted():
    scores, labels = multi_label_problem()
    labels[:, [2, 5]] = False
    kept = [0, 1, 3, 4, 6]
    expected, _ = mean_average_precision(scores[:, kept], labels[:, kept])
    assert mean_average_precision(scores, labels) == (expected, 2)
    assert compute_metrics(scores, labels, MULTI) == {"mAP": expected, "classes_without_positives": 2}


def test_no_positives_at_all_is_an_error():
    scores, labels = multi_label_problem()
    with pytest.raises(ValueError, match="Expected positive labels for mAP, got none"):
        mean_average_precision(scores, np.zeros_like(labels))


@pytest.mark.parametrize("labels", [np.array([2, 0, 1, 1]), np.eye(3)[[2, 0, 1, 1]]], ids=["indices", "one-hot"])
def test_accuracy_is_the_share_of_highest_logits_that_are_right(labels):
    logits = np.array([[0.0, 1, 2], [5, 4, 3], [9, 1, 2], [-3, -1, -2]])
    assert accuracy(logits, labels) == 0.75
    assert compute_metrics(logits, labels, SINGLE) == {"accuracy": 0.75}


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
    "problem_type, num_labels, kinds",
    [
        (SINGLE, 4, [0, 1, 2, 3]),
        (SINGLE, 2, [0, 1]),
        (SINGLE, 4, [0, 2]),  # two labels of the four never come up
        (MULTI, 3, [[0], [1], [2], [0, 1], [1, 2], []]),
        (MULTI, 2, [[0], [1], [0, 1], []]),
    ],
)
def test_linear_baseline_solves_what_is_linearly_separable(problem_type, num_labels, kinds):
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=32)
    train, evaluation = tones(kinds * 5, num_labels), tones(kinds * 2, num_labels)
    metrics = linear_baseline(train, evaluation, extractor, num_labels, problem_type)
    assert metrics.get("accuracy", metrics.get("mAP")) == 1.0


def test_linear_baseline_hears_max_length_frames_and_no_more():
    """The sounds are the same up to there."""
    rows = tones([0, 1] * 8, 2)[:]
    waveforms = [torch.cat((torch.zeros(2000), clip)) for clip in rows["waveform"]]
    later = Dataset.from_dict({"number": list(range(16)), "labels": rows["labels"]}).with_transform(
        lambda batch: {"waveform": [waveforms[number] for number in batch["number"]], "labels": batch["labels"]}
    )
    for max_length, expected in ((10, 0.5), (32, 1.0)):
        extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=max_length)
        assert linear_baseline(later, later, extractor, 2, SINGLE) == {"accuracy": expected}
