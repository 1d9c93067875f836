"""Speed and memory of several ways to do the same, and the rates of this machine that bound them."""

import importlib.metadata
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import logging as transformers_logging

# A shorter measurement would be one of the clock and of the other programs on the machine.
MIN_SECONDS = 0.1


class BenchmarkError(RuntimeError):
    """Two sides that do not give the same, so that comparing their speed would mean nothing; or unusable options."""


def check_agreement(outputs: Mapping[str, Any], reference: str, tolerance: float) -> None:
    """Compare outputs, numbers or tuples of numbers, with those of the reference.

    Raises:
        BenchmarkError: They differ by more than the tolerance times the reference's largest absolute value, or are of
            another shape or not finite.
    """
    if isinstance(outputs[reference], tuple):
        for index in range(len(outputs[reference])):
            check_agreement({name: output[index] for name, output in outputs.items()}, reference, tolerance)
        return
    expected = torch.as_tensor(outputs[reference]).double().cpu()
    for name, output in outputs.items():
        found = torch.as_tensor(output).double().cpu()
        if found.shape != expected.shape:
            raise BenchmarkError(
                f"Expected {name} to give what {reference} gives, of shape {tuple(expected.shape)}, got "
                f"{tuple(found.shape)}. Nothing was timed."
            )
        difference = relative_difference(found, expected)
        if not difference <= tolerance:  # nor NaN
            raise BenchmarkError(
                f"Expected {name} to give what {reference} gives, to {tolerance:g} of the largest value, got a "
                f"difference of {difference:.2g}. Nothing was timed."
            )


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a share of the largest absolute value that was expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def time_in_turn(
    functions: dict[str, Callable[[], Any]], rounds: int, check: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, float]:
    """Median seconds of a call of each function, after one that is not counted.

    In each round every function has its turn, in every other round backwards, so that whatever else the machine does
    slows them all alike. A turn is as many calls as fill `MIN_SECONDS`, at least one.

    Args:
        functions: By name; without arguments.
        rounds: At least 1.
        check: Called with what the uncounted calls gave, by name, before anything is timed.

    Raises:
        ValueError: Less than one round.
    """
    if rounds < 1:
        raise ValueError(f"Expected at least 1 round, got {rounds}.")
    outputs = {name: function() for name, function in functions.items()}
    if check is not None:
        check(outputs)
    del outputs
    seconds = {name: [] for name in functions}
    for number in range(rounds):
        for name in functions if number % 2 == 0 else reversed(functions):
            seconds[name].append(_seconds(functions[name]))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(function: Callable[[], Any]) -> float:
    """Of a call, as a mean over a turn."""
    _synchronize()
    start, calls, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < MIN_SECONDS:
        function()
        _synchronize()
        calls, elapsed = calls + 1, time.perf_counter() - start
    return elapsed / calls


def _synchronize() -> None:
    if torch.cuda.is_initialized():  # a GPU works on behind the call
        torch.cuda.synchronize()


@contextmanager
def threads(count: int):
    """Torch's threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what adapting, loading and exporting report, which would come between the rows of a table."""
    loggers = [logging.getLogger(name) for name in ("transformers", "modeling_ast", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shows_bars:
            transformers_logging.enable_progress_bar()


# Limits


class LayerProducts:
    """The six matrix products with weights of one Transformer layer, bare: what bounds the speed of a model.

    Args:
        config: Sizes of the network.
        tokens: Rows of the products: all tokens of a batch.
    """

    def __init__(self, config: Any, tokens: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        width, wide = config.hidden_size, config.intermediate_size
        make = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
        shapes = [(width, width)] * 4 + [(wide, width), (width, wide)]
        self.weights = [make(shape).to(dtype) for shape in shapes]
        self.inputs = {size: make(tokens, size).to(dtype) for size in (width, wide)}
        self.operations = 2 * tokens * sum(weight.numel() for weight in self.weights)

    @torch.inference_mode()
    def __call__(self) -> None:
        for weight in self.weights:
            F.linear(self.inputs[weight.shape[1]], weight)


def count_operations(model_class: type[nn.Module], config: Any, backward: bool = False) -> int:
    """Floating-point operations of one spectrogram of the configuration's size, through a model without weights.

    Args:
        model_class: Made from the configuration; its output has `logits`.
        config: Of the model; attention is counted in the eager form, whose products are all visible.
        backward: Whether the gradients of all parameters are counted too.
    """
    config = type(config).from_dict({**config.to_dict(), "attn_implementation": "eager"})
    with torch.device("meta"):
        model = model_class(config)
        inputs = torch.empty(1, config.max_length, config.num_mel_bins)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model(inputs).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


# Memory


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module gives in a fresh process, where nothing else has taken memory before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def forget_peak() -> None:
    """Let `resident_bytes(peak=True)` begin anew.

    Raises:
        OSError: No Linux.
    """
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def resident_bytes(peak: bool = False) -> int:
    """Memory that this process has now, or the most that it has had.

    From Linux's /proc: the more usual `getrusage` starts with the peak of the process that started this one.

    Raises:
        OSError: No Linux.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


# Where it was measured


def describe_machine() -> dict[str, str | int]:
    """Processor, graphics card, versions, and the load of the last minute: without them a figure means nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            processor = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    versions = {}
    for package in ("torch", "transformers", "onnxruntime"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": sys.version.split()[0],
        **versions,
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "date": datetime.now().strftime("%Y-%m-%d"),
    }


# The table


@dataclass
class Row:
    """One line of the table. `goal` is of the ratio, or of `ours` where there is nothing to compare it with."""

    section: str
    work: str
    ours: float | None = None
    stock: float | None = None
    unit: str = "s"
    goal: float | None = None
    share: float | None = None
    share_goal: float | None = None
    limit: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as good as stock; `None` where one of them is missing or zero."""
        if not self.ours or not self.stock:
            return None
        return self.stock / self.ours if self.unit in ("s", "h", "MB") else self.ours / self.stock

    @property
    def is_reached(self) -> bool | None:
        """Whether all goals are met; `None` where there is none, or nothing was measured."""
        pairs = [(self.ours if self.stock is None else self.ratio, self.goal), (self.share, self.share_goal)]
        met = [value >= goal for value, goal in pairs if value is not None and goal is not None]
        return all(met) if met else None

    def cells(self) -> list[str]:
        goals = [] if self.goal is None else [_format(self.goal, "%" if self.unit == "%" else "ratio")]
        goals += [] if self.share_goal is None else [f"{_format(self.share_goal, '%')} of the limit"]
        reached = {None: "", True: "yes", False: "no"}[self.is_reached]
        share = "" if self.share is None else f"{_format(self.share, '%')} of {self.limit}"
        ours, stock = (_format(number, self.unit) for number in (self.ours, self.stock))
        ratio = _format(self.ratio, "ratio")
        return [self.section, self.work, ours, stock, ratio, share, ", ".join(goals), reached, self.note]


def _format(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"
    return {"%": f"{100 * value:.1f} %", "ratio": f"{value:.2f} ×"}.get(unit, f"{value:.4g} {unit}")


HEADER = ("section", "work", "ours", "stock", "ours : stock", "share of a limit", "goal", "reached", "remarks")


def markdown_table(rows: list[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fallen_rows(rows: list[Row], earlier: list[Row], allowed: float) -> tuple[list[str], list[str]]:
    """Sentences on rows whose ratio is more than an allowed share under an earlier one, and on those without one now.

    Args:
        rows: Of now.
        earlier: Of the table that they are compared with, by section and work.
        allowed: In [0, 1).
    """
    now, fallen, missing = {(row.section, row.work): row for row in rows}, [], []
    for before in (row for row in earlier if row.ratio is not None):
        row = now.get((before.section, before.work))
        name = f"{before.section}: {before.work}"
        if row is None or row.ratio is None:
            missing.append(f"{name}: no ratio now{f' ({row.note})' if row is not None and row.note else ''}")
        elif not row.ratio >= (1 - allowed) * before.ratio:
            fallen.append(f"{name}: {row.ratio:.2f} now, {before.ratio:.2f} in the table")
    return fallen, missing
