"""A review asks for what helps, loses no answer, and asks nobody the same twice."""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import make_tiny_config, random_model
from helpers import another_process, save_checkpoint, write_csv, write_sound

from modeling_ast import ASTForAudioClassification
from modeling_ast.commands import embed, train
from modeling_ast.commands import review as command
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import claimed
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.data.truth import LabelledStretch, read_labelled_stretches
from modeling_ast.inference.answers import AnswersList
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.parquet_tables import write_rows
from modeling_ast.inference.review import CURVE_COLUMNS, Review
from modeling_ast.inference.review_page import ReviewPage, build_review_page

KINDS = ("dog", "owl", "rain", "")  # the last one: none of the labels
SHARES = (0.02, 0.03, 0.05, 0.9)


@pytest.fixture
def archive(tmp_path, monkeypatch) -> tuple[EmbeddingStore, list[str]]:
    """800 windows of 40 recordings, most of which hold nothing, and what each holds."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    kinds = generator.choice(4, size=800, p=SHARES)
    vectors = 2.5 * generator.normal(size=(4, 16))[kinds] + generator.normal(size=(800, 16))
    rows = (
        {"path": f"{row // 20:02}.wav", "start": row % 20 * 1.0, "end": row % 20 + 1.0, "embedding": vector}
        for row, vector in enumerate(vectors.astype(np.float32))
    )
    fields = {"path": pa.string(), "start": pa.float64(), "end": pa.float64(), "embedding": pa.list_(pa.float32(), 16)}
    write_rows("store.parquet", rows, fields, {"model": "none", "fingerprint": "", "level": "window"})
    return EmbeddingStore("store.parquet"), [KINDS[kind] for kind in kinds]


def answer_some(review: Review, kinds: list[str], count: int, visitor: str = "") -> list[str]:
    found = []
    for number in range(count):
        question = review.ask(visitor)
        found.append(kinds[question.row])
        assert review.answer(question.row, [found[-1]] if found[-1] else [], visitor)
        if number % 10 == 9 and review.order != "random":
            review.fit()
    return found


def test_what_is_rare_is_found_sooner_than_by_chance(archive):
    store, kinds = archive
    found = {
        order: answer_some(Review(store, f"{order}.csv", order=order), kinds, 40) for order in ("mixed", "random")
    }
    rare = {order: sum(kind != "" for kind in each) for order, each in found.items()}
    assert rare["mixed"] >= 2 * rare["random"] and set(found["mixed"]) == set(KINDS)


@pytest.mark.parametrize("order", ["uncertain", "different", "likely"])
def test_each_order_asks_for_what_it_says(archive, order):
    store, kinds = archive
    review = Review(store, "list.csv", order=order)
    rows = [next(row for row, kind in enumerate(kinds) if kind == wanted) for wanted in KINDS]
    for row in rows:
        review.answers.append(
            f"{Path.cwd()}/{row // 20:02}.wav", row % 20, row % 20 + 1, [kinds[row]] if kinds[row] else []
        )
    review = Review(store, "list.csv", order=order)
    assert review.fit() and review.label_names == ["dog", "owl", "rain"]
    question = review.ask()
    assert question.order == order and question.row not in rows and question.proposal in review.label_names
    if order == "likely":
        assert kinds[question.row] == question.proposal
    if order == "uncertain":
        doubts = np.abs(review._probabilities - 0.5).min(axis=1)
        assert doubts[question.row] <= np.quantile(doubts, 0.06)
        assert abs(question.probability - 0.5) == pytest.approx(doubts[question.row])  # of the label that is in doubt


def test_answers_are_on_the_disk_before_the_next_question(archive):
    store, _ = archive
    review = Review(store, "list.csv")
    question = review.ask()
    assert review.answer(question.row, ["dog", "owl"])
    text = Path("list.csv").read_text()
    assert re.fullmatch(r"audio,start,end,label\n\d\d.wav,\d+,\d+,dog\n\d\d.wav,\d+,\d+,owl\n", text)
    (stretch,) = read_labelled_stretches("list.csv")
    assert (stretch.audio, stretch.start, stretch.labels) == (question.audio, question.start, ("dog", "owl"))
    again = Review(store, "list.csv")  # as after a crash
    assert again.label_names == ["dog", "owl"] and again.num_labels == 1
    assert all(again.ask(str(number)).row != question.row for number in range(799)) and again.ask("800") is None


def test_two_visitors_are_asked_different_things_and_take_back_their_own(archive):
    store, _ = archive
    review = Review(store, "list.csv")
    first, second = review.ask("one"), review.ask("two")
    assert first.row != second.row and review.ask("one") == first  # a tab that asks again
    assert not review.answer(second.row, ["dog"], "one"), "an answer to what was not asked"
    assert review.answer(first.row, ["dog"], "one") and review.answer(second.row, [], "two")
    assert not review.answer(first.row, ["dog"], "one"), "the same twice"
    following = review.ask("one")
    assert review.undo("one") and review.ask("one") == first
    assert [each.labels for each in review.answers.read()] == [()]
    assert review.answer(first.row, ["owl"], "one") and review.undo("two")
    assert [each.labels for each in review.answers.read()] == [("owl",)]
    assert not review.undo("two") and not review.undo("three")
    review.leave("one")
    assert not review.undo("one")
    assert following.row in {review.ask(f"new {number}").row for number in range(798)}


def test_an_answer_is_taken_back_whole_and_a_link_stays_one(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "list.csv")
    answers = AnswersList(tmp_path / "link.csv")
    lines = answers.append(tmp_path / "1.wav", 0, 3, ["owl"])
    answers.append(tmp_path / "11.wav", 0, 3, ["owl"])
    answers.remove(lines)
    assert [Path(each.audio).name for each in answers.read()] == ["11.wav"]
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "list.csv").read_text().endswith("\n11.wav,0,3,owl\n")


def test_an_answer_is_taken_back_from_a_list_that_a_spreadsheet_has_saved(archive):
    store, _ = archive
    review = Review(store, "list.csv")
    first = review.ask()
    assert review.answer(first.row, ["dog"]) and review.answer(review.ask().row, ["owl"])
    list_ = Path("list.csv")
    list_.write_bytes(list_.read_bytes().replace(b"\n", b"\r\n"))
    assert review.undo() and [each.labels for each in review.answers.read()] == [("dog",)]
    list_.write_text(list_.read_text().replace(",dog", ',"dog"'))
    with pytest.raises(DataError, match="list.csv was changed, and has the last answer in another form: take it back"):
        review.undo()
    assert [each.labels for each in review.answers.read()] == [("dog",)] and review.ask().row != first.row
    list_.write_text(list_.read_text().splitlines()[0] + "\n")  # which the person then does
    assert review.undo() and review.ask().row == first.row and not review.undo()


def test_what_is_skipped_is_not_in_the_list(archive):
    store, _ = archive
    review = Review(store, "list.csv")
    question = review.ask()
    assert review.answer(question.row, None) and review.ask().row != question.row
    assert review.num_labels == 0 and not Path("list.csv").exists() and not review.fit()
    assert review.undo() and review.ask() == question


def test_the_curve_goes_on(archive):
    store, kinds = archive
    review = Review(store, "list.csv", ["dog"], curve_path=Path("out/curve.csv"))
    for count in (12, 4):
        for _ in range(count):
            question = review.ask()
            review.answer(question.row, ["dog"] if question.row % 2 else [])
        review.fit()
    assert [point["labels"] for point in review.curve] == [12, 16] and list(review.curve[0]) == list(CURVE_COLUMNS)
    told = [point for point in review.curve if point["value"] < 1]  # of 1 no interval can be told
    assert told and all(point["low"] <= point["value"] <= point["high"] for point in told)
    again = Review(store, "list.csv", curve_path=Path("out/curve.csv"))
    assert again.curve == review.curve and again.fit() and again.curve[-1]["labels"] == 16
    whole = "labels,metric,value,low,high\n10,mAP,1.0,,\n"
    Path("out/curve.csv").write_text(whole)
    (point,) = Review(store, "list.csv", curve_path=Path("out/curve.csv")).curve
    assert point == dict(zip(CURVE_COLUMNS, (10, "mAP", 1.0, None, None)))
    for other in ("labels,metric,value\n10,mAP,1\n", whole.replace("10", "many")):
        Path("out/curve.csv").write_text(other)
        with pytest.raises(DataError, match="curve.csv: expected the columns labels, metric"):
            Review(store, "list.csv", curve_path=Path("out/curve.csv"))


def test_one_label_each_where_that_is_asked_for(archive):
    store, _ = archive
    review = Review(store, "list.csv", problem_type="single_label_classification")
    question = review.ask()
    for labels in ([], ["dog", "owl"]):
        with pytest.raises(DataError, match=f"Expected one label, since each stretch has one, got {len(labels)}"):
            review.answer(question.row, labels)
    assert review.answer(question.row, ["dog"])


def test_a_list_of_ones_own_is_added_to(tmp_path):
    (tmp_path / "own.csv").write_text("site,label,audio,start,end\nhill,dog,a.wav,0,1")  # without an end of line
    answers = AnswersList(tmp_path / "own.csv")
    lines = answers.append(str(tmp_path / "b, c.wav"), 1.5, 36000.25, ["owl"])
    text = (tmp_path / "own.csv").read_text()
    assert text == 'site,label,audio,start,end\nhill,dog,a.wav,0,1\n,owl,"b, c.wav",1.5,36000.25\n'
    answers.remove(lines)
    assert [each.labels for each in answers.read()] == [("dog",)]
    other = "audio;start;end;label\na.wav;0;1;dog\n"
    (tmp_path / "own.csv").write_text(other)
    sentence = "expected a list in UTF-8 with commas and the columns audio, start, end, label"
    with pytest.raises(DataError, match=sentence):
        AnswersList(tmp_path / "own.csv")
    with pytest.raises(DataError, match=sentence):  # changed while it is open
        answers.append(str(tmp_path / "b.wav"), 1, 2, ["owl"])
    assert (tmp_path / "own.csv").read_text() == other


def test_what_is_labelled_elsewhere_is_added_once(tmp_path):
    answers, (a, b) = AnswersList(tmp_path / "list.csv"), (str(tmp_path / name) for name in ("a.wav", "b.wav"))
    answers.append(a, 0, 1, ["owl"])
    others = [LabelledStretch(b, 0, math.inf), LabelledStretch(b, 1.5, 2, ("dog", "owl"))]
    again = [LabelledStretch(a, 0, 1, ("dog",)), *others]
    assert answers.extend(again) == 2 and answers.extend(again) == 0
    assert answers.read() == [LabelledStretch(a, 0, 1, ("owl",)), *others]
    assert (tmp_path / "list.csv").read_text().splitlines()[2:] == ["b.wav,0,,", "b.wav,1.5,2,dog", "b.wav,1.5,2,owl"]
    with pytest.raises(DataError, match="commas stand between labels in it, and are in none, got 'dog, far'"):
        answers.append(a, 1, 2, ["dog, far"])
    for wrong in ("-1", "['x']", "[1]"):  # of which a list could be read no more
        with pytest.raises(DataError, match="Expected labels that are words, got"):
            answers.append(a, 1, 2, [wrong])


@pytest.mark.parametrize(
    "content", ["audio,start,end,label\nKäuzchen.wav,0,1,owl\n".encode("cp1252"), b"\xef\xbb\xbf"]
)
def test_a_list_that_no_rows_can_be_added_to_is_refused_at_the_start(tmp_path, content):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match="expected a list in UTF-8 with commas and the columns audio, .*, got another"):
        AnswersList(tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_bytes() == content


# The page


class Visitor:
    session_hash = "one"


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_an_answer_says_of_every_label_whether_it_is_there(archive, problem_type):
    review = Review(archive[0], "list.csv", ["dog", "owl"], problem_type=problem_type)
    page = ReviewPage(review, None, None)
    page.show = lambda visitor, words="", is_error=False: words
    shown = lambda: str(review.ask("one").row)  # noqa: E731
    assert page.label(shown(), "owl", Visitor) == "owl: written."
    if problem_type == "single_label_classification":
        assert page.none(shown(), Visitor).startswith("Expected one label, since each stretch has one, got 0")
        assert page.label(shown(), " dog ,owl", Visitor).startswith("Expected one label")
        assert [each.labels for each in review.answers.read()] == [("owl",)]
    else:
        assert page.none(shown(), Visitor) == "None of the labels (dog, owl): written."
        assert page.label(shown(), " dog ,far  owl,dog", Visitor) == "dog and far owl: written."
        assert [each.labels for each in review.answers.read()] == [("owl",), (), ("dog", "far owl")]
    assert page.label(shown(), " , ", Visitor) == ""
    blocks = build_review_page(page, "x").blocks.values()
    is_shown = {each.value: each.visible for each in blocks if isinstance(each, gr.Button)}
    assert is_shown["Yes (y)"] and is_shown["None of the labels (n)"] == problem_type.startswith("multi")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SOUNDS = ("siren", "noise", "drone")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    return make_recordings(tmp_path_factory.mktemp("review"), 20)


@pytest.fixture(scope="module")
def few_recordings(tmp_path_factory) -> Path:
    return make_recordings(tmp_path_factory.mktemp("few"), 2)


def make_recordings(folder: Path, count: int) -> Path:
    """Some recordings of three seconds, a sound each second, their store, and its model."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        sound = torch.cat([generate_clip(SOUNDS[(number + second) % 3], generator) for second in range(3)])
        write_sound(folder / "sounds" / f"{number:02} <b>.wav", sound)
    save_checkpoint(folder / "model", random_model(make_tiny_config(num_labels=1)), mean=-7.3, std=4.8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        windows = ["--level", "window", "--window", "0.5", "--hop", "0.5"]
        embed.main(["sounds", "--model", "model", "--output", "store.parquet", *windows])
    return folder


@contextmanager
def opened(folder: Path, temporary: Path, *words: str):
    """Address of the page, which the command opens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(temporary / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "modeling_ast.commands.review", "store.parquet", *words, "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            cwd=folder,
        )
    url = f"http://127.0.0.1:{port}/"
    for _ in range(900):
        try:
            urllib.request.urlopen(url)
            break
        except urllib.error.URLError:
            assert process.poll() is None, (temporary / "log").read_text()
            time.sleep(0.5)
    try:
        yield url
        assert "Traceback" not in (temporary / "log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture
def context():
    """A browser, in which nothing but the page may be loaded, and no error is passed over."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context()
        context.set_default_timeout(180_000)
        yield context
        browser.close()


class Reviewer:
    """Somebody who knows what is in each recording, at a tab of the page."""

    def __init__(self, context, url: str, faults: list[str]):
        self.page, self.labels = context.new_page(), set()
        self.page.on("pageerror", lambda error: faults.append(str(error)))
        own = (url, "data:", f"blob:{url}")
        self.page.on("request", lambda request: request.url.startswith(own) or faults.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#question-row")

    @property
    def row(self) -> str:
        return self.page.get_attribute("#question-row", "data-row")

    @property
    def status(self) -> str:
        return self.page.inner_text("#status")

    def truth(self) -> str:
        name, start = re.search(r"(\d\d) <b>\.wav, ([\d.]+) to", self.page.inner_text("#question-row")).groups()
        return SOUNDS[(int(name) + int(float(start))) % 3]

    def press(self, key: str) -> None:
        row = self.row
        self.page.keyboard.press(key)
        self.page.wait_for_function("row => document.querySelector('#question-row')?.dataset.row != row", arg=row)

    def answer(self) -> tuple[str, str]:
        """By keys alone: yes, none (for a drone), the number of a label, or its name."""
        truth, row = self.truth(), self.row
        asked = self.page.inner_text("#question-row")
        if truth == "drone":
            self.press("n")
        elif f"Is it {truth}?" in asked:
            self.press("y")
        elif truth in (names := self.names()):
            self.press(str(names.index(truth) + 1))
        else:
            self.page.keyboard.press("o")
            self.page.keyboard.type(truth)
            self.press("Enter")
            self.page.wait_for_function("() => document.activeElement.tagName == 'BODY'")
        return row, truth

    def names(self) -> list[str]:
        buttons = self.page.locator("button[id^=label-]:visible").all_inner_texts()
        return [words.partition(" ")[2] for words in buttons]


@pytest.mark.slow
def test_thirty_clips_are_reviewed_by_keys_alone(recordings, context, tmp_path):
    """With a reload in the middle, a second tab, a crash, and the width of a phone."""
    faults, said = [], []
    words = ("labels.csv", "--fit_every", "10", "--output", str(tmp_path / "out"))
    with opened(recordings, tmp_path, *words) as url:
        me = Reviewer(context, url, faults)
        me.page.wait_for_function("() => document.querySelector('#picture img').naturalWidth > 10")
        assert me.page.evaluate("document.querySelector('#sound').duration") == pytest.approx(0.5, abs=0.01)
        # It plays by itself where the browser lets it; a key within that time would stop it.
        me.page.wait_for_function(
            "() => { const s = document.querySelector('#sound'); return s.readyState == 4 && s.paused; }"
        )
        me.page.evaluate("document.querySelector('#sound').addEventListener('play', () => { window.played = true; })")
        me.page.keyboard.press(" ")
        me.page.wait_for_function(
            "() => window.played && parseFloat(document.querySelector('#cursor').style.left) > 20"
        )
        said += [me.answer() for _ in range(10)]
        assert "10 stretches labelled." in me.status and "Fitted" in me.status
        skipped = me.row
        me.press("s")
        assert me.row != skipped and "Skipped." in me.status
        me.press("u")
        assert me.row == skipped
        said.append(me.answer())
        before = me.row
        me.press("u")
        assert me.row == skipped and "10 stretches labelled. Taken back." in me.status
        said[-1] = me.answer()
        assert before != skipped
        me.page.reload()
        me.page.wait_for_selector("#question-row")
        assert "11 stretches labelled." in me.status
        other = Reviewer(context, url, faults)
        assert other.row != me.row
        for _ in range(5):
            said += [me.answer(), other.answer()]
        assert "21 stretches labelled." in other.status
        other.page.close()
    # Killed, and begun again.
    with opened(recordings, tmp_path, *words) as url:
        me = Reviewer(context, url, faults)
        me.page.set_viewport_size({"width": 390, "height": 844})
        assert "21 stretches labelled." in me.status and me.row not in {row for row, _ in said}
        said += [me.answer() for _ in range(9)]
        assert "30 stretches labelled." in me.status
        assert me.page.evaluate("document.documentElement.scrollWidth") <= 390
        me.page.wait_for_selector("#curve img")
        me.page.screenshot(path=tmp_path / "narrow.png", full_page=True)
        me.page.keyboard.press("w")
        me.page.wait_for_function("() => document.querySelector('#status').innerText.includes('The model is in')")
        me.page.set_viewport_size({"width": 1200, "height": 900})
        me.page.screenshot(path=tmp_path / "wide.png")
    assert faults == []
    stretches = read_labelled_stretches(str(recordings / "labels.csv"))
    assert len(stretches) == 30 == len({row for row, _ in said})
    expected = sorted(() if truth == "drone" else (truth,) for _, truth in said)
    assert sorted(each.labels for each in stretches) == expected
    model = ASTForAudioClassification.from_pretrained(tmp_path / "out" / "model_30")
    assert list(model.config.id2label.values()) == ["noise", "siren"]
    result = train.main([str(tmp_path / "out" / "train.yaml"), "--dry_run", "true", "--use_cpu", "true"])
    assert result["dry_run_hours"] > 0


def test_a_review_begins_with_what_is_labelled_elsewhere(few_recordings, monkeypatch, capsys):
    monkeypatch.chdir(few_recordings)
    monkeypatch.setattr(command, "serve", lambda *args: None)
    rows = [("sounds/00 <b>.wav", 0, 1, "siren"), ("sounds/00 <b>.wav", 1, 2, "noise,far")]
    write_csv(Path("marked.csv"), [dict(zip(("audio", "start", "end", "label"), row)) for row in rows])
    write_sound(few_recordings / "later.wav", np.zeros(16000))  # which the store does not have
    with open("marked.csv", "a") as file:
        file.write("later.wav,0,1,siren\n")
    words = ["store.parquet", "known.csv", "--annotations", "marked.csv", "--label_separator", ";"]
    with pytest.raises(DataError, match="got 'noise,far'"):
        command.main(words)
    command.main(words[:-2])
    said = capsys.readouterr().out
    assert "2 stretches of marked.csv were added to known.csv." in said
    assert "1 are of recordings that are not in store.parquet, and were left out." in said
    assert sorted(each.labels for each in AnswersList("known.csv").read()) == [("noise", "far"), ("siren",)]


def test_a_list_that_another_review_writes_to_is_left_alone(few_recordings, monkeypatch):
    monkeypatch.chdir(few_recordings)
    Path("mine.csv").touch()
    Path("link.csv").symlink_to("mine.csv")
    with another_process(claimed, few_recordings, None, "_review_mine.csv"):
        for name in ("mine.csv", "link.csv"):
            with pytest.raises(DataError, match=f"Another run is writing to {name} .*another LABELS"):
                command.main(["store.parquet", name])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere/list.csv"], "Expected a list that ends in .csv, in a folder that exists, got nowhere/list.csv"),
        (["list.txt"], "Expected a list that ends in .csv, in a folder that exists, got list.txt"),
        (["list.csv", "--label_separator", ";"], "Unknown: --label_separator ;. Keys of data go with --annotations"),
        (["list.csv", "--label_names", "owl", "dog, far"], "names of labels without commas, .*, got 'dog, far'"),
        (["list.csv", "--port", "0"], "Expected port from 1 to 65535, got 0"),
        (["list.csv", "--fit_every", "0"], "Expected fit_every of at least 1, got 0"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=sentence):
        command.main(["store.parquet", *words])
