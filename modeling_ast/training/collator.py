"""Batches: decoded rows to what the model's forward takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_ast import ASTFeatureExtractor
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.augment import add_noise, clip_generator, crop, draw_mixing_weight, mask, mix, roll


class ASTDataCollator:
    """Waveforms and labels to `input_values` and `labels`, by the feature extractor's own steps.

    Between its steps training inserts its augmentation; evaluation is the same without the draws. The mean of each
    clip is removed first, as the original does.

    Where the extractor's padding is "longest", clips are cut to `max_length` but padded to the longest of their batch
    alone, and an `attention_mask` comes along. Augmentation then sees each clip at its own length: its features do not
    depend on what it is batched with.

    Args:
        extractor: Whose features the model is to learn.
        num_labels: Number of labels.
        multi_label: Whether `labels` is multi-hot: rows hold lists of labels, or one.
        augment: `None` for evaluation.
        rows: The decoded training rows, of which mixup draws its partners, uniformly; `None` where they cannot be
            indexed (a stream): partners then come from the batch.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        extractor: ASTFeatureExtractor,
        num_labels: int,
        multi_label: bool = False,
        augment: AugmentArguments | None = None,
        rows: Sequence[dict[str, Any]] | None = None,
        seed: int = 0,
    ):
        self.extractor = extractor
        self.num_labels = num_labels
        self.multi_label = multi_label
        self.augment = augment
        self.rows = rows
        self.seed = seed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: Each with `waveform` (float tensor (samples,)) and `labels` (a class index, or a list of them); for
                training also with `position`, which seeds the clip's draws.

        Returns:
            `input_values` (batch, frames, num_mel_bins), with `attention_mask` (batch, frames) where the padding is
            "longest", and `labels`: class indices (batch,); or weights (batch, num_labels), 0 or 1 without mixup, with
            several labels a clip or with mixup.
        """
        if self.augment is None:
            waveforms = [_centred(row["waveform"]) for row in rows]
            features = self.extractor(waveforms, return_tensors="pt", max_length=self.extractor.max_length)
            return {**features, "labels": self.labels(rows)}
        generators = [clip_generator(self.seed, row["position"]) for row in rows]
        waveforms = [self.cropped(row, generator) for row, generator in zip(rows, generators)]
        labels = self.labels(rows)
        if self.augment.mixup_probability > 0:
            labels = torch.stack([self.label_weights(row) for row in rows])
            pairs = [self.partner(rows, generator) for generator in generators]
            for index, (row, generator) in enumerate(zip(pairs, generators)):
                if row is not None:
                    weight = draw_mixing_weight(self.augment.mixup_alpha, generator)
                    waveforms[index] = mix(waveforms[index], self.cropped(row, generator), weight)
                    labels[index] = weight * labels[index] + (1 - weight) * self.label_weights(row)
        return {**self.augmented_features(waveforms, generators), "labels": labels}

    def cropped(self, row: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
        """A training clip's waveform without its mean; a part of it where a random crop is wanted."""
        waveform = row["waveform"]
        if self.augment.random_crop:
            samples = self.extractor.num_samples(self.extractor.max_length)
            waveform = crop(waveform, samples, generator)
        return _centred(waveform)

    def partner(self, rows: list[dict[str, Any]], generator: torch.Generator) -> dict[str, Any] | None:
        """With the recipe's probability, a row to mix in."""
        if torch.rand((), generator=generator) >= self.augment.mixup_probability:
            return None
        candidates = rows if self.rows is None else self.rows
        return candidates[int(torch.randint(len(candidates), (), generator=generator))]

    def augmented_features(
        self, waveforms: list[torch.Tensor], generators: list[torch.Generator]
    ) -> dict[str, torch.Tensor]:
        """Spectrograms of a training batch, masked, normalised, rolled and with noise, as the model takes them.

        Where clips keep their own length, masks and rolls of frames shrink with it.

        Source: Park et al., "SpecAugment on Large Scale Datasets" (2020), for time masks in proportion to the length.
        """
        extractor, augment, fill = self.extractor, self.augment, self.extractor.padding_value
        # Frames that would be cut are not computed.
        samples = extractor.num_samples(extractor.max_length)
        spectrograms = extractor.fbank([waveform[:samples] for waveform in extractor.to_waveforms(waveforms)])
        padding = extractor.normalize(torch.tensor(fill)).item() if extractor.do_normalize else fill
        features = []
        for spectrogram, generator in zip(spectrograms, generators):
            (full,) = extractor.fit_length([spectrogram], extractor.max_length)  # (frames, num_mel_bins)
            share = len(full) / extractor.max_length  # 1 where all are padded
            full = mask(full, 1, augment.freq_mask_bins, generator, fill)
            full = mask(full, 0, round(share * augment.time_mask_frames), generator, fill)
            if extractor.do_normalize:
                full = extractor.normalize(full)
            original = augment.original_noise_and_roll
            # The other way round than in the original, for noise on the padding that comes in; otherwise the same.
            full = roll(full, round(share * augment.roll_frames), len(spectrogram), generator, padding, original)
            features.append(add_noise(full, augment.max_noise, generator, original))
        batch = {"input_values": pad_sequence(features, batch_first=True, padding_value=padding)}
        if extractor.padding == "longest":
            batch["attention_mask"] = extractor.mask_frames(features, batch["input_values"].shape[1])
        return batch

    def labels(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        if not self.multi_label:
            return torch.tensor([row["labels"] for row in rows])
        return torch.stack([self.label_weights(row) for row in rows])

    def label_weights(self, row: dict[str, Any]) -> torch.Tensor:
        """1 for each label of a clip, as (num_labels,)."""
        weights = torch.zeros(self.num_labels)
        weights[row["labels"]] = 1.0
        return weights


def _centred(waveform: torch.Tensor) -> torch.Tensor:
    return waveform - waveform.mean()
