"""A temperature and a threshold a label, found on the held-out clips of a data set."""

from pathlib import Path
from typing import Any

from modeling_ast.data.classifiers import load_classifier
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.held_out import read_groups
from modeling_ast.data.recipes import BatchArguments
from modeling_ast.inference.calibrated_model import describe_calibration, write_calibrated_model
from modeling_ast.inference.calibration import calibrate, measure_splits
from modeling_ast.inference.predictions import label_thresholds, predict
from modeling_ast.loading import ModelError


def calibrate_by_clips(
    source: str,
    dataset: str,
    splits: AudioSplits,
    problem_type: str,
    batch_args: BatchArguments,
    output_dir: Path,
    **steps: Any,
) -> dict[str, Any]:
    """Calibrate on validation clips, tell what scores were worth before and are after, and write the model.

    Args:
        source: The model, a folder or a name on the Hub.
        dataset: What the data set is called.
        splits: With `validation`, and perhaps `test` to report on.
        problem_type: Of the data, and of a model that does not say its own.
        batch_args: How the clips are read.
        output_dir: New, or empty.
        steps: As for `calibrate`.

    Returns:
        `model`, `dataset`, and what `calibrate` and `measure_splits` give.

    Raises:
        ModelError: A model that cannot be used, or clips on which nothing can be fitted.
        AudioError: A clip that cannot be decoded.
    """
    multi_label = problem_type == "multi_label_classification"
    model, extractor = load_classifier(source, problem_type)
    predictions = {
        name: predict(model, extractor, rows, splits, multi_label, batch_args, description=name)
        for name, rows in splits
        if name != "train"
    }
    before = label_thresholds(splits.label_names, model.config.thresholds)
    try:
        fitted = calibrate(model, *predictions["validation"], splits.label_names, **steps)
        after = label_thresholds(splits.label_names, model.config.thresholds)
        problem_type, temperature = model.config.problem_type, fitted["temperature"] or 1
        groups = {name: read_groups(rows) for name, rows in splits}
        measured, curves = measure_splits(predictions, problem_type, temperature, before, after, groups)
    except ValueError as error:
        raise ModelError(f"{source} cannot be calibrated: {error}") from error
    results = {"model": source, "dataset": dataset, **fitted, **measured}
    section = describe_calibration(model, results)
    write_calibrated_model(source, output_dir, model, extractor, results, section, curves)
    return results
