"""A student: trained on what teachers have said of the very views that it gets."""

import logging
from typing import Any

import torch
from torch.nn import functional as F

from modeling_ast.data.decoding import BAD_CLIPS_NAME, BadClips
from modeling_ast.data.labels import name_some
from modeling_ast.data.processes import together
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.arguments import Arguments
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.targets import TargetsFolder, describe_difference
from modeling_ast.training.teaching import views_of
from modeling_ast.training.trainer import ASTTrainer

logger = logging.getLogger(__name__)


class TaughtCollator:
    """Batches of a student: those of its recipe, with what the teachers have said in place of labels.

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
            As `AugmentingCollator` gives them, with `labels` (batch, num_labels), or (batch, size) of embeddings.
        """
        batch, weight, positions = self.collator(rows), self.hard_label_weight, [row["position"] for row in rows]
        if self.targets.gives_embeddings:
            return {**batch, "labels": self.targets.embeddings(positions)}
        labels = self.targets.probabilities(positions, self.collator.multi_label)
        if weight:
            own = batch["labels"]
            own = F.one_hot(own, labels.shape[1]) if own.ndim == 1 else own
            labels = weight * own + (1 - weight) * labels
        return {**batch, "labels": labels}


@together()
def find_targets(arguments: Arguments) -> TargetsFolder | None:
    """What a run is trained on in place of labels, or `None`; all processes have to call it together.

    Raises:
        RecipeError: No targets, or not all of them, in the folder that the recipe names; or adapters, a frozen
            body, or keys that need labels, beside embeddings.
    """
    data_args, training_args = arguments.data, arguments.training
    if training_args.teacher_targets is None or not training_args.do_train:
        return None
    targets = TargetsFolder.load(training_args.teacher_targets)
    if targets.gives_embeddings:
        for key in ("lora_rank", "freeze_backbone"):
            if getattr(training_args, key):
                raise RecipeError(f"{targets.folder} holds embeddings, which a whole network learns: leave out {key}.")
        of_labels = {
            "eval_strategy": training_args.eval_strategy != "no",
            "linear_baseline": data_args.linear_baseline,
            "hard_label_weight": training_args.hard_label_weight,
        }
        if wrong := [key for key, is_given in of_labels.items() if is_given]:
            raise RecipeError(
                f"{targets.folder} holds embeddings, which no held-out clip has and no label belongs to: leave out "
                f"{', '.join(wrong)}. Labels come when the trained model is fine-tuned."
            )
    return targets


def learn_from_teachers(trainer: ASTTrainer, targets: TargetsFolder, arguments: Arguments, label_names: list[str]):
    """Let a trainer train on targets.

    Args:
        trainer: Of the student.
        targets: As from `find_targets`.
        arguments: Of its recipe.
        label_names: Of its data.

    Raises:
        RecipeError: They are of other views or labels.
    """
    given = {"views": views_of(trainer, arguments)}
    if not targets.gives_embeddings:
        given |= {"label_names": label_names, "problem_type": arguments.model.problem_type}
    taught = {key: targets.description.get(key, value) for key, value in given.items()}
    if difference := describe_difference(taught, given, "taught", "in this recipe"):
        raise RecipeError(f"{targets.folder} was taught with other views of other clips: {difference}.")
    logger.info(f"Taught by {', '.join(targets.description['teachers'])}: {targets.num_epochs} epoch(s) of views.")
    trainer.teachers, trainer.num_taught_epochs = targets.description["teachers"], targets.num_epochs
    trainer.targets_kept = {key: targets.description.get(key) for key in ("top_k", "precision")}
    if replaced := BadClips(targets.folder / BAD_CLIPS_NAME, 0).read():
        logger.warning(
            f"{len(replaced)} clip(s) could not be decoded when they were taught, and others stood in their place: "
            f"{name_some(list(replaced))}. Where these have been mended since, the targets are of others: teach anew."
        )
    if targets.gives_embeddings:
        _ = targets.embedding_statistics  # read once, before data workers take the targets along
    weight = arguments.training.hard_label_weight
    trainer.train_collator = TaughtCollator(trainer.train_collator, targets, weight)
