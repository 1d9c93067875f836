"""Annotated stretches of recordings as a data set: what is read, how it is labelled, cut, and told apart."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import read_csv, save_checkpoint, write_csv, write_sound

from modeling_ast import load_waveform
from modeling_ast.audio import AudioError
from modeling_ast.commands import check, embed, evaluate, pack, train
from modeling_ast.data.annotations import annotation_kind, read_annotations
from modeling_ast.data.clips import Clip, iterate_clips, name_clip
from modeling_ast.data.decoding import BadClips, DecodeAudio
from modeling_ast.data.examination import read_all_folds
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.sources import load_splits
from modeling_ast.data.truth import read_labelled_stretches
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.recordings import read_recording
from modeling_ast.training.same_run import describe_rows

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16000
ROWS = [("a", 1.0, 2.0, "dog"), ("a", 1.5, 6.5, "cat"), ("b", 0.5, 1.0, "cat"), ("c", 3.0, 3.5, "dog")]


@pytest.fixture
def recordings(tmp_path):
    """Three of 10 s, of noise."""
    for seed, name in enumerate("abc"):
        noise = 0.1 * torch.randn(10 * RATE, generator=torch.Generator().manual_seed(seed))
        write_sound(tmp_path / f"{name}.wav", noise, subtype="PCM_16")
    return tmp_path


def write_list(folder, rows=ROWS, name="list.csv", **columns):
    keys = {"audio": "audio", "start": "start", "end": "end", "label": "label", **columns}
    rows = [dict(zip(keys.values(), (f"{row[0]}.wav", *row[1:]))) for row in rows]
    return str(write_csv(folder / name, rows))


def listed(splits, *names) -> dict[str, tuple[str, ...]]:
    """The labels of each clip, by its name without the folder."""
    found = {}
    for name, rows in splits:
        for clip, labels in zip(iterate_clips(rows), list(rows["labels"])) if not names or name in names else ():
            key = clip.name.rpartition("/")[2]
            assert key not in found  # each is another
            labels = labels if isinstance(labels, list) else [labels]
            found[key] = tuple(sorted(splits.label_names[label] for label in labels))
    return found


# What is read


@pytest.mark.parametrize("rate", [RATE, 22050])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_stretch_is_that_part_of_the_whole(tmp_path, suffix, rate):
    noise = 0.1 * torch.randn(3 * rate, generator=torch.Generator().manual_seed(0))
    path = str(write_sound(tmp_path / f"a{suffix}", noise, rate))
    whole = load_waveform(path, RATE)
    audio = {"path": path, "bytes": None, "start": 0.7, "end": 1.9}
    stretch, (recording,) = Clip(audio).load(RATE), read_recording(audio, RATE)
    expected = whole[round(0.7 * RATE) : round(1.9 * RATE)]
    torch.testing.assert_close(stretch, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(stretch, recording, rtol=0, atol=1e-6)
    part = Clip(audio).load(RATE, choose=lambda length: slice(length // 2, length // 2 + 100))
    torch.testing.assert_close(part, expected[9600:9700], rtol=0, atol=1e-6)
    samples, own_rate = Clip(audio).read_samples()
    assert own_rate == rate and samples.shape == (round(1.9 * rate) - round(0.7 * rate), 1)
    content = {"path": "a", "bytes": (tmp_path / f"a{suffix}").read_bytes(), "start": 0.7, "end": 1.9}
    torch.testing.assert_close(Clip(content).load(RATE), stretch, rtol=0, atol=1e-6)


def test_no_more_of_a_recording_is_decoded_than_its_stretches(recordings, monkeypatch):
    decoded, read = [], soundfile.SoundFile.read

    def count(file, *args, **options):
        result = read(file, *args, **options)
        decoded.append(len(result))
        return result

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    splits = load_splits(write_list(recordings))
    assert decoded == []
    lengths = [len(DecodeAudio(RATE).decode_row(row)["waveform"]) for _, rows in splits for row in rows]
    assert sorted(lengths) == [8000, 8000, 16000, 80000] and sum(decoded) == sum(lengths)


def test_a_stretch_that_is_not_in_its_recording_is_refused(recordings):
    path = str(recordings / "a.wav")
    for start, end in ((11.0, 12.0), (9.0, 12.0)):
        with pytest.raises(AudioError, match="a.wav#t=.*: expected a stretch of the recording, which has 10.00 s"):
            Clip({"path": path, "start": start, "end": end}).load(RATE)
    assert len(Clip({"path": path, "start": 9.0, "end": 10.2}).load(RATE)) == RATE  # marked by hand
    assert Clip({"path": path, "start": 9.0, "end": None}).read_seconds() == 1
    assert Clip({"path": path, "start": 9.0, "end": 9.5}).read_seconds() == 0.5


# How lists and label files say it


def write_raven(path, rows, views=("Waveform 1", "Spectrogram 1")):
    lines = ["Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tSpecies"]
    for number, (start, end, label) in enumerate(rows, start=1):
        lines += [f"{number}\t{view}\t1\t{start}\t{end}\t100\t{label}" for view in views]
    path.write_text("\n".join(lines) + "\n")


def test_every_way_to_write_annotations_gives_the_same_clips(recordings, tmp_path_factory):
    expected = listed(load_splits(write_list(recordings), multi_label=True))
    known = read_labelled_stretches(write_list(recordings))
    assert [(each.start, each.end, each.labels) for each in known[:2]] == [(1, 2, ("dog",)), (1.5, 6.5, ("cat",))]
    assert expected["a.wav#t=1,2"] == ("cat", "dog")  # a second of both is half of the shorter
    own_names = {"audio": "file", "start": "begin (s)", "end": "stop (s)", "label": "species"}
    keys = {"audio_column_name": "file", "start_column_name": "begin (s)", "end_column_name": "stop (s)"}
    keys["label_column_name"] = "species"
    assert listed(load_splits(write_list(recordings, **own_names), multi_label=True, **keys)) == expected
    words = [f"--{key}={value}" for key, value in keys.items()]
    assert read_labelled_stretches(write_list(recordings, **own_names), words) == known
    for kind in ("audacity", "raven"):
        folder = tmp_path_factory.mktemp(kind)
        for name in "abc":
            (folder / f"{name}.wav").symlink_to(recordings / f"{name}.wav")
            own = [row[1:] for row in ROWS if row[0] == name]
            if kind == "raven":
                write_raven(folder / f"{name}.Table.1.selections.txt", own)
            else:
                frequencies = "\\\t100.0\t200.0\n"
                (folder / f"{name}.txt").write_text("".join(f"{s}\t{e}\t{t}\n{frequencies}" for s, e, t in own))
        (folder / "d.wav").symlink_to(recordings / "a.wav")  # which nobody looked through
        (folder / "README.txt").write_text("about\n")
        column = {"label_column_name": "Species"} if kind == "raven" else {}
        assert listed(load_splits(str(folder), multi_label=True, **column)) == expected
        assert read_labelled_stretches(str(folder), [f"--{key}={value}" for key, value in column.items()]) == known
    write_raven(folder / "all.txt", [row[1:] for row in ROWS])
    lines = (folder / "all.txt").read_text().splitlines()
    times = [f"\t{row[0]}.wav\t{row[1]}" for row in ROWS for _ in range(2)]  # of its file; the table's go on
    lines = [line + end for line, end in zip(lines, ["\tBegin File\tFile Offset (s)", *times])]
    (folder / "all.txt").write_text("\n".join(lines))
    assert listed(load_splits(str(folder / "all.txt"), multi_label=True, label_column_name="Species")) == expected
    found = read_labelled_stretches(str(folder / "all.txt"), ["--label_column_name=Species"])
    assert [(each.start, each.labels) for each in found] == [(each.start, each.labels) for each in known]


def test_selections_of_joined_tables_are_all_there(recordings):
    """Two tables have the same numbers, which tell the views of one selection from others; or none are given."""
    lines = ["Selection\tBegin File\tBegin Time (s)\tEnd Time (s)\tSpecies"]
    rows = [(1, "a", 2, "dog"), ("", "a", 5, "cat"), (1, "b", 2, "cat"), ("", "b", 5, "dog")]
    lines += [f"{number}\t{name}.wav\t{start}\t{start + 1}\t{label}" for number, name, start, label in rows]
    (recordings / "all.txt").write_text("\n".join([*lines, lines[1]]))
    found = listed(load_splits(str(recordings / "all.txt"), multi_label=True, label_column_name="Species"))
    assert found == {f"{name}.wav#t={start},{start + 1}": (label,) for _, name, start, label in rows}


def test_stretches_without_labels_need_none(recordings):
    write_raven(recordings / "a.selections.txt", [(1.0, 2.0, "dog"), (1.0, 2.0, "cat"), (3.0, 4.0, "")])
    rows = load_splits(str(recordings), unlabelled=True).train
    assert [clip.name.rpartition("/")[2] for clip in iterate_clips(rows)] == ["a.wav#t=1,2", "a.wav#t=3,4"]
    with pytest.raises(DataError, match="Expected several labels a clip"):
        load_splits(str(recordings), unlabelled=True, background="keep", window_seconds=1.0, multi_label=True)


def test_label_files_have_no_columns_of_folds_and_groups(recordings):
    (recordings / "a.txt").write_text("1\t2\tdog\n3\t4\tcat\n")
    for keys in ({"fold_column_name": "fold", "eval_fold": "1"}, {"group_column_name": "site"}):
        with pytest.raises(DataError, match="expected a column '(fold|site)', got audio, label"):
            load_splits(str(recordings), **keys)
    (recordings / "b.txt").write_text("1\t2\tdog\n")
    splits = load_splits(str(recordings), group_pattern="^(.)", eval_fold="b")
    assert {clip.path[-5] for clip in iterate_clips(splits.validation)} == {"b"}


def test_text_beside_sounds_of_classes_is_no_label_file(recordings):
    for name in ("dog", "cat"):
        write_sound(recordings / "classes" / name / "1.wav", np.zeros(RATE))
        (recordings / "classes" / name / "1.txt").write_text("2 dogs bark\n")
    assert load_splits(str(recordings / "classes"), validation_fraction=0.5).label_names == ["cat", "dog"]
    assert annotation_kind(recordings / "classes" / "dog" / "1.txt") is None
    with pytest.raises(DataError, match="expected labels of Audacity"):
        read_annotations(recordings / "classes" / "dog" / "1.txt", "label")


BAD = {
    "an end before the start": (
        "audio,start,end,label\na.wav,2,1,x\n",
        {},
        "row 1 .*the start of 2 s, got 1 s",
    ),
    "a word": ("audio,start,end,label\na.wav,one,2,x\n", {}, "row 1 .*seconds of at least 0 in 'start', got 'one'"),
    "below 0": ("audio,start,end,label\na.wav,-1,2,x\n", {}, "seconds of at least 0 in 'start', got '-1'"),
    "one of two columns": ("audio,from,label\na.wav,1,x\n", {"start_column_name": "from"}, "expected a column 'end'"),
    "no stretches": (
        "audio,label\na.wav,x\nb.wav,y\n",
        {"window_seconds": 1.0},
        "window_seconds has no effect on whole files",
    ),
    "one label a clip": (
        "audio,start,end,label\na.wav,1,2,x\na.wav,3,4,y\n",
        {"window_seconds": 1.0, "background": "keep"},
        "Expected several labels a clip",
    ),
    "one recording": (
        "audio,start,end,label\na.wav,1,2,x\na.wav,3,4,y\n",
        {},
        "expected two groups or more, .*a.wav alone",
    ),
}


@pytest.mark.parametrize("content, keys, words", BAD.values(), ids=BAD)
def test_a_list_that_cannot_be_meant_is_one_sentence(recordings, content, keys, words):
    (recordings / "list.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        load_splits(str(recordings / "list.csv"), **keys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1\t2\tx\n3\t3\ty\n", "a.txt, line 2: expected an end behind the start of 3 s"),
        ("1\t2\tx\nthree\t4\ty\n", "a.txt, line 2: expected a start and an end in seconds"),
        ("Begin Time (s)\tEnd Time (s)\tKind\n1\t2\tx\n", "a.txt: expected a column 'label' with labels, got .*Kind"),
        ("Begin Time (s)\tEnd Time (s)\tlabel\tBegin File\n1\t2\tx\tz.wav\n", "line 2: expected a recording z.wav"),
        (
            "Begin Time (s)\tEnd Time (s)\tlabel\tBegin File\tFile Offset (s)\n1\t2\tx\ta.wav\t\n",
            "line 2: expected seconds in 'File Offset",
        ),
    ],
)
def test_a_label_file_that_cannot_be_meant_is_one_sentence(recordings, content, words):
    (recordings / "a.txt").write_text(content)
    with pytest.raises(DataError, match=words):
        load_splits(str(recordings))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "2.0 6.0 rooster\n", "a.txt, beside a sound of its name: expected start, end and label with tabs"),
        ("night.txt", "2.0\t6.0\trooster\n", "night.txt: expected a recording of its name beside it, got none. Put"),
    ],
)
def test_what_is_nearly_an_annotated_folder_is_told_what_is_missing(recordings, name, content, words):
    (recordings / name).write_text(content)
    with pytest.raises(DataError, match=words):
        load_splits(str(recordings))
    assert len(load_splits(str(recordings), unlabelled=True).train) == 3  # where text means nothing


def test_keys_of_stretches_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="Expected window_seconds with background keep"):
        DataArguments("x", background="keep")
    with pytest.raises(ValueError, match="window_seconds has no effect on a stream"):
        DataArguments("x", window_seconds=1.0, streaming=True)


# Windows, labels and background


def expected_clips(rows, lengths, window, with_background):
    """The labels of each clip, by a second and slower way to say it."""
    clips = {}
    for name, start, end, _ in rows:
        end = lengths[name] if end == "" else end
        count = max(1, int(np.ceil((end - start) / window - 1e-9)))
        for number in range(count):
            first = start + number * (end - start - window) / (count - 1) if count > 1 else start
            clips[name_clip(f"{name}.wav", first, first + window if count > 1 else end)] = (
                name,
                first,
                min(end, first + window),
            )
    labels = {}
    for key, (name, start, end) in clips.items():
        labels[key] = set()
        for other, first, last, label in rows:
            last = lengths[other] if last == "" else last
            both = min(end, last) - max(start, first)
            if other == name and both > 0 and both >= 0.5 * min(end - start, last - first) - 1e-9 and label:
                labels[key].add(label)
    return labels


@pytest.mark.parametrize("seed", range(5))
def test_windows_have_the_labels_of_what_lies_in_them_and_background_of_nothing(recordings, seed):
    draw = np.random.default_rng(seed)
    rows = []
    for name in "aaaaabbb":
        start = round(draw.uniform(0, 8), 2)
        rows.append((name, start, round(start + draw.uniform(0.1, 2), 2), str(draw.choice(["dog", "cat", ""]))))
    rows += [("c", 5.0, "", "dog"), ("c", 5.0, 6.0, "cat")]
    path = write_list(recordings, rows)
    splits = load_splits(path, multi_label=True, window_seconds=0.5, background="keep")
    found = listed(splits)
    expected = expected_clips(rows, dict.fromkeys("abc", 10.0), 0.5, True)
    assert {key: set(labels) for key, labels in found.items() if key in expected} == expected
    others = [clip for _, part in splits for clip in iterate_clips(part)]
    others = [clip for clip in others if clip.name.rpartition("/")[2] not in expected]
    assert len(others) > 5
    for clip in others:
        assert found[clip.name.rpartition("/")[2]] == () and clip.end - clip.start == pytest.approx(0.5)
        assert 0 <= clip.start and clip.end <= 10 + 1e-9
        for name, start, end, _ in rows:
            end = 10.0 if end == "" else end
            assert not clip.path.endswith(f"{name}.wav") or clip.end <= start + 1e-9 or clip.start >= end - 1e-9


def test_a_recording_in_which_nothing_is_marked_is_background(recordings):
    (recordings / "a.txt").write_text("1\t2\tdog\n3\t4\tcat\n")
    (recordings / "b.txt").write_text("")
    keys = {"window_seconds": 1.0, "background": "keep", "multi_label": True}
    found = listed(load_splits(str(recordings), **keys))
    assert {name: labels for name, labels in found.items() if name.startswith("b")} == {
        f"b.wav#t={second},{second + 1}": () for second in range(10)
    }
    assert not any(name.startswith("c") for name in found)  # nobody looked through it
    with pytest.raises(DataError, match="expected background, got no stretch of 11 s without annotations"):
        load_splits(str(recordings), **{**keys, "window_seconds": 11.0})


def test_margins_are_read_and_are_no_windows_of_their_own(recordings):
    path = write_list(recordings, [("a", 1.0, 2.0, "dog"), ("b", 0.2, 0.6, "cat")])
    assert set(listed(load_splits(path, margin_seconds=0.5))) == {"a.wav#t=0.5,2.5", "b.wav#t=0,1.1"}
    found = listed(load_splits(path, margin_seconds=2.0, window_seconds=1.0))
    assert {name for name in found if name.startswith("a")} == {"a.wav#t=1,2"}
    path = write_list(recordings, [("a", 0.2, 1.2, "dog"), ("b", 8.2, 9.4, "cat"), ("c", 9.5, 10.2, "owl")])
    splits = load_splits(path, margin_seconds=10.0)  # as far as there is sound, and what was marked beyond
    assert set(listed(splits)) == {"a.wav#t=0,10", "b.wav#t=0,10", "c.wav#t=0,10.2"}
    assert all(len(clip.load(RATE)) == 10 * RATE for _, rows in splits for clip in iterate_clips(rows))


def test_one_label_a_clip_keeps_the_label_of_each_row(recordings):
    found = listed(load_splits(write_list(recordings), window_seconds=2.5))
    assert found["a.wav#t=1,2"] == ("dog",) and found["a.wav#t=1.5,4"] == ("cat",)


# Stretches of one file are told apart


def test_recordings_are_held_out_whole(recordings):
    splits = load_splits(write_list(recordings), validation_fraction=0.3)
    paths = [{clip.path for clip in iterate_clips(rows)} for _, rows in splits]
    assert len(paths) == 2 and not set.intersection(*paths)


def test_broken_stretches_of_one_file_are_counted_one_by_one(recordings):
    (recordings / "a.wav").write_bytes(b"RIFF")
    splits = load_splits(write_list(recordings), validation_fraction=0.01)
    bad = BadClips(recordings / "bad_clips.csv", 5)
    for _, rows in splits:
        for row in rows:
            DecodeAudio(RATE, bad).decode_row(row)
    assert [name.rpartition("/")[2] for name in bad.read()] == ["a.wav#t=1,2", "a.wav#t=1.5,6.5"]


def test_other_times_of_the_same_files_are_another_data_set(recordings):
    one, same, other = (
        [describe_rows(part) for _, part in load_splits(write_list(recordings, rows), validation_fraction=0.3)]
        for rows in (ROWS, ROWS, [*ROWS[:1], ("a", 1.5, 6.4, "cat"), *ROWS[2:]])
    )
    assert one == same != other


def test_folds_of_a_list_are_those_of_its_clips(recordings):
    rows = [{"audio": f"{n}.wav", "start": s, "end": e, "label": t, "fold": n} for n, s, e, t in ROWS]
    path = str(write_csv(recordings / "folds.csv", rows))
    keys = {"fold_column_name": "fold", "eval_fold": "b", "window_seconds": 1.0}
    splits = load_splits(path, **keys)
    assert {clip.path[-5] for clip in iterate_clips(splits.validation)} == {"b"}
    folds = read_all_folds(DataArguments(path, **keys))
    assert {clip.name: {clip.path[-5]} for _, part in splits for clip in iterate_clips(part)} == folds


def test_whole_files_of_one_list_go_together_with_stretches_of_another(recordings):
    (recordings / "test.csv").write_text("audio,label\nb.wav,dog\nc.wav,cat\n")
    splits = load_splits(write_list(recordings), test_file=str(recordings / "test.csv"))
    assert set(listed(splits, "test")) == {"b.wav", "c.wav"} and len(listed(splits)) == 6
    assert len(DecodeAudio(RATE).decode_row(splits.test[0])["waveform"]) == 10 * RATE


# Through the commands


def test_embeddings_of_stretches_have_the_times_of_their_recordings(recordings):
    model = save_checkpoint(recordings / "model", random_model(make_tiny_config()), mean=-7.0, std=4.0)
    (recordings / "recipe.yaml").write_text(f"dataset_name: {write_list(recordings)}\n")
    words = ["--level=window", "--window=0.5", "--hop=0.5", "--problem_type=multi_label_classification"]
    output = recordings / "store.parquet"
    embed.main(["--recipe", str(recordings / "recipe.yaml"), f"--model={model}", f"--output={output}", *words])
    store, found = EmbeddingStore(output), {}
    for path, rows in store.rows_by_recording().items():
        found[path.rpartition("/")[2]] = sorted(zip(store.starts[rows].tolist(), store.ends[rows].tolist()))
    assert found.keys() == {"a.wav", "b.wav", "c.wav"}
    assert found["b.wav"] == [(0.5, 1.0)] and found["c.wav"] == [(3.0, 3.5)]
    windows = [(start / 2, start / 2 + 0.5) for start in (2, 3, *range(3, 13))]
    assert found["a.wav"] == windows


@pytest.mark.slow
def test_a_folder_of_annotated_recordings_is_checked_trained_on_evaluated_and_packed(recordings, tmp_path_factory):
    for name in "abc":
        own = [row[1:] for row in ROWS if row[0] == name]
        (recordings / f"{name}.txt").write_text("".join(f"{s}\t{e}\t{t}\n" for s, e, t in own))
    start = random_model(make_tiny_config(id2label={0: "cat", 1: "dog"}))
    model = save_checkpoint(tmp_path_factory.mktemp("model"), start, mean=-7.0, std=4.0)
    folder = tmp_path_factory.mktemp("run")
    keys = ["--window_seconds=0.5", "--background=keep", f"--dataset_name={recordings}"]
    recipe = [f"--model_name_or_path={model}", "--problem_type=multi_label_classification", *keys]
    training = ["--do_train=true", "--max_steps=2", "--per_device_train_batch_size=4", "--report_to=none"]
    run = [*recipe, *training, f"--output_dir={folder / 'run'}", "--class_balanced_sampling=true"]
    assert check.main([*run, f"--json={folder / 'found.json'}"]) < 2
    train.main([*run, "--metric_for_best_model=mAP", "--eval_strategy=steps", "--eval_steps=1"])
    results = evaluate.main([str(folder / "run"), str(recordings), *keys[:2], f"--output_dir={folder / 'evaluated'}"])
    table = read_csv(folder / "evaluated" / "predictions.csv")
    assert sum(results["clips"].values()) == len(table) == len({row["path"] for row in table})
    assert any(row["truth"] == "" for row in table) and any("#t=" in row["path"] for row in table)
    (folder / "recipe.yaml").write_text("\n".join(word.removeprefix("--").replace("=", ": ", 1) for word in recipe))
    with pytest.raises(DataError, match="Expected --format flac, wav or opus for stretches"):
        pack.main([str(folder / "recipe.yaml"), f"--output={folder / 'shards'}"])
    pack.main([str(folder / "recipe.yaml"), f"--output={folder / 'shards'}", "--format=flac"])
    packed = load_splits(str(folder / "shards"), multi_label=True)
    original = load_splits(str(recordings), multi_label=True, window_seconds=0.5, background="keep")
    for split, rows in original:
        own = {row["audio"]["path"]: row for row in getattr(packed, split)}
        assert len(own) == len(rows)
        for clip, row in zip(iterate_clips(rows), rows):
            shard = own[clip.name.rpartition("/")[2].replace(".wav", "") + ".flac"]
            assert torch.equal(Clip(shard["audio"]).load(RATE), clip.load(RATE)) and shard["labels"] == row["labels"]


@pytest.mark.slow
def test_a_detector_of_one_label_is_trained_and_evaluated(recordings, tmp_path):
    # Recordings in which one kind of sound is marked: the rest of them is what a detector has to be silent in.
    for name in "ab":
        (recordings / f"{name}.txt").write_text("0.5\t1.5\tcat\n")
    model = save_checkpoint(tmp_path / "start", random_model(make_tiny_config()), mean=-7.0, std=4.0)
    run = [f"--model_name_or_path={model}", "--problem_type=multi_label_classification", "--window_seconds=0.5"]
    run += ["--background=keep", f"--dataset_name={recordings}", f"--output_dir={tmp_path / 'run'}"]
    metrics = train.main(
        [*run, "--do_train=true", "--max_steps=2", "--metric_for_best_model=mAP", "--eval_strategy=steps",
         "--eval_steps=1", "--report_to=none"]
    )  # fmt: skip
    assert 0 < metrics["validation_mAP"] <= 1
    results = evaluate.main([str(tmp_path / "run"), str(recordings), *run[2:4], f"--output_dir={tmp_path / 'out'}"])
    assert 0 < results["metrics"]["mAP"] <= 1
    assert {row["truth"] for row in read_csv(tmp_path / "out" / "predictions.csv")} == {"", "cat"}
