"""Average the predictions of several models on the held-out clips of a recipe.

    modeling-ast ensemble MODEL [MODEL ...] --recipe RECIPE.yaml [--key value ...]

A model is a folder, a name on the Hub, or a checkpoint of the original (.pth), each with its own strides, length,
mel bins and statistics. The recipe, and keys that win over it, say which data are predicted: their test clips, else
their validation clips, else all of them, where they name no splits. Labels are those of the models. The metrics of
each model and of the ensemble go to `ensemble_results.csv` in the output folder, the predictions to `predictions/` in
it. There they are found again when a model is added, unless the model or the data have changed.
"""

import argparse
import csv
import dataclasses
import hashlib
import logging
import re
from pathlib import Path

import numpy as np
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, load_original_checkpoint
from modeling_ast.commands.command_line import run_command
from modeling_ast.data.clip_tables import SPLITS, AudioSplits
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import DecodeAudio
from modeling_ast.data.metrics import compute_metrics, multi_hot
from modeling_ast.data.recipes import DataArguments, ModelArguments, RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_evaluation_splits, read_label_names, read_splits
from modeling_ast.inference.ensemble import (
    fingerprint_model,
    fingerprint_rows,
    label_order,
    load_predictions,
    predict,
    save_predictions,
)
from modeling_ast.loading import ModelError, load_model
from modeling_ast.training.building import build_feature_extractor

logger = logging.getLogger("ensemble")

COLUMNS = ("mAP", "mAUC", "d_prime", "accuracy", "macro_f1", "micro_f1", "classes_without_positives")
# Keys of the recipe that have an effect here, besides those that say where the rows come from (but for these) ...
KEYS = {"problem_type", "per_device_eval_batch_size", "dataloader_num_workers"}
WITHOUT = {"validation_fraction", "max_train_samples", "streaming"}
# ... and those that a checkpoint of the original does not bring.
FEATURE_KEYS = {"sampling_rate", "num_mel_bins", "mean", "std", "padding"}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Evaluate models and their ensemble.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The metrics of each model by its name, and those of `ensemble`.

    Raises:
        ModelError, RecipeError, DataError, AudioError: A model, arguments, data set or a sound file that cannot be
            used.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, keys = parse_command_line(argv)
    brings_features = not any(Path(name).is_file() for name in args.models)
    effective = KEYS if brings_features else KEYS | FEATURE_KEYS
    model_args, data_args, batch_args = parse_data_arguments(args.recipe, keys, "an ensemble", effective, WITHOUT)
    problem_type = model_args.problem_type
    multi_label = problem_type == "multi_label_classification"

    label_names = find_label_names(args.models, data_args, multi_label)
    rows = choose_rows(read_evaluation_splits(data_args, multi_label, label_names), args.split)
    labels = rows["labels"]
    labels = multi_hot(labels, len(label_names)) if multi_label else np.array(labels)
    rows_fingerprint = fingerprint_rows(rows, label_names)

    results, total = {}, 0
    for name in args.models:
        try:
            model, extractor = load(name, model_args, label_names)
            order = label_order(model.config.id2label, label_names)
        except ModelError:
            raise
        except (ValueError, OSError, StrictDataclassError) as error:  # of a checkpoint of the original
            reason = " ".join(str(error).split())  # the libraries' messages have several lines
            raise ModelError(f"{name} cannot be used: {reason}") from error
        fingerprint = hashlib.sha256((fingerprint_model(model, extractor) + rows_fingerprint).encode()).hexdigest()
        short_name = re.sub(r"[^\w.-]+", "_", name.strip("/."))
        path = args.output_dir / "predictions" / f"{short_name}_{fingerprint[:12]}.npz"
        probabilities = load_predictions(path, fingerprint)
        if probabilities is None:
            probabilities = predict(
                model,
                rows.with_transform(DecodeAudio(extractor.sampling_rate, ignore_length=data_args.ignore_length)),
                ASTDataCollator(extractor, len(label_names), multi_label),
                batch_size=batch_args.per_device_eval_batch_size,
                num_workers=batch_args.dataloader_num_workers,
                description=name,
            )[:, order]
            save_predictions(path, probabilities, labels, label_names, fingerprint)
        else:
            logger.info(f"{name}: predictions taken from {path}")
        results[name] = compute_metrics(probabilities, labels, problem_type, label_names=label_names)
        total = total + probabilities
    results["ensemble"] = compute_metrics(total / len(args.models), labels, problem_type, label_names=label_names)
    report(results, args.output_dir / "ensemble_results.csv")
    return results


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This script's own arguments, and keys of the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder, name on the Hub, or .pth of the original")
    parser.add_argument("--recipe", required=True, help="whose data are predicted")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ensemble"), help="default: %(default)s")
    parser.add_argument(
        "--split", choices=SPLITS, help="default: test where there is one, else validation, else all clips"
    )
    args, keys = parser.parse_known_args(argv)
    if len(set(args.models)) < len(args.models) or "ensemble" in args.models:
        raise RecipeError(f"Expected different models, none of them named ensemble, got {', '.join(args.models)}.")
    if args.output_dir.is_file():
        raise RecipeError(f"Expected output_dir to be a folder, got the file {args.output_dir}.")
    return args, keys


def choose_rows(splits: AudioSplits, split: str | None) -> Dataset:
    """The rows to predict: of the split that is wanted, or test where there is one; all where there are no splits."""
    available = dict(splits)
    split = split or next(name for name in ("test", "validation", "train") if name in available)
    if split not in available:
        raise RecipeError(f"Expected data with a split {split}, got {', '.join(available)}.")
    of_split = f" of the {split} split" if available.keys() != {"train"} else ""
    logger.info(f"{len(available[split])} clips{of_split}, {len(splits.label_names)} labels")
    return available[split]


def find_label_names(models: list[str], data_args: DataArguments, multi_label: bool) -> list[str]:
    """Those of the models; where none of them names its labels, those of the data, in their order."""
    named = {name: read_label_names(name) for name in models if not Path(name).is_file()}
    if not named:
        return read_splits(data_args, multi_label).label_names
    label_names = next(iter(named.values()))
    for name, own in named.items():  # before any of them predicts
        try:
            label_order(dict(enumerate(own)), label_names)
        except ValueError as error:
            raise ModelError(f"{name} cannot be used: {error}") from error
    return label_names


def load(
    name: str, model_args: ModelArguments, label_names: list[str]
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """A model and its feature extractor; what a checkpoint of the original does not bring comes from the recipe."""
    if Path(name).is_file():
        bins = {} if model_args.num_mel_bins is None else {"num_mel_bins": model_args.num_mel_bins}
        model = load_original_checkpoint(name, **bins, id2label=dict(enumerate(label_names)))
        extractor = build_feature_extractor(dataclasses.replace(model_args, model_name_or_path=name), model.config)
        logger.warning(f"{name} names no labels: its outputs are taken for those of the data, in their order.")
        return model, extractor
    model, extractor = load_model(name)
    if model.config.problem_type is None:
        logger.warning(f"{name} does not say its problem_type, taken for {model_args.problem_type}, as in the recipe.")
        model.config.problem_type = model_args.problem_type
    if model.config.problem_type == "regression":
        raise ModelError(
            f"{name} cannot be used: expected a classifier, got a model for regression, which has no probabilities to "
            "average."
        )
    return model, extractor


def report(results: dict[str, dict[str, float]], path: Path) -> None:
    """Print a table and save it, a row a model."""
    columns = [name for name in COLUMNS if any(name in metrics for metrics in results.values())]
    width = max(len(name) for name in results)
    print(" ".join(["model".ljust(width), *(f"{column:>9}" for column in columns)]))
    for name, metrics in results.items():
        cells = [f"{metrics[key]:.6g}" if key in metrics else "" for key in columns]
        print(" ".join([name.ljust(width), *(f"{cell:>{max(9, len(key))}}" for key, cell in zip(columns, cells))]))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["model", *columns])
        writer.writeheader()
        writer.writerows({"model": name, **metrics} for name, metrics in results.items())
    print(f"Saved in {path}.")


if __name__ == "__main__":
    run_command("ensemble")
