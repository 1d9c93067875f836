"""How well scores of trained models tell sounds of none of their labels from held-out clips of the labels.

    python tests/campaigns/unknown_sounds.py RUN [RUN ...] --unknown FILE|FOLDER|LIST ... [--share 0.05]

A RUN is a folder with a model and its recipe, as tests/campaigns/learning.py leaves them (`model`, `recipe.yaml`).
Known are the clips that its recipe holds out, unknown 200 of those of --unknown, or all (--max_unknown). In the table,
means over the runs: AUROC between both; how many of the unknown ones are taken for known where 95 % of the known ones
are (FPR95); and what a threshold from half of the held-out clips refuses of the other half and of the unknown ones,
over ten such halves. Distances are from training clips or, as calibrate does it, from the half of the held-out ones.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from modeling_ast.data.recipes import parse_data_arguments
from modeling_ast.data.splits import read_splits
from modeling_ast.inference.predictions import KEYS, predict
from modeling_ast.inference.sound_files import find_files
from modeling_ast.inference.unknown_calibration import (
    KnownSounds,
    captured_vectors,
    find_right,
    fit_known_sounds,
    unknown_rows,
)
from modeling_ast.loading import load_model

NUM_HALVES, NEIGHBOURS = 10, 5


class Clips(NamedTuple):
    logits: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray


def main(argv: list[str] | None = None) -> pandas.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--unknown", nargs="+", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--max_unknown", type=int, default=200, help="drawn from all")
    args = parser.parse_args(argv)
    files = find_files(args.unknown, args.runs[0] / "none")
    chosen = np.random.default_rng(0).permutation(len(files))[: args.max_unknown]
    rows, right = [], []
    for run in args.runs:
        trained, held_out, unknown = read_run(run, [files[index] for index in sorted(chosen)])
        right.append(find_right(held_out.logits, held_out.labels).mean())
        for name, figures in measure(trained, held_out, unknown, args.share).items():
            rows.append({"score": name, **figures})
        print(f"{run}: {len(held_out.labels)} held-out clips, {right[-1]:.4f} right", flush=True)
    table = pandas.DataFrame(rows).groupby("score", sort=False).mean()
    print(f"{len(args.runs)} runs, {100 * np.mean(right):.1f} % right, {len(chosen)} unknown clips")
    print(to_markdown(table))
    return table


def read_run(run: Path, files: list) -> tuple[Clips, Clips, Clips]:
    """Training clips, held-out clips and unknown ones."""
    model_args, data_args, batch_args = parse_data_arguments(str(run / "recipe.yaml"), [], "a campaign", KEYS)
    splits = read_splits(data_args, multi_label=False)
    model, extractor = load_model(run / "model")
    parts = []
    for rows in (splits.train, splits.validation, unknown_rows(files)):
        with captured_vectors(model) as vectors:
            logits, labels = predict(model, extractor, rows, splits, False, batch_args, description=run.name)
        parts.append(Clips(logits.astype(np.float64), np.concatenate(vectors).astype(np.float64), labels))
    return tuple(parts)


def measure(trained: Clips, held_out: Clips, unknown: Clips, share: float) -> dict[str, dict[str, float]]:
    """The figures of each score."""
    found = {
        name: figures_of(score(held_out), score(unknown), share)
        for name, score in {
            "highest softmax": lambda clips: softmax(clips.logits, axis=1).max(axis=1),
            "energy": lambda clips: logsumexp(clips.logits, axis=1),
            **distances_from(trained),
        }.items()
    }
    halves = [
        figures_of_half(held_out, unknown, order[: len(order) // 2], order[len(order) // 2 :], share)
        for order in orders(len(held_out.labels))
    ]
    found["Mahalanobis, all labels together, held-out clips"] = pandas.DataFrame(halves).mean().to_dict()
    return found


def distances_from(trained: Clips) -> dict[str, Callable[[Clips], np.ndarray]]:
    """Scores, higher for known sounds, by vectors of training clips."""
    vectors, labels = trained.vectors, trained.labels
    means = np.stack([vectors[labels == label].mean(axis=0) for label in np.unique(labels)])
    places = np.searchsorted(np.unique(labels), labels)
    inverse = LedoitWolf().fit(vectors - means[places]).get_precision()
    together = KnownSounds.fit(vectors)

    def by_label(clips: Clips) -> np.ndarray:
        centred = clips.vectors[:, None] - means  # (clips, labels, hidden_size)
        return -np.einsum("nkd,de,nke->nk", centred, inverse, centred).min(axis=1)

    def by_neighbours(clips: Clips) -> np.ndarray:
        return -np.sort(np.linalg.norm(clips.vectors[:, None] - vectors, axis=2), axis=1)[:, NEIGHBOURS - 1]

    return {
        f"{NEIGHBOURS} nearest training clips": by_neighbours,
        "Mahalanobis, nearest label, training clips": by_label,
        "relative Mahalanobis, training clips": lambda clips: by_label(clips) + squares(together, clips),
        "Mahalanobis, all labels together, training clips": lambda clips: -together.measure(clips.vectors),
    }


def squares(sounds: KnownSounds, clips: Clips) -> np.ndarray:
    return sounds.measure(clips.vectors) ** 2 * clips.vectors.shape[1]


def orders(num_clips: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).permutation(num_clips) for seed in range(NUM_HALVES)]


def figures_of(known: np.ndarray, unknown: np.ndarray, share: float) -> dict[str, float]:
    """Of scores that are higher for known sounds."""
    refused = []
    for order in orders(len(known)):
        first, second = known[order[: len(order) // 2]], known[order[len(order) // 2 :]]
        threshold = np.sort(first)[int(share * (len(first) + 1)) - 1]
        refused.append(((second < threshold).mean(), (unknown < threshold).mean()))
    return {**ranking(known, unknown), **dict(zip(("refused", "caught"), np.mean(refused, axis=0)))}


def figures_of_half(held_out: Clips, unknown: Clips, first: np.ndarray, second: np.ndarray, share: float):
    """As calibrate does it on the first half."""
    sounds, threshold = fit_known_sounds(held_out.vectors[first], share)
    known, others = sounds.measure(held_out.vectors[second]), sounds.measure(unknown.vectors)
    return {
        **ranking(-known, -others),
        "refused": (known > threshold).mean(),
        "caught": (others > threshold).mean(),
    }


def ranking(known: np.ndarray, unknown: np.ndarray) -> dict[str, float]:
    is_known = np.repeat([1, 0], [len(known), len(unknown)])
    return {
        "AUROC": roc_auc_score(is_known, np.concatenate([known, unknown])),
        "FPR95": (unknown >= np.quantile(known, 0.05)).mean(),
    }


def to_markdown(table: pandas.DataFrame) -> str:
    lines = ["| score | AUROC | FPR95 | known refused | unknown refused |", "|---|---|---|---|---|"]
    for name, row in table.iterrows():
        shares = " | ".join(f"{100 * row[column]:.1f} %" for column in ("FPR95", "refused", "caught"))
        lines.append(f"| {name} | {row['AUROC']:.3f} | {shares} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
