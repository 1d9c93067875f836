"""Whether a model is still the one that results were computed with."""

import hashlib
import json
from typing import Any

import torch

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, ASTModel, __version__

# What says where a configuration comes from, and nothing about the model.
_ORIGIN_KEYS = ("_name_or_path", "transformers_version")


def fingerprint_model(
    model: ASTForAudioClassification | ASTModel, extractor: ASTFeatureExtractor, with_weights: bool = True
) -> str:
    """SHA-256 of all that a prediction depends on besides the clip: weights, settings, features, this version."""
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _ORIGIN_KEYS}
    digest = hashlib.sha256(_json([settings, extractor.to_dict(), __version__]))
    for name, tensor in model.state_dict().items() if with_weights else ():
        digest.update(_json([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
