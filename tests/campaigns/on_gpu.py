"""Section of the benchmark for a GPU: features, inference and training, each side at the batch that suits it best."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from comparison import RATE, agreement, count_stock, logits_of, make_clip, make_spectrograms, skipped
from measuring import LayerProducts, Row, time_in_turn
from training_steps import STEP_TOLERANCES, TrainingStep, patchout_keys
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor as StockExtractor
from transformers.models.audio_spectrogram_transformer import ASTForAudioClassification as StockModel

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

NUM_TRAIN_CLIPS = 1_953_082  # AudioSet's, of 10 s: configs/audioset_full.yaml


def gpu(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    if torch.cuda.is_available():
        yield from on_device(args, folder, torch.device("cuda"), torch.bfloat16)
    else:
        yield skipped("gpu", "features, inference and training on a GPU", "no CUDA device")


def on_device(
    args: argparse.Namespace, folder: Path, device: torch.device, dtype: torch.dtype, largest_batch: int = 1024
) -> Iterator[Row]:
    """The same on a GPU, each side at the batch that suits it best."""
    extractor, stock_extractor = ASTFeatureExtractor.from_pretrained(folder), StockExtractor.from_pretrained(folder)
    clips = [make_clip(10, seed) for seed in range(min(32, largest_batch))]
    on_it = torch.from_numpy(np.stack(clips)).to(device)
    sides = {"ours": lambda: extractor(on_it, sampling_rate=RATE, return_tensors="pt")["input_values"]}
    sides["stock"] = lambda: stock_extractor(clips, sampling_rate=RATE, return_tensors="pt")["input_values"]
    seconds = time_in_turn(sides, args.rounds, agreement(["ours"], 1e-2))  # its transform rounds otherwise
    note = "stock's is on the CPU"
    yield Row("gpu", f"features of {len(clips)} clips of 10 s", seconds["ours"], seconds["stock"], note=note)

    config = ASTConfig.from_pretrained(folder)
    patchout = patchout_keys(config)

    def build(side: str) -> torch.nn.Module:
        kind = StockModel if side == "stock" else ASTForAudioClassification
        keys = patchout if side.startswith("patchout") else {}
        model = kind.from_pretrained(folder, **keys).to(device)
        if side.endswith("compiled"):
            model.compile(dynamic=False)
        return model

    def forward(side: str, batch_size: int) -> Callable:
        return logits_of(build(side).to(dtype).eval(), make_spectrograms(args, batch_size).to(device, dtype))

    def step(side: str, batch_size: int) -> Callable:
        return TrainingStep(build(side), make_spectrograms(args, batch_size).to(device), dtype)

    what = f"{args.size}, {args.max_length} frames, {str(dtype).removeprefix('torch.')}"
    for work, make, share_goal in (("inference", forward, 0.5), ("training step", step, 0.45)):
        is_training = make is step
        operations = count_stock(folder, args.max_length, backward=is_training)
        tolerance = STEP_TOLERANCES[dtype]
        agreement(["ours"], tolerance)({side: make(side, 2)() for side in ("ours", "stock")})
        kinds = ["ours", "patchout"] if is_training and patchout else ["ours"]
        batches = {side: best_batch(partial(make, side), largest_batch) for side in [*kinds, "stock"]}
        batches |= {f"{side}, compiled": batches[side] for side in kinds}
        torch._dynamo.reset()
        bare = LayerProducts(config, batches["ours"] * config.num_tokens, dtype, device)
        sides = {side: make(side, size) for side, size in batches.items()}
        check = agreement(["ours, compiled"], tolerance, reference="ours")  # at the same batch
        seconds = time_in_turn({**sides, "products": bare}, args.rounds, check)
        rates = {side: size / seconds[side] for side, size in batches.items()}
        stock = rates.pop("stock")
        for side, rate in rates.items():
            name = f"{work}, {what}, {side}"
            note = f"batch {batches[side]}, stock's {batches['stock']}"
            if side.startswith("patchout"):
                yield Row("gpu", name, rate, stock, "clips/s", goal=3.0, note=note)
            else:
                share = operations * rate / (bare.operations / seconds["products"])
                yield Row("gpu", name, rate, stock, "clips/s", None, share, share_goal, "products", note)
            if is_training:
                hours = (NUM_TRAIN_CLIPS / number / 3600 for number in (rate, stock))
                note = f"derived, of {NUM_TRAIN_CLIPS} clips"
                yield Row("gpu", f"one epoch of AudioSet, {what}, {side}", *hours, unit="h", note=note)


def best_batch(make: Callable[[int], Callable], largest: int) -> int:
    """The batch size that gives the most clips a second; doubled for as long as that brings 2 % and fits."""
    best, best_rate, size = 1, 0.0, min(4, largest)
    while size <= largest:
        try:
            rate = size / time_in_turn({"side": make(size)}, rounds=3)["side"]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if rate < 1.02 * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best
