"""What a second of sound may cost, and the precision and the distance of windows that keep to it."""

import copy
import importlib.util
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from modeling_ast.data.unknown import can_be_unknown
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline

ROUNDS = 3
SHORTEST_HOP = 0.1  # of a window: timelines gain nothing from nearer ones


class Plan(NamedTuple):
    """How to keep to a budget.

    Args:
        dtype: For `compute_in`; `None` is the weights' own.
        hop: Seconds from the start of a window to the start of the next; `None` is the pipeline's own.
    """

    dtype: str | None
    hop: float | None

    def __str__(self) -> str:
        hop = "the usual hop" if self.hop is None else f"--hop {self.hop:g}"
        return f"--dtype {self.dtype} and {hop}" if self.dtype else hop


def find_plan(path: Path) -> Plan | None:
    """What the results in a folder were begun with, to go on with; `None` where there are none."""
    try:
        settings = json.loads((path / "settings.json").read_bytes())
        plan = Plan(settings.get("dtype"), settings["hop"])
        print(f"{path} was begun with {plan}, and goes on so, whatever the budget.", file=sys.stderr)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):  # which `TagsFolder` tells of
        return None
    return plan


def make_plan(
    classifier: ASTAudioClassificationPipeline, window: float | None, budget: float, batch_size: int = 1
) -> Plan:
    """Measure a model on this machine, with its threads, choose, and say what was chosen.

    The weights' own precision is kept if it affords the usual hop of two thirds of a window; else the first of
    bfloat16, where the processor computes it, and 8 bits, on CPUs with onnxruntime, that does. The hop is then as
    short as the budget affords, from a tenth of a window up. Where none affords the usual hop, the fastest gets a
    longer one, up to a window. What is measured is noise to scores, in a long recording: neither reading is in it nor
    the window at the end of each file.

    Args:
        classifier: Left as it is.
        window: In seconds; `None` is the model's own.
        budget: Seconds of computing a second of sound, above 0: 0.1 is ten times real time.
        batch_size: Windows at a time.

    Raises:
        ValueError: Not even the fastest keeps to the budget with windows one after the other; or a window that
            cannot be.
    """
    classifier.window_keywords(window)
    cutter = classifier.window_cutter(window)
    seconds = cutter.length / classifier.feature_extractor.sampling_rate
    measured: dict[str | None, float] = {}
    for dtype in (None, *faster_dtypes(classifier)):
        measured[dtype] = measure(classifier, window, dtype, batch_size)
        if measured[dtype] / budget <= seconds * 2 / 3:
            break
    else:
        dtype = min(measured, key=measured.get)
    hop = max(measured[dtype] / budget, seconds * SHORTEST_HOP)
    if hop > seconds:
        raise ValueError(
            f"Expected a budget of at least {measured[dtype] / seconds:.3g} seconds of computing a second of sound, "
            f"which {dtype or 'the model'} needs on this machine without overlapping windows, got {budget:g}."
        )
    hop = min(seconds, round(math.ceil(hop * 100) / 100, 2))  # as somebody would give it
    plan, cost = Plan(dtype, hop), measured[dtype] / hop
    speed = f"{cost:.3g} s, {1 / cost:.3g} times real time"
    print(f"Within a budget of {budget:g} s a second of sound: {plan}, {speed}.", file=sys.stderr)
    return plan


def faster_dtypes(classifier: ASTAudioClassificationPipeline) -> list[str]:
    """What may be faster than the weights' own precision on this device, the nearest to it first."""
    is_cpu = classifier.model.device.type == "cpu"
    if is_cpu:
        has_bfloat16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    found = ["bfloat16"] if has_bfloat16 and classifier.model.dtype == torch.float32 else []
    has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    if is_cpu and has_onnx and not can_be_unknown(classifier.model.config):
        found.append("int8")
    return found


def measure(
    classifier: ASTAudioClassificationPipeline, window: float | None, dtype: str | None, batch_size: int
) -> float:
    """Seconds a window, the median of some rounds of one batch of noise each."""
    own = copy.copy(classifier)
    if dtype is not None:
        own.model = copy.deepcopy(classifier.model)
        own.compute_in(dtype)
    length = classifier.window_cutter(window).length
    noise = 0.1 * torch.randn(batch_size * length, generator=torch.Generator().manual_seed(0)).numpy()
    sound = {"raw": noise, "sampling_rate": classifier.feature_extractor.sampling_rate}
    options = {"chunk_length_s": window, "stride_length_s": 0, "batch_size": batch_size, "return_timeline": True}
    own(sound, **options)  # warms up
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        own(sound, **options)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) / batch_size
