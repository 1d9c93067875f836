"""What is evaluated on after every epoch is decoded once, and nothing else changes."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import leave_out_pictures, read_csv, write_sound

from modeling_ast.commands import train
from modeling_ast.data.clips import Clip
from modeling_ast.training import kept_batches
from modeling_ast.training.kept_batches import read_batches

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = "--model_name_or_path=tiny224 --hidden_size=32 --num_hidden_layers=1 --num_attention_heads=2"
NETWORK += " --intermediate_size=32 --max_length=48 --num_mel_bins=32 --mean=-5 --std=4"
TRAINING = "--do_train=true --num_train_epochs=3 --global_batch_size=8 --per_device_eval_batch_size=4 --use_cpu=true"
TRAINING += " --learning_rate=1e-3 --eval_strategy=epoch --save_strategy=epoch --load_best_model_at_end=true"
TRAINING += " --metric_for_best_model=accuracy --disable_tqdm=true"


@pytest.fixture
def sounds(tmp_path):
    """Two classes of tones; 6 clips validate, and 5, of one class alone, test."""
    rng = np.random.default_rng(0)
    for name, pitch in (("high", 900), ("low", 300)):
        for number in range(20):
            tone = np.sin(2 * np.pi * pitch * np.arange(8000) / 16000)
            write_sound(tmp_path / "sounds" / name / f"{number}.wav", 0.1 * tone + 0.01 * rng.normal(size=8000))
    names = {"validation_list.txt": [f"{name}/{n}.wav" for n in range(3) for name in ("high", "low")]}
    names["testing_list.txt"] = [f"low/{n}.wav" for n in range(3, 8)]
    for name, lines in names.items():
        (tmp_path / "sounds" / name).write_text("\n".join(lines) + "\n")
    return tmp_path / "sounds"


@pytest.fixture
def heard(monkeypatch):
    """How often each held-out clip was decoded here."""
    counts, load = Counter(), Clip.load

    def note(clip, *args, **kwargs):
        counts["/".join(clip.path.split("/")[-2:])] += 1
        return load(clip, *args, **kwargs)

    monkeypatch.setattr(Clip, "load", note)
    return counts


def run(sounds, output, *keys):
    train.main([*NETWORK.split(), *TRAINING.split(), f"--dataset_name={sounds}", f"--output_dir={output}", *keys])
    return {
        name: read_csv(output / f"{name}.csv") for name in ("results", "predictions_validation", "predictions_test")
    }


def test_held_out_clips_are_decoded_once_and_the_results_are_the_same(sounds, tmp_path, heard, monkeypatch):
    leave_out_pictures(monkeypatch)
    kept = run(sounds, tmp_path / "kept")
    validation = (sounds / "validation_list.txt").read_text().split()
    decoded = [heard[name] for name in validation]
    heard.clear()
    monkeypatch.setattr(kept_batches, "MAX_BYTES", 0)
    assert run(sounds, tmp_path / "anew") == kept
    # After each epoch but the first and at the end, and once more the first batch, which showed that all do not fit.
    assert sorted(heard[name] - before for name, before in zip(validation, decoded)) == [3] * 2 + [4] * 4


@pytest.mark.slow
@pytest.mark.parametrize("keys", [[], ["--dataloader_persistent_workers=true"]], ids=["", "persistent"])
def test_workers_read_them_and_each_split_has_its_own_clips(sounds, tmp_path, monkeypatch, keys):
    leave_out_pictures(monkeypatch)
    found = run(sounds, tmp_path / "workers", "--dataloader_num_workers=2", *keys)
    expected = run(sounds, tmp_path / "alone")
    for name in ("predictions_validation", "predictions_test"):
        assert [row["path"] for row in found[name]] == [row["path"] for row in expected[name]]
        assert [row["p_low"] for row in found[name]] == [row["p_low"] for row in expected[name]]
    assert {row["truth"] for row in found["predictions_test"]} == {"low"} and len(found["predictions_test"]) == 5


@pytest.mark.parametrize(("max_bytes", "fits"), [(6 * 4, True), (6 * 4 - 1, False)])
def test_all_is_kept_or_nothing(monkeypatch, max_bytes, fits):
    monkeypatch.setattr(kept_batches, "MAX_BYTES", 2 * max_bytes)
    sampler, state = [[0, 1], [2, 3], [4, 5]], torch.get_rng_state()
    kept = read_batches(torch.arange(6.0), sampler, lambda rows: {"input_values": torch.stack(rows)}, 0, None, 2)
    assert (kept is not None) == fits and torch.equal(torch.get_rng_state(), state)
    if fits:
        batches = [kept.__getitems__(indices)["input_values"] for indices in sampler]
        assert torch.equal(torch.cat(batches), torch.arange(6.0)) and len(kept) == 6
