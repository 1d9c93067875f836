"""Batches of training: decoded rows, augmented, to what the model's forward takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.collating import ASTDataCollator, remove_mean
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.augment import (
    add_noise,
    amplify,
    clip_generator,
    draw_crop,
    draw_mixing_weight,
    mask,
    mix,
    roll,
)
from modeling_ast.training.rows import Choice, TrainingRows


class AugmentingCollator(ASTDataCollator):
    """Augmented waveforms and labels, by the feature extractor's own steps with the augmentation in between.

    Where the extractor's padding is "longest", augmentation sees each clip at its own length: its features do not
    depend on what it is batched with.

    Args:
        extractor: Whose features the model is to learn.
        num_labels: Number of labels.
        multi_label: Whether a clip may have several labels.
        augment: What is done.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        extractor: ASTFeatureExtractor,
        num_labels: int,
        multi_label: bool = False,
        *,
        augment: AugmentArguments,
        seed: int = 0,
    ):
        super().__init__(extractor, num_labels, multi_label)
        self.augment = augment
        self.seed = seed

    def prepare(
        self, read: Callable[[Choice | None], dict[str, Any]], position: int, rows: TrainingRows
    ) -> dict[str, Any]:
        """A row with what is drawn first, where it is read: the part of it that is taken, and what is mixed in.

        Args:
            read: Gives a part of the decoded row; all for `None`.
            position: Seeds all of the clip's draws.
            rows: The rows of which mixup draws a partner, uniformly.

        Returns:
            The row with its `generator` and, with the recipe's probability, its `partner` and the own `weight` in it.
        """
        return self.add_partner(self.take_part(read, position), rows)

    def take_part(self, read: Callable[[Choice | None], dict[str, Any]], position: int) -> dict[str, Any]:
        """The first half of `prepare`."""
        generator = clip_generator(self.seed, position)
        return {**read(self._choice(generator)), "position": position, "generator": generator}

    def add_partner(self, row: dict[str, Any], rows: TrainingRows) -> dict[str, Any]:
        """The second half of `prepare`."""
        generator, probability = row["generator"], self.augment.mixup_probability
        if probability > 0 and torch.rand((), generator=generator) < probability:
            partner = int(torch.randint(len(rows), (), generator=generator))
            row["weight"] = draw_mixing_weight(self.augment.mixup_alpha, generator)
            row["partner"] = rows.read(partner, self._choice(generator))
        return row

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: As `prepare` gives them.

        Returns:
            As `ASTDataCollator` gives them; with mixup, `labels` are weights (batch, num_labels).
        """
        features = self.augmented_features(self.augmented_waveforms(rows), [row["generator"] for row in rows])
        return {**features, **self.targets(rows)}

    def augmented_waveforms(self, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Waveforms of a training batch as its features are computed of, before they are cut."""
        waveforms = [remove_mean(row["waveform"]) for row in rows]
        for index, row in enumerate(rows):
            if "partner" in row:
                waveforms[index] = mix(waveforms[index], remove_mean(row["partner"]["waveform"]), row["weight"])
            waveforms[index] = amplify(waveforms[index], self.augment.gain_db, row["generator"])
        return waveforms

    def labels(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        """As `ASTDataCollator` gives them, and with mixup the weights of both clips' labels."""
        if self.augment.mixup_probability == 0:
            return super().labels(rows)
        labels = torch.stack([self.label_weights(row) for row in rows])
        for index, row in enumerate(rows):
            if "partner" in row:
                weight = row["weight"]
                labels[index] = weight * labels[index] + (1 - weight) * self.label_weights(row["partner"])
        return labels

    def _choice(self, generator: torch.Generator) -> Choice | None:
        """What is read of a longer clip: any part where a random crop is wanted, else all, whose mean is removed."""
        if not self.augment.random_crop:
            return None
        samples = self.extractor.num_samples(self.extractor.max_length)
        state = generator.get_state()  # so that it may be asked again, of this clip or of one in its place
        return lambda length: draw_crop(length, samples, generator.set_state(state))

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
            for _ in range(augment.num_freq_masks):
                full = mask(full, 1, augment.freq_mask_bins, generator, fill)
            for _ in range(augment.num_time_masks):
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
