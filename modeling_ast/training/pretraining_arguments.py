"""The keys of a recipe that pre-trains: those of training and a block of its own."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from modeling_ast.data.model_arguments import ModelArguments, check_numbers
from modeling_ast.data.recipes import DataArguments, RecipeError
from modeling_ast.training.arguments import ASTTrainingArguments, AugmentArguments, parse_arguments

_INTERVALS = {
    "mask_ratio": "(0, 1)",
    "mask_clones": "[1, inf)",
    "decoder_layers": "[1, inf)",
    "decoder_width": "[1, inf)",
    "utterance_weight": "[0, inf)",
}
# Keys whose defaults alone make sense, since they are about labels, a classifier, held-out clips, or the choice of an
# epoch by these.
_WITHOUT_EFFECT = (
    *("problem_type", "patchout_rows", "patchout_columns", "patchout_patches", "label_file", "linear_baseline"),
    *("background", "label_column_name", "label_separator", "validation_file", "test_file", "validation_fraction"),
    *("max_eval_samples", "leave_out_unknown_labels", "class_balanced_sampling", "label_smoothing_factor"),
    *("class_weights", "pos_weight"),
    *("freeze_backbone", "head_learning_rate_factor", "layer_learning_rate_decay", "load_best_model_at_end"),
    *("metric_for_best_model", "early_stopping_patience", "teacher_targets", "hard_label_weight", "lora_rank"),
)


@dataclass
class PretrainingArguments:
    """How a model learns from masked patches; see `modeling_ast.training.masked_autoencoder`."""

    mask_ratio: float = field(
        default=0.75,
        metadata={"help": "Share of a clip's patches that the model does not see, and predicts; in (0, 1)."},
    )
    mask_clones: int = field(
        default=1, metadata={"help": "How often a clip is in its batch, each time with other patches masked."}
    )
    decoder_layers: int = field(
        default=2, metadata={"help": "Layers of the decoder, which is thrown away at the end."}
    )
    decoder_width: int | None = field(
        default=None, metadata={"help": "Its width, a multiple of 32; half of the model's if unset."}
    )
    normalize_targets: bool = field(
        default=False,
        metadata={"help": "Predict each patch less its own mean, in its own deviations, as AudioMAE; else as it is."},
    )
    utterance_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of a second loss: the pooled output, which a classifier reads later, predicts the mean "
            "and the deviation of each mel bin over the clip. 0 leaves it out."
        },
    )
    probe_recipe: str | None = field(
        default=None,
        metadata={
            "help": "Recipe of labelled clips: at every evaluation (eval_strategy) and at the end a linear classifier "
            "on frozen embeddings of its training clips is reported on those that it holds out."
        },
    )

    def __post_init__(self):
        check_numbers(self, _INTERVALS)


class PretrainingRecipe(NamedTuple):
    """All that a recipe of a pre-training says."""

    model: ModelArguments
    data: DataArguments
    augment: AugmentArguments
    training: ASTTrainingArguments
    pretraining: PretrainingArguments


def parse_pretraining_arguments(argv: Sequence[str]) -> PretrainingRecipe:
    """`[RECIPE] [--key value ...]` to the blocks of arguments, of a run that trains, on clips without labels.

    Raises:
        RecipeError: As from `parse_arguments`, or a key that has no effect on a pre-training.
    """
    description = "Pre-train an Audio Spectrogram Transformer on sounds without labels."
    arguments = parse_arguments(argv, PretrainingRecipe, description)
    if not arguments.training.do_train:
        raise RecipeError("Expected do_train true: a pre-training has nothing else to do.")
    for block in arguments:
        for each in dataclasses.fields(block):
            if each.name in _WITHOUT_EFFECT and getattr(block, each.name) != each.default:
                raise RecipeError(f"{each.name} has no effect on a pre-training: leave it out.")
    return _without_labels(arguments)


def parse_any_recipe(argv: Sequence[str]) -> PretrainingRecipe:
    """`[RECIPE] [--key value ...]` of any kind, without labels where it says anything of pre-training.

    Raises:
        RecipeError: As from `parse_arguments`, or a key that does not go with clips without labels.
    """
    recipe = parse_arguments(argv, PretrainingRecipe)  # which has the keys of all recipes
    return recipe if recipe.pretraining == PretrainingArguments() else _without_labels(recipe)


def _without_labels(recipe: PretrainingRecipe) -> PretrainingRecipe:
    try:  # groups of which labels make folds do not go with these
        return recipe._replace(data=dataclasses.replace(recipe.data, unlabelled=True))
    except ValueError as error:
        raise RecipeError(str(error)) from error
