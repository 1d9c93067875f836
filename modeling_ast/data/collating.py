"""Batches: decoded rows to what the model's forward takes."""

from typing import Any

import torch

from modeling_ast import ASTFeatureExtractor


class ASTDataCollator:
    """Waveforms to `input_values`, by the feature extractor's own steps, and to `labels` what labels they have.

    The mean of each clip is removed first, as the original does. Where the extractor's padding is "longest", clips are
    cut to `max_length` but padded to the longest of their batch alone, and an `attention_mask` comes along.

    Args:
        extractor: Whose features the model takes.
        num_labels: Number of labels.
        multi_label: Whether `labels` is multi-hot: rows hold lists of labels, or one.
    """

    def __init__(self, extractor: ASTFeatureExtractor, num_labels: int, multi_label: bool = False):
        self.extractor = extractor
        self.num_labels = num_labels
        self.multi_label = multi_label

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: Each with `waveform` (float tensor (samples,)) and perhaps `labels` (a class index, or a list).

        Returns:
            `input_values` (batch, frames, num_mel_bins), with `attention_mask` (batch, frames) where the padding is
            "longest", and `labels`: class indices (batch,), or with several labels a clip 0 or 1, (batch, num_labels).
        """
        waveforms = [remove_mean(row["waveform"]) for row in rows]
        features = self.extractor(waveforms, return_tensors="pt", max_length=self.extractor.max_length)
        return {**features, **self.targets(rows)}

    def targets(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`labels` of a batch; nothing of clips without."""
        return {"labels": self.labels(rows)} if "labels" in rows[0] else {}

    def labels(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        if not self.multi_label:
            return torch.tensor([row["labels"] for row in rows])
        return torch.stack([self.label_weights(row) for row in rows])

    def label_weights(self, row: dict[str, Any]) -> torch.Tensor:
        """1 for each label of a clip, as (num_labels,)."""
        weights = torch.zeros(self.num_labels)
        weights[row["labels"]] = 1.0
        return weights


def remove_mean(waveform: torch.Tensor) -> torch.Tensor:
    return waveform - waveform.mean()
