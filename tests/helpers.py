"""What several files of tests need."""

import csv
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from transformers import TrainerCallback

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import command_line
from modeling_ast.data import synthetic
from modeling_ast.data.decoding import DecodeAudio
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.rows import TrainingRows, cut

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def restored_signals() -> Iterator[None]:
    """What the signals do that commands take is what it was before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_of(command: str, *argv) -> tuple[int, str]:
    """How a command ends in this process: its exit status, and the sentence that it tells last, if it tells one."""
    with (
        restored_signals(),
        mock.patch.object(sys, "argv", [f"modeling-ast {command}", *map(str, argv)]),
        mock.patch.object(command_line, "tell", wraps=command_line.tell) as tell,
        pytest.raises(SystemExit) as stop,
    ):
        command_line.run_command(command)
    return stop.value.code, tell.call_args.args[0] if tell.called else ""


def decoded(rows: Iterable[dict], sampling_rate: int = 16000) -> Iterator[dict]:
    """Rows of a table or a stream with their waveforms."""
    return map(DecodeAudio(sampling_rate).decode_row, rows)


def prepare(collator: AugmentingCollator, batch: list[dict], rows: list[dict]) -> list[dict]:
    """Decoded rows with positions as a loader prepares them, and rows to draw partners from."""
    return collator.prepare([(row["position"], partial(cut, row)) for row in batch], TrainingRows(rows))


# Files


@contextmanager
def another_process(claim: Callable, *args) -> Iterator[None]:
    """One that has entered a context meanwhile."""
    fork = multiprocessing.get_context("fork")
    entered, leave = fork.Event(), fork.Event()

    def hold() -> None:
        with claim(*args):
            entered.set()
            leave.wait(60)

    process = fork.Process(target=hold)
    process.start()
    assert entered.wait(60)
    try:
        yield
    finally:
        leave.set()
        process.join()


def write_sound(path: Path, samples: np.ndarray | torch.Tensor, sampling_rate: int = 16000, **options) -> Path:
    """A sound file, with the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sampling_rate, **options)
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def clone_with_python(folder: Path, python: str, *names: str) -> Path:
    """A clone of some files, in which a script stands for Python: `bin` is to be first on the path."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").write_text(python)
    (folder / "bin" / "python3").chmod(0o755)
    return folder


def save_checkpoint(folder: Path, model: ASTForAudioClassification, **options) -> Path:
    """A model with an extractor of its sizes."""
    sizes = {name: getattr(model.config, name) for name in ("max_length", "num_mel_bins")}
    model.save_pretrained(folder)
    ASTFeatureExtractor(**sizes, **options).save_pretrained(folder)
    return folder


# Short runs


def few_synthetic_sounds(**clips_per_class: int) -> Callable:
    """A fixture of a module: the data set `synthetic` with so few clips a class, in a cache of its own."""

    @pytest.fixture(scope="module", autouse=True)
    def few_sounds(tmp_path_factory, one_thread):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
            patch.setattr(synthetic, "CLIPS_PER_CLASS", clips_per_class)
            yield

    return few_sounds


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    """Training draws nothing: that takes most of the time of a short run, and is looked at elsewhere."""
    from modeling_ast.commands import train

    for name in [name for name in vars(train) if name.startswith("plot_")]:
        patch.setattr(train, name, lambda *args, **options: None)


def stack(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of clips that are spectrograms already."""
    return {name: torch.stack([row[name] for row in rows]) for name in ("input_values", "labels")}


class StopAt(TrainerCallback):
    """Ends a run after an update, as if it had been interrupted there."""

    def __init__(self, update: int):
        self.update = update

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.update


def without_key_biases(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights by their names, or numbers of them, without those that no output depends on.

    Softmax ignores what all keys have in common: gradients of their biases are rounding alone, of which Adam makes
    whole steps.
    """
    return {name: tensor for name, tensor in weights.items() if not name.endswith("key.bias")}
