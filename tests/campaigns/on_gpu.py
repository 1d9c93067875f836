"""Section of the benchmark for a GPU: features, inference and training, each side at the batch that suits it best."""

import argparse
import gc
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from comparison import (
    RATE,
    agreement,
    count_stock,
    generate_sounds,
    logits_of,
    make_clip,
    make_spectrograms,
    skipped,
    write_sound,
)
from measuring import LayerProducts, Row, in_new_process, relative_difference, time_in_turn
from torch._dynamo.utils import counters
from training_steps import STEP_TOLERANCES, TrainingStep, patchout_keys
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor as StockExtractor
from transformers.models.audio_spectrogram_transformer import ASTForAudioClassification as StockModel
from transformers.utils import is_flash_attn_2_available

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import pack, train

NUM_TRAIN_CLIPS = 1_953_082  # AudioSet's, of 10 s: configs/audioset_full.yaml
# Clips of the whole training: so many that an epoch takes some seconds, and its end, where workers have nothing ready,
# weighs little.
NUM_PACKED_CLIPS = 4096
# A GPU's transform and its convolution (TF32) round otherwise.
CPU_TOLERANCE = 1e-2
# Of the memory, by the batch that is tried: the weights of all sides are there when they take turns.
MOST_MEMORY = 0.8


def gpu(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    if torch.cuda.is_available():
        yield from on_device(args, folder, torch.device("cuda"), torch.bfloat16)
    else:
        yield skipped("gpu", "features, inference and training on a GPU", "no CUDA device")


def on_device(
    args: argparse.Namespace,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    largest_batch: int = 1024,
    num_packed_clips: int = NUM_PACKED_CLIPS,
) -> Iterator[Row]:
    """The same on a GPU, and what there is to do only there; first what matters most, should the time run out."""
    sides = Sides(args, folder, device, dtype, largest_batch)
    yield from features(sides)
    yield from beside_the_cpu(sides)
    yield from inference(sides)
    rates, batches = yield from training_steps(sides)
    if device.type == "cuda":
        yield training_memory(sides, min(batches["ours"], batches["stock"]))
    side = "patchout" if "patchout" in rates else "ours"
    yield whole_training(sides, side, batches[side], rates[side], num_packed_clips)
    yield any_length(sides)


@dataclass
class Sides:
    """What is compared, by name: "stock", "ours", "patchout", and the last two with ", flash" or ", compiled".

    Args:
        args: The benchmark's options.
        folder: With a model that all load.
        device: That computes.
        dtype: That it computes in.
        largest_batch: That is tried.
    """

    args: argparse.Namespace
    folder: Path
    device: torch.device
    dtype: torch.dtype
    largest_batch: int

    def __post_init__(self):
        self.config = ASTConfig.from_pretrained(self.folder)
        self.patchout = patchout_keys(self.config)
        name = str(self.dtype).removeprefix("torch.")
        self.what = f"{self.args.size}, {self.args.max_length} frames, {name}"

    def build(self, side: str, **keys) -> torch.nn.Module:
        kind = StockModel if side == "stock" else ASTForAudioClassification
        keys |= self.patchout if side.startswith("patchout") else {}
        keys |= {"attn_implementation": "flash_attention_2"} if side.endswith("flash") else {}
        model = kind.from_pretrained(self.folder, **keys).to(self.device)
        if side.endswith("compiled"):
            model.compile(dynamic=False)
        return model

    def forward(self, side: str, batch_size: int) -> Callable[[], torch.Tensor]:
        model, inputs = self.build(side, dtype=self.dtype).eval(), make_spectrograms(self.args, batch_size)
        return logits_of(model, inputs.to(self.device, self.dtype))

    def step(self, side: str, batch_size: int) -> TrainingStep:
        return TrainingStep(self.build(side), make_spectrograms(self.args, batch_size).to(self.device), self.dtype)

    def compare(
        self, make: Callable[[str, int], Callable], kinds: list[str], operations: int
    ) -> tuple[dict[str, float], dict[str, int], float]:
        """Clips a second of each side, and of stock's, at its best batch, and compiled; these batches; and the clips a
        second that bare products of as many operations would give.
        """
        tolerance, plain = STEP_TOLERANCES[self.dtype], [side for side in kinds if side != "patchout"]
        agreement(plain, tolerance)({side: make(side, 2)() for side in [*plain, "stock"]})
        batches = {side: best_batch(partial(make, side), self.largest_batch) for side in [*kinds, "stock"]}
        batches |= {f"{side}, compiled": batches[side] for side in kinds if not side.endswith("flash")}
        torch._dynamo.reset()
        bare = LayerProducts(self.config, batches["ours"] * self.config.num_tokens, self.dtype, self.device)
        calls = {side: make(side, size) for side, size in batches.items()}
        check = agreement(["ours, compiled"], tolerance, reference="ours")  # at the same batch
        seconds = time_in_turn({**calls, "products": bare}, self.args.rounds, check)
        rates = {side: size / seconds[side] for side, size in batches.items()}
        return rates, batches, bare.operations / seconds["products"] / operations


def features(sides: Sides) -> Iterator[Row]:
    extractor, stock = (kind.from_pretrained(sides.folder) for kind in (ASTFeatureExtractor, StockExtractor))
    clips = [make_clip(10, seed) for seed in range(min(32, sides.largest_batch))]
    waveforms = torch.from_numpy(np.stack(clips)).to(sides.device)
    calls = {"ours": lambda: extractor(waveforms, sampling_rate=RATE, return_tensors="pt")["input_values"]}
    calls["stock"] = lambda: stock(clips, sampling_rate=RATE, return_tensors="pt")["input_values"]
    seconds = time_in_turn(calls, sides.args.rounds, agreement(["ours"], CPU_TOLERANCE))
    work, note = f"features of {len(clips)} clips of 10 s", "stock's is on the CPU"
    yield Row("gpu", work, seconds["ours"], seconds["stock"], note=note)


def beside_the_cpu(sides: Sides) -> Iterator[Row]:
    """How far features and logits are from those of a CPU, both in float32."""
    extractor, model = ASTFeatureExtractor.from_pretrained(sides.folder), sides.build("ours").eval()
    waveforms = torch.from_numpy(np.stack([make_clip(10, seed) for seed in range(2)]))
    here = extractor(waveforms.to(sides.device), sampling_rate=RATE, return_tensors="pt")["input_values"]
    there = extractor(waveforms, sampling_rate=RATE, return_tensors="pt")["input_values"]
    results = {"features": (here, there), "logits": (logits_of(model, there.to(sides.device))(),)}
    results["logits"] += (logits_of(model.cpu(), there)(),)
    for what, (here, there) in results.items():
        agreement(["GPU"], CPU_TOLERANCE, reference="CPU")({"GPU": here, "CPU": there})
        work, unit = f"{what} in fp32, difference from the CPU's", "of the largest"
        yield Row("gpu", work, relative_difference(here.cpu(), there), unit=unit)


def inference(sides: Sides) -> Iterator[Row]:
    kinds = ["ours", *(["ours, flash"] if is_flash_attn_2_available() else [])]
    rates, batches, bare = sides.compare(sides.forward, kinds, count_stock(sides.folder, sides.args.max_length))
    stock = rates.pop("stock")
    for side, rate in rates.items():
        note = f"batch {batches[side]}, stock's {batches['stock']}"
        what = f"inference, {sides.what}, {side}"
        yield Row("gpu", what, rate, stock, "clips/s", None, rate / bare, 0.5, "products", note)


def training_steps(sides: Sides) -> Generator[Row, None, tuple[dict[str, float], dict[str, int]]]:
    """
    Returns:
        Clips a second and batch of each side.
    """
    kinds = ["ours", "patchout"] if sides.patchout else ["ours"]
    operations = count_stock(sides.folder, sides.args.max_length, backward=True)
    rates, batches, bare = sides.compare(sides.step, kinds, operations)
    for side, rate in rates.items():
        if side == "stock":
            continue
        name, note = f"training step, {sides.what}, {side}", f"batch {batches[side]}, stock's {batches['stock']}"
        if side.startswith("patchout"):
            yield Row("gpu", name, rate, rates["stock"], "clips/s", goal=3.0, note=note)
        else:
            yield Row("gpu", name, rate, rates["stock"], "clips/s", None, rate / bare, 0.45, "products", note)
        hours = (NUM_TRAIN_CLIPS / number / 3600 for number in (rate, rates["stock"]))
        note = f"derived, of {NUM_TRAIN_CLIPS} clips"
        yield Row("gpu", f"one epoch of AudioSet, {sides.what}, {side}", *hours, unit="h", note=note)
    return rates, batches


def training_memory(sides: Sides, batch_size: int) -> Row:
    """Of both at one batch, the most that two steps take."""
    peaks = []
    for side in ("ours", "stock"):
        free_memory()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step = sides.step(side, batch_size)
        step(), step()  # the optimiser's own tensors are there from the first one on
        peaks.append((torch.cuda.max_memory_allocated() - before) / 1e6)
        del step
    return Row("gpu", f"training step, {sides.what}, batch {batch_size}, memory", *peaks, unit="MB", goal=1.0)


def whole_training(sides: Sides, side: str, batch_size: int, step_rate: float, num_clips: int) -> Row:
    """By the command, from shards as `modeling-ast pack` writes them: whether data keep the device waiting."""
    folder, workers = sides.folder / "whole", max(1, len(os.sched_getaffinity(0)) - 1)
    folder.mkdir()
    sounds = generate_sounds(sides.args.num_files)
    files = [write_sound(folder / f"{number}.flac", sound, 10) for number, sound in enumerate(sounds)]
    lines = [f"{files[number % len(files)]},{number % len(files)}" for number in range(num_clips)]
    (folder / "clips.csv").write_text("\n".join(["audio,label", *lines]) + "\n", encoding="utf-8")
    data = {"problem_type": "multi_label_classification", "dataset_name": str(folder / "clips.csv")}
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(data), encoding="utf-8")  # which is YAML too
    in_new_process(pack.main, [str(recipe), "--output", str(folder / "packed"), "--format", "wav"])
    data["dataset_name"] = str(folder / "packed")
    augmentation = {"mixup_probability": 0.5, "mixup_partner": "batch", "freq_mask_bins": 48}  # AudioSet's recipe
    augmentation |= {"time_mask_frames": sides.args.max_length * 192 // 1024}
    run = {"model_name_or_path": str(sides.folder), "output_dir": str(folder / "run"), "do_train": True}
    run |= {"max_length": sides.args.max_length, "num_train_epochs": 1000, "global_batch_size": batch_size}
    run |= {"learning_rate": 1e-5, "bf16": sides.dtype == torch.bfloat16, "use_cpu": sides.device.type == "cpu"}
    run |= {"eval_strategy": "no", "save_strategy": "no", "dry_run": True}
    run |= {"dataloader_num_workers": workers, "dataloader_persistent_workers": True}
    run |= sides.patchout if side == "patchout" else {}
    recipe.write_text(json.dumps(data | augmentation | run), encoding="utf-8")
    free_memory()  # for the process that trains
    results = in_new_process(train.main, [str(recipe)])
    rate = batch_size / results["dry_run_seconds_per_update"]
    loading = results["dry_run_data_share"]
    note = f"{loading:.0%} of the time for loading, by {workers} workers; batch {batch_size}"
    work = f"whole training from shards of WAV, {sides.what}, {side}"
    return Row("gpu", work, rate, None, "clips/s", None, rate / step_rate, 0.9, "the step alone", note)


def any_length(sides: Sides) -> Row:
    """One model compiled for all lengths: how many graphs several of them take, with the logits of the plain one."""
    torch._dynamo.reset()
    counters.clear()
    compiled, plain = (sides.build("ours", dtype=sides.dtype).eval() for _ in range(2))
    compiled.compile(dynamic=True)
    longest = sides.args.max_length
    lengths = [longest * part // 8 for part in range(3, 9)]
    for length in lengths:
        inputs = make_spectrograms(sides.args, 2)[:, :length].to(sides.device, sides.dtype)
        outputs = {"compiled": logits_of(compiled, inputs)(), "plain": logits_of(plain, inputs)()}
        agreement(["compiled"], STEP_TOLERANCES[sides.dtype], reference="plain")(outputs)
    work = f"graphs of {len(lengths)} lengths, compiled with dynamic=True"
    return Row("gpu", work, counters["stats"]["unique_graphs"], unit="graph(s)", note=f"{lengths} frames")


def best_batch(make: Callable[[int], Callable], largest: int) -> int:
    """The batch size that gives the most clips a second; doubled for as long as that brings 2 % and leaves memory."""
    best, best_rate, size = 2, 0.0, min(4, largest)
    free_memory()
    while size <= largest:
        rate = 0.0
        with suppress(torch.OutOfMemoryError):
            rate = size / time_in_turn({"side": make(size)}, rounds=3)["side"]
        if free_memory() > MOST_MEMORY or not rate or rate < 1.02 * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best


def free_memory() -> float:
    """Give back what nothing needs any more, and tell the largest share of the memory since the last time."""
    if not torch.cuda.is_available():
        return 0.0
    share = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties().total_memory
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return share
