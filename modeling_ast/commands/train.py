"""Train and evaluate an Audio Spectrogram Transformer by a recipe.

    accelerate launch scripts/run_audio_classification.py configs/demo.yaml [--key value ...]
    accelerate launch -m modeling_ast.commands.train RECIPE.yaml [--key value ...]

A recipe is a saved command line; keys given here win over it. Everything goes to `output_dir`: the model and its
feature extractor (for `from_pretrained` and `pipeline`), the resolved recipe, metrics, checkpoints, a model card and
pictures; `results.csv` can be read while the run goes on. With `--resume_from_checkpoint true` the same command
begins a run, goes on with it wherever it was interrupted, and finishes it. With `--do_train false` a trained model
(`--model_name_or_path outputs/demo`) is evaluated: on the clips that the data hold out, or on all of them where they
hold out none (but not on those that it was trained on). Exit status: 0, 2 after a fault that is told in one sentence,
130 after Ctrl-C, 143 after SIGTERM. With `--dry_run true` it goes through everything but the work, writes nothing, and
tells how long the run will take.
"""

import logging
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from transformers import pipeline, set_seed

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands.command_line import run_command
from modeling_ast.data.bad_clips import BAD_CLIPS_NAME, BadClips
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.files import written_beside
from modeling_ast.data.metrics import compute_metrics, per_class_metrics, to_probabilities, write_per_class_csv
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.sources import AudioSplits
from modeling_ast.data.splits import read_held_out, read_splits
from modeling_ast.data.streams import decode
from modeling_ast.inference.figures import may_fail
from modeling_ast.inference.plots import plot_tags
from modeling_ast.inference.predictions import label_thresholds
from modeling_ast.inference.result_plots import plot_confusion_matrix, plot_per_class, plot_training_curves
from modeling_ast.training.arguments import Arguments, parse_arguments
from modeling_ast.training.baseline import check_classes, linear_baseline
from modeling_ast.training.building import build_model_and_extractor, check_reporters
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.dry_run import dry_run, nothing_written
from modeling_ast.training.faults import GOES_ON as GOES_ON
from modeling_ast.training.model_card import write_model_card
from modeling_ast.training.output_dir import (
    AVERAGE_FOLDER,
    check_output_dir,
    claimed,
    last_whole_checkpoint,
    prepare_output_dir,
)
from modeling_ast.training.results import RESULTS_NAME, EpochRecord
from modeling_ast.training.sampling import class_balanced_weights, positioned, read_clip_seconds, sort_by_length
from modeling_ast.training.trainer import ASTTrainer

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run a recipe.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        All metrics of the run, as saved in `all_results.json`.

    Raises:
        RecipeError, DataError, AudioError: Arguments, data set or a sound file that cannot be used.
        DivergedError: The training diverged.
        SaveError: A checkpoint or the model cannot be written.
        Stopped: By a signal, during training.
    """
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    training_args = arguments[-1]
    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.ERROR, format="%(message)s")
    output_dir = Path(training_args.output_dir)
    check_output_dir(output_dir, arguments)
    check_reporters(training_args.report_to)
    with ExitStack() as stack:
        if training_args.dry_run:
            stack.enter_context(nothing_written(training_args))
        elif training_args.do_train and training_args.should_save:
            stack.enter_context(claimed(output_dir))
        return run(arguments, output_dir)


def run(arguments: Arguments, run_dir: Path) -> dict[str, float]:
    """Run what the arguments say.

    Args:
        arguments: Model, data, augmentation and training, as `parse_arguments` gives them.
        run_dir: Where the run belongs; a dry run writes elsewhere.
    """
    model_args, data_args, augment_args, training_args = arguments
    output_dir = Path(training_args.output_dir)
    problem_type = model_args.problem_type
    multi_label = problem_type == "multi_label_classification"
    set_seed(training_args.seed)

    # Data.
    with training_args.main_process_first(desc="reading the data set"):
        if training_args.do_train or data_args.streaming:
            splits = read_splits(data_args, multi_label)
        else:
            splits = read_held_out(model_args.model_name_or_path, data_args, multi_label)
    num_labels = len(splits.label_names)
    sizes = {name: "a stream of" if data_args.streaming and name == "train" else len(rows) for name, rows in splits}
    logger.info(
        f"{data_args.dataset_name}: {num_labels} labels, "
        + ", ".join(f"{size} clips for {name}" for name, size in sizes.items())
    )
    if data_args.linear_baseline:
        check_classes(splits.train, splits.label_names)

    # Model and feature extractor, from the same arguments.
    model, extractor = build_model_and_extractor(
        model_args, splits.label_names, allow_fresh_head=training_args.do_train
    )
    if training_args.freeze_backbone:
        model.audio_spectrogram_transformer.requires_grad_(False)
    logger.info(
        f"{model_args.model_name_or_path}: {model.num_parameters() / 1e6:.2f} million parameters, "
        f"{model.config.max_length} frames, {model.config.num_tokens} tokens"
    )
    is_free, clip_seconds = extractor.padding == "longest", None
    if is_free and training_args.do_train and not data_args.streaming:
        seconds = read_clip_seconds(
            splits.train, allow_bad=data_args.max_bad_clips > 0, ignore_length=splits.ignore_length
        )
        clip_seconds = seconds.clamp(max=extractor.seconds(extractor.max_length))  # longer ones are cut
    sampling_weights = None
    if training_args.class_balanced_sampling and training_args.do_train:
        sampling_weights = class_balanced_weights(splits.train, num_labels)
    bad_clips = BadClips(output_dir / BAD_CLIPS_NAME, data_args.max_bad_clips, splits.ignore_length)
    for name, rows in splits:
        rows = sort_by_length(rows, splits.ignore_length) if is_free and name != "train" else rows
        noted = bad_clips if name == "train" else None
        setattr(splits, name, decode(rows, extractor.sampling_rate, noted, splits.ignore_length))

    # Training.
    results = {}
    thresholds = label_thresholds(splits.label_names, model.config.thresholds)  # 0.5, but of a calibrated model
    make_trainer = partial(
        ASTTrainer,
        args=training_args,
        eval_dataset=splits.test if splits.validation is None else splits.validation,
        data_collator=ASTDataCollator(extractor, num_labels, multi_label),
        processing_class=extractor,
        compute_metrics=lambda p: compute_metrics(
            to_probabilities(p.predictions, problem_type), p.label_ids, problem_type, thresholds, splits.label_names
        ),
    )
    trainer = make_trainer(
        model=model,
        train_dataset=None if splits.train is None else positioned(splits.train),
        train_collator=AugmentingCollator(
            extractor,
            num_labels,
            multi_label,
            augment=augment_args,
            rows=None if data_args.streaming else splits.train,
            seed=training_args.seed,
        ),
        sampling_weights=sampling_weights,
        clip_seconds=clip_seconds,
        record=EpochRecord(output_dir, problem_type),
    )
    if training_args.dry_run:
        held_out = {name: rows for name, rows in splits if name != "train"}
        results = dry_run(trainer, held_out, run_dir)
        if data_args.linear_baseline:
            logger.info("The linear baseline, for which all clips are read once more, is not in the estimate.")
        return results
    if training_args.do_train:
        logger.info(
            f"{trainer.global_batch_size} clips an update: {training_args.per_device_train_batch_size} on each of "
            f"{training_args.world_size * max(1, training_args.n_gpu)} device(s), "
            f"{training_args.gradient_accumulation_steps} accumulation step(s)"
        )
        if training_args.should_save:
            prepare_output_dir(output_dir, arguments)
            bad_clips.forget_mended()
        training_args.distributed_state.wait_for_everyone()  # before all of them look for checkpoints in it
        train_metrics = train(trainer, training_args.resume_from_checkpoint)
        if data_args.max_bad_clips:
            train_metrics["train_bad_clips"] = len(bad_clips.read())
            trainer.save_metrics("train", train_metrics)
        trainer.log_metrics("train", train_metrics)
        if train_metrics.get("train_bad_clips"):
            number = train_metrics["train_bad_clips"]
            logger.warning(f"{number} training clip(s) could not be decoded: {bad_clips.path} names them.")
        results |= train_metrics

    # Evaluation: the epoch was chosen on the validation clips; the test clips are looked at once.
    results |= evaluate(trainer, splits, output_dir)
    average_folder = output_dir / AVERAGE_FOLDER
    if training_args.do_train and average_folder.is_dir():
        average = make_trainer(model=ASTForAudioClassification.from_pretrained(average_folder))
        average.state.epoch = trainer.state.epoch
        results |= evaluate(average, splits, average_folder, "average_")

    # Report.
    if trainer.is_world_process_zero():
        results |= report_baseline(data_args, splits, extractor, results)
        trainer.save_metrics("baseline", {key: value for key, value in results.items() if "baseline" in key})
        if training_args.do_train:
            if (output_dir / RESULTS_NAME).is_file():  # not without evaluations during training
                with may_fail(output_dir / "training_curves.png"):
                    plot_training_curves(output_dir / RESULTS_NAME, output_dir / "training_curves.png")
            write_model_card(
                output_dir,
                model,
                extractor,
                data_args.dataset_name,
                model_args.model_name_or_path,
                results,
                repo_id=trainer.hub_model_id,
            )
        tag_example(str(output_dir) if training_args.do_train else model, output_dir, splits, extractor)
        logger.info(f"Everything is in {output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return results


def train(trainer: ASTTrainer, resume: str | bool | None) -> dict[str, float]:
    """Train, from the beginning or from where it was interrupted, and save the model; not again where that is done."""
    output_dir = Path(trainer.args.output_dir)
    checkpoint = last_whole_checkpoint(output_dir) if resume is True else resume
    if resume is True and (metrics := trainer.load_end()) is not None:
        logger.info(f"{output_dir} holds the trained model: what is left is its evaluation.")
        return metrics
    if resume:
        logger.info(f"Continuing from {checkpoint}." if checkpoint else "No checkpoint yet: from the beginning.")
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    trainer.save_end(metrics)
    return metrics


def evaluate(trainer: ASTTrainer, splits: AudioSplits, folder: Path, prefix: str = "") -> dict[str, float]:
    """Metrics on each held-out split, with a table and pictures of the classes in a folder."""
    results = {}
    for name, rows in splits:
        if name == "train":
            continue
        metrics = trainer.evaluate(rows, metric_key_prefix=prefix + name)
        metrics.pop(f"{prefix}{name}_model_preparation_time", None)  # of a trainer that has not trained
        trainer.log_metrics(prefix + name, metrics)
        trainer.save_metrics(prefix + name, metrics)
        results |= metrics
        if trainer.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            logits, labels = trainer.last_evaluation.predictions, trainer.last_evaluation.label_ids
            probabilities = to_probabilities(logits, trainer.model.config.problem_type)
            classes = per_class_metrics(probabilities, labels, splits.label_names)
            with written_beside(folder / f"per_class_{name}.csv") as unfinished:
                write_per_class_csv(classes, unfinished)
            if any(row["AP"] is not None for row in classes):
                with may_fail(folder / f"per_class_{name}.png"):
                    plot_per_class(classes, folder / f"per_class_{name}.png")
            if f"{prefix}{name}_accuracy" in metrics and len(classes) <= 100:  # beyond, nothing can be read in it
                with may_fail(folder / f"confusion_{name}.png"):
                    plot_confusion_matrix(probabilities, labels, splits.label_names, folder / f"confusion_{name}.png")
    return results


def report_baseline(
    data_args: DataArguments, splits: AudioSplits, extractor: ASTFeatureExtractor, results: dict[str, float]
) -> dict[str, float]:
    """What a linear model reaches on the clips that are reported, and whether the network beats it."""
    if not data_args.linear_baseline:
        return {}
    if splits.train is None:
        logger.info("No linear baseline: the data hold no clips that it could be trained on.")
        return {}
    name, rows = ("validation", splits.validation) if splits.test is None else ("test", splits.test)
    baseline = linear_baseline(splits.train, rows, extractor, len(splits.label_names))
    metric = "accuracy" if f"{name}_accuracy" in results else "mAP"
    network, linear = results[f"{name}_{metric}"], baseline[metric]
    verdict = "beats" if network > linear else "does not beat"
    logger.info(f"{name} {metric}: the network reaches {network:.4f} and {verdict} a linear model's {linear:.4f}.")
    return {f"{name}_baseline_{metric}": linear}


def tag_example(
    model: str | ASTForAudioClassification, output_dir: Path, splits: AudioSplits, extractor: ASTFeatureExtractor
) -> None:
    """Load the saved model as anybody would (or take the model itself), tag one held-out clip, and draw it.

    It is the one in the middle: where lengths are free, the rows are sorted by them.
    """
    rows = splits.validation if splits.test is None else splits.test
    index = len(rows) // 2
    row, path = rows[index], rows.with_format(None)[index]["audio"]["path"]
    waveform, numbers = row["waveform"], row["labels"]
    labels = [splits.label_names[number] for number in (numbers if isinstance(numbers, list) else [numbers])]
    waveform = waveform[: extractor.num_samples(extractor.max_length)]  # as in training and evaluation
    classifier = pipeline("audio-classification", model=model, feature_extractor=extractor, device="cpu")
    tags = classifier({"raw": waveform.numpy(), "sampling_rate": extractor.sampling_rate}, top_k=5)
    picture = output_dir / "example.png"
    with may_fail(picture):
        plot_tags(waveform, extractor, tags, picture, Path(path or "clip").name, labels, splits.label_names)
    logger.info(
        f"{path} ({', '.join(labels) or 'without a label'}) is heard as {tags[0]['label']} ({tags[0]['score']:.2f}): "
        f"see {picture}."
    )


if __name__ == "__main__":
    run_command("train")
