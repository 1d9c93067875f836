"""Train and evaluate an Audio Spectrogram Transformer by a recipe.

    accelerate launch scripts/run_audio_classification.py configs/demo.yaml [--key value ...]

A recipe is a saved command line; keys given here win over it. Everything goes to `output_dir`: the model and its
feature extractor (for `from_pretrained` and `pipeline`), the resolved recipe, metrics, checkpoints, a model card and a
picture. Run it again with `--resume_from_checkpoint true` to continue an interrupted run.
"""

import logging
import re
import shutil
import sys
from functools import partial
from pathlib import Path

from modeling_ast.audio import AudioError, require_torchaudio

try:
    require_torchaudio()  # before Transformers fails on a torchaudio that cannot be loaded, without naming it
except ImportError as error:
    sys.exit(str(error))

from huggingface_hub.errors import StrictDataclassError
from transformers import pipeline, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.metrics import compute_metrics
from modeling_ast.data.sources import AudioSplits, DataError, DecodeAudio, load_splits
from modeling_ast.inference.plots import plot_tags
from modeling_ast.training.arguments import ASTTrainingArguments, DataArguments
from modeling_ast.training.baseline import linear_baseline
from modeling_ast.training.collator import ASTDataCollator
from modeling_ast.training.model_card import write_model_card
from modeling_ast.training.recipes import RECIPE_NAME, Arguments, RecipeError, parse_arguments, save_recipe
from modeling_ast.training.start import build_feature_extractor, build_model
from modeling_ast.training.trainer import ASTTrainer

logger = logging.getLogger("run_audio_classification")


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run a recipe.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        All metrics of the run, as saved in `all_results.json`.

    Raises:
        RecipeError, DataError, AudioError: Arguments, data set or a sound file that cannot be used.
    """
    model_args, data_args, augment_args, training_args = arguments = parse_arguments(
        sys.argv[1:] if argv is None else argv
    )
    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.ERROR, format="%(message)s")
    output_dir = Path(training_args.output_dir)
    check_output_dir(output_dir, training_args)
    multi_label = model_args.problem_type == "multi_label_classification"
    metric = "mAP" if multi_label else "accuracy"
    if (training_args.metric_for_best_model or "loss").removeprefix("eval_") not in ("loss", metric):
        raise RecipeError(
            f"Expected metric_for_best_model to be {metric} or loss, got {training_args.metric_for_best_model}."
        )
    set_seed(training_args.seed)

    # Data.
    with training_args.main_process_first(desc="reading the data set"):
        splits = read_splits(data_args, multi_label)
    logger.info(
        f"{data_args.dataset_name}: {len(splits.label_names)} labels, "
        + ", ".join(f"{len(rows)} clips for {name}" for name, rows in splits)
    )

    # Model and feature extractor, from the same arguments.
    try:
        model = build_model(model_args, splits.label_names, allow_fresh_head=training_args.do_train)
        extractor = build_feature_extractor(model_args, model.config)
    except (ValueError, OSError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())  # the libraries' messages have several lines
        raise RecipeError(f"{model_args.model_name_or_path} cannot be used: {reason}") from error
    logger.info(
        f"{model_args.model_name_or_path}: {model.num_parameters() / 1e6:.2f} million parameters, "
        f"{model.config.max_length} frames, {model.config.num_tokens} tokens"
    )
    for name, rows in splits:
        setattr(splits, name, rows.with_transform(DecodeAudio(extractor.sampling_rate)))
    collate = partial(ASTDataCollator, extractor, len(splits.label_names), multi_label)

    # Training.
    results = {}
    trainer = ASTTrainer(
        model=model,
        args=training_args,
        train_dataset=splits.train,
        eval_dataset=splits.validation,
        data_collator=collate(),
        train_collator=collate(augment=augment_args),
        processing_class=extractor,
        compute_metrics=lambda p: compute_metrics(p.predictions, p.label_ids, model_args.problem_type),
    )
    if training_args.do_train:
        if training_args.should_save:
            prepare_output_dir(output_dir, arguments)
        checkpoint = training_args.resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(output_dir)
            logger.info(f"Continuing from {checkpoint}." if checkpoint else "No checkpoint yet: from the beginning.")
        result = trainer.train(resume_from_checkpoint=checkpoint)
        results |= result.metrics
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        trainer.save_model()

    # Evaluation: the epoch was chosen on the validation clips; the test clips are looked at once.
    for name, rows in splits:
        if name != "train":
            metrics = trainer.evaluate(rows, metric_key_prefix=name)
            trainer.log_metrics(name, metrics)
            trainer.save_metrics(name, metrics)
            results |= metrics
    if trainer.is_world_process_zero():
        results |= report_baseline(data_args, splits, extractor, model_args.problem_type, results)
        trainer.save_metrics("baseline", {key: value for key, value in results.items() if "baseline" in key})
        if training_args.do_train:
            write_model_card(
                output_dir, model, extractor, data_args.dataset_name, model_args.model_name_or_path, results
            )
        tag_example(str(output_dir) if training_args.do_train else model, output_dir, splits, extractor)
        logger.info(f"Everything is in {output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return results


def check_output_dir(output_dir: Path, training_args: ASTTrainingArguments) -> None:
    """A folder that holds a run is only used to continue that run, or to start anew when asked."""
    is_new_run = training_args.do_train and not training_args.resume_from_checkpoint
    if output_dir.exists() and not output_dir.is_dir():
        raise RecipeError(f"Expected output_dir to be a folder, got the file {output_dir}.")
    checkpoint = training_args.resume_from_checkpoint
    if isinstance(checkpoint, str) and not Path(checkpoint).is_dir():
        raise RecipeError(f"Expected resume_from_checkpoint to be true or a checkpoint's folder, got {checkpoint}.")
    if is_new_run and (output_dir / RECIPE_NAME).is_file() and not training_args.overwrite_output_dir:
        raise RecipeError(
            f"{output_dir} holds a run already. Continue it with --resume_from_checkpoint true, replace it with "
            "--overwrite_output_dir true, or choose another --output_dir."
        )


def prepare_output_dir(output_dir: Path, arguments: Arguments) -> None:
    """Make the folder, with the recipe in it, and without what is left of a run that this one replaces."""
    output_dir.mkdir(parents=True, exist_ok=True)
    training_args = arguments[-1]
    if (output_dir / RECIPE_NAME).is_file() and not training_args.resume_from_checkpoint:
        for path in output_dir.iterdir():
            if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name):
                shutil.rmtree(path)
            elif path.name in ("trainer_state.json", "README.md", "example.png") or path.match("*_results.json"):
                path.unlink()
    save_recipe(arguments, output_dir / RECIPE_NAME)


def read_splits(data_args: DataArguments, multi_label: bool) -> AudioSplits:
    """The data set, cut to some clips, drawn at random, where the arguments say so."""
    settings = vars(data_args).copy()
    limits = {"train": settings.pop("max_train_samples"), "other": settings.pop("max_eval_samples")}
    del settings["linear_baseline"]
    splits = load_splits(settings.pop("dataset_name"), multi_label=multi_label, **settings)
    for name, rows in splits:
        limit = limits["train" if name == "train" else "other"]
        if limit is not None:
            setattr(splits, name, rows.shuffle(seed=0).select(range(min(limit, len(rows)))))
    return splits


def report_baseline(
    data_args: DataArguments,
    splits: AudioSplits,
    extractor: ASTFeatureExtractor,
    problem_type: str,
    results: dict[str, float],
) -> dict[str, float]:
    """What a linear model reaches on the clips that are reported, and whether the network beats it."""
    if not data_args.linear_baseline:
        return {}
    name, rows = ("validation", splits.validation) if splits.test is None else ("test", splits.test)
    baseline = linear_baseline(splits.train, rows, extractor, len(splits.label_names), problem_type)
    metric = "mAP" if problem_type == "multi_label_classification" else "accuracy"
    network, linear = results[f"{name}_{metric}"], baseline[metric]
    verdict = "beats" if network > linear else "does not beat"
    logger.info(f"{name} {metric}: the network reaches {network:.4f} and {verdict} a linear model's {linear:.4f}.")
    return {f"{name}_baseline_{metric}": linear}


def tag_example(
    model: str | ASTForAudioClassification, output_dir: Path, splits: AudioSplits, extractor: ASTFeatureExtractor
) -> None:
    """Load the saved model as anybody would (or take the model itself), tag one held-out clip, and draw what was "
    "heard."""
    rows = splits.validation if splits.test is None else splits.test
    waveform, path = rows[0]["waveform"], rows.with_format(None)[0]["audio"]["path"]
    classifier = pipeline("audio-classification", model=model, feature_extractor=extractor, device="cpu")
    tags = classifier({"raw": waveform.numpy(), "sampling_rate": extractor.sampling_rate}, top_k=5)
    plot_tags(waveform, extractor, tags, output_dir / "example.png", title=Path(path or "clip").name)
    logger.info(f"{path} is heard as {tags[0]['label']} ({tags[0]['score']:.2f}): see {output_dir / 'example.png'}.")


if __name__ == "__main__":
    try:
        main()
    except (RecipeError, DataError, AudioError) as error:
        message = str(error)
        if message.startswith("Caught "):  # in a worker process; torch put the worker's traceback before it
            message = message.strip().splitlines()[-1].partition(": ")[2]
        sys.exit(f"error: {message}")
