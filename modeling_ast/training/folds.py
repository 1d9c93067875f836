"""Cross-validation: what the runs of all folds say together."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modeling_ast.training.results import RESULTS_NAME


class FoldError(ValueError):
    """Runs of folds that do not belong together, or are not there."""


def summarize_folds(folders: Sequence[str | Path], metric: str = "accuracy") -> dict:
    """The metric of each fold and their mean, at one epoch for all folds.

    Args:
        folders: Of the folds' runs, with a `results.csv` each.
        metric: A column of it.

    Returns:
        `epochs` (numbers), `mean` (of the folds, an epoch), `cum_mean` (the same for the mean of the epochs'
        predictions), and for `chosen` and `last` each a dictionary with `epoch`, `folds` (the metric of each) and
        `mean`; where all runs have them, `weight_average` and `baseline` (the linear model) with `folds` and `mean`.
        The chosen epoch has the best mean, the first of several: as published for ESC-50, and optimistic, since the
        same clips choose and report.

    Raises:
        FoldError: No folders, a missing or unfinished run, or a metric that is not in it.

    Source: the original's summary of ESC-50's five folds.
    """
    if not folders:
        raise FoldError("Expected the folders of the folds' runs, got none.")
    tables = [_read_results(Path(folder), metric) for folder in folders]
    epochs = [row["epoch"] for row in tables[0]]
    for folder, table in zip(folders, tables):
        if [row["epoch"] for row in table] != epochs:
            raise FoldError(
                f"Expected the same epochs in all folds, but {folder} has {len(table)} of them and {folders[0]} has "
                f"{len(epochs)}. Is one still running?"
            )
    values = np.array([[float(row[metric]) for row in table] for table in tables])  # (folds, epochs)
    cumulative = np.array([[float(row[f"cum_{metric}"]) for row in table] for table in tables])
    mean = values.mean(axis=0)
    results = [_read_final(Path(folder)) for folder in folders]
    keys = {"weight_average": f"average_validation_{metric}", "baseline": f"validation_baseline_{metric}"}
    final = {name: [run[key] for run in results] for name, key in keys.items() if all(key in run for run in results)}
    return {
        "metric": metric,
        "epochs": [float(epoch) for epoch in epochs],
        "mean": mean.tolist(),
        "cum_mean": cumulative.mean(axis=0).tolist(),
        **{
            name: {
                "epoch": float(epochs[index]),
                "folds": values[:, index].tolist(),
                "mean": float(mean[index]),
            }
            for name, index in (("chosen", int(mean.argmax())), ("last", len(epochs) - 1))
        },
        **{name: {"folds": of_folds, "mean": float(np.mean(of_folds))} for name, of_folds in final.items()},
    }


def _read_final(folder: Path) -> dict[str, float]:
    """What a finished run reported; nothing of one that is still running."""
    path = folder / "all_results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_results(folder: Path, metric: str) -> list[dict[str, str]]:
    path = folder / RESULTS_NAME
    if not path.is_file():
        raise FoldError(f"{path}: no such file. Has this fold been run?")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FoldError(f"{path}: not the results of a run ({error}).") from error
    if not rows or not rows[0].get(metric) or not rows[0].get(f"cum_{metric}"):
        columns = ", ".join(rows[0]) if rows else "nothing"
        raise FoldError(f"{path}: expected columns {metric} and cum_{metric}, got {columns}.")
    return rows
