"""The losses of a training: weights of labels in them, their means, and whether they are still finite."""

from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from modeling_ast.data.loss_weights import LossWeights


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor, weights: LossWeights, multi_label: bool) -> torch.Tensor:
    """As `classification_loss`, with weights of the labels: a sum over the batch, divided by the number of clips.

    It is not divided by the sum of the weights of the batch, as torch's cross entropy does with class indices, but not
    with soft labels: the weight of a clip would depend on what it is batched with, and a batch of one clip would have
    none. So the mean of the losses of parts of equal size is that of the whole, whatever accumulation steps and
    processes an update is divided into.

    Args:
        logits: Tensor of shape (batch, num_labels).
        labels: Class indices (batch,), or weights (batch, num_labels) in [0, 1] as mixup and smoothing make them.
        weights: Of the labels; with several a clip `class_weights` are those of their columns.
        multi_label: Whether a clip has several.

    Source: torch's `cross_entropy` of class probabilities with `weight`, and its `binary_cross_entropy_with_logits`
        with `weight` and `pos_weight`.
    """
    logits, labels = logits.float(), labels.to(logits.device)
    class_weights, pos_weight = (
        None if each is None else torch.as_tensor(each, dtype=torch.float32, device=logits.device)
        for each in (weights.class_weights, weights.pos_weight)
    )
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, labels.float(), weight=class_weights, pos_weight=pos_weight)
    if labels.ndim == 1:
        labels = F.one_hot(labels.long(), logits.shape[1])
    return F.cross_entropy(logits, labels.float(), weight=class_weights)


class TrainingLosses:
    """Sums of the losses of updates, since the last evaluation and since the beginning, on this process.

    Args:
        accelerator: Brings the sums of all processes together; methods that say so have to be called by all of them.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.total, self.total_updates = torch.zeros(()), 0.0
        self.not_finite = torch.zeros((), dtype=torch.long)  # the first update whose loss was not finite; 0 is none
        self.forget_recent()

    def forget_recent(self) -> None:
        """Begin the mean since the last evaluation anew."""
        self.recent, self.recent_updates = torch.zeros(()), 0.0

    def add(self, loss: torch.Tensor, share: float, update: int) -> None:
        """Take in the loss of a part of an update.

        Args:
            loss: Scalar.
            share: Of the update, in (0, 1].
            update: Its number, from 1.
        """
        self.recent, self.recent_updates = self.recent + share * loss, self.recent_updates + share
        self.total, self.total_updates = self.total + share * loss, self.total_updates + share
        # Remembered where the loss is: to look at it here would let a GPU wait for every update.
        before = self.not_finite.to(loss.device)
        is_first = (before == 0) & ~torch.isfinite(loss)
        self.not_finite = torch.where(is_first, torch.full_like(before, update), before)

    def recent_mean(self) -> float:
        """Mean since the last evaluation, of all processes together."""
        return self._gather(self.recent).mean().item() / max(self.recent_updates, 1)

    def mean(self) -> float:
        """Mean since the beginning of the run, of all processes together."""
        return self._gather(self.total).mean().item() / max(self.total_updates, 1)

    def first_not_finite(self) -> int | None:
        """The first update whose loss was not finite, of all processes together."""
        updates = self._gather(self.not_finite)
        return updates[updates > 0].min().item() if (updates > 0).any() else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, of all processes together: each goes on with its own sums, since their mean would
        round in another way."""
        return {
            "loss_sum": self._gather(self.recent),
            "num_losses": self.recent_updates,
            "total_loss": self._gather(self.total),
            "total_losses": self.total_updates,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint."""
        self.recent, self.recent_updates = self._own(state["loss_sum"]), state["num_losses"]
        self.total, self.total_updates = self._own(state["total_loss"]), state["total_losses"]

    def _gather(self, number: torch.Tensor) -> torch.Tensor:
        return self.accelerator.gather(number.to(self.accelerator.device).reshape(1)).cpu()

    def _own(self, sums: torch.Tensor | float) -> torch.Tensor:
        """This process's of the gathered sums; the mean, where there were another number of processes."""
        sums = torch.as_tensor(sums).reshape(-1)
        is_same_number = len(sums) == self.accelerator.num_processes
        return sums[self.accelerator.process_index] if is_same_number else sums.mean()
