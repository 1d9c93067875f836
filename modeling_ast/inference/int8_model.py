"""A model in 8 bits, for the pipeline: onnxruntime computes its logits."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.unknown import can_be_unknown
from modeling_ast.inference.export import export_logits_onnx, open_graph, require_onnx
from modeling_ast.inference.quantization import quantize_onnx
from modeling_ast.loading import ModelError


class Int8ForAudioClassification(nn.Module):
    """What a pipeline asks of a model, computed on the CPU by a graph of 8-bit weights (see `quantize_onnx`).

    Args:
        model: Left as it is, on the CPU.
        extractor: Of the model.

    Raises:
        ModelError: A model on another device, or one that calls sounds unknown, by vectors that the graph does not
            give; and as from `export_logits_onnx`.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, model: ASTForAudioClassification, extractor: ASTFeatureExtractor):
        super().__init__()
        require_onnx()
        self.config = model.config
        if model.device.type != "cpu":
            raise ModelError(f"Expected a model on the CPU for int8, got device {model.device}.")
        if can_be_unknown(model.config):
            raise ModelError("Expected a model without unknown_threshold for int8, which knows labels alone.")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
        with TemporaryDirectory() as folder:
            exact, graph = Path(folder, "exact.onnx"), Path(folder, "int8.onnx")
            export_logits_onnx(model, extractor, exact)
            quantize_onnx(exact, graph)
            self.graph = graph.read_bytes()
        self.session: Any = None

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Each clip by itself, since its values are quantised by the largest of all that are computed with it.

        Args:
            input_values: Features, (batch, frames, num_mel_bins).
            attention_mask: (batch, frames), 1 on each clip's own frames, which come first.
        """
        if self.session is None:
            self.session = open_graph(self.graph, torch.get_num_threads())
        lengths = attention_mask.sum(dim=1).tolist()
        clips = [values[None, :length].numpy() for values, length in zip(input_values, lengths)]
        logits = [self.session.run(["logits"], {"input_values": clip})[0] for clip in clips]
        return SequenceClassifierOutput(logits=torch.from_numpy(np.concatenate(logits)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None}  # which cannot go to another process
