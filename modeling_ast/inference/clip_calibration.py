"""A temperature, a threshold a label and what is known at all, found on the held-out clips of a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modeling_ast.data.classifiers import label_order, load_classifier
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.held_out import read_groups
from modeling_ast.data.recipes import BatchArguments
from modeling_ast.data.unknown import UNKNOWN
from modeling_ast.inference.calibrated_model import describe_calibration, write_calibrated_model
from modeling_ast.inference.calibration import calibrate, measure_splits
from modeling_ast.inference.predictions import label_thresholds, predict
from modeling_ast.inference.sound_files import find_files
from modeling_ast.inference.unknown_calibration import (
    Described,
    calibrate_unknown,
    captured_vectors,
    check_can_refuse,
    check_enough_clips,
    describe_unknown,
    find_right,
    unknown_rows,
)
from modeling_ast.loading import ModelError


def calibrate_by_clips(
    source: str,
    dataset: str,
    splits: AudioSplits,
    problem_type: str,
    batch_args: BatchArguments,
    output_dir: Path,
    unknown_share: float | None = None,
    unknown_sounds: Sequence[Path] | None = None,
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
        unknown_share: Of the clips of the labels that may be refused as unknown; `None` refuses none.
        unknown_sounds: Files, folders and lists of sounds of none of the labels, to report on.
        steps: As for `calibrate`.

    Returns:
        `model`, `dataset`, what `calibrate` and `measure_splits` give, and in `unknown` what `calibrate_unknown` does.

    Raises:
        ModelError: A model that cannot be used, or clips on which nothing can be fitted.
        DataError: Too few clips to know by them what is unknown, or as from `find_files`.
        AudioError: A clip that cannot be decoded.
    """
    multi_label = problem_type == "multi_label_classification"
    model, extractor = load_classifier(source, problem_type)
    try:
        label_order(model.config.id2label, splits.label_names)
    except ValueError as error:
        raise ModelError(f"{source} cannot be calibrated on {dataset}: {error}") from error
    if unknown_share is not None:
        check_can_refuse(model)
        clips = splits.validation
        check_enough_clips(len(clips), unknown_share, read_groups(clips), splits.test is not None)
    held_out = {name: rows for name, rows in splits if name != "train"}
    unknown = {UNKNOWN: unknown_rows(find_files(unknown_sounds, output_dir))} if unknown_sounds else {}
    predictions, vectors = {}, {}
    for name, rows in (held_out | unknown).items():
        with captured_vectors(model) as vectors[name]:
            predictions[name] = predict(model, extractor, rows, splits, multi_label, batch_args, description=name)
    predictions.pop(UNKNOWN, None)
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
    section = ""
    if unknown_share is not None:
        known = {
            name: Described(np.concatenate(vectors[name]), find_right(*predictions[name]), read_groups(rows))
            for name, rows in held_out.items()
        }
        others = Described(np.concatenate(vectors[UNKNOWN])) if unknown_sounds else None
        results[UNKNOWN] = calibrate_unknown(model, known, unknown_share, others)
        section = describe_unknown(results[UNKNOWN])
    section = describe_calibration(model, results) + section
    write_calibrated_model(source, output_dir, model, extractor, results, section, curves)
    return results
