"""Averages of weights: over the epochs or updates of a run while it goes on, or over saved checkpoints."""

import copy
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.loading import as_model_error, load_trained
from modeling_ast.modeling_ast import GEOMETRY_KEYS

logger = logging.getLogger(__name__)

# What makes another model of the same weights, and features that it was not trained on.
_SHAPELESS_KEYS = ("num_attention_heads", "hidden_act")
_FEATURE_KEYS = ("feature_extractor_type", "sampling_rate", "mean", "std", "padding", "do_normalize")
_SHARE_OF_BEGINNING = 0.05  # of an exponential average, from which on it is told


class RunningAverage:
    """The mean of all weights that it was shown, or their exponential average; in float32.

    Args:
        decay: The share that the average keeps of itself at each update, in (0, 1); `None` takes the mean.
        device: Where it is kept: one copy of the model in memory.

    Source: the weight averaging of PSLA and AST (Gong et al., 2021), which keeps all checkpoints and averages at the
        end; the mean is the same.
    """

    def __init__(self, decay: float | None = None, device: str | torch.device = "cpu"):
        self.decay, self.device = decay, device
        self._multi_avg_fn = None if decay is None else get_ema_multi_avg_fn(decay)
        self._names: list[str] = []
        self._averaged: AveragedModel | None = None

    @property
    def count(self) -> int:
        """Sets of weights that it was shown."""
        return 0 if self._averaged is None else int(self._averaged.n_averaged)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The average."""
        return (
            {}
            if self._averaged is None
            else {name: tensor.detach() for name, tensor in zip(self._names, self._averaged.module)}
        )

    def update(self, weights: dict[str, torch.Tensor]) -> None:
        """Take in one more set of weights, in any floating-point type.

        Raises:
            ValueError: Other names or shapes than the first set's.
        """
        if self._averaged is None:
            self._begin(weights)
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        known = {name: tensor.shape for name, tensor in self.weights.items()}
        if different := sorted(name for name in shapes | known if shapes.get(name) != known.get(name)):
            name = different[0]
            raise ValueError(
                f"Expected weights of the same names and shapes, but {name} is {_shape(known.get(name))} in the first "
                f"model and {_shape(shapes.get(name))} in number {self.count + 1}."
            )
        self._averaged.update_parameters(self._module(weights[name] for name in self._names))

    def warn_if_short(self) -> None:
        """Tell where an exponential average of few updates still holds much of the weights that it began with."""
        share = 0.0 if self.decay is None else self.decay ** (self.count - 1)
        if share > _SHARE_OF_BEGINNING:
            longest = _SHARE_OF_BEGINNING ** (1 / max(1, self.count - 1))
            logger.warning(
                f"The average of {self.count} updates still holds {share:.0%} of the weights after the first one: "
                f"with ema_decay up to {longest:.3g} it would hold {_SHARE_OF_BEGINNING:.0%}."
            )

    def save(self, path: str | Path) -> None:
        """Into a safetensors file, so that an interrupted run goes on with it."""
        save_file(self.weights, path, metadata={"count": str(self.count)})

    def load(self, path: str | Path) -> None:
        with safe_open(path, framework="pt") as file:
            count = int(file.metadata()["count"])
        self._begin(load_file(path))
        self._averaged.n_averaged.fill_(count)

    def _begin(self, weights: dict[str, torch.Tensor]) -> None:
        self._names = list(weights)
        self._averaged = AveragedModel(self._module(weights.values()), self.device, multi_avg_fn=self._multi_avg_fn)

    def _module(self, tensors: Iterable[torch.Tensor]) -> nn.ParameterList:
        """What `AveragedModel` takes; a sharded model's own module does not hold its weights."""
        tensors = (tensor.detach().to(self.device, torch.float32) for tensor in tensors)
        return nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)

    def to_model(self, config: ASTConfig) -> ASTForAudioClassification:
        """A model of its own that has the average for weights."""
        model = ASTForAudioClassification(copy.deepcopy(config))
        model.load_state_dict(self.weights)
        return model


def average_checkpoints(folders: Sequence[str | Path]) -> ASTForAudioClassification:
    """A model whose weights are the mean of those of saved models.

    Args:
        folders: Of models of one kind, such as the checkpoints of a run.

    Raises:
        ValueError: No folder.
        ModelError: A folder without a model, or one of another network, geometry, problem type or labels.
    """
    average = RunningAverage()
    model = None
    for folder in folders:
        with as_model_error(folder):
            each, missing = load_trained(folder, ASTForAudioClassification)
            if missing:
                raise ValueError(f"expected a trained AST, but weights are missing, such as {missing[0]}.")
            if model is not None:
                _check_alike(each.config, model.config)
            each.drop_thresholds()  # of its own scores
            average.update(each.state_dict())
        model = model or each
    if model is None:
        raise ValueError("Expected the folders of models to average, got none.")
    model.load_state_dict(average.weights)
    return model


def common_extractor(folders: Sequence[str | Path]) -> ASTFeatureExtractor:
    """The feature extractor that all of some saved models have.

    Raises:
        ModelError: A folder without one, or one whose features are others.
    """
    first = None
    for folder in folders:
        with as_model_error(folder):
            each = ASTFeatureExtractor.from_pretrained(folder)
            first = first or each
            _check_features(each.to_dict(), first.to_dict())
    return first


def _check_features(extractor: dict[str, Any], first: dict[str, Any]) -> None:
    for key in _FEATURE_KEYS:
        if extractor.get(key) != first.get(key):
            raise ValueError(
                f"expected features with {key} {first.get(key)}, as of the first, but it has {extractor.get(key)}."
            )


def _check_alike(config: ASTConfig, first: ASTConfig) -> None:
    if config.id2label != first.id2label:
        raise ValueError("expected models with the same labels in the same order, but it has others than the first.")
    for key in (*GEOMETRY_KEYS, "problem_type", *_SHAPELESS_KEYS):
        if getattr(config, key) != getattr(first, key):
            raise ValueError(
                f"expected models with {key} {getattr(first, key)}, as the first, but it has {getattr(config, key)}."
            )


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))
