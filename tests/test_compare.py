"""Two models are compared on the clips that both predicted, and a difference is told from chance."""

from pathlib import Path

import numpy as np
import pandas
import pytest
from helpers import read_csv

from modeling_ast.commands import compare
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import compute_metrics
from modeling_ast.data.predictions import decide, write_predictions

LABELS = ["rain; heavy", "dog", "siren"]  # a name may hold what stands between names
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def write(path: Path, is_right: np.ndarray, names=LABELS, group=None, first: int = 0) -> Path:
    """Predictions of clips that are right or wrong, of the label that their number says."""
    numbers = np.arange(first, first + len(is_right))
    labels = numbers % 3
    probabilities = np.full((len(labels), 3), 0.1)
    probabilities[np.arange(len(labels)), np.where(is_right, labels, (labels + 1) % 3)] = 0.8
    clips = pandas.DataFrame({"path": [f"{number}.wav" for number in numbers], "split": "test"})
    if group is not None:
        clips.insert(1, "group", group)
    order = [LABELS.index(name) for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    decisions = decide(probabilities, SINGLE, 0.5)
    truth = np.eye(3, dtype=bool)[labels]
    write_predictions(path, clips, probabilities[:, order], decisions[:, order], truth[:, order], names)
    return path


def run(*argv):
    return compare.main([*map(str, argv)])


@pytest.fixture
def right() -> list[np.ndarray]:
    """Of 300 clips the first model is right on 70 %, the second on these and 15 % more."""
    draws = np.random.default_rng(0).random(300)
    return [draws < 0.7, draws < 0.85]


def test_clips_are_paired_by_their_paths_in_any_order_of_clips_and_labels(tmp_path, right, capsys):
    write(tmp_path / "a" / "predictions_test.csv", right[0])
    other = write(tmp_path / "b" / "predictions.csv", right[1], names=LABELS[::-1])
    table = pandas.read_csv(other).sample(frac=1, random_state=0)
    table[table["path"] != "0.wav"].to_csv(other, index=False)
    found = run(tmp_path / "a", tmp_path / "b", "--output", tmp_path / "clips.csv")
    assert found.clips == 299 and found.alone == (1, 0) and found.groups is None
    difference = found.differences["accuracy"]
    shares = [each[1:].mean() for each in right]
    assert [difference.first, difference.second] == pytest.approx(shares)
    assert difference.is_more_than_chance and difference.interval.low > 0.05
    assert difference.interval.low < shares[1] - shares[0] < difference.interval.high
    assert found.differences.keys() == {"accuracy", "mAP", "mAUC", "macro_f1", "micro_f1"}
    rows = read_csv(tmp_path / "clips.csv")
    assert [row["path"] for row in rows] == [
        f"{number}.wav" for number in np.flatnonzero(right[0] != right[1]) if number
    ]
    assert all(row["truth"] == row["second"] != row["first"] for row in rows)
    printed = capsys.readouterr().out
    assert printed.startswith(f"A: {tmp_path / 'a'}\nB: {tmp_path / 'b'}\n")
    assert "more than chance" in printed and f"A alone is right on 0, B alone on {len(rows)}" in printed


def test_the_interval_of_few_clips_holds_no_difference_that_cannot_be(tmp_path):
    paths = [write(tmp_path / f"{name}.csv", np.array(clips)) for name, clips in (("a", [1, 0, 1]), ("b", [0, 1, 1]))]
    for found in run(*paths).differences.values():
        assert found.interval is None or -1 <= found.interval.low <= found.interval.high <= 1


def test_one_model_differs_from_itself_by_nothing(tmp_path, right, capsys):
    paths = [write(tmp_path / f"{name}.csv", right[0]) for name in "ab"]
    found = run(*paths)
    assert found.table.empty and not any(each.is_more_than_chance for each in found.differences.values())
    assert "may be chance" in capsys.readouterr().out


def test_folds_are_taken_together_and_groups_are_what_is_drawn(tmp_path, right):
    groups = np.repeat([f"speaker {number}" for number in range(6)], 50)
    for name, each in zip("ab", right):
        for fold in range(2):
            part = slice(150 * fold, 150 * (fold + 1))
            path = tmp_path / name / f"fold_{fold}" / "predictions_validation.csv"
            write(path, each[part], group=groups[part], first=150 * fold)
    found = run(tmp_path / "a", tmp_path / "b")
    assert found.clips == 300 and found.groups == 6
    assert found.differences["accuracy"].first == pytest.approx(right[0].mean())
    (tmp_path / "b" / "fold_1" / "predictions_validation.csv").unlink()
    with pytest.raises(DataError, match="fold_1: expected predictions_validation.csv as in the other folds"):
        run(tmp_path / "a", tmp_path / "b")


def test_several_labels_a_clip_are_compared_as_they_were_decided(tmp_path):
    """By thresholds of the models' own."""
    rng = np.random.default_rng(1)
    labels = rng.random((100, 3)) < 0.4
    clips = pandas.DataFrame({"path": [f"{number}.wav" for number in range(100)]})
    expected = []
    for name, limits in (("a", np.array([0.2, 0.3, 0.4])), ("b", np.array([0.6, 0.5, 0.4]))):
        probabilities = ((rng.random((100, 3)) + labels) / 2).round(4)
        expected.append(compute_metrics(probabilities, labels, MULTI, limits))
        write_predictions(
            tmp_path / f"{name}.csv", clips, probabilities, decide(probabilities, MULTI, limits), labels, LABELS
        )
    found = run(tmp_path / "a.csv", tmp_path / "b.csv").differences
    assert found.keys() == {"mAP", "mAUC", "macro_f1", "micro_f1"}
    for name, each in found.items():
        assert [each.first, each.second] == pytest.approx([metrics[name] for metrics in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda table: table.rename(columns={"p_dog": "p_cat"}),
            "Expected the same labels .* such as 'cat' in one alone",
        ),
        (lambda table: table.assign(path="x" + table["path"]), "Expected clips that both predicted, got none"),
        (
            lambda table: table.assign(truth="dog"),
            "Expected one truth of a clip, got 'rain; heavy' and 'dog' of 0.wav",
        ),
        (lambda table: table.assign(truth="cat"), "Expected labels of the table, .* got 'cat'"),
        (
            lambda table: table.assign(group=table["path"]),
            "Expected one group of a clip, got 'one' and '0.wav' of 0.wav: evaluate both by the same groups",
        ),
        (lambda table: table[:0], "b.csv: expected predictions of clips, got none"),
        (lambda table: table.assign(path=""), "expected a path of every clip"),
        (lambda table: pandas.concat([table, table]), "expected every clip once, got 0.wav twice"),
        (lambda table: table[["path"]], "expected columns path, truth, prediction and p_LABEL, got path"),
    ],
)
def test_predictions_that_cannot_be_compared_are_one_sentence(tmp_path, right, damage, words):
    paths = [write(tmp_path / f"{name}.csv", right[0], group=["one"] * len(right[0])) for name in "ab"]
    damage(pandas.read_csv(paths[1], keep_default_na=False)).to_csv(paths[1], index=False)
    with pytest.raises(DataError, match=words):
        run(*paths)


def test_a_folder_without_predictions_and_a_file_that_is_none_are_one_sentence(tmp_path, right):
    path = write(tmp_path / "a" / "predictions_test.csv", right[0])
    with pytest.raises(DataError, match=r"expected predictions_validation.csv, of a run.* `modeling-ast evaluate`"):
        run(tmp_path / "a", path, "--split", "validation")
    with pytest.raises(DataError, match="Expected the folder of a run, of which split chooses a table"):
        run(path, path, "--split", "test")
    (tmp_path / "b.csv").write_bytes(b"\xff\x00")
    with pytest.raises(DataError, match="expected a table of predictions, which cannot be read"):
        run(path, tmp_path / "b.csv")
    with pytest.raises(CommandError, match="Expected output to be a file in a folder that exists"):
        run(path, path, "--output", tmp_path)
