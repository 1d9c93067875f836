"""Folds: one command trains them all, and the summary is the original's."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_ast.commands import folds as run_folds
from modeling_ast.commands import train as training_script
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.folds import summarize_folds


def write_run(folder: Path, accuracies: list[float], metric: str = "accuracy") -> Path:
    folder.mkdir(parents=True)
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", metric, f"cum_{metric}"])
        writer.writeheader()
        for epoch, accuracy in enumerate(accuracies, start=1):
            writer.writerow({"epoch": float(epoch), metric: accuracy, f"cum_{metric}": accuracy / 2})
    return folder


def test_the_epoch_is_chosen_on_the_mean_of_the_folds(tmp_path):
    # Each fold's own best epoch is another one; the first of two equal means is taken.
    folders = [
        write_run(tmp_path / "fold_1", [0.5, 0.8, 0.7, 0.9]),
        write_run(tmp_path / "fold_2", [0.9, 0.8, 0.9, 0.6]),
    ]
    summary = summarize_folds(folders)
    assert summary["chosen"] == {"epoch": 2.0, "folds": [0.8, 0.8], "mean": pytest.approx(0.8), "deviation": 0}
    last = {"mean": pytest.approx(0.75), "deviation": pytest.approx(0.3 / 2**0.5)}
    assert summary["last"] == {"epoch": 4.0, "folds": [0.9, 0.6], **last}
    np.testing.assert_allclose(summary["mean"], [0.7, 0.8, 0.8, 0.75])
    np.testing.assert_allclose(summary["cum_mean"], [0.35, 0.4, 0.4, 0.375])


def test_the_published_folds_give_the_published_mean(tmp_path, capsys):
    # Source: the attached ESC-50 log of the original, epochs 22 and 25.
    chosen, last = [95.0, 97.75, 94.75, 97.0, 94.25], [94.75, 97.25, 94.75, 96.75, 94.5]
    for fold, values in enumerate(zip(chosen, last), start=1):
        write_run(tmp_path / f"fold_{fold}", list(values))
    summary = run_folds.main([str(tmp_path)])
    assert json.loads((tmp_path / "folds.json").read_text()) == summary
    assert summary["chosen"]["mean"] == pytest.approx(95.75) and summary["chosen"]["folds"] == chosen
    assert summary["last"]["mean"] == pytest.approx(95.6)
    printed = capsys.readouterr().out
    assert "mean 95.7500" in printed and "optimistic" in printed


def test_averaged_weights_and_the_linear_model_are_summarised_where_all_folds_have_them(tmp_path, capsys):
    for fold, accuracy in ((1, 0.5), (2, 0.75)):
        folder = write_run(tmp_path / f"fold_{fold}", [0.1])
        results = {"average_validation_accuracy": accuracy}
        if fold == 1:
            results["validation_baseline_accuracy"] = 0.4
        (folder / "all_results.json").write_text(json.dumps(results))
    summary = run_folds.main([str(tmp_path)])
    average = {"folds": [0.5, 0.75], "mean": 0.625, "deviation": pytest.approx(0.25 / 2**0.5)}
    assert summary["weight_average"] == average and "baseline" not in summary
    assert "average of weights: 1 0.5000, 2 0.7500; mean 0.6250, deviation 0.1768" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "results.csv").unlink(), "no such file"),
        (lambda folder: (folder / "results.csv").write_text("epoch,loss\n1,0\n"), "expected columns accuracy"),
        (lambda folder: (folder / "results.csv").write_bytes(b"\xff\xfe"), "not the results of a run"),
        (
            lambda folder: (folder / "results.csv").write_text("epoch,accuracy,cum_accuracy\n1.0,1,1\n"),
            "still running",
        ),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, damage, message):
    folders = [write_run(tmp_path / f"fold_{fold}", [0.1, 0.2]) for fold in (1, 2)]
    damage(folders[1])
    with pytest.raises(DataError, match=message):
        summarize_folds(folders)


def test_no_runs_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="expected folders fold_1, fold_2"):
        run_folds.main([str(tmp_path)])


def test_a_recipe_without_folds_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: synthetic\noutput_dir: out\n")
    with pytest.raises(RecipeError, match="fold_column_name"):
        run_folds.main([str(recipe), "--output_dir", str(tmp_path / "out")])


@pytest.fixture
def fold_recipe(tmp_path) -> Path:
    """Two folds of two kinds of sounds, and one epoch for one layer."""
    generator = torch.Generator().manual_seed(0)
    lines = ["audio,label,fold"]
    for number in range(8):
        label, fold = ("hum", "hiss")[number % 2], 1 + number // 4
        noise = torch.rand(8000, generator=generator) - 0.5
        hum = torch.sin(torch.arange(8000) * 0.05 * (1 + number)) / 2
        soundfile.write(tmp_path / f"{number}.wav", (hum if label == "hum" else noise).numpy(), 16000)
        lines.append(f"{number}.wav,{label},{fold}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    recipe = {
        **{"model_name_or_path": "tiny224", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 16, "max_length": 32, "num_mel_bins": 32, "dataset_name": tmp_path / "clips.csv"},
        **{"fold_column_name": "fold", "eval_fold": 1, "output_dir": tmp_path / "out", "do_train": "true"},
        **{"global_batch_size": 2, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"},
        **{"use_cpu": "true", "dataloader_pin_memory": "false", "report_to": "none"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))
    return path


@pytest.fixture
def launched(monkeypatch) -> list[dict[str, str]]:
    """What would be launched, key by key."""
    runs = []

    def run(command):
        runs.append(dict(key[2:].split("=", 1) for key in command if key.startswith("--") and "=" in key))
        return 0

    monkeypatch.setattr(run_folds, "launch", run)
    monkeypatch.setattr(run_folds, "summarize", lambda *_: {})
    return runs


@pytest.mark.parametrize(
    "names, expected",
    [(("10", "9"), ["9", "10"]), (("kit B", "kit A"), ["kit A", "kit B"]), (("2.0", "1.0"), ["1", "2"])],
    ids=["numbers", "names", "numbers of a spreadsheet"],
)
def test_the_data_says_which_folds_there_are_and_a_recipe_needs_name_none(fold_recipe, launched, names, expected):
    clips = fold_recipe.parent / "clips.csv"
    rows = [line.rpartition(",") for line in clips.read_text().splitlines()]
    clips.write_text("\n".join(f"{row},{names[int(fold) - 1] if fold.isdigit() else fold}" for row, _, fold in rows))
    fold_recipe.write_text(fold_recipe.read_text().replace("eval_fold: 1\n", ""))
    run_folds.main([str(fold_recipe)])
    assert [run["eval_fold"] for run in launched] == expected
    assert [Path(run["output_dir"]).name for run in launched] == [f"fold_{name}" for name in expected]
    with pytest.raises(DataError, match="got fold_column_name alone. `modeling-ast folds` holds out each"):
        training_script.main([str(fold_recipe)])


@pytest.mark.parametrize(
    "argv, error, words",
    [
        (["--eval_fold", "1"], RecipeError, "Expected the folds to hold out as --folds, got --eval_fold"),
        (["--folds", "../1"], RecipeError, "names can be folders', got '../1'"),
        (["--fold_column_name", "kit"], DataError, "clips.csv: expected a column 'kit', got audio, label, fold"),
    ],
)
def test_folds_that_cannot_be_run_are_one_sentence(fold_recipe, launched, argv, error, words):
    with pytest.raises(error, match=words):
        run_folds.main([str(fold_recipe), *argv])
    assert launched == []


def test_clips_are_dealt_into_folds_where_nothing_names_them(fold_recipe, launched):
    fold_recipe.write_text(
        fold_recipe.read_text().replace("eval_fold: 1\n", "").replace("fold_column_name: fold\n", "")
    )
    with pytest.raises(RecipeError, match="Expected num_folds, fold_column_name, .* got none"):
        run_folds.main([str(fold_recipe)])
    run_folds.main([str(fold_recipe), "--num_folds=3"])
    assert [(run["eval_fold"], run["num_folds"]) for run in launched] == [("1", "3"), ("2", "3"), ("3", "3")]


def test_groups_are_left_out_one_at_a_time_or_some_at_a_time(fold_recipe, launched):
    fold_recipe.write_text(
        fold_recipe.read_text().replace("eval_fold: 1\n", "").replace("fold_column_name: fold\n", "")
    )
    by_name = ["--group_pattern", "^([0-9])"]
    run_folds.main([str(fold_recipe), *by_name])
    assert [run["eval_fold"] for run in launched] == [str(number) for number in range(8)]
    launched.clear()
    run_folds.main([str(fold_recipe), *by_name, "--num_folds=4"])
    assert [(run["eval_fold"], run["num_folds"]) for run in launched] == [(str(fold), "4") for fold in range(1, 5)]
    with pytest.raises(DataError, match="got num_folds alone. `modeling-ast folds` holds out each"):
        training_script.main([str(fold_recipe), *by_name, "--num_folds=4"])


@pytest.mark.slow
def test_one_command_runs_all_folds_and_what_is_finished_is_not_run_again(fold_recipe, capsys):
    run_folds.main([str(fold_recipe), "--folds", "2", "--learning_rate", "1e-3"])
    capsys.readouterr()
    run_folds.main([str(fold_recipe), "--folds", "1", "2", "--learning_rate", "1e-3"])
    printed = capsys.readouterr().out
    assert "Fold 2 is finished" in printed and "Fold 1 is finished" not in printed
    out = fold_recipe.parent / "out"
    summary = json.loads((out / "folds.json").read_text())
    assert summary["folders"] == ["fold_1", "fold_2"] and len(summary["epochs"]) == 2
    for fold in (1, 2):
        recipe = (out / f"fold_{fold}" / "recipe.yaml").read_text()
        assert f"eval_fold: '{fold}'\n" in recipe and "learning_rate: 0.001" in recipe
    with pytest.raises(CommandError, match="Fold 1 failed"):  # which is another recipe's
        run_folds.main([str(fold_recipe), "--learning_rate", "1e-2"])


@pytest.mark.parametrize("option", [["--folds", "1"], ["--accelerate_config", "x"], ["--learning_rate", "1"]])
def test_a_folder_of_runs_is_only_summarised(tmp_path, option):
    write_run(tmp_path / "fold_1", [0.5])
    with pytest.raises(CommandError, match="Expected --metric alone with the folder of runs"):
        run_folds.main([str(tmp_path), *option])


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment, number, to",
    [
        ("launcher", signal.SIGINT, os.killpg),
        ("launcher", signal.SIGTERM, os.kill),
        ("training", signal.SIGINT, os.kill),
        ("training", signal.SIGINT, os.killpg),
        ("training", signal.SIGTERM, os.kill),
        ("training", signal.SIGTERM, os.killpg),
    ],
)
def test_a_signal_ends_the_fold_in_one_line(fold_recipe, moment, number, to):
    """To all processes, as a terminal sends Ctrl-C, or to the one command."""
    command = [sys.executable, "-m", "modeling_ast.commands.folds", str(fold_recipe), "--num_train_epochs", "10000"]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True)
    try:
        assert process.stdout.readline().startswith("Fold 1: ")
        while moment == "training" and not list(fold_recipe.parent.glob("out/fold_1/checkpoint-*")):
            time.sleep(0.1)
        time.sleep(1)
        to(process.pid, number)
        errors = process.communicate(timeout=120)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number
    told = [line for line in errors.splitlines() if line.startswith("Stopped by ")]
    assert len(told) == 1 and "goes on" in told[0] and "Traceback" not in errors
    if moment == "training":
        assert re.search(r"Stopped by .* after update (\d+): .*checkpoint-\1 is saved", told[0])


@pytest.mark.slow
def test_a_fold_that_fails_is_named(fold_recipe, capfd):
    with pytest.raises(CommandError, match="Fold 7 failed"):
        run_folds.main([str(fold_recipe), "--folds", "7"])
    assert "eval_fold to be one of 1, 2" in capfd.readouterr().err


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(DataError, match="Expected the folders of the folds' runs, got none"):
        summarize_folds([])
