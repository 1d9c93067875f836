"""Events are those of a plain state machine, times are exact to the sample, and tables read back."""

import csv
import math

import numpy as np
import pytest

from modeling_ast.inference.timeline import Event, Timeline, audacity_labels

RATE = 16000
LABELS = ["rain", "dog", "clock"]


def make_timeline(seed: int, num_rows: int = 60, thresholds: dict | None = None) -> Timeline:
    """Rows of different lengths, and scores in tenths, so that many equal a threshold."""
    generator = np.random.default_rng(seed)
    boundaries = np.concatenate(([0], generator.integers(1, 6, num_rows).cumsum() * 1600))
    scores = generator.integers(0, 11, (num_rows, len(LABELS))).astype(np.float32) / np.float32(10)
    return Timeline(boundaries, scores, LABELS, RATE, thresholds or {})


def of_one_label(scores: list[float], hop: int = 1600, **options) -> Timeline:
    boundaries = np.arange(len(scores) + 1) * hop
    return Timeline(boundaries, np.array(scores, dtype=np.float32)[:, None], ["rain"], RATE, **options)


def slow_events(timeline: Timeline, column: int, high: float, low: float, shortest: int, gap: int) -> list[tuple]:
    """(first sample, end sample, score), row by row; lengths in samples."""
    runs, start, best = [], None, -math.inf
    for row, score in enumerate([*timeline.scores[:, column].tolist(), -math.inf]):
        if score >= low:
            start = row if start is None else start
            best = max(best, score)
        elif start is not None:
            if best >= high:
                runs.append((int(timeline.boundaries[start]), int(timeline.boundaries[row]), best))
            start, best = None, -math.inf
    events = []
    for run in runs:
        if events and run[0] - events[-1][1] <= gap:
            events[-1] = (events[-1][0], run[1], max(events[-1][2], run[2]))
        else:
            events.append(run)
    return [event for event in events if event[1] - event[0] >= shortest]


@pytest.mark.parametrize("seed", range(20))
def test_events_are_those_of_a_plain_state_machine(seed):
    timeline = make_timeline(seed)
    generator = np.random.default_rng(100 + seed)
    high = float(timeline.scores[generator.integers(60), 0])
    low = float(generator.choice([high, high / 2, 0.0]))
    shortest, gap = (int(1600 * generator.integers(0, 12)) for _ in range(2))
    events = timeline.find_events(high, low, min_seconds=shortest / RATE, merge_seconds=gap / RATE)
    expected = [
        (label, *event)
        for column, label in enumerate(LABELS)
        for event in slow_events(timeline, column, high, low, shortest, gap)
    ]
    found = [(event.label, round(event.start * RATE, 6), round(event.end * RATE, 6), event.score) for event in events]
    assert sorted(found) == sorted(expected)
    assert [(event.start, event.label) for event in events] == sorted((e.start, e.label) for e in events)


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
@pytest.mark.parametrize("seed", range(10))
def test_labels_that_never_reach_their_threshold_are_passed_over_and_no_others(seed, kind):
    """Thresholds lie at the scores and beside them, as float32 and float64 round them; some scores are no number."""
    generator = np.random.default_rng(seed)
    labels = [f"label {number:03}" for number in range(527)]
    scores = (generator.random((20, 527)) ** 8).astype(np.float32)
    scores[generator.random(scores.shape) < 0.01] = np.nan
    peaks = np.fmax.reduce(scores, axis=0).astype(np.float64) + generator.choice([-1e-9, 0, 1e-9, 0.1], 527)
    thresholds = {label: kind(peak) for label, peak in zip(labels, peaks)}
    timeline = Timeline(np.arange(21) * 1600, scores, labels, RATE, thresholds)
    expected, times = [], timeline.times
    for column, label in enumerate(labels):  # one by one, as if each could have events
        high = thresholds[label]
        low = min(high, high / 2)
        row = 0
        while row < 20:
            end = row
            while end < 20 and scores[end, column] >= low:
                end += 1
            if end > row and (best := scores[row:end, column].max()) >= high:
                expected.append(Event(label, float(times[row]), float(times[end]), float(best)))
            row = max(end, row + 1)
    events = timeline.find_events()
    assert events == sorted(expected, key=lambda event: (event.start, event.label))
    assert 200 < len({event.label for event in events}) < 500


def test_the_low_threshold_is_half_of_the_threshold_where_none_is_given():
    timeline = make_timeline(0)
    assert timeline.find_events(0.8) == timeline.find_events(0.8, 0.4) != timeline.find_events(0.8, 0.8)


def test_a_negative_threshold_of_logits_has_itself_for_low_threshold():
    timeline = of_one_label([-3.0, -1.5, -0.4, -3.0])
    assert timeline.find_events(-1.0) == timeline.find_events(-1.0, -1.0)
    assert timeline.find_events(-1.0) == [Event("rain", 0.2, 0.3, pytest.approx(-0.4))]


def test_a_wavering_score_is_one_event():
    assert len(of_one_label([0.0, 0.55, 0.45, 0.55, 0.45, 0.55, 0.0]).find_events(0.5)) == 1


@pytest.mark.parametrize("first", range(40))
def test_lengths_are_compared_to_the_sample_wherever_the_event_is(first):
    """1.4 - 1.1 is less than 0.3 in floating point."""
    timeline = of_one_label([0.0] * first + [1.0] * 3 + [0.0] * 3 + [1.0] * 3)
    assert len(timeline.find_events(min_seconds=0.3)) == 2
    assert timeline.find_events(min_seconds=0.30001) == []
    assert len(timeline.find_events(merge_seconds=0.3)) == 1
    assert len(timeline.find_events(merge_seconds=0.29999)) == 2


def test_events_at_both_ends_reach_them():
    events = of_one_label([1.0, 0.0, 1.0]).find_events()
    assert [(event.start, event.end) for event in events] == [(0.0, 0.1), (0.2, pytest.approx(0.3, abs=1e-12))]


def test_times_are_exact_to_the_sample_after_a_day():
    start = 24 * 3600 * 44100 + 1
    timeline = Timeline(np.array([0, start, start + 1]), np.array([[0.0], [1.0]], dtype=np.float32), ["rain"], 44100)
    (event,) = timeline.find_events()
    assert (round(event.start * 44100), round(event.end * 44100)) == (start, start + 1)
    assert timeline.seconds == pytest.approx((start + 1) / 44100, abs=1e-9)
    start_text, end_text, _ = audacity_labels([event]).split("\t")
    assert (round(float(start_text) * 44100), round(float(end_text) * 44100)) == (start, start + 1)


# Thresholds


def test_fitted_thresholds_hold_where_none_are_given():
    timeline = make_timeline(1, thresholds={"dog": 0.9})
    for label, threshold in (("rain", 0.5), ("dog", 0.9), ("clock", 0.5)):
        others = [name for name in LABELS if name != label]
        assert timeline.find_events(ignore=others) == timeline.find_events(threshold, ignore=others)


def test_one_threshold_overrides_the_fitted_ones():
    assert make_timeline(1, thresholds={"dog": 0.9}).find_events(0.7) == make_timeline(1).find_events(0.7)


def test_thresholds_by_label_leave_the_others_as_they_are():
    timeline = make_timeline(2, thresholds={"dog": 0.9, "clock": 0.8})
    events = timeline.find_events({"dog": 0.6, "rain": 0.7})
    for label, threshold in (("rain", 0.7), ("dog", 0.6), ("clock", 0.8)):
        alone = timeline.find_events(threshold, ignore=[name for name in LABELS if name != label])
        assert [event for event in events if event.label == label] == alone != []


def test_ignored_labels_give_no_events():
    timeline = make_timeline(3)
    assert {event.label for event in timeline.find_events()} == set(LABELS)
    assert {event.label for event in timeline.find_events(ignore=["dog"])} == {"rain", "clock"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": math.nan}, "finite numbers, got nan"),
        ({"threshold": "0.5"}, "finite numbers, got '0.5'"),
        ({"threshold": True}, "finite numbers, got True"),
        ({"threshold": [0.5]}, "finite numbers"),
        ({"threshold": {"rain": math.inf}}, "finite numbers, got inf"),
        ({"threshold": {"rain": None}}, "finite numbers, got None"),
        ({"threshold": {"cat": 0.5}}, "labels of the model, got 'cat'"),
        ({"ignore": ["cat"]}, "labels of the model, got 'cat'"),
        ({"low_threshold": math.nan}, "finite numbers, got nan"),
        ({"low_threshold": 0.6}, "at most the threshold of rain, 0.5, got 0.6"),
        ({"min_seconds": -0.1}, "at least 0, got -0.1 and"),
        ({"min_seconds": math.nan}, "at least 0, got nan and"),
        ({"merge_seconds": -1}, "at least 0, got 0.0 and -1"),
        ({"merge_seconds": "1"}, "at least 0, got 0.0 and '1'"),
    ],
)
def test_what_cannot_be_is_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        make_timeline(0).find_events(**options)


# One score a recording


def test_the_mean_is_over_time_not_over_rows():
    timeline = make_timeline(4)
    by_sample = np.repeat(timeline.scores.astype(np.float64), np.diff(timeline.boundaries), axis=0)
    np.testing.assert_allclose(timeline.aggregate("mean"), by_sample.mean(axis=0), atol=1e-6)
    assert not np.allclose(timeline.aggregate("mean"), timeline.scores.mean(axis=0), atol=1e-3)
    assert timeline.aggregate("mean").dtype == np.float32


def test_the_maximum_is_over_rows():
    timeline = make_timeline(4)
    assert timeline.aggregate("max").tolist() == [max(column) for column in timeline.scores.T.tolist()]


def test_another_aggregate_is_one_sentence():
    with pytest.raises(ValueError, match="Expected aggregate to be mean or max, got 'median'"):
        make_timeline(0).aggregate("median")


# Files


def test_the_csv_reads_back(tmp_path):
    timeline = make_timeline(5)
    timeline.label_names = ["rain, heavy", 'the "dog"', "Öl"]
    timeline.write_csv(tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["start", "end", *timeline.label_names]
    values = np.array(rows, dtype=np.float64)
    np.testing.assert_array_equal(np.rint(values[:, 0] * RATE), timeline.boundaries[:-1])
    np.testing.assert_array_equal(np.rint(values[:, 1] * RATE), timeline.boundaries[1:])
    np.testing.assert_allclose(values[:, 2:], timeline.scores, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_the_audacity_track_reads_back():
    events = make_timeline(6).find_events(0.7)
    lines = [line.split("\t") for line in audacity_labels(events).splitlines()]
    assert [(float(start), float(end), label) for start, end, label in lines] == [
        (pytest.approx(event.start, abs=1e-6), pytest.approx(event.end, abs=1e-6), event.label) for event in events
    ]


def test_tabs_and_line_ends_in_a_label_do_not_break_the_audacity_track():
    text = audacity_labels([Event("a\tb\nc", 0.0, 1.0, 0.5)])
    assert text == "0.000000\t1.000000\ta b c\n"


def test_no_events_are_an_empty_track():
    assert audacity_labels([]) == ""
