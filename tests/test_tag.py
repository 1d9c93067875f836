"""Recordings are tagged as the pipeline tags them, each once, whatever happens in between."""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import another_process, contents, read_csv

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands.command_options import CommandError
from modeling_ast.commands.tag import main
from modeling_ast.data.labels import DataError
from modeling_ast.data.parts import Part, claimed_part, find_part, own_device
from modeling_ast.inference import tags_folder
from modeling_ast.inference.journal import Journal
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.inference.sound_files import SoundFile, find_files
from modeling_ast.inference.tags_folder import TagsFolder
from modeling_ast.inference.timeline import Timeline
from modeling_ast.loading import ModelError

SCRIPT = Path(__file__).resolve().parents[1] / "modeling_ast" / "commands" / "tag.py"

LABELS = ["high", "low", "middle, or so", "a tab\there", "rest"]
WINDOW = 0.655  # s: 64 frames
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"

pytestmark = pytest.mark.usefixtures("one_thread")


def make_sound(seconds: float, seed: int, rate: int = 16000) -> torch.Tensor:
    """Tones of other pitches, one after the other, in noise."""
    time = torch.arange(round(seconds * rate)) / rate
    pitch = 200 * 2 ** ((time / 0.3).floor() * (seed + 2) % 5)
    noise = torch.randn(time.shape, generator=torch.Generator().manual_seed(seed))
    return 0.3 * torch.sin(2 * math.pi * torch.cumsum(pitch, 0) / rate) + 0.01 * noise


def write_sound(path: Path, seconds: float, seed: int = 0, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, make_sound(seconds, seed, rate).numpy(), rate)
    return path


def save_model(folder: Path, problem_type: str = MULTI, **config) -> Path:
    config = make_tiny_config(id2label=dict(enumerate(LABELS)), problem_type=problem_type, **config)
    config.label2id = {name: index for index, name in config.id2label.items()}
    model = random_model(config)
    extractor = ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-7.0, std=4.0)
    # Spread and centred, so that scores go up and down across thresholds.
    model.classifier.dense.weight.data *= 12
    windows = make_sound(3.0, seed=1).unfold(0, 8000, 4000)
    with torch.no_grad():
        model.classifier.dense.bias -= model(**extractor(windows, return_tensors="pt")).logits.mean(dim=0)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def recordings(tmp_path) -> Path:
    """Five sounds in four formats, of several lengths and rates, two of one name; one broken; and what is no sound."""
    folder = tmp_path / "recordings"
    write_sound(folder / "street.wav", 3.0, 1)
    write_sound(folder / "street.flac", 2.0, 2, 22050)
    write_sound(folder / "deep" / "er" / "Wood.OGG", 0.3, 3, 44100)
    write_sound(folder / "deep" / "sea.mp3", 1.7, 4, 32000)
    write_sound(folder / "deep" / "one.wav", WINDOW, 5)
    (folder / "broken.wav").write_bytes(b"RIFF but no sound")
    (folder / "notes.txt").write_text("nothing to hear")
    write_sound(folder / ".hidden.wav", 0.3)
    write_sound(folder / ".trash" / "old.wav", 0.3)
    return folder


FOUND = ["broken.wav", "deep/er/Wood.OGG", "deep/one.wav", "deep/sea.mp3", "street.flac", "street.wav"]
GOOD = FOUND[1:]


def tag(*argv) -> int:
    return main([str(argument) for argument in argv])


def read(out: Path) -> dict[str, dict]:
    """The lines of the results by path; each path once."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    entries = {line["path"]: line for line in lines}
    assert len(entries) == len(lines)
    return entries


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files that are heard."""
    from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline

    paths, preprocess = [], ASTAudioClassificationPipeline.preprocess

    def note(self, source, **kwargs):
        paths.append(source)
        return preprocess(self, source, **kwargs)

    monkeypatch.setattr(ASTAudioClassificationPipeline, "preprocess", note)
    return paths


# What is written


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_results_are_those_of_the_pipeline_called_by_hand(recordings, tmp_path, problem_type, capsys):
    model, out = save_model(tmp_path / "model", problem_type), tmp_path / "out"
    options = ["--window", 0.5, "--hop", 0.2, "--top_k", 3, "--threshold", 0.6, "--low_threshold", 0.4]
    options += ["--min_seconds", 0.25, "--merge_seconds", 0.3, "--ignore", "rest", "--aggregate", "max"]
    assert tag(recordings, "--model", model, "--output_dir", out, *options) == 1
    entries = read(out)
    assert list(entries) == [str(recordings / name) for name in FOUND]
    classifier = audio_tagger(model, device="cpu")
    num_events = 0
    for name in GOOD:
        entry, path = entries[str(recordings / name)], str(recordings / name)
        expected = classifier(
            path, chunk_length_s=0.5, stride_length_s=0.15, top_k=3, aggregate="max", return_timeline=True
        )
        events = expected["timeline"].find_events(0.6, 0.4, 0.25, 0.3, ["rest"])
        assert [tag["label"] for tag in entry["tags"]] == [tag["label"] for tag in expected["tags"]]
        np.testing.assert_allclose(
            *([tag["score"] for tag in tags] for tags in (entry["tags"], expected["tags"])), atol=1e-5
        )
        assert entry["seconds"] == pytest.approx(expected["timeline"].seconds, abs=1e-6)
        assert [(e["label"], e["start"], e["end"]) for e in entry["events"]] == [
            (e.label, round(e.start, 6), round(e.end, 6)) for e in events
        ]
        np.testing.assert_allclose([e["score"] for e in entry["events"]], [e.score for e in events], atol=1e-5)
        num_events += len(events)
    assert num_events > 0
    output = capsys.readouterr()
    assert f"6 file(s), 6 of them now: 0:00:08 of sound (h:mm:ss), {num_events} event(s)." in output.out
    assert re.search(r"Tagging: 0:00:08 of sound in \d:\d\d:\d\d, [\d.e+]+ times real time", output.err)
    assert "1 cannot be used (--retry tries again), such as" in output.out
    assert f"{recordings / 'broken.wav'}: cannot be decoded" in output.err
    assert "cannot be decoded" in entries[str(recordings / "broken.wav")]["error"]


@pytest.mark.slow
def test_every_format_says_the_same(recordings, model, tmp_path):
    out = tmp_path / "out"
    assert tag(recordings, "--model", model, "--output_dir", out, "--formats", "csv", "audacity", "png") == 1
    entries = read(out)
    events, tags = read_csv(out / "events.csv"), read_csv(out / "tags.csv")
    for name in GOOD:
        entry = entries[str(recordings / name)]
        assert entry["place"] == f"recordings/{name}"
        for table, key in ((events, "events"), (tags, "tags")):
            rows = [row for row in table if row["path"] == entry["path"]]
            expected = [{key: str(value) for key, value in row.items()} for row in entry[key]]
            assert [{key: value for key, value in row.items() if key != "path"} for row in rows] == expected
        lines = (out / "audacity" / f"recordings/{name}.txt").read_text().split("\n")[:-1]
        labels = [(float(start), float(end), label) for start, end, label in (line.split("\t") for line in lines)]
        assert labels == [(e["start"], e["end"], e["label"].replace("\t", " ")) for e in entry["events"]]
        timeline = read_csv(out / "timelines" / f"recordings/{name}.csv")
        assert list(timeline[0]) == ["start", "end", *LABELS]
        assert [row["start"] for row in timeline[1:]] == [row["end"] for row in timeline[:-1]]
        assert float(timeline[-1]["end"]) == entry["seconds"]
        boundaries = {float(row[key]) for row in timeline for key in ("start", "end")}
        assert boundaries.issuperset(e[key] for e in entry["events"] for key in ("start", "end"))
        for event in entry["events"]:
            inside = [
                float(row[event["label"]]) for row in timeline if event["start"] <= float(row["start"]) < event["end"]
            ]
            assert max(inside) == pytest.approx(event["score"], abs=1e-6)
        assert (out / "pictures" / f"recordings/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert any(entries[str(recordings / name)]["events"] for name in GOOD)
    assert not [path for path in contents(out) if "broken" in path or "unfinished" in path]


def test_files_that_announce_another_length_are_taken_when_asked_for(recordings, model, tmp_path, capsys):
    """In the folder of the results so far, which do not depend on it."""
    path, out = tmp_path / "cut.wav", tmp_path / "out"
    soundfile.write(path, np.random.default_rng(0).standard_normal(32000) / 10, 16000)
    path.write_bytes(path.read_bytes()[:-32000])
    argv = [path, "--model", model, "--output_dir", out, "--formats", "csv", "png"]
    assert tag(*argv) == 1 and "set ignore_length" in read(out)[str(path)]["error"]
    assert tag(*argv, "--retry", "--ignore_length") == 0
    *_, last = (out / "results.jsonl").read_text().splitlines()
    assert json.loads(last)["seconds"] == 1.0
    assert (out / "pictures" / "cut.wav.png").is_file()


def test_a_picture_that_fails_leaves_the_other_results(recordings, model, tmp_path, monkeypatch, caplog):
    def fail(*args, **options):
        raise ValueError("no room")

    monkeypatch.setattr("modeling_ast.inference.plots.plot_timeline", fail)
    out, path = tmp_path / "out", recordings / GOOD[0]
    picture = out / "pictures" / f"{path.name}.png"
    assert tag(path, "--model", model, "--output_dir", out, "--formats", "csv", "png") == 0
    assert read(out)[str(path)]["tags"] and read_csv(out / "tags.csv")
    assert [record.getMessage() for record in caplog.records if "cannot be drawn" in record.getMessage()] == [
        f"{picture} cannot be drawn (no room); all else goes on."
    ]


def test_formats_that_are_not_wanted_are_not_written(recordings, model, tmp_path):
    tag(recordings, "--model", model, "--output_dir", tmp_path / "out", "--formats", "jsonl")
    assert list(contents(tmp_path / "out")) == ["results.jsonl", "settings.json"]
    tag(recordings, "--model", model, "--output_dir", tmp_path / "usual")
    assert {path.split("/")[0] for path in contents(tmp_path / "usual")} == {
        "audacity", "events.csv", "results.jsonl", "settings.json", "tags.csv", "timelines",
    }  # fmt: skip


def test_a_row_of_parquet_is_a_recording(recordings, model, tmp_path, opened):
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    arguments = [recordings, "--model", model, "--output_dir", out, "--top_k", 4]
    assert tag(*arguments) == 1 and not (out / "tags.parquet").exists()
    opened.clear()
    assert tag(*arguments, "--formats", "jsonl", "csv", "audacity", "parquet") == 1 and not opened
    table, lines = pq.read_table(out / "tags.parquet"), read(out)
    assert table.column_names == ["path", "seconds", "error", "labels", "scores"]
    assert table["path"].to_pylist() == sorted(lines)
    for row in table.to_pylist():
        line = lines[row["path"]]
        assert (row["seconds"], row["error"]) == (line.get("seconds"), line.get("error"))
        assert row["labels"] == [each["label"] for each in line.get("tags", ())]
        assert row["scores"] == [np.float32(each["score"]) for each in line.get("tags", ())]
    assert [len(labels) for labels in table["labels"].to_pylist()] == [0, 4, 4, 4, 4, 4]
    told = json.loads(table.schema.metadata[b"modeling_ast"])
    assert (told["model"], told["top_k"]) == (str(model), 4)
    # Once it is there it is kept up, and it goes with the results.
    write_sound(recordings / "new.wav", 0.3)
    for number in (1, 2):
        tag(*arguments, "--part", f"{number}/2")
    assert len(pq.read_table(out / "tags.parquet")) == 7
    # What a killed run left half-written goes, and events by other options are those that the table tells.
    (out / ".1.2.unfinished.parquet").write_bytes(b"PAR1")
    tag("--events_only", "--output_dir", out, "--threshold", 0.4)
    assert json.loads(pq.read_schema(out / "tags.parquet").metadata[b"modeling_ast"])["threshold"] == 0.4
    assert not (out / ".1.2.unfinished.parquet").exists()
    tag(recordings / "new.wav", *arguments[1:], "--overwrite", "--formats", "jsonl")
    assert sorted(contents(out)) == ["results.jsonl", "settings.json"]


@pytest.mark.slow
def test_worker_processes_change_nothing(recordings, model, tmp_path):
    for workers in (0, 2):
        tag(recordings, "--model", model, "--output_dir", tmp_path / f"{workers}", "--num_workers", workers,
            "--batch_size", 1)  # fmt: skip
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_the_batch_changes_nothing(recordings, model, tmp_path):
    for size in (1, 7):
        tag(recordings, "--model", model, "--output_dir", tmp_path / f"{size}", "--batch_size", size)
    alone, together = read(tmp_path / "1"), read(tmp_path / "7")
    assert list(alone) == list(together)
    for one, other in zip(alone.values(), together.values()):
        scores = ([tag["score"] for tag in entry.get("tags", ())] for entry in (one, other))
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_regression_model_gives_numbers_and_no_events(recordings, tmp_path, capsys):
    model, out = save_model(tmp_path / "model", REGRESSION), tmp_path / "out"
    assert tag(recordings / "street.wav", "--model", model, "--output_dir", out) == 0
    assert "is a regression model: it gives numbers over time, and no events." in capsys.readouterr().err
    entry = read(out)[str(recordings / "street.wav")]
    expected = audio_tagger(model, device="cpu")(str(recordings / "street.wav"))
    np.testing.assert_allclose([t["score"] for t in entry["tags"]], [t["score"] for t in expected], atol=1e-5)
    assert entry["events"] == [] and not (out / "audacity").exists() and (out / "timelines").exists()
    with pytest.raises(CommandError, match="No effect on .*, a regression model, which gives no events: threshold"):
        tag(recordings, "--model", model, "--output_dir", out, "--threshold", 0.3)


def test_fitted_thresholds_are_the_models(recordings, tmp_path, capsys):
    model = save_model(tmp_path / "model", thresholds={name: 1.0 for name in LABELS})
    tag(recordings / "street.wav", "--model", model, "--output_dir", tmp_path / "fitted")
    printed = capsys.readouterr().out
    tag(recordings / "street.wav", "--model", model, "--output_dir", tmp_path / "given", "--threshold", 0.1)
    fitted, given = (read(tmp_path / name)[str(recordings / "street.wav")] for name in ("fitted", "given"))
    assert not fitted["events"] and given["events"]
    ((_, timeline),) = TagsFolder.reopen(tmp_path / "fitted", read_only=True).results()
    highest = max(zip(timeline.scores.max(axis=0).tolist(), timeline.label_names))
    assert f"The highest score is {highest[0]:.3g}, of {highest[1]}: --events_only with another --threshold" in printed
    assert "The highest score" not in capsys.readouterr().out


# Which files


def test_the_same_names_in_other_folders_stay_apart(model, tmp_path):
    for name in ("p/x/a.wav", "q/x/a.wav", "q/x/A.wav", "q/a.wav"):
        write_sound(tmp_path / name, 0.3)
    out = tmp_path / "out"
    sources = [tmp_path / "p/x", tmp_path / "q/x", tmp_path / "q/a.wav", tmp_path / "p/x/a.wav"]
    assert tag(*sources, "--model", model, "--output_dir", out) == 0
    places = [entry["place"] for entry in read(out).values()]
    assert places == ["x/a.wav", "x-2/A.wav", "x-3/a.wav", "a.wav"]
    assert all((out / "audacity" / f"{place}.txt").exists() for place in places)
    # and so they do in another order, with more of them
    write_sound(tmp_path / "r/a.wav", 0.3)
    assert tag(tmp_path / "r/a.wav", *sources[::-1], "--model", model, "--output_dir", out) == 0
    assert [entry["place"] for entry in read(out).values()] == [*places, "a-2.wav"]


def test_sources_are_heard_once_and_results_are_no_sources(recordings, tmp_path):
    out = recordings / "deep"
    (tmp_path / "link.wav").symlink_to(recordings / "street.wav")
    found = find_files([recordings, recordings / "street.wav", tmp_path / "link.wav"], out)
    assert [file.place for file in found] == [
        "recordings/broken.wav",
        "recordings/street.flac",
        "recordings/street.wav",
    ]
    assert len(find_files([recordings], recordings)) == len(find_files([recordings], tmp_path)) == len(FOUND)


def test_a_file_that_is_named_is_heard_whatever_its_suffix(recordings, model, tmp_path):
    sound = (recordings / "street.wav").rename(recordings / "street.sound")
    assert tag(sound, recordings / ".hidden.wav", "--model", model, "--output_dir", tmp_path / "out") == 0
    assert list(read(tmp_path / "out")) == [str(sound), str(recordings / ".hidden.wav")]


def test_odd_names_survive(model, tmp_path):
    names = [os.fsdecode(name) for name in (b'a,b\t"c" $x$.wav', b"new\nline.wav", "Hündin.wav".encode())]
    for name in names:
        write_sound(tmp_path / "odd" / "sound.wav", 0.3).rename(tmp_path / "odd" / name)
    out, arguments = tmp_path / "out", ["--model", model, "--formats", "csv", "audacity", "png"]
    assert tag(tmp_path / "odd", *arguments, "--output_dir", out) == 0
    assert set(read(out)) == {str(tmp_path / "odd" / name) for name in names}
    tables = {row["path"] for row in read_csv(out / "tags.csv")}
    assert tables == {str(tmp_path / "odd" / name) for name in names}
    assert all((out / "pictures" / "odd" / f"{name}.png").exists() for name in names)


def test_names_as_long_as_file_systems_take_them_have_results(model, tmp_path):
    names = [f"{'n' * 250}1.wav", f"{'n' * 250}2.wav", f"{'ü' * 125}3.wav"]  # 255 bytes, the first two alike for long
    for name in names:
        write_sound(tmp_path / "long" / "sound.wav", 0.3).rename(tmp_path / "long" / name)
    out = tmp_path / "out"
    assert tag(tmp_path / "long", "--model", model, "--formats", "csv", "audacity", "png", "--output_dir", out) == 0
    places = {path: entry["place"] for path, entry in read(out).items()}
    assert set(places) == {str(tmp_path / "long" / name) for name in names} and len(set(places.values())) == 3
    assert all((out / "timelines" / f"{place}.csv").exists() for place in places.values())


def test_names_that_are_no_utf_8_are_kept_exactly(model, tmp_path):
    sound = SoundFile(os.fsdecode(b"\xff latin.wav"), os.fsdecode(b"odd/\xff latin.wav"), [1, 2])
    folder = TagsFolder(tmp_path, {"model": "m", "fingerprint": "f"}, ["csv", "audacity"])
    timeline = Timeline(np.array([0, 16000]), np.ones((1, 1), dtype=np.float32), ["dog"], 16000)
    folder.add(sound, [{"label": "dog", "score": 1.0}], timeline.find_events(), timeline, ASTFeatureExtractor())
    folder.write_tables()
    assert list(TagsFolder(tmp_path, {"model": "m", "fingerprint": "f"}, ["csv", "audacity"]).entries) == [sound.path]
    assert (tmp_path / "audacity" / f"{sound.place}.txt").read_text() == "0.000000\t1.000000\tdog\n"
    assert read_csv(tmp_path / "events.csv") == [
        {"path": "\\udcff latin.wav", "label": "dog", "start": "0.0", "end": "1.0", "score": "1.0"}
    ]


# Many files


def write_lines(path: Path, number: int) -> None:
    """A journal of recordings with two tags and three events each."""
    rows = [{"label": LABELS[0], "score": 0.5}, {"label": LABELS[1], "score": 0.25}]
    line = {"seconds": 10.0, "tags": rows, "events": [{**rows[0], "start": 0.0, "end": 1.0}] * 3}
    with open(path, "w") as file:
        for n in range(number):
            file.write(json.dumps({"path": f"{n}.wav", **line, "place": f"all/{n}.wav", "stamp": [n, n]}) + "\n")


def test_a_recording_takes_little_memory_whatever_was_found_in_it(tmp_path):
    write_lines(tmp_path / "results.jsonl", 2000)
    tracemalloc.start()
    try:
        journal = Journal(tmp_path, Part(), "events", lambda line: True, "")
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(journal.entries) == 2000 and [line["path"] for line in journal.lines()] == sorted(journal.entries)
    assert size < 700 * 2000 and peak < size + 200_000  # bytes; all that a line holds takes 2,500


def test_files_of_one_name_are_given_places_in_linear_time(tmp_path, monkeypatch):
    calls, numbered = [], tags_folder._numbered
    monkeypatch.setattr(tags_folder, "_numbered", lambda *args: calls.append(args) or numbered(*args))
    folder = TagsFolder(tmp_path, {"model": "m", "fingerprint": "f"}, ["jsonl"])
    pending = folder.pending([SoundFile(f"{n}/audio.wav", "audio.wav", [n, n]) for n in range(500)])
    assert [file.place for file in pending] == ["audio.wav", *(f"audio-{n}.wav" for n in range(2, 501))]
    assert len(calls) == 500


# Stopping and going on


def test_a_second_run_does_nothing_twice(recordings, model, tmp_path, opened, capsys):
    arguments = ["--model", model, "--output_dir", tmp_path / "out"]
    assert tag(recordings, *arguments) == 1
    before = contents(tmp_path / "out")
    assert opened == [str(recordings / name) for name in FOUND]
    opened.clear()
    assert tag(recordings, *arguments, "--batch_size", 3) == 1
    assert not opened and contents(tmp_path / "out") == before
    assert "6 file(s), 0 of them now" in capsys.readouterr().out
    write_sound(recordings / "new.wav", 0.3)
    assert tag(recordings, *arguments) == 1
    assert opened == [str(recordings / "new.wav")]


def test_a_run_that_is_stopped_goes_on(recordings, model, tmp_path, opened, monkeypatch):
    """Between the results of a file and its line, with another line cut off."""
    arguments = [recordings, "--model", model, "--batch_size", 1, "--output_dir"]
    tag(*arguments, tmp_path / "whole")
    append, out = Journal.append, tmp_path / "out"

    def stop_at_the_fourth(self, entry):
        if len(self.entries) == 3:
            raise KeyboardInterrupt
        append(self, entry)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "append", stop_at_the_fourth)
        tag(*arguments, out)
    assert (out / "audacity/recordings/deep/sea.mp3.txt").exists() and not (out / "tags.csv").exists()
    with open(out / "results.jsonl", "a") as file:
        file.write('{"path": "somewh')
    opened.clear()
    assert tag(*arguments, out) == 1
    assert opened == [str(recordings / name) for name in FOUND[3:]]
    assert contents(out) == contents(tmp_path / "whole")


def test_broken_files_are_tried_again_when_asked_to_or_changed(recordings, model, tmp_path, opened):
    arguments = [recordings, "--model", model, "--output_dir", tmp_path / "out"]
    broken = recordings / "broken.wav"
    tag(*arguments)
    opened.clear()
    assert tag(*arguments, "--retry") == 1
    assert opened == [str(broken)]
    opened.clear()
    write_sound(broken, 0.4)
    assert tag(*arguments) == 0
    assert opened == [str(broken)]
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    of_it = [line for line in lines if line["path"] == str(broken)]
    assert ["error" in line for line in of_it] == [True, True, False] and of_it[-1]["place"] == "recordings/broken.wav"
    assert str(broken) in {row["path"] for row in read_csv(tmp_path / "out/tags.csv")}


def test_a_file_that_has_changed_is_heard_again(recordings, model, tmp_path, opened):
    arguments = [recordings / "street.wav", "--model", model, "--output_dir", tmp_path / "out"]
    tag(*arguments)
    write_sound(recordings / "street.wav", 1.0)
    tag(*arguments)
    assert opened == [str(recordings / "street.wav")] * 2
    timeline = read_csv(tmp_path / "out/timelines/street.wav.csv")
    assert float(timeline[-1]["end"]) == 1
    assert {row["path"] for row in read_csv(tmp_path / "out/tags.csv")} == {opened[0]}
    assert len(read_csv(tmp_path / "out/tags.csv")) == 5
    (recordings / "street.wav").write_bytes(b"no sound any more")
    assert tag(*arguments) == 1
    assert not (tmp_path / "out/timelines/street.wav.csv").exists() and not read_csv(tmp_path / "out/tags.csv")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(model, tmp_path):
    for number in range(20):
        write_sound(tmp_path / "many" / f"{number:02}.wav", 1.0, number)
    formats = ["--formats", "csv", "audacity", "png", "--batch_size", "1", "--num_workers", "2"]
    arguments = [str(tmp_path / "many"), "--model", str(model), *formats, "--output_dir"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "modeling_ast.commands.tag", *arguments, str(out)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal, start = out / "results.jsonl", time.monotonic()
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert run.poll() is None and time.monotonic() - start < 120
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = journal.read_bytes()
    entries = [json.loads(line) for line in before.split(b"\n")[:-1]]
    assert 3 <= len(entries) < 20
    for entry in entries:  # what has a line is whole
        place = entry["place"]
        assert (out / f"pictures/{place}.png").read_bytes().endswith(b"IEND\xaeB`\x82")
        assert len(read_csv(out / f"timelines/{place}.csv")) == 2
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"20 file(s), {20 - len(entries)} of them now" in again.stdout
    assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1]) and len(read(out)) == 20
    assert tag(*arguments, whole) == 0
    got, expected = contents(out), contents(whole)
    assert expected.keys() <= got.keys()
    assert all(".unfinished" in name for name in set(got) - set(expected))
    for name in expected:  # scores of two processes, with other numbers of threads, agree up to rounding
        if name.startswith("timelines"):
            found, wanted = (np.loadtxt(folder / name, delimiter=",", skiprows=1) for folder in (out, whole))
            np.testing.assert_allclose(found, wanted, atol=1e-5)


# One writer


@pytest.mark.parametrize("again", [["recordings"], ["--events_only"]])
def test_a_second_start_in_the_same_folder_is_one_sentence(recordings, model, tmp_path, opened, again):
    out = tmp_path / "out"
    arguments = [recordings, "--model", model] if again == ["recordings"] else again
    with another_process(claimed_part, out, Part(), DataError("busy")):
        with pytest.raises(DataError) as error:
            tag(*arguments, "--output_dir", out)
        assert list(contents(out)) == ["_running"] and not opened
    assert str(error.value) == (
        f"Another run is writing to {out} at this moment. Wait for it, stop it, or choose another --output_dir."
    )
    assert not out.exists()


def append_lines(folder: Path, name: str, number: int) -> None:
    """Lines by many runs, which come and go."""
    written = 0
    while written < number:
        with suppress(DataError), claimed_part(folder, Part(), DataError("busy")):
            results = TagsFolder(folder, {"model": "m", "fingerprint": "f"}, ["jsonl"])
            results.add_error(SoundFile(f"{name} {written}", f"{name} {written}", [1, 1]), "broken")
            written += 1


def test_no_line_is_lost_however_often_runs_are_started(tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=append_lines, args=(tmp_path / "out", name, 50)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert set(read(tmp_path / "out")) == {f"{name} {number}" for name in "abc" for number in range(50)}
    assert list(contents(tmp_path / "out")) == ["results.jsonl", "settings.json"]


# Parts


def test_every_file_belongs_to_one_part_by_its_path_alone():
    paths = [f"recordings/{number}/audio.wav" for number in range(3000)]
    for count in (1, 2, 7):
        shares = [[path for path in paths if Part(number + 1, count).includes(path)] for number in range(count)]
        assert sorted(path for share in shares for path in share) == sorted(paths)
        assert min(map(len, shares)) > 0.8 * len(paths) / count
    assert [Part(1, 4).includes(path) for path in paths[:8]] == [
        False,
        False,
        True,
        False,
        False,
        True,
        False,
        False,
    ]  # on every machine, in every version


@pytest.mark.parametrize(
    ("given", "environment", "part"),
    [
        (None, {}, (1, 1)),
        ("2/3", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}, (2, 3)),
        (None, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9", "SLURM_ARRAY_TASK_MIN": "0"}, (8, 9)),
        (None, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}, (7, 9)),
        (
            None,
            {
                **{"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "3"},
                **{"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "4"},
            },
            (2, 3),
        ),
        (None, {"RANK": "0", "WORLD_SIZE": "2"}, (1, 2)),
        ("2/3", {"RANK": "3", "WORLD_SIZE": "4"}, (8, 12)),
    ],
)
def test_a_part_is_the_option_the_job_array_and_the_launcher_together(given, environment, part):
    assert find_part(given, environment) == part


@pytest.mark.parametrize(
    ("given", "environment", "words"),
    [
        ("0/3", {}, "Expected a part from 1/N to N/N, got 0/3."),
        ("4/3", {}, "Expected a part from 1/N to N/N, got 4/3."),
        ("one", {}, "Expected a part from 1/N to N/N, got one."),
        (
            None,
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"},
            "Expected --part K/N, since the tasks of this job array do not follow one another: got 7, one of 3 from 1",
        ),
    ],
)
def test_what_is_no_part_is_one_sentence(given, environment, words):
    with pytest.raises(ValueError, match=words):
        find_part(given, environment)


def test_a_process_of_a_launcher_has_a_gpu_of_its_own(monkeypatch):
    assert own_device({}) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device({}) is None and own_device({"LOCAL_RANK": "3"}) == "cuda:3"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # of those that it is shown
    assert own_device({"LOCAL_RANK": "3"}) == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device({"LOCAL_RANK": "3"}) is None


def test_parts_give_what_one_run_gives(recordings, model, tmp_path, opened, capsys, monkeypatch):
    monkeypatch.chdir(recordings.parent)
    recordings = Path(recordings.name)  # a file's part depends on its path, which then is the same everywhere
    arguments = [recordings, "--model", model, "--batch_size", 1, "--output_dir"]
    assert tag(*arguments, tmp_path / "one") == 1
    opened.clear()
    out = tmp_path / "out"
    for number in (2, 3, 1):
        capsys.readouterr()
        status = tag(*arguments, out, "--part", f"{number}/3")
        said = capsys.readouterr().out
        own = [str(recordings / name) for name in FOUND if Part(number, 3).includes(str(recordings / name))]
        if number != 1:
            lines = (out / f"results-{number}-of-3.jsonl").read_text().splitlines() if own else []
            assert [json.loads(line)["path"] for line in lines] == own
            assert not (out / "tags.csv").exists() and f"Part {number}/3 is done; the last one writes" in said
            assert f"{len(FOUND) - len(opened)} file(s) have no results yet: " in said and "in part 1/3" in said
            assert status == (str(recordings / "broken.wav") in own)
    assert status == 1 and f"{len(FOUND)} file(s), {len(own)} of them now" in said
    assert sorted(opened) == [str(recordings / name) for name in FOUND]
    assert contents(out) == contents(tmp_path / "one")
    # and once more they have nothing to do
    opened.clear()
    assert [tag(*arguments, out, "--part", f"{number}/2") for number in (1, 2)] == [1, 1] and not opened
    assert contents(out) == contents(tmp_path / "one")


def test_parts_of_another_number_go_on_where_parts_were_stopped(model, tmp_path, opened, monkeypatch):
    for number in range(12):
        write_sound(tmp_path / "many" / f"{number:02}.wav", 0.3, number)
    monkeypatch.chdir(tmp_path)  # the parts are those of these paths
    arguments = ["many", "--model", model, "--batch_size", 1, "--output_dir"]
    tag(*arguments, tmp_path / "one")
    opened.clear()
    append, out = Journal.append, tmp_path / "out"

    def stop(self, entry):
        if len(self.entries) == {1: 0, 2: 2, 3: 5}[self.part.number]:
            raise KeyboardInterrupt
        append(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        for number in (1, 2, 3):
            with pytest.raises(KeyboardInterrupt):
                tag(*arguments, out, "--part", f"{number}/3")
    with open(out / "results-3-of-3.jsonl", "a") as file:
        file.write('{"path": "somewh')
    done = {json.loads(line)["path"] for path in out.glob("*.jsonl") for line in path.read_text().splitlines()[:9]
            if line.endswith("}")}  # fmt: skip
    assert len(done) == 5
    opened.clear()
    for number in (1, 2):
        assert tag(*arguments, out, "--part", f"{number}/2") == 0
    assert len(opened) == 7 and not done & set(opened)
    assert contents(out) == contents(tmp_path / "one")


def test_a_run_without_parts_ends_what_parts_have_begun(recordings, model, tmp_path, opened):
    arguments = [recordings, "--model", model, "--batch_size", 1, "--output_dir"]
    tag(*arguments, tmp_path / "one")
    opened.clear()
    tag(*arguments, tmp_path / "out", "--part", "2/2")
    assert tag(*arguments, tmp_path / "out") == 1
    assert sorted(opened) == [str(recordings / name) for name in FOUND]
    assert read(tmp_path / "out") == read(tmp_path / "one")  # in another order
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "one")
    assert {**found, "results.jsonl": b""} == {**expected, "results.jsonl": b""}


def test_files_of_one_name_have_the_same_places_in_parts(model, tmp_path):
    folders = [tmp_path / str(number) / "x" for number in range(6)]
    for folder in folders:
        write_sound(folder / "a.wav", 0.3)
    (folders[2] / "a.wav").write_bytes(b"no sound")
    arguments = [*folders, "--model", model, "--output_dir"]
    tag(*arguments, tmp_path / "one")
    for number in (3, 1, 2):
        tag(*arguments, tmp_path / "out", "--part", f"{number}/3")
    places = {path: entry.get("place") for path, entry in read(tmp_path / "out").items()}
    assert places == {path: entry.get("place") for path, entry in read(tmp_path / "one").items()}
    assert places[str(folders[5] / "a.wav")] == "x-6/a.wav"


def test_files_that_parts_of_other_lists_gave_one_place_are_tagged_again(model, tmp_path, opened, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the parts are those of these paths
    paths = [str(write_sound(Path(f"{number}/x/a.wav"), 0.3 + number / 10, number)) for number in range(4)]
    mine = next(path for path in paths if Part(1, 2).includes(path))
    other = next(path for path in paths if Part(2, 2).includes(path))
    arguments = ["--model", model, "--output_dir", tmp_path / "out", "--part"]
    tag(mine, *arguments, "1/2")
    shutil.move(tmp_path / "out" / "results.jsonl", tmp_path / "out" / "results-1-of-2.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "read", lambda self: setattr(self, "entries", {}))  # nothing was written yet
        tag(other, *arguments, "2/2")
    places = [json.loads(path.read_text())["place"] for path in sorted((tmp_path / "out").glob("results*.jsonl"))]
    assert places == ["a.wav", "a.wav"]
    capsys.readouterr()
    opened.clear()
    tag(mine, other, *arguments, "2/2")
    assert "2 file(s) have no results yet: 1 in part 1/2, 1 in part 2/2." in capsys.readouterr().out and not opened
    for number in (2, 1):
        tag(mine, other, *arguments, f"{number}/2")
    assert opened == [other, mine]
    found = {path: entry["place"] for path, entry in read(tmp_path / "out").items()}
    assert found == {mine: "a.wav", other: "a-2.wav"}
    timelines = [(tmp_path / "out" / "timelines" / f"{place}.csv").read_bytes() for place in ("a.wav", "a-2.wav")]
    assert timelines[0] != timelines[1]


def test_parts_of_one_division_write_at_once_and_no_others(recordings, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the parts are those of these paths
    arguments = ["recordings", "--model", model, "--output_dir", tmp_path / "out"]
    with another_process(claimed_part, tmp_path / "out", Part(1, 2), DataError("busy")):
        for other in ([], ["--part", "1/2"], ["--part", "1/3"]):
            with pytest.raises(DataError, match=f"Another run is writing to {tmp_path / 'out'} at this moment."):
                tag(*arguments, *other)
        tag(*arguments, "--part", "2/2")
        assert "in part 1/2" in capsys.readouterr().out
    with another_process(claimed_part, tmp_path / "out", Part(2, 2), DataError("busy")):
        tag(*arguments, "--part", "1/2")  # nothing is missing, but the other one may be trying broken files again
        assert "Part 1/2 is done; the last one writes the tables.\n" in capsys.readouterr().out
        assert not (tmp_path / "out" / "tags.csv").exists()
    tag(*arguments, "--part", "2/2")
    assert (tmp_path / "out" / "tags.csv").exists() and len(read(tmp_path / "out")) == len(FOUND)


def test_overwrite_is_refused_of_a_part_and_deletes_what_parts_have_written(recordings, model, tmp_path):
    arguments = [recordings, "--model", model, "--output_dir", tmp_path / "out"]
    tag(*arguments, "--part", "1/2")
    with pytest.raises(CommandError, match="Expected no --overwrite of part 2/2, which would delete what others"):
        tag(*arguments, "--part", "2/2", "--overwrite")
    tag(recordings / "street.flac", *arguments[1:], "--overwrite")
    assert list(read(tmp_path / "out")) == [str(recordings / "street.flac")]
    assert not list((tmp_path / "out").glob("results-*"))


def test_of_a_launchers_processes_the_last_one_tells_of_broken_files(recordings, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the parts are those of these paths
    monkeypatch.setenv("WORLD_SIZE", "2")
    statuses = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        statuses.append(tag("recordings", "--model", model, "--output_dir", tmp_path / "out"))
    assert statuses == [0, 1] and len(read(tmp_path / "out")) == len(FOUND)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_two_processes_give_what_one_gives(model, tmp_path, monkeypatch, launcher):
    for number in range(20):
        write_sound(tmp_path / "many" / f"{number:02}.wav", 0.5, number)
    arguments = [str(tmp_path / "many"), "--model", str(model), "--batch_size", "1", "--output_dir"]
    two = ["--standalone", "--nproc_per_node=2"]
    if launcher.startswith("accelerate"):
        two = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        two.append("--main_process_port=0")
    command = [sys.executable, "-m", launcher, *two, "-m", "modeling_ast.commands.tag", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    now = [int(number) for number in re.findall(r"file\(s\), (\d+) of them now", run.stdout)]
    assert len(now) == 2 and sum(now) == 20 and min(now) > 0, run.stdout
    assert tag(*arguments, tmp_path / "one") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.slow
def test_parts_that_are_killed_are_ended_by_parts_of_another_number(model, tmp_path):
    for number in range(120):
        write_sound(tmp_path / "many" / f"{number:03}.wav", 1.0, number)
    arguments = [str(tmp_path / "many"), "--model", str(model), "--batch_size", "1", "--output_dir"]
    out = tmp_path / "out"

    def start(count: int) -> list[subprocess.Popen]:
        command = [sys.executable, "-m", "modeling_ast.commands.tag", *arguments, str(out), "--part"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return [
            subprocess.Popen([*command, f"{number + 1}/{count}"], stdout=subprocess.PIPE, text=True, env=environment,
                             stderr=subprocess.DEVNULL)
            for number in range(count)
        ]  # fmt: skip

    def count_lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in out.glob("*.jsonl"))

    begun, since = start(3), time.monotonic()
    while count_lines() < 5:
        assert time.monotonic() - since < 120
        time.sleep(0.01)
    for process in begun:
        process.kill()
    for process in begun:
        process.communicate()
    num_done = count_lines()
    assert 5 <= num_done < 120
    said = [process.communicate()[0] for process in start(2)]
    now = [int(number) for text in said for number in re.findall(r"file\(s\), (\d+) of them now", text)]
    assert len(now) == 2 and sum(now) == 120 - num_done
    assert tag(*arguments, tmp_path / "one") == 0
    found, expected = contents(out), contents(tmp_path / "one")
    assert {
        name: content for name, content in found.items() if ".unfinished" not in name and name in expected
    } == expected


# Other settings, and what cannot be


def test_results_of_other_settings_are_not_mixed(recordings, model, tmp_path, opened):
    out, sound = tmp_path / "out", recordings / "street.wav"
    assert tag(sound, "--model", model, "--output_dir", out) == 0
    before = contents(out)
    with pytest.raises(DataError) as error:
        tag(sound, "--model", model, "--output_dir", out, "--threshold", 0.3, "--ignore", "low", "--formats", "csv")
    assert str(error.value) == (
        f"{out} holds results of other settings: threshold was not given, is 0.3; ignore was nothing, is low; formats "
        "was csv audacity, is csv. Give another --output_dir, or --overwrite to delete them and begin anew."
    )
    other = save_model(tmp_path / "other", layer_norm_eps=1e-4)
    with pytest.raises(DataError, match=f"other settings: model was {model}, is {other}. Give another"):
        tag(sound, "--model", other, "--output_dir", out)
    moved = save_model(tmp_path / "moved")
    assert tag(sound, "--model", moved, "--output_dir", out) == 0
    save_model(tmp_path / "moved", layer_norm_eps=1e-4)
    with pytest.raises(DataError, match=f"other settings: model was {model}, is {moved}. Give"):
        tag(sound, "--model", moved, "--output_dir", out)
    save_model(model.parent / "here")
    tag(sound, "--model", model.parent / "here", "--output_dir", tmp_path / "out2")
    save_model(model.parent / "here", layer_norm_eps=1e-4)
    with pytest.raises(DataError, match=f"other settings: {model.parent / 'here'} has changed. Give"):
        tag(sound, "--model", model.parent / "here", "--output_dir", tmp_path / "out2")
    assert contents(out) == before and len(opened) == 2


@pytest.mark.parametrize("content", ["not JSON", "[1]"])
def test_settings_that_cannot_be_read_are_named(recordings, model, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text(content)
    with pytest.raises(DataError, match="settings.json: not the settings of results. Give another --output_dir"):
        tag(recordings, "--model", model, "--output_dir", tmp_path / "out")


def test_overwrite_deletes_the_results_and_nothing_else(recordings, model, tmp_path):
    out = tmp_path / "out"
    tag(recordings, "--model", model, "--output_dir", out)
    (out / "audacity" / "mine.txt").write_text("my own")
    with open(out / "results.jsonl", "a") as file:
        file.write("not a line\n")
    with pytest.raises(DataError, match="results.jsonl, line 7: not a line of results. Give another --output_dir, or"):
        tag(recordings, "--model", model, "--output_dir", out)
    tag(recordings / "street.flac", "--model", model, "--output_dir", out, "--formats", "audacity", "--overwrite")
    names = ["audacity/mine.txt", "audacity/street.flac.txt", "results.jsonl", "settings.json"]
    assert list(contents(out)) == names


# Found again, and named by lists


def without_pictures(files: dict[str, bytes]) -> dict[str, bytes]:
    """A picture's pixels hang on the last bits of a spectrogram, which is read in other blocks for it."""
    return {name: content for name, content in files.items() if not name.endswith(".png")}


@pytest.mark.parametrize("formats", [["csv", "audacity"], pytest.param(["csv", "png"], marks=pytest.mark.slow)])
def test_events_are_found_again_as_by_hearing_again(recordings, tmp_path, opened, capsys, formats):
    model = save_model(tmp_path / "model", thresholds={"low": 0.7})
    formats = ["--formats", *formats]
    first, other = tmp_path / "first", tmp_path / "other"
    options = ["--low_threshold", 0.2, "--min_seconds", 0.25, "--merge_seconds", 0.3, "--ignore", "rest"]
    for out, own in ((first, []), (other, options)):
        assert tag(recordings, "--model", model, "--output_dir", out, *formats, *own) == 1
    before, number = contents(first), len(opened)
    assert tag("--events_only", "--output_dir", first, *options) == 1
    found, expected = contents(first), contents(other)
    assert before["events.csv"] != found["events.csv"] and len(opened) == number
    assert without_pictures(found) == without_pictures(expected) and found.keys() == expected.keys()
    # and the command that hears goes on with these settings
    assert tag(recordings, "--model", model, "--output_dir", first, *formats, *options) == 1
    assert contents(first) == found and len(opened) == number
    capsys.readouterr()


def test_what_is_not_given_stays_where_events_are_found_again(recordings, tmp_path, capsys):
    model, out = save_model(tmp_path / "model"), tmp_path / "out"
    tag(recordings / "street.wav", "--model", model, "--output_dir", out, "--ignore", "rest", "--min_seconds", 0.25)
    settings = lambda: json.loads((out / "settings.json").read_text())  # noqa: E731
    tag("--events_only", "--output_dir", out, "--threshold", 0.3)
    assert [settings()[name] for name in ("threshold", "min_seconds", "ignore")] == [0.3, 0.25, ["rest"]]
    tag("--events_only", "--output_dir", out, "--ignore", "--min_seconds", 0)
    assert [settings()[name] for name in ("threshold", "min_seconds", "ignore")] == [0.3, 0, []]


@pytest.mark.slow
def test_a_recording_that_is_gone_costs_its_picture_alone(recordings, tmp_path, caplog):
    model, out, own = save_model(tmp_path / "model"), tmp_path / "out", tmp_path / "own"
    shutil.copytree(recordings, own)
    tag(own, "--model", model, "--output_dir", out, "--formats", "csv", "png")
    (own / "street.wav").unlink()
    tag("--events_only", "--output_dir", out, "--threshold", 0.9)
    assert "street.wav" in caplog.text and "Its picture is the one of before." in caplog.text
    assert json.loads((out / "settings.json").read_text())["threshold"] == 0.9


def test_one_timeline_at_a_time_is_held_while_events_are_found_again(model, tmp_path, monkeypatch):
    for number in range(6):
        write_sound(tmp_path / "many" / f"{number}.wav", 0.5, number)
    tag(tmp_path / "many", "--model", model, "--output_dir", tmp_path / "out")
    read_timeline, timelines, alive = tags_folder.read_timeline, [], []

    def read_and_count(*args):
        timeline = read_timeline(*args)
        timelines.append(weakref.ref(timeline))
        alive.append(sum(each() is not None for each in timelines))
        return timeline

    monkeypatch.setattr(tags_folder, "read_timeline", read_and_count)
    assert tag("--events_only", "--output_dir", tmp_path / "out", "--threshold", 0.9) == 0
    assert len(alive) == 6 and max(alive) <= 2


def test_a_timeline_that_is_gone_leaves_all_events_as_they_were(recordings, model, tmp_path):
    out = tmp_path / "out"
    tag(recordings, "--model", model, "--output_dir", out)
    (out / "timelines" / "recordings" / "street.wav.csv").unlink()
    before = contents(out)
    with pytest.raises(DataError, match="No such file.*street.wav.csv"):
        tag("--events_only", "--output_dir", out, "--threshold", 0.1)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("formats", "arguments", "words"),
    [
        (["jsonl"], [], r"holds no timelines that events could be found in \(--formats csv\)"),
        (["csv"], ["--window", 1], "No effect with --events_only, which runs no model: window."),
        (["csv"], ["--ignore", "speech"], "Expected labels of the model, got 'speech'."),
        (None, [], "holds no results whose events could be found again."),
    ],
)
def test_events_that_cannot_be_found_again_are_one_sentence(recordings, model, tmp_path, formats, arguments, words):
    out = tmp_path / "out"
    if formats is not None:
        tag(recordings / "street.wav", "--model", model, "--output_dir", out, "--formats", *formats)
    before = contents(out)
    with pytest.raises((DataError, CommandError), match=words):
        tag("--events_only", "--output_dir", out, *arguments)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "\ufeffrecordings/street.wav\n\n  recordings/deep  \n"),
        ("list.csv", "number,path\n1,recordings/street.wav\n2,recordings/deep\n"),
        ("list.TSV", "audio\tnumber\nrecordings/street.wav\t1\nrecordings/deep\t2\n"),
    ],
)
def test_a_list_names_recordings(recordings, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = find_files([tmp_path / name], tmp_path / "out")
    expected = find_files([recordings / "street.wav", recordings / "deep"], tmp_path / "out")
    assert found == expected and len(found) == 4


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("list.txt", "\n", "list.txt: the list names no files."),
        ("list.txt", "nowhere.wav\n", "list.txt, a list of recordings: nowhere.wav is not there."),
        ("list.csv", "file\na.wav\n", "list.csv: expected a column path or audio, got"),
        ("list.csv", 'path\n"a.wav\n', "list.csv: the list cannot be read"),
    ],
)
def test_a_list_that_names_nothing_is_one_sentence(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        find_files([tmp_path / name], tmp_path / "out")


def test_progress_is_shown_within_a_file(recordings, model, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("tqdm.auto.tqdm.set_postfix_str", lambda self, text, **_: shown.append(text))
    tag(recordings / "street.wav", "--model", model, "--output_dir", tmp_path / "out")
    assert shown[0] == "street.wav 0:00:00" and shown[-1] == "street.wav 0:00:03" and len(shown) > 3


def plant(out: Path, **changes) -> None:
    """A journal whose only line says something else."""
    (entry,) = read(out).values()
    (out / "results.jsonl").write_text(json.dumps({**entry, **changes}) + "\n")


@pytest.mark.parametrize(
    "place", ["../../victim", "x/../../../victim", "{outside}/victim", "link/victim", "", 7, None]
)
def test_a_place_that_leads_out_of_the_folder_is_neither_written_nor_deleted(recordings, model, tmp_path, place):
    out, arguments = tmp_path / "out", [recordings / "street.wav", "--model", model, "--formats", "csv", "audacity"]
    tag(*arguments, "--output_dir", out)
    outside = tmp_path / "outside"
    outside.mkdir()
    for folder in ("timelines", "audacity"):
        (out / folder / "link").symlink_to(outside)
    victims = [tmp_path / "victim.csv", tmp_path / "victim.txt", outside / "victim.csv", outside / "victim.txt"]
    for victim in victims:
        victim.write_text("mine")
    plant(out, place=place.format(outside=outside) if isinstance(place, str) else place, stamp=[0, 0])
    with pytest.raises(DataError, match="results.jsonl, line 1: not a line of results. Give another --output_dir"):
        tag(*arguments, "--output_dir", out)
    assert tag(*arguments, "--output_dir", out, "--overwrite") == 0
    assert [victim.read_text() for victim in victims] == ["mine"] * 4


@pytest.mark.parametrize(
    "changes", [{"path": 3}, {"seconds": "long"}, {"tags": None}, {"events": [{"label": "low"}]}, {"error": "none"}]
)
def test_lines_that_are_no_results_are_named(recordings, model, tmp_path, changes):
    arguments = [recordings / "street.wav", "--model", model, "--output_dir", tmp_path / "out"]
    tag(*arguments)
    plant(tmp_path / "out", **changes)
    with pytest.raises(DataError, match="results.jsonl, line 1: not a line of results."):
        tag(*arguments)


def test_scores_that_are_not_finite_are_an_error_of_the_file_and_every_line_is_strict_json(
    recordings, model, tmp_path, monkeypatch
):
    from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline

    monkeypatch.setattr(
        ASTAudioClassificationPipeline,
        "_forward",
        lambda self, inputs: {"logits": torch.full((len(inputs["input_values"]), 5), torch.nan)},
    )
    assert tag(recordings / "street.wav", "--model", model, "--output_dir", tmp_path / "out") == 1
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    entry = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert entry["error"].endswith("street.wav: the model's scores are not finite.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "1.5"], "Expected threshold between 0 and 1, got 1.5."),
        (["--low_threshold", "nan"], "Expected low_threshold between 0 and 1, got nan."),
        (["--low_threshold", "0.7"], "Expected low_threshold of at most the threshold of high, 0.5, got 0.7."),
        (["--min_seconds", "-1"], "Expected min_seconds of at least 0, got -1.0."),
        (["--top_k", "0"], "Expected top_k of at least 1, got 0."),
        (["--batch_size", "0"], "Expected batch_size of at least 1, got 0."),
        (["--num_workers", "-1"], "Expected num_workers of at least 0, got -1."),
        (["--window", "0.1"], "Expected a window of at least 0.175 s, which is one patch, got 0.1 s."),
        (["--hop", "2"], "Expected a hop above 0 and of at most the window, 0.664937 s, got 2 s."),
        (["--window", "0.5", "--hop", "0"], "Expected a hop above 0 and of at most the window, 0.5 s, got 0 s."),
        (["--ignore", "speech"], "Expected labels of the model, got 'speech'."),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_done(recordings, model, tmp_path, arguments, words):
    with pytest.raises(CommandError) as error:
        tag(recordings, "--model", model, "--output_dir", tmp_path / "out", *arguments)
    assert str(error.value).startswith(words)
    assert not (tmp_path / "out").exists()


def test_a_device_that_there_is_not_is_refused(recordings, model, tmp_path, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        tag(recordings, "--model", model, "--output_dir", tmp_path / "out", "--device", "abacus")
    assert "argument --device: expected a device of this machine, got 'abacus'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sources_models_and_folders_that_cannot_be_used_are_named(recordings, model, tmp_path):
    rest = ["--model", model, "--output_dir", tmp_path / "out"]
    with pytest.raises(DataError, match="nowhere.wav: no such file or folder."):
        tag(recordings, tmp_path / "nowhere.wav", *rest)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"No sound files \(.wav, .flac, .ogg, .mp3, .*\) in .*empty, nor below."):
        tag(tmp_path / "empty", *rest)
    with pytest.raises(ModelError, match="empty cannot be used: "):
        tag(recordings, "--model", tmp_path / "empty", "--output_dir", tmp_path / "out")
    save_model(tmp_path / "other")
    ASTFeatureExtractor(max_length=64, num_mel_bins=64).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="other cannot be used: .*the model's 32 mel bins, got one with 64"):
        tag(recordings, "--model", tmp_path / "other", "--output_dir", tmp_path / "out")
    with pytest.raises(DataError, match="Expected a folder for the results, got the file .*notes.txt."):
        tag(recordings, "--model", model, "--output_dir", recordings / "notes.txt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.jsonl").write_text("mine")
    with pytest.raises(DataError, match="out holds results without their settings."):
        tag(recordings, *rest)
    assert not (tmp_path / "out" / "settings.json").exists()


@pytest.mark.slow
def test_the_command_says_one_sentence_where_nothing_can_be_done(model, tmp_path):
    command = [
        sys.executable,
        "-m",
        "modeling_ast.commands.tag",
        str(tmp_path),
        "--model",
        str(model),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("error: No sound files") and run.stderr.count("\n") == 1
