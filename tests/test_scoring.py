"""Events against annotations: by hand, by properties, and as the field's own libraries count them where they are."""

import json
import math
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from conftest import make_tiny_config, random_model
from helpers import read_csv, save_checkpoint, write_csv, write_sound

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands import calibrate, score
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.truth import read_truth
from modeling_ast.inference import event_calibration
from modeling_ast.inference.psds import SCENARIOS, PSDSettings, polyphonic_score
from modeling_ast.inference.scored_recordings import ScoredRecording, _places, _to_events, choose_labels
from modeling_ast.inference.scoring import (
    Counts,
    count_by_collars,
    count_by_intersection,
    count_by_segments,
    count_events,
    summarize,
)
from modeling_ast.inference.sound_files import SoundFile, stamp_of
from modeling_ast.inference.tags_folder import TagsFolder
from modeling_ast.inference.timeline import Event, Timeline
from modeling_ast.loading import ModelError

LABELS = ("bell", "dog", "rain")


def events(*triples) -> list[Event]:
    return [Event(label, start, end, 1.0) for label, start, end in triples]


def draw_recording(seed, num_rows=120, seconds=60.0):
    """True events, of which those of a label do not overlap, and a timeline that knows something of them."""
    draw = np.random.default_rng(seed)
    boundaries = np.linspace(0, seconds * 1000, num_rows + 1).round().astype(np.int64)
    truth, scores = [], np.zeros((num_rows, len(LABELS)), np.float32)
    for number, label in enumerate(LABELS):
        edges = np.sort(draw.uniform(0, seconds, 10)).round(2)
        own = [Event(label, float(a), float(b), 1.0) for a, b in zip(edges[::2], edges[1::2]) if b - a > 0.1]
        truth += own
        middles = (boundaries[1:] + boundaries[:-1]) / 2000
        is_in = np.any([(e.start <= middles) & (middles < e.end) for e in own], axis=0)
        scores[:, number] = np.clip(draw.normal(np.where(is_in, 0.65, 0.35), 0.15), 0, 1).round(2)  # with ties
    return truth, Timeline(boundaries, scores, list(LABELS), 1000)


def test_counts_by_hand():
    truth = events(("a", 1, 2), ("a", 3, 5), ("a", 8, 9))
    found = events(("a", 1.2, 2.2), ("a", 3.1, 5.4), ("a", 3.15, 5), ("a", 8.5, 9))
    assert count_by_collars(truth, found) == Counts(2, 1, 2)  # an end may be 0.4 s off where the event has 2 s
    assert count_by_collars(truth, found, offset_share=0.0) == Counts(2, 1, 2)
    assert count_by_collars(truth, found[:2], offset_share=0.0) == Counts(1, 2, 1)
    pieces = events(("a", 3, 3.9), ("a", 4, 4.9), ("a", 6, 7))
    assert count_by_intersection(truth, pieces) == Counts(1, 2, 1)
    assert count_by_intersection(truth, events(("a", 0, 10))) == Counts(0, 3, 1)
    assert count_by_intersection(truth, events(("a", 0, 10)), detection_share=0.4) == Counts(3, 0, 0)
    assert count_by_segments(truth, pieces) == Counts(2, 2, 1)
    for count in (count_by_collars, count_by_intersection, count_by_segments):
        assert count([], []) == Counts() and count(truth, truth).f1 == 1
        assert count([], found).recall is None and count(truth, []).precision is None


def test_counts_of_recordings_and_labels_add_up():
    recordings = [(draw_recording(seed)[0], draw_recording(seed + 10)[0]) for seed in range(3)]
    counts = count_events(recordings, LABELS, count_by_intersection)
    for label in LABELS:
        own = [[[e for e in some if e.label == label] for some in pair] for pair in recordings]
        assert counts[label] == sum((count_by_intersection(*pair) for pair in own), Counts())
    total = summarize(counts)
    hits, misses = (sum(getattr(each, name) for each in counts.values()) for name in ("hits", "misses"))
    assert total["recall"] == hits / (hits + misses) and total["macro_f1"] == np.mean([c.f1 for c in counts.values()])
    assert summarize({}) == {"precision": None, "recall": None, "f1": None, "macro_f1": None}


def slow_curve(recordings, label, settings):
    """Counts at every threshold, each from its own events."""
    points = []
    scores = np.unique(np.concatenate([t.scores[:, t.label_names.index(label)] for _, t in recordings]))
    for threshold in scores[::-1]:
        counts = Counts()
        for truth, timeline in recordings:
            is_on = np.concatenate(([0], timeline.scores[:, timeline.label_names.index(label)] >= threshold, [0]))
            starts, ends = np.flatnonzero(np.diff(is_on) == 1), np.flatnonzero(np.diff(is_on) == -1)
            found = [Event(label, timeline.times[a], timeline.times[b], 1.0) for a, b in zip(starts, ends)]
            own = [event for event in truth if event.label == label]
            counts += count_by_intersection(own, found, settings.detection_share, settings.truth_share)
        points.append((counts.inventions, counts.hits / (counts.hits + counts.misses)))
    return points


def test_the_polyphonic_score_of_a_label_is_that_of_every_threshold_by_itself():
    recordings, settings = [draw_recording(seed) for seed in range(3)], SCENARIOS["psds1"]
    _, of_each = polyphonic_score(recordings, LABELS, settings)
    seconds = sum(timeline.seconds for _, timeline in recordings)
    for label in LABELS:
        points = slow_curve(recordings, label, settings)
        rates = np.array([3600 * count / seconds for count, _ in points])
        grid = np.unique(np.append(rates[rates <= settings.max_rate], [0, settings.max_rate]))
        best = [
            max([share for rate, (_, share) in zip(rates, points) if rate <= each], default=0) for each in grid[:-1]
        ]
        assert of_each[label] == pytest.approx((np.diff(grid) * best).sum() / settings.max_rate, abs=1e-9)


def test_perfect_timelines_score_one_and_those_that_say_nothing_score_zero():
    truth = events(("bell", 1, 2), ("dog", 4, 6))
    scores = np.zeros((10, 2), np.float32)
    scores[1, 0] = scores[4:6, 1] = 0.9
    timeline = Timeline(np.arange(11) * 1000, scores, ["bell", "dog"], 1000)
    for settings in SCENARIOS.values():
        assert polyphonic_score([(truth, timeline)], ["bell", "dog"], settings)[0] == pytest.approx(1)
        nothing = Timeline(np.arange(11) * 1000, np.zeros((10, 2), np.float32), ["bell", "dog"], 1000)
        strict = PSDSettings(0.7, 0.7)
        assert polyphonic_score([(truth, nothing)], ["bell", "dog"], strict)[0] == 0
    with pytest.raises(ValueError, match="got none of bell"):
        polyphonic_score([(truth[1:], timeline)], ["bell", "dog"], SCENARIOS["psds1"])


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_sed_eval(seed):
    sed_eval = pytest.importorskip("sed_eval")
    containers = pytest.importorskip("dcase_util").containers
    drawn = [draw_recording(seed + number) for number in range(2)]
    recordings = [(truth, timeline.find_events(0.5)) for truth, timeline in drawn]
    event_based = sed_eval.sound_event.EventBasedMetrics(
        list(LABELS), t_collar=0.3, percentage_of_length=0.2, event_matching_type="optimal"
    )
    segment_based = sed_eval.sound_event.SegmentBasedMetrics(list(LABELS), time_resolution=1.0)
    for number, pair in enumerate(recordings):
        true, found = (
            containers.MetaDataContainer(
                [{"filename": f"{number}.wav", "event_label": e.label, "onset": e.start, "offset": e.end} for e in own]
            )
            for own in pair
        )
        event_based.evaluate(true, found)
        segment_based.evaluate(true, found)
    for metric, count in (
        (event_based, lambda *pair: count_by_collars(*pair, onset_seconds=0.3, offset_seconds=0.3)),
        (segment_based, count_by_segments),
    ):
        counts = count_events(recordings, LABELS, count)
        expected = metric.results_class_wise_metrics()
        for label in LABELS:
            for key, own in (("f_measure", "f1"), ("precision", "precision"), ("recall", "recall")):
                other = expected[label]["f_measure"][key]
                assert (getattr(counts[label], own) or 0) == pytest.approx(np.nan_to_num(other), abs=1e-6)
        overall = metric.results_overall_metrics()["f_measure"]["f_measure"]
        assert summarize(counts)["f1"] == pytest.approx(overall, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_scores_over_all_thresholds_are_those_of_sed_scores_eval(seed, monkeypatch):
    library = pytest.importorskip("sed_scores_eval")
    from sed_scores_eval.base_modules import statistics
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    find = statistics.onset_offset_curves  # to which pandas 3 gives arrays that it must not write into
    monkeypatch.setattr(statistics, "onset_offset_curves", lambda scores, *rest: find(np.array(scores), *rest))
    recordings = [draw_recording(seed + number) for number in range(3)]
    scores = [create_score_dataframe(t.scores.astype(float), t.times, list(LABELS)) for _, t in recordings]
    scores = {str(number): table for number, table in enumerate(scores)}
    truth = {str(n): [(e.start, e.end, e.label) for e in own] for n, (own, _) in enumerate(recordings)}
    durations = {str(number): timeline.seconds for number, (_, timeline) in enumerate(recordings)}
    for settings in SCENARIOS.values():
        shares = {"dtc_threshold": settings.detection_share, "gtc_threshold": settings.truth_share}
        weights = {"alpha_ct": settings.cross_weight, "alpha_st": settings.spread_weight}
        rest = {"cttc_threshold": settings.cross_share, "max_efpr": settings.max_rate}
        expected, of_each, *_ = library.intersection_based.psds(scores, truth, durations, **shares, **weights, **rest)
        found, own = polyphonic_score(recordings, LABELS, settings)
        assert found == pytest.approx(expected, abs=1e-6) and own == pytest.approx(of_each, abs=1e-6)
        f1, *_ = library.intersection_based.fscore(scores, truth, threshold=0.4949, **shares)
        events = [(own, t.find_events(0.4949, low_threshold=0.4949)) for own, t in recordings]
        names = {"detection_share": settings.detection_share, "truth_share": settings.truth_share}
        counts = count_events(events, LABELS, partial(count_by_intersection, **names))
        assert {label: each.f1 for label, each in counts.items()} == pytest.approx(
            {k: f1[k] for k in LABELS}, abs=1e-6
        )


# The command


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A folder of results of recordings whose truth is known, as `modeling-ast tag` writes it; and the truth."""
    folder = tmp_path_factory.mktemp("tagged")
    start = random_model(make_tiny_config(id2label=dict(enumerate(LABELS)), problem_type="multi_label_classification"))
    model = save_checkpoint(folder / "model", start, mean=-7.0, std=4.0)
    extractor = ASTFeatureExtractor.from_pretrained(model)
    settings = {"model": str(model), "fingerprint": fingerprint_model(start, extractor)}
    settings |= {"min_seconds": 0.0, "merge_seconds": 0.0, "ignore": [], "thresholds": {}, "sampling_rate": 16000}
    results, truth = TagsFolder(folder / "results", settings, ["csv"]), {}
    for seed in range(4):
        path = write_sound(folder / f"{seed}.wav", np.random.default_rng(seed).normal(0, 0.05, 60 * 16000))
        truth[str(path)], drawn = draw_recording(seed)
        timeline = Timeline(drawn.boundaries * 16, drawn.scores, list(LABELS), 16000)
        file = SoundFile(str(path), f"{seed}", stamp_of(str(path)))
        results.add(file, [], timeline.find_events(), timeline, extractor)
    return folder, truth


def write_truth(path, truth, seeds=range(4), **other):
    rows = [
        {"audio": name, "start": event.start, "end": event.end, "label": other.get(event.label, event.label)}
        for name, events in truth.items()
        for event in events
        if int(Path(name).stem) in seeds
    ]
    return str(write_csv(path, rows))


def test_results_are_scored_against_lists_and_label_files_alike(tagged, tmp_path, capsys):
    folder, truth = tagged
    path = write_truth(tmp_path / "truth.csv", truth)
    listed = score.main([str(folder / "results"), path, f"--output_dir={tmp_path}"])
    timelines = [(truth[line["path"]], each) for line, each in TagsFolder.reopen(folder / "results").results()]
    found = [(own, timeline.find_events()) for own, timeline in timelines]
    assert listed["collars"] == summarize(count_events(found, LABELS, count_by_collars))
    assert listed["psds1"] == polyphonic_score(timelines, LABELS, SCENARIOS["psds1"])[0]
    assert f"| all | {sum(map(len, truth.values()))} |" in capsys.readouterr().out
    assert json.loads((tmp_path / "score.json").read_text()) == listed
    assert [row["label"] for row in read_csv(tmp_path / "labels.csv")] == list(LABELS)
    (tmp_path / "moved").mkdir()
    for name, events in truth.items():
        (tmp_path / "moved" / Path(name).name).symlink_to(name)
        text = "".join(f"{event.start}\t{event.end}\t{event.label}\n" for event in events)
        (tmp_path / "moved" / f"{Path(name).stem}.txt").write_text(text)
    beside = score.main([str(folder / "results"), str(tmp_path / "moved"), f"--output_dir={tmp_path}"])
    assert {**beside, "annotations": ""} == {**listed, "annotations": ""}


def test_some_recordings_and_labels_are_scored_alone(tagged, tmp_path, caplog):
    folder, truth = tagged
    path = write_truth(tmp_path / "truth.csv", truth, seeds=[1])
    keys = [f"--output_dir={tmp_path}", "--labels", "dog"]
    results = score.main([str(folder / "results"), path, *keys])
    assert results["recordings"] == 1 and list(results["labels"]) == ["dog"]
    assert "3 recording(s) without annotations are left out" in caplog.text and "bell, rain" in caplog.text


def test_a_recording_of_the_same_name_in_another_folder_is_another(tagged):
    folder, truth = tagged
    (name,) = [name for name in truth if name.endswith("1.wav")]
    here, elsewhere = os.path.realpath(name), os.path.realpath("elsewhere/1.wav")
    assert _places([name], [name, "elsewhere/1.wav"]) == {here: name}
    assert _places([name], ["elsewhere/1.wav"]) == {here: name, elsewhere: name}
    assert _places(["elsewhere/1.wav"], [name]) == {elsewhere: "elsewhere/1.wav"}  # the other is where it was
    assert _places([name], ["elsewhere/1.wav", "beside/1.wav"]) == {here: name}  # which of both it was none can tell


def test_cells_with_a_label_that_has_a_comma_get_a_hint():
    timeline = SimpleNamespace(label_names=["Domestic animals, pets", "Rain"])
    recording = ScoredRecording("a.wav", events(("Domestic animals", 0, 1), ("pets", 0, 1)), [], timeline)
    with pytest.raises(
        DataError, match="Expected labels of the model, .* divided at commas, unless --label_separator"
    ):
        choose_labels([recording], None)


def test_a_recording_with_two_names_is_one(tmp_path):
    write_sound(tmp_path / "a.wav", np.zeros(16000))
    (tmp_path / "alias.wav").symlink_to("a.wav")
    rows = [
        {"audio": name, "start": start, "end": start + 0.5, "label": "dog"}
        for name, start in (("a.wav", 0), ("alias.wav", 0.5))
    ]
    ((path, found),) = read_truth(str(write_csv(tmp_path / "list.csv", rows))).items()
    assert path.endswith("a.wav") and [each[:2] for each in found] == [(0, 0.5), (0.5, 1)]


def test_annotations_of_a_label_that_overlap_are_one_event():
    rows = [(3.0, math.inf, "dog"), (0.0, 3.0, "dog"), (0.5, 1.0, "dog"), (0.9, 3.1, "rain"), (0.0, 1.0, "rain")]
    assert [(each.label, each.start, each.end) for each in _to_events("a.wav", rows, 10.0)] == [
        ("dog", 0.0, 3.0),
        ("rain", 0.0, 3.1),
        ("dog", 3.0, 10.0),
    ]


def test_reading_results_changes_nothing_and_waits_for_parts(tagged, tmp_path):
    folder, truth = tagged
    shutil.copytree(folder / "results", tmp_path / "results")
    with open(tmp_path / "results" / "results.jsonl", "a") as file:
        file.write('{"path": "half a line')
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    assert TagsFolder.reopen(tmp_path / "results", read_only=True).entries.keys() == truth.keys()
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()} == before
    (tmp_path / "results" / "results-1-of-2.jsonl").touch()
    with pytest.raises(DataError, match="a run in parts that has not ended"):
        TagsFolder.reopen(tmp_path / "results", read_only=True)


def test_what_cannot_be_scored_is_one_sentence(tagged, tmp_path):
    folder, truth = tagged
    results = str(folder / "results")
    with pytest.raises(DataError, match="Expected labels of the model, got cat"):
        score.main([results, write_truth(tmp_path / "a.csv", truth, dog="cat")])
    with pytest.raises(DataError, match="Expected annotated events to compare with"):
        score.main([results, write_truth(tmp_path / "a.csv", truth, dog="", bell="", rain="")])
    with pytest.raises(DataError, match="expected annotated recordings, a list with the columns start and end"):
        score.main([results, str(write_csv(tmp_path / "b.csv", [{"audio": next(iter(truth)), "label": "dog"}]))])
    late = [{"audio": next(iter(truth)), "start": 61, "end": 62, "label": "dog"}]
    with pytest.raises(DataError, match="dog is annotated at 61 s, behind the end at 60 s"):
        score.main([results, str(write_csv(tmp_path / "b.csv", late))])
    in_milliseconds = [{"audio": next(iter(truth)), "start": 0, "end": 1500, "label": "dog"}]
    with pytest.raises(DataError, match="dog is annotated up to 1500 s, far behind the end at 60 s"):
        score.main([results, str(write_csv(tmp_path / "b.csv", in_milliseconds))])
    write_sound(tmp_path / "other.wav", np.zeros(16000))
    rows = [{"audio": "other.wav", "start": 0, "end": 1, "label": "dog"}]
    with pytest.raises(DataError, match="1 annotated recording.s. have no results: .*other.wav"):
        score.main([results, str(write_csv(tmp_path / "b.csv", rows))])
    with pytest.raises(DataError, match="holds no results"):
        score.main([str(tmp_path), write_truth(tmp_path / "a.csv", truth)])
    with pytest.raises(RecipeError, match="No effect on annotations: window_seconds"):
        score.main([results, "a.csv", "--window_seconds=1"])
    with pytest.raises(CommandError, match="Expected collar that is finite, got inf"):
        score.main([results, "a.csv", "--collar=inf"])
    with pytest.raises(CommandError, match="Expected truth_share above 0 and at most 1, got 2"):
        score.main([results, "a.csv", "--truth_share=2"])


@pytest.mark.slow
def test_pictures_show_annotations_above_events(tagged, tmp_path):
    folder, truth = tagged
    path = write_truth(tmp_path / "truth.csv", truth, seeds=[0])
    score.main([str(folder / "results"), path, f"--output_dir={tmp_path}", "--pictures"])
    (picture,) = (tmp_path / "pictures").iterdir()
    image = matplotlib.image.imread(picture)[..., :3]
    green = np.abs(image - np.array([0x4B, 0x8B, 0x3B]) / 255).max(axis=-1) < 0.02
    red = np.abs(image - np.array([0xC0, 0x50, 0x4D]) / 255).max(axis=-1) < 0.02
    assert green.sum() > 500 and red.sum() > 500


# Calibration by annotations


def test_thresholds_and_lengths_are_chosen_on_some_recordings_and_reported_on_others(tagged, tmp_path, monkeypatch):
    monkeypatch.setattr(event_calibration, "LENGTHS", (0.0, 1.0))
    folder, truth = tagged
    chosen, others = (write_truth(tmp_path / f"{seeds}.csv", truth, seeds) for seeds in ([0, 1], [2, 3]))
    keys = ["--results", str(folder / "results"), "--annotations", chosen, "--test_annotations", others]
    results = calibrate.main([str(folder / "model"), *keys, "--output_dir", str(tmp_path / "calibrated")])
    config = json.loads((tmp_path / "calibrated" / "config.json").read_text())
    assert config["thresholds"] == results["thresholds"] and set(results["thresholds"]) == set(LABELS)
    lengths = {"min_seconds": results["min_seconds"], "merge_seconds": results["merge_seconds"]}
    for seeds, part in (([0, 1], "chosen on"), ([2, 3], "reported on")):
        drawn = [draw_recording(seed) for seed in seeds]
        for when, options in (("before", {}), ("after", {"threshold": results["thresholds"], **lengths})):
            found = [(own, timeline.find_events(**options)) for own, timeline in drawn]
            expected = summarize(count_events(found, LABELS, count_by_intersection))
            assert results[part][when]["intersection"] == expected
        better, worse = (results[part][when]["intersection"]["macro_f1"] for when in ("after", "before"))
        assert better > worse + 0.1
    card = (tmp_path / "calibrated" / "README.md").read_text()
    assert f"--min_seconds {results['min_seconds']:g}" in card and "| reported on (2) | after |" in card


def test_labels_that_are_not_annotated_keep_their_thresholds(tagged, tmp_path, monkeypatch):
    monkeypatch.setattr(event_calibration, "LENGTHS", (0.0,))
    folder, truth = tagged
    own = random_model(make_tiny_config(id2label=dict(enumerate(LABELS)), problem_type="multi_label_classification"))
    own.config.thresholds = {"dog": 0.123, "bell": 0.9}
    model = save_checkpoint(tmp_path / "model", own, mean=-7.0, std=4.0)
    tags = shutil.copytree(folder / "results", tmp_path / "results")
    settings = json.loads((tags / "settings.json").read_text())
    settings["fingerprint"] = fingerprint_model(own, ASTFeatureExtractor.from_pretrained(model))
    (tags / "settings.json").write_text(json.dumps(settings))
    bells = {name: [event for event in events if event.label == "bell"] for name, events in truth.items()}
    path = write_truth(tmp_path / "bells.csv", bells)
    keys = ["--results", str(tags), "--annotations", path, "--output_dir", str(tmp_path / "out")]
    results = calibrate.main([str(model), *keys])
    assert list(results["thresholds"]) == ["bell"]
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["thresholds"]
    assert saved == {"dog": 0.123, **results["thresholds"]}


def test_what_cannot_be_calibrated_by_annotations_is_one_sentence(tagged, tmp_path):
    folder, truth = tagged
    path, out = write_truth(tmp_path / "a.csv", truth), ["--output_dir", str(tmp_path / "out")]
    keys = ["--results", str(folder / "results"), "--annotations", path]
    with pytest.raises(DataError, match="Expected other recordings to report on than to choose by, got .*0.wav"):
        calibrate.main([str(folder / "model"), *keys, "--test_annotations", path, *out])
    other = random_model(make_tiny_config(id2label=dict(enumerate(LABELS))))
    save_checkpoint(tmp_path / "other", other, mean=-7.0, std=4.0)
    with pytest.raises(ModelError, match="was not tagged with .*other as it is"):
        calibrate.main([str(tmp_path / "other"), *keys, *out])
    for wrong in ([], ["--recipe", "a.yaml", *keys], keys[:2]):
        with pytest.raises(CommandError, match="Expected --recipe, or --results with --annotations"):
            calibrate.main([str(folder / "model"), *wrong, *out])
    with pytest.raises(CommandError, match="have no effect|has no effect"):
        calibrate.main([str(folder / "model"), *keys, "--no_temperature", *out])
    assert not (tmp_path / "out").exists()
