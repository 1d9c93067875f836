"""The linear baseline: logistic regression on mean and deviation of the same features."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.label_checks import read_labels
from modeling_ast.data.metrics import compute_metrics, multi_hot
from modeling_ast.data.recipes import RecipeError

logger = logging.getLogger(__name__)


def check_classes(rows: Dataset, label_names: list[str], key: str = "linear_baseline") -> None:
    """Training clips that a linear model has something to tell apart in; looks at labels alone.

    Args:
        rows: With a column `labels`: a class index, or a list of them.
        label_names: Of the data set.
        key: Of the recipe, which asks for it.

    Raises:
        RecipeError: All clips have one label, and the same.
    """
    found = set(read_labels(rows))
    if len(found) == 1 and len(labels := found.pop()) == 1:
        name = label_names[labels[0]]
        raise RecipeError(
            f"Expected training clips of two classes at least for {key}, got {name} alone. Leave it out, or add clips "
            "of something else."
        )


def compare_with_baseline(
    splits: AudioSplits, extractor: ASTFeatureExtractor, results: dict[str, float]
) -> dict[str, float]:
    """What a linear model reaches on the clips that are reported, as a metric; and log whether the network beats it.

    Args:
        splits: Of decoded clips.
        extractor: Of the features.
        results: Of the network.
    """
    if splits.train is None:
        logger.info("No linear baseline: the data hold no clips that it could be trained on.")
        return {}
    name, rows = ("validation", splits.validation) if splits.test is None else ("test", splits.test)
    baseline = linear_baseline(splits.train, rows, extractor, splits.label_names)
    metric = "accuracy" if f"{name}_accuracy" in results else "mAP"
    network, linear = results[f"{name}_{metric}"], baseline[metric]
    verdict = "beats" if network > linear else "does not beat"
    logger.info(f"{name} {metric}: the network reaches {network:.4f} and {verdict} a linear model's {linear:.4f}.")
    return {f"{name}_baseline_{metric}": linear}


def linear_baseline(
    train: Sequence[dict[str, Any]],
    evaluation: Sequence[dict[str, Any]],
    extractor: ASTFeatureExtractor,
    label_names: Sequence[str],
) -> dict[str, float]:
    """Metrics of a logistic regression on the mean and standard deviation of each mel bin over the frames of a clip.

    Where every clip has exactly one label the regression is multinomial, else there is one a class.

    Args:
        train: Decoded rows to fit on, of what `check_classes` takes; those without a waveform are left out.
        evaluation: Decoded rows to report on.
        extractor: Of the features; only real frames count, at most `max_length` of them.
        label_names: Of the labels.
    """
    num_labels = len(label_names)
    train_features, train_labels = summarise(train, extractor, num_labels)
    features, labels = summarise(evaluation, extractor, num_labels)
    probabilities, problem_type = predict_linearly(train_features, train_labels, features)
    return compute_metrics(probabilities, labels, problem_type, label_names=label_names)


def predict_linearly(
    train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray
) -> tuple[np.ndarray, str]:
    """Probabilities (clips, num_labels) by a logistic regression on standardised features, and their problem type.

    Args:
        train_features: Of shape (training clips, features).
        train_labels: Multi-hot integers, (training clips, num_labels).
        features: Of shape (clips, features).
    """
    num_labels = train_labels.shape[1]
    regression = LogisticRegression(max_iter=2000)
    if (train_labels.sum(axis=1) == 1).all():
        problem_type, targets = "single_label_classification", train_labels.argmax(axis=1)
    else:
        problem_type, targets = "multi_label_classification", train_labels
        regression = OneVsRestClassifier(regression)
    classifier = make_pipeline(StandardScaler(), regression).fit(train_features, targets)
    predicted = classifier.predict_proba(features)
    if problem_type == "multi_label_classification" and num_labels == 1:  # which sklearn takes for two classes
        return predicted[:, 1:], problem_type
    probabilities = np.zeros((len(features), num_labels))
    probabilities[:, classifier.classes_] = predicted  # a class may have no training clip
    return probabilities, problem_type


def summarise(
    rows: Sequence[dict[str, Any]], extractor: ASTFeatureExtractor, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each mel bin, (clips, 2 * mel bins), and multi-hot labels, (clips, num_labels).

    Args:
        rows: Decoded; those without a waveform are left out.
        extractor: Of the features.
        num_labels: Number of labels.
    """
    features, labels = [], []
    for row in tqdm(rows, desc="Features for the linear baseline"):
        if row["waveform"] is None:
            continue
        (waveform,) = extractor.to_waveforms([row["waveform"]])
        (frames,) = extractor.fbank([waveform], extractor.max_length)
        features.append(torch.cat((frames.mean(dim=0), frames.std(dim=0, correction=0))).numpy())
        labels.append(row["labels"])
    return np.stack(features), multi_hot(labels, num_labels).astype(int)
