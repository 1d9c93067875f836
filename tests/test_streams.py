"""Streams: rows are those of the table, and what needs all clips in advance is refused."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from datasets import Audio, ClassLabel, Dataset
from helpers import decoded, end_of, save_checkpoint

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands import check as check_data
from modeling_ast.commands import pack
from modeling_ast.commands import statistics as compute_fbank_stats
from modeling_ast.commands import train as run_audio_classification
from modeling_ast.data import streams
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import DataArguments, RecipeError
from modeling_ast.data.sources import load_splits
from modeling_ast.data.statistics import pooled_statistics

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["hiss", "hum"]


def load_streamed_splits(dataset_name: str, multi_label: bool = False, **settings) -> AudioSplits:
    return streams.load_streamed_splits(DataArguments(dataset_name, streaming=True, **settings), multi_label)


def write_parquet(folder: Path, labels: str = "names", splits: tuple = ("train", "validation")) -> Path:
    """Six clips a split, each with a level of its own to be told by."""
    folder.mkdir()
    for split in splits:
        sounds, classes = [], [number % 2 for number in range(6)]
        for number in range(6):
            content = io.BytesIO()
            samples = torch.linspace(-1, 1, 8000) * (number + 1) / 10
            soundfile.write(content, samples.numpy(), 16000, format="WAV", subtype="FLOAT")
            sounds.append({"bytes": content.getvalue(), "path": f"{split}-{number}.wav"})
        written = classes if labels == "names" else [NAMES[number] for number in classes]
        rows = Dataset.from_dict({"audio": sounds, "label": written})
        rows = rows.cast_column("audio", Audio(decode=False))
        if labels == "names":
            rows = rows.cast_column("label", ClassLabel(names=NAMES))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_parquet(tmp_path_factory.mktemp("stream") / "data"))


@pytest.fixture(scope="module")
def stream(folder) -> AudioSplits:
    return load_streamed_splits(folder)


def test_a_stream_gives_the_rows_of_the_table(folder, stream):
    table = load_splits(folder)
    assert stream.label_names == table.label_names == NAMES
    for name in ("train", "validation"):
        expected = {row["waveform"].max().item(): row["labels"] for row in decoded(getattr(table, name))}
        found = {row["waveform"].max().item(): row["labels"] for row in decoded(getattr(stream, name))}
        assert found == expected and len(found) == 6


def test_a_label_table_names_what_the_stream_does_not(tmp_path):
    folder = str(write_parquet(tmp_path / "data", labels="text"))
    with pytest.raises(DataError, match="label_file"):
        load_streamed_splits(folder)
    table = tmp_path / "labels.csv"
    table.write_text("index,mid,display_name\n0,/m/1,hum\n1,/m/0,hiss\n")
    splits = load_streamed_splits(folder, label_file=str(table))
    assert splits.label_names == ["hum", "hiss"]
    assert [row["labels"] for row in splits.validation] == [1, 0, 1, 0, 1, 0]
    table.write_text("index,mid,display_name\n0,/m/1,hum\n1,/m/0,rain\n")
    with pytest.raises(DataError, match=r"\(validation-0.wav\): the label 'hiss' is not in the label table"):
        load_streamed_splits(folder, label_file=str(table))


def test_a_data_set_that_cannot_be_streamed_is_one_sentence(tmp_path, folder):
    with pytest.raises(DataError, match="cannot be streamed"):
        load_streamed_splits(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="expected splits train and validation, got train"):
        load_streamed_splits(str(write_parquet(tmp_path / "train_alone", splits=("train",))))
    with pytest.raises(DataError, match="expected a column 'sound', got audio, label"):
        load_streamed_splits(folder, audio_column_name="sound")


def test_clips_of_several_labels_need_a_recipe_that_has_them(tmp_path):
    rows = [{"audio": {"bytes": b"", "path": "a.wav"}, "label": ["hum", "hiss"]}]
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows_of_split = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
        rows_of_split.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    table = tmp_path / "labels.csv"
    table.write_text("index,mid,display_name\n0,/m/1,hum\n1,/m/0,hiss\n")
    with pytest.raises(DataError, match=r"\(a.wav\): expected one label a clip in 'label', got .'hum', 'hiss'."):
        load_streamed_splits(str(tmp_path / "data"), label_file=str(table))


NO_LABEL = {"-1": -1, "beyond the names": 2, "None": None}
ROWS = {"table": load_splits, "stream": load_streamed_splits}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("label", NO_LABEL.values(), ids=NO_LABEL)
@pytest.mark.parametrize("load", ROWS.values(), ids=ROWS)
def test_what_is_no_label_is_an_error_in_tables_and_streams_alike(tmp_path, load, label, split):
    """As an index, -1 would be the last class."""
    folder = write_parquet(tmp_path / "data")
    path = folder / f"{split}-00000-of-00001.parquet"
    table = pq.read_table(path)
    labels = pa.array([*table["label"].to_pylist()[:-1], label], pa.int64())
    pq.write_table(table.set_column(table.column_names.index("label"), "label", labels), path)  # names are metadata
    with pytest.raises(DataError, match=f"expected one label a clip in 'label', got {label}"):
        list(load(str(folder)).train)


def write_labels(folder: Path, labels: list) -> str:
    """The same rows for training and validation."""
    rows = Dataset.from_list([{"audio": {"bytes": b"", "path": "a.wav"}, "label": label} for label in labels])
    for split in ("train", "validation"):
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (folder / "labels.csv").write_text("index,mid,display_name\n0,/m/1,hum\n1,/m/0,hiss\n")
    return str(folder)


WAYS = {
    "text between separators": (["hum;hiss", " hiss ;", ""], [[0, 1], [1], []]),
    "lists as text": (["['hum', 'hiss']", '["hiss"]', "[]"], [[0, 1], [1], []]),
    "text, some missing": (["hum;hiss", None, "hiss"], [[0, 1], [], [1]]),
    "lists, some missing": ([["hum", None], None, ["hiss"], [None]], [[0], [], [1], []]),
    "numbers, some missing": ([0, None, 1], [[0], [], [1]]),
    "lists": ([["hum", "/m/0"], ["1"], []], [[0, 1], [1], []]),
    "two classes by their numbers": ([[0, 1], [1], [1, 0]], [[0, 1], [1], [1, 0]]),
}


@pytest.mark.parametrize("written, expected", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("load", ROWS.values(), ids=ROWS)
def test_labels_are_read_in_a_stream_as_in_a_table(tmp_path, load, written, expected):
    settings = {"label_file": str(tmp_path / "labels.csv"), "label_separator": ";", "multi_label": True}
    splits = load(write_labels(tmp_path, written), **settings)
    assert [list(row["labels"]) for row in splits.validation] == expected


FAULTS = {
    "a control character": (["hum", "hi\0ss"], "expected labels without control characters, got"),
    "not in the table": (["hum", "rain"], "the label 'rain' is not in the label table"),
    "no number of a label": ([0.0, 1.0], "in 'label', got double"),
    "broken lists": (["['hum']", "['hum' 'hiss']"], "expected a list of labels in 'label' as in other rows"),
    "empty": (["hum", ""], "expected one label a clip in 'label', got ''"),
}


@pytest.mark.parametrize("written, message", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("load", ROWS.values(), ids=ROWS)
def test_wrong_labels_are_the_same_error_in_a_stream_as_in_a_table(tmp_path, load, written, message):
    with pytest.raises(DataError, match=message):
        load(write_labels(tmp_path, written), label_file=str(tmp_path / "labels.csv"))


def test_multi_hot_vectors_in_a_stream_are_not_taken_for_lists_of_labels(tmp_path):
    rows = Dataset.from_list([{"audio": {"bytes": b"", "path": "a.wav"}, "label": [1, 0, 0]}])
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    table = tmp_path / "labels.csv"
    table.write_text("index,mid,display_name\n0,/m/1,hum\n1,/m/0,hiss\n2,/m/2,rain\n")
    with pytest.raises(DataError, match="multi-hot"):
        load_streamed_splits(str(tmp_path), label_file=str(table), multi_label=True)


def test_some_clips_of_a_stream_are_its_first(folder):
    splits = load_streamed_splits(folder, max_train_samples=4, max_eval_samples=2)
    assert sorted(row["audio"]["path"] for row in splits.train) == [f"train-{number}.wav" for number in range(4)]
    assert [row["audio"]["path"] for row in splits.validation] == ["validation-0.wav", "validation-1.wav"]


def test_sound_files_on_this_disk_are_no_stream(tmp_path):
    (tmp_path / "train" / "hum").mkdir(parents=True)
    soundfile.write(tmp_path / "train" / "hum" / "a.wav", torch.zeros(800).numpy(), 16000)
    with pytest.raises(DataError, match="expected Parquet files, tar .* found sound files such as train/hum/a.wav"):
        load_streamed_splits(str(tmp_path))


def test_held_out_clips_are_copied_once(tmp_path):
    """And anew where the files, or how they are read, have changed."""
    folder = write_parquet(tmp_path / "data")
    copies = [
        load_streamed_splits(str(folder), **settings).validation.cache_files
        for settings in ({}, {}, {"max_eval_samples": 3})
    ]
    write_parquet(tmp_path / "other")
    (tmp_path / "other" / "validation-00000-of-00001.parquet").replace(folder / "validation-00000-of-00001.parquet")
    copies.append(load_streamed_splits(str(folder)).validation.cache_files)
    assert copies[0] == copies[1] and copies[0] not in copies[2:] and copies[2] != copies[3]


COMMON = {
    **{"model_name_or_path": "tiny224", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3},
    **{"intermediate_size": 24, "max_length": 32, "num_mel_bins": 32, "streaming": "true", "do_train": "true"},
    **{"global_batch_size": 4, "mixup_probability": 0.5, "mixup_partner": "batch", "use_cpu": "true"},
    **{"dataloader_pin_memory": "false"},
    **{"eval_strategy": "steps", "eval_steps": 2, "disable_tqdm": "true", "save_strategy": "no"},
}


TINY = {key: COMMON[key] for key in (*list(COMMON)[:7], "streaming", "disable_tqdm")}


def command_line(tmp_path: Path, folder: str, *others: str) -> list[str]:
    settings = {**TINY, "output_dir": tmp_path / "out", "dataset_name": folder}
    return [*(f"--{key}={value}" for key, value in settings.items()), *others]


@pytest.mark.parametrize("limit", [None, 4])
def test_statistics_of_a_stream_are_those_of_its_clips(tmp_path, folder, capsys, limit):
    rows = load_splits(folder).train
    rows = rows if limit is None else rows.select(range(limit))
    expected = pooled_statistics(rows, ASTFeatureExtractor(max_length=32, num_mel_bins=32))
    others = [] if limit is None else [f"--max_train_samples={limit}"]
    keys = {key: TINY[key] for key in ("model_name_or_path", "max_length", "num_mel_bins", "streaming")}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in {**keys, "dataset_name": folder}.items()))
    found = compute_fbank_stats.main([str(recipe), *others])
    assert found == pytest.approx((expected.mean, expected.std), rel=1e-9)
    assert f"# of {limit or 6} training clips" in capsys.readouterr().out


def test_the_first_clips_of_a_stream_are_checked(tmp_path, folder, capsys):
    found = []
    for others in (["--max_train_samples=4"], ["--streaming=false", "--max_train_samples=4"]):
        status = check_data.main([*command_line(tmp_path, folder, *others), "--json", str(tmp_path / "found.json")])
        assert "2 labels, 4 clips for train, 6 clips for validation; listened to 10" in capsys.readouterr().out
        found.append(
            (status, {each["check"] for each in json.loads((tmp_path / "found.json").read_text())["findings"]})
        )
    assert found[0] == found[1]


def test_a_command_that_compares_clips_says_how_many_of_a_stream(tmp_path, folder):
    with pytest.raises(RecipeError, match="^Expected max_train_samples with streaming: clips are compared with one"):
        check_data.main(command_line(tmp_path, folder))


NEED_A_TABLE = {
    "evaluate": ("MODEL", "RECIPE"),
    "predict": ("MODEL", "RECIPE"),
    "calibrate": ("MODEL", "--recipe", "RECIPE"),
    "ensemble": ("MODEL", "OTHER", "--recipe", "RECIPE"),
    "embed": ("--recipe", "RECIPE", "--model", "MODEL", "--output", "OUTPUT"),
    "pack": ("RECIPE", "--output", "OUTPUT"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder, config = tmp_path_factory.mktemp("models"), make_tiny_config(num_labels=2)
    return {name: save_checkpoint(folder / name, random_model(config)) for name in ("MODEL", "OTHER")}


@pytest.mark.parametrize(("command", "argv"), NEED_A_TABLE.items(), ids=NEED_A_TABLE)
def test_what_cannot_be_done_with_a_stream_is_one_sentence(tmp_path, folder, models, command, argv):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {folder}\nstreaming: true\n")
    places = {**models, "RECIPE": recipe, "OUTPUT": tmp_path / "output.parquet"}
    status, said = end_of(command, *(places.get(each, each) for each in argv))
    assert status == 2 and said.startswith("error: Expected streaming: false;") and said.count(". ") <= 1
    assert not (tmp_path / "output.parquet").exists()


def run(tmp_path: Path, **settings) -> dict[str, float]:
    settings = COMMON | {"output_dir": tmp_path / "out"} | settings
    return run_audio_classification.main([f"--{key}={value}" for key, value in settings.items()])


def test_the_script_trains_on_a_stream(tmp_path, folder):
    results = run(tmp_path, dataset_name=folder, max_steps=4)
    assert 0 <= results["validation_accuracy"] <= 1
    lines = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,learning_rate,train_loss") and len(lines) == 3
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "hiss", "1": "hum"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "Expected max_steps"),
        ({"max_steps": 2, "eval_strategy": "epoch"}, "Expected eval_strategy steps or no with streaming, got epoch"),
        ({"max_steps": 2, "save_strategy": "epoch"}, "Expected save_strategy steps or no with streaming, got epoch"),
        ({"max_steps": 2, "samples_per_epoch": 9}, "samples_per_epoch has no effect on a stream.*max_steps says"),
        ({"max_steps": 2, "accelerator_config": '{"dispatch_batches": true}'}, "one process read the stream for all"),
        (
            {"max_steps": 2, "lr_scheduler_type": "constant", "lr_step_factor": 0.5},
            "lr_step_factor needs to know how long an epoch is",
        ),
        ({"max_steps": 2, "weight_average_start": 1}, "Expected weight_average_steps with weight_average_start"),
        ({"max_steps": 2, "mixup_partner": "dataset"}, "Expected mixup_partner batch with streaming, got dataset"),
        ({"max_steps": 2, "linear_baseline": "true"}, "linear_baseline has no effect on a stream"),
        ({"max_steps": 2, "fold_column_name": "fold", "eval_fold": 1}, "fold_column_name has no effect"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(tmp_path, settings, message):
    with pytest.raises(RecipeError, match=message):
        run(tmp_path, dataset_name=tmp_path, **settings)


@pytest.mark.slow
def test_classes_are_balanced_where_packed_shards_count_their_labels(tmp_path, folder):
    settings = {"max_steps": 2, "class_balanced_sampling": "true"}
    with pytest.raises(RecipeError, match="class_balanced_sampling needs to know how many .* modeling-ast pack"):
        run(tmp_path, dataset_name=folder, **settings)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {folder}\n")
    assert pack.main([str(recipe), "--output", str(tmp_path / "packed"), "--max_train_samples=4"]) == 0
    table = tmp_path / "labels.csv"
    table.write_text("index,mid,display_name\n0,/m/1,rain\n1,/m/0,hum\n2,/m/2,hiss\n")
    packed, of_table = load_streamed_splits(str(tmp_path / "packed")), load_splits(str(tmp_path / "packed")).train
    hiss = of_table["labels"][:].count(0)
    assert (packed.train_counts.clips, list(packed.train_counts.of_labels)) == (4, [hiss, 4 - hiss])
    assert load_streamed_splits(str(tmp_path / "packed"), max_train_samples=2).train_counts is None  # of other clips
    packed = load_streamed_splits(str(tmp_path / "packed"), label_file=str(table))
    assert (packed.train_counts.clips, list(packed.train_counts.of_labels)) == (4, [0, 4 - hiss, hiss])
    assert 0 <= run(tmp_path, dataset_name=tmp_path / "packed", **settings)["validation_accuracy"] <= 1
