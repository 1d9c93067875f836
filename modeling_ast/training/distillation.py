"""A student: trained on what teachers have said of the very views that it gets."""

import logging
from typing import Any

import torch
from torch.nn import functional as F

from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.arguments import Arguments
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.targets import TargetsFolder, describe_difference
from modeling_ast.training.teaching import views_of
from modeling_ast.training.trainer import ASTTrainer

logger = logging.getLogger(__name__)


class TaughtCollator:
    """Batches of a student: those of its recipe, with the teachers' probabilities in place of labels.

    Args:
        collator: Of the recipe.
        targets: Of the teachers.
        hard_label_weight: Share of the recipe's own labels, mixed as the clips are, in what is trained on; in [0, 1).
    """

    def __init__(self, collator: AugmentingCollator, targets: TargetsFolder, hard_label_weight: float = 0.0):
        self.collator, self.targets, self.hard_label_weight = collator, targets, hard_label_weight

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns:
            As `AugmentingCollator` gives them, with `labels` (batch, num_labels).
        """
        batch, weight = self.collator(rows), self.hard_label_weight
        labels = self.targets.probabilities([row["position"] for row in rows], self.collator.multi_label)
        if weight:
            own = batch["labels"]
            own = F.one_hot(own, labels.shape[1]) if own.ndim == 1 else own
            labels = weight * own + (1 - weight) * labels
        return {**batch, "labels": labels}


def learn_from_teachers(trainer: ASTTrainer, arguments: Arguments, label_names: list[str]) -> None:
    """Let a trainer train on the targets that its recipe names.

    Raises:
        RecipeError: They are none, or not all there, or of other views or labels.
    """
    targets = TargetsFolder.load(arguments.training.teacher_targets)
    given = {"views": views_of(trainer, arguments), "label_names": label_names}
    taught = {key: targets.description[key] for key in given}
    if difference := describe_difference(taught, given, "taught", "in this recipe"):
        raise RecipeError(f"{targets.folder} was taught with other views of other clips: {difference}.")
    logger.info(f"Taught by {', '.join(targets.description['teachers'])}: {targets.num_epochs} epoch(s) of views.")
    trainer.num_taught_epochs = targets.num_epochs
    weight = arguments.training.hard_label_weight
    trainer.train_collator = TaughtCollator(trainer.train_collator, targets, weight)
