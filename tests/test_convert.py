"""The conversion script writes a folder that the Auto classes load, with the outputs and label names of the source."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_conversion import (
    BINS,
    FRAMES,
    IMAGE_WEIGHTS,
    IN_NAME,
    original_forward,
    original_weights,
    timm_weights,
    write_deit_release,
)
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands.command_options import CommandError
from modeling_ast.commands.convert import main
from modeling_ast.data.labels import DataError
from modeling_ast.loading import ModelError

NAMES = ["dog", "Male speech, man speaking", "rain", "sea waves", "Ding-dong"]
GEOMETRY = ["--num_mel_bins", str(BINS), "--max_length", str(FRAMES)]


def convert(*arguments) -> None:
    main([str(argument) for argument in arguments])


@pytest.fixture
def original(tmp_path) -> Path:
    torch.save(original_weights(len(NAMES)), tmp_path / IN_NAME)
    return tmp_path / IN_NAME


@pytest.fixture
def deit(tmp_path) -> Path:
    return write_deit_release(timm_weights(**IMAGE_WEIGHTS), tmp_path)


@pytest.fixture
def labels(tmp_path) -> Path:
    """A label table in the original's format, its rows not in order."""
    rows = [(index, f"/m/{index}", name) for index, name in enumerate(NAMES)]
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("index", "mid", "display_name"), *rows[::-1]])
    return tmp_path / "labels.csv"


def load(folder: Path) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    model = AutoModelForAudioClassification.from_pretrained(folder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert type(model) is ASTForAudioClassification and type(extractor) is ASTFeatureExtractor
    assert (extractor.max_length, extractor.num_mel_bins) == (model.config.max_length, model.config.num_mel_bins)
    return model, extractor


def test_reference_checkpoint_is_converted(reference, tmp_path, capsys):
    source = reference / "original_tiny224_f10_t10_1024.pth"
    table = reference / "audioset_class_labels_indices.csv"
    convert(source, tmp_path / "ast", "--labels", table)
    model, extractor = load(tmp_path / "ast")
    expected = np.load(source.with_suffix(".npz"))
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["input"])).logits
    tolerance = 2e-6 * max(1.0, np.abs(expected["logits"]).max())
    np.testing.assert_allclose(logits, expected["logits"], atol=tolerance, rtol=0)
    with open(table, newline="") as file:
        names = {int(row["index"]): row["display_name"] for row in csv.DictReader(file)}
    assert model.config.id2label == names and names[1] == "Male speech, man speaking"
    assert model.config.label2id == {name: index for index, name in names.items()}
    assert model.config.problem_type == "multi_label_classification"
    assert (extractor.mean, extractor.std) == (-4.2677393, 4.5689974)
    printed = capsys.readouterr().out
    assert str(tmp_path / "ast") in printed and f"{model.num_parameters():,} parameters" in printed


def test_generated_checkpoint_is_converted(original, labels, tmp_path):
    convert(original, tmp_path / "ast", "--labels", labels, *GEOMETRY, "--mean", "-6.5", "--std", "5.5")
    model, extractor = load(tmp_path / "ast")
    input_values = torch.randn(2, FRAMES, BINS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_values).logits
    torch.testing.assert_close(logits, original_forward(original_weights(), input_values)[1], atol=2e-5, rtol=1e-5)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert (extractor.mean, extractor.std) == (-6.5, 5.5)


def test_strides_and_problem_type_of_the_command_line_win(original, tmp_path):
    path = original.rename(tmp_path / "best_audio_model.pth")
    strides = ["--frequency_stride", 8, "--time_stride", 12]
    convert(path, tmp_path / "ast", *GEOMETRY, *strides, "--problem_type", "single_label_classification")
    config = load(tmp_path / "ast")[0].config
    assert (config.frequency_stride, config.time_stride) == (8, 12)
    assert config.problem_type == "single_label_classification"


@pytest.mark.parametrize("with_names", [False, True])
def test_imagenet_weights_are_converted(deit, labels, tmp_path, with_names):
    head = ["--labels", labels] if with_names else ["--num_labels", len(NAMES)]
    convert(deit, tmp_path / "ast", "--imagenet", *head, *GEOMETRY, "--time_stride", 16)
    config = load(tmp_path / "ast")[0].config
    assert (config.hidden_size, config.num_hidden_layers, config.num_time_patches) == (128, 2, 6)
    assert (config.layer_norm_eps, config.head_layer_norm_eps) == (1e-6, 1e-5)
    assert config.problem_type == "multi_label_classification"
    names = NAMES if with_names else [f"LABEL_{index}" for index in range(5)]
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: index for index, name in enumerate(names)}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["original", "out", "--max_length", 200], "Expected 21 patches"),
        (["original", "out", "--labels", "nowhere.csv"], "nowhere.csv"),
        (["original", "out", "--labels", "original"], "not UTF-8|expected the columns index"),
        (["original", "out", "--labels", "short"], "Expected 5 label names.*got 2"),
        (["original", "out", "--labels", "audioset"], "Expected 5 label names.*got 527"),
        (["original", "out", "--labels", "gap"], "indices 0 to 1, but 1 is missing"),
        (["original", "out", "--labels", "words"], "expected an index of 0 or more, got 'one'"),
        (["original", "out", "--std", 0], "std of at least"),
        (["original", "out", "--problem_type", "guess"], "invalid choice: 'guess'"),
        (["original", "out", "--num_labels", 5], "--num_labels goes with --imagenet"),
        (["original", "labels"], "labels.csv is a file"),
        (["original", "out", "--frequency", 8], "unrecognized arguments: --frequency"),
        (["nowhere.pth", "out"], "nowhere.pth: no such file"),
        (["labels", "out"], "labels.csv: not a weight file"),
        (["deit", "out"], "Expected a checkpoint of the original AST"),
        (["deit", "out", "--imagenet"], "either --labels or --num_labels"),
        (["deit", "out", "--imagenet", "--num_labels", 5, "--time_stride", 0], "time_stride of at least 1, got 0"),
        (["deit", "out", "--imagenet", "--num_labels", 0], "num_labels of at least 1, got 0"),
        (["original", "out", "--imagenet", "--num_labels", 5], "distilled DeiT"),
    ],
)
def test_errors_are_words_and_leave_no_folder(original, deit, labels, tmp_path, capsys, arguments, words):
    tables = {"short": "0,/m/0,dog\n1,/m/1,cat", "gap": "0,/m/0,dog\n2,/m/2,cat", "words": "one,/m/0,dog"}
    files = {"original": original, "deit": deit, "labels": labels, "out": tmp_path / "out"}
    for name, rows in tables.items():
        files[name] = tmp_path / f"{name}.csv"
        files[name].write_text(f"index,mid,display_name\n{rows}\n")
    geometry = GEOMETRY[:2] if "--max_length" in arguments else GEOMETRY
    with pytest.raises((CommandError, SystemExit, DataError, ModelError)) as error:
        convert(*(files.get(argument, argument) for argument in arguments), *geometry)
    message = f"{error.value}\n{capsys.readouterr().err}".replace("\n", " ")
    assert re.search(words, message), message
    assert not (tmp_path / "out").exists()
