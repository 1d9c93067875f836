"""A yardstick: what a linear model reaches on the plainest summary of the same features."""

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.metrics import compute_metrics


def linear_baseline(
    train: Dataset, evaluation: Dataset, extractor: ASTFeatureExtractor, num_labels: int, problem_type: str
) -> dict[str, float]:
    """Metrics of a logistic regression on the mean and standard deviation of each mel bin over the frames of a clip.

    Args:
        train: Decoded rows to fit on.
        evaluation: Decoded rows to report on.
        extractor: Of the features; only real frames count, at most `max_length` of them.
        num_labels: Number of labels.
        problem_type: Of the labels.
    """
    train_features, train_labels = _summarise(train, extractor, num_labels, problem_type)
    features, labels = _summarise(evaluation, extractor, num_labels, problem_type)
    regression = LogisticRegression(max_iter=2000)
    if problem_type == "multi_label_classification":
        regression = OneVsRestClassifier(regression)
    classifier = make_pipeline(StandardScaler(), regression).fit(train_features, train_labels)
    scores = classifier.decision_function(features)
    if scores.ndim == 1:  # two classes: scikit-learn gives the second one's score
        scores = np.stack([-scores, scores], axis=1)
    if problem_type != "multi_label_classification":
        scores = classifier.classes_[scores.argmax(axis=1)][:, None] == np.arange(num_labels)
    return compute_metrics(scores.astype(float), labels, problem_type)


def _summarise(
    rows: Dataset, extractor: ASTFeatureExtractor, num_labels: int, problem_type: str
) -> tuple[np.ndarray, np.ndarray]:
    features, labels = [], []
    for row in tqdm(rows, desc="Features for the linear baseline"):
        frames = extractor.fbank(extractor.to_waveforms([row["waveform"]]))[0][: extractor.max_length]
        features.append(torch.cat((frames.mean(dim=0), frames.std(dim=0, correction=0))).numpy())
        labels.append(row["labels"])
    if problem_type == "multi_label_classification":
        labels = [np.isin(np.arange(num_labels), clip).astype(int) for clip in labels]
    return np.stack(features), np.array(labels)
