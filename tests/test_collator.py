"""Batches: features are the original's, augmentation keeps its rules, and only training is augmented."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_config, random_model
from datasets import Dataset

from modeling_ast import ASTFeatureExtractor, load_waveform
from modeling_ast.training.arguments import ASTTrainingArguments, AugmentArguments
from modeling_ast.training.augment import mask, roll
from modeling_ast.training.collator import ASTDataCollator
from modeling_ast.training.trainer import ASTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

# Mean and deviation of ESC-50, Speech Commands and AudioSet, by the length of their spectrograms.
# Source: the original's recipes.
STATISTICS = {512: (-6.6268077, 5.358466), 128: (-6.845978, 5.5654526), 1024: (-4.2677393, 4.5689974)}
EXTRACTOR = ASTFeatureExtractor(num_mel_bins=32, max_length=64, mean=-5.0, std=4.0)
MASKS = AugmentArguments(freq_mask_bins=12, time_mask_frames=24)


def make_rows(*lengths: int, labels: list | None = None) -> list[dict]:
    """Noise far from mean 0, to be noticed if it stays there."""
    generator = torch.Generator().manual_seed(0)
    waveforms = [0.3 + 0.1 * torch.randn(length, generator=generator) for length in lengths]
    return [
        {"waveform": waveform, "labels": label} for waveform, label in zip(waveforms, labels or [0] * len(lengths))
    ]


def collate(rows, augment=None, **options) -> torch.Tensor:
    return ASTDataCollator(EXTRACTOR, num_labels=3, augment=augment, **options)(rows)["input_values"]


# Features


@pytest.mark.parametrize("lengths", [(8000, 8000, 8000), (8000, 400, 16000)], ids=["one length", "several lengths"])
def test_evaluation_features_are_the_extractors_on_mean_free_waveforms(lengths):
    rows = make_rows(*lengths)
    expected = EXTRACTOR([row["waveform"] - row["waveform"].mean() for row in rows], return_tensors="pt")
    actual = collate(rows)
    assert actual.shape == (3, 64, 32) and actual.dtype == torch.float32
    assert torch.equal(actual, expected["input_values"])


def test_rows_are_left_as_they_were():
    rows = make_rows(8000)
    before = rows[0]["waveform"].clone()
    collate(rows, MASKS)
    assert torch.equal(rows[0]["waveform"], before)


@pytest.mark.parametrize("max_length", STATISTICS)
def test_features_equal_the_original(reference, max_length):
    expected = np.load(reference / "fbank.npz")
    mean, std = STATISTICS[max_length]
    collator = ASTDataCollator(ASTFeatureExtractor(max_length=max_length, mean=mean, std=std), num_labels=50)
    rows = [{"waveform": load_waveform(reference / "audio16k" / name), "labels": 0} for name in expected["names"]]
    for index, features in enumerate(collator(rows)["input_values"]):
        np.testing.assert_allclose(features, expected[f"fbank_{max_length}_{index}"], atol=1e-4, rtol=0)


def test_normalisation_can_be_off():
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=64, do_normalize=False)
    rows = make_rows(8000)
    expected = extractor([row["waveform"] - row["waveform"].mean() for row in rows], return_tensors="pt")
    assert torch.equal(ASTDataCollator(extractor, 3)(rows)["input_values"], expected["input_values"])


# Labels


def test_index_labels_are_indices():
    batch = ASTDataCollator(EXTRACTOR, num_labels=3)(make_rows(800, 800, labels=[2, 0]))
    assert batch["labels"].tolist() == [2, 0] and batch["labels"].dtype == torch.int64


def test_lists_of_labels_become_multi_hot():
    rows = make_rows(800, 800, 800, labels=[[2, 0], [1], []])
    batch = ASTDataCollator(EXTRACTOR, num_labels=3, multi_label=True)(rows)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]] and batch["labels"].dtype == torch.float32


# Masks


@pytest.mark.parametrize("dim", [1, 2])
def test_masks_are_one_stretch_of_the_widths_of_the_original(dim):
    """Spec: width floor(U(0, 24)), so 0 to 23 and 11.5 in the mean; start floor(U(0, size - width))."""
    torch.manual_seed(0)
    masked = mask(torch.ones(4000, 64, 48), dim, 24) == 0
    assert torch.equal(masked.any(2 if dim == 1 else 1), masked.all(2 if dim == 1 else 1))  # over the whole other axis
    masked = masked.any(2 if dim == 1 else 1).int()  # (clips, size)
    width = masked.sum(1)
    assert width.unique().tolist() == list(range(24))
    assert width.float().mean().item() == pytest.approx(11.5, abs=0.4)
    edges = torch.diff(torch.nn.functional.pad(masked, (1, 1))).clamp(min=0).sum(1)
    assert torch.equal(edges, (width > 0).long())  # no more than one beginning
    covered = masked.sum(0) > 0  # anywhere, but for the last cell: start + width is always below the size
    assert covered[:-1].all() and not covered[-1]


@pytest.mark.parametrize("dim", [1, 2])
def test_masks_are_torchaudios_for_the_same_draws(dim):
    from torchaudio.functional import mask_along_axis

    spectrogram = torch.ones(1, 64, 48)
    for seed in range(100):
        torch.manual_seed(seed)
        actual = mask(spectrogram, dim, 24)
        torch.manual_seed(seed)
        assert torch.equal(actual, mask_along_axis(spectrogram, mask_param=24, mask_value=0.0, axis=dim))


def test_masks_differ_between_the_clips_of_a_batch():
    torch.manual_seed(0)
    masked = mask(mask(torch.ones(8, 64, 48), 1, 24), 2, 24) == 0
    assert len({tuple(clip.flatten().tolist()) for clip in masked}) == 8


def test_mask_leaves_its_input_alone():
    spectrograms = torch.ones(4, 64, 48)
    mask(spectrograms, 1, 24)
    assert spectrograms.eq(1).all()


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("max_width", [10, 11, 500])
def test_mask_wider_than_the_axis_works(dim, max_width):
    torch.manual_seed(0)
    shape = (500, 10, 6) if dim == 1 else (500, 6, 10)
    width = (mask(torch.ones(shape), dim, max_width) == 0).any(3 - dim).sum(1)
    assert width.min() >= 0 and width.max() == (9 if max_width == 10 else 10)


def test_mask_of_0_or_1_covers_nothing():
    spectrograms = torch.randn(50, 64, 48, generator=torch.Generator().manual_seed(0))
    for max_width in (0, 1):
        assert torch.equal(mask(spectrograms, 1, max_width), spectrograms)


def test_masks_are_filled_with_0_before_normalisation():
    """As in the original: after normalisation that is not 0 but loud, the value of padding."""
    rows = make_rows(*[16000] * 20)
    plain = collate(rows)
    torch.manual_seed(0)
    augmented = collate(rows, MASKS)
    fill = EXTRACTOR.normalize(torch.tensor(0.0))
    masked = augmented != plain
    assert 0.1 < masked.float().mean() < 0.6
    assert augmented[masked].eq(fill).all()


def test_no_augmentation_is_what_evaluation_gets():
    rows = make_rows(8000, 16000)
    assert torch.equal(collate(rows, AugmentArguments()), collate(rows))


@pytest.mark.parametrize("name", ["freq_mask_bins", "time_mask_frames", "roll_frames"])
def test_negative_augmentation_is_refused(name):
    with pytest.raises(ValueError, match=f"Expected {name} of at least 0, got -1"):
        AugmentArguments(**{name: -1})


# Roll


def test_roll_is_circular_and_within_its_range():
    torch.manual_seed(0)
    spectrogram = torch.arange(64.0)[:, None].expand(64, 3)
    rolled = roll(spectrogram.expand(500, 64, 3), 10)
    shifts = []
    for clip in rolled:
        shift = int(-clip[0, 0]) % 64
        assert torch.equal(clip, spectrogram.roll(shift, dims=0))
        shifts.append(shift - 64 if shift >= 32 else shift)
    assert set(shifts) == set(range(-10, 10))


def test_roll_moves_the_normalised_features():
    rows = make_rows(*[8000] * 12)  # 48 frames, then padding, which rolls too
    plain = collate(rows)
    torch.manual_seed(0)
    rolled = collate(rows, AugmentArguments(roll_frames=10))
    found = [[shift for shift in range(-10, 10) if torch.equal(a, b.roll(shift, 0))] for a, b in zip(rolled, plain)]
    assert all(len(shifts) == 1 for shifts in found)
    assert len({shifts[0] for shifts in found}) > 3


def test_roll_by_more_than_the_clip_works():
    torch.manual_seed(0)
    rolled = roll(torch.arange(5.0)[None, :, None].expand(20, 5, 1), 100)
    assert rolled.sort(1).values.eq(torch.arange(5.0)[None, :, None]).all()


# Draws


def test_same_torch_seed_gives_the_same_batch_and_another_one_another():
    rows = make_rows(*[16000] * 4)
    augment = AugmentArguments(freq_mask_bins=12, time_mask_frames=24, roll_frames=10)
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(collate(rows, augment))
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


def test_draws_are_torchs_alone():
    rows = make_rows(*[16000] * 4)
    batches = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(0)
        batches.append(collate(rows, MASKS))
    assert torch.equal(*batches)


# Trainer


def test_trainer_augments_training_and_nothing_else(tmp_path):
    rows = make_rows(*[10640] * 8, labels=[0, 1] * 4)  # 65 frames
    dataset = Dataset.from_dict({"number": list(range(8))}).with_transform(
        lambda batch: {name: [rows[number][name] for number in batch["number"]] for name in ("waveform", "labels")}
    )
    config = make_tiny_config(num_labels=3)
    plain = ASTDataCollator(EXTRACTOR, 3)
    trainer = ASTTrainer(
        model=random_model(config),
        args=ASTTrainingArguments(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, report_to="none"),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=plain,
        train_collator=ASTDataCollator(EXTRACTOR, 3, augment=MASKS),
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
