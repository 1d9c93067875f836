"""Documented errors that users meet as one sentence of a script, as its functions raise them for those who call them.

Those of one module are in its own file of tests.
"""

import errno
import os
import signal
import sys
from pathlib import Path

import evaluate_events
import fault_campaign
import pytest
import torch
from conftest import make_tiny_config, random_model
from helpers import restored_signals, save_checkpoint
from safetensors import SafetensorError

from modeling_ast import AudioError
from modeling_ast.audio import to_waveform
from modeling_ast.commands import calibrate, ensemble
from modeling_ast.commands import embed as extract_embeddings
from modeling_ast.commands import statistics as compute_fbank_stats
from modeling_ast.commands import train as script
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import DivergedError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.resampling import require_torchaudio
from modeling_ast.training.arguments import parse_arguments
from modeling_ast.training.faults import SaveError, Stopped, StopRequest, loading, saving
from modeling_ast.training.output_dir import recipe_differences
from modeling_ast.training.trainer import ASTTrainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.ENOSPC, "No space left on device", "model.safetensors"), "No space left on device"),
        (RuntimeError("file write failed\nat inline_container.cc:664"), "file write failed"),
        (SafetensorError("Error while serializing"), "Error while serializing"),
    ],
)
def test_what_cannot_be_saved_is_one_error_that_says_how_to_go_on(error, reason):
    words = rf"^run/checkpoint-8 cannot be saved \({reason}\). What was .* is whole. .*--resume_from_checkpoint true"
    with pytest.raises(SaveError, match=words), saving(Path("run/checkpoint-8")):
        raise error


@pytest.mark.parametrize(
    "error, reason",
    [
        (FileNotFoundError("no such file"), "no such file"),
        (RuntimeError("unexpected EOF"), "unexpected EOF"),
        (KeyError("loss_sum"), "'loss_sum'"),
        (SafetensorError("header too large"), "header too large"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_one_error_that_says_what_to_do(error, reason):
    words = rf"^run/checkpoint-8 cannot be continued from \({reason}\). Remove it, and the same command goes on"
    with pytest.raises(RecipeError, match=words), loading("run/checkpoint-8", is_of_this_run=True):
        raise error


@restored_signals()
def test_the_first_signal_is_noted_and_the_second_one_is_an_error():
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.number == signal.SIGTERM
        with pytest.raises(Stopped, match="^Stopped by Ctrl-C"):
            signal.raise_signal(signal.SIGINT)


def lose_the_loss(trainer: ASTTrainer) -> None:
    torch.nn.init.constant_(trainer.model.classifier.dense.bias, float("nan"))


def stop(trainer: ASTTrainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def refuse_to_save(*_, **__) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "happens, error, words",
    [
        (
            lose_the_loss,
            DivergedError,
            "^The loss of update 3 is no finite number.*lower learning_rate.*checkpoint-2 is",
        ),
        (stop, Stopped, "^Stopped by SIGTERM after update 3: .*checkpoint-3 is saved"),
        (
            lambda trainer: setattr(trainer.average, "save", refuse_to_save),
            SaveError,
            r"checkpoint-\d+ cannot be saved \(No space left on device\)",
        ),
    ],
)
def test_what_ends_a_run_is_raised_by_the_script_and_by_the_trainer(tmp_path, monkeypatch, happens, error, words):
    original, calls = ASTTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            happens(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ASTTrainer, "training_step", training_step)
    recipe = fault_campaign.write_recipe(tmp_path / "data")
    with pytest.raises(error, match=words):
        script.main([str(recipe), "--output_dir", str(tmp_path / "run")])


def test_a_dry_run_that_diverges_says_so(tmp_path, monkeypatch):
    original = ASTTrainer.training_step

    def training_step(self, *args, **kwargs):
        lose_the_loss(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ASTTrainer, "training_step", training_step)
    recipe = fault_campaign.write_recipe(tmp_path / "data")
    with pytest.raises(DivergedError, match="^The loss of update 1 is no finite number"):
        script.main([str(recipe), "--output_dir", str(tmp_path / "run"), "--dry_run=true"])


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "cannot be read"),
        (b"a: [", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"- a", "something else"),
    ],
)
def test_a_recipe_of_an_earlier_run_that_is_none_cannot_be_compared(tmp_path, content, words):
    if content is not None:
        (tmp_path / "recipe.yaml").write_bytes(content)
    arguments = parse_arguments(["--output_dir=x", "--dataset_name=synthetic", "--model_name_or_path=tiny224"])
    with pytest.raises(RecipeError, match=f"recipe.yaml: .*the recipe of an earlier run.*{words}"):
        recipe_differences(tmp_path / "recipe.yaml", arguments)


@pytest.mark.parametrize("use", [require_torchaudio, lambda: to_waveform(torch.zeros(100, 1), 14000, 16000)])
def test_without_torchaudio_the_command_that_mends_it_is_named(monkeypatch, use):
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(ImportError, match=r"torchaudio .* cannot be loaded with torch .*: pip install 'torch>="):
        use()


# The scripts that read a data set


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = make_tiny_config(id2label={0: "bell", 1: "siren"}, problem_type="single_label_classification")
    return str(save_checkpoint(folder, random_model(config)))


SCRIPTS = {
    "calibrate": (calibrate, lambda model, folder: [model, "--output_dir", folder / "out", "--recipe"]),
    "compute_fbank_stats": (compute_fbank_stats, lambda model, folder: []),
    "ensemble": (ensemble, lambda model, folder: [model, "--output_dir", folder / "out", "--recipe"]),
    "evaluate_events": (evaluate_events, lambda model, folder: [model, "--output_dir", folder / "out", "--recipe"]),
    "extract_embeddings": (
        extract_embeddings,
        lambda model, folder: ["--model", model, "--output", folder / "out.parquet", "--recipe"],
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_name_the_data_and_the_clip_that_they_cannot_use(model, tmp_path, name):
    for number in range(8):
        (tmp_path / f"{number}.wav").write_text("no sound")
    rows = [f"{number}.wav,{('bell', 'siren')[number % 2]},{number // 2 % 2}" for number in range(8)]
    (tmp_path / "clips.csv").write_text("\n".join(["audio,label,fold", *rows]) + "\n")
    settings = {"dataset_name": tmp_path / "clips.csv", "fold_column_name": "fold", "eval_fold": 1}
    settings |= {"problem_type": "single_label_classification", "model_name_or_path": model, "output_dir": "unused"}
    if name == "compute_fbank_stats":
        settings |= {"num_mel_bins": 32, "max_length": 64}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    module, options = SCRIPTS[name]
    argv = [str(each) for each in (*options(model, tmp_path), recipe)]
    with pytest.raises(DataError, match="nowhere.csv: no such file"):
        module.main([*argv, "--dataset_name", str(tmp_path / "nowhere.csv")])
    with pytest.raises(AudioError, match="got none" if name == "extract_embeddings" else r"\d.wav: cannot be decoded"):
        module.main(argv)
    assert not list(tmp_path.glob("out/*.json")) and not (tmp_path / "out.parquet").exists()
