"""Cross-validation: what the runs of all folds say together."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from modeling_ast.data.files import write_json
from modeling_ast.data.held_out import sort_folds
from modeling_ast.data.labels import DataError
from modeling_ast.training.results import RESULTS_NAME


def save_summary(output_dir: str | Path, metric: str = "accuracy") -> dict:
    """Summarise the runs in the folders `fold_*` of one folder, and write it to `folds.json` there.

    Returns:
        What `summarize_folds` gives, and the names of the `folders`.

    Raises:
        DataError: No runs, or runs that do not belong together.
    """
    output_dir = Path(output_dir)
    names = sort_folds(folder.name.removeprefix("fold_") for folder in output_dir.glob("fold_*"))
    folders = [output_dir / f"fold_{name}" for name in names]
    if not folders:
        raise DataError(f"{output_dir}: expected folders fold_1, fold_2, ... in it, found none.")
    summary = {**summarize_folds(folders, metric), "folders": [folder.name for folder in folders]}
    write_json(output_dir / "folds.json", summary)
    return summary


def describe_summary(summary: dict) -> str:
    """A summary in some lines of text, each with a metric of the folds, their mean and their deviation."""
    metric = summary["metric"]
    names = [folder.removeprefix("fold_") for folder in summary["folders"]]
    parts = {
        "chosen": f"at epoch {summary['chosen']['epoch']:g}, the best on average, which is optimistic",
        "last": f"at epoch {summary['last']['epoch']:g}, the last",
        "weight_average": "of the average of weights",
        "baseline": "of a linear model",
    }
    lines = []
    for name, words in parts.items():
        if name in summary:
            part = summary[name]
            of_folds = ", ".join(f"{fold} {value:.4f}" for fold, value in zip(names, part["folds"]))
            spread = "" if part["deviation"] is None else f", deviation {part['deviation']:.4f}"
            lines.append(f"{metric} {words}: {of_folds}; mean {part['mean']:.4f}{spread}")
    lines.insert(2, f"{metric} of the mean of all epochs' predictions: mean {summary['cum_mean'][-1]:.4f}")
    return "\n".join(lines)


def summarize_folds(folders: Sequence[str | Path], metric: str = "accuracy") -> dict:
    """The metric of each fold and their mean, at one epoch for all folds.

    Args:
        folders: Of the folds' runs, with a `results.csv` each.
        metric: A column of it.

    Returns:
        `epochs` (numbers), `mean` (of the folds, an epoch), `cum_mean` (the same for the mean of the epochs'
        predictions), and for `chosen` and `last` each a dictionary with `epoch`, `folds` (the metric of each),
        `mean` and `deviation` (of the folds, `None` of one alone); where all runs have them, `weight_average` and
        `baseline` (the linear model) with the same but for `epoch`.
        The chosen epoch has the best mean, the first of several: as published for ESC-50, and optimistic, since the
        same clips choose and report.

    Raises:
        DataError: No folders, a missing or unfinished run, or a metric that is not in it.

    Source: the original's summary of ESC-50's five folds.
    """
    if not folders:
        raise DataError("Expected the folders of the folds' runs, got none.")
    tables = [_read_results(Path(folder), metric) for folder in folders]
    epochs = tables[0]["epoch"].tolist()
    for folder, table in zip(folders, tables):
        if table["epoch"].tolist() != epochs:
            raise DataError(
                f"Expected the same epochs in all folds, but {folder} has {len(table)} of them and {folders[0]} has "
                f"{len(epochs)}. Is one still running?"
            )
    values, cumulative = (
        np.array([table[name] for table in tables]) for name in (metric, f"cum_{metric}")
    )  # (folds, epochs)
    mean = values.mean(axis=0)
    results = [_read_final(Path(folder)) for folder in folders]
    keys = {"weight_average": f"average_validation_{metric}", "baseline": f"validation_baseline_{metric}"}
    final = {name: [run[key] for run in results] for name, key in keys.items() if all(key in run for run in results)}
    return {
        "metric": metric,
        "epochs": epochs,
        "mean": mean.tolist(),
        "cum_mean": cumulative.mean(axis=0).tolist(),
        **{
            name: {"epoch": epochs[index], **_describe_folds(values[:, index].tolist())}
            for name, index in (("chosen", int(mean.argmax())), ("last", len(epochs) - 1))
        },
        **{name: _describe_folds(of_folds) for name, of_folds in final.items()},
    }


def _describe_folds(values: list[float]) -> dict:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"folds": values, "mean": float(np.mean(values)), "deviation": deviation}


def _read_final(folder: Path) -> dict[str, float]:
    """What a finished run reported; nothing of one that is still running."""
    path = folder / "all_results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_results(folder: Path, metric: str) -> pandas.DataFrame:
    path = folder / RESULTS_NAME
    try:
        table = pandas.read_csv(path, float_precision="round_trip")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Has this fold been run?") from error
    except ValueError as error:
        raise DataError(f"{path}: not the results of a run ({error}).") from error
    columns = [metric, f"cum_{metric}"]
    if not set(columns) <= set(table) or table[columns].isna().any(axis=None):
        raise DataError(f"{path}: expected columns {metric} and cum_{metric}, got {', '.join(table)}.")
    return table.astype({"epoch": float})
