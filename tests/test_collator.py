"""Batches: features are the original's, augmentation keeps its rules, and only training is augmented."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import call_with_portable_fft, make_tiny_config, random_model
from datasets import Dataset
from helpers import prepare, write_sound
from scipy.stats import chisquare, kstest
from torch.utils.data import DataLoader
from torchaudio.transforms import FrequencyMasking, TimeMasking

from modeling_ast import ASTFeatureExtractor, PaSSTFeatureExtractor, load_waveform
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import BadClips, DecodeAudio
from modeling_ast.training import collator as collator_module
from modeling_ast.training.arguments import ASTTrainingArguments, AugmentArguments
from modeling_ast.training.augment import (
    clip_generator,
    draw_mask,
    draw_mixing_weight,
    draw_noise,
    draw_shift,
    mix,
    roll,
)
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.features import AugmentedFeatures
from modeling_ast.training.rows import TrainingRows, cut
from modeling_ast.training.sampling import TrainingSampler
from modeling_ast.training.trainer import ASTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

# Mean and deviation of ESC-50, Speech Commands and AudioSet, by the length of their spectrograms.
# Source: the original's recipes.
STATISTICS = {512: (-6.6268077, 5.358466), 128: (-6.845978, 5.5654526), 1024: (-4.2677393, 4.5689974)}
EXTRACTOR = ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-5.0, std=4.0)
LONG = 10480  # samples of 64 frames, which need no padding
FRAME = ASTFeatureExtractor(num_mel_bins=8, max_length=1)  # for tests that look at labels, and at many of them
MASKS = AugmentArguments(freq_mask_bins=12, time_mask_frames=24)
ALWAYS = AugmentArguments(mixup_probability=1.0)
EVERYTHING = AugmentArguments(
    mixup_probability=0.5, random_crop=True, freq_mask_bins=12, time_mask_frames=24, max_noise=0.1, roll_frames=10
)


def make_rows(*lengths: int, labels: list | None = None, first_position: int = 0) -> list[dict]:
    """Noise far from mean 0, to be noticed if it stays there."""
    generator = torch.Generator().manual_seed(0)
    waveforms = [0.3 + 0.1 * torch.randn(length, generator=generator) for length in lengths]
    return [
        {"waveform": waveform, "labels": label, "position": position}
        for position, (waveform, label) in enumerate(zip(waveforms, labels or [0] * len(lengths)), first_position)
    ]


class rows_of(list):
    """Rows as a table has them."""

    def __getitems__(self, indices: list[int]) -> list[dict]:
        return [self[index] for index in indices]


def at_positions(row: dict, count: int) -> list[dict]:
    """One clip at many positions."""
    return [{**row, "position": position} for position in range(count)]


def collate(batch, augment=None, extractor=EXTRACTOR, num_labels=3, rows=None, **options) -> dict[str, torch.Tensor]:
    """Without rows to draw partners from, these come from the batch."""
    if augment is None:
        return ASTDataCollator(extractor, num_labels, **options)(batch)
    collator = AugmentingCollator(extractor, num_labels, augment=augment, **options)
    return collator(prepare(collator, batch, batch if rows is None else rows))


def features(batch, augment=None, **options) -> torch.Tensor:
    return collate(batch, augment, **options)["input_values"]


def centred(waveform: torch.Tensor) -> torch.Tensor:
    return waveform - waveform.mean()


def extracted(*waveforms: torch.Tensor) -> torch.Tensor:
    """What the extractor alone makes of them."""
    return EXTRACTOR(list(waveforms), return_tensors="pt")["input_values"]


@pytest.fixture
def fixed_weight(monkeypatch):
    """Sets the weight of the anchor in every mixup."""
    return lambda weight: monkeypatch.setattr(collator_module, "draw_mixing_weight", lambda *_: weight)


# Features


@pytest.mark.parametrize("lengths", [(8000, 8000, 8000), (8000, 400, 16000)], ids=["one length", "several lengths"])
def test_evaluation_features_are_the_extractors_on_mean_free_waveforms(lengths):
    rows = make_rows(*lengths)
    actual = features(rows)
    assert actual.shape == (3, 64, 32) and actual.dtype == torch.float32
    expected = extracted(*(centred(row["waveform"]) for row in rows))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_rows_are_left_as_they_were():
    rows = make_rows(8000, 16000)
    before = [row["waveform"].clone() for row in rows]
    features(rows)
    features(rows, EVERYTHING, rows=rows)
    assert all(torch.equal(row["waveform"], waveform) for row, waveform in zip(rows, before))


@pytest.mark.parametrize("padding", ["max_length", "longest"])
@pytest.mark.parametrize("mixup_probability", [0.0, 1.0])
def test_frames_that_are_cut_are_not_computed_and_all_else_is_equal(monkeypatch, computed, padding, mixup_probability):
    """Up to the rounding of float32, since clips of one length are computed together."""
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-5.0, std=4.0, padding=padding)
    # A minute, and around the length of 64 frames.
    rows = make_rows(960_000, LONG - 1, LONG, LONG + 1, LONG + 159, LONG + 160, 30_000, 400, 8000)
    settings = {"freq_mask_bins": 12, "time_mask_frames": 24, "max_noise": 0.1, "roll_frames": 10}
    augment = AugmentArguments(mixup_probability=mixup_probability, **settings)
    actual = collate(rows, augment, extractor, rows=rows)
    assert max(computed) == LONG and len(computed) == len(rows)
    monkeypatch.setattr(extractor, "num_samples", lambda num_frames: 10**9)  # nothing is cut before
    expected = collate(rows, augment, extractor, rows=rows)
    assert max(computed) == 960_000
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def features_of_the_originals_clips(reference) -> dict[str, np.ndarray]:
    names = np.load(reference / "fbank.npz")["names"]
    rows = [{"waveform": load_waveform(reference / "audio16k" / name), "labels": 0} for name in names]
    found = {}
    for max_length, (mean, std) in STATISTICS.items():
        collator = ASTDataCollator(ASTFeatureExtractor(max_length=max_length, mean=mean, std=std), num_labels=50)
        for index, clip in enumerate(collator(rows)["input_values"]):
            found[f"fbank_{max_length}_{index}"] = clip.numpy()
    return found


@pytest.mark.slow  # a process of its own; the quick part has the extractor's
def test_features_equal_the_original(reference, tmp_path):
    found = call_with_portable_fft(__name__, "features_of_the_originals_clips", reference, tmp_path / "found.npz")
    expected = np.load(reference / "fbank.npz")
    assert len(found) == 3 * len(expected["names"])
    for name, features_of_clip in found.items():
        np.testing.assert_allclose(features_of_clip, expected[name], atol=1e-4, rtol=0, err_msg=name)


def test_normalisation_can_be_off():
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=64, do_normalize=False)
    rows = make_rows(8000)
    expected = extractor([centred(row["waveform"]) for row in rows], return_tensors="pt")["input_values"]
    for augment in (None, AugmentArguments()):
        assert torch.equal(features(rows, augment, extractor=extractor), expected)


def test_evaluation_needs_no_position_and_does_not_look_at_it():
    rows = make_rows(8000, 16000)
    without = [{name: row[name] for name in ("waveform", "labels")} for row in rows]
    assert torch.equal(features(without), features(rows))


# Labels


def test_index_labels_are_indices_where_nothing_is_mixed():
    for augment in (None, MASKS):
        labels = collate(make_rows(800, 800, labels=[2, 0]), augment)["labels"]
        assert labels.tolist() == [2, 0] and labels.dtype == torch.int64


def test_lists_of_labels_become_multi_hot():
    rows = make_rows(800, 800, 800, labels=[[2, 0], [1], []])
    for augment in (None, MASKS):
        labels = collate(rows, augment, multi_label=True)["labels"]
        assert labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]] and labels.dtype == torch.float32


# Mixup


@pytest.mark.parametrize("case", range(3))
def test_mixup_equals_the_original(reference, fixed_weight, case):
    expected = np.load(reference / "fbank.npz")
    mean, std = STATISTICS[1024]
    anchor, partner = (
        {
            "waveform": load_waveform(reference / "audio16k" / expected["names"][index]),
            "labels": [7 * int(index)],
            "position": 0,
        }
        for index in expected[f"mixup{case}_pair"]
    )
    fixed_weight(float(expected[f"mixup{case}_lambda"]))
    extractor = ASTFeatureExtractor(max_length=1024, mean=mean, std=std)
    batch = collate([anchor], ALWAYS, extractor, num_labels=50, multi_label=True, rows=[partner])
    frames = expected[f"mixup{case}_fbank"].shape[0]
    np.testing.assert_allclose(
        batch["input_values"][0, :frames], expected[f"mixup{case}_fbank"], atol=1e-4, rtol=0, verbose=True
    )
    assert batch["input_values"][0, frames:].eq(extractor.normalize(torch.tensor(0.0))).all()  # nothing but padding
    np.testing.assert_allclose(batch["labels"][0], expected[f"mixup{case}_label"], atol=1e-6)


@pytest.mark.parametrize(("own", "other"), [(8000, 8000), (8000, 3000), (3000, 8000)])
def test_mixup_keeps_the_length_of_the_anchor_and_no_mean(own, other):
    """Against the formula, with numpy in double precision."""
    anchor, partner = (centred(row["waveform"]) for row in make_rows(own, other))
    mixed = mix(anchor, partner, 0.3)
    a, b = anchor.double().numpy(), partner.double().numpy()
    b = np.concatenate([b, np.zeros(max(0, own - other))])[:own]
    expected = 0.3 * a + 0.7 * b
    np.testing.assert_allclose(mixed, expected - expected.mean(), atol=1e-6)
    assert len(mixed) == own and abs(mixed.mean().item()) < 1e-6


def test_the_mean_of_both_clips_goes_before_they_are_mixed(fixed_weight):
    """The end of a long anchor, over which its partner is padded, would otherwise stand beside a step."""
    fixed_weight(0.5)
    anchor, partner = make_rows(8000, 4000)
    loud = {**partner, "waveform": partner["waveform"] + 5}
    mixed = [features([anchor], ALWAYS, rows=[row]) for row in (partner, loud)]
    torch.testing.assert_close(mixed[0], mixed[1], atol=2e-3, rtol=0)  # 5 + x keeps fewer digits of x
    louder = {**anchor, "waveform": anchor["waveform"] + 5}
    torch.testing.assert_close(features([louder], ALWAYS, rows=[partner]), mixed[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_weight_is_the_anchors(fixed_weight, weight):
    fixed_weight(weight)
    anchor, partner = make_rows(8000, 8000, labels=[0, 2])
    batch = collate([anchor], ALWAYS, rows=[partner])
    alone = anchor if weight == 1 else partner
    torch.testing.assert_close(batch["input_values"], features([alone]), atol=1e-4, rtol=0)
    assert batch["labels"].tolist() == [[weight, 0, 1 - weight]]


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ([0], [2], [0.25, 0, 0.75]),
        ([0, 1], [1, 2], [0.25, 1, 0.75]),  # what both have stays whole
        ([1], [1], [0, 1, 0]),
        ([], [2], [0, 0, 0.75]),
        ([0, 0], [2], [0.25, 0, 0.75]),  # named twice is named once
        (0, 2, [0.25, 0, 0.75]),
    ],
)
def test_labels_are_added_with_their_weights(fixed_weight, own, others, expected):
    fixed_weight(0.25)
    anchor, partner = make_rows(800, 800, labels=[own, others])
    labels = collate([anchor], ALWAYS, multi_label=isinstance(own, list), rows=[partner])["labels"]
    assert labels.tolist() == [expected] and labels.dtype == torch.float32


def test_soft_labels_of_single_label_clips_sum_to_1():
    rows = make_rows(*[400] * 60, labels=[0, 1, 2] * 20)
    labels = collate(rows, AugmentArguments(mixup_probability=0.5), FRAME, rows=rows)["labels"]
    assert labels.shape == (60, 3) and (labels > 0).sum(1).max() == 2
    torch.testing.assert_close(labels.sum(1), torch.ones(60))


def test_soft_labels_train_with_cross_entropy():
    """The original cuts them off to whole numbers, which made mixed pairs class 0."""
    rows = make_rows(LONG, LONG, labels=[1, 2])
    batch = collate(rows, ALWAYS, rows=make_rows(LONG, labels=[0]))
    model = random_model(make_tiny_config(num_labels=3, problem_type="single_label_classification"))
    output = model(**batch)
    expected = -(batch["labels"] * output.logits.log_softmax(1)).sum(1).mean()
    assert 0.1 < batch["labels"].max(1).values.max() < 0.9
    torch.testing.assert_close(output.loss, expected)


def test_mixing_weights_have_the_distribution_of_the_original():
    """Beta(10, 10), by the labels that come out."""
    (anchor, partner) = make_rows(400, 400, labels=[0, 1])
    weights = collate(at_positions(anchor, 2000), ALWAYS, FRAME, rows=[partner])["labels"][:, 0].numpy()
    assert kstest(weights, "beta", args=(10, 10)).pvalue > 0.01
    assert weights.mean() == pytest.approx(0.5, abs=0.01) and weights.std() == pytest.approx(0.109, abs=0.008)


@pytest.mark.parametrize("alpha", [1, 3])
def test_mixing_weights_follow_alpha(alpha):
    (anchor, partner) = make_rows(400, 400, labels=[0, 1])
    augment = AugmentArguments(mixup_probability=1.0, mixup_alpha=alpha)
    weights = collate(at_positions(anchor, 1000), augment, FRAME, rows=[partner])["labels"][:, 0].numpy()
    assert kstest(weights, "beta", args=(alpha, alpha)).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.5, 10.5, 250.5])
def test_mixing_weights_follow_any_alpha(alpha):
    weights = [draw_mixing_weight(alpha, clip_generator(0, position)) for position in range(2000)]
    assert kstest(weights, "beta", args=(alpha, alpha)).pvalue > 0.01
    assert weights[:9] == [draw_mixing_weight(alpha, clip_generator(0, position)) for position in range(9)]


def test_mixing_weights_of_a_tiny_alpha_are_those_of_one_clip_or_the_other():
    """None is lost, although numbers of Gamma(alpha) are below all that a float can hold."""
    weights = np.array([draw_mixing_weight(1e-4, clip_generator(0, position)) for position in range(1000)])
    is_end = (weights < 1e-6) | (weights > 1 - 1e-6)
    assert is_end.mean() > 0.98 and 0.45 < weights.mean() < 0.55


@pytest.mark.parametrize("alpha", [1, 10, 10.0])
def test_mixing_weights_of_whole_numbers_are_what_they_were(alpha):
    draws = torch.rand(2 * int(alpha) - 1, generator=clip_generator(0, 3))
    assert draw_mixing_weight(alpha, clip_generator(0, 3)) == draws.sort().values[int(alpha) - 1].item()


def test_partners_come_uniformly_from_the_whole_training_set():
    """Whatever is in the batch; the clip itself is one of them."""
    rows = make_rows(*[400] * 25, labels=list(range(25)))
    labels = collate(at_positions(rows[7], 2500), ALWAYS, FRAME, num_labels=25, rows=rows)["labels"]
    is_own = labels[:, 7] > 1 - 1e-6
    labels[:, 7] = is_own.float()
    counts = labels.argmax(1).bincount(minlength=25)
    assert is_own.sum() == counts[7]
    assert chisquare(counts.numpy()).pvalue > 0.01


def test_partners_of_the_batch_are_the_other_clip_of_each_two_in_a_row(fixed_weight):
    """As they are taken, with their own crops, and not read again: on any division of a batch into even parts."""
    fixed_weight(0.25)
    rows = make_rows(*[LONG + 100] * 8, labels=list(range(8)), first_position=16)
    read = []

    def decode(row: dict, choose: Callable) -> dict:
        read.append(row["labels"])
        return cut(row, choose)

    augment = AugmentArguments(mixup_probability=1.0, mixup_partner="batch", random_crop=True)
    collator = AugmentingCollator(EXTRACTOR, 8, augment=augment)
    dataset, pairs = TrainingRows(rows_of(rows), collator.prepare, decode), [(16 + index, index) for index in range(8)]
    taken = dataset.__getitems__(pairs)
    assert read == list(range(8))
    for index, row in enumerate(taken):
        assert torch.equal(row["partner"]["waveform"], taken[index ^ 1]["waveform"])
    whole = collator(taken)
    expected = 0.25 * torch.eye(8) + 0.75 * torch.eye(8)[[1, 0, 3, 2, 5, 4, 7, 6]]
    assert torch.equal(whole["labels"], expected)
    parts = [collator(dataset.__getitems__(pairs[start : start + 2])) for start in range(0, 8, 2)]
    for name in whole:
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("probability", [0.1, 0.6])
def test_the_recipes_share_of_clips_is_mixed(probability):
    (anchor, partner) = make_rows(400, 400, labels=[0, 1])
    augment = AugmentArguments(mixup_probability=probability)
    labels = collate(at_positions(anchor, 2000), augment, FRAME, rows=[partner])["labels"]
    assert (labels[:, 1] > 0).float().mean().item() == pytest.approx(probability, abs=0.03)


def test_partners_are_decoded_by_the_transform_of_the_training_set(fixed_weight):
    fixed_weight(0.0)
    anchor, partner = make_rows(8000, 8000, labels=[0, 2])
    dataset = Dataset.from_dict({"number": [0]}).with_transform(
        lambda batch: {"waveform": [partner["waveform"]], "labels": [partner["labels"]]}
    )
    batch = collate([anchor], ALWAYS, rows=dataset)
    torch.testing.assert_close(batch["input_values"], features([partner]), atol=1e-4, rtol=0)
    assert batch["labels"].tolist() == [[0, 0, 1]]


# Crop


def test_the_head_of_a_longer_clip_is_the_default():
    rows = make_rows(LONG + 20)
    head = centred(rows[0]["waveform"])[:LONG]
    torch.testing.assert_close(features(rows, AugmentArguments()), extracted(head), atol=1e-4, rtol=0)


def test_random_crop_takes_any_part_of_a_longer_clip():
    (row,) = make_rows(LONG + 10)
    parts = extracted(*(centred(row["waveform"][start : start + LONG]) for start in range(11)))
    cropped = features(at_positions(row, 150), AugmentArguments(random_crop=True))
    difference = (cropped[:, None] - parts).abs().amax(dim=(2, 3))  # (positions, starts)
    assert difference.min(1).values.max() < 1e-4 < difference.topk(2, largest=False).values[:, 1].min()
    assert difference.argmin(1).unique().tolist() == list(range(11))


@pytest.mark.parametrize("length", [400, 8000, LONG])
def test_random_crop_leaves_clips_that_fit(length):
    rows = make_rows(length)
    assert torch.equal(features(rows, AugmentArguments(random_crop=True)), features(rows))


def test_random_crop_takes_any_part_of_partners_too(fixed_weight):
    fixed_weight(0.0)
    anchor, partner = make_rows(LONG, LONG + 10)
    augment = AugmentArguments(mixup_probability=1.0, random_crop=True)
    parts = extracted(*(centred(partner["waveform"][start : start + LONG]) for start in range(11)))
    cropped = features(at_positions(anchor, 100), augment, rows=[partner])
    difference = (cropped[:, None] - parts).abs().amax(dim=(2, 3))
    assert difference.min(1).values.max() < 1e-3
    assert len(difference.argmin(1).unique()) > 8


# Where the model is

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
KINDS = {
    "padded": ASTFeatureExtractor(num_mel_bins=32, max_length=64),
    "free": ASTFeatureExtractor(num_mel_bins=32, max_length=64, padding="longest", do_normalize=False),
    "PaSST": PaSSTFeatureExtractor(num_mel_bins=32, max_length=64, padding="longest"),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("original", [False, True], ids=["ours", "original"])
@pytest.mark.parametrize("lengths", [(9000, 9000, 9000), (1300, 9000, 40000)], ids=["one length", "several lengths"])
@pytest.mark.parametrize("kind", KINDS)
def test_waveforms_that_are_handed_over_become_the_features_of_a_worker(kind, lengths, original, device):
    augment, extractor = replace(EVERYTHING, num_time_masks=2, original_noise_and_roll=original), KINDS[kind]
    rows = make_rows(*lengths, labels=[0, 1, 2])
    expected = collate(rows, augment, extractor=extractor)
    handed_over = collate(rows, augment, extractor=extractor, hands_over=True)
    assert "input_values" not in handed_over and torch.equal(handed_over["labels"], expected["labels"])
    # Each tensor is a file of its own for who gets it of a worker; of a clip that is not heard nothing goes.
    tensors = {"waveforms", "sources", "masked_bins", "noise", "labels", *expected} - {"input_values"}
    assert {name for name, value in handed_over.items() if torch.is_tensor(value)} == tensors
    assert handed_over["waveforms"].shape[1] <= max(extractor.num_samples(64), 400)
    there = {name: each.to(device) if torch.is_tensor(each) else each for name, each in handed_over.items()}
    found = AugmentedFeatures(extractor, augment).compute_handed_over(there)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].device.type == device and found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name].cpu(), tensor, atol=1e-5, rtol=0)


def one_by_one(waveform, generator, extractor, augment) -> torch.Tensor:
    """A clip's features, step by step: masked, normalised, rolled, and noise on it."""
    (spectrogram,) = extractor.fbank([waveform], extractor.max_length)
    length = extractor.max_length
    if extractor.padding == "longest":
        length = min(length, max(len(spectrogram), extractor.min_length))
    (full,) = extractor.fit_length([spectrogram], length, "max_length")
    share, fill = length / extractor.max_length, torch.tensor(extractor.padding_value)
    for _ in range(augment.num_freq_masks):
        full[:, draw_mask(extractor.num_mel_bins, augment.freq_mask_bins, generator)] = fill
    for _ in range(augment.num_time_masks):
        full[draw_mask(length, round(share * augment.time_mask_frames), generator)] = fill
    if extractor.do_normalize:
        full, fill = extractor.normalize(full), extractor.normalize(fill)
    original = augment.original_noise_and_roll
    shift = draw_shift(round(share * augment.roll_frames), generator)
    full = roll(full, shift, len(spectrogram), fill.item(), original)
    noise = draw_noise(full.shape, augment.max_noise, generator, original)
    return full if noise is None else full + noise


@pytest.mark.parametrize("original", [False, True], ids=["ours", "original"])
@pytest.mark.parametrize("max_noise", [0.0, 0.1])
@pytest.mark.parametrize("lengths", [(9000,), (9000, 9000), (1300, 9000, 40000)], ids=["one", "alike", "several"])
@pytest.mark.parametrize("kind", [*KINDS, "other padding"])
def test_a_batch_is_what_its_clips_are_step_by_step(kind, lengths, max_noise, original):
    kinds = KINDS | {"other padding": ASTFeatureExtractor(num_mel_bins=32, max_length=64, padding_value=1.5)}
    extractor, rows = kinds[kind], make_rows(*lengths, first_position=3)
    settings = {"num_time_masks": 2, "num_freq_masks": 2, "max_noise": max_noise, "mixup_probability": 0.0}
    augment = replace(EVERYTHING, **settings, random_crop=False, original_noise_and_roll=original)
    found = features(rows, augment, extractor=extractor)
    fill = torch.tensor(extractor.padding_value)
    fill = extractor.normalize(fill) if extractor.do_normalize else fill
    for row, own in zip(rows, found):
        generator = clip_generator(0, row["position"])
        expected = one_by_one(centred(row["waveform"]), generator, extractor, augment)
        torch.testing.assert_close(own[: len(expected)], expected, atol=1e-5, rtol=0)
        assert (own[len(expected) :] == fill).all()


# Masks


def mask(spectrogram, dim, max_width, generator):
    masked = spectrogram.clone()
    stretch = draw_mask(spectrogram.shape[dim], max_width, generator)
    masked[(slice(None),) * dim + (stretch,)] = 0
    return masked


@pytest.mark.parametrize("dim", [0, 1])
def test_masks_are_one_stretch_of_the_widths_of_the_original(dim):
    """Spec: width floor(U(0, 24)), so 0 to 23 and 11.5 in the mean; start floor(U(0, size - width))."""
    ones = torch.ones(32, 32)
    masked = torch.stack([mask(ones, dim, 24, clip_generator(0, position)) == 0 for position in range(4000)])
    assert torch.equal(masked.any(2 - dim), masked.all(2 - dim))  # over the whole other axis
    masked = masked.any(2 - dim).int()  # (clips, size)
    width = masked.sum(1)
    assert width.unique().tolist() == list(range(24))
    assert width.float().mean().item() == pytest.approx(11.5, abs=0.4)
    edges = torch.diff(torch.nn.functional.pad(masked, (1, 1))).clamp(min=0).sum(1)
    assert torch.equal(edges, (width > 0).long())  # no more than one beginning
    covered = masked.sum(0) > 0  # anywhere, but for the last cell: start + width is always below the size
    assert covered[:-1].all() and not covered[-1]


@pytest.mark.parametrize("max_width", [24, 48])
@pytest.mark.parametrize(("dim", "transform"), [(0, TimeMasking), (1, FrequencyMasking)])
def test_masks_are_torchaudios_for_the_same_draws(dim, transform, max_width):
    ones = torch.ones(64, 48)
    for seed in range(100):
        torch.manual_seed(seed)
        expected = transform(max_width)(ones.T[None])[0].T  # torchaudio's are (channel, frequency, time)
        actual = mask(ones, dim, max_width, torch.Generator().manual_seed(seed))
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("max_width", [10, 11, 500])
def test_mask_wider_than_the_axis_works(dim, max_width):
    ones = torch.ones((10, 6) if dim == 0 else (6, 10))
    widths = [
        (mask(ones, dim, max_width, clip_generator(0, position)) == 0).any(1 - dim).sum() for position in range(500)
    ]
    assert min(widths) >= 0 and max(widths) == (9 if max_width == 10 else 10)


def test_mask_of_0_or_1_covers_nothing():
    spectrogram = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    for position in range(50):
        for max_width in (0, 1):
            assert torch.equal(mask(spectrogram, 1, max_width, clip_generator(0, position)), spectrogram)


@pytest.mark.parametrize("dim", [0, 1])
def test_several_masks_cover_one_stretch_each_and_the_first_is_the_only_one_of_one(dim):
    key = ("num_time_masks", "num_freq_masks")[dim]
    sizes = {"time_mask_frames": 24 * (1 - dim), "freq_mask_bins": 8 * dim}
    (row,) = make_rows(LONG)
    plain = features([row])
    masked = [
        (features(at_positions(row, 40), AugmentArguments(**sizes, **{key: number})) != plain).all(2 - dim)
        for number in (1, 3)
    ]  # (clips, size)
    assert (masked[1] | ~masked[0]).all()  # what one mask covers is covered by it and others
    stretches = [torch.diff(torch.nn.functional.pad(each.int(), (1, 1))).clamp(min=0).sum(1).max() for each in masked]
    assert stretches == [1, 3]


def test_masks_differ_between_the_clips_of_a_batch_and_between_the_axes():
    (row,) = make_rows(LONG)
    changed = features(at_positions(row, 20), MASKS) != features([row])
    bins, frames = ([tuple(clip.all(dim).tolist()) for clip in changed] for dim in (0, 1))
    assert len(set(bins)) > 15 and len(set(frames)) > 15
    widths = np.array([(sum(of_bins) / 12, sum(of_frames) / 24) for of_bins, of_frames in zip(bins, frames)])
    assert abs(np.corrcoef(widths.T)[0, 1]) < 0.5


@pytest.mark.parametrize("padding_value", [0.0, -7.0])
def test_masks_are_filled_with_what_padding_holds_before_normalisation(padding_value):
    """As in the original: after normalisation that is not 0 but loud."""
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-5.0, std=4.0, padding_value=padding_value)
    rows = make_rows(*[16000] * 20)
    plain, augmented = (features(rows, augment, extractor=extractor) for augment in (None, MASKS))
    masked = augmented != plain
    assert 0.1 < masked.float().mean() < 0.6
    assert augmented[masked].eq(extractor.normalize(torch.tensor(padding_value))).all()


def test_no_augmentation_is_what_evaluation_gets():
    rows = make_rows(8000, 16000)
    assert torch.equal(features(rows, AugmentArguments()), features(rows))


# Gain


@pytest.mark.parametrize("augment", [AugmentArguments(), ALWAYS], ids=["alone", "mixed"])
def test_gain_moves_all_features_of_a_clip_alike(augment):
    """Of log-mel features g dB are g times ln(10) / 10, before normalisation; labels of mixup stay."""
    rows = make_rows(*[LONG] * 2, labels=[0, 1])
    clips = at_positions(rows[0], 300)
    plain, louder = (collate(clips, replace(augment, gain_db=gain), rows=rows) for gain in (0, 6))
    assert torch.equal(plain["labels"], louder["labels"])
    gains = (louder["input_values"] - plain["input_values"]) * 2 * EXTRACTOR.std
    spread = gains.amax((1, 2)) - gains.amin((1, 2))
    assert spread.max() < 1e-3
    decibels = gains.mean((1, 2)).numpy() * 10 / np.log(10)
    assert kstest(decibels, "uniform", args=(-6, 12)).pvalue > 0.01


@pytest.mark.parametrize("name", ["freq_mask_bins", "time_mask_frames", "roll_frames", "max_noise"])
def test_negative_augmentation_is_refused(name):
    with pytest.raises(ValueError, match=rf"Expected {name} in \[0, inf\), got -1"):
        AugmentArguments(**{name: -1})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mixup_probability": 8}, r"mixup_probability in \[0, 1\], got 8"),  # a known slip with the original
        ({"mixup_probability": -0.1}, r"mixup_probability in \[0, 1\], got -0.1"),
        ({"mixup_alpha": 0}, r"mixup_alpha in \(0, 1000\], got 0"),
        ({"mixup_partner": "batch"}, "mixup_partner has no effect without mixup_probability"),
        ({"gain_db": -1}, r"gain_db in \[0, 100\], got -1"),
        ({"num_time_masks": 0}, r"num_time_masks in \[1, inf\), got 0"),
        ({"num_freq_masks": 2, "time_mask_frames": 5}, "num_freq_masks has no effect without freq_mask_bins"),
        ({"num_time_masks": 2, "freq_mask_bins": 5}, "num_time_masks has no effect without time_mask_frames"),
        ({"original_noise_and_roll": True}, "no effect without max_noise or roll_frames"),
    ],
)
def test_augmentation_that_makes_no_sense_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        AugmentArguments(**settings)


# Noise


def noise_of(count: int = 300, **options) -> torch.Tensor:
    (row,) = make_rows(LONG)
    return features(at_positions(row, count), AugmentArguments(max_noise=0.1, **options)) - features([row])


def test_noise_is_centred_and_within_its_amplitude():
    noise = noise_of()
    assert noise.abs().max() < 0.05 + 1e-5
    amplitude = noise.amax(dim=(1, 2)) - noise.amin(dim=(1, 2))
    assert kstest(amplitude.numpy(), "uniform", args=(0, 0.1)).pvalue > 0.01
    assert noise.mean(dim=(1, 2)).abs().max() < 3e-3
    assert noise.mean().abs() < 1e-4


def test_noise_of_the_original_lies_above_zero():
    noise = noise_of(original_noise_and_roll=True)
    assert noise.min() > -1e-5 and noise.max() < 0.1 + 1e-5
    assert kstest(noise.amax(dim=(1, 2)).numpy(), "uniform", args=(0, 0.1)).pvalue > 0.01
    assert noise.mean().item() == pytest.approx(0.025, abs=2e-3)  # half of half of 0.1


def test_noise_is_uniform_and_each_cells_own():
    noise = noise_of(1, original_noise_and_roll=True)[0]
    assert kstest((noise / noise.max()).flatten().numpy(), "uniform").pvalue > 0.01
    assert noise.var(0).min() > 0 and noise.var(1).min() > 0


# Roll

SHIFTS = range(-10, 10)


def test_full_clips_go_round_within_their_range():
    (row,) = make_rows(LONG)
    plain = features([row])[0]
    rolled = features(at_positions(row, 300), AugmentArguments(roll_frames=10))
    shifts = [[shift for shift in SHIFTS if torch.equal(clip, plain.roll(shift, 0))] for clip in rolled]
    assert all(len(found) == 1 for found in shifts)
    counts = [sum(found[0] == shift for found in shifts) for shift in SHIFTS]
    assert chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("num_samples", [8000, 9840, LONG], ids=["48 frames", "60 frames", "64 frames"])
def test_roll_of_the_original_takes_padding_along(num_samples):
    rows = make_rows(*[num_samples] * 12)
    rolled = features(rows, AugmentArguments(roll_frames=10, original_noise_and_roll=True))
    found = [[s for s in SHIFTS if torch.equal(a, b.roll(s, 0))] for a, b in zip(rolled, features(rows))]
    assert all(len(shifts) == 1 for shifts in found)
    assert len({shifts[0] for shifts in found}) > 3


@pytest.mark.parametrize("num_samples", [8000, 9840], ids=["48 frames", "60 frames"])
def test_padded_clips_stay_one_stretch_with_padding_around(num_samples):
    """No frame of the clip comes to lie behind its padding: neither its first nor its last ones."""
    (row,) = make_rows(num_samples)
    frames = 1 + (num_samples - 400) // 160
    plain, padding = features([row])[0], EXTRACTOR.normalize(torch.tensor(0.0))
    shifts = set()
    for clip in features(at_positions(row, 100), AugmentArguments(roll_frames=10)):
        expected = {shift: torch.full_like(plain, padding) for shift in SHIFTS}
        for shift, moved in expected.items():
            first, last = max(0, shift), min(64, frames + shift)
            moved[first:last] = plain[first - shift : last - shift]
        found = [shift for shift, moved in expected.items() if torch.equal(clip, moved)]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 15


def test_roll_by_more_than_the_clip_works():
    frames = torch.arange(5.0)[:, None]
    for position in range(20):
        shift = draw_shift(100, clip_generator(0, position))
        assert torch.equal(roll(frames, shift, 5).sort(0).values, frames)


# Draws


def test_draws_of_a_clip_depend_on_its_position_and_on_nothing_else():
    """Not on the clips beside it, their order, or where the batch begins."""
    rows = make_rows(*[16000] * 6, labels=[0, 1, 2] * 2)
    whole = collate(rows, EVERYTHING, rows=rows)
    for order in ([5, 4, 3, 2, 1, 0], [2], [4, 0]):
        part = collate([rows[index] for index in order], EVERYTHING, rows=rows)
        torch.testing.assert_close(part["input_values"], whole["input_values"][order], atol=1e-4, rtol=0)
        assert torch.equal(part["labels"], whole["labels"][order])


def test_draws_differ_between_positions_and_between_seeds():
    (row,) = make_rows(16000)
    rows = make_rows(*[16000] * 3)
    first = features(at_positions(row, 20), EVERYTHING, rows=rows)
    other = features(at_positions(row, 20), EVERYTHING, rows=rows, seed=1)
    assert len({tuple(clip.flatten().tolist()) for clip in torch.cat([first, other])}) == 40


def test_draws_touch_no_global_state_and_depend_on_none():
    rows = make_rows(*[16000] * 4)
    batches = []
    for seed in (0, 1):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = torch.get_rng_state()
        batches.append(features(rows, EVERYTHING, rows=rows))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*batches)


def test_draws_of_neighbouring_positions_have_no_pattern():
    """Seeds that count upwards would do, too, but for generators whose first numbers then resemble each other."""
    first = np.array([torch.rand((), generator=clip_generator(0, position)).item() for position in range(2000)])
    assert kstest(first, "uniform").pvalue > 0.01
    for distance in (1, 2, 12):
        assert abs(np.corrcoef(first[distance:], first[:-distance])[0, 1]) < 0.06


class Decode:
    """A transform, as the training set's."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, batch):
        return {name: [self.rows[number][name] for number in batch["number"]] for name in ("waveform", "labels")}


def test_batches_do_not_depend_on_the_number_of_workers():
    rows = make_rows(*[LONG] * 8, labels=[0, 1] * 4)
    dataset = Dataset.from_dict({"number": list(range(8))}).with_transform(Decode(rows))
    collator = AugmentingCollator(EXTRACTOR, 3, augment=EVERYTHING)
    rows = TrainingRows(dataset, collator.prepare)
    epochs = []
    for num_workers in (0, 2):
        torch.manual_seed(num_workers)
        sampler = TrainingSampler(8, 4, seed=0)
        loader = DataLoader(rows, batch_size=4, sampler=sampler, collate_fn=collator, num_workers=num_workers)
        epochs.append(list(loader))
    for alone, by_workers in zip(*epochs, strict=True):
        assert torch.equal(alone["input_values"], by_workers["input_values"])
        assert torch.equal(alone["labels"], by_workers["labels"])


@pytest.mark.parametrize("augment", [EVERYTHING, AugmentArguments(mixup_probability=0.5)], ids=["crops", "whole"])
def test_parts_that_are_decoded_alone_are_those_of_decoded_clips(augment, tmp_path):
    """The same draws and the same samples, of partners and of clips in place of broken ones too."""
    rows = []
    for number, row in enumerate(make_rows(LONG + 30000, 8000, LONG + 100, LONG + 9000)):
        kind = (".wav", ".flac", ".ogg", ".flac")[number]
        path = write_sound(tmp_path / f"{number}{kind}", row["waveform"])
        rows.append({"audio": {"path": str(path), "bytes": None}, "labels": number % 3})
    rows.append({"audio": {"path": str(tmp_path / "broken.flac"), "bytes": None}, "labels": 0})
    write_sound(tmp_path / "broken.flac", torch.rand(2 * LONG)).write_bytes((tmp_path / "3.flac").read_bytes()[:999])
    dataset = Dataset.from_list(rows)
    to_waveform = DecodeAudio(16000, BadClips(tmp_path / "bad.csv", 1))
    collator = AugmentingCollator(EXTRACTOR, 3, augment=augment)

    def decode_all(row: dict, choose: Callable) -> dict:
        decoded = to_waveform.decode_row(row)
        return decoded if decoded["waveform"] is None else cut(decoded, choose)

    whole = TrainingRows(dataset, collator.prepare, decode_all)
    parts = TrainingRows(dataset, collator.prepare, to_waveform.decode_row)
    pairs = [(position, position % len(rows)) for position in range(60)]
    expected, found = whole.__getitems__(pairs), parts.__getitems__(pairs)
    assert any("partner" in row for row in found)
    for row, other in zip(expected, found, strict=True):
        assert torch.equal(row["waveform"], other["waveform"]) and row["labels"] == other["labels"]
        assert ("partner" in row) == ("partner" in other)
        if "partner" in row:
            assert row["weight"] == other["weight"]
            assert torch.equal(row["partner"]["waveform"], other["partner"]["waveform"])
    of_both = [collator(rows) for rows in (expected, found)]
    torch.testing.assert_close(of_both[0]["input_values"], of_both[1]["input_values"], atol=1e-5, rtol=0)


# Trainer


def test_trainer_augments_training_and_nothing_else(tmp_path):
    rows = make_rows(*[10640] * 8, labels=[0, 1] * 4)  # 65 frames
    dataset = Dataset.from_dict({"number": list(range(8))}).with_transform(Decode(rows))
    plain = ASTDataCollator(EXTRACTOR, 3)
    collator = AugmentingCollator(EXTRACTOR, 3, augment=MASKS)
    trainer = ASTTrainer(
        model=random_model(make_tiny_config(num_labels=3)),
        args=ASTTrainingArguments(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, report_to="none"),
        train_dataset=TrainingRows(dataset, collator.prepare),
        eval_dataset=dataset,
        data_collator=plain,
        train_collator=collator,
    )
    expected = plain(rows)
    for _ in range(2):  # the second time too: nothing stays exchanged
        training = next(iter(trainer.get_train_dataloader()))
        masked = training["input_values"].eq(EXTRACTOR.normalize(torch.tensor(0.0)))
        assert masked.float().mean() > 0.1
        for loader in (trainer.get_eval_dataloader(), trainer.get_test_dataloader(dataset)):
            batch = next(iter(loader))
            assert torch.equal(batch["input_values"], expected["input_values"])
            assert torch.equal(batch["labels"], expected["labels"])
