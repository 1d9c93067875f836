"""The stages of a run: its data, its model, its trainer, the training, the evaluation."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.clip_tables import AudioSplits, ClipCounts
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import BAD_CLIPS_NAME, BadClips, DecodeAudio, decode
from modeling_ast.data.intervals import Interval, as_ends, metric_intervals
from modeling_ast.data.labels import name_some
from modeling_ast.data.loss_weights import (
    WEIGHTS_NAME,
    LossWeights,
    balanced_class_weights,
    balanced_pos_weight,
)
from modeling_ast.data.metrics import compute_metrics, per_class_metrics, to_probabilities, write_figures
from modeling_ast.data.predictions import decide, list_clips, write_predictions
from modeling_ast.data.processes import decided_by_main, together
from modeling_ast.data.recipes import RECIPE_NAME, RecipeError
from modeling_ast.data.splits import read_held_out, read_once, read_splits
from modeling_ast.loading import is_ast
from modeling_ast.training.adapters import add_adapters
from modeling_ast.training.arguments import Arguments, ASTTrainingArguments, parse_arguments
from modeling_ast.training.baseline import check_classes
from modeling_ast.training.body import BodyTrainer
from modeling_ast.training.building import build_model_and_extractor, check_reporters
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.combinations import changes_batches
from modeling_ast.training.distillation import learn_from_teachers
from modeling_ast.training.dry_run import nothing_written
from modeling_ast.training.output_dir import (
    EVALUATION_FOLDER,
    check_output_dir,
    checkpoint_to_go_on_from,
    claimed,
    prepare_output_dir,
)
from modeling_ast.training.results import EpochRecord, RunRecord
from modeling_ast.training.rows import TrainingRows, TrainingStream
from modeling_ast.training.same_run import compare_clips, compare_processes
from modeling_ast.training.sampling import (
    class_balanced_draws,
    class_balanced_weights,
    count_clips,
    read_clip_seconds,
    sort_by_length,
)
from modeling_ast.training.targets import TargetsFolder
from modeling_ast.training.trainer import ASTTrainer

logger = logging.getLogger(__name__)


def read_arguments(argv: Sequence[str], parse: Callable[[Sequence[str]], Arguments] = parse_arguments) -> Arguments:
    """What a run is to do, after a look at the folder that it is to write into.

    Args:
        argv: Command line.
        parse: Makes blocks of arguments of it, among them `model`, `data`, `augment` and `training`.

    Raises:
        RecipeError: A command line, a recipe or an `output_dir` that cannot be used.
    """
    with together():  # where they cannot be read, there may be no group yet
        arguments = parse(argv)
    training_args = arguments.training
    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.ERROR, format="%(message)s")
    output_dir = Path(training_args.output_dir)
    with together():
        check_output_dir(output_dir, arguments)
        if not training_args.do_train and (output_dir / RECIPE_NAME).is_file():
            training_args.output_dir = str(output_dir / EVALUATION_FOLDER)  # the metrics of the run stay
        check_reporters(training_args.report_to)
    return arguments


@contextmanager
def entered(arguments: Arguments) -> Iterator[None]:
    """While it is entered, the folder of a run that trains is this one's alone, and a dry run writes nothing.

    Raises:
        RecipeError: Another run is writing there, or processes have other arguments.
    """
    training_args = arguments.training
    with ExitStack() as stack:
        with together():
            if training_args.dry_run:
                stack.enter_context(nothing_written(training_args))
            elif training_args.do_train and training_args.should_save:
                stack.enter_context(claimed(Path(training_args.output_dir)))
        compare_processes(arguments)
        yield


def read_data(arguments: Arguments, targets: TargetsFolder | None = None, needs_labels: bool = True) -> AudioSplits:
    """The clips of a run, not decoded: those that are held out alone where it does not train.

    Args:
        arguments: Of the run.
        targets: Of its teachers, as from `find_targets`.
        needs_labels: Whether it cannot do without; those of clips without are their teachers'.

    Raises:
        RecipeError, DataError: Keys or a data set that cannot be used, or processes that have read others.
    """
    model_args, data_args, training_args = arguments.model, arguments.data, arguments.training
    multi_label = model_args.problem_type == "multi_label_classification"
    with together():
        if data_args.unlabelled and needs_labels and targets is None:
            wanted = "labels, or teacher_targets to train by" if training_args.do_train else "labels to evaluate by"
            raise RecipeError(f"Expected {wanted}, got unlabelled true.")
    teacher_labels = None if targets is None else targets.description["label_names"]
    if training_args.do_train or data_args.streaming:
        splits = read_once(partial(read_splits, data_args, multi_label, teacher_labels=teacher_labels))
    else:
        splits = read_once(partial(read_held_out, model_args.model_name_or_path, data_args, multi_label))
    if targets is not None and targets.gives_embeddings:
        splits.validation = splits.test = None  # by which nothing could be chosen or reported
    compare_clips(splits)
    sizes = {name: "a stream of" if data_args.streaming and name == "train" else len(rows) for name, rows in splits}
    logger.info(
        f"{data_args.dataset_name}: {len(splits.label_names) or 'no'} labels, "
        + ", ".join(f"{size} clips for {name}" for name, size in sizes.items())
    )
    learns_labels = training_args.do_train and needs_labels and targets is None
    if learns_labels and isinstance(splits.train, Dataset) and "labels" in splits.train.column_names:
        counts = count_clips(splits.train, len(splits.label_names)).of_labels
        if missing := [name for name, count in zip(splits.label_names, counts) if not count]:
            logger.warning(
                f"{len(missing)} label(s) are of no clip to train on, and not learnt: {name_some(missing)}."
            )
    if data_args.linear_baseline:  # of the same clips in all processes
        check_classes(splits.train, splits.label_names)
    return splits


@together()
def build(
    arguments: Arguments, splits: AudioSplits, targets: TargetsFolder | None = None
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """The model and the feature extractor of a run.

    Args:
        arguments: Of the run.
        splits: Of clips.
        targets: As for `read_data`.

    Raises:
        RecipeError: Keys that the model to start from cannot be used with.
    """
    model_args, _, _, training_args = arguments
    label_names = splits.label_names
    predicts_embeddings = targets is not None and targets.gives_embeddings
    if predicts_embeddings:
        label_names = [f"embedding_{number}" for number in range(targets.embedding_size)]
    model, extractor = build_model_and_extractor(model_args, label_names, allow_fresh_head=training_args.do_train)
    if predicts_embeddings:
        model.config.problem_type = "regression"
    if training_args.freeze_backbone:
        model.audio_spectrogram_transformer.requires_grad_(False)
    logger.info(
        f"{model_args.model_name_or_path}: {model.num_parameters() / 1e6:.2f} million parameters, "
        f"{model.config.max_length} frames, {model.config.num_tokens} tokens"
    )
    return model, extractor


@together()
def prepare_clips(
    arguments: Arguments,
    splits: AudioSplits,
    extractor: ASTFeatureExtractor,
    make_collator: Callable[..., AugmentingCollator] = AugmentingCollator,
    record: RunRecord | None = None,
) -> dict[str, Any]:
    """Let the splits give decoded clips, those that are held out in the order of their lengths where these are free.

    Args:
        arguments: Of the run.
        splits: Of clips, not decoded.
        extractor: Of their features.
        make_collator: What makes the collator of training, from the arguments of `AugmentingCollator`.
        record: Where each evaluation is written down; `None` takes an `EpochRecord`.

    Returns:
        What `make_trainer` needs for a model that is trained.

    Raises:
        RecipeError, DataError, AudioError: Labels that cannot be drawn alike, or a clip whose length cannot be read.
    """
    model_args, data_args, training_args = arguments.model, arguments.data, arguments.training
    is_free, num_labels = extractor.padding == "longest", len(splits.label_names)
    clip_seconds = sampling_weights = None
    if is_free and training_args.do_train and not data_args.streaming:
        seconds = read_clip_seconds(
            splits.train, allow_bad=data_args.max_bad_clips > 0, ignore_length=splits.ignore_length
        )
        clip_seconds = seconds.clamp(max=extractor.seconds(extractor.max_length))  # longer ones are cut
    is_balanced = training_args.class_balanced_sampling and training_args.do_train
    if is_balanced and not data_args.streaming:
        sampling_weights = class_balanced_weights(splits.train, num_labels)
    loss_weights = _find_loss_weights(training_args, splits) if training_args.do_train else None
    multi_label = model_args.problem_type == "multi_label_classification"
    how = {"augment": arguments.augment, "seed": training_args.seed, "hands_over": _hands_over(training_args)}
    collator = make_collator(extractor, num_labels, multi_label, **how)
    to_clips = partial(decode, sampling_rate=extractor.sampling_rate, ignore_length=splits.ignore_length)
    for name, rows in splits:
        if name != "train":
            rows = sort_by_length(rows, splits.ignore_length) if is_free else rows
            setattr(splits, name, to_clips(rows))
    train_rows, bad_clips = None, _bad_clips(arguments)
    decoder = DecodeAudio(extractor.sampling_rate, bad_clips, splits.ignore_length)
    if data_args.streaming:
        mean_draws = class_balanced_draws(_count_clips(splits, "class_balanced_sampling")) if is_balanced else None
        train_rows = TrainingStream(
            splits.train, decoder.decode_row, collator.prepare, training_args.order_seed, mean_draws
        )
    elif splits.train is not None:
        train_rows = TrainingRows(splits.train, collator.prepare, decoder.decode_row)
        splits.train = to_clips(splits.train, bad_clips=bad_clips)
    if record is None:
        record = EpochRecord(training_args.output_dir, model_args.problem_type, splits.label_names)
    return {
        "train_dataset": train_rows,
        "train_collator": collator,
        "train_features": collator.features,
        "sampling_weights": sampling_weights,
        "clip_seconds": clip_seconds,
        "loss_weights": loss_weights,
        "record": record,
    }


@together()
def make_trainer(
    arguments: Arguments,
    splits: AudioSplits,
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    thresholds: np.ndarray,
    targets: TargetsFolder | None = None,
    **training: Any,
) -> ASTTrainer:
    """A trainer, which also evaluates.

    Args:
        arguments: Of the run.
        splits: Of decoded clips.
        model: To train, or to evaluate.
        extractor: Of its features.
        thresholds: The score from which on each label counts as present, (num_labels,).
        targets: As for `read_data`, of a model that is trained.
        training: What `prepare_clips` gives, for a model that is trained.

    Raises:
        RecipeError: Keys that do not go together.
    """
    problem_type, label_names = arguments.model.problem_type, splits.label_names
    multi_label = problem_type == "multi_label_classification"
    args, start = arguments.training, arguments.model.model_name_or_path
    if training and args.do_train and args.lora_rank:
        keys = (args.lora_rank, args.lora_alpha, args.lora_targets)
        training["adapters"] = add_adapters(model, *keys, start if is_ast(start) else None)
    predicts_embeddings = targets is not None and targets.gives_embeddings  # by a head that is thrown away
    try:
        trainer = (BodyTrainer if predicts_embeddings else ASTTrainer)(
            model=model,
            args=args,
            eval_dataset=splits.test if splits.validation is None else splits.validation,
            data_collator=ASTDataCollator(extractor, len(label_names), multi_label),
            processing_class=extractor,
            compute_metrics=lambda p: compute_metrics(
                to_probabilities(p.predictions, problem_type), p.label_ids, problem_type, thresholds, label_names
            ),
            **training,
        )
    except ValueError as error:  # of keys that do not go together, by Transformers' or Accelerate's own check
        raise RecipeError(f"This recipe cannot be trained by: {' '.join(str(error).split())}") from error
    if targets is not None:
        learn_from_teachers(trainer, targets, arguments, label_names)
    return trainer


def train(trainer: ASTTrainer, arguments: Arguments) -> dict[str, float]:
    """Train, from the beginning or from where it was interrupted, and save the model; not again where that is done.

    Returns:
        The metrics of the training; with `max_bad_clips` also the number of clips that could not be decoded.
    """
    data_args, training_args = arguments.data, arguments.training
    logger.info(
        f"{trainer.global_batch_size} clips an update: {training_args.per_device_train_batch_size} on each of "
        f"{training_args.world_size * max(1, training_args.n_gpu)} device(s), "
        f"{training_args.gradient_accumulation_steps} accumulation step(s)"
    )
    bad_clips = _bad_clips(arguments)
    with together():
        if training_args.should_save:
            prepare_output_dir(Path(training_args.output_dir), arguments)
            if trainer.loss_weights is not None:
                trainer.loss_weights.write(Path(training_args.output_dir) / WEIGHTS_NAME)
    metrics = _train_or_go_on(trainer)
    if data_args.max_bad_clips:
        metrics["train_bad_clips"] = len(bad_clips.read())
        trainer.save_metrics("train", metrics)
    trainer.log_metrics("train", metrics)
    if metrics.get("train_bad_clips"):
        number = metrics["train_bad_clips"]
        logger.warning(f"{number} training clip(s) could not be decoded: {bad_clips.path} names them.")
    return metrics


def evaluate(
    trainer: ASTTrainer,
    splits: AudioSplits,
    folder: Path,
    draw: Callable[[str, Path, np.ndarray, np.ndarray, list[dict], dict[str, Interval]], None],
    thresholds: np.ndarray,
    prefix: str = "",
) -> dict[str, float]:
    """Metrics on each held-out split with the ends of their intervals, and tables of classes and clips in a folder.

    Args:
        trainer: Of the model.
        splits: Of decoded clips.
        folder: For the tables.
        draw: Makes pictures of a split: gets its name, the folder, probabilities (clips, num_labels), labels, the
            rows of the table of classes and the intervals of the metrics.
        thresholds: The score from which on each label counts as present, (num_labels,).
        prefix: Of the metrics' names.
    """
    results = {}
    for name, rows in splits:
        if name == "train":
            continue
        metrics = trainer.evaluate(rows, metric_key_prefix=prefix + name)
        metrics.pop(f"{prefix}{name}_model_preparation_time", None)  # of a trainer that has not trained
        logits, labels = trainer.last_evaluation.predictions, trainer.last_evaluation.label_ids
        problem_type = trainer.model.config.problem_type
        probabilities, clips = to_probabilities(logits, problem_type), list_clips({name: rows})
        plain = {key.removeprefix(f"{prefix}{name}_"): value for key, value in metrics.items()}
        intervals = metric_intervals(plain, probabilities, labels, problem_type, thresholds, clips.get("group"))
        metrics |= as_ends(intervals, f"{prefix}{name}_")
        trainer.log_metrics(prefix + name, metrics)
        trainer.save_metrics(prefix + name, metrics)
        results |= metrics
        if trainer.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            decisions = decide(probabilities, problem_type, thresholds)
            table = folder / f"predictions_{name}.csv"
            write_predictions(table, clips, probabilities, decisions, labels, splits.label_names)
            classes = per_class_metrics(probabilities, labels, splits.label_names)
            write_figures(folder / f"per_class_{name}.csv", classes)
            draw(name, folder, probabilities, labels, classes, intervals)
    return results


def _train_or_go_on(trainer: ASTTrainer) -> dict[str, float]:
    output_dir, resume = Path(trainer.args.output_dir), trainer.args.resume_from_checkpoint
    checkpoint = decided_by_main(lambda: checkpoint_to_go_on_from(trainer.args))
    if resume is True and (metrics := trainer.load_end()) is not None:
        logger.info(f"{output_dir} holds the trained model: what is left is its evaluation.")
        return metrics
    if resume:
        logger.info(f"Continuing from {checkpoint}." if checkpoint else "No checkpoint yet: from the beginning.")
    if trainer.args.process_index:  # whose dropout and stochastic depth would be those of the first one
        torch.manual_seed(trainer.args.seed + trainer.args.process_index)
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    trainer.save_end(metrics)
    return metrics


def _find_loss_weights(training_args: ASTTrainingArguments, splits: AudioSplits) -> LossWeights | None:
    """Of the labels, by the training clips, and a word on them; `None` where the recipe asks for none."""
    names, weights = splits.label_names, {}
    if training_args.class_weights is not None:
        weights["class_weights"] = balanced_class_weights(_count_clips(splits, "class_weights").of_labels)
    if training_args.pos_weight == "balanced":
        weights["pos_weight"] = balanced_pos_weight(_count_clips(splits, "pos_weight"))
    elif training_args.pos_weight is not None:
        weights["pos_weight"] = np.full(len(names), float(training_args.pos_weight))
    if not weights:
        return None
    loss_weights = LossWeights(names, **weights)
    logger.info(f"Weights in the loss of training, which that of held-out clips is without: {loss_weights}.")
    return loss_weights


def _count_clips(splits: AudioSplits, key: str) -> ClipCounts:
    """Those to train on, by label."""
    if not isinstance(splits.train, IterableDataset):
        return count_clips(splits.train, len(splits.label_names))
    if splits.train_counts is None:
        raise RecipeError(
            f"{key} needs to know how many clips of each label there are, which a stream of shards tells that "
            "modeling-ast pack has made, where all of it is read (no max_train_samples), and no other."
        )
    return splits.train_counts


def _hands_over(training_args: ASTTrainingArguments) -> bool:
    """Whether data workers hand over waveforms, in place of features."""
    if training_args.features_on_device is not None:
        return training_args.features_on_device
    return training_args.device.type == "cuda" and not changes_batches(training_args)


def _bad_clips(arguments: Arguments) -> BadClips:
    return BadClips(Path(arguments.training.output_dir) / BAD_CLIPS_NAME, arguments.data.max_bad_clips)
