"""A yardstick: what a linear model reaches on the plainest summary of the same features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.metrics import compute_metrics, multi_hot
from modeling_ast.fbank import num_samples


def linear_baseline(
    train: Sequence[dict[str, Any]],
    evaluation: Sequence[dict[str, Any]],
    extractor: ASTFeatureExtractor,
    num_labels: int,
) -> dict[str, float]:
    """Metrics of a logistic regression on the mean and standard deviation of each mel bin over the frames of a clip.

    Where every clip has exactly one label the regression is multinomial, else there is one a class.

    Args:
        train: Decoded rows to fit on.
        evaluation: Decoded rows to report on.
        extractor: Of the features; only real frames count, at most `max_length` of them.
        num_labels: Number of labels.
    """
    train_features, train_labels = _summarise(train, extractor, num_labels)
    features, labels = _summarise(evaluation, extractor, num_labels)
    regression = LogisticRegression(max_iter=2000)
    if (train_labels.sum(axis=1) == 1).all():
        problem_type, targets = "single_label_classification", train_labels.argmax(axis=1)
    else:
        problem_type, targets = "multi_label_classification", train_labels
        regression = OneVsRestClassifier(regression)
    classifier = make_pipeline(StandardScaler(), regression).fit(train_features, targets)
    probabilities = np.zeros(labels.shape)
    probabilities[:, classifier.classes_] = classifier.predict_proba(features)  # a class may have no training clip
    return compute_metrics(probabilities, labels, problem_type)


def _summarise(
    rows: Sequence[dict[str, Any]], extractor: ASTFeatureExtractor, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features (clips, 2 * mel bins) and multi-hot labels (clips, num_labels)."""
    features, labels = [], []
    for row in tqdm(rows, desc="Features for the linear baseline"):
        (waveform,) = extractor.to_waveforms([row["waveform"]])
        (frames,) = extractor.fbank([waveform[: num_samples(extractor.max_length, extractor.sampling_rate)]])
        features.append(torch.cat((frames.mean(dim=0), frames.std(dim=0, correction=0))).numpy())
        labels.append(row["labels"])
    return np.stack(features), multi_hot(labels, num_labels).astype(int)
