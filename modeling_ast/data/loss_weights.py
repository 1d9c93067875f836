"""How much each label counts in the loss of a training: balanced weights, and the table that a run keeps of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas

from modeling_ast.data.clip_tables import ClipCounts
from modeling_ast.data.files import written_beside

WEIGHTS_NAME = "loss_weights.csv"
MAX_SHOWN = 20  # weights in a sentence


def balanced_class_weights(of_labels: np.ndarray) -> np.ndarray:
    """Weights by which all labels of the training clips count alike: n / (K n_c), float64 (num_labels,).

    n are the labels of all clips, K the different ones among them, and n_c those of the class; of one label a clip n
    is the number of clips. Over these labels the mean weight is 1. A label that no clip has gets 1.

    Args:
        of_labels: Clips of each label, (num_labels,).

    Source: scikit-learn's `compute_class_weight("balanced")`.
    """
    weights, is_there = np.ones(len(of_labels)), of_labels > 0
    weights[is_there] = of_labels.sum() / (is_there.sum() * of_labels[is_there])
    return weights


def balanced_pos_weight(counts: ClipCounts) -> np.ndarray:
    """Weights by which the clips with a label count as much as those without, float64 (num_labels,).

    A label that no clip has, or every one, gets 1.

    Source: torch's `BCEWithLogitsLoss`, for clips without over clips with the label.
    """
    weights, negatives = np.ones(len(counts.of_labels)), counts.clips - counts.of_labels
    is_told = (counts.of_labels > 0) & (negatives > 0)
    weights[is_told] = negatives[is_told] / counts.of_labels[is_told]
    return weights


@dataclass(frozen=True)
class LossWeights:
    """What labels are multiplied by in a loss.

    Attributes:
        label_names: Of the labels.
        class_weights: Of the loss of each label, float64 (num_labels,); `None` means 1.
        pos_weight: Of the clips that have the label, among several a clip, likewise.
    """

    label_names: Sequence[str]
    class_weights: np.ndarray | None = None
    pos_weight: np.ndarray | None = None

    def __str__(self) -> str:
        kinds = {"class_weights": self.class_weights, "pos_weight": self.pos_weight}
        return "; ".join(f"{kind} {self._describe(found)}" for kind, found in kinds.items() if found is not None)

    def _describe(self, weights: np.ndarray) -> str:
        shown = [f"{weight:.4g} ({name})" for weight, name in zip(weights, self.label_names)]
        if (weights == weights[0]).all():
            return f"{weights[0]:.4g}"
        if len(shown) <= MAX_SHOWN:
            return ", ".join(shown)
        return f"from {shown[weights.argmin()]} to {shown[weights.argmax()]}"

    def write(self, path: str | os.PathLike) -> None:
        """As a table, a row a label; empty where there are none."""
        columns = {"label": self.label_names, "class_weight": self.class_weights, "pos_weight": self.pos_weight}
        with written_beside(path) as unfinished:
            pandas.DataFrame(columns).to_csv(unfinished, index=False, lineterminator="\r\n")

    @classmethod
    def read(cls, path: str | os.PathLike) -> "LossWeights":
        """What `write` wrote."""
        options = {"keep_default_na": False, "na_values": {"class_weight": [""], "pos_weight": [""]}}
        table = pandas.read_csv(path, dtype={"label": str}, **options)
        weights = (table[name].to_numpy(float) for name in ("class_weight", "pos_weight"))
        return cls(table["label"].tolist(), *(None if np.isnan(each).all() else each for each in weights))
