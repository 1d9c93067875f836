"""The handler of a model on Hugging Face Inference Endpoints, which looks for `handler.py` in the model's repository.

`modeling-ast push --with_handler` copies this file there, and the package beside it. Endpoints put the repository on
Python's path, make one `EndpointHandler` of its folder, and answer each request with what it gives; what it raises
they send back as `{"error": message}`, with status 400.

Source: https://huggingface.co/docs/inference-endpoints/guides/custom_handler.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import torch

from modeling_ast.audio import AudioError
from modeling_ast.inference.pipeline import audio_tagger

# Keywords of the pipeline that a request may set: none that take more of the machine.
PARAMETERS = ("top_k", "function_to_apply", "threshold", "aggregate")


class EndpointHandler:
    """Tags whole recordings, in windows, as `audio_tagger` does.

    Args:
        path: Folder of the model.

    Raises:
        ModelError: No weights, no feature extractor or no configuration of an AST in it.
    """

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tagger = audio_tagger(path, device=device, trust_remote_code=False)

    def __call__(self, data: Mapping[str, Any] | bytes) -> list[dict[str, Any]]:
        """Answer a request.

        Args:
            data: `inputs`, and `parameters` where some are set (`top_k`, `function_to_apply`, `threshold`,
                `aggregate`; see `ASTAudioClassificationPipeline`). The inputs are a sound file, as bytes (the body of
                a request of type audio/...) or in base64, or a waveform as `{"array": numbers in [-1, 1],
                "sampling_rate": Hz}`. Bytes alone are taken for inputs. A text is never a path or an address:
                nothing is read or fetched for a request.

        Returns:
            `[{"score": ..., "label": ...}, ...]`, best first.

        Raises:
            AudioError: Inputs that are no recording.
            TypeError, ValueError: A parameter that is unknown or cannot work.
        """
        request = {"inputs": data} if isinstance(data, (bytes, bytearray)) else data
        if not isinstance(request, Mapping) or "inputs" not in request:
            raise AudioError('Expected a request {"inputs": SOUND, "parameters": {...}}, got one without inputs.')
        parameters = request.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise TypeError(f"Expected parameters by name, got {type(parameters).__name__}.")
        if unknown := [str(name) for name in parameters if name not in PARAMETERS]:
            raise ValueError(f"Expected parameters among {', '.join(PARAMETERS)}, got {', '.join(unknown)}.")
        return self.tagger(read_inputs(request["inputs"]), **parameters)


def read_inputs(inputs: Any) -> bytes | dict[str, Any]:
    """The inputs of a request as a recording.

    Raises:
        AudioError: Neither a sound file's bytes nor a waveform.
    """
    if isinstance(inputs, (bytes, bytearray)):
        return bytes(inputs)
    if isinstance(inputs, str):
        try:  # what a page's FileReader gives begins with "data:audio/wav;base64,"
            return base64.b64decode(inputs.rpartition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise AudioError(
                "Expected inputs to be a sound file in base64, got a text that is none. Addresses are not fetched."
            ) from error
    if isinstance(inputs, Mapping) and {"array", "sampling_rate"} <= inputs.keys():
        return {"array": inputs["array"], "sampling_rate": inputs["sampling_rate"]}
    raise AudioError(
        'Expected inputs to be a sound file (bytes, or base64), or {"array": [...], "sampling_rate": Hz}, got '
        f"{type(inputs).__name__}."
    )
