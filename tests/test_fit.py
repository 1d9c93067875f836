"""A head on stored embeddings is the classifier that is written, and what is expected of it is what it does."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_tiny_config, random_model
from helpers import save_checkpoint, write_csv, write_sound
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import pipeline

from modeling_ast import ASTForAudioClassification
from modeling_ast.commands import embed, fit
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.intervals import metric_intervals
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.data.truth import LabelledStretch, read_labelled_stretches
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.embeddings import audio_embedder
from modeling_ast.inference.examples import Examples, find_examples
from modeling_ast.inference.fitted_model import describe_expectation
from modeling_ast.inference.linear_heads import choose_head, fit_heads, normalize
from modeling_ast.loading import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16000
KINDS = ("bell", "siren", "noise")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Nine recordings of three seconds, a sound each second; a model; and its store of windows of half a second."""
    folder = tmp_path_factory.mktemp("archive")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(9):
        order = [KINDS[(number + place) % 3] for place in range(3)]
        sound = torch.cat([generate_clip(kind, generator) for kind in order])
        write_sound(folder / "recordings" / f"{number}.wav", sound.numpy())
        rows += [
            {"audio": f"{number}.wav", "start": place, "end": place + 1, "label": kind, "site": f"site {number // 2}"}
            for place, kind in enumerate(order)
        ]
    write_csv(folder / "recordings" / "labels.csv", rows)
    # Weights wider than a fresh model's, which says the same of everything.
    save_checkpoint(folder / "model", random_model(make_tiny_config(head_layer_norm_eps=1e-5)), mean=-7.3, std=4.8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        windows = ["--level", "window", "--window", "0.5", "--hop", "0.25"]
        embed.main(["recordings", "--model", "model", "--output", "store.parquet", *windows])
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch) -> Path:
    """Another working folder: the store's recordings lie beside it, and its model is named anew."""
    monkeypatch.chdir(tmp_path)
    return folder


def run(here: Path, *words, labels="recordings/labels.csv") -> dict:
    return fit.main([*map(str, (here / "store.parquet", here / labels, "--model", here / "model", *words))])


# What is written


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_the_model_that_is_written_is_the_head_that_was_fitted(here, problem_type, monkeypatch):
    heads = []
    monkeypatch.setattr(fit, "choose_head", lambda *args: heads.append(choose_head(*args)) or heads[-1])
    results = run(here, "--output", "model", "--problem_type", problem_type)
    store = EmbeddingStore(here / "store.parquet")
    stretches = read_labelled_stretches(str(here / "recordings/labels.csv"))
    examples = find_examples(store, stretches, "labels", problem_type)
    model, extractor = store.load_model(str(here / "model"))
    vectors = store.vectors(examples.rows)
    ((head, _),) = heads
    expected = head.logits(normalize(vectors, model.config.layer_norm_eps))
    assert expected.std() > 0.3
    written = ASTForAudioClassification.from_pretrained("model")
    with torch.no_grad():
        logits = written.classifier(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert written.config.problem_type == problem_type == results["problem_type"]
    assert written.config.id2label == {0: "bell", 1: "noise", 2: "siren"}
    assert json.loads(Path("model/fit_results.json").read_text()) == results
    card = Path("model/README.md").read_text()
    assert "27 labelled stretches\n(bell 9" in card and "Expect " in card and "# model\n" in card


STOCK = """
import json, sys
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

torch.set_num_threads(1)
folder, clips = sys.argv[1:]
model, loading = AutoModelForAudioClassification.from_pretrained(folder, output_loading_info=True)
extractor = AutoFeatureExtractor.from_pretrained(folder)
tagger = pipeline("audio-classification", model=folder, top_k=None)
clips = list(np.load(clips))
with torch.no_grad():
    logits = model(**extractor(clips, sampling_rate=16000, return_tensors="pt")).logits.tolist()
scores = [sorted((each["label"], each["score"]) for each in tagger(clip)) for clip in clips]
report = {"class": type(model).__module__, "logits": logits, "scores": scores}
report["loading"] = {key: sorted(map(str, value)) for key, value in loading.items() if value}
print(json.dumps({**report, "package": "modeling_ast" in sys.modules}))
"""


@pytest.mark.slow
def test_stock_transformers_gives_the_scores_of_the_head_without_the_package(here, tmp_path):
    run(here, "--output", "fitted")
    generator = torch.Generator().manual_seed(7)
    clips = np.stack([generate_clip(kind, generator)[:9600].numpy() for kind in KINDS])
    np.save("clips.npy", clips)
    command = [sys.executable, "-c", STOCK, str(tmp_path / "fitted"), str(tmp_path / "clips.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={"HF_HUB_OFFLINE": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert not report["package"] and report["class"].startswith("transformers.") and report["loading"] == {}
    store = EmbeddingStore(here / "store.parquet")
    examples = find_examples(store, read_labelled_stretches(str(here / "recordings/labels.csv")), "labels")
    epsilon = store.load_model(str(here / "model"))[0].config.layer_norm_eps
    head, _ = choose_head(normalize(store.vectors(examples.rows), epsilon), examples)
    embedder, tagger = (
        audio_embedder(here / "model", device="cpu"),
        pipeline("audio-classification", "fitted", top_k=None),
    )
    for clip, logits, scores in zip(clips, report["logits"], report["scores"], strict=True):
        expected = head.logits(normalize(embedder(clip).vectors, epsilon))[0]
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        ours = sorted((each["label"], each["score"]) for each in tagger(clip))
        assert [label for label, _ in ours] == [label for label, _ in scores] == examples.label_names
        np.testing.assert_allclose([score for _, score in scores], [score for _, score in ours], atol=1e-4, rtol=0)
        np.testing.assert_allclose(
            [score for _, score in scores], torch.tensor(expected).softmax(0), atol=1e-4, rtol=0
        )


# What is fitted, and expected


def make_examples(
    truth: np.ndarray, groups: np.ndarray, problem_type: str = "single_label_classification"
) -> Examples:
    """A row a stretch."""
    places, names = np.arange(len(truth)), [str(number) for number in range(truth.shape[1])]
    return Examples(names, places, places, truth, truth, groups, problem_type)


def test_few_rows_in_many_dimensions_are_fitted_as_by_scikit_learn():
    """Also two classes, of which it has one row of weights, and a weight a row."""
    generator = np.random.default_rng(0)
    features, weights = generator.normal(size=(20, 50)), generator.uniform(0.5, 2, 20)
    for num_labels in (2, 3):
        truth = np.eye(num_labels, dtype=bool)[np.arange(20) % num_labels]
        (head,) = fit_heads(features, truth, weights, "single_label_classification", (0.1,))
        scaler = StandardScaler().fit(features, sample_weight=weights)
        known = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000)
        known.fit(scaler.transform(features), truth.argmax(axis=1), weights)
        others = generator.normal(size=(30, 50))
        found = torch.from_numpy(head.logits(others)).softmax(dim=1)
        np.testing.assert_allclose(found, known.predict_proba(scaler.transform(others)), atol=2e-3)


def test_what_a_group_gives_away_does_not_count():
    """A feature a group says its label: a random division would find all of them right."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    truth = np.eye(2, dtype=bool)[generator.integers(2, size=30)[groups]]
    features = np.eye(30)[groups] + 0.01 * generator.normal(size=(120, 30))
    _, of_groups = choose_head(features, make_examples(truth, groups))
    _, of_clips = choose_head(features, make_examples(truth, np.arange(120)))
    assert of_clips.value > 0.95 and of_groups.value < 0.7
    assert of_groups.interval.high - of_groups.interval.low > of_clips.interval.high - of_clips.interval.low
    assert (of_groups.num_groups, of_groups.num_folds) == (30, 5)


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_labels_that_mean_nothing_are_not_expected_to(problem_type):
    generator = np.random.default_rng(1)
    features, truth = generator.normal(size=(60, 40)), np.eye(3, dtype=bool)[generator.integers(3, size=60)]
    head, expected = choose_head(features, make_examples(truth, np.arange(60), problem_type))
    assert expected.interval.low < 0.45 and expected.value < 0.55
    assert head.strength <= 0.01


def test_the_interval_is_that_of_all_metrics():
    """By groups, of what is expected; a mAP of 1 has none, since all draws are alike."""
    generator = np.random.default_rng(3)
    truth, groups = generator.random((40, 2)) < 0.5, np.arange(40) // 2
    features = truth @ np.eye(2, 8) + generator.normal(size=(40, 8))
    for noise in (features, np.pad(truth * 9.0, ((0, 0), (0, 6))) + 0.01 * features):
        _, found = choose_head(noise, make_examples(truth, groups, "multi_label_classification"))
        known = metric_intervals({"mAP": found.value}, found.probabilities, truth, "", groups=groups)
        assert found.interval == known.get("mAP") and (found.interval is None) == (found.value == 1)
    summary = found.summary()
    assert (summary["value"], summary["low"], summary["high"]) == (1, None, None)
    assert describe_expectation(summary).startswith("Expect mAP 1.000 (no interval can be told, as all draws of the")


def test_a_label_in_one_group_leaves_nothing_to_expect():
    truth = np.eye(2, dtype=bool)[np.arange(10) // 5]
    features = np.random.default_rng(0).normal(size=(10, 4)) + 3 * truth.argmax(axis=1)[:, None]
    head, expected = choose_head(features, make_examples(truth, np.arange(10) // 5))
    assert expected is None and (head.logits(features).argmax(axis=1) == truth.argmax(axis=1)).all()


def test_a_label_that_a_fold_has_not_seen_keeps_its_place():
    truth, features = np.eye(3, dtype=bool)[np.arange(8) % 2], np.random.default_rng(0).normal(size=(8, 4))
    for problem_type in ("single_label_classification", "multi_label_classification"):
        (head,) = fit_heads(features, truth, np.ones(8), problem_type, (0.1,))
        assert head.logits(features).shape == (8, 3) and (head.logits(features)[:, 2] < -2).all()


# What belongs to what


def test_rows_belong_to_the_stretches_that_they_lie_in(here):
    store, audio = EmbeddingStore(here / "store.parquet"), str(here / "recordings" / "0.wav")
    assert len(store) == 9 * 11 and store.size == 32 and store.starts[:3].tolist() == [0, 0.25, 0.5]
    stretches = [
        LabelledStretch(audio, 1, 2, ("a",)),  # longer than a window: those with half of them in it
        LabelledStretch(audio, 0.3, 0.4, ("b", "a")),  # shorter: those with half of it
        LabelledStretch(audio, 2.4, math.inf),
    ]
    examples = find_examples(store, stretches, "labels")
    assert examples.label_names == ["a", "b"] and examples.problem_type == "multi_label_classification"
    assert store.starts[examples.rows].tolist() == [0.75, 1, 1.25, 1.5, 1.75, 0, 0.25, 2.25, 2.5]
    assert examples.stretches.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2]
    assert examples.truth.tolist() == [[True, False], [True, True], [False, False]]
    assert np.bincount(examples.stretches, examples.weights).tolist() == pytest.approx([1, 1, 1])


def test_a_stretch_that_is_a_row_has_the_say_in_it(here):
    """As the answers of a review are, of windows that overlap by half."""
    store, audio = EmbeddingStore(here / "store.parquet"), str(here / "recordings" / "0.wav")
    kinds = {0.0: ("owl",), 0.25: (), 0.5: (), 0.75: ("owl",), 2.0: ("owl", "cat")}
    stretches = [LabelledStretch(audio, start, start + 0.5, labels) for start, labels in kinds.items()]
    examples = find_examples(store, [*stretches, LabelledStretch(audio, 0.1, 1.9, ("cat",))], "labels")
    own = examples.stretches < len(stretches)
    assert store.starts[examples.rows[own]].tolist() == list(kinds)
    assert (examples.targets[own] == examples.truth[:-1]).all()
    assert not set(examples.rows[own]) & set(examples.rows[~own]) and (~own).sum() == 3
    assert (examples.targets[~own] == [True, False]).all()


def test_a_row_has_one_label_where_a_stretch_has_one(here):
    store, audio = EmbeddingStore(here / "store.parquet"), str(here / "recordings" / "0.wav")
    stretches = [LabelledStretch(audio, 0, 2, ("dog",)), LabelledStretch(audio, 0.5, 1, ("cat",))]
    examples = find_examples(store, stretches, "labels", "single_label_classification")
    (place,) = np.flatnonzero(examples.rows == 2)  # from 0.5 s on
    assert examples.targets[place].tolist() == [True, False] and (examples.targets.sum(axis=0) == [1, 7]).all()
    covered = LabelledStretch(audio, 0.5, 1.01, ("dog",))  # longer than a row, and the only row of it is answered
    examples = find_examples(store, [*stretches[1:], covered, LabelledStretch(audio, 2, 3, ("dog",))], "labels")
    assert examples.truth.sum(axis=0).tolist() == [1, 2] and len(examples.groups) == 3


def test_what_is_true_of_a_stretch_is_what_most_of_its_rows_have(here):
    """As annotations that overlap have it, whose labels all hold where they are."""
    store, audio = EmbeddingStore(here / "store.parquet"), str(here / "recordings" / "0.wav")
    kinds = [(0, 1, "owl"), (0, 3, "rain"), (2.4, 2.5, "cat")]
    stretches = [LabelledStretch(audio, start, end, (label,)) for start, end, label in kinds]
    examples = find_examples(store, stretches, "labels", "multi_label_classification")
    assert examples.label_names == ["cat", "owl", "rain"]
    assert examples.truth.tolist() == [[False, True, True], [False, False, True], [True, False, True]]


def test_the_same_labels_in_another_order_tell_nothing_apart(here):
    audio = str(here / "recordings" / "0.wav")
    stretches = [LabelledStretch(audio, 0, 1, ("a", "b")), LabelledStretch(audio, 1, 2, ("b", "a"))]
    with pytest.raises(DataError, match="expected two labels, or stretches with one and without"):
        find_examples(EmbeddingStore(here / "store.parquet"), stretches, "labels")


def test_a_list_says_labels_and_groups(tmp_path):
    """Of recordings that need not be there."""
    lines = ["audio,start,end,label,site", "a.wav,0,1,x;y,p", "a.wav,0,1,z,p", "b.wav,,,,q", "b.wav,1.5,,x,q"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    a, b = str(tmp_path / "sounds" / "a.wav"), str(tmp_path / "sounds" / "b.wav")
    keys = ["--audio_dir=sounds", "--label_separator", ";", "--group_column_name=site"]
    assert read_labelled_stretches(str(tmp_path / "list.csv"), keys) == [
        LabelledStretch(a, 0, 1, ("x", "y", "z"), "p"),
        LabelledStretch(b, 0, math.inf, (), "q"),
        LabelledStretch(b, 1.5, math.inf, ("x",), "q"),
    ]
    (tmp_path / "short.csv").write_text("label,audio\nx;y,a.wav\n")
    expected = [LabelledStretch(str(tmp_path / "a.wav"), 0, math.inf, ("x;y",))]
    assert read_labelled_stretches(str(tmp_path / "short.csv")) == expected
    (tmp_path / "list.jsonl").write_text(
        '{"audio": "a.wav", "start": 0, "end": 1.5, "label": ["x", "y"]}\n'
        '{"audio": "b.wav", "start": null, "end": null, "label": null}\n'
    )
    a, b = str(tmp_path / "a.wav"), str(tmp_path / "b.wav")
    expected = [LabelledStretch(a, 0, 1.5, ("x", "y")), LabelledStretch(b, 0, math.inf)]
    assert read_labelled_stretches(str(tmp_path / "list.jsonl")) == expected


def test_folders_say_labels_too(tmp_path, caplog):
    for name in ("marked/a_1.wav", "marked/b_1.wav", "marked/c_1.wav", "classes/x/a_1.wav", "classes/y/b_1.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "marked" / "a_1.txt").write_text("1\t2,5\tx\n1\t2,5\ty\n")
    (tmp_path / "marked" / "b_1.txt").touch()  # in which there is nothing
    a, b = (str(tmp_path / "marked" / f"{name}_1.wav") for name in "ab")
    expected = [LabelledStretch(a, 1, 2.5, ("x", "y"), "a"), LabelledStretch(b, 0, math.inf, (), "b")]
    assert read_labelled_stretches(str(tmp_path / "marked"), ["--group_pattern=^(.)_"]) == expected
    a, b = (str(tmp_path / "classes" / name) for name in ("x/a_1.wav", "y/b_1.wav"))
    expected = [LabelledStretch(a, 0, math.inf, ("x",)), LabelledStretch(b, 0, math.inf, ("y",))]
    assert read_labelled_stretches(str(tmp_path / "classes"), multi_label=False) == expected
    (tmp_path / "classes" / "testing_list.txt").write_text("y/b_1.wav\n")
    assert read_labelled_stretches(str(tmp_path / "classes")) == expected[:1]
    assert "what it holds out is left out: test." in caplog.text


@pytest.mark.parametrize(
    ("rows", "keys", "words"),
    [
        ([], [], "expected a column 'audio', got none"),
        (["audio,start"], [], "expected a column 'label', got audio, start"),
        (["audio,start,label", "a.wav,1,x"], [], "expected whole files, got columns that seem to say .*start"),
        (["audio,label"], [], "holds no rows"),
        (["audio,start,end,label", "a.wav,3,2,x"], [], "row 1 .*a.wav.: expected an end behind the start of 3 s"),
        (["audio,label", "a.wav,x"], ["--start_column_name=from"], "start_column_name has no effect on whole files"),
        (["audio,label", "a.wav,"], ["--multi_label"], "row 1 .*: expected one label a clip in 'label', got ''"),
        (
            ["audio,label,site", "a.wav,x,p", "a.wav,y,q"],
            ["--group_column_name=site"],
            "row 2 .*: expected one group for a stretch, got p and q",
        ),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, rows, keys, words):
    (tmp_path / "list.csv").write_text("\n".join(rows))
    multi_label = "--multi_label" not in keys
    with pytest.raises(DataError, match=words):
        read_labelled_stretches(str(tmp_path / "list.csv"), keys if multi_label else [], multi_label)


def test_other_sources_and_keys_are_refused(tmp_path):
    table = pa.table({"audio": [{"bytes": b"", "path": "a.wav"}], "label": ["x"]})
    pq.write_table(table, tmp_path / "sounds.parquet")
    with pytest.raises(DataError, match="expected paths of recordings in 'audio', got sounds"):
        read_labelled_stretches(str(tmp_path / "sounds.parquet"))
    with pytest.raises(RecipeError, match="No effect on annotations: window_seconds"):
        read_labelled_stretches("list.csv", ["--window_seconds=1"])
    with pytest.raises(DataError, match="Expected a list .* with audio_dir"):
        read_labelled_stretches(str(tmp_path), ["--audio_dir=sounds"])


def test_sites_are_held_out_where_a_column_names_them(here, capsys):
    results = run(here, "--group_column_name", "site")
    assert results["expected"]["groups"] == 5 and results["expected"]["metric"] == "accuracy"
    said = capsys.readouterr().out
    assert "27 labelled stretches in 117 rows: bell 9, noise 9, siren 9." in said
    assert "Expect accuracy" in said and "each of 5 groups was predicted by a head that had not seen it" in said
    assert not list(Path().iterdir())  # without --output


def test_stretches_are_held_out_where_a_label_is_in_one_recording(here, caplog):
    rows = [{"audio": "0.wav", "start": at, "end": at + 1, "label": kind} for at, kind in enumerate(KINDS)]
    write_csv(here / "recordings" / "one.csv", rows)
    results = run(here, labels="recordings/one.csv")
    assert "In one recording alone: bell, noise, siren." in caplog.text
    assert results["expected"] is None and results["C"] == 0.01
    rows = [{**row, "site": row["start"]} for row in rows]
    write_csv(here / "recordings" / "one.csv", rows)
    caplog.clear()
    run(here, "--group_column_name", "site", labels="recordings/one.csv")
    assert "In one group alone, of which no other one can tell what to expect: bell, noise, siren." in caplog.text


@pytest.mark.parametrize(
    ("rows", "options", "error", "words"),
    [
        (["0.wav,0,1,bell"], [], DataError, "expected two labels, or stretches with one and without .*got bell alone"),
        (["0.wav,0,1,"], [], DataError, "got none"),
        (["8.wav,0,1,a", "9.wav,0,1,b"], [], DataError, "1 of its recordings are not in .*9.wav. Embed them too"),
        (
            ["0.wav,0,1,a", "0.wav,3.5,4,b"],
            [],
            DataError,
            "no row of .*0.wav from 3.5 s to 4 s, which it does not reach",
        ),
        (["0.wav,0,1000,a", "1.wav,0,1,b"], [], DataError, "0.wav, which has 3.00 s, got one from 0 s to 1000 s"),
        (["0.wav,0,1,a", "1.wav,0,1,"], ["--problem_type", "single_label_classification"], DataError, "got ''"),
        (["0.wav,0,1,a", "1.wav,0,1,b"], ["--output", "OUT"], CommandError, "Expected a new or empty folder"),
        (["0.wav,0,1,a", "1.wav,0,1,b"], ["--model", "OTHER"], ModelError, "are of another model, or of this one"),
    ],
)
def test_what_cannot_be_fitted_is_refused(here, tmp_path, rows, options, error, words):
    (here / "recordings" / "bad.csv").write_text("\n".join(["audio,start,end,label", *rows]))
    if "OTHER" in options:
        save_checkpoint(tmp_path / "OTHER", random_model(make_tiny_config()))
    if "OUT" in options:
        (tmp_path / "OUT" / "file").mkdir(parents=True)
    with pytest.raises(error, match=words):
        run(here, *options, labels="recordings/bad.csv")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--level", "patch"], "expected embeddings of windows or clips, got level patch"),
        (["--readout", "rows"], "expected embeddings that a classifier sees, got readout rows"),
    ],
)
def test_tables_of_other_rows_are_refused(here, options, words):
    recording = str(here / "recordings" / "0.wav")
    embed.main([recording, "--model", str(here / "model"), "--output", "other.parquet", *options])
    with pytest.raises(DataError, match=words):
        fit.main(["other.parquet", str(here / "recordings/labels.csv")])


def test_a_clip_of_which_less_than_half_is_labelled_has_no_row(here):
    recordings = [str(here / "recordings" / f"{number}.wav") for number in range(2)]
    embed.main([*recordings, "--model", str(here / "model"), "--output", "clips.parquet"])
    store, stretches = EmbeddingStore("clips.parquet"), [LabelledStretch(recordings[0], 0, 2, ("a",))]
    assert find_examples(store, [*stretches, LabelledStretch(recordings[1], 0, math.inf)], "list").rows.tolist() == [
        0,
        1,
    ]
    with pytest.raises(DataError, match="0 s to 1 s, which is less than half of its rows"):
        find_examples(store, [*stretches, LabelledStretch(recordings[1], 0, 1)], "list")


def test_recordings_that_have_moved_are_known_by_their_names(here, tmp_path, caplog):
    """The store names them as they were seen from another folder."""
    expected = run(here)["expected"]
    caplog.clear()
    shutil.copytree(here / "recordings", tmp_path / "moved")
    shutil.copy(here / "store.parquet", tmp_path / "elsewhere.parquet")
    model = ["--model", str(here / "model")]
    assert fit.main(["elsewhere.parquet", "moved/labels.csv", *model])["expected"] == expected
    assert "9 recording(s) are taken for moved ones of the same names" in caplog.text
    (tmp_path / "moved" / "deep").mkdir()
    shutil.copy(tmp_path / "moved" / "0.wav", tmp_path / "moved" / "deep" / "0.wav")
    (tmp_path / "two.csv").write_text("audio,label\nmoved/0.wav,a\nmoved/deep/0.wav,b\n")
    with pytest.raises(DataError, match="2 of its recordings are not in elsewhere.parquet"):
        fit.main(["elsewhere.parquet", "two.csv", *model])


def test_what_makes_a_model_of_several_labels_and_labels_alike_are_told(here, caplog, capsys):
    rows = ["0.wav,0,1,bell", "0.wav,1,2,Bell", "1.wav,0,1,siren", "1.wav,1,2,bell", "1.wav,1,2,siren"]
    caplog.set_level("INFO")
    (here / "recordings" / "mixed.csv").write_text("\n".join(["audio,start,end,label", *rows]))
    run(here, labels="recordings/mixed.csv")
    assert re.search(r"Several labels a clip: 1 of 4 stretches .* such as \S*1.wav from 1 s with 2.", caplog.text)
    assert "Several labels differ by blanks or case alone: 'Bell' and 'bell'." in capsys.readouterr().out


def test_something_else_than_a_store_is_one_sentence(tmp_path):
    (tmp_path / "store.parquet").write_text("no table")
    for name in ("store.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=f"{name}: expected a table that `modeling-ast embed` wrote"):
            EmbeddingStore(tmp_path / name)


def test_commas_in_names_of_folders_and_of_label_files_part_no_labels(tmp_path):
    for name in ("classes/Rain, heavy/a.wav", "classes/Dog/b.wav", "marked/a.wav", "marked/b.wav"):
        write_sound(tmp_path / name, np.zeros(16000))
    (tmp_path / "marked" / "a.txt").write_text("0.0\t0.5\tRain, heavy\n0.5\t1.0\t\n")
    (tmp_path / "marked" / "b.txt").write_text("0.0\t0.5\tDog\n")
    for folder in ("classes", "marked"):
        found = read_labelled_stretches(str(tmp_path / folder))
        assert {each.labels for each in found} - {()} == {("Rain, heavy",), ("Dog",)}
