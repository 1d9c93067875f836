"""Predictions of several models on the same clips, to be averaged; kept in files, so that no model runs twice."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, __version__
from modeling_ast.data.files import written_beside
from modeling_ast.data.metrics import to_probabilities

# What says where a configuration comes from, and nothing about the model.
_ORIGIN_KEYS = ("_name_or_path", "transformers_version")


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


def predict(
    model: ASTForAudioClassification,
    rows: Dataset,
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    batch_size: int = 32,
    num_workers: int = 0,
    description: str = "Predicting",
    return_logits: bool = False,
) -> np.ndarray:
    """Probabilities of all labels for each clip, on a GPU where there is one.

    Args:
        model: Its `problem_type` says whether they are sigmoids or a softmax.
        rows: As `collate` takes them.
        collate: Rows to a batch with `input_values` (batch, frames, mel bins), and `attention_mask` (batch, frames)
            where clips of several lengths are padded to the longest of their batch.
        batch_size: Clips at a time.
        num_workers: Processes that decode clips and compute features; 0 means this one.
        description: In front of the progress bar.
        return_logits: Whether to stop before the sigmoids or the softmax.

    Returns:
        float32 array of shape (clips, num_labels), in the model's own order of the labels.

    Raises:
        ValueError: Probabilities of a model whose `problem_type` has none.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    batches = DataLoader(rows, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    predictions = []
    with torch.inference_mode():
        for batch in tqdm(batches, desc=description):
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            logits = model(**inputs).logits.float().cpu().numpy()
            predictions.append(logits if return_logits else to_probabilities(logits, model.config.problem_type))
    return np.concatenate(predictions)


def fingerprint_model(model: ASTForAudioClassification, extractor: ASTFeatureExtractor) -> str:
    """SHA-256 of all that a prediction depends on besides the clip: weights, settings, features, this version."""
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _ORIGIN_KEYS}
    digest = hashlib.sha256(_json([settings, extractor.to_dict(), __version__]))
    for name, tensor in model.state_dict().items():
        digest.update(_json([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_rows(rows: Dataset, label_names: Sequence[str]) -> str:
    """SHA-256 of labels and clips: of a file path, size and time of change; of sound in the table its bytes."""
    digest = hashlib.sha256(_json(list(label_names)))
    for row in tqdm(rows.with_format(None), desc="Fingerprint of the clips"):
        path, content = row["audio"]["path"], row["audio"]["bytes"]
        if content is not None:
            stamp = hashlib.sha256(content).hexdigest()
        else:  # a missing file is an error where it is decoded
            status = os.stat(path) if os.path.isfile(path) else None
            stamp = status and [status.st_size, status.st_mtime_ns]
        digest.update(_json([path, stamp, row["labels"]]))
    return digest.hexdigest()


def save_predictions(
    path: Path, probabilities: np.ndarray, labels: np.ndarray, label_names: Sequence[str], fingerprint: str
) -> None:
    """Keep predictions; the file is there when it is whole.

    Args:
        path: Ends in .npz.
        probabilities: Of shape (clips, num_labels), in the order of the names.
        labels: Class indices or multi-hot.
        label_names: Of the data.
        fingerprint: Of the model and the rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as unfinished:
        np.savez(
            unfinished,
            probabilities=probabilities,
            labels=labels,
            label_names=list(label_names),
            fingerprint=fingerprint,
        )


def load_predictions(path: Path, fingerprint: str) -> np.ndarray | None:
    """Probabilities that were kept, or `None` where there are none of this fingerprint."""
    if not path.is_file():
        return None
    with np.load(path) as saved:
        return saved["probabilities"] if saved["fingerprint"] == fingerprint else None


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
