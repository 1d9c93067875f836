"""Train and evaluate an Audio Spectrogram Transformer by a recipe.

    accelerate launch scripts/run_audio_classification.py configs/demo.yaml [--key value ...]
    accelerate launch -m modeling_ast.commands.train RECIPE.yaml [--key value ...]

A recipe is a saved command line; keys given here win over it. Everything goes to `output_dir`: the model and its
feature extractor (for `from_pretrained` and `pipeline`), the resolved recipe, metrics, checkpoints, a model card and
pictures; `results.csv` can be read while the run goes on. With `--resume_from_checkpoint true` the same command
begins a run, goes on with it wherever it was interrupted, and finishes it. With `--do_train false` a trained model
(`--model_name_or_path outputs/demo`) is evaluated: on the clips that the data hold out, or on all of them where they
hold out none (but not on those that it was trained on). Where `output_dir` holds a run, that goes to `evaluation` in
it, and the run's own metrics stay. Exit status: 0, 2 after a fault that is told in one sentence, 130 after Ctrl-C, 143
after SIGTERM. With `--dry_run true` it goes through everything but the work, writes nothing, and tells how long the
run will take.
"""

import logging
import sys
from functools import partial
from pathlib import Path

from transformers import pipeline, set_seed

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands.command_line import run_command
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.model_card import write_model_card
from modeling_ast.data.processes import decided_by_main
from modeling_ast.inference.figures import may_fail
from modeling_ast.inference.plots import plot_tags
from modeling_ast.inference.predictions import label_thresholds
from modeling_ast.inference.result_plots import plot_classes, plot_training_curves
from modeling_ast.training.arguments import Arguments
from modeling_ast.training.baseline import compare_with_baseline
from modeling_ast.training.distillation import find_targets
from modeling_ast.training.dry_run import dry_run
from modeling_ast.training.faults import GOES_ON as GOES_ON  # read by `run_command`
from modeling_ast.training.output_dir import AVERAGE_FOLDER
from modeling_ast.training.results import RESULTS_NAME
from modeling_ast.training.same_run import compare_models
from modeling_ast.training.stages import (
    build,
    entered,
    evaluate,
    make_trainer,
    prepare_clips,
    read_arguments,
    read_data,
    train,
)

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
    arguments = read_arguments(sys.argv[1:] if argv is None else argv)
    with entered(arguments):
        return run(arguments)


def run(arguments: Arguments) -> dict[str, float]:
    """Run what the arguments say: model, data, augmentation and training, as `parse_arguments` gives them."""
    model_args, data_args, _, training_args = arguments
    output_dir = Path(training_args.output_dir)
    set_seed(training_args.seed)
    splits = read_data(arguments, targets := find_targets(arguments))
    model, extractor = build(arguments, splits, targets)
    # Weights that are trained are the main process's everywhere, and new ones may round otherwise on other processors.
    compare_models(lambda: fingerprint_model(model, extractor, with_weights=not training_args.do_train))
    thresholds = label_thresholds(splits.label_names, model.config.thresholds)  # 0.5, but of a calibrated model
    of_training = prepare_clips(arguments, splits, extractor)
    trainer = make_trainer(arguments, splits, model, extractor, thresholds, targets, **of_training)
    if training_args.dry_run:
        results = dry_run(trainer, {name: rows for name, rows in splits if name != "train"})
        if data_args.linear_baseline:
            logger.info("The linear baseline, for which all clips are read once more, is not in the estimate.")
        return results

    results = train(trainer, arguments) if training_args.do_train else {}
    # The epoch was chosen on the validation clips; the test clips are looked at once.
    draw = partial(plot_classes, splits.label_names)
    results |= evaluate(trainer, splits, output_dir, draw, thresholds)
    average_folder, is_evaluated = output_dir / AVERAGE_FOLDER, any(name != "train" for name, _ in splits)
    if training_args.do_train and is_evaluated and decided_by_main(average_folder.is_dir):
        average_model = ASTForAudioClassification.from_pretrained(average_folder)
        average = make_trainer(arguments, splits, average_model, extractor, thresholds)
        average.state.epoch = trainer.state.epoch
        results |= evaluate(average, splits, average_folder, draw, thresholds, "average_")

    if trainer.is_world_process_zero():
        if data_args.linear_baseline:
            results |= compare_with_baseline(splits, extractor, results)
        trainer.save_metrics("baseline", {key: value for key, value in results.items() if "baseline" in key})
        if training_args.do_train:
            table, picture = output_dir / RESULTS_NAME, output_dir / "training_curves.png"
            if table.is_file():  # not without evaluations during training
                with may_fail(picture):
                    plot_training_curves(table, picture)
            names = data_args.dataset_name, model_args.model_name_or_path
            if trainer.trained_model is model:
                write_model_card(output_dir, model, extractor, *names, results, repo_id=trainer.hub_model_id)
        tag_example(str(output_dir) if training_args.do_train else model, output_dir, splits, extractor)
        logger.info(f"Everything is in {output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return results


def tag_example(
    model: str | ASTForAudioClassification, output_dir: Path, splits: AudioSplits, extractor: ASTFeatureExtractor
) -> None:
    """Load the saved model as anybody would (or take the model itself), tag one held-out clip, and draw it.

    It is the one in the middle: where lengths are free, the rows are sorted by them.
    """
    if (rows := splits.validation if splits.test is None else splits.test) is None:
        return
    index = len(rows) // 2
    row = rows[index]
    waveform, numbers, path = row["waveform"], row["labels"], row["path"]
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
