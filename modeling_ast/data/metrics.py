"""Metrics of predictions on a data set, as pure functions of logits and labels."""

import logging

import numpy as np
from sklearn.metrics import average_precision_score

logger = logging.getLogger(__name__)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of clips whose highest logit is the label's.

    Args:
        logits: Of shape (clips, num_labels).
        labels: Class indices (clips,), or one-hot or soft labels (clips, num_labels).
    """
    labels = labels.argmax(axis=1) if labels.ndim == 2 else labels
    return float((logits.argmax(axis=1) == labels).mean())


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Average precision of each class, then the mean over the classes that have positives.

    Args:
        scores: Of shape (clips, num_labels); any monotone function of the probabilities.
        labels: Multi-hot, of the same shape.

    Returns:
        mAP and the number of classes that have no positive clip, and so no average precision.

    Raises:
        ValueError: No class has a positive clip.
    """
    has_positives = labels.any(axis=0)
    if not has_positives.any():
        raise ValueError("Expected positive labels for mAP, got none.")
    average_precision = average_precision_score(labels[:, has_positives], scores[:, has_positives], average=None)
    return float(np.mean(average_precision)), int((~has_positives).sum())


def compute_metrics(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> dict[str, float]:
    """`accuracy` for one label a clip; `mAP` (NaN without any label) and `classes_without_positives` for several."""
    if problem_type == "multi_label_classification":
        if not labels.any():
            logger.warning("No clip that is evaluated has a label, so that there is no mAP.")
            return {"mAP": float("nan"), "classes_without_positives": labels.shape[1]}
        score, missing = mean_average_precision(logits, labels)
        return {"mAP": score, "classes_without_positives": missing}
    return {"accuracy": accuracy(logits, labels)}
