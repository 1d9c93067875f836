"""Evaluate a trained model on clips that it has not seen.

    modeling-ast evaluate MODEL DATA [--split test] [--output_dir OUT] [--key value ...]

DATA is a folder with a sub-folder a class, a list (CSV, JSON), Parquet, a data set on the Hub, or a recipe that names
one of these; keys of a recipe say how it is read (`--audio_dir`, `--label_column_name`, `--split_column_name`, ...).
All of its clips are evaluated unless a split is named. Labels are the model's. Data that have others are refused, or
evaluated without them with `--leave_out_unknown_labels true`: of one label a clip without their clips, of several
labels a clip without these labels alone.

OUT gets `evaluation.json` (metrics, also of each label), `per_class.csv`, and `predictions.csv`, a row a clip: path,
split, truth, prediction, score, and the probability of every label.
"""

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands.command_line import run_command
from modeling_ast.data.clip_tables import SPLITS, AudioSplits
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import DecodeAudio
from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import plain
from modeling_ast.data.metrics import compute_metrics, multi_hot
from modeling_ast.data.recipes import RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_evaluation_splits, was_trained_on
from modeling_ast.inference.ensemble import predict
from modeling_ast.inference.predictions import (
    class_figures,
    decide,
    label_thresholds,
    write_class_figures,
    write_predictions,
)
from modeling_ast.loading import ModelError, load_model

logger = logging.getLogger("evaluate_model")

RESULTS_NAME, CLASSES_NAME, PREDICTIONS_NAME = "evaluation.json", "per_class.csv", "predictions.csv"
# Keys of a recipe that have an effect here, besides those that say where the rows come from ...
KEYS = {"per_device_eval_batch_size", "dataloader_num_workers"}
# ... and those of the latter that have none.
WITHOUT = {"validation_fraction", "max_train_samples", "streaming"}
MAX_SHOWN = 50  # labels; of more the table is in the file alone


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Evaluate a model.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What is written to `evaluation.json`.

    Raises:
        ModelError, RecipeError, DataError, AudioError, DivergedError: A model, arguments, data set or a sound file
            that cannot be used, or a model whose scores are not finite.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, keys = parse_command_line(argv)
    model, extractor = load(args.model)
    problem_type, label_names = model.config.problem_type, list(model.config.id2label.values())
    multi_label = problem_type == "multi_label_classification"

    recipe = args.data if Path(args.data).suffix in (".yaml", ".yml") else None
    keys = keys if recipe else [f"--dataset_name={args.data}", *keys]
    _, data_args, batch_args = parse_data_arguments(recipe, keys, "an evaluation", KEYS, WITHOUT)
    splits = read_evaluation_splits(data_args, multi_label, label_names)
    chosen = choose(splits, args.split, data_args.dataset_name)
    if not chosen.keys().isdisjoint(("train", "all")) and was_trained_on(args.model, data_args.dataset_name):
        logger.warning(
            f"{args.model} was trained on {data_args.dataset_name}: on clips that trained it any model is better than "
            "on others." + (" --split test leaves them out." if len(chosen) > 1 else "")
        )
    rows = concatenate_datasets(list(chosen.values()))
    labels = multi_hot(rows["labels"], len(label_names)) if multi_label else np.array(rows["labels"])

    probabilities = predict(
        model,
        rows.with_transform(DecodeAudio(extractor.sampling_rate, ignore_length=splits.ignore_length)),
        ASTDataCollator(extractor, len(label_names), multi_label),
        batch_size=batch_args.per_device_eval_batch_size,
        num_workers=batch_args.dataloader_num_workers,
        description="Evaluating",
    )
    thresholds = label_thresholds(label_names, model.config.thresholds)
    decisions = decide(probabilities, problem_type, thresholds)
    metrics = compute_metrics(probabilities, labels, problem_type, threshold=thresholds, label_names=label_names)
    classes = class_figures(probabilities, decisions, labels, label_names)
    results = {
        "model": args.model,
        "dataset": data_args.dataset_name,
        "clips": {split: len(part) for split, part in chosen.items()},
        "problem_type": problem_type,
        "metrics": metrics,
        "labels": classes,
    }
    output_dir = args.output_dir or default_folder(args.model, data_args.dataset_name, args.split)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_predictions(output_dir / PREDICTIONS_NAME, describe(chosen), probabilities, decisions, labels, label_names)
    write_class_figures(output_dir / CLASSES_NAME, classes)
    with written_beside(output_dir / RESULTS_NAME) as unfinished:
        text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    report(results, output_dir)
    return results


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This script's own arguments, and keys of a recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="folder or name on the Hub")
    parser.add_argument("data", metavar="DATA", help="folder, list, Parquet, name on the Hub, or recipe (.yaml)")
    parser.add_argument("--split", choices=SPLITS, help="of the data; default: all clips")
    parser.add_argument(
        "--output_dir", type=Path, help="default: a folder in outputs/evaluation, called after model and data"
    )
    args, keys = parser.parse_known_args(argv)
    if args.output_dir is not None and args.output_dir.is_file():
        raise RecipeError(f"Expected output_dir to be a folder, got the file {args.output_dir}.")
    return args, keys


def load(name: str) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """A model and its feature extractor."""
    model, extractor = load_model(name)
    if model.config.problem_type == "regression":
        raise ModelError(f"{name} cannot be used: expected a classifier, got a model for regression.")
    if model.config.problem_type is None:  # as in pipelines
        logger.warning(f"{name} does not say its problem_type, taken for single_label_classification.")
        model.config.problem_type = "single_label_classification"
    return model, extractor


def choose(splits: AudioSplits, split: str | None, source: str) -> dict[str, Dataset]:
    """The rows to evaluate, by split; those of data without splits are called "all"."""
    available = dict(splits)
    if available.keys() == {"train"}:
        available = {"all": splits.train}
    if split is not None and split not in available:
        got = "clips without splits" if "all" in available else ", ".join(available)
        raise RecipeError(
            f"{source}: expected clips of the split {split}, got {got}. Of a list --split_column_name says which "
            "column names it; without --split all clips are evaluated."
        )
    chosen = available if split is None else {split: available[split]}
    sizes = ", ".join(f"{len(rows)} of {name}" for name, rows in chosen.items())
    of_splits = "" if "all" in chosen else f" ({sizes})"
    logger.info(f"{source}: {sum(map(len, chosen.values()))} clips{of_splits}, {len(splits.label_names)} labels")
    return chosen


def describe(chosen: dict[str, Dataset]) -> list[tuple[str, str]]:
    """Path and split of each clip, where it has them."""
    return [
        (row["audio"]["path"] or "", "" if split == "all" else split)
        for split, rows in chosen.items()
        for row in rows.with_format(None)
    ]


def default_folder(model: str, source: str, split: str | None) -> Path:
    """Of the results, by what was evaluated on what."""
    names = [Path(name).resolve().name if Path(name).exists() else name for name in (model, source)]
    name = "_".join([names[0], "on", names[1], *filter(None, [split])])
    return Path("outputs/evaluation") / re.sub(r"[^\w.-]+", "_", name)


def report(results: dict[str, Any], output_dir: Path) -> None:
    """Print the metrics, and those of each label."""
    for name, value in results["metrics"].items():
        print(f"{name:<26} {value:.6g}")
    classes = results["labels"]
    if len(classes) <= MAX_SHOWN:
        columns = [name for name in classes[0] if name != "label"]
        width = max(len(plain(row["label"])) for row in classes)
        print(" ".join([" " * width, *(f"{column:>9}" for column in columns)]))
        for row in classes:
            values = (row[column] for column in columns)
            cells = ("" if value is None else f"{value:.4g}" for value in values)
            print(" ".join([plain(row["label"]).ljust(width), *(f"{cell:>9}" for cell in cells)]))
    print(f"Saved in {output_dir}.")


if __name__ == "__main__":
    run_command("evaluate")
