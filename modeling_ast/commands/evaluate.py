"""Evaluate a trained model on clips that it has not seen.

    modeling-ast evaluate MODEL DATA [--split test] [--output_dir OUT] [--key value ...]

DATA is a folder with a sub-folder a class, a list (CSV, JSON), Parquet, a data set on the Hub, or a recipe that names
one of these; keys of a recipe say how it is read (`--audio_dir`, `--label_column_name`, `--split_column_name`, ...).
All of its clips are evaluated unless a split is named. Labels are the model's. Data that have others are refused, or
evaluated without them with `--leave_out_unknown_labels true`: of one label a clip without their clips, of several
labels a clip without these labels alone.

OUT gets `evaluation.json` (metrics with their 95 % intervals, figures of each label and group), `per_class.csv`, and
`predictions.csv`, a row a clip: path, split, truth, prediction, score, and the probability of every label. The rows
that are mistakes are in `mistakes.csv`, the most confident first, and on `mistakes.html`, a page that plays them where
they are, without a network. Intervals are a bootstrap's over clips or, with `--group_column_name` or
`--group_pattern`, over groups such as speakers. Clips without labels are for `modeling-ast predict`.

Of a model that calls some sounds unknown (calibrate --unknown) the metrics are those of the best label in any case;
added are the share that is refused and the accuracy of the others, and to the table a column `unknown` of 0 and 1.
"""

import logging
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import parse_clips_options
from modeling_ast.data.classifiers import load_classifier
from modeling_ast.data.intervals import as_pairs, metric_intervals
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import check_writable
from modeling_ast.data.metrics import compute_metrics, positive_labels, to_probabilities
from modeling_ast.data.predictions import decide, group_figures, list_clips
from modeling_ast.data.recipes import parse_data_arguments
from modeling_ast.data.splits import check_fold, read_evaluation_splits, was_trained_on
from modeling_ast.data.unknown import UNKNOWN, can_be_unknown
from modeling_ast.inference.evaluation_folder import (
    MAX_SHOWN,
    default_folder,
    group_line,
    metric_lines,
    write_evaluation,
)
from modeling_ast.inference.mistakes import PAGE_NAME
from modeling_ast.inference.predictions import (
    KEYS,
    WITHOUT,
    choose_rows,
    class_figures,
    class_table,
    label_thresholds,
    predict,
)
from modeling_ast.inference.unknown_calibration import captured_vectors, find_right, find_unknown, refusal_metrics

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Evaluate a model.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What is written to `evaluation.json`.

    Raises:
        CommandError, ModelError, RecipeError, DataError, AudioError, DivergedError: Options, a model, keys, a data set
            or a sound file that cannot be used, or a model whose scores are not finite.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, keys = parse_clips_options(__doc__, argv, "evaluation")
    model, extractor = load_classifier(args.model, "single_label_classification")  # as in pipelines
    problem_type, label_names = model.config.problem_type, list(model.config.id2label.values())
    multi_label = problem_type == "multi_label_classification"

    _, data_args, batch_args = parse_data_arguments(args.recipe, keys, "an evaluation", KEYS, WITHOUT)
    output_dir = args.output_dir or default_folder("evaluation", args.model, data_args.dataset_name, args.split)
    check_writable(output_dir, DataError)
    if args.split not in (None, "train"):
        check_fold(args.model, data_args)
    splits = read_evaluation_splits(data_args, multi_label, label_names)
    chosen = choose_rows(splits, args.split, data_args.dataset_name)
    if not chosen.keys().isdisjoint(("train", "all")) and was_trained_on(args.model, data_args.dataset_name):
        logger.warning(
            f"{args.model} was trained on {data_args.dataset_name}: on clips that trained it any model is better than "
            "on others." + (" --split test leaves them out." if len(chosen) > 1 else "")
        )
    rows = concatenate_datasets(list(chosen.values()))
    with captured_vectors(model, can_be_unknown(model.config)) as vectors:
        logits, labels = predict(model, extractor, rows, splits, multi_label, batch_args, description="Evaluating")
    probabilities = to_probabilities(logits, problem_type)
    thresholds = label_thresholds(label_names, model.config.thresholds)
    decisions = decide(probabilities, problem_type, thresholds)
    metrics = compute_metrics(probabilities, labels, problem_type, threshold=thresholds, label_names=label_names)
    clips = list_clips(chosen)
    groups = clips.get("group")
    intervals = metric_intervals(metrics, probabilities, labels, problem_type, thresholds, groups)
    if (is_unknown := find_unknown(model, vectors)) is not None:
        clips[UNKNOWN] = is_unknown.astype(int)
        of_refusal = refusal_metrics(is_unknown, find_right(logits, labels), groups)
        metrics, intervals = ({**first, **second} for first, second in zip((metrics, intervals), of_refusal))
    classes = class_figures(probabilities, decisions, labels, label_names)
    results = {
        "model": args.model,
        "dataset": data_args.dataset_name,
        "clips": {split: len(part) for split, part in chosen.items()},
        "problem_type": problem_type,
        "metrics": metrics,
        "intervals": as_pairs(intervals),
        "labels": classes,
    }
    if groups is not None:
        results["groups"] = group_figures(groups, decisions, positive_labels(probabilities, labels))
    write_evaluation(output_dir, results, clips, rows, probabilities, decisions, labels)
    report(results, output_dir)
    return results


def report(results: dict[str, Any], output_dir: Path) -> None:
    """Print the metrics, and those of each label and group."""
    print("\n".join([*metric_lines(results), *filter(None, [group_line(results)])]))
    if len(results["labels"]) <= MAX_SHOWN:
        print(class_table(results["labels"]))
    print(f"Saved in {output_dir}; {PAGE_NAME} plays what is mistaken.")


if __name__ == "__main__":
    run_command("evaluate")
