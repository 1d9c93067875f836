"""Intervals of metrics: the draws are what repeated clips give, and 95 of 100 intervals hold the truth."""

import math
import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from modeling_ast.data import intervals
from modeling_ast.data.intervals import mean_interval, metric_differences, metric_intervals
from modeling_ast.data.metrics import compute_metrics
from modeling_ast.data.predictions import decide

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def predictions(
    rng, clips: int, labels: int = 4, separation: float = 1.5, shifts=0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and multi-hot labels, a quarter of them positive."""
    positives = rng.random((clips, labels)) < 0.25
    logits = rng.normal(size=(clips, labels)) + separation * positives + shifts
    return 1 / (1 + np.exp(-logits)), positives


@pytest.mark.parametrize("threshold", [0.5, np.array([0.2, 0.5, 0.6, 0.9]), None])
def test_a_draw_has_the_metrics_of_clips_that_stand_there_as_often(threshold):
    rng = np.random.default_rng(0)
    probabilities, positives = predictions(rng, 60)
    probabilities = probabilities.round(1)  # with ties
    if threshold is None:
        positives = np.eye(4, dtype=bool)[rng.integers(4, size=60)]
    times = rng.integers(0, 3, size=60)
    times[positives[:, 3]] = 0  # a class that is not drawn
    kind = (SINGLE, 0.5) if threshold is None else (MULTI, threshold)
    prepared = intervals._Prepared(probabilities, decide(probabilities, *kind), positives)
    drawn = prepared.metrics(times[None].astype(np.float32))
    repeated = probabilities.repeat(times, axis=0), positives.repeat(times, axis=0)
    expected = compute_metrics(*repeated, *kind)
    assert drawn.keys() == expected.keys() - {"d_prime", "classes_without_positives"}
    assert {name: values[0] for name, values in drawn.items()} == pytest.approx(
        {name: expected[name] for name in drawn}, abs=1e-6
    )


def test_each_metric_lies_in_its_interval_and_the_same_clips_give_the_same_one():
    probabilities, positives = predictions(np.random.default_rng(1), 200)
    metrics = compute_metrics(probabilities, positives, MULTI)
    found = metric_intervals(metrics, probabilities, positives, MULTI)
    assert found.keys() == metrics.keys() - {"classes_without_positives"}
    assert all(found[name].low < metrics[name] < found[name].high for name in found)
    assert found == metric_intervals(metrics, probabilities, positives, MULTI)


def test_clips_of_few_groups_say_less_than_as_many_of_their_own():
    rng = np.random.default_rng(2)
    groups = np.repeat([f"speaker {number}" for number in range(8)], 50)
    is_right = rng.random(400) < np.repeat(rng.uniform(0.5, 1, 8), 50)
    labels = rng.integers(2, size=400)
    probabilities = np.eye(2)[np.where(is_right, labels, 1 - labels)]
    alone, together = (
        metric_intervals({"accuracy": is_right.mean()}, probabilities, labels, SINGLE, groups=each)["accuracy"]
        for each in (None, groups)
    )
    assert together.high - together.low > 2 * (alone.high - alone.low)
    again = np.unique(groups, return_inverse=True)[1]  # called otherwise
    assert metric_intervals({"accuracy": is_right.mean()}, probabilities, labels, SINGLE, groups=again) == {
        "accuracy": together
    }


@pytest.mark.parametrize(("right", "low", "high"), [(1, 0.025 ** (1 / 40), 1), (0, 0, 1 - 0.025 ** (1 / 40))])
def test_no_mistake_in_forty_clips_is_no_certainty(right, low, high):
    labels = np.arange(40) % 2
    probabilities = np.eye(2)[labels if right else 1 - labels]
    found = metric_intervals({"accuracy": float(right), "mAP": 1.0}, probabilities, labels, SINGLE)
    assert found.keys() == {"accuracy"}  # of the others nothing can be drawn
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx((low, high))


def test_one_clip_or_one_group_has_no_interval():
    probabilities, labels = np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 0])
    assert metric_intervals({"accuracy": 0.5}, probabilities, labels, SINGLE, groups=["a", "a"]) == {}
    assert metric_intervals({"accuracy": 1.0}, probabilities[:1], labels[:1], SINGLE) == {}
    with pytest.raises(ValueError, match="Expected two clips or groups for an interval, got 1"):
        mean_interval(np.array([1.0, 0.0]), groups=["a", "a"])


@pytest.mark.filterwarnings("error")
def test_an_interval_without_an_end_is_left_out():
    # Two sites, at the smaller of which the ranking is reversed: an AUC of anything, so that d' has no end.
    rng = np.random.default_rng(0)
    positives = rng.random((60, 1)) < 0.5
    scores = np.where(np.arange(60)[:, None] < 54, positives, ~positives) * 0.5 + 0.5 * rng.random((60, 1))
    metrics = compute_metrics(scores, positives, MULTI)
    found = metric_intervals(metrics, scores, positives, MULTI, groups=["a"] * 54 + ["b"] * 6)
    assert "d_prime" in metrics and "d_prime" not in found and "mAUC" in found
    assert all(math.isfinite(end) for interval in found.values() for end in (interval.low, interval.high))


def test_a_difference_is_paired():
    """What makes clips hard for both models is no part of it."""
    rng = np.random.default_rng(3)
    hard = rng.normal(size=(500, 1))
    first, positives = predictions(rng, 500, shifts=2 * hard)
    second = first**1.05 * 0.98  # hardly another model
    models = [(each, each >= 0.5) for each in (first, second)]
    found = metric_differences(models, positives)["mAP"]
    metrics = [compute_metrics(each, positives, MULTI)["mAP"] for each in (first, second)]
    assert [found.first, found.second] == pytest.approx(metrics)
    alone = metric_intervals({"mAP": metrics[0]}, first, positives, MULTI)["mAP"]
    assert found.interval.high - found.interval.low < 0.2 * (alone.high - alone.low)
    same = metric_differences([models[0], models[0]], positives)["micro_f1"]
    assert same.interval.low == same.interval.high == 0 and not same.is_more_than_chance
    better = predictions(rng, 500, separation=4)
    worse = 1 / (1 + np.exp(-rng.normal(size=better[1].shape) - better[1]))
    gain = metric_differences([(worse, worse >= 0.5), (better[0], better[0] >= 0.5)], better[1])["mAP"]
    assert gain.is_more_than_chance and gain.interval.low > 0
    assert metric_differences(2 * [(first[:1], first[:1] >= 0.5)], positives[:1])["micro_f1"].interval is None


def test_what_cannot_be_told_is_not_more_than_chance():
    """The area of clips of one class; and the difference of two clips, which is the same in every draw."""
    scores, positives = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[True, False], [True, False]])
    named = scores >= 0.5
    found = metric_differences([(scores, named), (scores, named)], positives)
    assert "mAUC" not in found and not any(each.is_more_than_chance for each in found.values())
    wrong = metric_differences([(scores, named), (scores[:, ::-1], named[:, ::-1])], positives)["accuracy"]
    assert (wrong.first, wrong.second, wrong.interval) == (1, 0, None) and not wrong.is_more_than_chance


def test_the_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(4).integers(-1, 2, size=400).astype(float)
    found = mean_interval(values)
    assert (found.high + found.low) / 2 == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.966 * values.std(ddof=1) / math.sqrt(400), rel=0.05)


def covers(found, truth: float) -> bool:
    return found.low <= truth <= found.high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracy", "clips", "groups", "spread"),
    [(0.9, 200, None, 0), (0.8, 50, None, 0), (0.97, 100, None, 0), (0.8, 200, 5, 0.7), (0.85, 200, 10, 0.7)],
)
def test_intervals_of_accuracy_hold_the_truth_in_95_of_100_sets(monkeypatch, accuracy, clips, groups, spread):
    """Of 1,500 sets: chance alone moves the share by 1.1 % (two deviations). Groups differ in their log-odds."""
    monkeypatch.setattr(intervals, "MAX_DRAWS", 200)
    rng, middle = np.random.default_rng(5), math.log(accuracy / (1 - accuracy))
    truth = (1 / (1 + np.exp(-(middle + spread * rng.normal(size=1_000_000))))).mean()
    names, labels, held = None, np.arange(clips) % 2, 0
    if groups is not None:
        names = np.repeat(np.arange(groups), clips // groups)
    for _ in range(1500):
        of_clips = middle + (spread * rng.normal(size=groups)[names] if groups else np.zeros(clips))
        is_right = rng.random(clips) < 1 / (1 + np.exp(-of_clips))
        probabilities = np.eye(2)[np.where(is_right, labels, 1 - labels)]
        found = metric_intervals({"accuracy": is_right.mean()}, probabilities, labels, SINGLE, groups=names)
        held += covers(found["accuracy"], truth)
    assert 0.93 <= held / 1500 <= 0.97


@pytest.mark.slow
def test_intervals_of_the_other_metrics_hold_the_truth_in_95_of_100_sets(monkeypatch):
    """Of 600 sets of 200 clips; chance alone moves the share by 1.8 %."""
    monkeypatch.setattr(intervals, "MAX_DRAWS", 200)
    rng = np.random.default_rng(6)
    truth, held = compute_metrics(*predictions(rng, 400_000), MULTI), {}
    for _ in range(600):
        sample = predictions(rng, 200)
        metrics = compute_metrics(*sample, MULTI)
        for name, interval in metric_intervals(metrics, *sample, MULTI).items():
            held[name] = held.get(name, 0) + covers(interval, truth[name]) / 600
    assert held.keys() == truth.keys() - {"classes_without_positives"}
    assert all(0.93 <= share <= 0.97 for share in held.values()), held


@pytest.mark.slow
def test_intervals_of_many_clips_cost_no_more_than_some_times_scikit_learns_metrics():
    rng = np.random.default_rng(7)
    positives = rng.random((5000, 200)) < 0.01
    probabilities = (rng.random(positives.shape) + positives) / 2
    metrics = compute_metrics(probabilities, positives, MULTI)
    before = time.process_time()
    average_precision_score(positives, probabilities)
    roc_auc_score(positives, probabilities)
    between = time.process_time()
    metric_intervals(metrics, probabilities, positives, MULTI)
    assert time.process_time() - between < 5 * (between - before)
