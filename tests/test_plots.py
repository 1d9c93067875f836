"""Pictures are drawn of what they are given, for few classes and for many."""

import csv
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest

from modeling_ast.data.metrics import average_precision, per_class_metrics
from modeling_ast.inference.plots import plot_confusion_matrix, plot_per_class, plot_training_curves


@pytest.fixture
def figures(monkeypatch) -> list:
    """Every figure that is drawn, to be looked into."""
    drawn, savefig = [], matplotlib.figure.Figure.savefig

    def keep(figure, path, **settings):
        drawn.append(figure)
        savefig(figure, path, **settings)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return drawn


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def problem(num_labels: int, num_clips: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probabilities, class indices and label names."""
    generator = np.random.default_rng(0)
    labels = np.arange(num_clips) % num_labels
    probabilities = generator.random((num_clips, num_labels))
    probabilities[np.arange(num_clips), labels] += 0.5
    return probabilities / 1.5, labels, [f"sound {index}" for index in range(num_labels)]


# Training curves


def write_results(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def epochs(**columns: list) -> list[dict]:
    count = len(next(iter(columns.values())))
    return [
        {"epoch": index + 1, **{name: values[index] for name, values in columns.items()}} for index in range(count)
    ]


def curves(figure) -> dict[str, list[list]]:
    """By the title of the panel: the points of each line."""
    return {axes.get_title(): [line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes}


def test_training_curves_show_losses_metric_and_rate(tmp_path, figures):
    rows = epochs(
        learning_rate=[1e-4, 5e-5], train_loss=[2, 1], validation_loss=[3, 2], accuracy=[0.5, 0.7], mAP=[0.1, 0.2],
        cum_accuracy=[0.5, 0.8],
    )  # fmt: skip
    plot_training_curves(write_results(tmp_path / "results.csv", rows), tmp_path / "curves.png")
    assert is_picture(tmp_path / "curves.png")
    assert curves(figures[0]) == {
        "loss": [[[1, 2], [2, 1]], [[1, 3], [2, 2]]],
        "accuracy": [[[1, 0.5], [2, 0.7]], [[1, 0.5], [2, 0.8]]],
        "learning rate": [[[1, 1e-4], [2, 5e-5]]],
    }


def test_training_curves_bear_gaps_and_missing_columns(tmp_path, figures):
    """As in a run that goes on, and where d' was infinite."""
    rows = epochs(train_loss=[2, 1, ""], accuracy=["", "", ""], mAP=[0.1, "", 0.3], d_prime=["", 2.0, ""])
    path = write_results(tmp_path / "results.csv", rows)
    plot_training_curves(path, tmp_path / "curves.png")
    assert curves(figures[0]) == {"loss": [[[1, 2], [2, 1]]], "mAP": [[[1, 0.1], [3, 0.3]]], "learning rate": []}
    plot_training_curves(path, tmp_path / "curves.png", metric="d_prime")
    assert curves(figures[1])["d_prime"] == [[[2, 2.0]]]


def test_training_curves_refuse_a_table_without_epochs_or_metric(tmp_path):
    path = write_results(tmp_path / "results.csv", epochs(mAP=[0.1]))
    with pytest.raises(ValueError, match="Expected values of mAUC in .*results.csv, got the columns epoch, mAP"):
        plot_training_curves(path, tmp_path / "curves.png", metric="mAUC")
    path.write_text("epoch,mAP\n")
    with pytest.raises(ValueError, match="Expected a column epoch and a row an epoch in .*results.csv"):
        plot_training_curves(path, tmp_path / "curves.png")


# Classes


def bars(axes) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


def names(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_few_classes_are_all_shown_best_first(tmp_path, figures):
    probabilities, labels, label_names = problem(10, 50)
    labels[labels == 3] = 4  # class 3 has no clip
    plot_per_class(per_class_metrics(probabilities, labels, label_names), tmp_path / "classes.png", "validation")
    assert is_picture(tmp_path / "classes.png")
    (axes,) = figures[0].axes
    expected = average_precision(probabilities, labels)
    order = [index for index in np.argsort(-expected, kind="stable") if index != 3]
    assert bars(axes) == expected[order].tolist()
    assert names(axes) == [f"sound {index} ({10 if index == 4 else 5})" for index in order]
    assert figures[0].get_suptitle() == f"validation: mAP {np.nanmean(expected):.4f}"


@pytest.mark.slow
def test_of_many_classes_the_best_and_the_worst_are_named(tmp_path, figures):
    probabilities, labels, label_names = problem(61, 122)
    plot_per_class(per_class_metrics(probabilities, labels, label_names), tmp_path / "classes.png")
    curve, best, worst = figures[0].axes
    expected = -np.sort(-average_precision(probabilities, labels))
    assert curve.lines[0].get_ydata().tolist() == expected.tolist()
    assert (bars(best), bars(worst)) == (expected[:25].tolist(), expected[-25:].tolist())
    assert len(names(best)) == len(names(worst)) == 25


def test_classes_without_any_positive_are_no_picture(tmp_path):
    rows = [{"label": "rain", "AP": None, "AUC": None, "positives": 0}]
    with pytest.raises(ValueError, match="Expected a class with an average precision to draw, got none"):
        plot_per_class(rows, tmp_path / "classes.png")


# Confusion matrix


@pytest.mark.parametrize("num_labels, one_hot", [(10, False), (10, True), (50, False)])
def test_confusion_matrix_counts_labels_in_rows_and_predictions_in_columns(tmp_path, figures, num_labels, one_hot):
    probabilities, labels, label_names = problem(num_labels, 3 * num_labels)
    given = np.eye(num_labels)[labels] if one_hot else labels
    plot_confusion_matrix(probabilities, given, label_names, tmp_path / "confusion.png")
    assert is_picture(tmp_path / "confusion.png")
    counts = np.zeros((num_labels, num_labels), dtype=int)
    for label, predicted in zip(labels, probabilities.argmax(axis=1)):
        counts[label, predicted] += 1
    axes = figures[0].axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), counts / 3)
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): int(text.get_text()) for text in axes.texts}
    assert written == {tuple(cell): counts[tuple(cell)] for cell in np.argwhere(counts).tolist()}
    assert names(axes) == label_names and axes.get_ylabel() == "label"


@pytest.mark.slow
def test_confusion_matrix_of_many_classes_has_no_names(tmp_path, figures):
    probabilities, labels, label_names = problem(120, 120)
    plot_confusion_matrix(probabilities, labels, label_names, tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert "sound 0" not in names(axes) and not axes.texts


def test_confusion_matrix_refuses_several_labels_and_other_names(tmp_path):
    probabilities, labels, label_names = problem(4, 8)
    with pytest.raises(ValueError, match="Expected exactly one label a clip for a confusion matrix"):
        plot_confusion_matrix(probabilities, np.ones((8, 4)), label_names, tmp_path / "confusion.png")
    with pytest.raises(ValueError, match="Expected 4 label names, as many as columns, got 3"):
        plot_confusion_matrix(probabilities, labels, label_names[:3], tmp_path / "confusion.png")
