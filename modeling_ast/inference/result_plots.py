"""Pictures of how well a model does: over the epochs, by class, and how sure it is."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from sklearn.metrics import confusion_matrix

from modeling_ast.data.intervals import Interval
from modeling_ast.data.metrics import positive_labels
from modeling_ast.inference.figures import MAX_NAME, may_fail, new_figure, save_figure
from modeling_ast.inference.lettering import drawable

# More classes than this are not all named: only the best and the worst.
MAX_BARS, NUM_EXTREMES = 60, 25
# A confusion matrix with more classes has no room for names.
MAX_NAMES = 100


def plot_classes(
    label_names: Sequence[str],
    split: str,
    folder: Path,
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: list[dict[str, Any]],
    intervals: Mapping[str, Interval] = MappingProxyType({}),
) -> None:
    """Draw the classes' scores on some clips, and what is taken for what, as far as that can be read.

    Args:
        label_names: Of the model.
        split: Name of the clips, for those of the pictures: `per_class_*.png`, `confusion_*.png`.
        folder: To draw into. A picture that cannot be drawn is told and left out.
        probabilities: Of shape (clips, num_labels).
        labels: Class indices (clips,) or multi-hot (clips, num_labels).
        classes: As from `data.metrics.per_class_metrics`.
        intervals: Of the metrics, for the titles.
    """
    if any(row["AP"] is not None for row in classes):
        with may_fail(folder / f"per_class_{split}.png"):
            plot_per_class(classes, folder / f"per_class_{split}.png", intervals.get("mAP"))
    has_one_label = labels.ndim == 1 or (labels.sum(axis=1) == 1).all()
    if has_one_label and len(classes) <= MAX_NAMES:
        with may_fail(folder / f"confusion_{split}.png"):
            path = folder / f"confusion_{split}.png"
            plot_confusion_matrix(probabilities, labels, label_names, path, intervals.get("accuracy"))


def plot_training_curves(results_csv: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draw the losses, a metric and the learning rate over the epochs, into a picture file.

    The metric is `accuracy` where the table has it, else `mAP`.

    Args:
        results_csv: Table of a run with the column `epoch`, and what is there of `train_loss`, `validation_loss`,
            the metric, the same with the prefix `cum_` (of the mean of all epochs' predictions so far), and
            `learning_rate`. Cells may be empty.
        path: Of the picture; the suffix chooses the format.
    """
    table = pandas.read_csv(results_csv).set_index("epoch").dropna(axis="columns", how="all")
    metric = "accuracy" if "accuracy" in table else "mAP"
    panels = {
        "loss": {"train_loss": "training (augmented)", "validation_loss": "validation"},
        metric: {metric: "this epoch", f"cum_{metric}": "mean of the epochs so far"},
        "learning rate": {"learning_rate": None},
    }
    _draw_panels(table, panels, path)


def plot_pretraining_curves(results_csv: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draw the parts of the loss, how much the pooled outputs differ, the probe and the rate, into a picture file.

    Args:
        results_csv: Table of a pre-training, whose cells may be empty.
        path: Of the picture; the suffix chooses the format.
    """
    table = pandas.read_csv(results_csv).set_index("epoch").dropna(axis="columns", how="all")
    panels = {
        "squared errors": {"patch_loss": "masked patches", "utterance_loss": "whole clips"},
        "standard deviations": {"target_deviation": "masked patches", "pooled_deviation": "pooled outputs"},
    }
    for metric in ("accuracy", "mAP"):
        if f"rows_{metric}" in table:
            panels[f"probe: {metric}"] = {f"rows_{metric}": "rows of patches", f"pooled_{metric}": "pooled outputs"}
    _draw_panels(table, {**panels, "learning rate": {"learning_rate": None}}, path)


def plot_per_class(rows: Sequence[dict[str, Any]], path: str | os.PathLike, interval: Interval | None = None) -> None:
    """Draw the average precision of the classes, best first, into a picture file.

    Of more than 60 classes the curve of all, and the 25 best and the 25 worst by name. In brackets the number of
    positive clips.

    Args:
        rows: What `modeling_ast.data.metrics.per_class_metrics` gives, of all classes in the model's order; those
            without positives are left out.
        path: Of the picture; the suffix chooses the format.
        interval: Of the mean of all.

    Raises:
        ValueError: No class has an average precision.
    """
    rows = [{**row, "number": number} for number, row in enumerate(rows) if row["AP"] is not None]
    rows.sort(key=lambda row: -row["AP"])
    if not rows:
        raise ValueError("Expected a class with an average precision to draw, got none.")
    if len(rows) <= MAX_BARS:
        figure = new_figure(7, 1.2 + 0.2 * len(rows))
        _draw_bars(figure.subplots(), rows, f"{len(rows)} classes")
    else:
        figure = new_figure(15, 1.2 + 0.2 * NUM_EXTREMES)
        curve, best, worst = figure.subplots(1, 3)
        curve.plot(range(1, len(rows) + 1), [row["AP"] for row in rows])
        curve.set(xlabel="rank of the class", ylabel="average precision", ylim=(0, 1), title=f"{len(rows)} classes")
        curve.grid(alpha=0.3)
        _draw_bars(best, rows[:NUM_EXTREMES], f"{NUM_EXTREMES} best")
        _draw_bars(worst, rows[-NUM_EXTREMES:], f"{NUM_EXTREMES} worst")
    figure.suptitle(_with_interval(f"mAP {np.mean([row['AP'] for row in rows]):.4f}", interval))
    save_figure(figure, path)


def plot_confusion_matrix(
    probabilities: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    path: str | os.PathLike,
    interval: Interval | None = None,
) -> None:
    """Draw which class was taken for which, into a picture file: clips, coloured by their share of the row.

    Args:
        probabilities: Of shape (clips, num_labels).
        labels: Class indices, or one-hot.
        label_names: Of the columns; up to 100 are written.
        path: Of the picture; the suffix chooses the format.
        interval: Of the accuracy.

    Raises:
        ValueError: Clips with several labels or none, or another number of names than of columns.
    """
    positives = positive_labels(probabilities, labels)
    if not (positives.sum(axis=1) == 1).all():
        raise ValueError("Expected exactly one label a clip for a confusion matrix, got clips with several or none.")
    size = len(label_names)
    if size != probabilities.shape[1]:
        raise ValueError(f"Expected {probabilities.shape[1]} label names, as many as columns, got {size}.")
    counts = confusion_matrix(positives.argmax(axis=1), probabilities.argmax(axis=1), labels=range(size))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)

    is_named = size <= MAX_NAMES
    names = [drawable(name, MAX_NAME, number) for number, name in enumerate(label_names)]
    room = max(2.5, 1 + 0.07 * max(map(len, names)))  # inches beside the cells
    side = room + 0.25 * size if is_named else 10
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the clips of the class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_title(_with_interval(f"accuracy {np.trace(counts) / counts.sum():.4f}", interval))
    if is_named:
        ticks = range(size)
        axes.set_xticks(ticks, names, rotation=90, fontsize=7)
        axes.set_yticks(ticks, names, fontsize=7)
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=6)
    save_figure(figure, path)


def plot_reliability(
    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: str | os.PathLike, title: str = ""
) -> None:
    """Draw how often a model is right over how sure it is, into a picture file.

    Args:
        curves: By the words of the legend, what `modeling_ast.inference.calibration.reliability` gives.
        path: Of the picture; the suffix chooses the format.
        title: Above all.
    """
    figure = new_figure(5, 6)
    shares, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    shares.plot((0, 1), (0, 1), color="grey", linestyle="--", linewidth=1)
    for label, (confidence, share, count) in curves.items():
        shares.plot(confidence, share, marker="o", markersize=4, label=drawable(label, MAX_NAME))
        counts.plot(confidence, count, marker="o", markersize=4)
    shares.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right", title=drawable(title, MAX_NAME))
    shares.legend(fontsize=8)
    counts.set_yscale("log")
    counts.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))  # the usual one writes powers as mathematics
    counts.yaxis.set_minor_formatter(NullFormatter())
    counts.set(xlabel="how sure the model is: mean score of the bin", ylabel="decisions")
    for axes in (shares, counts):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _with_interval(text: str, interval: Interval | None) -> str:
    return text if interval is None else f"{text} ({interval})"


def _draw_panels(table: pandas.DataFrame, panels: dict[str, dict[str, str | None]], path: str | os.PathLike) -> None:
    """Curves over the epochs: of each panel by its title, the columns that the table has, with their legends."""
    figure = new_figure(4 * len(panels), 3.6)
    for axes, (name, columns) in zip(figure.subplots(1, len(panels)), panels.items()):
        for column, label in columns.items():
            if column in table:
                axes.plot(table[column].dropna(), marker=".", label=label)
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(axes.lines) > 1:
            axes.legend()
    save_figure(figure, path)


def _draw_bars(axes, rows: Sequence[dict[str, Any]], title: str) -> None:
    bars = axes.barh(range(len(rows)), [row["AP"] for row in rows], color="#4f81bd")
    axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=2)
    names = [f"{drawable(row['label'], MAX_NAME, row['number'])} ({row['positives']})" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set(xlim=(0, 1.1), ylim=(len(rows) - 0.4, -0.6), xlabel="average precision", title=title)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
