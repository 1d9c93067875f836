"""The same clips give the same rows wherever they come from, and what is wrong with a data set is said in one line."""

import csv
import importlib.abc
import json
import os
import sys
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Audio, ClassLabel, Dataset, Features, Value
from helpers import write_csv, write_sound

from modeling_ast import AudioError
from modeling_ast.data import lists
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.decoding import DecodeAudio
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.sources import load_splits, read_folds

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ["bird", "cat", "dog"]
COUNTS = {"train": 4, "validation": 2, "test": 1}
# In the order in which every layout below gives them: by class, then by name.
CLIPS = [(split, label, number) for label in LABELS for split in sorted(COUNTS) for number in range(COUNTS[split])]
SAMPLES = 800  # 50 ms


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """`datasets` keeps what it reads from Parquet."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def sound(index: int) -> np.ndarray:
    """Clip `index` of `CLIPS`, exact in 16 bits."""
    return np.random.default_rng(index).integers(-9000, 9000, SAMPLES) / 2**15


def name_of(clip: tuple) -> str:
    split, _, number = clip
    return f"{split}_{number}.wav"


def decode(rows: Dataset, sampling_rate: int = 16000) -> list[tuple]:
    decoded = rows.with_transform(DecodeAudio(sampling_rate))
    return [(row["waveform"], row["labels"]) for row in (decoded[number] for number in range(len(decoded)))]


# The layouts. Each writes the clips and says how to load them.


def class_folder(folder: Path) -> tuple[Path, dict]:
    """As Speech Commands: two lists say what does not train."""
    for index, clip in enumerate(CLIPS):
        write_sound(folder / clip[1] / name_of(clip), sound(index))
    for split, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        lines = [f"{clip[1]}/{name_of(clip)}\n" for clip in CLIPS if clip[0] == split]
        (folder / name).write_text("".join(lines))
    write_sound(folder / "_background_noise_" / "hum.wav", sound(0))
    (folder / "bird" / "README.md").write_text("not a sound")
    return folder, {}


def split_folders(folder: Path) -> tuple[Path, dict]:
    names = {"train": "train", "validation": "Val", "test": "testing"}
    for index, clip in enumerate(CLIPS):
        write_sound(folder / names[clip[0]] / clip[1] / name_of(clip), sound(index))
    return folder, {}


def csv_rows(folder: Path) -> list[dict]:
    """Sounds in `folder/audio`, and what a table beside would say of them."""
    rows = []
    for index, (split, label, _) in enumerate(CLIPS):
        path = write_sound(folder / "audio" / f"{index}.wav", sound(index))
        rows.append({"file": path.name, "kind": label, "split": split, "fold": index % 3 if split == "train" else 7})
    return rows


CSV_COLUMNS = {"audio_column_name": "file", "label_column_name": "kind"}


def csv_with_splits(folder: Path) -> tuple[Path, dict]:
    path = write_csv(folder / "clips.csv", csv_rows(folder))
    return path, {**CSV_COLUMNS, "audio_dir": "audio", "split_column_name": "split"}


def csv_with_folds(folder: Path) -> tuple[Path, dict]:
    """Folds leave no clips for a test."""
    rows = [row for row in csv_rows(folder) if row["split"] != "test"]
    (folder / "meta").mkdir()
    path = write_csv(folder / "meta" / "clips.csv", rows)
    return path, {**CSV_COLUMNS, "audio_dir": "../audio", "fold_column_name": "fold", "eval_fold": 7}


def embedded(folder: Path) -> list[dict]:
    """Rows with the bytes of the files in them."""
    rows = []
    for index, clip in enumerate(CLIPS):
        data = write_sound(folder / "written" / f"{index}.wav", sound(index)).read_bytes()
        rows.append({"sound": {"bytes": data, "path": f"{index}.wav"}, "kind": clip[1], "split": clip[0]})
    return rows


def parquet_file(folder: Path) -> tuple[Path, dict]:
    """One file of plain columns, as any program may write it."""
    pq.write_table(pa.Table.from_pylist(embedded(folder)), folder / "clips.parquet")
    names = {"audio_column_name": "sound", "label_column_name": "kind", "split_column_name": "split"}
    return folder / "clips.parquet", names


def hub_folder(folder: Path, audio: Audio | None = None) -> tuple[Path, dict]:
    """A repository of the Hub: files a split, audio and class names as features."""
    rows = embedded(folder)
    (folder / "repository" / "data").mkdir(parents=True)
    for split in COUNTS:
        columns = {
            "audio": [row["sound"] for row in rows if row["split"] == split],
            "label": [LABELS.index(row["kind"]) for row in rows if row["split"] == split],
        }
        table = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=LABELS))
        table = table.cast_column("audio", audio or Audio(decode=False))
        table.to_parquet(folder / "repository" / "data" / f"{split}-00000-of-00001.parquet")
    return folder / "repository", {}


LAYOUTS = [class_folder, split_folders, csv_with_splits, csv_with_folds, parquet_file, hub_folder]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_rows(layout, tmp_path):
    path, options = layout(tmp_path)
    splits = load_splits(str(path), **options)
    assert splits.label_names == LABELS
    held_out = ["train", "validation"] if layout is csv_with_folds else ["train", "validation", "test"]
    assert [name for name, _ in splits] == held_out
    for split, rows in splits:
        assert rows.column_names == ["audio", "labels"]
        expected = [(sound(index), LABELS.index(clip[1])) for index, clip in enumerate(CLIPS) if clip[0] == split]
        found = decode(rows)
        assert [labels for _, labels in found] == [labels for _, labels in expected]
        for (waveform, _), (samples, _) in zip(found, expected):
            assert waveform.dtype == torch.float32
            np.testing.assert_allclose(waveform, samples, atol=1e-7, rtol=0)


def test_hub_data_set_whose_audio_would_be_decoded_gives_the_same_rows(tmp_path):
    """What most repositories declare; reading it in the usual way would need torchcodec."""
    path, options = hub_folder(tmp_path, audio=Audio(sampling_rate=16000))
    splits = load_splits(str(path), **options)
    np.testing.assert_allclose(decode(splits.train)[0][0], sound(CLIPS.index(("train", "bird", 0))), atol=1e-7)


def test_batches_are_decoded_as_single_rows_are(tmp_path):
    path, options = class_folder(tmp_path)
    rows = load_splits(str(path), **options).train.with_transform(DecodeAudio(16000))
    batch = rows[:3]
    assert batch["labels"] == [rows[number]["labels"] for number in range(3)]
    for number, waveform in enumerate(batch["waveform"]):
        assert torch.equal(waveform, rows[number]["waveform"])


@pytest.mark.parametrize("layout", [class_folder, csv_with_splits, parquet_file, hub_folder])
def test_torchcodec_is_never_imported(layout, tmp_path, monkeypatch):
    """Also where it is installed: it needs FFmpeg, and fails without."""
    imported = []

    class Watch(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.partition(".")[0] == "torchcodec":
                imported.append(name)

    path, options = layout(tmp_path)
    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", True)
    monkeypatch.setattr(sys, "meta_path", [Watch(), *sys.meta_path])
    for _, rows in load_splits(str(path), **options):
        decode(rows)
    assert not imported and "torchcodec" not in sys.modules


def test_compressed_stereo_of_another_rate_becomes_mono_at_16_khz(tmp_path):
    seconds = np.arange(44100) / 44100
    left, right = (0.4 * np.sin(2 * np.pi * hertz * seconds) for hertz in (500, 900))
    write_sound(tmp_path / "tones" / "stereo.ogg", np.stack((left, right), axis=1), 44100)
    write_sound(tmp_path / "noises" / "noise.WAV", sound(0))
    write_sound(tmp_path / "noises" / "noise.flac", sound(0))
    splits = load_splits(str(tmp_path), validation_fraction=0.34)
    rows = decode(splits.train) + decode(splits.validation)
    (waveform,) = (waveform for waveform, label in rows if splits.label_names[label] == "tones")
    assert waveform.shape == (16000,) and waveform.dtype == torch.float32
    expected = (0.2 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000) for hertz in (500, 900))
    np.testing.assert_allclose(waveform[1000:-1000], sum(expected)[1000:-1000], atol=0.03, rtol=0)


# Splits


@pytest.mark.parametrize("eval_fold", [0, 1, 2, 7])
def test_a_fold_holds_out_exactly_that_fold(tmp_path, eval_fold):
    path, options = csv_with_folds(tmp_path)
    splits = load_splits(str(path), **{**options, "eval_fold": eval_fold})
    with open(path) as file:
        table = {row["file"]: int(row["fold"]) for row in csv.DictReader(file)}
    folds = {name: {table[Path(row["audio"]["path"]).name] for row in rows} for name, rows in splits}
    assert folds == {"train": {0, 1, 2, 7} - {eval_fold}, "validation": {eval_fold}}
    assert len(splits.train) + len(splits.validation) == len(table)


def write_flat(folder: Path, num_clips: int = 20) -> Path:
    """Two classes, no splits."""
    for number in range(num_clips):
        write_sound(folder / ("ab"[number % 2]) / f"{number:02d}.wav", sound(number))
    return folder


def paths(rows: Dataset) -> list[str]:
    return [row["audio"]["path"] for row in rows]


def test_without_held_out_clips_a_fraction_validates(tmp_path, caplog):
    write_flat(tmp_path)
    splits = load_splits(str(tmp_path), validation_fraction=0.25)
    assert (len(splits.train), len(splits.validation), splits.test) == (15, 5, None)
    assert len({*paths(splits.train), *paths(splits.validation)}) == 20
    assert "holds out nothing" in caplog.text and "5 of its training clips" in caplog.text
    again = load_splits(str(tmp_path), validation_fraction=0.25)
    assert paths(again.validation) == paths(splits.validation)


def test_of_every_label_a_like_share_validates(tmp_path):
    rows = [{"audio": f"{number}.wav", "label": "abcd"[number % 4]} for number in range(40)]
    rows += [{"audio": f"rare{number}.wav", "label": "rare"} for number in range(10, 12)]
    for row in rows:
        (tmp_path / row["audio"]).touch()
    write_csv(tmp_path / "clips.csv", rows)
    for fraction, expected in ((0.1, [1, 1, 1, 1]), (0.2, [2, 2, 2, 2]), (0.3, [3, 3, 3, 3, 1])):
        splits = load_splits(str(tmp_path / "clips.csv"), validation_fraction=fraction)
        counts = np.bincount(splits.validation["labels"], minlength=5)
        assert np.all(np.abs(counts - np.resize([*expected, 0], 5)) <= 1) and counts[:4].min() >= expected[0], counts
    drawn = paths(splits.validation)
    assert len(drawn) + len(splits.train) == 42 and {*paths(splits.train)}.isdisjoint(drawn)


def test_test_clips_never_validate_for_want_of_others(tmp_path):
    write_flat(tmp_path)
    (tmp_path / "testing_list.txt").write_text("a/00.wav\nb/01.wav\n\n")
    splits = load_splits(str(tmp_path), validation_fraction=0.5)
    assert (len(splits.train), len(splits.validation)) == (9, 9)
    assert sorted(Path(path).name for path in paths(splits.test)) == ["00.wav", "01.wav"]


def test_underscored_folders_are_no_classes_and_that_is_said(tmp_path, caplog):
    path, _ = class_folder(tmp_path)
    splits = load_splits(str(path))
    assert splits.label_names == LABELS
    assert not [path for _, rows in splits for path in paths(rows) if "_background_noise_" in path]
    assert "_background_noise_ is not taken for a class" in caplog.text


# Labels


@pytest.mark.parametrize("separator", [",", ";", " | "])
def test_several_labels_from_a_csv_file(tmp_path, separator):
    kinds = [["dog", "cat"], ["bird"], ["cat", "bird", "dog"], []]
    rows = [
        {
            "audio": write_sound(tmp_path / f"{number}.wav", sound(number)).name,
            "label": separator.join(names),
            "fold": 1,
        }
        for number, names in enumerate(kinds)
    ]
    write_csv(tmp_path / "clips.csv", [*rows, {**rows[0], "fold": 2}])
    options = {"multi_label": True, "label_separator": separator.strip(), "fold_column_name": "fold", "eval_fold": 2}
    splits = load_splits(str(tmp_path / "clips.csv"), **options)
    assert splits.label_names == LABELS
    assert [labels for _, labels in decode(splits.train)] == [[2, 1], [0], [1, 0, 2], []]
    assert [labels for _, labels in decode(splits.validation)] == [[2, 1]]


@pytest.mark.parametrize("feature", [Value("string"), ClassLabel(names=LABELS)], ids=["names", "indices"])
def test_several_labels_from_list_columns(tmp_path, feature):
    kinds = [["dog", "cat"], ["bird"], ["cat", "bird"], []]
    labels = [[LABELS.index(name) for name in names] for names in kinds] if isinstance(feature, ClassLabel) else kinds
    clips = [str(write_sound(tmp_path / f"{number}.wav", sound(number))) for number in range(4)]
    features = Features({"audio": Value("string"), "label": datasets.List(feature), "split": Value("string")})
    columns = {"audio": clips, "label": labels, "split": ["train", "train", "train", "dev"]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "clips.parquet")
    splits = load_splits(str(tmp_path / "clips.parquet"), multi_label=True, split_column_name="split")
    assert splits.label_names == LABELS
    assert [labels for _, labels in decode(splits.train)] == [[2, 1], [0], [1, 0]]
    assert [labels for _, labels in decode(splits.validation)] == [[]]


def test_one_label_a_clip_can_be_asked_for_as_a_list(tmp_path):
    path, options = class_folder(tmp_path)
    splits = load_splits(str(path), multi_label=True, **options)
    assert {tuple(labels) for _, labels in decode(splits.train)} == {(0,), (1,), (2,)}


def test_class_indices_without_names_keep_their_order(tmp_path):
    rows = [
        {"audio": write_sound(tmp_path / f"{number}.wav", sound(number)).name, "label": number, "split": split}
        for number in (10, 9, 2, 11)
        for split in ("train", "validation")
    ]
    splits = load_splits(str(write_csv(tmp_path / "clips.csv", rows)), split_column_name="split")
    assert splits.label_names == ["2", "9", "10", "11"]
    assert [labels for _, labels in decode(splits.train)] == [2, 1, 0, 3]


def test_label_that_only_a_held_out_clip_has_keeps_its_place(tmp_path):
    rows = csv_rows(tmp_path)
    rows[0] |= {"kind": "ant", "split": "test"}
    path = write_csv(tmp_path / "clips.csv", rows)
    splits = load_splits(str(path), **CSV_COLUMNS, audio_dir="audio", split_column_name="split")
    assert splits.label_names == ["ant", *LABELS]


# Data files of the original


def data_json(folder: Path, split: str | None = None, name: str = "clips.json", **changes) -> Path:
    """The clips of a split, or all, as the original lists them; `changes` of the first entry."""
    entries = []
    for index, clip in enumerate(CLIPS):
        if clip[0] == (split or clip[0]):
            path = write_sound(folder / "audio" / f"{index}.wav", sound(index))
            entries.append({"video_id": str(index), "wav": str(path), "image": "x.jpg", "labels": clip[1]})
    entries[0] |= changes
    (folder / name).write_text(json.dumps({"data": entries}))
    return folder / name


def files_a_split(folder: Path, suffix: str) -> tuple[str, dict]:
    """A file a split: what trains as JSON, the others as asked."""
    options = {}
    for split in ("validation", "test"):
        clips = [(index, clip) for index, clip in enumerate(CLIPS) if clip[0] == split]
        rows = [{"audio": f"audio/{index}.wav", "label": clip[1]} for index, clip in clips]
        path = folder / f"{split}{suffix}"
        if suffix == ".csv":
            write_csv(path, rows)
        elif suffix == ".json":
            data_json(folder, split, path.name)
        else:
            rows = [{**row, "audio": str(folder / row["audio"])} for row in rows]
            pq.write_table(pa.Table.from_pylist(rows), path)
        options[f"{split}_file"] = str(path)
    data_json(folder)  # writes the sounds of all
    return str(data_json(folder, "train", "train.json")), options


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_file_a_split_gives_the_same_rows_as_one_with_a_split_column(tmp_path, suffix):
    path, options = files_a_split(tmp_path, suffix)
    splits = load_splits(path, **options)
    (tmp_path / "one").mkdir()
    expected_path, expected_options = csv_with_splits(tmp_path / "one")
    expected = load_splits(str(expected_path), **expected_options)
    assert splits.label_names == expected.label_names
    for (name, rows), (expected_name, expected_rows) in zip(splits, expected, strict=True):
        assert name == expected_name and rows["labels"][:] == expected_rows["labels"][:]
        assert [Path(path).name for path in paths(rows)] == [Path(path).name for path in paths(expected_rows)]


def test_test_file_alone_leaves_some_training_clips_to_choose_on(tmp_path):
    path, options = files_a_split(tmp_path, ".json")
    splits = load_splits(path, test_file=options["test_file"], validation_fraction=0.25)
    assert {name: len(rows) for name, rows in splits} == {"train": 9, "validation": 3, "test": 3}


def test_data_file_of_the_original_gives_its_clips_and_mids(reference, tmp_path, monkeypatch):
    """A file of the reference data, whose paths are relative to the working directory."""
    path = reference / "sampling_train_data.json"
    entries = json.loads(path.read_text())["data"]
    for entry in entries:
        (tmp_path / entry["wav"]).touch()
    monkeypatch.chdir(tmp_path)
    splits = load_splits(str(path), multi_label=True, label_file="audioset", validation_fraction=0.1)
    with open(reference / "audioset_class_labels_indices.csv", newline="") as file:
        index = {row["mid"]: int(row["index"]) for row in csv.DictReader(file)}
    expected = {str(tmp_path / entry["wav"]): [index[mid] for mid in entry["labels"].split(",")] for entry in entries}
    found = {row["audio"]["path"]: row["labels"] for _, rows in splits for row in rows}
    assert found == expected and len(splits.label_names) == 527 and splits.label_names[0] == "Speech"


def test_sample_of_the_original_is_read_in_spite_of_its_comment(reference):
    """What is missing is its sounds, not its JSON."""
    with pytest.raises(DataError, match=r"sample_eval_data.json: .* files are not there, such as entry 1: /data/sls"):
        load_splits(str(reference / "sample_eval_data.json"), multi_label=True)


@pytest.mark.parametrize("place", ["working directory", "beside", "audio_dir"])
def test_sounds_of_a_data_file_are_found_where_the_original_looks_or_beside_it(tmp_path, monkeypatch, place):
    sounds = {"working directory": tmp_path / "work", "beside": tmp_path / "lists", "audio_dir": tmp_path / "sounds"}
    for folder in sounds.values():
        folder.mkdir()
    for number in range(4):
        write_sound(sounds[place] / "a" / f"{number}.wav", sound(number))
    write_sound(tmp_path / "lists" / "a" / "0.wav", sound(0))  # another of that name
    entries = [{"wav": f"./a/{number}.wav", "labels": "xy"[number % 2]} for number in range(4)]
    (tmp_path / "lists" / "clips.json").write_text("// a comment\n# another\n" + json.dumps({"data": entries}))
    monkeypatch.chdir(tmp_path / "work")
    splits = load_splits("../lists/clips.json", audio_dir="../sounds" if place == "audio_dir" else None)
    found = sorted(paths(splits.train) + paths(splits.validation))
    assert found == [str(sounds[place] / "a" / f"{number}.wav") for number in range(4)]


# Label tables


def label_table(folder: Path) -> str:
    path = folder / "labels.csv"
    path.write_text('index,mid,display_name\n2,/m/b,bird\n0,/m/d,dog\n3,/m/x,"Hum, low"\n1,/m/c,cat\n')
    return str(path)


TABLE = ["dog", "cat", "bird", "Hum, low"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_label_table_gives_names_and_order_to_every_layout(layout, tmp_path):
    path, options = layout(tmp_path)
    splits = load_splits(str(path), **options, label_file=label_table(tmp_path))
    assert splits.label_names == TABLE
    for split, rows in splits:
        assert rows["labels"][:] == [TABLE.index(clip[1]) for clip in CLIPS if clip[0] == split]


@pytest.mark.parametrize(
    "names", [{"dog": "/m/d", "cat": "/m/c", "bird": "/m/b"}, {"dog": "0", "cat": "1", "bird": "2"}]
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_mids_and_indices_stand_for_display_names(tmp_path, names, multi_label):
    rows = [{**row, "kind": names[row["kind"]]} for row in csv_rows(tmp_path)]
    path = write_csv(tmp_path / "clips.csv", rows)
    options = {**CSV_COLUMNS, "audio_dir": "audio", "split_column_name": "split", "multi_label": multi_label}
    splits = load_splits(str(path), **options, label_file=label_table(tmp_path))
    expected = [TABLE.index(clip[1]) for clip in CLIPS if clip[0] == "train"]
    assert splits.train["labels"][:] == ([[label] for label in expected] if multi_label else expected)


def test_display_name_with_a_comma_is_one_label_where_one_is_expected(tmp_path):
    rows = csv_rows(tmp_path)
    rows[0]["kind"] = "Hum, low"
    path = write_csv(tmp_path / "clips.csv", rows)
    options = {**CSV_COLUMNS, "audio_dir": "audio", "split_column_name": "split"}
    splits = load_splits(str(path), **options, label_file=label_table(tmp_path))
    assert splits.test["labels"][:] == [3, 1, 0]
    with pytest.raises(DataError, match="the label 'Hum' is not in the label table"):
        load_splits(str(path), **options, label_file=label_table(tmp_path), multi_label=True)


def test_fsdd_by_the_table_of_speech_commands(shared_data):
    splits = load_splits(str(shared_data / "fsdd"), label_file="speech_commands_v2")
    assert len(splits.label_names) == 35
    for row in splits.test.select(range(0, 200, 7)):
        assert splits.label_names[row["labels"]] == Path(row["audio"]["path"]).parent.name


# Lists as spreadsheets and other programs write them


def lines_of(head: str, line: str, tail: str = "") -> str:
    """A list of the nine clips of `listed_clips`."""
    clips = [(f"clips/{word}_{number}.wav", word, number) for word in LABELS for number in range(3)]
    rows = (line.format(path=path, word=word, fold=number + 1) for path, word, number in clips)
    return "\n".join([*([head] if head else []), *rows]) + "\n" + tail


@pytest.fixture
def listed_clips(tmp_path) -> Path:
    for word in LABELS:
        for number in range(3):
            write_sound(tmp_path / "clips" / f"{word}_{number}.wav", sound(number))
    return tmp_path


PLAIN = lines_of("audio,label", "{path},{word}")
LISTS = {
    "semicolons": ("clips.csv", lines_of("audio;label", "{path};{word}")),
    "tabs": ("clips.tsv", lines_of("audio\tlabel", "{path}\t{word}")),
    "text": ("clips.txt", lines_of("audio\tlabel", "{path}\t{word}")),
    "capitals": ("CLIPS.CSV", PLAIN),
    "line ends of Windows": ("clips.csv", PLAIN.replace("\n", "\r\n")),
    "UTF-16": ("clips.txt", lines_of("audio\tlabel", "{path}\t{word}").encode("utf-16")),
    "UTF-16, big end first": ("clips.csv", b"\xfe\xff" + PLAIN.encode("utf-16-be")),
    "a byte order mark": ("clips.csv", PLAIN.encode("utf-8-sig")),
    "blanks": ("clips.csv", lines_of("audio, label", " {path} ,{word}\u00a0")),
    "blanks before quotes": ("clips.csv", lines_of('"audio", "label"', '"{path}", "{word}"')),
    "separators in other columns": ("clips.csv", lines_of("note;audio;label", '"a;b,c,d";{path};{word}')),
    "decimals with a comma": ("clips.csv", lines_of("audio;gain;label", "{path};0,5;{word}")),
    "empty rows": ("clips.csv", PLAIN.replace("\n", "\n\n", 3) + ",\n , \n"),
    "backslashes": ("clips.csv", PLAIN.replace("clips/", "clips\\")),
    "JSON lines": ("clips.jsonl", lines_of("", '{{"audio": "{path}", "label": " {word}", "seconds": 0.05}}', "\n")),
    "a list for one label": ("clips.csv", lines_of("audio,label", "{path},['{word}']")),
}


@pytest.mark.parametrize("name, content", LISTS.values(), ids=LISTS)
def test_list_is_read_however_it_is_written(listed_clips, name, content):
    path = listed_clips / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    splits = load_splits(str(path), validation_fraction=0.1)
    rows = decode(splits.train) + decode(splits.validation)
    assert splits.label_names == LABELS and len(rows) == 9
    found = {
        (Path(path).name, splits.label_names[row["labels"]])
        for _, part in splits
        for row in part
        for path in [row["audio"]["path"]]
    }
    assert found == {(f"{word}_{number}.wav", word) for word in LABELS for number in range(3)}


@pytest.mark.parametrize("name", ["semicolons", "tabs", "JSON lines", "UTF-16", "capitals"])
def test_held_out_clips_come_from_the_same_kinds_of_lists(listed_clips, name):
    (listed_clips / "train.csv").write_text(PLAIN)
    file, content = LISTS[name]
    path = listed_clips / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    splits = load_splits(str(listed_clips / "train.csv"), validation_file=str(path), test_file=str(path))
    assert [len(rows) for _, rows in splits] == [9, 9, 9]


def test_what_a_list_is_taken_for_is_said_once(listed_clips, caplog):
    (listed_clips / "clips.csv").write_bytes(lines_of("audio;label", "{path};grün {word}").encode("cp1252"))
    splits = load_splits(str(listed_clips / "clips.csv"))
    assert splits.label_names == [f"grün {word}" for word in LABELS]
    load_splits(str(listed_clips / "clips.csv"))
    assert caplog.text.count("clips.csv is read as a table with a semicolon between its columns") == 1
    assert (
        caplog.text.count("clips.csv is not UTF-8 and read as cp1252, in which line 2 is 'clips/bird_0.wav;grün bird'")
        == 1
    )
    caplog.clear()
    (listed_clips / "plain.csv").write_text(PLAIN)
    (listed_clips / "plain.tsv").write_text(PLAIN.replace(",", "\t"))
    for name in ("plain.csv", "plain.tsv"):
        load_splits(str(listed_clips / name))
    assert "read as" not in caplog.text


@pytest.mark.parametrize("on_disk, in_list", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_are_the_same_however_they_are_composed(tmp_path, on_disk, in_list):
    """macOS takes letters apart in file names, others do not; so labels of both are the same labels."""
    names = [f"größe/{word}_é.wav" for word in ("a", "b", "c")]
    lines = ["audio,label"]
    for number, name in enumerate(names):
        write_sound(tmp_path / unicodedata.normalize(on_disk, name), sound(number))
        lines += [
            f"{unicodedata.normalize(in_list, name)},{unicodedata.normalize(form, 'é')}" for form in ("NFC", "NFD")
        ]
        lines += [f"{unicodedata.normalize(in_list, name)},e"]
    (tmp_path / "clips.csv").write_text("\n".join(lines), encoding="utf-8")
    splits = load_splits(str(tmp_path / "clips.csv"))
    assert splits.label_names == ["e", "é"] and len(splits.train) + len(splits.validation) == 9
    (tmp_path / "labels.csv").write_text("index,display_name\n0,e\u0301\n1,e\n", encoding="utf-8")
    assert load_splits(str(tmp_path / "clips.csv"), label_file=str(tmp_path / "labels.csv")).label_names == ["é", "e"]


@pytest.mark.parametrize("on_disk, in_list", [("NFD", "NFC"), ("NFC", "NFD")])
def test_lists_beside_class_folders_know_clips_however_they_are_composed(tmp_path, on_disk, in_list):
    for word in ("größe", "b"):
        for number in range(3):
            write_sound(tmp_path / unicodedata.normalize(on_disk, f"{word}/é_{number}.wav"), sound(number))
    held_out = "größe/é_0.wav\nb/é_2.wav\n"
    (tmp_path / "testing_list.txt").write_text(unicodedata.normalize(in_list, held_out), encoding="utf-8")
    splits = load_splits(str(tmp_path))
    assert splits.label_names == ["b", "größe"] and len(splits.test) == 2


@pytest.mark.parametrize(
    "written, eval_fold",
    [
        ("{fold}.0", 2),
        ("{fold}.0", "2"),
        ("{fold},0", "2.0"),
        ("0{fold}", 2),
        ("kit {fold}", "kit 2"),
        ("{fold}" + "0" * 5000, "2" + "0" * 5000),
        (" Zoë_{fold} ", "Zoe\u0308_2"),
    ],
)
def test_folds_are_whole_numbers_or_names(listed_clips, written, eval_fold):
    text = lines_of("audio;label;fold", "{path};{word};" + written)
    (listed_clips / "clips.csv").write_text(text, encoding="utf-8")
    splits = load_splits(str(listed_clips / "clips.csv"), fold_column_name="fold", eval_fold=eval_fold)
    assert sorted(Path(path).stem for path in paths(splits.validation)) == [f"{word}_1" for word in LABELS]
    assert len(splits.train) == 6


@pytest.mark.parametrize("folds", [[1.0, 2.0, 3.0], ["1", "2", "3"]], ids=["fractions", "text"])
def test_folds_of_parquet_are_whole_numbers_too(listed_clips, folds):
    files = [str(path) for path in sorted(listed_clips.glob("clips/*.wav"))]
    columns = {"audio": files, "label": [Path(file).stem[:-2] for file in files], "fold": folds * 3}
    pq.write_table(pa.table(columns), listed_clips / "clips.parquet")
    splits = load_splits(str(listed_clips / "clips.parquet"), fold_column_name="fold", eval_fold=3)
    assert (len(splits.train), len(splits.validation)) == (6, 3)
    rows, found = read_folds(DataArguments(str(listed_clips / "clips.parquet"), fold_column_name="fold"))
    assert len(rows) == 9 and found == ["1", "2", "3"] * 3


@pytest.mark.parametrize("fold", ["1.5", "", "nan", "1,25"])
def test_fold_that_is_neither_a_whole_number_nor_a_name_is_named(listed_clips, fold):
    text = lines_of("audio;label;fold", "{path};{word};{fold}") + f"clips/cat_0.wav;cat;{fold}\n"
    (listed_clips / "clips.csv").write_text(text)
    words = rf"clips.csv, row 10 \(.*cat_0.wav\): expected a whole number or a name in 'fold', got '{fold}'"
    with pytest.raises(DataError, match=words):
        load_splits(str(listed_clips / "clips.csv"), fold_column_name="fold", eval_fold=1)
    with pytest.raises(DataError, match=words):
        read_folds(DataArguments(str(listed_clips / "clips.csv"), fold_column_name="fold"))


@pytest.mark.parametrize(
    "cells, expected",
    [
        (["['a', 'b']", "['c']", "[]", "['a']"], [[0, 1], [2], [], [0]]),
        (['["a", "b, c"]', '["b, c"]', "", '["a"]'], [[0, 1], [1], [], [0]]),
        (["[3, 10]", "[10]", "[7, 3]", "[3]"], [[0, 2], [2], [1, 0], [0]]),
        (["[noise]", "speech,[noise]", "[noise]", "speech"], [[0], [1, 0], [0], [1]]),
    ],
    ids=["of Python", "JSON", "numbers", "brackets of a label"],
)
def test_lists_of_labels_as_text_are_lists_of_labels(listed_clips, cells, expected):
    rows = [
        {"audio": f"clips/cat_{number % 3}.wav", "label": cell, "split": "train"} for number, cell in enumerate(cells)
    ]
    write_csv(listed_clips / "clips.csv", [*rows, {**rows[0], "split": "val"}])
    splits = load_splits(str(listed_clips / "clips.csv"), multi_label=True, split_column_name="split")
    assert splits.train["labels"][:] == expected and splits.validation["labels"][:] == expected[:1]


def test_json_lines_hold_lists_and_numbers_for_labels(listed_clips):
    for labels, expected in (
        ([["dog", "cat"], ["cat"], []], [[1, 0], [0], []]),
        ([[5, 6], [6], [5]], [[0, 1], [1], [0]]),
    ):
        rows = [{"audio": f"clips/cat_{number}.wav", "label": each} for number, each in enumerate(labels)]
        path = listed_clips / "clips.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        splits = load_splits(str(path), multi_label=True, validation_file=str(path))
        assert splits.train["labels"][:] == expected


BAD_LISTS = {
    "parts of files": (
        "clips.csv",
        "audio,start,offset,label\nclips/cat_0.wav,0.1,0.2,cat\n",
        r"clips.csv: expected whole files, .*which part of a file is the clip \(offset, start\)",
    ),
    "parts by their onset": (
        "clips.csv",
        "audio,Onset (s),label\nclips/cat_0.wav,0.1,cat\n",
        r"got columns .*\(Onset \(s\)\)",
    ),
    "parts in JSON lines": (
        "clips.jsonl",
        '{"audio": "clips/cat_0.wav", "offset": 1.5, "duration": 2, "label": "cat"}',
        r"got columns .*\(offset\)",
    ),
    "parts in the original's JSON": (
        "clips.json",
        '{"data": [{"wav": "clips/cat_0.wav", "labels": "x", "begin_time": 1}]}',
        r"got columns .*\(begin_time\)",
    ),
    "a column a class": (
        "clips.csv",
        "audio,cat,dog\nclips/cat_0.wav,1,0\n",
        "expected a column 'label', got audio, cat, dog. Is there a column a class.*such as 'dog,cat'",
    ),
    "times, of which a first row looks like a column a class": (
        "clips.csv",
        "audio,start,end\nclips/cat_0.wav,0,1\n",
        "expected a column 'label', got audio, start, end. Name it by label_column_name",
    ),
    "no first line": ("clips.csv", "clips/cat_0.wav,cat\n", "expected a column 'audio', got clips/cat_0.wav, cat"),
    "lists of NumPy": (
        "clips.csv",
        "audio,label\nclips/cat_0.wav,['a' 'b']\n",
        r"row 1 .*expected a list of labels in 'label'.*got \"\['a' 'b'\]\"",
    ),
    "lists and none": (
        "clips.csv",
        "audio,label\nclips/cat_0.wav,\"['a', 'b']\"\nclips/cat_1.wav,a\n",
        "row 2 .*expected a list of labels in 'label'.*got 'a'",
    ),
    "vectors as text": (
        "clips.csv",
        'audio,label\nclips/cat_0.wav,"[0, 1, 0]"\nclips/cat_1.wav,"[1, 0, 0]"\n',
        "what looks like multi-hot vectors",
    ),
    "half a line of JSON": (
        "clips.jsonl",
        '{"audio": "clips/cat_0.wav", "label": "cat"}\n{"audio":\n',
        "clips.jsonl, line 2: not JSON",
    ),
    "a list in a line": (
        "clips.jsonl",
        '["clips/cat_0.wav", "cat"]\n',
        "clips.jsonl, line 1: expected a table of names and values",
    ),
    "a column that ends": (
        "clips.jsonl",
        '{"audio": "clips/cat_0.wav", "label": "cat"}\n{"audio": "clips/cat_1.wav"}\n',
        "clips.jsonl, line 2: expected a column 'label'",
    ),
    "a key twice": ("clips.jsonl", '{"audio": "a", "audio": "b", "label": "cat"}\n', "a key is there twice"),
    "text and numbers": (
        "clips.jsonl",
        '{"audio": "clips/cat_0.wav", "label": "cat"}\n{"audio": "clips/cat_1.wav", "label": 1}\n',
        "expected values of one kind",
    ),
    "half a character": (
        "clips.jsonl",
        '{"audio": "clips/cat_0.wav", "label": "\\ud800"}\n',
        "expected values of one kind",
    ),
    "numbers for paths": ("clips.jsonl", '{"audio": 1, "label": "cat"}\n', "expected paths in 'audio', got int64"),
    "nothing for a path": (
        "clips.jsonl",
        '{"audio": null, "label": "cat"}\n{"audio": "clips/cat_0.wav", "label": "cat"}\n',
        "1 of 2 files are not there",
    ),
    "no lines": ("clips.jsonl", "\n", "clips.jsonl: holds no rows"),
    "a spreadsheet": ("clips.xlsx", "PK", "clips.xlsx: expected a folder or a file .csv, .tsv"),
}


@pytest.mark.parametrize("name, content, words", BAD_LISTS.values(), ids=BAD_LISTS)
def test_list_that_cannot_be_meant_is_one_sentence(listed_clips, name, content, words):
    (listed_clips / name).write_text(content)
    with pytest.raises(DataError, match=words) as error:
        load_splits(str(listed_clips / name), multi_label=True)
    assert "\n" not in str(error.value)


def test_paths_in_parquet_with_parts_of_files_are_refused_and_sounds_are_not(listed_clips):
    columns = {"start": [0.1] * 4, "label": ["a", "b"] * 2}
    path = listed_clips / "clips.parquet"
    pq.write_table(pa.table({"audio": [str(listed_clips / "clips" / "cat_0.wav")] * 4, **columns}), path)
    with pytest.raises(DataError, match=r"clips.parquet: expected whole files.*\(start\)"):
        load_splits(str(path))
    data = (listed_clips / "clips" / "cat_0.wav").read_bytes()
    pq.write_table(pa.table({"audio": [{"bytes": data, "path": "cat_0.wav"}] * 4, **columns}), path)
    assert load_splits(str(path), validation_fraction=0.5).label_names == ["a", "b"]  # a row is a sound of its own


@pytest.mark.parametrize("name", ["clips.csv", "clips.jsonl", "clips.json"])
def test_lists_are_files_and_nothing_is_waited_for(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: expected a file, got a folder"):
        load_splits(str(tmp_path / name))
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: expected a file, got a pipe or a device"):
        load_splits(str(tmp_path / name))
    (tmp_path / name).unlink()
    os.symlink("/dev/zero", tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: expected a file, got a pipe or a device"):
        load_splits(str(tmp_path / name))
    with pytest.raises(DataError, match="expected a folder or a file .csv"):
        load_splits("/dev/zero")


def test_a_misspelt_column_is_told_before_any_clip_is_looked_for(listed_clips, monkeypatch):
    (listed_clips / "train.csv").write_text(PLAIN)
    (listed_clips / "test.csv").write_text(PLAIN.replace("label", "lable"))
    monkeypatch.setattr(lists, "_find_files", None)  # which would fail
    with pytest.raises(DataError, match="test.csv: expected a column 'label', got audio, lable"):
        load_splits(str(listed_clips / "train.csv"), test_file=str(listed_clips / "test.csv"))
    with pytest.raises(DataError, match="train.csv: expected a column 'kind', got audio, label"):
        load_splits(str(listed_clips / "train.csv"), label_column_name="kind")


# What is wrong is said


def broken_csv(text: str | bytes):
    def write(folder: Path) -> Path:
        write_sound(folder / "a.wav", sound(0))
        path = folder / "clips.csv"
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
        return path

    return write


def empty_validation(folder: Path) -> Path:
    """A folder of Parquet files, one of them without rows."""
    rows = Dataset.from_dict({"audio": [{"bytes": b"", "path": "a.wav"}], "label": ["x"]})
    rows = rows.cast_column("audio", Audio(decode=False))
    for split, part in (("train", rows), ("validation", rows.select([]))):
        part.to_parquet(folder / "data" / f"{split}.parquet")
    return folder / "data"


def table_of(**changes):
    """A good table, but for some values of its first row."""

    def write(folder: Path) -> Path:
        rows = csv_rows(folder)
        rows[0] |= changes
        return write_csv(folder / "clips.csv", rows)

    return write


def folder_of(*files: str):
    def write(folder: Path) -> Path:
        for name in files:
            write_sound(folder / "data" / name, sound(0))
        (folder / "data").mkdir(exist_ok=True)
        return folder / "data"

    return write


def nowhere(name: str):
    return lambda folder: name.format(folder)


def listed_but_missing(folder: Path) -> Path:
    path, _ = class_folder(folder)
    with open(path / "testing_list.txt", "a") as file:
        file.write("\ncat/nowhere.wav\n")
    return path


def repository_without_train(folder: Path) -> Path:
    path, _ = hub_folder(folder)
    (path / "data" / "train-00000-of-00001.parquet").unlink()
    return path


def unlabelled_in_the_test(folder: Path) -> Path:
    """On the Hub a label that is not told is -1 by convention, which is also the index of the last name."""
    path, _ = hub_folder(folder)
    columns = {"audio": [embedded(folder)[0]["sound"]], "label": [-1]}
    table = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=LABELS))
    table.cast_column("audio", Audio(decode=False)).to_parquet(path / "data" / "test-00000-of-00001.parquet")
    return path


GOOD = {**CSV_COLUMNS, "audio_dir": "audio"}
CSV_NAMES = {"audio_column_name": "audio", "label_column_name": "label"}


@pytest.mark.parametrize(
    "write, options, words",
    [
        (table_of(), {}, "clips.csv: expected a column 'audio', got file, kind, split, fold"),
        (table_of(), {**GOOD, "label_column_name": "sort"}, "clips.csv: expected a column 'sort', got.* kind"),
        (
            table_of(),
            {**GOOD, "audio_dir": "sounds"},
            "clips.csv: 21 of 21 files are not there, such as row 1: .*sounds.0.wav. Is audio_dir",
        ),
        (table_of(), CSV_COLUMNS, "21 of 21 files are not there, .*0.wav. Is audio_dir right"),
        (
            table_of(),
            {**GOOD, "fold_column_name": "fold", "eval_fold": 3},
            "Expected eval_fold to be one of 0, 1, 2, 7, got 3",
        ),
        (table_of(), {**GOOD, "fold_column_name": "part", "eval_fold": 1}, "column 'part', got .*fold"),
        (
            table_of(),
            {**GOOD, "eval_fold": 1},
            "Expected fold_column_name, num_folds, group.* with eval_fold, got eval_fold alone",
        ),
        (
            table_of(),
            {**GOOD, "fold_column_name": "fold"},
            "got fold_column_name alone.*modeling-ast folds",
        ),
        (lambda folder: class_folder(folder)[0], {"audio_column_name": "sound"}, "a folder a class has no columns"),
        (lambda folder: class_folder(folder)[0], {"audio_dir": "audio"}, "Expected a list .*csv.* with audio_dir"),
        (table_of(), {**GOOD, "split_column_name": "part"}, "column 'part', got .*split"),
        (table_of(), {**GOOD, "split_column_name": "split", "fold_column_name": "fold", "eval_fold": 1}, "got both"),
        (
            table_of(split="holdout"),
            {**GOOD, "split_column_name": "split"},
            r"clips.csv, row 1 \(.*0.wav\): expected split to be one of train.*, got 'holdout'",
        ),
        (table_of(kind=""), GOOD, r"clips.csv, row 1 \(.*0.wav\): expected one label a clip in 'kind', got ''"),
        (broken_csv("audio,label\na.wav,x\na.wav\n"), CSV_NAMES, "clips.csv, line 3: expected 2 columns"),
        (broken_csv("audio,label\na.wav,x\na.wav,x,y\n"), CSV_NAMES, "clips.csv, line 3: expected 2 columns"),
        (broken_csv("audio,label\n"), CSV_NAMES, "clips.csv: holds no rows"),
        (broken_csv(""), CSV_NAMES, "clips.csv: expected a column 'audio'"),
        (broken_csv('audio,label\na.wav,x\na.wav,"y\n'), CSV_NAMES, "clips.csv, line"),
        (broken_csv(b"audio,label\na.wav,caf\x81\n"), CSV_NAMES, "clips.csv, line 2: not UTF-8"),
        (broken_csv("audio,label\n" + 4 * "a.wav,x\n"), CSV_NAMES, "at least two labels in 'label', got x"),
        (folder_of(), {}, r"data: expected a sub-folder a class with sound files \(.wav.*found none"),
        (folder_of("loose.wav"), {}, "data: expected a sub-folder a class"),
        (folder_of("_hidden_/a.wav", ".git/b.wav"), {}, "data: expected a sub-folder a class"),
        (folder_of("a/1.wav", "a/2.wav", "a/3.wav"), {}, "at least two labels.*got a"),
        (listed_but_missing, {}, "testing_list.txt, line 5: no file 'cat/nowhere.wav'"),
        (repository_without_train, {}, "expected a split called train, got (test, validation|validation, test)"),
        (unlabelled_in_the_test, {}, "-1"),
        (broken_csv('audio,label\na.wav,"x,y"\n'), {"multi_label": True}, "clips.csv: too few clips to hold some out"),
        (nowhere("{}/nowhere"), {}, "nowhere: no such file or folder"),
        (nowhere("./nowhere"), {}, "nowhere: no such file or folder"),
        (nowhere("nobody/nothing"), {}, "nobody/nothing: no such file or folder, nor to be had from the Hub"),
        (nowhere("{}/nowhere.csv"), {}, "nowhere.csv: no such file"),
        (nowhere("../nowhere.csv"), {}, "nowhere.csv: no such file"),
        (nowhere("{}/nowhere.parquet"), {}, "nowhere.parquet: no such file"),
        (
            table_of(),
            {**GOOD, "dataset_config_name": "all"},
            "on the Hub with dataset_config_name, got .*clips.csv",
        ),
        (
            lambda folder: write_csv(folder / "clips.csv", [row | {"split": "test"} for row in csv_rows(folder)]),
            {**GOOD, "split_column_name": "split"},
            "clips.csv: expected clips to train on, got test alone",
        ),
        (empty_validation, {}, "data: cannot be read as Parquet .*validation. corresponds to no data"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said(tmp_path, write, options, words):
    path = write(tmp_path)
    with pytest.raises(DataError, match=words):
        load_splits(str(path), **options)


def test_one_label_is_enough_where_clips_may_be_without(tmp_path):
    for number in range(4):
        write_sound(tmp_path / f"{number}.wav", np.zeros(800))
    rows = [{"audio": f"{number}.wav", "label": "owl" if number % 2 else ""} for number in range(4)]
    path = str(write_csv(tmp_path / "clips.csv", rows))
    splits = load_splits(path, multi_label=True, validation_fraction=0.5)
    assert splits.label_names == ["owl"]
    assert sorted(map(list, [*splits.train["labels"], *splits.validation["labels"]])) == [[], [], [0], [0]]
    with pytest.raises(DataError, match="expected a label in 'label', got none"):
        load_splits(str(write_csv(tmp_path / "clips.csv", [{**row, "label": ""} for row in rows])), multi_label=True)


def text_json(text: str):
    def write(folder: Path) -> Path:
        write_sound(folder / "a.wav", sound(0))
        (folder / "clips.json").write_text(text)
        return folder / "clips.json"

    return write


def entries_json(*entries):
    return text_json(json.dumps({"data": [{"wav": "a.wav", "labels": "x"}, *entries]}))


@pytest.mark.parametrize(
    "write, options, words",
    [
        (text_json('{"data": [\n{"wav": "a.wav",}\n]}'), {}, "clips.json, line 2: not JSON"),
        (text_json('# comment\n\n// comment\n{"data": [\n{"wav"}\n]}'), {}, "clips.json, line 5: not JSON"),
        (
            text_json('[{"wav": "a.wav", "labels": "x"}]'),
            {},
            'clips.json: expected the format of the original, {"data',
        ),
        (text_json('{"data": []}'), {}, "clips.json: holds no entries"),
        (entries_json({"wav": "a.wav"}), {}, r"clips.json, entry 2: expected wav and labels, .*got .'wav': 'a.wav'"),
        (entries_json({"file": "a.wav"}), {}, "clips.json, entry 2: expected wav and labels"),
        (entries_json({"wav": "a.wav", "labels": 3}), {}, "clips.json, entry 2: expected wav and labels, both text"),
        (
            entries_json({"wav": "b.wav", "labels": "y"}),
            {},
            "clips.json: 1 of 2 files are not there, such as entry 2: .*b",
        ),
        (
            entries_json({"wav": "a.wav", "labels": "x,y"}),
            {},
            r"clips.json, entry 2 \(.*a.wav\): expected one label a clip in 'labels', got 'x,y'",
        ),
        (
            entries_json(),
            {"label_file": "esc50"},
            r"entry 1 \(.*a.wav\): the label 'x' is not in the label table esc50",
        ),
        (entries_json(), {"label_file": "esc51"}, "esc51: no such label table.*audioset, esc50"),
        (
            entries_json(),
            {"label_column_name": "labels"},
            "nor has the original's JSON file, so that their names have no effect",
        ),
        (entries_json(), {"split_column_name": "split"}, "clips.json: expected a column 'split', got wav, labels"),
        (data_json, {"validation_file": "nowhere.json"}, "nowhere.json: no such file"),
        (
            data_json,
            {"test_file": "somewhere"},
            "Expected test_file to be a file .csv, .*, .parquet, got somewhere",
        ),
        (
            table_of(),
            {**GOOD, "validation_file": "x.csv", "split_column_name": "split"},
            "Expected validation_file or a fold or split column, got both",
        ),
        (
            table_of(),
            {**GOOD, "test_file": "x.csv", "validation_file": "x.csv", "fold_column_name": "fold", "eval_fold": 1},
            "Expected validation_file and test_file or a fold or split column, got both",
        ),
        (
            lambda folder: class_folder(folder)[0],
            {"test_file": "x.csv"},
            "Expected the test clips from .* or from test_file, got both",
        ),
        (table_of(kind="cow"), {**GOOD, "label_file": "esc50"}, r"clips.csv, row \d+ .*the label 'bird' is not in"),
    ],
)
def test_what_is_wrong_with_files_and_tables_is_said(tmp_path, write, options, words):
    path = write(tmp_path)
    with pytest.raises(DataError, match=words):
        load_splits(str(path), **options)


def test_label_that_does_not_train_is_unknown_where_the_data_names_its_labels(tmp_path):
    path, _ = hub_folder(tmp_path)
    for split in ("validation", "test"):
        (path / "data" / f"{split}-00000-of-00001.parquet").unlink()
    data_json(tmp_path, labels="cow")
    with pytest.raises(DataError, match=r"clips.json, entry 1 \(.*0.wav\): the label 'cow' is not among those of "):
        load_splits(str(path), validation_file=str(tmp_path / "clips.json"))


def test_manifest_of_many_rows_is_read_without_asking_for_each_file(tmp_path, monkeypatch):
    """Each folder is listed once: on a network's disk a question takes a millisecond, and there are millions."""
    for number in range(20):
        write_sound(tmp_path / "audio" / f"{number}.wav", sound(number))
    names = [f"audio/{number % 20}.wav" for number in range(20000)]
    rows = [
        {"audio": name, "label": f"{name[6:-4]},x", "split": ["train", "val"][number % 2]}
        for number, name in enumerate(names)
    ]
    write_csv(tmp_path / "clips.csv", rows)
    asked = []
    is_file = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or is_file(path))
    splits = load_splits(str(tmp_path / "clips.csv"), split_column_name="split", multi_label=True)
    assert len(asked) < 10
    assert (len(splits.train), len(splits.validation), len(splits.label_names)) == (10000, 10000, 21)
    assert splits.train[3] == {"audio": {"bytes": None, "path": str(tmp_path / "audio" / "6.wav")}, "labels": [6, 20]}


def test_files_are_found_in_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    scan = os.scandir
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").touch()

    def refuse(path):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(path)
        return scan(path)

    write_csv(tmp_path / "clips.csv", [{"audio": name, "label": name} for name in ("a.wav", "b.wav")])
    monkeypatch.setattr(os, "scandir", refuse)
    splits = load_splits(str(tmp_path / "clips.csv"), validation_fraction=0.5)
    assert splits.label_names == ["a.wav", "b.wav"]


def test_several_labels_where_one_is_expected_are_an_error(tmp_path):
    clip = str(write_sound(tmp_path / "a.wav", sound(0)))
    columns = {"audio": [clip] * 8, "label": [["x"], ["y", "x"], ["x"], ["y"]] * 2}
    Dataset.from_dict(columns).to_parquet(tmp_path / "clips.parquet")
    with pytest.raises(
        DataError, match=r"clips.parquet, row 2 .*expected one label a clip in 'label', got \['y', 'x'\]"
    ):
        load_splits(str(tmp_path / "clips.parquet"))


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5])
def test_fraction_that_leaves_one_side_empty_is_an_error(tmp_path, fraction):
    with pytest.raises(DataError, match="validation_fraction"):
        load_splits(str(write_flat(tmp_path)), validation_fraction=fraction)


# Sound files are read when they are asked for


def break_one(folder: Path, how: str) -> tuple[AudioSplits, str]:
    """A class folder with one file that cannot be read, found only when it is."""
    path = write_flat(folder, num_clips=10) / "b" / "05.wav"
    (folder / "validation_list.txt").write_text("a/00.wav\nb/01.wav\n")
    if how == "text":
        path.write_text("no sound at all")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:900])
    elif how == "empty":
        path.write_bytes(b"")
    splits = load_splits(str(folder))
    if how == "deleted":
        path.unlink()
    return splits, str(path)


@pytest.mark.parametrize("how", ["text", "cut", "empty", "deleted"])
def test_broken_file_is_an_error_with_its_path_when_it_is_asked_for(tmp_path, how):
    splits, path = break_one(tmp_path, how)
    rows = splits.train.with_transform(DecodeAudio(16000))
    broken = paths(splits.train).index(path)
    for number in range(len(rows)):
        if number != broken:
            assert rows[number]["waveform"].shape == (SAMPLES,)
    with pytest.raises(AudioError) as error:
        rows[broken]
    assert path in str(error.value)


def test_broken_bytes_are_an_error_with_the_name_they_came_with(tmp_path):
    rows = embedded(tmp_path)
    index = CLIPS.index(("train", "cat", 2))
    rows[index]["sound"]["bytes"] = b"no sound at all"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clips.parquet")
    names = {"audio_column_name": "sound", "label_column_name": "kind", "split_column_name": "split"}
    splits = load_splits(str(tmp_path / "clips.parquet"), **names)
    assert len(decode(splits.validation)) == 6
    with pytest.raises(AudioError, match=rf"^{index}\.wav: cannot be decoded"):
        decode(splits.train)


# Real recordings


def test_esc10_is_five_folds_of_80_clips_of_10_kinds(shared_data):
    options = {"audio_column_name": "filename", "label_column_name": "category", "audio_dir": "../audio"}
    held_out = []
    for fold in range(1, 6):
        splits = load_splits(
            str(shared_data / "esc10" / "meta" / "esc50.csv"), fold_column_name="fold", eval_fold=fold, **options
        )
        assert (len(splits.train), len(splits.validation), splits.test) == (320, 80, None)
        assert len(splits.label_names) == 10 and set(splits.validation["labels"]) == set(range(10))
        assert all(Path(path).name.startswith(f"{fold}-") for path in paths(splits.validation))
        held_out += paths(splits.validation)
    assert len(set(held_out)) == 400
    waveform = splits.validation.with_transform(DecodeAudio(16000))[0]["waveform"]
    assert len(waveform) == pytest.approx(80000, abs=100)  # 5 s


def test_fsdd_is_1600_and_200_and_200_clips_of_10_digits(shared_data):
    splits = load_splits(str(shared_data / "fsdd"))
    assert {name: len(rows) for name, rows in splits} == {"train": 1600, "validation": 200, "test": 200}
    assert splits.label_names == sorted(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    assert not set(paths(splits.train)) & set(paths(splits.validation) + paths(splits.test))
    waveform = splits.test.with_transform(DecodeAudio(16000))[0]["waveform"]
    assert 3000 < len(waveform) < 40000


def test_lists_hold_out_however_their_paths_are_written(tmp_path):
    path, _ = class_folder(tmp_path)
    expected = {name: len(rows) for name, rows in load_splits(str(path))}
    for name in ("validation_list.txt", "testing_list.txt"):
        lines = (path / name).read_text().splitlines()
        (path / name).write_text("\n".join("./" + line.replace("/", "//") for line in lines))
    assert {name: len(rows) for name, rows in load_splits(str(path))} == expected


def test_a_class_may_be_called_train(tmp_path):
    for kind in ("train", "dog"):
        for number in range(6):
            write_sound(tmp_path / kind / f"{number}.wav", sound(number))
    assert load_splits(str(tmp_path)).label_names == ["dog", "train"]


def test_linked_folders_are_followed_and_empty_ones_are_said(tmp_path, caplog):
    for kind in ("cat", "dog"):
        for number in range(6):
            write_sound(tmp_path / "elsewhere" / kind / f"{number}.wav", sound(number))
        (tmp_path / "data" / kind).mkdir(parents=True)
        (tmp_path / "data" / kind / "linked").symlink_to(tmp_path / "elsewhere" / kind)
    (tmp_path / "data" / "silent").mkdir()
    splits = load_splits(str(tmp_path / "data"))
    assert len(splits.train) + len(splits.validation) == 12
    assert "silent holds no sound files" in caplog.text


def test_multi_hot_vectors_are_not_taken_for_lists_of_labels(tmp_path):
    columns = {"audio": [{"bytes": b"", "path": "x"}] * 3, "label": [[1, 0, 1], [0, 0, 1], [1, 1, 0]]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="multi-hot"):
        load_splits(str(tmp_path / "train.parquet"), multi_label=True)
