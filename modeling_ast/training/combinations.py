"""Which keys of different blocks of a recipe do not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modeling_ast.configuration_ast import SIZES
from modeling_ast.data.recipes import DataArguments, RecipeError

if TYPE_CHECKING:
    from modeling_ast.training.arguments import Arguments, ASTTrainingArguments


def refuse_unusable_keys(arguments: Arguments) -> None:
    """Look at all blocks together; each has looked at its own keys.

    Raises:
        RecipeError: Adapters of random weights, keys that need labels beside clips without, a weight
            of clips with a label where each has one, mixup whose partners are not at hand, features on a device that
            gets other batches, or keys that need to know all clips of a stream in advance.
    """
    data_args, training_args = arguments.data, arguments.training
    _check_stream(data_args, training_args)
    if training_args.lora_rank and (start := arguments.model.model_name_or_path) in SIZES:
        raise RecipeError(f"Expected trained weights to adapt with lora_rank, got random ones ({start}).")
    of_labels = ("class_balanced_sampling", "class_weights", "pos_weight", "hard_label_weight")
    for key in of_labels if data_args.unlabelled else ():
        if getattr(training_args, key):
            raise RecipeError(f"{key} needs labels: leave it out, or unlabelled.")
    if training_args.pos_weight is not None and arguments.model.problem_type != "multi_label_classification":
        raise RecipeError(
            "pos_weight has no effect with one label a clip, of which class_weights: balanced weighs the labels."
        )
    if training_args.features_on_device and changes_batches(training_args):
        raise RecipeError("features_on_device does not go together with DeepSpeed and dispatch_batches: leave it out.")
    if training_args.accelerator_config.dispatch_batches and arguments.model.padding == "longest":
        raise RecipeError("dispatch_batches puts batches together, which have other lengths with padding longest.")
    if arguments.augment.mixup_probability and training_args.do_train:
        _check_partners(arguments)


def changes_batches(training_args: ASTTrainingArguments) -> bool:
    """Whether batches become others on their way: DeepSpeed rounds them, and one process reads tensors for all."""
    return bool(training_args.deepspeed_plugin or training_args.accelerator_config.dispatch_batches)


def _check_partners(arguments: Arguments) -> None:
    """Mixup's partners have to be at hand."""
    data_args, augment_args, training_args = arguments.data, arguments.augment, arguments.training
    if augment_args.mixup_partner == "dataset":
        if data_args.streaming:
            raise RecipeError(
                "Expected mixup_partner batch with streaming, got dataset: a stream is read in its order."
            )
        return
    if training_args.auto_find_batch_size:
        raise RecipeError("mixup_partner batch needs clips two by two, which auto_find_batch_size may part.")
    if training_args.per_device_train_batch_size % 2:
        raise RecipeError(
            "Expected an even number of clips on each device at a time with mixup_partner batch, got "
            f"{training_args.per_device_train_batch_size}: of each two the one is mixed into the other."
        )


def _check_stream(data_args: DataArguments, training_args: ASTTrainingArguments) -> None:
    """What needs to know all clips in advance is refused where they come as a stream."""
    if not data_args.streaming:
        return
    if training_args.do_train and training_args.max_steps <= 0:
        raise RecipeError("Expected max_steps with streaming: a stream does not tell how long an epoch is.")
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(training_args, name) == "epoch":
            raise RecipeError(f"Expected {name} steps or no with streaming, got epoch: a stream has no end.")
    if training_args.accelerator_config.dispatch_batches:
        raise RecipeError("dispatch_batches of accelerator_config would let one process read the stream for all.")
    if training_args.weight_average_start is not None and training_args.weight_average_steps is None:
        raise RecipeError("Expected weight_average_steps with weight_average_start: a stream has no end of an epoch.")
    if training_args.samples_per_epoch is not None:
        raise RecipeError("samples_per_epoch has no effect on a stream, which has no epochs: max_steps says how long.")
    if training_args.teacher_targets is not None:
        raise RecipeError("teacher_targets are for the clips of a table, in an order that a stream does not have.")
    if training_args.lr_step_factor is not None:
        raise RecipeError("lr_step_factor needs to know how long an epoch is, which a stream does not tell.")
