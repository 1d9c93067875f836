"""What a trained model loses if it drops patches half-way, beside wider strides and smaller networks.

    python tests/campaigns/keep_rates.py RUN [RUN ...] [--others RUN ...] [--after 1 2] [--rates 0.9 0.7 ...]

A RUN is a folder of a training with its recipe, as modeling-ast train or tests/campaigns/learning.py leaves it; its
clips are those that the recipe holds out, all at the model's own length. After a layer the patches stay that the two
special tokens attend to most in it, mean over heads (EViT: Liang et al., "Not All Patches are What You Need", 2022).
Of the others nothing stays, or one token that is their mean by that attention (fused). Wider strides are of the same
weights, as from_pretrained adapts them. --others are runs that were trained with other strides or sizes, on features
of the same shape.

In the table: how many clips are named rightly over all runs, and the time of a forward pass of 8 clips as a share of
the whole model's, in turn with it, a median of --rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import torch

from modeling_ast import ASTConfig, ASTForAudioClassification
from modeling_ast.data.decoding import decode
from modeling_ast.data.recipes import parse_data_arguments
from modeling_ast.data.splits import read_splits
from modeling_ast.inference.predictions import KEYS
from modeling_ast.loading import load_model

BATCH = 8
Forward = Callable[[torch.Tensor], torch.Tensor]  # features to logits


def main(argv: list[str] | None = None) -> pandas.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--others", nargs="*", type=Path, default=[])
    parser.add_argument("--after", type=int, nargs="+", default=[1, 2], help="layers, but for the last")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.5, 0.35, 0.25])
    parser.add_argument(
        "--strides", type=int, nargs="+", default=[10, 12, 16, 24], help="over time, of the same weights"
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    rows = []
    with torch.inference_mode():
        for run in args.runs:
            model, features, labels = read_run(run)
            ways = dict(list_ways(run, model, args.after, args.rates, args.strides))
            rows += measure(ways, model, features, labels, args.rounds)
            print(f"{run}: {len(labels)} clips, {rows[-len(ways)]['right']} right", flush=True)
        for run in args.others:
            model, features, labels = read_run(run)
            whole = load_model(find_model(args.runs[0]))[0]
            rows += measure({name_of(model.config): plain(model)}, whole, features, labels, args.rounds)
    table = pandas.DataFrame(rows).groupby("way", sort=False)[["right", "clips", "time"]]
    table = table.agg({"right": "sum", "clips": "sum", "time": "median"})
    table["right"] /= table["clips"]
    print("| | clips | right | time |\n|---|---|---|---|")
    for way, row in table.iterrows():
        print(f"| {way} | {row['clips']:.0f} | {100 * row['right']:.1f} % | {row['time']:.2f} |")
    return table


def find_model(run: Path) -> Path:
    return run / "model" if (run / "model").is_dir() else run


def read_run(run: Path) -> tuple[ASTForAudioClassification, torch.Tensor, np.ndarray]:
    """The model, and features and labels of what its recipe holds out."""
    _, data_args, _ = parse_data_arguments(str(run / "recipe.yaml"), [], "a campaign", KEYS)
    rows = read_splits(data_args, multi_label=False).validation
    model, extractor = load_model(find_model(run))
    clips = decode(rows, extractor.sampling_rate)
    features = [extractor(clip["waveform"], return_tensors="pt", padding="max_length") for clip in clips]
    return model.eval(), torch.cat([each["input_values"] for each in features]), np.array(rows["labels"])


def list_ways(
    run: Path, model: ASTForAudioClassification, after: list[int], rates: list[float], strides: list[int]
) -> Iterable[tuple[str, Forward]]:
    yield "all patches", plain(model)
    for layer in after:
        for fuses in (False, True):
            for rate in rates:
                name = f"{100 * rate:.0f} % after layer {layer}{', the others fused' if fuses else ''}"
                yield name, partial(forward_keeping, model, layer, rate, fuses)
    for stride in strides:
        wider = ASTForAudioClassification.from_pretrained(find_model(run), time_stride=stride)
        yield f"stride of {stride} frames, the same weights", plain(wider.eval())


def plain(model: ASTForAudioClassification) -> Forward:
    return lambda features: model(features).logits


def name_of(config: ASTConfig) -> str:
    sizes = f"{config.num_hidden_layers} layers, {config.hidden_size} wide"
    return f"trained so: stride of {config.time_stride} frames, {sizes}"


def forward_keeping(
    model: ASTForAudioClassification, after: int, rate: float, fuses: bool, features: torch.Tensor
) -> torch.Tensor:
    """Logits, where after a layer the patches stay that the special tokens attend to most."""
    body = model.audio_spectrogram_transformer
    hidden = body.embeddings(features, None, None)
    layers = body.encoder.layer
    for number, layer in enumerate(layers, start=1):
        attended = attention_of_special_tokens(layer, hidden) if number == after else None
        hidden, _ = layer(hidden, None, False, 2 if number == len(layers) else None)
        if attended is None or number == len(layers):
            continue
        num_kept = max(1, round(rate * attended.shape[1]))
        order = attended.argsort(dim=1, descending=True).unsqueeze(2) + 2
        kept, dropped = (hidden.take_along_dim(part, dim=1) for part in (order[:, :num_kept], order[:, num_kept:]))
        tokens = [hidden[:, :2], kept]
        if fuses and dropped.shape[1]:
            weights = attended.sort(dim=1, descending=True).values[:, num_kept:, None]
            tokens.append((weights * dropped).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True))
        hidden = torch.cat(tokens, dim=1)
    return model.classifier(body.layernorm(hidden)[:, :2].mean(dim=1))


def attention_of_special_tokens(layer: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """What the two pay to each patch in a layer, mean over them and the heads: (batch, patches)."""
    attention, normed = layer.attention.attention, layer.layernorm_before(hidden)
    query, key = (
        projected.unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
        for projected in (attention.query(normed[:, :2]), attention.key(normed))
    )
    weights = (query @ key.transpose(2, 3) * attention.head_dim**-0.5).softmax(dim=-1)
    return weights[:, :, :, 2:].mean(dim=(1, 2))


def measure(
    ways: dict[str, Forward], whole: ASTForAudioClassification, features: torch.Tensor, labels: np.ndarray, rounds: int
) -> list[dict]:
    """How many clips each way names rightly, and its time beside the whole model's."""
    rows, batch = [], features[:BATCH]
    for way, forward in ways.items():
        found = torch.cat([forward(part) for part in features.split(BATCH)]).argmax(dim=1).numpy()
        shares = [seconds(forward, batch) / seconds(plain(whole), batch) for _ in range(rounds)]
        right = int((found == labels).sum())
        rows.append({"way": way, "right": right, "clips": len(labels), "time": statistics.median(shares)})
    return rows


def seconds(forward: Forward, batch: torch.Tensor) -> float:
    begin = time.perf_counter()
    forward(batch)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
