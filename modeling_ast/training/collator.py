"""Batches of training: decoded rows, augmented, to what the model's forward takes."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.collating import ASTDataCollator, remove_mean
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.augment import clip_generator, draw_crop, draw_gain, draw_mixing_weight, mix
from modeling_ast.training.features import AugmentedFeatures, SpectrogramDraws
from modeling_ast.training.rows import Choice, TrainingRows
from modeling_ast.training.waveform_transform import WaveformTransform

Read = Callable[[Choice | None], dict[str, Any]]  # a part of a decoded row, or all of it


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
        hands_over: Whether waveforms are handed over, with what is drawn for their spectrograms, in place of features:
            for `AugmentedFeatures.compute_handed_over`, where the model is.
    """

    def __init__(
        self,
        extractor: ASTFeatureExtractor,
        num_labels: int,
        multi_label: bool = False,
        *,
        augment: AugmentArguments,
        seed: int = 0,
        hands_over: bool = False,
    ):
        super().__init__(extractor, num_labels, multi_label)
        self.augment = augment
        self.seed = seed
        self.features, self.hands_over = AugmentedFeatures(extractor, augment), hands_over
        name = augment.waveform_transform
        self.transform = None if name is None else WaveformTransform(name, extractor)

    def prepare(self, clips: Iterable[tuple[int, Read]], rows: TrainingRows | None = None) -> list[dict[str, Any]]:
        """Rows of a batch with what is drawn first, where they are read: the part that is taken, and what is mixed in.

        Args:
            clips: Positions, which seed all draws of their clips, and what reads a part of the decoded row.
            rows: Of which mixup draws a partner, uniformly, where it is not the other clip of a pair of the batch.

        Returns:
            The rows, each with its `generator`, its `gain` and, with the recipe's probability, its `partner` and the
            own `weight` in the mixture.
        """
        batch = [self.take_part(read, position) for position, read in clips]
        mixed = [self.add_partner(row, batch, rows) for row in batch]
        return [{**row, "gain": draw_gain(self.augment.gain_db, row["generator"])} for row in mixed]

    def take_part(self, read: Read, position: int) -> dict[str, Any]:
        """The beginning of `prepare`, of one clip."""
        generator = clip_generator(self.seed, position)
        return {**self._take(read, generator), "position": position, "generator": generator}

    def add_partner(
        self, row: dict[str, Any], batch: Sequence[dict[str, Any]], rows: TrainingRows | None
    ) -> dict[str, Any]:
        """What mixup does in `prepare`.

        Of a batch, the clips at an even position and at the next one are each other's partners, as they are taken.
        Their order is drawn, and so are they; and they are together however a batch is divided into even parts.
        """
        augment, generator = self.augment, row["generator"]
        if not (augment.mixup_probability and torch.rand((), generator=generator) < augment.mixup_probability):
            return row
        if augment.mixup_partner == "batch":
            weight = draw_mixing_weight(augment.mixup_alpha, generator)
            (partner,) = [each for each in batch if each["position"] == row["position"] ^ 1]
        else:
            index = int(torch.randint(len(rows), (), generator=generator))
            weight = draw_mixing_weight(augment.mixup_alpha, generator)
            partner = self._take(partial(rows.read, index), generator)
        return {**row, "weight": weight, "partner": partner}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: As `prepare` gives them.

        Returns:
            As `ASTDataCollator` gives them, or what is handed over in place of features; with mixup, `labels` are
            weights (batch, num_labels).
        """
        return {**self.collate(self.augmented_waveforms(rows), rows)[0], **self.targets(rows)}

    def collate(
        self, waveforms: list[torch.Tensor], rows: list[dict[str, Any]]
    ) -> tuple[dict[str, Any], list[SpectrogramDraws]]:
        """Features of waveforms, or what is handed over in their place, and what was drawn for their spectrograms."""
        waveforms = self.extractor.to_waveforms(waveforms)
        draws = [self.features.draw(len(each), row["generator"]) for each, row in zip(waveforms, rows)]
        make = self.features.hand_over if self.hands_over else self.features.compute
        return make(waveforms, draws), draws

    def augmented_waveforms(self, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Waveforms of a training batch as its features are computed of, before they are cut."""
        waveforms = [remove_mean(row["waveform"]) for row in rows]
        for index, row in enumerate(rows):
            if "partner" in row:
                waveforms[index] = mix(waveforms[index], remove_mean(row["partner"]["waveform"]), row["weight"])
            waveforms[index] *= row["gain"]
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

    def _take(self, read: Read, generator: torch.Generator) -> dict[str, Any]:
        row = read(self._choice(generator))
        return row if self.transform is None else self.transform(row, generator)

    def _choice(self, generator: torch.Generator) -> Choice | None:
        """What is read of a longer clip: any part where a random crop is wanted, else all, whose mean is removed."""
        if not self.augment.random_crop:
            return None
        samples = self.extractor.num_samples(self.extractor.max_length)
        state = generator.get_state()  # so that it may be asked again, of this clip or of one in its place
        return lambda length: draw_crop(length, samples, generator.set_state(state))
