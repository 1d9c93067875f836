"""The folder of an evaluation: its figures, tables of clips and labels, and its mistakes to listen to."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from datasets import Dataset

from modeling_ast.data.files import write_json
from modeling_ast.data.metrics import write_figures
from modeling_ast.data.predictions import PREDICTIONS_NAME, write_predictions
from modeling_ast.inference.mistakes import write_mistakes

EVALUATION_NAME, CLASSES_NAME = "evaluation.json", "per_class.csv"
MAX_SHOWN = 50  # labels or groups; of more the table is in the file alone


def default_folder(parent: str, model: str, source: str, split: str | None) -> Path:
    """In `outputs`, called after the model and the data: of both the last two parts of their paths.

    Args:
        parent: Its folder there.
        model: Folder or name on the Hub.
        source: The data, likewise.
        split: Of the data; `None` means all.
    """
    name = "_".join([_short(model, 2), "on", _short(source, 2), *filter(None, [split])])
    return Path("outputs") / parent / re.sub(r"[^\w.-]+", "_", name)


def _short(name: str, num_parts: int = 1) -> str:
    """Of a file or folder the last parts of its path."""
    return "/".join(Path(name).resolve().parts[-num_parts:]) if Path(name).exists() else name


def write_evaluation(
    folder: Path,
    results: Mapping[str, Any],
    clips: pandas.DataFrame,
    rows: Dataset,
    probabilities: np.ndarray,
    decisions: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Write `evaluation.json`, which comes last, `predictions.csv`, `per_class.csv`, and what `write_mistakes` writes.

    Args:
        folder: For the files, made where it is not there.
        results: What is written to `evaluation.json`: `model`, `dataset`, `problem_type`, `metrics` and `intervals` by
            their names, `labels`, as `class_figures` gives them, and perhaps `groups`, as `group_figures` does.
        clips: As from `list_clips`.
        rows: The clips, not decoded.
        probabilities: Of shape (clips, num_labels).
        decisions: As from `decide`.
        labels: Class indices or multi-hot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVALUATION_NAME).unlink(missing_ok=True)  # figures of other tables than those beside them
    names = [each["label"] for each in results["labels"]]
    arrays = probabilities, decisions, labels, names
    write_predictions(folder / PREDICTIONS_NAME, clips, *arrays)
    write_figures(folder / CLASSES_NAME, results["labels"])
    title = f"{_short(results['model'])} on {_short(results['dataset'])}"
    summary = [*metric_lines(results), *filter(None, [group_line(results)])]
    write_mistakes(folder, clips, rows, *arrays, results["problem_type"], title, summary)
    write_json(folder / EVALUATION_NAME, results)


def metric_lines(results: Mapping[str, Any]) -> list[str]:
    """Each metric with the ends of its interval, as text, the numbers below one another."""
    ends = {name: "  {:.4f} to {:.4f}".format(*pair) for name, pair in results["intervals"].items()}
    heading = [f"{'':<26} {'':<9}  95 % interval"] if ends else []
    return heading + [f"{name:<26} {value:<9.6g}{ends.get(name, '')}" for name, value in results["metrics"].items()]


def group_line(results: Mapping[str, Any]) -> str | None:
    """The share of right clips in each group, as text; `None` where clips are in none."""
    if not (groups := results.get("groups")):
        return None
    shown = [f"{each['group']} {each['right']:.4f} of {each['clips']}" for each in groups[:MAX_SHOWN]]
    return f"right, worst of {len(groups)} groups first: {', '.join(shown)}"
