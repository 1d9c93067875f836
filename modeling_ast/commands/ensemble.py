"""Average the predictions of several models on the held-out clips of a recipe.

    modeling-ast ensemble MODEL [MODEL ...] --recipe RECIPE.yaml [--key value ...]

A model is a folder, a name on the Hub, or a checkpoint of the original (.pth), each with its own strides, length,
mel bins and statistics. The recipe, and keys that win over it, say which data are predicted: their test clips, else
their validation clips, else all of them, where they name no splits. Labels are those of the models. The metrics of
each model and of the ensemble, with their 95 % intervals, go to `ensemble_results.csv` in the output folder, the
averaged predictions to `predictions.csv` in it, a row a clip. `ensemble_difference.csv` says by how much the ensemble
is better than its best member, paired on the same clips, and whether that is more than chance.

Under accelerate launch or torchrun each process predicts its share of the clips, on a GPU of its own; the results are
those of a single process.
"""

import argparse
import logging
from pathlib import Path

import pandas

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser
from modeling_ast.data.clip_tables import SPLITS
from modeling_ast.data.files import written_beside
from modeling_ast.data.intervals import Difference
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import METRICS, to_probabilities
from modeling_ast.data.model_arguments import FEATURE_KEYS
from modeling_ast.data.predictions import PREDICTIONS_NAME, decide, list_clips, write_predictions
from modeling_ast.data.processes import gather_values, join_launched, raise_in_all, together
from modeling_ast.data.recipes import parse_data_arguments
from modeling_ast.data.splits import read_evaluation_splits
from modeling_ast.inference.comparison import difference_lines
from modeling_ast.inference.ensemble import compare_with_best, find_label_names, load_member, measure
from modeling_ast.inference.predictions import (
    KEYS,
    WITHOUT,
    choose_rows,
    label_thresholds,
    predict,
)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Evaluate models and their ensemble.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The metrics of each model by its name, with the ends of their intervals, and those of `ensemble`.

    Raises:
        CommandError, ModelError, RecipeError, DataError, AudioError: Options, a model, keys, a data set or a sound
            file that cannot be used.
    """
    is_main = join_launched()
    logging.basicConfig(level=logging.INFO if is_main else logging.WARNING, format="%(message)s")
    with together():
        args, keys = parse_command_line(argv)
        brings_features = not any(Path(name).is_file() for name in args.models)
        effective = {"problem_type", *KEYS, *(() if brings_features else (*FEATURE_KEYS, "num_mel_bins"))}
        model_args, data_args, batch_args = parse_data_arguments(args.recipe, keys, "an ensemble", effective, WITHOUT)
        multi_label = model_args.problem_type == "multi_label_classification"
        label_names = find_label_names(args.models, data_args, multi_label)
        splits = read_evaluation_splits(data_args, multi_label, label_names)
        held_out = next((name for name in ("test", "validation") if getattr(splits, name) is not None), None)
        chosen = choose_rows(splits, args.split or held_out, data_args.dataset_name)
    (rows,) = chosen.values()
    if len(set(sizes := gather_values(len(rows)))) > 1:
        raise_in_all(DataError(f"Expected all processes to read the same clips, got {' and '.join(map(str, sizes))}."))

    predictions, problem_type = {}, model_args.problem_type
    for name in args.models:
        with together():
            model, extractor = load_member(name, model_args, label_names)
        logits, labels = predict(model, extractor, rows, splits, multi_label, batch_args, description=name)
        predictions[name] = to_probabilities(logits, model.config.problem_type)
    mean = predictions["ensemble"] = sum(predictions.values()) / len(args.models)
    clips = list_clips(chosen)
    groups = clips.get("group")
    results = measure(predictions, labels, problem_type, label_names, groups)
    if is_main:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        decisions = decide(mean, problem_type, label_thresholds(label_names, None))
        write_predictions(args.output_dir / PREDICTIONS_NAME, clips, mean, decisions, labels, label_names)
        report(results, args.output_dir / "ensemble_results.csv")
        (difference := args.output_dir / "ensemble_difference.csv").unlink(missing_ok=True)
        if len(args.models) > 1:
            compared = compare_with_best(predictions, "ensemble", results, labels, problem_type, groups)
            report_difference(*compared, difference)
        print(f"Saved in {args.output_dir}.")
    return results


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This command's own arguments, and keys of the recipe."""
    parser = Parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder, name on the Hub, or .pth of the original")
    parser.add_argument("--recipe", required=True, help="whose data are predicted")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ensemble"), help="default: %(default)s")
    parser.add_argument(
        "--split", choices=SPLITS, help="default: test where there is one, else validation, else all clips"
    )
    args, keys = parser.parse_known_args(argv)
    if len(set(args.models)) < len(args.models) or "ensemble" in args.models:
        raise CommandError(f"Expected different models, none of them named ensemble, got {', '.join(args.models)}.")
    if args.output_dir.is_file():
        raise CommandError(f"Expected output_dir to be a folder, got the file {args.output_dir}.")
    return args, keys


def report(results: dict[str, dict[str, float]], path: Path) -> None:
    """Print a table and save it, a row a model."""
    known = {key for metrics in results.values() for key in metrics}
    names = [name for name in METRICS if name in known]
    printed = {model: {name: _with_ends(metrics, name) for name in names} for model, metrics in results.items()}
    print(pandas.DataFrame(list(printed.values()), list(printed)).to_string())
    columns = [key for name in names for key in (name, f"{name}_low", f"{name}_high") if key in known]
    with written_beside(path) as unfinished:
        table = pandas.DataFrame(list(results.values()), list(results), columns)
        table.to_csv(unfinished, index_label="model", lineterminator="\r\n")


def _with_ends(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return ""
    low, high = (metrics.get(f"{name}_{end}") for end in ("low", "high"))
    return f"{metrics[name]:.6g}" + ("" if low is None else f" ({low:.4f} to {high:.4f})")


def report_difference(best: str, differences: dict[str, Difference], path: Path) -> None:
    """Print how much better the ensemble is than its best member, and save that, a row a metric."""
    print(f"{best}, the best of them on these clips, and the ensemble:")
    print("\n".join(difference_lines(differences)))
    rows = [
        {"metric": name, "model": best, "best": found.first, "ensemble": found.second}
        | {"difference": found.second - found.first, "more_than_chance": int(found.is_more_than_chance)}
        | (vars(found.interval) if found.interval else {})
        for name, found in differences.items()
    ]
    with written_beside(path) as unfinished:
        pandas.DataFrame(rows).to_csv(unfinished, index=False, lineterminator="\r\n")


if __name__ == "__main__":
    run_command("ensemble")
