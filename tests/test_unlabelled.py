"""Clips without labels: the sounds of every kind of source, as training reads them, and where labels are needed."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import decoded, end_of, prepare, write_csv, write_sound
from test_shards import make_clips, write_audio_folder, write_tar
from test_sources import LAYOUTS, class_folder, data_json

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands import check, embed, pack, statistics
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import decode
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import DataArguments, RecipeError
from modeling_ast.data.sources import load_splits
from modeling_ast.data.splits import read_evaluation_splits, read_splits
from modeling_ast.training import same_run
from modeling_ast.training.arguments import AugmentArguments, parse_arguments
from modeling_ast.training.collator import AugmentingCollator

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [f"{number}.wav" for number in range(4)]
TEACHER = ["owl", "dog", "cat"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def samples(number: int) -> torch.Tensor:
    """With a level of its own to be told by."""
    return torch.linspace(-1, 1, 1600) * (number + 1) / 100


def write_sounds(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_sound(folder / name, samples(number))
    return folder


def heard(splits: AudioSplits) -> dict[str, list[list[float]]]:
    return {name: sorted(row["waveform"].tolist() for row in decoded(rows)) for name, rows in splits}


def paths(splits: AudioSplits) -> dict[str, list[str]]:
    return {name: [Path(audio["path"]).name for audio in rows["audio"]] for name, rows in splits}


# The same clips as with labels.


@pytest.mark.parametrize("layout", [*LAYOUTS, data_json], ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_clips_without_labels(layout, tmp_path):
    path, options = layout(tmp_path) if layout is not data_json else (data_json(tmp_path), {"audio_dir": "audio"})
    labelled, found = (load_splits(str(path), unlabelled=each, **options) for each in (False, True))
    assert found.label_names == []
    assert all(rows.column_names == ["audio"] for _, rows in found)
    expected, own = heard(labelled), heard(found)
    if layout is class_folder:  # its background noise is no class, but a sound
        own["train"].remove(heard(load_splits(str(path / "_background_noise_"), unlabelled=True))["train"][0])
    if layout is data_json:  # of which none were held out
        expected = {"train": sorted(sum(expected.values(), []))}
    assert own == expected
    if path.suffix in (".csv", ".parquet"):
        assert found.train["audio"][:] == labelled.train["audio"][:]  # in their order


# Data that have no labels at all.


def flat_folder(folder: Path) -> dict[str, str]:
    return {"dataset_name": str(write_sounds(folder / "data", *NAMES))}


def deep_folder(folder: Path) -> dict[str, str]:
    """A folder called `train` is none of splits, where no other split lies beside it."""
    names = ("0.wav", "train/1.wav", "_of/2003/2.wav", "of/2003/june/3.wav")
    return {"dataset_name": str(write_sounds(folder / "data", *names))}


def list_of_paths(folder: Path) -> dict[str, str]:
    flat_folder(folder)
    return {"dataset_name": str(write_csv(folder / "list.csv", [{"audio": f"data/{n}.wav"} for n in range(4)]))}


def lines_of_json(folder: Path) -> dict[str, str]:
    flat_folder(folder)
    (folder / "list.jsonl").write_text("".join(json.dumps({"audio": f"data/{n}.wav"}) + "\n" for n in range(4)))
    return {"dataset_name": str(folder / "list.jsonl")}


def original_json(folder: Path) -> dict[str, str]:
    flat_folder(folder)
    (folder / "list.json").write_text(json.dumps({"data": [{"wav": f"data/{n}.wav"} for n in range(4)]}))
    return {"dataset_name": str(folder / "list.json")}


def of_bytes(folder: Path, write: Callable) -> dict[str, str]:
    flat_folder(folder)
    sounds = {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}
    (folder / "packed").mkdir()
    write(folder / "packed", sounds)
    return {"dataset_name": str(folder / "packed")}


def parquet(folder: Path) -> dict[str, str]:
    def write(place: Path, sounds: dict[str, bytes]) -> None:
        rows = [{"bytes": content, "path": name} for name, content in sounds.items()]
        datasets.Dataset.from_dict({"audio": rows}).to_parquet(place / "train-00000-of-00001.parquet")

    return of_bytes(folder, write)


def archive(folder: Path) -> dict[str, str]:
    written = of_bytes(folder, lambda place, sounds: write_tar(place / "train-0000.tar", list(sounds.items())))
    return {**written, "audio_column_name": "wav"}


def audio_folder(folder: Path) -> dict[str, str]:
    def write(place: Path, sounds: dict[str, bytes]) -> None:
        (place / "train").mkdir()
        for name, content in sounds.items():
            (place / "train" / name).write_bytes(content)
        write_csv(place / "train" / "metadata.csv", [{"file_name": name, "voice": "a"} for name in sounds])

    return of_bytes(folder, write)


ON_DISK = [flat_folder, deep_folder, list_of_paths, lines_of_json, original_json]
STREAMABLE = [parquet, archive, audio_folder]


@pytest.mark.parametrize("write", [*ON_DISK, *STREAMABLE], ids=lambda write: write.__name__)
def test_sounds_alone_are_all_there_to_train_on(write, tmp_path):
    settings = write(tmp_path)
    expected = {"train": sorted(row.tolist() for row in map(samples, range(4)))}
    for streaming in (False, True) if write in STREAMABLE else (False,):
        splits = read_splits(DataArguments(**settings, unlabelled=True, streaming=streaming), False)
        found = heard(splits)
        assert found.keys() == {"train"} and splits.label_names == []
        torch.testing.assert_close(torch.tensor(found["train"]), torch.tensor(expected["train"]), atol=1e-4, rtol=0)


def test_folders_of_splits_and_lists_hold_out_clips_without_labels_too(tmp_path, caplog):
    of_splits = write_sounds(tmp_path / "splits", "train/1.wav", "train/a/2.wav", "dev/3.wav", "spare/4.wav")
    assert paths(load_splits(str(of_splits), unlabelled=True)) == {
        "train": ["1.wav", "2.wav"],
        "validation": ["3.wav"],
    }
    assert "spare (1 of sounds)" in caplog.text
    listed = write_sounds(tmp_path / "lists", "1.wav", "2.wav", "b/3.wav")
    (listed / "testing_list.txt").write_text("b/3.wav\n")
    assert paths(load_splits(str(listed), unlabelled=True)) == {"train": ["1.wav", "2.wav"], "test": ["3.wav"]}


def test_what_holds_no_sounds_without_labels_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected sound files .* found none"):
        load_splits(str(tmp_path / "empty"), unlabelled=True)
    with pytest.raises(DataError, match="expected a sub-folder a class .* unlabelled: true"):
        load_splits(**flat_folder(tmp_path))
    for write in (list_of_paths, parquet):
        with pytest.raises(DataError, match="expected a column 'label', got audio.* unlabelled: true"):
            load_splits(**write(tmp_path / write.__name__))
    write_sounds(tmp_path / "listed", "1.wav").joinpath("testing_list.txt").write_text("testing_list.txt\n")
    with pytest.raises(DataError, match="held out by a list, but no sound file"):
        load_splits(str(tmp_path / "listed"), unlabelled=True)
    write_sounds(tmp_path / "two", "train/1.wav", "dev/1.wav", "val/2.wav")
    with pytest.raises(DataError, match="expected one validation split"):
        load_splits(str(tmp_path / "two"), unlabelled=True)
    (tmp_path / "broken.json").write_text('{"data": [{"labels": "a"}]}')
    with pytest.raises(DataError, match="expected wav, a text"):
        load_splits(str(tmp_path / "broken.json"), unlabelled=True)


# A teacher's labels, for held-out clips.


def held_out_list(folder: Path, *labels: str) -> str:
    write_sounds(folder / "more", *(f"{label}.wav" for label in labels))
    rows = [{"audio": f"more/{label}.wav", "label": label} for label in labels]
    return str(write_csv(folder / "held_out.csv", rows))


def test_held_out_clips_have_the_labels_of_the_teacher(tmp_path):
    settings = flat_folder(tmp_path) | {"validation_file": held_out_list(tmp_path, "cat", "dog")}
    data_args = DataArguments(**settings, unlabelled=True)
    splits = read_splits(data_args, False, teacher_labels=TEACHER)
    assert splits.label_names == TEACHER and splits.validation["labels"][:] == [2, 1]
    assert splits.train.column_names == ["audio"]
    several = read_splits(data_args, True, teacher_labels=TEACHER)
    assert several.validation["labels"][:] == [[2], [1]]
    assert read_splits(data_args, False).validation.column_names == ["audio"]  # to teach
    with pytest.raises(DataError, match="'cat' is not among those of the model"):
        read_splits(data_args, False, teacher_labels=TEACHER[:2])


def test_held_out_clips_without_labels_are_left_out_where_a_teacher_has_some(tmp_path, caplog):
    flat_folder(tmp_path)
    rows = [{"audio": f"data/{number}.wav", "split": "test" if number == 3 else "train"} for number in range(4)]
    settings = {"dataset_name": str(write_csv(tmp_path / "list.csv", rows)), "split_column_name": "split"}
    data_args = DataArguments(**settings, unlabelled=True)
    assert paths(read_splits(data_args, False)) == {"train": ["0.wav", "1.wav", "2.wav"], "test": ["3.wav"]}
    splits = read_splits(data_args, False, teacher_labels=TEACHER)
    assert paths(splits) == {"train": ["0.wav", "1.wav", "2.wav"]}
    assert "the test clips, which have no labels, are not evaluated" in caplog.text


def test_own_splits_of_tables_and_streams_may_have_labels_where_training_clips_have_none(tmp_path):
    """As of one split of a data set, whose columns are the same in all."""
    (tmp_path / "data").mkdir()
    sounds = [
        {"bytes": path.read_bytes(), "path": path.name}
        for path in sorted(write_sounds(tmp_path / "clips", *NAMES).iterdir())
    ]
    for split, part, labels in (("train", sounds[:3], [None] * 3), ("validation", sounds[3:], ["dog"])):
        table = pa.table({"audio": part, "label": pa.array(labels, pa.string())})
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    for streaming in (False, True):
        data_args = DataArguments(str(tmp_path / "data"), unlabelled=True, streaming=streaming)
        taught, student = read_splits(data_args, False), read_splits(data_args, False, teacher_labels=TEACHER)
        assert "labels" not in taught.validation.column_names
        assert student.validation["labels"][:] == [1] and "labels" not in student.train.features
        assert taught.version == student.version  # they train on the same clips
        assert heard(taught)["train"] == heard(student)["train"]


# What reads them.


@pytest.mark.parametrize(("mixup_probability", "partner"), [(0, "dataset"), (1, "dataset"), (1, "batch")])
def test_batches_without_labels_have_the_same_features(tmp_path, mixup_probability, partner):
    path, _ = class_folder(tmp_path)
    labelled = list(decoded(load_splits(str(path)).validation))
    bare = [{name: value for name, value in row.items() if name != "labels"} for row in labelled]
    extractor = ASTFeatureExtractor(max_length=5, num_mel_bins=16)
    plain = ASTDataCollator(extractor, 3)
    assert plain(bare).keys() == {"input_values"}
    torch.testing.assert_close(plain(bare)["input_values"], plain(labelled)["input_values"], rtol=0, atol=1e-6)
    mixup = {"mixup_probability": mixup_probability, "mixup_partner": partner} if mixup_probability else {}
    augment = AugmentArguments(**mixup, random_crop=True, time_mask_frames=3, max_noise=1.0)
    collator, batches = AugmentingCollator(extractor, 3, augment=augment), []
    for rows in (labelled, bare):
        batch = [{**row, "position": position} for position, row in enumerate(rows)]
        batches.append(collator(prepare(collator, batch, rows)))
    assert batches[1].keys() == {"input_values"} and batches[0].keys() == {"input_values", "labels"}
    torch.testing.assert_close(batches[1]["input_values"], batches[0]["input_values"], rtol=0, atol=1e-6)


def test_rows_without_labels_are_decoded_one_by_one_and_together(tmp_path):
    rows = decode(load_splits(**flat_folder(tmp_path), unlabelled=True).train, 16000)
    assert rows[0].keys() == {"waveform", "path"} and len(rows[:]["path"]) == 4
    torch.testing.assert_close(rows[:]["waveform"][2], rows[2]["waveform"], rtol=0, atol=1e-6)


def test_processes_compare_clips_without_labels(tmp_path):
    rows = load_splits(**flat_folder(tmp_path), unlabelled=True).train
    described = same_run.describe_rows(rows)
    assert described == same_run.describe_rows(rows.select(range(4)))
    assert described != same_run.describe_rows(rows.select([0, 1, 2, 2]))


def write_recipe(folder: Path, **settings) -> str:
    path = folder / "recipe.yaml"
    settings = {"model_name_or_path": "tiny224", "max_length": 16, "output_dir": str(folder / "run"), **settings}
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    return str(path)


def test_packed_clips_without_labels_are_streamed_without(tmp_path, capsys):
    (tmp_path / "shards").mkdir()
    recipe = write_recipe(tmp_path, **flat_folder(tmp_path), unlabelled=True)
    assert pack.main([recipe, "--output", str(tmp_path / "shards")]) == 0
    assert "no labels" in capsys.readouterr().out
    (file,) = (tmp_path / "shards").glob("*.parquet")
    assert datasets.Dataset.from_parquet(str(file)).column_names == ["audio"]
    table, stream = (
        read_splits(DataArguments(str(tmp_path / "shards"), unlabelled=True, streaming=streaming), False)
        for streaming in (False, True)
    )
    assert heard(table) == heard(stream)
    assert stream.train_counts.clips == 4 and len(stream.train_counts.of_labels) == 0


def test_commands_that_look_at_sounds_need_no_labels(tmp_path, capsys, monkeypatch):
    recipe = write_recipe(tmp_path, **flat_folder(tmp_path), unlabelled=True)
    check.main([recipe])
    found = capsys.readouterr().out
    assert "no labels, 4 clips for train; listened to 4" in found and "label" not in found.split("\n", 1)[1]
    assert all(map(torch.isfinite, map(torch.tensor, statistics.main([recipe]))))
    clips = embed.find_clips(recipe, None, [])
    assert clips.columns == ("path", "split") and clips.describe(1).keys() == {"path", "split"}


# What needs labels.


def test_what_needs_labels_says_so(tmp_path):
    settings = flat_folder(tmp_path)
    assert end_of("train", write_recipe(tmp_path, **settings, unlabelled=True, do_train=True, eval_strategy="no")) == (
        2,
        "error: Expected labels, or teacher_targets to train by, got unlabelled true.",
    )
    assert end_of(
        "train", write_recipe(tmp_path, **settings, unlabelled=True, do_train=False, eval_strategy="no")
    ) == (
        2,
        "error: Expected labels to evaluate by, got unlabelled true.",
    )
    with pytest.raises(DataError, match="Expected clips with labels to evaluate a trained model"):
        read_evaluation_splits(DataArguments(**settings, unlabelled=True), False, TEACHER)
    for key in ("linear_baseline", "leave_out_unknown_labels", "class_balanced_sampling"):
        recipe = write_recipe(tmp_path, **settings, unlabelled=True, **{key: True})
        with pytest.raises(RecipeError, match=f"{key} needs labels"):
            parse_arguments([recipe])


def test_an_audio_folder_with_labels_is_read_without(tmp_path):
    folder = write_audio_folder(tmp_path, make_clips())
    labelled, found = (load_splits(folder, unlabelled=each) for each in (False, True))
    assert heard(found) == heard(labelled) and all(rows.column_names == ["audio"] for _, rows in found)
