"""Packed shards: the clips, labels and columns of what they were made of, whole or not there at all."""

import errno
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import make_tiny_config
from datasets import ClassLabel, List, load_dataset
from helpers import another_process, contents, decoded, end_of, write_csv, write_sound

from modeling_ast import ASTFeatureExtractor
from modeling_ast.audio import AudioError
from modeling_ast.commands import pack
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data import packing
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import claimed
from modeling_ast.data.recipes import DataArguments, RecipeError
from modeling_ast.data.splits import read_splits

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["bell", "dog", "rain"]
MORE = {"validation": 3, "test": 4}


def sound(number: int, num_samples: int = 1600) -> torch.Tensor:
    """Of 16 bits, each with a level of its own to be told by."""
    samples = torch.linspace(-1, 1, num_samples) * (number + 1) / 100
    return (samples * 32768).round() / 32768


def write_classes(folder: Path, clips: int = 18) -> dict[str, str]:
    """A folder a class, with the lists of Speech Commands."""
    lists = {"validation": [], "testing": []}
    for number in range(clips):
        name = f"{NAMES[number % 3]}/{number}.wav"
        write_sound(folder / name, sound(number))
        if number % 6 < 2:
            lists["validation" if number % 6 else "testing"].append(name)
    for name, names in lists.items():
        (folder / f"{name}_list.txt").write_text("\n".join(names))
    return {"dataset_name": str(folder)}


def write_list(folder: Path, column: str, values: list, **settings: str) -> dict[str, str]:
    rows = []
    for number in range(18):
        write_sound(folder / "clips" / f"{number}.wav", sound(number))
        row = {"file": f"clips/{number}.wav", "kind": NAMES[number % 3], column: values[number % len(values)]}
        rows.append(row)
    path = write_csv(folder / "clips.csv", rows)
    return {"dataset_name": str(path), "audio_column_name": "file", "label_column_name": "kind", **settings}


def write_several_labels(folder: Path) -> dict[str, str]:
    settings = write_list(folder, "kinds", ["bell,dog", "rain", "", "dog"])
    multi_label = {"problem_type": "multi_label_classification", "label_column_name": "kinds"}
    return settings | multi_label


def write_parquet(folder: Path) -> dict[str, str]:
    """As shards that were packed before."""
    run(folder, write_classes(folder / "classes"), "--output", folder / "first")
    return {"dataset_name": str(folder / "first")}


LAYOUTS = {
    "classes": write_classes,
    "list": lambda folder: write_list(folder, "note", ["x"]),
    "list with splits": lambda folder: write_list(
        folder, "part", ["train", "train", "dev", "test"], split_column_name="part"
    ),
    "list with folds": lambda folder: write_list(folder, "fold", [1, 2, 3, 4], fold_column_name="fold", eval_fold="2"),
    "several labels": write_several_labels,
    "Parquet": write_parquet,
}
each_layout = pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)


def write_recipe(folder: Path, settings: dict[str, str]) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    return recipe


def run(folder: Path, settings: dict[str, str], *argv) -> int:
    recipe = write_recipe(folder, {"model_name_or_path": "tiny224", "learning_rate": "1e-3", **settings})
    return pack.main([str(recipe), *map(str, argv)])


def load(settings: dict[str, str], **others) -> AudioSplits:
    settings = settings | others
    is_multi_label = settings.pop("problem_type", "") == "multi_label_classification"
    return read_splits(DataArguments(**settings), is_multi_label)


def heard(splits: AudioSplits) -> dict[str, list[tuple]]:
    """Labels and samples of each clip, by split."""
    return {name: sorted((row["labels"], row["waveform"].tolist()) for row in decoded(rows)) for name, rows in splits}


def names(shards: Path, split: str) -> list[str]:
    """What the clips are called, in their order."""
    tables = [pq.read_table(path) for path in sorted(shards.glob(f"{split}-*.parquet"))]
    return [audio["path"] for table in tables for audio in table.column(0).to_pylist()]


@each_layout
def test_the_same_recipe_gives_the_same_clips(tmp_path, write):
    """Those of FLAC and WAV are bit for bit the same too."""
    format = {write_classes: "flac", write_several_labels: "wav"}.get(write, "original")
    settings, shards = write(tmp_path), tmp_path / "shards"
    assert run(tmp_path, settings, "--output", shards, "--format", format, "--clips_per_shard=5") == 0
    before, after = load(settings), load(settings, dataset_name=str(shards))
    assert heard(after) == heard(before) and after.label_names == before.label_names
    assert len(list(shards.glob("train-0000?-of-0000?.parquet"))) > 1


@pytest.mark.slow  # `datasets` sleeps for five seconds an epoch
@pytest.mark.parametrize("name", ["classes", "several labels"])
def test_a_stream_gives_them_too(tmp_path, name):
    settings, shards = LAYOUTS[name](tmp_path), tmp_path / "shards"
    run(tmp_path, settings, "--output", shards, "--clips_per_shard=5")
    stream = load(settings, dataset_name=str(shards), streaming=True)
    assert heard(stream) == heard(load(settings)) and stream.label_names == NAMES


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_clips_of_other_kinds_become_mono_of_the_recipes_rate(tmp_path, format):
    settings, noise = write_classes(tmp_path / "data"), torch.rand(800, 2) - 0.5
    write_sound(tmp_path / "data" / "dog" / "stereo.flac", noise, 8000)
    keys = ["--output", tmp_path / "shards", "--sampling_rate=24000"]
    run(tmp_path, settings, *keys, "--format", format)
    rows = load(settings, dataset_name=str(tmp_path / "shards")).train
    (content,) = [row["audio"]["bytes"] for row in rows if row["audio"]["path"] == f"dog/stereo.{format}"]
    expected = next(row["waveform"] for row in decoded(load(settings).train, 24000) if "stereo" in row["path"])
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == 24000 and soundfile.info(io.BytesIO(content)).format == format.upper()
    torch.testing.assert_close(torch.from_numpy(samples), expected, atol=2**-16, rtol=0)


def test_the_rate_is_that_of_the_model_that_the_recipe_starts_from(tmp_path):
    settings, model = write_classes(tmp_path / "data"), tmp_path / "model"
    make_tiny_config().save_pretrained(model)
    ASTFeatureExtractor(sampling_rate=8000, num_mel_bins=32, max_length=64).save_pretrained(model)
    keys = {**settings, "model_name_or_path": str(model)}
    for format, rate in (("wav", 8000), ("original", 16000)):
        run(tmp_path, keys, "--output", tmp_path / format, "--format", format)
        rows = load(settings, dataset_name=str(tmp_path / format)).train
        assert {soundfile.info(io.BytesIO(row["audio"]["bytes"])).samplerate for row in rows} == {rate}
    keys["model_name_or_path"] = str(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="sampling_rate is needed, since .*nowhere does not tell its own"):
        run(tmp_path, keys, "--output", tmp_path / "none", "--format", "wav")
    run(tmp_path, keys, "--output", tmp_path / "none", "--format", "wav", "--sampling_rate", 16000)


def test_opus_sounds_alike_and_is_as_long(tmp_path):
    for number in range(4):
        noise = torch.randn(16000, generator=torch.Generator().manual_seed(number)) / 10
        write_sound(tmp_path / "data" / NAMES[number % 2] / f"{number}.wav", noise)
    settings, shards = {"dataset_name": str(tmp_path / "data")}, tmp_path / "shards"
    run(tmp_path, settings, "--output", shards, "--format=opus")
    extractor = ASTFeatureExtractor(max_length=98)
    before, after = load(settings), load(settings, dataset_name=str(shards))
    for (_, rows), (_, packed) in zip(before, after):
        clips = {Path(row["path"]).stem: row["waveform"] for row in decoded(packed)}
        for row in decoded(rows):
            clip = clips.pop(Path(row["path"]).stem)
            assert len(clip) == len(row["waveform"])
            difference = torch.stack(extractor.fbank([clip])) - torch.stack(extractor.fbank([row["waveform"]]))
            assert difference.mean().abs() < 0.5 and difference.abs().mean() < 1  # of 4.6, AudioSet's deviation
    assert all(row["audio"]["path"].endswith(".opus") for row in after.train)


def test_datasets_gives_names_and_columns_back(tmp_path):
    run(tmp_path, LAYOUTS["list with folds"](tmp_path), "--output", tmp_path / "shards")
    rows = load_dataset(str(tmp_path / "shards"), split="train")
    assert rows.features["kind"] == ClassLabel(names=NAMES) and len(rows) == 18
    assert sorted(rows["fold"]) == sorted(str(number % 4 + 1) for number in range(18))
    run(tmp_path, write_several_labels(tmp_path), "--output", tmp_path / "several")
    assert load_dataset(str(tmp_path / "several"), split="train").features["kinds"] == List(ClassLabel(names=NAMES))


def test_what_to_leave_out_of_the_recipe_is_said(tmp_path, capsys):
    settings, shards = write_list(tmp_path, "note", ["x"]), tmp_path / "shards"
    (tmp_path / "held_out").mkdir()
    held_out = write_list(tmp_path / "held_out", "note", ["x"])["dataset_name"]
    run(tmp_path, settings, "--output", shards, "--validation_file", held_out, "--audio_dir=.")
    assert capsys.readouterr().out.endswith(f"dataset_name: {shards}, without audio_dir, validation_file\n")
    assert len(names(shards, "train")) == len(names(shards, "validation")) == 18
    assert names(shards, "validation")[0] == "held_out/clips/0.wav"


def test_training_clips_are_shuffled_and_others_keep_their_order(tmp_path):
    settings, orders = write_classes(tmp_path / "data", clips=36), {}
    for seed in (0, 0, 1):
        shards = tmp_path / str(len(orders))
        run(tmp_path, settings, "--output", shards, "--seed", seed, "--clips_per_shard=7")
        orders[shards] = {
            split: [row["audio"]["path"] for row in rows] for split, rows in load(settings, dataset_name=str(shards))
        }
    first, again, other = orders.values()
    before = [row["audio"]["path"].removeprefix(f"{tmp_path}/data/") for row in load(settings).train]
    assert first == again and sorted(first["train"]) == sorted(other["train"]) == sorted(before)
    assert first["train"] != other["train"] and first["train"] != before
    assert first["validation"] == other["validation"] == [f"dog/{number}.wav" for number in (1, 13, 19, 25, 31, 7)]


def test_shards_are_some_size_and_say_how_often_each_label_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "GROUP_CLIPS", 4)
    settings = write_several_labels(tmp_path)
    run(tmp_path, settings, "--output", tmp_path / "shards", "--shard_megabytes=0.03")
    shards = sorted((tmp_path / "shards").glob("train-*.parquet"))
    rows = load(settings, dataset_name=str(tmp_path / "shards")).train
    assert len(shards) == 2 and all(20_000 < shard.stat().st_size < 40_000 for shard in shards)
    for shard in shards:
        file = pq.ParquetFile(shard)
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        assert max(groups) == 4 and len(groups) > 1
        told = json.loads(file.schema_arrow.metadata[packing.METADATA])
        assert told["split"] == "train" and told["clips"] == len(rows)
        assert told["label_counts"] == [sum(label in row["labels"] for row in rows) for label in range(3)]
        assert told.get("without_labels", 0) == sum(row["labels"] == [] for row in rows)


def test_a_group_of_rows_has_few_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "GROUP_BYTES", 7000)
    run(tmp_path, write_classes(tmp_path / "data"), "--output", tmp_path / "shards")
    (shard,) = (tmp_path / "shards").glob("train-*.parquet")
    metadata = pq.read_metadata(shard)
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [3, 3, 3, 3]


# Stopped and started again


class Killed(BaseException):
    pass


def test_what_is_whole_stays_and_the_rest_is_made(tmp_path, monkeypatch):
    settings, keys = write_classes(tmp_path / "data"), ["--shard_megabytes=0.003", "--format=flac"]
    run(tmp_path, settings, "--output", tmp_path / "at_once", *keys)
    write, calls = pq.ParquetWriter.write_table, []

    def write_and_die(self, *args):
        calls.append(1)
        write(self, *args)
        if len(calls) == 3:
            raise Killed

    shards = tmp_path / "shards"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pq.ParquetWriter, "write_table", write_and_die)
        run(tmp_path, settings, "--output", shards, *keys)
    assert not [path for path in shards.iterdir() if not path.name.startswith(".")]
    with pytest.raises(DataError):  # and a part is not taken for the whole
        load(settings, dataset_name=str(shards))
    whole = {path.name[1:]: path.stat().st_mtime_ns for path in shards.glob(".train-*.parquet")}
    (shards / ".77.0.unfinished.parquet").write_bytes(b"PAR1")  # of a process that was killed
    run(tmp_path, settings, "--output", shards, *keys)
    assert (
        len(whole) == 2 and whole.items() <= {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}.items()
    )
    made, expected = contents(shards), contents(tmp_path / "at_once")
    readmes = [files.pop("README.md").replace(b"# at_once", b"# shards") for files in (made, expected)]
    assert made == expected and readmes[0] == readmes[1]


@pytest.mark.slow
def test_a_killed_process_loses_no_whole_shard(tmp_path):
    settings, keys = write_classes(tmp_path / "data", clips=450), ["--clips_per_shard=10", "--format=opus"]
    recipe = write_recipe(tmp_path, settings)
    command = [sys.executable, "-m", "modeling_ast.commands.pack", recipe, *keys, "--output", tmp_path / "shards"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "shards").glob(".train-*-of-*.parquet"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # that none of them gets its last name between here and the end
    whole = list((tmp_path / "shards").glob(".train-*-of-*.parquet"))
    process.kill()
    process.wait()
    assert whole
    times = {path.name[1:]: path.stat().st_mtime_ns for path in whole}
    for name in ("shards", "at_once"):
        run(tmp_path, settings, *keys, "--output", tmp_path / name)
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}.items()
    made, expected = ({path.name: path for path in (tmp_path / name).glob("*")} for name in ("shards", "at_once"))
    assert made.keys() == expected.keys() and len(made) == 30 + 8 + 8 + 1
    assert all(names(tmp_path / name, "train") for name in ("shards", "at_once"))
    for split in ("train", "validation", "test"):
        assert names(tmp_path / "shards", split) == names(tmp_path / "at_once", split)


def test_a_second_start_writes_nothing(tmp_path):
    settings, shards = write_classes(tmp_path / "data"), tmp_path / "shards"
    times = []
    for _ in range(2):
        run(tmp_path, settings, "--output", shards)
        times.append({path.name: path.stat().st_mtime_ns for path in shards.iterdir()})
    assert times[0] == times[1] and len(times[0]) == 4


def test_another_packing_in_the_same_folder_is_refused(tmp_path):
    settings, shards = write_classes(tmp_path / "data"), tmp_path / "shards"
    run(tmp_path, settings, "--output", shards)
    before = contents(shards)
    for keys in (["--seed=1"], ["--format=flac"], ["--max_train_samples=8"], ["--clips_per_shard=4"]):
        with pytest.raises(DataError, match="train-00000-of-0000.*Choose another folder"):
            run(tmp_path, settings, "--output", shards, *keys)
    assert contents(shards) == before


def test_a_shard_that_is_none_is_one_sentence(tmp_path):
    settings, shards = write_classes(tmp_path / "data"), tmp_path / "shards"
    shards.mkdir()
    (shards / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="train-00000-of-00001.parquet: cannot be read .* Remove it."):
        run(tmp_path, settings, "--output", shards)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    settings, shards = write_classes(tmp_path / "data"), tmp_path / "shards"
    with another_process(claimed, shards, None), pytest.raises(CommandError, match="Another run is writing to"):
        run(tmp_path, settings, "--output", shards)


# Clips that cannot be decoded


def test_bad_training_clips_are_left_out_and_named(tmp_path, capsys):
    settings = write_classes(tmp_path / "data")
    bad = [tmp_path / "data" / "rain" / f"{number}.wav" for number in (2, 5)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:1000])
    for format in ("original", "flac"):
        shards = tmp_path / format
        with pytest.raises(AudioError, match="2 training clips cannot be decoded.*max_bad_clips 1"):
            run(tmp_path, settings, "--output", shards, "--max_bad_clips=1", "--format", format)
        assert [path.name for path in shards.iterdir()] == ["bad_clips.csv"]
    assert run(tmp_path, settings, "--output", tmp_path / "shards", "--max_bad_clips=2", "--clips_per_shard=4") == 1
    text = (tmp_path / "shards" / "bad_clips.csv").read_text()
    assert all(str(path) in text for path in bad) and "2 clip(s)" in capsys.readouterr().out
    left = names(tmp_path / "shards", "train")
    assert len(left) == 10 and not {"rain/2.wav", "rain/5.wav"} & set(left)


def test_a_bad_clip_that_is_held_out_ends_it(tmp_path):
    settings = write_classes(tmp_path / "data")
    (tmp_path / "data" / "dog" / "7.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"dog/7.wav: cannot be decoded"):
        run(tmp_path, settings, "--output", tmp_path / "shards", "--max_bad_clips=5")


def test_a_clip_of_more_than_a_row_can_hold_is_a_bad_one(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "MAX_CLIP_BYTES", 1000)
    with pytest.raises(AudioError, match="wav: 3244 bytes are too many for a row of Parquet"):
        run(tmp_path, write_classes(tmp_path / "data"), "--output", tmp_path / "shards")


# What cannot be meant


def test_what_has_no_effect_or_makes_no_sense_is_one_sentence(tmp_path):
    settings, output = write_classes(tmp_path / "data"), ["--output", tmp_path / "shards"]
    (tmp_path / "file").write_text("")
    for error, words, *keys in (
        (RecipeError, "Expected streaming: false", *output, "--streaming=true"),
        (RecipeError, "No effect on packing: learning_rate", *output, "--learning_rate=1"),
        (
            CommandError,
            "Expected a sampling_rate that opus has .8000, .*got 22050",
            *output,
            "--format=opus",
            "--sampling_rate=22050",
        ),
        (CommandError, "clips_per_shard of at least 1", *output, "--clips_per_shard=0"),
        (CommandError, "Expected output to be a folder", "--output", tmp_path / "file"),
        (CommandError, "--private has no effect", *output, "--private"),
        (CommandError, "Expected NAME/MODEL", *output, "--push_to_hub=a b"),
    ):
        with pytest.raises(error, match=words):
            run(tmp_path, settings, *keys)
    assert not (tmp_path / "shards").exists()
    with pytest.raises(ValueError, match="that flac has .100 to 655350 Hz., got 10"):
        packing.Packing("flac", 10)


def test_a_full_disk_is_one_sentence_that_says_how_to_go_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", refuse)
    recipe = write_recipe(tmp_path, {"model_name_or_path": "tiny224", **write_classes(tmp_path / "data")})
    status, said = end_of("pack", recipe, "--output", tmp_path / "shards")
    assert status == 2 and "No space left on device" in said and said.endswith("The same command goes on from here.")
