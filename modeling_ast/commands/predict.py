"""Predict clips, with or without labels, by a trained model.

    modeling-ast predict MODEL DATA [--split test] [--output_dir OUT] [--key value ...]

DATA is a folder of sounds at any depth, a list (CSV, JSON), Parquet, a data set on the Hub, or a recipe that names
one of these; keys of a recipe say how it is read (`--audio_dir`, `--audio_column_name`, `--split_column_name`, ...).
Labels that it has are not read: `modeling-ast evaluate` says how right a model is. A clip gets one row, by its
beginning if it is longer than the model; long recordings are for `modeling-ast tag`.

OUT gets `predictions.csv`, a row a clip, split by split: path, split, prediction (of several labels with semicolons
between), score, the highest probability, and the probability of every label. A model that calls some sounds
unknown (calibrate --unknown) adds a column `unknown` of 0 and 1; the prediction is the best label in any case.
"""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
from datasets import concatenate_datasets

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import parse_clips_options
from modeling_ast.data.classifiers import load_classifier
from modeling_ast.data.labels import DataError, plain
from modeling_ast.data.locks import check_writable
from modeling_ast.data.metrics import check_finite, to_probabilities
from modeling_ast.data.predictions import PREDICTIONS_NAME, decide, list_clips, write_predictions
from modeling_ast.data.recipes import parse_data_arguments
from modeling_ast.data.splits import read_prediction_splits
from modeling_ast.data.unknown import UNKNOWN, can_be_unknown
from modeling_ast.inference.evaluation_folder import default_folder
from modeling_ast.inference.predictions import KEYS, WITHOUT, choose_rows, label_thresholds, predict
from modeling_ast.inference.unknown_calibration import captured_vectors, find_unknown

# Keys that say what labels, and groups to report on, are.
OF_LABELS = frozenset(
    (
        *("unlabelled", "label_column_name", "label_separator", "label_file", "leave_out_unknown_labels"),
        *("group_column_name", "group_pattern", "num_folds"),
    )
)
MAX_SHOWN = 20  # labels


def main(argv: list[str] | None = None) -> pandas.DataFrame:
    """Predict clips.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        A row a clip: what tells it from others, and `p_{label}`, the probability of each label.

    Raises:
        CommandError, ModelError, RecipeError, DataError, AudioError, DivergedError: Options, a model, keys, a data set
            or a sound file that cannot be used, or a model whose scores are not finite.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, keys = parse_clips_options(__doc__, argv, "predictions")
    model, extractor = load_classifier(args.model, "single_label_classification")  # as in pipelines
    problem_type, label_names = model.config.problem_type, list(model.config.id2label.values())

    _, data_args, batch_args = parse_data_arguments(args.recipe, keys, "a prediction", KEYS, WITHOUT | OF_LABELS)
    output_dir = args.output_dir or default_folder("predictions", args.model, data_args.dataset_name, args.split)
    check_writable(output_dir, DataError)
    splits = read_prediction_splits(data_args, label_names)
    chosen = choose_rows(splits, args.split, data_args.dataset_name)
    rows = concatenate_datasets(list(chosen.values()))
    with captured_vectors(model, can_be_unknown(model.config)) as vectors:
        logits, _ = predict(model, extractor, rows, splits, False, batch_args, description="Predicting")
    probabilities = to_probabilities(logits, problem_type)
    check_finite(probabilities)
    decisions = decide(probabilities, problem_type, label_thresholds(label_names, model.config.thresholds))
    clips = list_clips(chosen)
    if (is_unknown := find_unknown(model, vectors)) is not None:
        clips[UNKNOWN] = is_unknown.astype(int)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_predictions(output_dir / PREDICTIONS_NAME, clips, probabilities, decisions, None, label_names)
    report(decisions, label_names, output_dir / PREDICTIONS_NAME)
    return clips.join(pandas.DataFrame(probabilities, columns=[f"p_{name}" for name in label_names]))


def report(decisions: np.ndarray, label_names: list[str], table: Path) -> None:
    """Print how many clips got which label."""
    counts = Counter(dict(zip(label_names, decisions.sum(axis=0).tolist())))
    for name, count in counts.most_common(MAX_SHOWN):
        if count:
            print(f"{count:7} {plain(name)}")
    if without := int((~decisions.any(axis=1)).sum()):
        print(f"{without:7} without a label")
    print(f"Saved in {table}.")


if __name__ == "__main__":
    run_command("predict")
