"""What is said of clips that are of none of a model's labels.

A softmax divides all probability among the labels, so that a sound of none of them gets one too, often a high one.
"""

import numpy as np

from modeling_ast import ASTConfig
from modeling_ast.data.scores import score_function

UNKNOWN = "unknown"


def can_be_unknown(config: ASTConfig) -> bool:
    """Whether a model tells clips of none of its labels.

    It does not where a clip may have several labels or none in any case, nor where one of them is called so itself.
    """
    is_softmax = score_function(config.problem_type) == "softmax"
    return config.unknown_threshold is not None and is_softmax and UNKNOWN not in config.id2label.values()


def with_unknown(scores: np.ndarray, is_unknown: np.ndarray) -> np.ndarray:
    """Scores with one column more, of `UNKNOWN`: 1 where a clip is of none of the labels, whose scores then are 0.

    Args:
        scores: Of shape (clips, num_labels).
        is_unknown: Booleans (clips,).

    Returns:
        Array of shape (clips, num_labels + 1), of the same type.
    """
    return np.column_stack([np.where(is_unknown[:, None], 0, scores), is_unknown]).astype(scores.dtype)
