"""Averages of weights: over the epochs of a run while it goes on, or over saved checkpoints."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_ast import ASTConfig, ASTForAudioClassification
from modeling_ast.modeling_ast import GEOMETRY_KEYS


class RunningAverage:
    """The mean of all weights that it was shown; one copy of the model in memory, on the CPU.

    Source: the weight averaging of PSLA and AST (Gong et al., 2021), which keeps all checkpoints and averages at the
        end; the mean is the same.
    """

    def __init__(self):
        self.count = 0
        self.weights: dict[str, torch.Tensor] = {}

    def update(self, weights: dict[str, torch.Tensor]) -> None:
        """Take in one more set of weights, in any floating-point type; the mean is kept in float32.

        Raises:
            ValueError: Other names or shapes than the first set's.
        """
        weights = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in weights.items()}
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if self.count == 0:
            self.weights, self.count = {name: tensor.clone() for name, tensor in weights.items()}, 1
            return
        known = {name: tensor.shape for name, tensor in self.weights.items()}
        if different := sorted(name for name in shapes | known if shapes.get(name) != known.get(name)):
            name = different[0]
            raise ValueError(
                f"Expected weights of the same names and shapes, but {name} is {_shape(known.get(name))} in the first "
                f"model and {_shape(shapes.get(name))} in number {self.count + 1}."
            )
        self.count += 1
        for name, mean in self.weights.items():
            mean += (weights[name] - mean) / self.count

    def save(self, path: str | Path) -> None:
        """Into a safetensors file, so that an interrupted run goes on with it."""
        save_file(self.weights, path, metadata={"count": str(self.count)})

    def load(self, path: str | Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.count = int(file.metadata()["count"])
        self.weights = load_file(path)

    def to_model(self, config: ASTConfig) -> ASTForAudioClassification:
        """A model of its own that has the mean for weights."""
        model = ASTForAudioClassification(copy.deepcopy(config))
        model.load_state_dict(self.weights)
        return model


def average_checkpoints(folders: Sequence[str | Path]) -> ASTForAudioClassification:
    """A model whose weights are the mean of those of saved models.

    Args:
        folders: Of models of one kind, such as the checkpoints of a run.

    Raises:
        ValueError: No folder, or models of different sizes, lengths, mel bins, strides or labels.
        OSError: A folder without a model.
    """
    average = RunningAverage()
    model = None
    for folder in folders:
        each = ASTForAudioClassification.from_pretrained(folder)
        if model is not None and each.config.id2label != model.config.id2label:
            raise ValueError(f"Expected models with the same labels in the same order, but {folder} has others.")
        for key in (*GEOMETRY_KEYS, "problem_type"):
            if model is not None and getattr(each.config, key) != getattr(model.config, key):
                raise ValueError(
                    f"Expected models with {key} {getattr(model.config, key)}, as the first, but {folder} has "
                    f"{getattr(each.config, key)}."
                )
        average.update(each.state_dict())
        model = model or each
    if model is None:
        raise ValueError("Expected the folders of models to average, got none.")
    model.load_state_dict(average.weights)
    model.config.thresholds = None  # those of the first model's scores
    return model


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))
