"""Logits to scores: the one place where that is done, for arrays and for tensors."""

import numpy as np
import torch

SCORE_FUNCTIONS = ("softmax", "sigmoid", "none")


def score_function(problem_type: str | None) -> str:
    """What turns logits into scores: "sigmoid", "none" (regression) or "softmax" (all others), as in pipelines."""
    return {"multi_label_classification": "sigmoid", "regression": "none"}.get(problem_type, "softmax")


def to_scores(logits: np.ndarray | torch.Tensor, function: str) -> np.ndarray | torch.Tensor:
    """Turn logits into scores.

    Args:
        logits: Of shape (clips, num_labels).
        function: One of `SCORE_FUNCTIONS`, as `score_function` names it.

    Returns:
        The same shape: of a tensor a tensor of its own type, of an array float32; with "none" the logits as they are.
    """
    if function == "none":
        return logits
    if isinstance(logits, torch.Tensor):
        return logits.sigmoid() if function == "sigmoid" else logits.softmax(dim=-1)
    logits = np.asarray(logits, dtype=np.float32)
    if function == "sigmoid":
        return torch.from_numpy(logits).sigmoid().numpy()
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
