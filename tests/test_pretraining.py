"""Pre-training: a model that sees some patches learns to predict the others, and becomes an AST as any other."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import read_csv, without_key_biases, write_csv
from safetensors.torch import load_file
from transformers.models.audio_spectrogram_transformer import modeling_audio_spectrogram_transformer as stock

from modeling_ast import ASTFeatureExtractor, ASTModel, AudioError
from modeling_ast.commands import check, statistics
from modeling_ast.commands import pretrain as script
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.training.augment import clip_generator
from modeling_ast.training.building import build_model_and_extractor
from modeling_ast.training.masked_autoencoder import ASTForMaskedPretraining, draw_kept
from modeling_ast.training.pretraining import PretrainingTrainer, build_for_pretraining
from modeling_ast.training.pretraining_arguments import parse_pretraining_arguments
from modeling_ast.training.probe import Probe, read_probe

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
GRID = {"frequency_stride": 16, "time_stride": 16}  # 2 x 4 patches of 64 frames
KEPT = torch.tensor([[0, 3, 5], [1, 6, 7], [2, 4, 5]])


def generators(count: int = 3) -> list[torch.Generator]:
    return [clip_generator(0, position) for position in range(count)]


@pytest.fixture
def body() -> ASTModel:
    return random_model(make_tiny_config(**GRID), ASTModel)


def pretraining_model(**options) -> ASTForMaskedPretraining:
    model = random_model(make_tiny_config(**GRID), lambda config: ASTForMaskedPretraining(config, 1, 32, **options))
    return model.eval()


# What the encoder sees


def test_the_encoder_computes_the_kept_patches_as_if_there_were_no_others(body, input_values):
    with torch.no_grad():
        seen = body(input_values, kept=KEPT).last_hidden_state
        embedded = body.embeddings(input_values)
        for index, kept in enumerate(KEPT.tolist()):
            states = torch.stack([embedded[index, token] for token in (0, 1, *(2 + patch for patch in kept))])[None]
            for layer in body.encoder.layer:
                states, _ = layer(states)
            torch.testing.assert_close(seen[index : index + 1], body.layernorm(states))


def test_masked_values_change_nothing(body, input_values):
    changed = input_values.clone()
    for index, kept in enumerate(KEPT.tolist()):
        for patch in set(range(8)) - set(kept):
            row, column = divmod(patch, 4)
            changed[index, 16 * column : 16 * column + 16, 16 * row : 16 * row + 16] += 100
    with torch.no_grad():
        before, after = (body(each, kept=KEPT).last_hidden_state for each in (input_values, changed))
        torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
        assert not torch.allclose(body(changed).pooler_output, body(input_values).pooler_output)


def test_kept_patches_of_a_shorter_clip_are_those_of_the_clip_alone(body, input_values):
    frames = [64, 48, 17]
    mask = torch.arange(64) < torch.tensor(frames)[:, None]
    kept = draw_kept(body.config, frames, 64, 0.5, 1, generators())
    with torch.no_grad():
        together = body(input_values, mask, kept=kept[:, 0])
        for index, own in enumerate(frames):
            clip = input_values[index : index + 1, :own]
            alone = draw_kept(body.config, [own], own, 0.5, 1, generators()[index : index + 1])[0]
            expected = body(clip, kept=alone)
            number = 2 + alone.shape[1]
            torch.testing.assert_close(together.last_hidden_state[index, :number], expected.last_hidden_state[0])
            torch.testing.assert_close(together.pooler_output[index], expected.pooler_output[0])


# Draws


def test_each_clip_and_each_clone_has_its_own_draw_that_repeats():
    config = make_tiny_config(**GRID, max_length=512)
    first, again = (draw_kept(config, [512] * 3, 512, 0.75, 2, generators()) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (3, 2, 16)  # a quarter of 2 x 32
    assert len({tuple(kept.tolist()) for kept in first.flatten(0, 1)}) == 6
    assert (first.diff(dim=2) > 0).all()


def test_a_draw_does_not_depend_on_the_rest_of_the_batch():
    config = make_tiny_config(**GRID, max_length=160)
    batch = draw_kept(config, [160, 96, 20], 160, 0.5, 1, generators())
    for index, (frames, columns) in enumerate(((160, 10), (96, 6), (20, 1))):
        alone = draw_kept(config, [frames], frames, 0.5, 1, generators()[index : index + 1])[0, 0]
        assert len(alone) == columns
        rows, own = alone // columns, alone % columns
        assert batch[index, 0, : len(alone)].tolist() == (rows * 10 + own).tolist()
        assert (batch[index, 0, len(alone) :] % 10 >= columns).all()  # padding


def test_every_patch_is_as_likely_and_one_is_kept_and_one_masked():
    config, counts = make_tiny_config(**GRID), torch.zeros(8)
    for position in range(400):
        counts[draw_kept(config, [64], 64, 0.75, 1, [clip_generator(1, position)]).flatten()] += 1
    assert counts.sum() == 800 and ((counts > 70) & (counts < 130)).all()
    for ratio, number in ((0.01, 7), (0.99, 1)):
        assert draw_kept(config, [64], 64, ratio, 1, generators(1)).shape == (1, 1, number)


# Losses


def patches_of(spectrogram: np.ndarray) -> np.ndarray:
    """Frequency-major (patches, 256), each bin by bin, as the kernel of the patches reads them."""
    frames, bins = spectrogram.shape
    cells = [(row, column) for row in range(bins // 16) for column in range(frames // 16)]
    return np.stack([spectrogram[16 * c : 16 * c + 16, 16 * r : 16 * r + 16].T.reshape(-1) for r, c in cells])


@pytest.mark.parametrize("normalized", [False, True])
def test_losses_are_those_of_their_definition(input_values, monkeypatch, normalized):
    model = pretraining_model(normalize_targets=normalized, utterance_weight=0.5)
    frames = [64, 48, 33]
    mask = (torch.arange(64) < torch.tensor(frames)[:, None]).long()
    kept = draw_kept(model.config, frames, 64, 0.5, 2, generators())
    told = []
    for part in (model.decoder, model.utterance_head):
        part.register_forward_hook(lambda module, args, output: told.append(output.detach().double().numpy()))
    output = model(input_values, kept, mask)
    predicted, utterances = told
    patch_losses, utterance_losses = [], []
    for index, draws in enumerate(kept.tolist()):
        own_columns = frames[index] // 16
        spectrogram = input_values[index].double().numpy()
        for clone, draw in enumerate(draws):
            masked = [p for p in range(8) if p % 4 < own_columns and p not in draw]
            targets = patches_of(spectrogram)
            if normalized:
                deviations = np.sqrt(targets.var(axis=1, ddof=1, keepdims=True) + 1e-6)
                targets = (targets - targets.mean(axis=1, keepdims=True)) / deviations
            errors = (predicted[2 * index + clone] - targets)[masked]
            patch_losses.append((errors**2).mean())
            own = spectrogram[: frames[index]]
            expected = np.concatenate((own.mean(axis=0), own.std(axis=0)))
            utterance_losses.append(((utterances[2 * index + clone] - expected) ** 2).mean())
    assert output.patch_loss.item() == pytest.approx(np.mean(patch_losses), rel=1e-5)
    assert output.utterance_loss.item() == pytest.approx(np.mean(utterance_losses), rel=1e-5)
    assert output.loss.item() == pytest.approx(np.mean(patch_losses) + 0.5 * np.mean(utterance_losses), rel=1e-5)


def test_losses_do_not_depend_on_padding(input_values):
    model, frames = pretraining_model(), [40, 33]
    mask = (torch.arange(64) < torch.tensor(frames)[:, None]).long()
    with torch.no_grad():
        padded = model(input_values[:2], draw_kept(model.config, frames, 64, 0.5, 1, generators()), mask)
        cut = draw_kept(model.config, frames, 40, 0.5, 1, generators())
        torch.testing.assert_close(padded.loss, model(input_values[:2, :40], cut, mask[:, :40]).loss)


def test_clips_of_one_patch_have_nothing_to_predict_and_finite_losses():
    config = make_tiny_config(**GRID, num_mel_bins=16)
    model = random_model(config, lambda config: ASTForMaskedPretraining(config, 1, 32))
    mask = (torch.arange(64) < 20).long().repeat(2, 1)
    kept = draw_kept(config, [20, 20], 64, 0.75, 1, generators(2))
    output = model(torch.randn(2, 64, 16), kept, mask)
    assert output.patch_loss == output.target_deviation == 0 and output.loss == output.utterance_loss > 0


def test_every_parameter_learns_and_collapse_shows(input_values):
    model = pretraining_model()
    output = model(input_values, draw_kept(model.config, [64] * 3, 64, 0.5, 2, generators()))
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    same = model(input_values[:1].expand(3, -1, -1), KEPT[:1, None].expand(3, -1, -1))
    assert same.pooled_deviation < 1e-6 < output.pooled_deviation
    assert output.target_deviation == pytest.approx(1, abs=0.1)  # of normal noise


def test_without_its_weight_there_is_no_utterance_target(input_values):
    model = pretraining_model(utterance_weight=0.0)
    output = model(input_values, KEPT[:, None])
    assert output.utterance_loss is None and output.loss == output.patch_loss
    assert not [name for name in model.state_dict() if name.startswith("utterance_head")]


@pytest.mark.parametrize(
    ("settings", "width", "words"),
    [
        ({"frequency_stride": 10, "time_stride": 16}, 32, "at least patch_size, 16, got 10 and 16: .*read off"),
        (GRID, 48, r"decoder_width \(half of hidden_size if unset\) to be a multiple of 32, got 48"),
        ({**GRID, "max_length": 16, "num_mel_bins": 16}, 32, "two patches at least"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(settings, width, words):
    with pytest.raises(ValueError, match=words):
        ASTForMaskedPretraining(make_tiny_config(**settings), 1, width)


# Runs

RECIPE = """
model_name_or_path: tiny224
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
intermediate_size: 64
max_length: 64
num_mel_bins: 32
frequency_stride: 16
time_stride: 16
mixup_probability: 0.5
random_crop: true
roll_frames: 5
mask_clones: 2
decoder_layers: 1
decoder_width: 32
do_train: true
num_train_epochs: 3
global_batch_size: 8
learning_rate: 2e-3
lr_scheduler_type: cosine
ema_decay: 0.5
eval_strategy: epoch
logging_strategy: steps
logging_steps: 1
use_cpu: true
dataloader_pin_memory: false
disable_tqdm: true
seed: 3
"""
KINDS = ("beeps", "drone", "noise", "steam")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe, beside sounds of 0.5 to 1 s: 19 to learn from, and 8 of another list, with labels, for the probe."""
    folder, generator = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(0)
    labelled = []
    for number in range(27):
        name = folder / "sounds" / f"{number}.wav" if number < 19 else folder / f"{number}.wav"
        name.parent.mkdir(exist_ok=True)
        clip = generate_clip(KINDS[number % 4], generator)[: 8000 + 500 * (number % 17)]
        soundfile.write(name, clip.numpy(), 16000)
        if number >= 19:
            labelled.append([name, "train" if number < 23 else "test", KINDS[number % 4]])
    with open(folder / "labelled.csv", "w", newline="") as file:
        csv.writer(file).writerows([["audio", "split", "label"], *labelled])
    (folder / "probe.yaml").write_text(f"dataset_name: {folder / 'labelled.csv'}\nsplit_column_name: split\n")
    data = f"dataset_name: {folder / 'sounds'}\nprobe_recipe: {folder / 'probe.yaml'}\n"
    (folder / "recipe.yaml").write_text(data + RECIPE)
    return folder / "recipe.yaml"


def run(recipe: Path, folder: Path, *argv) -> dict[str, float]:
    return script.main([str(each) for each in (recipe, "--output_dir", folder, *argv)])


@pytest.fixture(scope="module", params=["max_length", pytest.param("longest", marks=pytest.mark.slow)])
def whole(request, recipe, tmp_path_factory) -> tuple[Path, list[str]]:
    """Folder of a run in one go, and what it was asked for beside the recipe."""
    folder, argv = tmp_path_factory.mktemp("runs") / "run", [f"--padding={request.param}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "plot_pretraining_curves", lambda table, picture: picture.write_bytes(b""))
        run(recipe, folder, *argv, "--save_strategy=no")
    return folder, argv


def test_a_run_leaves_an_encoder_that_stock_loads_too(whole):
    folder, _ = whole
    theirs, loading = stock.ASTModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    ours = ASTModel.from_pretrained(folder)
    values = torch.randn(2, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(values).pooler_output, ours.eval()(values).pooler_output)
    assert ASTFeatureExtractor.from_pretrained(folder).max_length == 64
    assert not [name for name in load_file(folder / "model.safetensors") if "decoder" in name]


def test_a_recipe_with_labels_takes_it_and_gives_it_a_head(whole):
    folder, _ = whole
    model, extractor = build_model_and_extractor(ModelArguments(str(folder), time_stride=8), ["a", "b", "c"])
    assert model.classifier.dense.out_features == 3 and model.config.num_time_patches == 7
    trained, started = load_file(folder / "model.safetensors"), model.audio_spectrogram_transformer.state_dict()
    assert torch.equal(started["encoder.layer.1.output.dense.weight"], trained["encoder.layer.1.output.dense.weight"])


def test_a_clip_of_the_probe_that_cannot_be_decoded_ends_a_run_before_it_begins(recipe, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}_broken.wav").write_bytes(b"RIFF")
    splits = {"a": "train", "b": "train", "c": "validation"}
    rows = [
        {"audio": tmp_path / f"{name}_broken.wav", "label": min(name, "b"), "split": split}
        for name, split in splits.items()
    ]
    write_csv(tmp_path / "probe.csv", rows)
    (tmp_path / "probe.yaml").write_text(f"dataset_name: {tmp_path / 'probe.csv'}\nsplit_column_name: split\n")
    with pytest.raises(AudioError, match="broken.wav"):
        run(recipe, tmp_path / "run", f"--probe_recipe={tmp_path / 'probe.yaml'}", "--eval_strategy=no")
    assert not list((tmp_path / "run").glob("*.safetensors")) and not (tmp_path / "run" / "results.csv").exists()


def test_results_tell_losses_spread_and_probe_of_each_epoch(whole):
    rows = read_csv(whole[0] / "results.csv")
    names = ["epoch", "learning_rate", "train_loss", "patch_loss", "utterance_loss", "target_deviation"]
    assert list(rows[0]) == [*names, "pooled_deviation", "pooled_accuracy", "rows_accuracy"]
    values = [{name: float(value) for name, value in row.items()} for row in rows]
    assert [row["epoch"] for row in values] == [1, 2, 3]
    for row in values:
        assert row["train_loss"] == pytest.approx(row["patch_loss"] + row["utterance_loss"], rel=1e-5)
        assert row["pooled_deviation"] > 0
    found = json.loads((whole[0] / "all_results.json").read_text())
    found = {name: value for name, value in found.items() if "accuracy" in name}
    assert found.keys() == {
        f"{which}probe_{readout}_accuracy" for which in ("", "average_") for readout in ("rows", "pooled")
    }
    assert found["probe_rows_accuracy"] == values[-1]["rows_accuracy"]


@pytest.mark.slow
def test_a_longer_run_predicts_better_than_a_constant(recipe, tmp_path):
    options = ["--num_train_epochs=40", "--eval_strategy=steps", "--eval_steps=0.25", "--mask_ratio=0.5"]
    run(recipe, tmp_path, *options, "--save_strategy=no", "--learning_rate=5e-3")
    first, last = (
        [float(row["patch_loss"]), float(row["target_deviation"]) ** 2]
        for row in (read_csv(tmp_path / "results.csv")[index] for index in (0, -1))
    )
    assert last[0] < 0.9 * last[1] and last[0] < first[0]
    assert (tmp_path / "training_curves.png").stat().st_size > 10_000


def assert_identical(folder: Path, expected: Path) -> None:
    """Bit for bit: table, weights and average."""
    assert (folder / "results.csv").read_text() == (expected / "results.csv").read_text()
    for part in ("", "weight_average"):
        found, wanted = (load_file(each / part / "model.safetensors") for each in (folder, expected))
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("update", [2, 9])  # within an epoch, and after the last
def test_a_resumed_run_is_the_same_run(recipe, whole, tmp_path, monkeypatch, update):
    options = [*whole[1], "--save_strategy=steps", "--save_steps=1", "--resume_from_checkpoint=true"]
    original = PretrainingTrainer._save_checkpoint

    def stop_after(self, *args):
        original(self, *args)
        if self.state.global_step == update:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PretrainingTrainer, "_save_checkpoint", stop_after)
        run(recipe, tmp_path, *options)
    assert not (tmp_path / "model.safetensors").exists()
    run(recipe, tmp_path, *options)
    assert_identical(tmp_path, whole[0])
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    run(recipe, tmp_path, *options)  # what is done is not done again
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match="mask_ratio: 0.75 saved, 0.5 given"):
        run(recipe, tmp_path, *options, "--mask_ratio=0.5")


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["longest"], indirect=True)
def test_two_processes_make_the_same_run_as_one(recipe, whole, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launcher += ["-m", "modeling_ast.commands.pretrain", recipe, *whole[1], "--save_strategy=no"]
    process = subprocess.run(
        [sys.executable, *map(str, launcher), "--ddp_backend=gloo", "--output_dir", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found, wanted = (read_csv(folder / "results.csv") for folder in (tmp_path / "run", whole[0]))
    for row, expected in zip(found, wanted, strict=True):
        for name in ("train_loss", "patch_loss", "utterance_loss"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-5)
    found, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", whole[0]))
    for name, tensor in without_key_biases(wanted).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_dry_run_writes_nothing(recipe, tmp_path):
    results = run(recipe, tmp_path / "dry", "--dry_run=true")
    assert results["dry_run_updates"] == 9 and not (tmp_path / "dry").exists()


@pytest.mark.slow
def test_the_recipe_of_the_package_learns_from_its_first_steps(recipe, tmp_path):
    own = [f"--dataset_name={recipe.parent / 'sounds'}", f"--probe_recipe={recipe.parent / 'probe.yaml'}"]
    tiny = ["--hidden_size=64", "--num_hidden_layers=2", "--num_attention_heads=2", "--decoder_width=32"]
    tiny += [
        "--max_steps=8",
        "--dataloader_num_workers=0",
        "--use_cpu=true",
        "--warmup_steps=1",
        "--disable_tqdm=true",
    ]
    run(ROOT / "configs" / "pretrain_small.yaml", tmp_path, *own, *tiny)
    losses = [float(row["train_loss"]) for row in read_csv(tmp_path / "results.csv")]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)


# Recipes


def test_the_sounds_of_a_recipe_are_checked_and_measured_by_it(recipe, capsys):
    assert check.main([str(recipe), "--unlabelled=true", "--output_dir=x"]) in (0, 1)
    assert "no labels, 19 clips for train" in capsys.readouterr().out
    statistics.main([str(recipe), "--unlabelled=true"])
    assert "mean" in capsys.readouterr().out


def parse(*argv: str):
    return parse_pretraining_arguments(
        ["--model_name_or_path=tiny224", "--dataset_name=sounds", "--output_dir=x", "--do_train=true", *argv]
    )


WITHOUT_EFFECT = ("patchout_rows=1", "freeze_backbone=true", "label_smoothing_factor=0.1", "label_file=esc50")
WITHOUT_EFFECT += ("label_column_name=kind", "test_file=held_out.csv", "max_eval_samples=3", "validation_fraction=0.2")


def test_labels_are_nowhere():
    recipe = parse("--max_length=64", "--num_mel_bins=32", "--frequency_stride=16", "--time_stride=16")
    assert recipe.data.unlabelled
    model, extractor = build_for_pretraining(recipe)
    assert model.config.problem_type is None and "id2label" not in model.config.to_diff_dict()
    assert extractor.num_mel_bins == 32


@pytest.mark.parametrize(
    ("key", "words"),
    [
        *((key, f"{key.split('=')[0]} has no effect on a pre-training") for key in WITHOUT_EFFECT),
        ("mask_ratio=1", r"mask_ratio in \(0, 1\), got 1"),
        ("mask_clones=0", r"mask_clones in \[1, inf\), got 0"),
        ("utterance_weight=-1", r"utterance_weight in \[0, inf\), got -1"),
        ("do_train=false", "Expected do_train true"),
        # Folds of groups are made by the labels too, and a fold of others would hold out other speakers.
        ("group_pattern=^a --num_folds=3 --eval_fold=1", "a group is held out by its name alone"),
        ("eval_strategy=epoch --lr_scheduler_type=reduce_lr_on_plateau", "metric_for_best_model has no effect"),
    ],
)
def test_keys_that_cannot_be_are_refused(key, words):
    with pytest.raises(RecipeError, match=words):
        parse(*f"--{key}".split())


def test_help_says_what_the_command_does(capsys):
    with pytest.raises(SystemExit):
        parse_pretraining_arguments(["--help"])
    assert "Pre-train an Audio Spectrogram Transformer on sounds without labels." in capsys.readouterr().out


def test_a_recipe_that_its_start_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match="tiny224 cannot be pre-trained by this recipe: Expected strides of"):
        build_for_pretraining(parse("--max_length=64", "--num_mel_bins=32"))


# The probe


@pytest.fixture(scope="module")
def probe(recipe) -> Probe:
    extractor = ASTFeatureExtractor(max_length=98, num_mel_bins=32, padding="longest")
    return read_probe(str(recipe.parent / "probe.yaml"), extractor, batch_size=3)


def test_the_probe_sees_each_clip_alone_and_leaves_the_model_as_it_is(probe):
    model = random_model(make_tiny_config(**GRID, max_length=98), ASTModel).train()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    found = probe.measure(model)
    assert found.keys() == {"pooled_accuracy", "rows_accuracy"} and found == probe.measure(model)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    embeddings, labels = probe._embed(model.eval(), probe.held_out)
    assert labels.argmax(axis=1).tolist() == [row["labels"] for row in probe.held_out]
    for index, row in enumerate(probe.held_out):
        values = probe.collator([row])["input_values"]
        with torch.no_grad():
            output = model(values, output_hidden_states=True)
        grids = [model.fold_patches(output.hidden_states[layer])[0] for layer in (1, 2)]
        rows = [torch.cat((r.mean(dim=0), r.std(dim=0, correction=0))) for grid in grids for r in grid]
        np.testing.assert_allclose(embeddings["rows"][index], torch.cat(rows).numpy(), atol=1e-4)
        np.testing.assert_allclose(embeddings["pooled"][index], output.pooler_output[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("key", ["streaming: true", "unlabelled: true"])
def test_a_probe_needs_a_table_of_labels(recipe, tmp_path, key):
    (tmp_path / "probe.yaml").write_text((recipe.parent / "probe.yaml").read_text().split("\n")[0] + f"\n{key}\n")
    with pytest.raises(RecipeError, match="probe.yaml: expected a table of labelled clips for probe_recipe"):
        read_probe(str(tmp_path / "probe.yaml"), ASTFeatureExtractor(), 8)
