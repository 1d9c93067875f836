"""The campaign that compares trainings: which clips it counts, what it pairs, and what it does not do twice."""

import math

import learning
import numpy as np
import pandas
import pytest
import torch
from helpers import leave_out_pictures, write_sound
from learning import Run, compare, difference, main, settings_of, to_markdown

from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.synthetic import generate_clip

RECIPE = """
model_name_or_path: tiny224
hidden_size: 16
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 32
max_length: 64
num_mel_bins: 32
do_train: true
num_train_epochs: 1
global_batch_size: 8
warmup_steps: 0.1
eval_strategy: epoch
metric_for_best_model: accuracy
"""


def right(*values: int) -> pandas.Series:
    return pandas.Series(values, [f"{number}.wav" for number in range(len(values))])


def test_variants_are_compared_clip_by_clip():
    clips = {
        "linear": {Run("a", "1", 0): right(1, 1, 0, 0), Run("b", "1", 0): right(1, 1, 0, 0)},
        "trained": {
            Run("a", "1", 0): right(1, 0, 0, 0),
            Run("a", "1", 1): right(1, 1, 0, 0),
            Run("b", "1", 0): right(1, 1, 1, 0)[::-1],  # found by their paths
            Run("b", "1", 1): right(1, 1, 1, 1),
        },
    }
    seconds = {run: 10.0 for run in clips["trained"]}
    table = compare(clips, seconds).set_index("model")
    assert list(table.index) == ["linear", "a, trained", "b, trained"]
    assert table["seeds"]["a, trained"] == [0.25, 0.5] and table["seeds"]["b, trained"] == [0.75, 1.0]
    assert table["mean"]["linear"] == 0.5 and table["deviation"]["b, trained"] == pytest.approx(0.25 / math.sqrt(2))
    mean, low, high = table["to_first"]["b, trained"]
    assert (
        mean == 0.5 and low < mean < high and high - mean == pytest.approx(mean - low)
    )  # of differences of 0, 0.5, 1 and 0.5
    assert table["to_linear"]["a, trained"][0] == -0.125 and table["to_first"]["a, trained"] is None
    assert "| b, trained | 75.0, 100.0 | 87.5 % | 17.7 | +50.0 (" in to_markdown(compare(clips, seconds))


def test_the_interval_is_that_of_a_mean_of_clips():
    values = np.random.default_rng(1).integers(0, 2, (1, 400))
    columns = pandas.MultiIndex.from_product([["1"], range(400)], names=["fold", "path"])
    mean, low, high = difference(
        pandas.DataFrame(values, columns=columns), pandas.DataFrame(0 * values, columns=columns)
    )
    assert mean == values.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(400), rel=0.05)


def test_a_variant_names_files_of_its_fold_and_seed_and_takes_keys_out(tmp_path):
    settings = {"model_name_or_path": "start/{fold}_{seed}", "lr_step_factor": "null", "learning_rate": "1e-3"}
    found = settings_of(Run("a", "anna", 2), settings, tmp_path)
    assert found["model_name_or_path"] == "start/anna_2" and found["eval_fold"] == "anna" and found["seed"] == "2"
    assert "lr_step_factor" not in found and found["learning_rate"] == "1e-3"


@pytest.fixture(scope="module")
def folder_of_speakers(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("words"), torch.Generator().manual_seed(0)
    for word, kind in (("on", "bell"), ("off", "noise")):
        for speaker in ("anna", "ben"):
            for number in range(4):
                write_sound(folder / word / f"{speaker}_nohash_{number}.wav", generate_clip(kind, generator))
    return folder


@pytest.mark.slow
def test_each_run_is_done_once_and_none_is_taken_for_another(folder_of_speakers, tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = [tmp_path / "recipe.yaml", "--output_dir", tmp_path / "out", "--dataset_name", folder_of_speakers]
    words = [
        *map(str, words),
        "--group_pattern",
        "^([a-z]+)_nohash",
        "--epochs",
        "2",
        "--seeds",
        "0",
        "--frozen",
        "--variant",
        "tame",
    ]
    table = main([*words, "--variant", "fast", "learning_rate=1e-2"]).set_index("model")
    assert list(table.index) == [
        "linear",
        *(f"{name}, {kind}" for kind in ("trained", "frozen") for name in ("tame", "fast")),
    ]
    assert table["folds"]["fast, trained"].keys() == {"anna", "ben"} and table["cpu_seconds"]["fast, trained"] > 0
    assert table["mean"]["tame, frozen"] == table["mean"]["fast, frozen"]  # which a rate does not reach
    monkeypatch.setattr(learning.train, "main", None)  # nothing is trained again
    again = main([*words, "--variant", "fast", "learning_rate=1e-2"]).set_index("model")
    assert again["mean"].equals(table["mean"])
    with pytest.raises(RecipeError, match="is a run with another learning_rate"):
        main([*words, "--variant", "fast", "learning_rate=1e-1"])
