"""An ensemble: models of different sizes, and checkpoints of the original, with labels in common, and its figures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, load_original_checkpoint
from modeling_ast.conversion import checkpoint_layout
from modeling_ast.data.classifiers import label_order, load_classifier
from modeling_ast.data.intervals import Difference, as_ends, metric_differences, metric_intervals
from modeling_ast.data.metrics import compute_metrics, positive_labels
from modeling_ast.data.model_arguments import FEATURE_KEYS, ModelArguments
from modeling_ast.data.predictions import decide
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.splits import read_label_names, read_splits
from modeling_ast.loading import ModelError, as_model_error

logger = logging.getLogger(__name__)


def find_label_names(models: Sequence[str], data_args: DataArguments, multi_label: bool) -> list[str]:
    """Those of the models; where none of them names its labels, those of the data, in their order.

    Args:
        models: Folders, names on the Hub, or checkpoints of the original, which name no labels.
        data_args: Of the data.
        multi_label: Whether a clip may have several labels.

    Raises:
        ModelError: A model that cannot be used, or has other labels than the first one.
        DataError: As from `read_splits`.
    """
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


def load_member(
    name: str, model_args: ModelArguments, label_names: Sequence[str]
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """A classifier and its feature extractor.

    Args:
        name: Folder, name on the Hub, or checkpoint of the original.
        model_args: Of a recipe: what a model does not say of itself.
        label_names: Of the data; a checkpoint of the original gets them.

    Raises:
        ModelError: A model that cannot be used, or one for regression.
    """
    if Path(name).is_file():
        return _load_original(name, model_args, label_names)
    return load_classifier(name, model_args.problem_type)


def _load_original(
    name: str, model_args: ModelArguments, label_names: Sequence[str]
) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    bins = model_args.given(["num_mel_bins"])
    with as_model_error(name):
        model = load_original_checkpoint(name, **bins, id2label=dict(enumerate(label_names)))
        extractor_class = checkpoint_layout(name).extractor_class
    logger.warning(f"{name} names no labels: its outputs are taken for those of the data, in their order.")
    options = ASTFeatureExtractor.options_for(model.config) | model_args.given(FEATURE_KEYS)
    return model, extractor_class(**options)


def measure(
    predictions: Mapping[str, np.ndarray],
    labels: np.ndarray,
    problem_type: str,
    label_names: Sequence[str],
    groups: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """The metrics of each model, with the ends of their intervals.

    Args:
        predictions: Probabilities by model, (clips, num_labels).
        labels: Class indices or multi-hot.
        problem_type: Of the data.
        label_names: Of the columns.
        groups: Of the clips, as for `metric_intervals`.
    """
    results = {}
    for name, probabilities in predictions.items():
        metrics = compute_metrics(probabilities, labels, problem_type, label_names=label_names)
        intervals = metric_intervals(metrics, probabilities, labels, problem_type, groups=groups)
        results[name] = metrics | as_ends(intervals)
    return results


def compare_with_best(
    predictions: Mapping[str, np.ndarray],
    ensemble: str,
    results: Mapping[str, Mapping[str, float]],
    labels: np.ndarray,
    problem_type: str,
    groups: Sequence[str] | None = None,
) -> tuple[str, dict[str, Difference]]:
    """The member of an ensemble that is best on these clips, and by how much the ensemble is better, paired.

    These clips have chosen that member, which flatters it: the ensemble is rather better than told.

    Args:
        predictions: As for `measure`.
        ensemble: The name of the ensemble among them.
        results: As from `measure`.
        labels: Class indices or multi-hot.
        problem_type: Of the data: of one label a clip the best has the highest accuracy, of several the highest mAP.
        groups: As for `measure`.
    """
    metric = "accuracy" if problem_type == "single_label_classification" else "mAP"
    best = max((name for name in predictions if name != ensemble), key=lambda name: results[name][metric])
    pair = [(predictions[name], decide(predictions[name], problem_type, 0.5)) for name in (best, ensemble)]
    return best, metric_differences(pair, positive_labels(predictions[best], labels), groups)
