"""Training on mixed lengths: no clip depends on what it is batched with, and little of a batch is padding."""

import csv
import math
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from datasets import Audio, Dataset
from helpers import prepare
from transformers import pipeline

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, load_waveform
from modeling_ast.audio import AudioError
from modeling_ast.commands import check as check_data
from modeling_ast.commands import train as script
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.data.model_card import write_model_card
from modeling_ast.data.recipes import BatchArguments
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.inference.predictions import predict
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.building import build_feature_extractor
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.sampling import TrainingSampler, read_clip_seconds, sort_by_length

pytestmark = pytest.mark.usefixtures("one_thread")

FIXED = ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-5.0, std=4.0)
FREE = ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-5.0, std=4.0, padding="longest")
FILL = FREE.normalize(torch.tensor(0.0)).item()
EVERYTHING = AugmentArguments(
    mixup_probability=0.5, random_crop=True, freq_mask_bins=12, time_mask_frames=24, max_noise=0.1, roll_frames=10
)
FRAMES = [30, 2, 64, 17, 90, 41]  # less than a patch, all of max_length, and more


def make_rows(frames: list[int]) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    waveforms = [0.1 * torch.randn(FIXED.num_samples(count), generator=generator) for count in frames]
    return [{"waveform": clip, "labels": i % 3, "position": i} for i, clip in enumerate(waveforms)]


def own_frames(row: dict) -> int:
    """By hand: 25 ms every 10 ms, at least a patch, at most `max_length`."""
    return min(max((len(row["waveform"]) - 400) // 160 + 1, 16), 64)


# Batches


def make_collator(augment, rows, extractor=FREE, seed=0) -> Callable:
    if augment is None:
        return ASTDataCollator(extractor, 3)
    collator = AugmentingCollator(extractor, 3, augment=augment, seed=seed)
    return lambda batch: collator(prepare(collator, batch, rows))


@pytest.mark.parametrize("augment", [None, EVERYTHING], ids=["evaluation", "training"])
def test_features_of_a_clip_do_not_depend_on_its_batch(augment):
    rows = make_rows(FRAMES)
    collate = make_collator(augment, rows, seed=5)
    whole = collate(rows)
    assert whole["input_values"].shape == (6, 64, 32)
    for index, row in enumerate(rows):
        alone, frames = collate([row]), own_frames(row)
        assert alone["input_values"].shape == (1, frames, 32) and alone["attention_mask"].eq(1).all()
        torch.testing.assert_close(whole["input_values"][index, :frames], alone["input_values"][0], atol=1e-4, rtol=0)
        assert whole["input_values"][index, frames:].eq(FILL).all()
        assert whole["attention_mask"][index].tolist() == [1] * frames + [0] * (64 - frames)
        assert torch.equal(whole["labels"][index], alone["labels"][0])


def test_a_batch_is_as_long_as_its_longest_clip():
    rows = make_rows(FRAMES)
    for augment in (None, EVERYTHING):
        collate = make_collator(augment, rows)
        assert collate([rows[0], rows[3]])["input_values"].shape == (2, 30, 32)
        assert collate([rows[4]])["input_values"].shape == (1, 64, 32)  # cut
        assert collate([rows[1]])["input_values"].shape == (1, 16, 32)  # a patch


@pytest.mark.parametrize("augment", [None, EVERYTHING], ids=["evaluation", "training"])
def test_clips_of_max_length_are_the_same_as_with_fixed_length(augment):
    rows = make_rows([64, 64, 90])
    free, fixed = (make_collator(augment, rows, extractor)(rows) for extractor in (FREE, FIXED))
    assert torch.equal(free.pop("attention_mask"), torch.ones(3, 64, dtype=torch.int64))
    assert free.keys() == fixed.keys()
    assert all(torch.equal(free[name], fixed[name]) for name in fixed)


def test_time_masks_shrink_with_the_clip():
    """Up to 24 of 64 frames are up to 12 of 32, and no short clip is hidden."""
    (row,) = make_rows([32])
    augment = AugmentArguments(time_mask_frames=24)
    batch = make_collator(augment, [row])([{**row, "position": position} for position in range(400)])
    widths = batch["input_values"].eq(FILL).all(2).sum(1)
    assert widths.unique().tolist() == list(range(12))


def test_rolls_go_round_within_the_clips_own_frames():
    (row,) = make_rows([32])
    plain = ASTDataCollator(FREE, 3)([row])["input_values"][0]
    collate = make_collator(AugmentArguments(roll_frames=10), [row])
    rolled = collate([{**row, "position": position} for position in range(100)] + make_rows([64]))["input_values"]
    shifts = [[s for s in range(-5, 5) if torch.equal(clip[:32], plain.roll(s, 0))] for clip in rolled[:100]]
    assert all(len(found) == 1 for found in shifts) and len({found[0] for found in shifts}) == 10


def test_predictions_of_a_clip_do_not_depend_on_its_batch(tmp_path):
    audio = []
    for row in make_rows(FRAMES):
        audio.append({"bytes": None, "path": str(tmp_path / f"{len(audio)}.wav")})
        soundfile.write(audio[-1]["path"], row["waveform"].numpy(), 16000)
    rows = Dataset.from_dict({"audio": audio, "labels": [0, 1, 2, 0, 1, 2]})
    model = random_model(make_tiny_config(num_labels=3))
    splits = AudioSplits(rows, None, None, list(model.config.id2label.values()))

    def run(rows: Dataset, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        return predict(model, FREE, rows, splits, False, BatchArguments(batch_size), "Predicting")

    together, alone = (run(rows, size)[0] for size in (6, 1))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    shuffled = [5, 2, 0, 4, 1, 3]
    logits, labels = run(rows.select(shuffled), 3)
    np.testing.assert_allclose(logits, alone[shuffled], atol=1e-5)
    assert labels.tolist() == [2, 2, 0, 1, 1, 0]


# Order

SECONDS = 0.2 + 4.8 * torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
WEIGHTS = torch.rand(1000, generator=torch.Generator().manual_seed(0))


def batches(sampler: TrainingSampler, epoch: int = 0) -> torch.Tensor:
    sampler.set_epoch(epoch)
    return torch.tensor([index for _, index in sampler]).view(-1, sampler.global_batch_size)


def padded_share(batches: torch.Tensor, seconds: torch.Tensor = SECONDS) -> float:
    lengths = seconds[batches]
    return 1 - (lengths.sum() / (lengths.amax(1).sum() * lengths.shape[1])).item()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["shuffled", "weighted"])
@pytest.mark.parametrize("batch_size", [4, 16, 50])
def test_grouping_pads_little_and_draws_the_same_clips(weights, batch_size):
    mixed, grouped = (batches(TrainingSampler(1000, batch_size, 0, weights, clip_seconds=s)) for s in (None, SECONDS))
    assert torch.equal(mixed.flatten().sort().values, grouped.flatten().sort().values)
    assert padded_share(mixed) > 0.4
    assert padded_share(grouped) < 0.4 * padded_share(mixed)


def test_positions_of_grouped_clips_count_on_as_ever():
    sampler = TrainingSampler(1000, 16, 0, clip_seconds=SECONDS)
    counted = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        counted += [position for position, _ in sampler]
    assert counted == list(range(2 * 1008))


def test_grouped_order_comes_again_and_differs_between_epochs_and_seeds():
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        first, again = (batches(TrainingSampler(1000, 16, seed, clip_seconds=SECONDS), epoch) for _ in range(2))
        assert torch.equal(first, again)
        orders[seed, epoch] = tuple(first.flatten().tolist())
    assert len(set(orders.values())) == 4


def test_clips_meet_others_in_every_epoch_and_long_batches_come_at_any_time():
    sampler = TrainingSampler(1000, 16, 0, clip_seconds=SECONDS)
    companions = []
    for epoch in range(3):
        (row,) = batches(sampler, epoch).eq(7).any(1).nonzero()[0]
        companions.append(set(batches(sampler, epoch)[row].tolist()))
    assert all(len(a & b) < 12 for a, b in ((companions[0], companions[1]), (companions[1], companions[2])))
    lengths = torch.stack([SECONDS[batches(sampler, epoch)].mean(1) for epoch in range(20)])  # (epochs, batches)
    assert abs(np.corrcoef(lengths.flatten(), np.tile(np.arange(63), 20))[0, 1]) < 0.1


def test_clips_of_one_length_keep_a_random_order():
    sampler = TrainingSampler(1000, 10, 0, clip_seconds=torch.ones(1000))
    drawn = batches(sampler)
    assert sorted(drawn.flatten().tolist()) == list(range(1000))
    assert (drawn.diff(dim=1) > 0).float().mean().item() == pytest.approx(0.5, abs=0.06)


# Lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 clips of three kinds, of 0.3 to 2 s and of several rates and formats, and their manifest."""
    folder, generator = tmp_path_factory.mktemp("mixed"), torch.Generator().manual_seed(0)
    rows, kinds = [["audio", "label", "split"]], ["beeps", "drone", "noise"]
    for index in range(60):
        kind, rate = kinds[index % 3], 16000 if index % 4 else 8000
        clip = torch.cat([generate_clip(kind, generator), generate_clip(kind, generator)])
        samples = round(rate * (0.3 + 1.7 * (index * 7 % 60 / 60) ** 2))
        name = f"{index}.{'ogg' if index % 5 == 0 else 'flac' if index % 5 == 1 else 'wav'}"
        soundfile.write(folder / name, clip[:samples].numpy(), rate)
        rows.append([name, kind, "test" if index >= 50 else "validation" if index >= 40 else "train"])
    with open(folder / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def as_rows(values: list) -> Dataset:
    rows = Dataset.from_dict({"audio": values, "labels": list(range(len(values)))})
    return rows.cast_column("audio", Audio(decode=False))


@pytest.mark.parametrize("kind", ["paths", "bytes"])
def test_lengths_come_from_headers(folder, kind):
    paths = [str(path) for path in sorted(folder.glob("*.*")) if path.suffix != ".csv"]
    contents = [{"path": path, "bytes": open(path, "rb").read()} for path in paths]
    rows = as_rows(paths if kind == "paths" else contents)
    expected = [len(load_waveform(path)) / 16000 for path in paths]
    np.testing.assert_allclose(read_clip_seconds(rows), expected, atol=1e-3)
    by_length = sort_by_length(rows)
    np.testing.assert_allclose(read_clip_seconds(by_length), sorted(expected), atol=1e-3)
    assert sorted(by_length["labels"]) == list(range(60)) != by_length["labels"]


@pytest.mark.parametrize(
    "content, words", [(None, "no such file"), (b"no sound", "cannot be decoded")], ids=["missing", "broken"]
)
def test_a_clip_whose_length_cannot_be_read_is_named(tmp_path, folder, content, words):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=f"{path}: {words}"):
        read_clip_seconds(as_rows([str(folder / "1.flac"), str(path)]))
    with pytest.raises(AudioError, match=f"{path}: {words}"):
        sort_by_length(as_rows([str(folder / "1.flac"), str(path)]))


# The recipe's key


def test_the_key_makes_the_extractor_and_none_keeps_the_checkpoints(tmp_path):
    config = make_tiny_config()
    random_model(config).save_pretrained(tmp_path)
    FREE.save_pretrained(tmp_path)
    for name, given, expected in (
        ("tiny224", None, "max_length"),
        ("tiny224", "longest", "longest"),
        (str(tmp_path), None, "longest"),
        (str(tmp_path), "max_length", "max_length"),
    ):
        extractor = build_feature_extractor(ModelArguments(model_name_or_path=name, padding=given), config)
        assert (extractor.padding, extractor.min_length, extractor.max_length) == (expected, config.patch_size, 64)


COMMON = {
    **{"model_name_or_path": "tiny224", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 64, "max_length": 128, "num_mel_bins": 32, "time_stride": 16},
    **{
        "split_column_name": "split",
        "do_train": "true",
        "num_train_epochs": 2,
        "global_batch_size": 2,
        "per_device_eval_batch_size": 2,
    },
    **{"learning_rate": 1e-3, "eval_strategy": "epoch", "save_strategy": "no", "use_cpu": "true"},
    **{"time_mask_frames": 20, "mixup_probability": 0.3, "dataloader_pin_memory": "false", "disable_tqdm": "true"},
}


def run(folder, output_dir, **settings) -> dict[str, float]:
    settings = COMMON | {"dataset_name": folder / "clips.csv", "output_dir": output_dir} | settings
    return script.main([f"--{key}={value}" for key, value in settings.items()])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run with padding longest: its folder, its metrics, and the masks of its batches."""
    output_dir, masks = tmp_path_factory.mktemp("runs") / "free", []

    def record(patch, collator: type, name: str) -> None:
        collate = collator.__call__

        def recorded(self, rows):
            batch = collate(self, rows)
            masks.append((name, batch["attention_mask"]))
            return batch

        patch.setattr(collator, "__call__", recorded)

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in vars(script) if name.startswith("plot_")]:
            patch.setattr(script, name, lambda *args, **options: None)
        record(patch, ASTDataCollator, "held out")
        record(patch, AugmentingCollator, "train")
        results = run(folder, output_dir, padding="longest")
    return output_dir, results, masks


def test_the_script_trains_on_batches_with_little_padding(trained, folder):
    _, results, masks = trained
    assert math.isfinite(results["train_loss"]) and {"validation_accuracy", "test_accuracy"} <= results.keys()
    for kind in ("train", "held out"):
        of_kind = [mask for name, mask in masks if name == kind]
        lengths = torch.cat([mask.sum(1) for mask in of_kind])
        assert lengths.max() == 128 and len({mask.shape[1] for mask in of_kind}) > 4
        mixed = lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))].view(-1, 2)
        grouped_frames, mixed_frames = sum(mask.numel() for mask in of_kind), 2 * mixed.amax(1).sum()
        assert grouped_frames - lengths.sum() < 0.4 * (mixed_frames - lengths.sum())


def test_the_saved_folder_keeps_the_length_of_a_clip(trained, folder):
    output_dir, *_ = trained
    extractor = ASTFeatureExtractor.from_pretrained(output_dir)
    assert (extractor.padding, extractor.max_length, extractor.min_length) == ("longest", 128, 16)
    model = ASTForAudioClassification.from_pretrained(output_dir).eval()
    waveform = load_waveform(folder / "1.flac")
    features = extractor(waveform, return_tensors="pt")
    assert features["input_values"].shape[1] == 1 + (len(waveform) - 400) // 160 < 128
    expected = dict(zip(model.config.id2label.values(), model(**features).logits.softmax(1)[0].tolist()))
    tags = pipeline("audio-classification", model=str(output_dir))({"raw": waveform.numpy(), "sampling_rate": 16000})
    assert {tag["label"]: tag["score"] for tag in tags} == pytest.approx(expected, abs=1e-5)


def test_evaluation_does_not_depend_on_the_batch(trained, folder, tmp_path, monkeypatch):
    output_dir, results, _ = trained
    monkeypatch.setattr(script, "tag_example", lambda *args: None)
    monkeypatch.setattr(script, "plot_classes", lambda *args: None)
    own = {"model_name_or_path": output_dir, "do_train": "false", "per_device_eval_batch_size": 1}
    dropped = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    monkeypatch.setattr("test_free_length.COMMON", {key: value for key, value in COMMON.items() if key not in dropped})
    again = run(folder, tmp_path / "again", eval_strategy="no", **own)
    for name in ("validation_loss", "test_loss", "validation_mAP", "test_mAP", "test_accuracy"):
        assert again[name] == pytest.approx(results[name], rel=1e-5)
    own_rows, again_rows = (
        (path / "per_class_test.csv").read_text().splitlines() for path in (output_dir, tmp_path / "again")
    )
    assert own_rows == again_rows


def test_the_model_card_says_whose_extractor_keeps_the_length(tmp_path):
    model = random_model(make_tiny_config())
    texts = []
    for extractor in (FIXED, FREE):
        write_model_card(tmp_path, model, extractor, None, None, {})
        texts.append((tmp_path / "README.md").read_text())
    assert "shorter clips padded" in texts[0] and "import modeling_ast" not in texts[0]
    assert "shorter clips as they are" in texts[1] and "import modeling_ast  # without it" in texts[1]


def test_the_data_check_does_not_warn_of_padding_that_is_not_there(folder, tmp_path, capsys):
    printed = []
    for padding in ("max_length", "longest"):
        settings = COMMON | {"dataset_name": folder / "clips.csv", "output_dir": tmp_path, "padding": padding}
        settings |= {"max_length": 400, "time_mask_frames": 60}
        check_data.main([f"--{key}={value}" for key, value in settings.items()])
        printed.append(capsys.readouterr().out)
    assert "are padding" in printed[0] and "can hide all of" in printed[0]
    assert "are padding" not in printed[1] and "can hide all of" not in printed[1]
