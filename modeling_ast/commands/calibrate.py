"""Make the scores of a trained model as sure as they are right, and find for each label the score that decides.

    modeling-ast calibrate MODEL --recipe RECIPE.yaml [--key value ...] [--target_precision 0.9]

The recipe, and keys that win over it, say which data are predicted. On their validation clips (on all of them, where
they name no splits and did not train the model) a temperature is found and folded into the classifier, so that
Transformers without this package gives the same scores, and then a threshold a label, which the configuration keeps.
The model must not have been trained on these clips. The result is a new folder, with the model card, the recipe and
the licence of the old one; `calibration_results.json` and `calibration.png` in it show before and after, on test clips
too where there are any: those are the figures to report.
"""

import argparse
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.audio import AudioError
from modeling_ast.commands.command_line import run_command
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import DecodeAudio
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import accuracy, f1, multi_hot, positive_labels, to_probabilities
from modeling_ast.data.recipes import RECIPE_NAME, BatchArguments, RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_held_out
from modeling_ast.inference.calibration import (
    expected_calibration_error,
    fit_temperature,
    fit_thresholds,
    fold_temperature,
    negative_log_likelihood,
    reliability,
)
from modeling_ast.inference.ensemble import label_order, predict
from modeling_ast.inference.figures import may_fail
from modeling_ast.inference.predictions import label_thresholds
from modeling_ast.inference.result_plots import plot_reliability
from modeling_ast.inference.timeline import DEFAULT_THRESHOLD
from modeling_ast.loading import load_model
from modeling_ast.training.model_card import CARD_NAME, read_run, write_model_card

logger = logging.getLogger("calibrate")

RESULTS_NAME, PICTURE_NAME = "calibration_results.json", "calibration.png"
# Keys of the recipe that have an effect here, besides those that say where the rows come from.
KEYS = {"problem_type", "per_device_eval_batch_size", "dataloader_num_workers"}
METRICS = {
    **{"nll": "NLL", "ece": "ECE", "accuracy": "accuracy", "macro_f1": "macro F1", "micro_f1": "micro F1"},
    **{"macro_f1_at_thresholds": "macro F1 at thresholds", "micro_f1_at_thresholds": "micro F1 at thresholds"},
}

# One name, one meaning: F1 is that of the model's own decisions, here as everywhere.
F1_WORDS = {
    "single_label_classification": "Accuracy and F1 take the most probable label; at thresholds, F1 counts a label as "
    "named from its threshold on, or from {} on.",
    "multi_label_classification": "F1 counts a label as named from its threshold on, or from {} on.",
}
CARD_HEADING = "\n## Calibration\n"
CARD_TEXT = """
After training, on {clips} validation clips:

{steps}

The metrics further up are those of before. NLL is the negative log-likelihood, ECE the expected calibration error (15
bins). {f1}

{table}
"""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Calibrate a model.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What is written to `calibration_results.json`.

    Raises:
        RecipeError, DataError, AudioError: Arguments, model, data set or a sound file that cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, keys = parse_command_line(argv)
    model_args, data_args, batch_args = parse_data_arguments(args.recipe, keys, "a calibration", KEYS)
    output_dir = choose_output_dir(args.model, args.output_dir)
    multi_label = model_args.problem_type == "multi_label_classification"
    splits = read_held_out(args.model, data_args, multi_label, alone="validation")
    if splits.validation is None:
        raise RecipeError(f"{data_args.dataset_name}: expected clips to calibrate on, got test clips alone.")
    model, extractor = load_model(args.model)
    try:
        if model.config.problem_type is None:
            logger.warning(f"{args.model} does not say its problem_type: {model_args.problem_type}, as in the recipe.")
            model.config.problem_type = model_args.problem_type
        predictions = predict_splits(model, extractor, splits, multi_label, batch_args)
        before = label_thresholds(splits.label_names, model.config.thresholds)
        fitted = fit(model, *predictions["validation"], splits.label_names, args)
        measured, curves = measure(model, predictions, splits.label_names, fitted["temperature"] or 1, before)
    except (AudioError, DataError):
        raise
    except ValueError as error:
        reason = " ".join(str(error).split())  # the libraries' messages have several lines
        raise RecipeError(f"{args.model} cannot be calibrated: {reason}") from error
    results = {"model": args.model, "dataset": data_args.dataset_name, **fitted, **measured}
    print(table(results))
    write_folder(args.model, output_dir, model, extractor, results, curves)
    print(f"Saved in {output_dir}.")
    return results


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This script's own arguments, and keys of the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="folder or name on the Hub; it is not changed")
    parser.add_argument("--recipe", required=True, help="whose validation clips, and test clips, are predicted")
    parser.add_argument(
        "--target_precision", type=float, help="of the label of each threshold, in (0, 1]; default: the best F1"
    )
    parser.add_argument("--no_temperature", action="store_true", help="leave the scores as they are")
    parser.add_argument("--no_thresholds", action="store_true", help="find the temperature alone")
    parser.add_argument("--output_dir", type=Path, help="new folder; default: MODEL_calibrated, beside the model's")
    args, keys = parser.parse_known_args(argv)
    if args.no_temperature and args.no_thresholds:
        raise RecipeError("Nothing to do with both --no_temperature and --no_thresholds: leave one out.")
    if args.no_thresholds and args.target_precision is not None:
        raise RecipeError("--target_precision has no effect with --no_thresholds: leave one out.")
    if args.target_precision is not None and not 0 < args.target_precision <= 1:
        raise RecipeError(f"Expected --target_precision in (0, 1], got {args.target_precision}.")
    return args, keys


def choose_output_dir(model: str, output_dir: Path | None) -> Path:
    """A folder that is not there yet, or empty."""
    source = Path(model).resolve()
    if output_dir is None:
        if not source.is_dir():
            raise RecipeError(f"Expected --output_dir, as {model} is no folder that the new one could lie beside.")
        output_dir = source.with_name(f"{source.name}_calibrated")
    if output_dir.resolve() == source:
        raise RecipeError(f"Expected an --output_dir besides the model's own folder {model}, which is not changed.")
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise RecipeError(
            f"Expected a new folder to write to, but {output_dir} is there: remove it, or choose another --output_dir."
        )
    return output_dir


def predict_splits(
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    splits: AudioSplits,
    multi_label: bool,
    batch_args: BatchArguments,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits, in the data's order of the labels, and labels of the held-out splits by name."""
    label_names = splits.label_names
    order = label_order(model.config.id2label, label_names)
    predictions = {}
    for name, rows in splits:
        if name != "train":
            labels = multi_hot(rows["labels"], len(label_names)) if multi_label else np.array(rows["labels"])
            logits = predict(
                model,
                rows.with_transform(DecodeAudio(extractor.sampling_rate, ignore_length=splits.ignore_length)),
                ASTDataCollator(extractor, len(label_names), multi_label),
                batch_size=batch_args.per_device_eval_batch_size,
                num_workers=batch_args.dataloader_num_workers,
                description=name,
                return_logits=True,
            )
            predictions[name] = (logits[:, order], labels)
    return predictions


def fit(
    model: ASTForAudioClassification,
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: list[str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Find temperature and thresholds, and put them into the model.

    Returns:
        What was found, and which labels have no threshold.
    """
    problem_type = model.config.problem_type
    results = {"problem_type": problem_type, "temperature": None, "target_precision": args.target_precision}
    if not args.no_temperature:
        results["temperature"] = fit_temperature(logits, labels, problem_type)
        fold_temperature(model, results["temperature"])
    if args.no_thresholds:
        return results
    probabilities = to_probabilities(logits / (results["temperature"] or 1), problem_type)
    fitted = fit_thresholds(probabilities, labels, label_names, args.target_precision)
    model.config.thresholds = fitted.thresholds
    for key, reason in (
        ("without_positives", "no validation clip has them"),
        ("precision_not_reached", f"no score reaches a precision of {args.target_precision}"),
    ):
        results[key] = list(getattr(fitted, key))
        if results[key]:
            logger.warning(
                f"{len(results[key])} of {len(label_names)} labels get no threshold, as {reason}; the metrics count "
                f"them from {DEFAULT_THRESHOLD} on: {', '.join(results[key])}."
            )
    return results


def measure(
    model: ASTForAudioClassification,
    predictions: dict[str, tuple[np.ndarray, np.ndarray]],
    label_names: list[str],
    temperature: float,
    before: np.ndarray,
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Each split before and after.

    Args:
        model: After.
        predictions: Logits of before and labels, by split.
        label_names: Of the columns.
        temperature: By which logits are divided after.
        before: The thresholds of before, (num_labels,).

    Returns:
        Metrics by split, with a row a label of what its threshold does; and of the last split, which is the one to
        report, what `plot_reliability` draws.
    """
    problem_type, thresholds = model.config.problem_type, model.config.thresholds or {}
    cuts = label_thresholds(label_names, thresholds)
    results = {}
    for split, (logits, labels) in predictions.items():  # validation, and test where there is one
        results[split], curves = {"clips": len(logits)}, {}
        for when, scaled, decide_at in (("before", logits, before), ("after", logits / temperature, cuts)):
            probabilities = to_probabilities(scaled, problem_type)
            results[split][when] = {
                "nll": negative_log_likelihood(scaled, labels, problem_type),
                "ece": expected_calibration_error(probabilities, labels, problem_type),
                **decisions(probabilities, labels, problem_type, decide_at),
            }
            curves[f"{split}, {when}"] = reliability(probabilities, labels, problem_type)
        columns = precision_recall_fscore_support(
            positive_labels(probabilities, labels), probabilities >= cuts, average=None, zero_division=np.nan
        )
        results[split]["labels"] = [
            {
                "label": name,
                "threshold": thresholds.get(name),
                "clips": int(clips),
                **{
                    key: None if np.isnan(value) else float(value)  # nothing named, or nothing there
                    for key, value in zip(("precision", "recall", "f1"), values)
                },
            }
            for name, *values, clips in zip(label_names, *columns)
        ]
    return results, curves


def decisions(
    probabilities: np.ndarray, labels: np.ndarray, problem_type: str, thresholds: np.ndarray
) -> dict[str, float]:
    """How good the model's own decisions are; of a single label also what its thresholds would decide."""
    macro_f1, micro_f1 = f1(probabilities, labels, thresholds)
    if problem_type == "multi_label_classification":
        return {"macro_f1": macro_f1, "micro_f1": micro_f1}
    of_best = dict(zip(("macro_f1", "micro_f1"), f1(probabilities, labels, None)))
    at_thresholds = {"macro_f1_at_thresholds": macro_f1, "micro_f1_at_thresholds": micro_f1}
    return {"accuracy": accuracy(probabilities, labels), **of_best, **at_thresholds}


def table(results: dict[str, Any]) -> str:
    """The metrics of all splits, in Markdown."""
    keys = [key for key in METRICS if key in results["validation"]["before"]]
    lines = ["| clips | | " + " | ".join(METRICS[key] for key in keys) + " |", "|---|---|" + "---|" * len(keys)]
    for split in ("validation", "test"):
        for when in ("before", "after") if split in results else ():
            cells = (f"{results[split][when][key]:.4f}" for key in keys)
            lines.append(f"| {split} ({results[split]['clips']}) | {when} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_folder(
    name: str,
    output_dir: Path,
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    results: dict[str, Any],
    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> None:
    """The calibrated model, its card and what was found; the folder is there when it is whole."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}.") as unfinished:
        folder = Path(unfinished) / output_dir.name  # the card takes the model's name from its folder
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / RESULTS_NAME).write_text(text, encoding="utf-8")
        with may_fail(PICTURE_NAME):
            plot_reliability(curves, folder / PICTURE_NAME, output_dir.name)
        source = Path(name)
        for path in (source / RECIPE_NAME, *source.glob("LICENSE*")):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        write_card(source, folder, model, extractor, results)
        if output_dir.is_dir():
            output_dir.rmdir()  # empty
        folder.replace(output_dir)


def write_card(
    source: Path,
    folder: Path,
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    results: dict[str, Any],
) -> None:
    """The model's own card under its new name, or a new one, and what was done since."""
    card = folder / CARD_NAME
    if (source / CARD_NAME).is_file():
        text = (source / CARD_NAME).read_text(encoding="utf-8").partition(CARD_HEADING)[0]
        old, new = source.resolve().name, folder.name
        text = text.replace(f"\n# {old}\n", f"\n# {new}\n").replace(f'model="{old}"', f'model="{new}"')
    else:
        run = read_run(source) if source.is_dir() else {"dataset": None, "start": str(source), "results": {}}
        write_model_card(folder, model, extractor, **run)
        text = card.read_text(encoding="utf-8")
    steps = []
    if results["temperature"] is not None:
        steps.append(f"- The logits were divided by a temperature of {results['temperature']:.4f}, in the classifier.")
    if (thresholds := model.config.thresholds) is not None:
        goal = "the best F1"
        if results["target_precision"] is not None:
            goal = f"a precision of {results['target_precision']}"
        steps.append(
            f"- {len(thresholds)} of {model.config.num_labels} labels have a threshold for {goal}, in `config.json`."
        )
    text = (
        text.rstrip("\n")
        + "\n"
        + CARD_HEADING
        + CARD_TEXT.format(
            clips=results["validation"]["clips"],
            steps="\n".join(steps),
            f1=F1_WORDS[results["problem_type"]].format(DEFAULT_THRESHOLD),
            table=table(results),
        )
    )
    card.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_command("calibrate")
