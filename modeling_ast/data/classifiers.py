"""Trained classifiers and the labels of data: which model classifies, and which of its outputs is which label."""

import logging
from collections.abc import Sequence

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.loading import ModelError, load_model

logger = logging.getLogger(__name__)


def load_classifier(name: str, problem_type: str) -> tuple[ASTForAudioClassification, ASTFeatureExtractor]:
    """A trained classifier and its feature extractor.

    Args:
        name: Folder or name on the Hub.
        problem_type: Of a model that does not say its own.

    Raises:
        ModelError: A model that cannot be used, or one for regression.
    """
    model, extractor = load_model(name)
    if model.config.problem_type == "regression":
        raise ModelError(f"{name} cannot be used: expected a classifier, got a model for regression.")
    if model.config.problem_type is None:
        logger.warning(f"{name} does not say its problem_type, taken for {problem_type}.")
        model.config.problem_type = problem_type
    return model, extractor


def label_order(id2label: dict[int, str], label_names: Sequence[str]) -> list[int]:
    """Which output of a model stands for each label of the data.

    Args:
        id2label: Of the model.
        label_names: Of the data.

    Raises:
        ValueError: Not the same labels.
    """
    indices = {label: index for index, label in id2label.items()}
    differences = {
        "the model alone has": [name for name in indices if name not in set(label_names)],
        "the data alone have": [name for name in label_names if name not in indices],
    }
    words = [f"{who} {_first(names)}" for who, names in differences.items() if names]
    if words:
        raise ValueError(f"Expected the labels of the data, but {' and '.join(words)}.")
    return [indices[name] for name in label_names]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
