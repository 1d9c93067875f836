"""Predictions as a table, of clips with or without labels, and the page of those that are mistakes."""

import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from conftest import make_tiny_config, random_model
from datasets import Audio, Dataset
from helpers import contents, read_csv, save_checkpoint, write_csv, write_sound

from modeling_ast.commands import evaluate, predict
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import DivergedError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.inference import mistakes
from modeling_ast.inference.mistakes import find_mistakes

LABELS = ("siren", "bell", "<b>whistle</b>")
SINGLE, MULTI = "single_label_classification", "multi_label_classification"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for number, kind in enumerate(["bell", "siren", "bell", "whistle", "siren", "bell"]):
        write_sound(folder / f"no. {number} #1.wav", generate_clip(kind, torch.Generator().manual_seed(number)))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for kind in (SINGLE, MULTI):
        model = random_model(make_tiny_config(id2label=dict(enumerate(LABELS)), problem_type=kind))
        model.classifier.dense.weight.data *= 3
        found[kind] = save_checkpoint(tmp_path_factory.mktemp("models") / kind, model, mean=-7.0, std=4.0)
    return found


def write_list(path: Path, sounds: Path, labels: list[str], **columns) -> Path:
    files = sorted(sounds.glob("*.wav"))
    rows = [{"audio": str(file), "label": label} for file, label in zip(files, labels)]
    return write_csv(path, [{**row, **{key: each[n] for key, each in columns.items()}} for n, row in enumerate(rows)])


def run(command, *argv):
    return command.main([str(argument) for argument in argv])


def test_recordings_with_label_files_beside_them_are_predicted_whole(sounds, models, tmp_path):
    """Those with one, with an empty one, and without."""
    folder = tmp_path / "marked"
    shutil.copytree(sounds, folder)
    first, second, *_ = files = sorted(folder.glob("*.wav"))
    first.with_suffix(".txt").write_text("0.1\t0.2\tbell\n")
    second.with_suffix(".txt").write_text("")
    table = run(predict, models[SINGLE], folder, "--output_dir", tmp_path / "out")
    assert table["path"].tolist() == [str(file) for file in files]


def players(page: Path) -> list[tuple[Path, str]]:
    """The files that a page plays, and what of them."""
    found = re.findall(r'<audio [^>]*src="([^"#]*)(#[^"]*)?"', page.read_text(encoding="utf-8"))
    return [((page.parent / unquote(path)).resolve(), fragment) for path, fragment in found]


# Mistakes


def test_mistakes_come_the_most_confident_first():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.05, 0.9, 0.05], [0.4, 0.35, 0.25]])
    decisions, positives = np.eye(3, dtype=bool)[[0, 0, 1, 0]], np.eye(3, dtype=bool)[[0, 1, 2, 2]]
    order, confidence = find_mistakes(probabilities, decisions, positives, SINGLE)
    assert order.tolist() == [2, 1, 3] and confidence.tolist() == [0.9, 0.5, 0.4]


def test_a_label_that_is_missed_is_a_mistake_as_one_that_is_named():
    probabilities = np.array([[0.9, 0.8], [0.6, 0.02], [0.4, 0.1], [0.9, 0.9]])
    positives = np.array([[True, False], [True, True], [False, False], [True, True]])
    order, confidence = find_mistakes(probabilities, probabilities >= 0.5, positives, MULTI)
    assert order.tolist() == [1, 0] and confidence.tolist() == [0.98, 0.8]


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_the_table_and_the_page_have_what_is_wrong_and_nothing_else(models, sounds, tmp_path, kind):
    labels = [LABELS[number % 3] for number in range(6)]
    clips = write_list(tmp_path / "clips.csv", sounds, labels, site=["a", "a", "b", "b", "<c>", "<c>"])
    results = run(evaluate, models[kind], clips, "--output_dir", tmp_path / "out", "--group_column_name=site")
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    wrong = [row for row in rows if row["truth"] != row["prediction"]]
    found = read_csv(tmp_path / "out" / "mistakes.csv")
    assert 0 < len(wrong) == len(found)
    confidences = [float(row.pop("confidence")) for row in found]
    assert confidences == sorted(confidences, reverse=True)
    assert sorted(found, key=str) == sorted(wrong, key=str)
    if kind == SINGLE:
        assert confidences == [float(row["score"]) for row in found]
    page = tmp_path / "out" / "mistakes.html"
    assert players(page) == [(Path(row["path"]), "") for row in found]
    text = page.read_text(encoding="utf-8")
    assert "<b>whistle" not in text and "&lt;b&gt;whistle" in text and "&lt;c&gt;" in text
    assert not re.search(r"https?:|<script", text)
    low, high = results["intervals"]["mAP"]
    assert f"{low:.4f} to {high:.4f}" in text and "right, worst of 3 groups first" in text


def test_no_mistake_is_a_page_that_says_so(models, sounds, tmp_path):
    clips = write_list(tmp_path / "clips.csv", sounds, ["bell"] * 6)
    run(evaluate, models[SINGLE], clips, "--output_dir", tmp_path / "out")
    said = [row["prediction"] for row in read_csv(tmp_path / "out" / "predictions.csv")]
    run(evaluate, models[SINGLE], write_list(clips, sounds, said), "--output_dir", tmp_path / "out")
    assert (tmp_path / "out" / "mistakes.csv").read_text().splitlines()[0].startswith("path,split,confidence,truth")
    assert read_csv(tmp_path / "out" / "mistakes.csv") == [] == players(tmp_path / "out" / "mistakes.html")
    assert "0 of 6 clips are mistaken" in (tmp_path / "out" / "mistakes.html").read_text()


def test_a_stretch_is_played_from_its_start_to_its_end(models, sounds, tmp_path):
    clips = write_list(tmp_path / "clips.csv", sounds, ["bell"] * 6, start=[0.25] * 6, end=[0.75] * 5 + [""])
    run(evaluate, models[SINGLE], clips, "--output_dir", tmp_path / "out")
    found = players(tmp_path / "out" / "mistakes.html")
    assert found and all(path.is_file() and re.fullmatch(r"#t=0.25(,0.75)?", part) for path, part in found)


def test_sounds_of_a_table_are_copied_and_those_of_before_go(models, sounds, tmp_path, monkeypatch):
    files = sorted(sounds.glob("*.wav"))
    audio = [{"path": f"{number}.wav", "bytes": file.read_bytes()} for number, file in enumerate(files)]
    rows = Dataset.from_dict({"audio": audio, "label": ["bell"] * 6}).cast_column("audio", Audio(decode=False))
    rows.to_parquet(tmp_path / "clips.parquet")
    argv = models[SINGLE], tmp_path / "clips.parquet", "--output_dir", tmp_path / "out"
    run(evaluate, *argv)
    found = [path for path, _ in players(tmp_path / "out" / "mistakes.html")]
    numbers = [int(Path(row["path"]).stem) for row in read_csv(tmp_path / "out" / "mistakes.csv")]
    assert len(found) > 1 and [path.read_bytes() for path in found] == [files[n].read_bytes() for n in numbers]
    monkeypatch.setattr(mistakes, "MAX_PLAYED", 1)
    run(evaluate, *argv)
    assert len(contents(tmp_path / "out" / "mistakes_sounds")) == 1
    assert "Here are 1; mistakes.csv has all." in (tmp_path / "out" / "mistakes.html").read_text()


# Predictions


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_predictions_are_those_of_the_evaluation_without_the_truth(models, sounds, tmp_path, kind, capsys):
    clips = write_list(tmp_path / "clips.csv", sounds, [LABELS[0]] * 5 + [LABELS[1]], split=["val"] * 5 + ["test"])
    run(evaluate, models[kind], clips, "--output_dir", tmp_path / "out", "--split_column_name=split")
    expected = read_csv(tmp_path / "out" / "predictions.csv")
    table = run(predict, models[kind], clips, "--output_dir", tmp_path / "out", "--split_column_name=split")
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert rows == [{key: value for key, value in row.items() if key != "truth"} for row in expected]
    assert list(table) == ["path", "split", *(f"p_{name}" for name in LABELS)] and len(table) == 6
    assert f"Saved in {tmp_path / 'out' / 'predictions.csv'}." in capsys.readouterr().out


def test_clips_of_which_the_beginning_alone_is_heard_are_counted(models, tmp_path, caplog):
    write_sound(tmp_path / "long" / "a.wav", np.zeros(10 * 16000))
    write_sound(tmp_path / "long" / "b.wav", np.zeros(4000))
    run(predict, models[SINGLE], tmp_path / "long", "--output_dir", tmp_path / "out")
    assert "1 clip(s) are longer than the model's" in caplog.text and "`modeling-ast tag` hears all" in caplog.text


def test_labels_that_the_model_does_not_know_and_none_at_all_are_predicted_alike(models, sounds, tmp_path):
    clips = write_list(tmp_path / "clips.csv", sounds, ["owl"] * 6, speaker=list("abcabc"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {clips}\ngroup_column_name: speaker\neval_fold: a\n")
    tables = []
    for number, data in enumerate((clips, sounds, recipe)):
        run(predict, models[SINGLE], data, "--output_dir", tmp_path / str(number))
        tables.append(read_csv(tmp_path / str(number) / "predictions.csv"))
    assert tables[0] == tables[1] == tables[2] and len(tables[0]) == 6


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--split=test"], DataError, "expected clips of the split test"),
        (["--group_column_name=site"], RecipeError, "No effect on a prediction: group_column_name"),
        (["--label_column_name=kind"], RecipeError, "No effect on a prediction: label_column_name"),
        (["--audio_column_name=sound"], DataError, "expected a column 'sound'"),
        (["--output_dir={clips}"], CommandError, "Expected output_dir to be a folder, got the file"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(models, sounds, tmp_path, options, error, words):
    clips = write_list(tmp_path / "clips.csv", sounds, ["bell"] * 6)
    with pytest.raises(error, match=words):
        run(predict, models[SINGLE], clips, *(option.format(clips=clips) for option in options))


def test_a_stream_and_scores_that_are_not_finite_are_refused(models, sounds, tmp_path, monkeypatch):
    (tmp_path / "stream.yaml").write_text("dataset_name: someone/something\nstreaming: true\n")
    with pytest.raises(RecipeError, match="streaming"):
        run(predict, models[SINGLE], tmp_path / "stream.yaml")
    monkeypatch.setattr(predict, "predict", lambda *args, **options: (np.full((6, 3), np.nan), None))
    with pytest.raises(DivergedError, match="Expected finite scores"):
        run(predict, models[SINGLE], sounds, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
