"""Batches: decoded rows to what the model's forward takes."""

from typing import Any

import torch

from modeling_ast import ASTFeatureExtractor
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.augment import mask, roll


class ASTDataCollator:
    """Waveforms and labels to `input_values` and `labels`, by the feature extractor's own steps.

    Between its steps training inserts its augmentation; evaluation is the same without the draws. The mean of each
    clip is removed first, as the original does.

    Args:
        extractor: Whose features the model is to learn.
        num_labels: Number of labels.
        multi_label: Whether rows hold lists of labels; `labels` is then multi-hot.
        augment: `None` for evaluation.
    """

    def __init__(
        self,
        extractor: ASTFeatureExtractor,
        num_labels: int,
        multi_label: bool = False,
        augment: AugmentArguments | None = None,
    ):
        self.extractor = extractor
        self.num_labels = num_labels
        self.multi_label = multi_label
        self.augment = augment if augment is not None else AugmentArguments()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: Each with `waveform` (float tensor (samples,)) and `labels` (a class index, or a list of them).

        Returns:
            `input_values` (batch, max_length, num_mel_bins) and `labels`: class indices (batch,), or multi-hot
            (batch, num_labels).
        """
        waveforms = [row["waveform"] - row["waveform"].mean() for row in rows]
        return {"input_values": self.features(waveforms), "labels": self.labels([row["labels"] for row in rows])}

    def features(self, waveforms: list[torch.Tensor]) -> torch.Tensor:
        extractor, augment = self.extractor, self.augment
        spectrograms = extractor.fit_length(extractor.fbank(extractor.to_waveforms(waveforms)))
        spectrograms = mask(spectrograms, 2, augment.freq_mask_bins, extractor.padding_value)
        spectrograms = mask(spectrograms, 1, augment.time_mask_frames, extractor.padding_value)
        if extractor.do_normalize:
            spectrograms = extractor.normalize(spectrograms)
        return roll(spectrograms, augment.roll_frames)

    def labels(self, labels: list[int] | list[list[int]]) -> torch.Tensor:
        if not self.multi_label:
            return torch.tensor(labels)
        multi_hot = torch.zeros(len(labels), self.num_labels)
        for row, clip_labels in zip(multi_hot, labels):
            row[clip_labels] = 1.0
        return multi_hot
