"""The page shows what the pipeline hears, and survives what people upload."""

import asyncio
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from PIL import Image

from modeling_ast import ASTFeatureExtractor, AudioError, load_waveform
from modeling_ast.commands.command_options import CommandError
from modeling_ast.commands.command_page_options import read_accounts
from modeling_ast.data.labels import DataError
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.inference import page as app
from modeling_ast.inference import page_guard
from modeling_ast.inference.page import BATCH_SIZE, Stopped, Tagger, Turn
from modeling_ast.inference.page_guard import PageGuard, working_folder
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.loading import ModelError

pytest.importorskip("gradio", reason="needs gradio: pip install 'modeling_ast[demo]'")
from modeling_ast.commands import page as demo_app
from modeling_ast.inference import page_layout

SCRIPT = Path(demo_app.__file__)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What runs in the page if it is taken for HTML or for a template.
LABELS = ["<img src=x onerror=alert(1)>", "low ${alert(2)} {{alert(3)}}", "**middle**, or so", "high", "rest"]
RATE = 16000
# Of a server that may be busy with a model beside other tests.
get, post = partial(httpx.get, timeout=60), partial(httpx.post, timeout=60)

pytestmark = pytest.mark.usefixtures("one_thread")


def make_sound(*kinds: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return torch.cat([generate_clip(kind, generator) for kind in kinds]).numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with a model whose answers differ between sounds."""
    folder = tmp_path_factory.mktemp("tiny_model")
    config = make_tiny_config(id2label=dict(enumerate(LABELS)), problem_type="multi_label_classification")
    model = random_model(config)
    extractor = ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-7.0, std=4.0)
    windows = torch.from_numpy(make_sound("siren", "noise", "bell", "drone")).unfold(0, 8000, 4000)
    model.classifier.dense.weight.data *= 12
    with torch.no_grad():
        model.classifier.dense.bias -= model(**extractor(windows, return_tensors="pt")).logits.mean(dim=0)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(model):
    return audio_tagger(model)


@pytest.fixture
def tagger(classifier, tmp_path) -> Tagger:
    (tmp_path / "work").mkdir()
    return Tagger(classifier, tmp_path / "work")


@pytest.fixture
def sound(tmp_path) -> Path:
    soundfile.write(tmp_path / "four.flac", make_sound("siren", "noise", "bell", "drone"), RATE)
    return tmp_path / "four.flac"


def test_what_is_heard_is_what_the_pipeline_hears(tagger, classifier, sound):
    for windows in ({}, {"chunk_length_s": 0.4, "stride_length_s": 0.1}):
        tagged = tagger.tag(sound, windows)
        expected = classifier(str(sound), return_timeline=True, batch_size=BATCH_SIZE, **windows)
        assert tagged.tags == expected["tags"]
        np.testing.assert_array_equal(tagged.timeline.boundaries, expected["timeline"].boundaries)
        np.testing.assert_array_equal(tagged.timeline.scores, expected["timeline"].scores)
        assert tagged.events == expected["timeline"].find_events()
        assert tagged.events, "a test without events would show little"


def test_windows_that_are_looked_into_are_those_that_were_heard(tagger, sound):
    waveform = load_waveform(sound, RATE)
    windows = {"chunk_length_s": 0.5, "stride_length_s": 0.125}
    tagged = tagger.tag(sound, windows)
    for row in (0, 3, len(tagged.timeline.scores) - 1):
        window, start = tagger.read_window(tagged, row)
        assert start == row * 0.25
        first = round(start * RATE)
        torch.testing.assert_close(window.waveform, waveform[first : first + RATE // 2], rtol=0, atol=0)
        logits = tagger.classifier.model(**tagger.classifier.featurize(window, 0.5)).logits
        scores = torch.from_numpy(tagged.timeline.scores[row])
        torch.testing.assert_close(logits.sigmoid()[0], scores, rtol=0, atol=1e-5)


def test_stretches_are_the_events_from_the_strongest_on(tagger, sound):
    tagged = tagger.tag(sound, {})
    assert sorted(tagged.stretches, key=str) == sorted(tagged.events, key=str)
    assert [event.score for event in tagged.stretches] == sorted((e.score for e in tagged.events), reverse=True)


def test_without_events_the_strongest_row_is_looked_into(tagger, sound):
    tagged = tagger.tag(sound, {}, threshold=1.1)
    (stretch,) = tagged.stretches
    assert not tagged.events and stretch.score == tagged.timeline.scores.max()
    assert stretch.start in tagged.timeline.times and stretch.end in tagged.timeline.times
    assert tagger.draw_attention(tagged, 0).is_file()
    assert "no score reaches" in page_layout.show(tagger, tagged)[1]


def test_pictures_and_files_are_there_until_forgotten(tagger, sound):
    tagged = tagger.tag(sound, {})
    for picture in (tagger.draw_timeline(tagged), tagger.draw_attention(tagged, len(tagged.stretches) - 1)):
        with Image.open(picture) as image:
            assert min(image.size) > 200 and np.asarray(image.convert("L")).std() > 10
    events, scores = tagger.write_files(tagged)
    assert events.name == "four_events.txt" and len(events.read_text().splitlines()) == len(tagged.events)
    assert scores.name == "four_scores.csv" and len(scores.read_text().splitlines()) == len(tagged.timeline.scores) + 1
    tagged.forget()
    assert not list(Path(tagger.folder).iterdir())


def test_nothing_is_drawn_of_what_was_forgotten_meanwhile(tagger, sound):
    tagged = tagger.tag(sound, {})
    assert page_layout.draw_attention(tagger, 0, tagged).is_file()
    assert page_layout.draw_attention(tagger, None, tagged) is page_layout.draw_attention(tagger, 0, None) is None
    tagged.forget()
    assert page_layout.draw_attention(tagger, 0, tagged) is None


@pytest.mark.parametrize("suffix", ("wav", "flac", "ogg", "mp3"))
def test_who_waits_is_told_how_far_a_file_has_been_read(tagger, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(app, "_TURN_SECONDS", 0.5)
    soundfile.write(tmp_path / f"sound.{suffix}", np.tile(make_sound("siren"), 20), RATE)
    shares = []
    tagger.tag(tmp_path / f"sound.{suffix}", {}, report=shares.append)
    assert len(shares) >= 40 and all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares) and shares[0] < 0.6 and shares[-1] > 0.98


def test_what_nobody_waits_for_ends(tagger, sound, monkeypatch):
    monkeypatch.setattr(app, "_TURN_SECONDS", 0.5)
    shares = []

    def report(share):
        shares.append(share)
        if len(shares) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        tagger.tag(sound, {}, report=report)
    assert len(shares) == 3 and not list(Path(tagger.folder).iterdir())
    tagged = tagger.tag(sound, {})  # the turn is free
    shares.clear()
    with pytest.raises(Stopped):
        tagger.draw_timeline(tagged, report)
    assert len(shares) == 3 and not list(tagged.folder.iterdir())


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for():
    turn, order, threads = Turn(), [], []

    def ask(number):
        with turn:
            order.append(number)

    with turn:
        for number in range(20):
            threads.append(threading.Thread(target=ask, args=[number]))
            threads[-1].start()
            while len(turn._queue) < number + 2:  # until it has asked
                time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join(60)
    assert order == list(range(20))


def test_a_short_recording_does_not_wait_for_a_long_one(tagger, sound, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "_TURN_SECONDS", 0.5)
    soundfile.write(tmp_path / "long.wav", np.tile(make_sound("siren", "bell"), 40), RATE)
    shares, has_begun = [0.0], threading.Event()

    def report(share):
        shares.append(share)
        has_begun.set()

    with ThreadPoolExecutor(1) as others:
        long = others.submit(tagger.tag, tmp_path / "long.wav", {}, report=report)
        assert has_begun.wait(60)
        tagged = tagger.tag(sound, {})
        assert shares[-1] < 0.9 and not long.done()
        alone = tagger.tag(sound, {})
    assert len(long.result().timeline.scores) > 100 and tagged.events == alone.events


def test_recordings_are_as_much_shorter_as_their_windows_overlap_more(classifier, sound, tmp_path):
    tagger = Tagger(classifier, tmp_path, max_seconds=4)
    assert tagger.tag(sound, {}).timeline.seconds == 4
    assert tagger.tag(sound, {"chunk_length_s": 0.6, "stride_length_s": 0.1}).timeline.seconds == 4
    with pytest.raises(AudioError, match="^four.flac: longer than the 0.05 minutes that are taken.$"):
        tagger.tag(sound, {"chunk_length_s": 0.6, "stride_length_s": 0.15})


@pytest.mark.parametrize("content", (b"", b"RIFFnonsense", b"no sound"))
def test_a_bad_file_is_named_without_its_folder(tagger, tmp_path, content):
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError) as error:
        tagger.tag(path, {})
    message = str(error.value)
    assert message.startswith("broken.wav: cannot be decoded (")
    assert str(tmp_path) not in message


def test_windows_and_thresholds_that_cannot_work_are_refused(tagger, sound):
    with pytest.raises(ValueError, match="Expected chunk_length_s of at least 0.175 s, one patch, got 0.01"):
        tagger.tag(sound, {"chunk_length_s": 0.01})
    with pytest.raises(ValueError, match="Expected thresholds to be finite numbers, got nan"):
        tagger.tag(sound, {}, threshold=float("nan"))


@pytest.mark.parametrize("method, arguments", [("draw_timeline", ()), ("draw_attention", (0,)), ("read_window", (0,))])
def test_of_a_file_that_is_gone_nothing_more_is_drawn(tagger, sound, method, arguments):
    tagged = tagger.tag(sound, {})
    sound.unlink()
    with pytest.raises(AudioError, match="^four.flac: cannot be read .No such file or directory"):
        getattr(tagger, method)(tagged, *arguments)


def test_a_page_without_a_model_is_not_opened(tmp_path):
    with pytest.raises(ModelError, match="nowhere cannot be used: "):
        demo_app.main(["--model", str(tmp_path / "nowhere")])


def test_messages_and_names_are_text_not_html(tagger, sound):
    named = sound.rename(sound.with_name("<img src=x onerror=alert(1)>.flac"))
    nothing = page_layout.show_nothing("<b>x</b>.wav: broken", is_error=True)
    something = page_layout.show(tagger, tagger.tag(named, {}))
    assert "&lt;b&gt;x" in nothing[1] and "<b>" not in nothing[1]
    assert "&lt;img" in something[1] and "<img" not in something[1]
    assert len(nothing) == len(something)


def test_windows_beyond_the_page_are_refused(tagger):
    assert page_layout.choose_windows(tagger, None, None) == {"chunk_length_s": None}
    assert page_layout.choose_windows(tagger, 10, 5)["stride_length_s"] == (2.5, 2.5)
    for window, hop, words in ((11, None, "at most 10 s, got 11 s"), (None, 0.001, "at least 0.02 s"), (1, 2, "hop")):
        with pytest.raises(ValueError, match=words):
            page_layout.choose_windows(tagger, window, hop)


def test_a_setting_is_a_number_or_empty():
    fields = {None: None, "": None, " ": None, "0": 0, "0.5": 0.5, " 0,5": 0.5}
    assert {text: page_layout.read_setting("hop", text) for text in fields} == fields
    with pytest.raises(ValueError, match="^Expected a number as hop, got 'x'.$"):
        page_layout.read_setting("hop", "x")


def test_a_regression_model_has_no_page(tagger, sound, monkeypatch):
    monkeypatch.setattr(tagger.classifier.model.config, "problem_type", "regression")
    with pytest.raises(ModelError, match="gives labels, got the regression model tiny"):
        page_layout.build_page(tagger, "tiny", [sound])


def test_generated_examples_can_be_heard(tagger, tmp_path):
    paths = app.write_examples(tmp_path / "examples")
    lengths = [tagger.tag(path, {}).timeline.seconds for path in paths]
    assert lengths == [4.0, 10.0, 60.0]


def test_examples_are_the_sounds_of_a_folder(sound, tmp_path):
    (tmp_path / "notes.txt").write_text("no sound")
    assert app.find_examples(tmp_path) == [sound.resolve()]
    for nothing in (tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(DataError, match="Expected a folder with recordings"):
            app.find_examples(nothing)


@pytest.mark.parametrize(
    "option",
    (
        ["--port", "0"],
        ["--port", "70000"],
        ["--max_megabytes", "0"],
        ["--max_total_megabytes", "1000"],
        ["--max_minutes", "nan"],
        ["--max_minutes", "0"],
        ["--max_at_once", "0"],
    ),
)
def test_options_that_cannot_work_are_refused(option):
    with pytest.raises(CommandError, match=option[0].strip("-")):
        demo_app.parse_options(["--model", "x", *option])


def test_as_many_are_served_at_once_as_is_said(tagger, sound):
    limits = [
        page_layout.build_page(tagger, "tiny", [sound], at_once)._queue.default_concurrency_limit for at_once in (2, 5)
    ]
    assert limits == [2, 5]


def test_accounts_stand_in_a_file_or_on_the_command_line(tmp_path):
    assert read_accounts("me:sec:ret") == [("me", "sec:ret")]
    (tmp_path / "accounts").write_text("me:secret\n\n you:other \r\n")
    assert read_accounts(str(tmp_path / "accounts")) == [("me", "secret"), ("you", "other")]
    (tmp_path / "accounts").write_text("me:secret\nyou\n")
    for nothing in ("secret", ":secret", "me:", str(tmp_path / "accounts")):
        with pytest.raises(CommandError, match="Expected auth to be USER:PASSWORD") as caught:
            read_accounts(nothing)
        assert "secret" not in str(caught.value)
    (tmp_path / "accounts").write_bytes("käte:secret".encode("cp1252"))
    with pytest.raises(CommandError, match="Expected auth to be a file in UTF-8 that can be read"):
        read_accounts(str(tmp_path / "accounts"))


def ask_guard(guard: PageGuard, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and words of the answer to a request."""
    sent = []

    async def send(message):
        sent.append(message)

    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": "http", "method": method, "path": path, "headers": lines}, None, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


async def behind_the_guard(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200})


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        (200, "GET", "/", {}),
        (200, "GET", "/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}),
        (403, "GET", "/config", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}),
        (403, "GET", "/config", {"origin": "http://elsewhere.example", "host": "sounds.example"}),
        (200, "POST", "/gradio_api/upload", {"content-length": "5000000"}),
        (200, "POST", "/gradio_api/upload", {"origin": "http://sounds.example:1", "host": "sounds.example:1"}),
        (200, "POST", "/gradio_api/upload", {"origin": "https://proxy.example", "sec-fetch-site": "same-origin"}),
        (403, "POST", "/gradio_api/upload", {"origin": "http://sounds.example:2", "host": "sounds.example:1"}),
        (403, "POST", "/gradio_api/upload", {"origin": "null", "host": "sounds.example"}),
        (403, "POST", "/gradio_api/upload", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}),
        (403, "POST", "/gradio_api/upload", {"sec-fetch-site": "same-site", "host": "127.0.0.1:1"}),
        (413, "POST", "/gradio_api/upload", {"content-length": "20000000"}),  # as many files as may be
        (411, "POST", "/gradio_api/upload", {"transfer-encoding": "chunked"}),
        (200, "POST", "/gradio_api/queue/join", {"content-length": "1000"}),
        (413, "POST", "/gradio_api/queue/join", {"content-length": "5000000"}),
        (403, "POST", "/gradio_api/process_recording", {"content-length": "1000"}),
        (403, "PUT", "/gradio_api/upload", {"content-length": "1000"}),
        (403, "GET", "/gradio_api/file=https://sounds.example/a.wav", {}),
        (403, "GET", "/gradio_api/file/http://sounds.example/a.wav", {}),
        (200, "GET", "/gradio_api/file=/folder/http.wav", {}),
    ],
)
def test_the_guard_passes_on_what_the_page_itself_asks_for(tmp_path, status, method, path, headers):
    guard = PageGuard(behind_the_guard, tmp_path, max_bytes=5_000_000, max_total_bytes=50_000_000)
    found, sentence = ask_guard(guard, method, path, headers)
    assert found == status and sentence.endswith("." if status != 200 else "") and guard.arriving == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("127.0.0.1", 200),
        ("[::1]:1", 200),
        ("sounds.example:7860", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_a_page_of_this_machine_alone_has_no_other_name(tmp_path, host, status):
    guard = PageGuard(behind_the_guard, tmp_path, 1000, 1000, hosts=("localhost", "127.0.0.1", "::1"))
    assert ask_guard(guard, "GET", "/config", {"host": host, "sec-fetch-site": "same-origin"})[0] == status


def test_the_oldest_uploads_make_room_for_new_ones(tmp_path):
    for age, name in enumerate(("new", "old", "older", "oldest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sound.wav").write_bytes(bytes(2**20))
        os.utime(tmp_path / name / "sound.wav", (1e9 - age, 1e9 - age))
    (tmp_path / "link").symlink_to(tmp_path / "new")
    guard = PageGuard(behind_the_guard, tmp_path, max_bytes=2**21, max_total_bytes=3 * 2**20)
    assert ask_guard(guard, "POST", "/upload", {"content-length": str(2**21)})[0] == 200
    assert {path.parent.name for path in tmp_path.glob("*/sound.wav")} == {"new", "old", "link"}
    guard.arriving = 2**21  # of others, at the same time
    assert ask_guard(guard, "POST", "/upload", {"content-length": str(2**21 + 1)}) == (
        503,
        "Others are uploading as much as this page takes. Try again in a minute.",
    )


def test_an_upload_that_does_not_end_is_ended(tmp_path, monkeypatch):
    async def wait(scope, receive, send):
        await asyncio.sleep(60)

    monkeypatch.setattr(page_guard, "_MIN_UPLOAD_SECONDS", 0.05)
    guard = PageGuard(wait, tmp_path, max_bytes=1000, max_total_bytes=1000)
    assert ask_guard(guard, "POST", "/upload", {"content-length": "100"}) == (408, "The upload takes too long.")
    assert guard.arriving == 0


def test_folders_that_a_killed_page_left_are_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("demo_app_results", "demo_app_killed", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sound.wav").touch()
    (tmp_path / "demo_app_link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "demo_app_killed" / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("demo_app_killed", "elsewhere"):
        (tmp_path / name / page_guard._CLAIM_NAME).touch()
    with working_folder() as first:
        (first / "sound.wav").touch()
        with working_folder() as second:
            kept = {"demo_app_results", "demo_app_link", "elsewhere"}
            assert {path.name for path in tmp_path.iterdir()} == {*kept, first.name, second.name}
            assert (first / "sound.wav").is_file() and (tmp_path / "elsewhere" / "sound.wav").is_file()
    assert {path.name for path in tmp_path.iterdir()} == kept
    monkeypatch.setattr(os, "getuid", lambda: -1)
    (tmp_path / "demo_app_results" / page_guard._CLAIM_NAME).touch()
    with working_folder():
        assert (tmp_path / "demo_app_results" / "sound.wav").is_file()  # of another user


def run_script(*arguments: str, before: str = "") -> subprocess.CompletedProcess:
    """The script in a process of its own, behind a line of code."""
    code = f"""{before}
import sys
sys.argv = {["modeling-ast", "page", *arguments]!r}
from modeling_ast.commands.command_line import main; main()"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_without_gradio_one_sentence_says_what_to_install():
    done = run_script("--model", "x", before="import sys; sys.modules['gradio'] = None")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: gradio is not installed: pip install 'modeling_ast[demo]'"


@pytest.mark.slow
def test_without_a_model_one_sentence_says_so(tmp_path):
    done = run_script("--model", str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(rf"^error: {re.escape(str(tmp_path))} cannot be used: ", done.stderr, re.MULTILINE)


@contextmanager
def opened_page(temporary: Path, *arguments):
    """Address and process of a page that the script opens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(temporary / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "modeling_ast.commands.page", "--port", str(port), *map(str, arguments)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            cwd=temporary,
        )
    url = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        try:
            urllib.request.urlopen(url)
            break
        except urllib.error.URLError:
            assert process.poll() is None, (temporary / "log").read_text()
            time.sleep(0.5)
    yield url, process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        said = (temporary / "log").read_text()
        assert "Traceback" not in said and said.endswith("Stopped by SIGTERM.\n")


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """The page, opened by the script; examples lie outside all folders that Gradio serves of its own accord."""
    folder = tmp_path_factory.mktemp("examples")
    soundfile.write(folder / "an example.wav", make_sound("bell", "steam", "clicks"), RATE)
    temporary = tmp_path_factory.mktemp("temporary")
    limits = ("--max_megabytes", 1, "--max_minutes", 100)
    with opened_page(temporary, "--model", model, "--examples", folder, *limits) as (url, _):
        yield url
    assert not list(temporary.glob("demo_app_*")), "uploads outlive the page"


@pytest.fixture
def page(url):
    """The page in a browser; nothing but the page itself may be loaded, and no error of it is passed over."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    faults = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_context(permissions=["microphone"]).new_page()
        page.set_default_timeout(180_000)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda line: line.type == "error" and faults.append(f"console: {line.text}"))
        own = (url, "data:", f"blob:{url}")
        page.on("request", lambda request: request.url.startswith(own) or faults.append(f"loads {request.url}"))
        page.goto(url)
        page.wait_for_selector("#status p")
        page.faults = faults
        yield page
        browser.close()
    # The player of Gradio says that it cannot play what is broken.
    assert [fault for fault in faults if not fault.startswith("console: Waveform load error")] == []


def wait_for_status(page, words: str) -> str:
    page.wait_for_function("words => document.querySelector('#status').innerText.includes(words)", arg=words)
    return page.inner_text("#status")


def upload(page, name: str, content: bytes) -> None:
    if page.locator("#audio button[aria-label=Clear]").count():
        page.click("#audio button[aria-label=Clear]")
        wait_for_status(page, page_layout.WELCOME)
    page.wait_for_selector("#audio input[type=file]", state="attached")
    page.set_input_files("#audio input[type=file]", {"name": name, "mimeType": "audio/wav", "buffer": content})


def check_results(page) -> None:
    """Labels and pictures are there."""
    for name in ("timeline", "attention"):
        page.wait_for_function(f"() => document.querySelector('#{name} img')?.naturalWidth > 300")
    shown = page.inner_text("#tags")
    assert all(label in shown for label in LABELS)


def encode(samples: np.ndarray, format: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=format)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ("wav", "flac", "ogg", "mp3"))
def test_page_shows_an_upload(page, tagger, tmp_path, suffix):
    content = encode(make_sound("siren", "noise", "bell", "drone"), suffix)
    (tmp_path / f"four.{suffix}").write_bytes(content)
    tagged = tagger.tag(tmp_path / f"four.{suffix}", {})
    upload(page, f"four.{suffix}", content)
    status = wait_for_status(page, f"four.{suffix}: ")
    assert f"{len(tagged.timeline.scores)} windows of 0.66 s" in status
    assert f"events: {len(tagged.events)}." in status
    check_results(page)
    for row, event in enumerate(tagged.events[:4]):  # rows further down are made when they come into sight
        cells = [page.inner_text(f"#events [data-testid=cell-{row}-{column}]") for column in range(4)]
        assert cells == [event.label, f"{event.start:.2f}", f"{event.end:.2f}", f"{event.score:.2f}"]


@pytest.mark.slow
def test_page_goes_on_after_a_bad_file(page):
    for name, content in (("broken.wav", b"RIFFnonsense"), ("notes.mp3", b"no sound")):
        upload(page, name, content)
        status = wait_for_status(page, f"{name}: cannot be decoded")
        assert status.endswith("Readable are WAV, FLAC, OGG and MP3.")
        assert not page.is_visible("#timeline") and not page.is_visible("#tags")
    upload(page, "good.flac", encode(make_sound("siren", "bell"), "flac"))
    wait_for_status(page, "good.flac: 2.00 s")
    check_results(page)


@pytest.mark.slow
def test_page_takes_names_for_text(page):
    upload(page, "<img src=x onerror=alert(4)>${alert(5)}{{alert(6)}}.wav", encode(make_sound("bell"), "wav"))
    wait_for_status(page, "windows of")
    check_results(page)
    assert page.locator("img[src=x]").count() == 0  # neither of the file nor of the labels


@pytest.mark.slow
def test_page_shows_an_example_with_other_windows_and_stretches(page):
    page.click("#examples button:has-text('an example')")
    wait_for_status(page, "an example.wav: 3.00 s")
    check_results(page)
    before = page.get_attribute("#attention img", "src")
    page.click("#stretch input")
    page.locator("[role=option]").nth(1).click()
    page.wait_for_function("before => document.querySelector('#attention img')?.src != before", arg=before)
    check_results(page)
    page.click("text=Settings")
    page.get_by_label("Threshold").fill("1.5")
    page.click("text=Tag again")
    assert "windows of 0.66 s, every 0.44 s; no score reaches" in wait_for_status(page, "no score")  # others are empty
    page.get_by_label("Threshold").fill("")
    page.get_by_label("Window (s)").fill("0.5")
    page.get_by_label("Hop (s)").fill("0.25")
    page.click("text=Tag again")
    wait_for_status(page, "11 windows of 0.50 s, every 0.25 s")
    check_results(page)
    page.get_by_label("Hop (s)").fill("5")
    page.click("text=Tag again")
    wait_for_status(page, "Expected a hop above 0 and of at most the window, 0.5 s, got 5 s.")


@pytest.mark.slow
def test_page_offers_files(page):
    page.click("#examples button:has-text('an example')")
    wait_for_status(page, "an example.wav: 3.00 s")
    for words, name, start in (("Audacity", "events.txt", "0.0"), ("CSV", "scores.csv", "start,end,")):
        with page.expect_download() as download:
            page.click(f"text={words}")
        assert download.value.suggested_filename.endswith(name)
        assert Path(download.value.path()).read_text(encoding="utf-8").startswith(start)


@pytest.mark.slow
def test_page_hears_the_microphone(page):
    page.click("#audio button[aria-label='Record audio']")
    page.click("#audio button:has-text('Record')")
    page.wait_for_selector("#audio button:has-text('Stop')")  # it records
    page.wait_for_timeout(4000)
    page.click("#audio button:has-text('Stop')")
    status = wait_for_status(page, "windows of")
    assert 0.5 < float(re.search(r": ([\d.]+) s,", status)[1]) < 30
    check_results(page)


@pytest.mark.slow
def test_page_fits_a_narrow_screen(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("#examples button:has-text('an example')")
    wait_for_status(page, "an example.wav")
    check_results(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
@pytest.mark.parametrize("path", (SCRIPT, Path(sys.executable).resolve()))
def test_no_other_files_are_served(url, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{url}gradio_api/file={path}")
    assert error.value.code == 403


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(url, model):
    port = url.rstrip("/").rpartition(":")[2]
    done = run_script("--model", str(model), "--port", port)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: 127.0.0.1:{port} cannot be opened; --port chooses another."


@pytest.mark.slow
def test_page_refuses_a_file_that_is_too_large(page):
    upload(page, "large.wav", bytes(2 * 2**20))
    page.wait_for_selector("text=exceed the maximum allowed size")
    page.faults[:] = [fault for fault in page.faults if "console" not in fault]  # Gradio tells the console, too


@contextmanager
def visited(url: str, session: str):
    """What a visitor's browser keeps open: their own session, which ends when they leave."""
    with httpx.stream("GET", f"{url}gradio_api/heartbeat/{session}", timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        yield


def find_function(url: str, event: str, num_inputs: int) -> int:
    """Number of the page's function that an event calls."""
    functions = get(f"{url}config").json()["dependencies"]
    fits = [
        each for each in functions if len(each["inputs"]) == num_inputs and event in dict(each["targets"]).values()
    ]
    return fits[0]["id"]


def ask_to_hear(url: str, session: str, *values) -> None:
    body = {"data": [*values, *[None] * (5 - len(values))], "fn_index": find_function(url, "change", 5)}
    post(f"{url}gradio_api/queue/join", json={**body, "session_hash": session}).raise_for_status()


def read_answer(url: str, session: str) -> dict:
    with httpx.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": session}, timeout=60) as stream:
        messages = (json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:"))
        return next(message["output"] for message in messages if message["msg"] == "process_completed")


def as_file(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.slow
@pytest.mark.parametrize("leave", ("closes", "stops", "chooses another", "clears"))
def test_work_ends_with_its_visitor(tagger, sound, tmp_path, monkeypatch, leave):
    has_begun, has_ended = threading.Event(), threading.Event()

    def tag_for_ever(path, windows, threshold, report):
        if path.endswith("another.flac"):
            return Tagger.tag(tagger, path, windows, threshold, report)
        try:
            while True:
                report(0.1)
                has_begun.set()
                time.sleep(0.01)
        finally:
            has_ended.set()

    monkeypatch.setattr(tagger, "tag", tag_for_ever)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    shutil.copy(sound, tmp_path / "another.flac")
    page = page_layout.build_page(tagger, "tiny", [sound])
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(tmp_path)])
    try:
        with visited(url, "visitor"):
            ask_to_hear(url, "visitor", as_file(str(sound)))
            assert has_begun.wait(60)
            if leave == "stops":
                body = {"data": [], "fn_index": find_function(url, "click", 0), "session_hash": "visitor"}
                shown = post(f"{url}gradio_api/run/predict", json=body).json()["data"]
                assert shown[1] == '<p class="">Stopped.</p>'
            elif leave == "chooses another":
                ask_to_hear(url, "visitor", as_file(str(tmp_path / "another.flac")))
            elif leave == "clears":
                ask_to_hear(url, "visitor", None)
            assert leave == "closes" or has_ended.wait(60)
        assert has_ended.wait(60)
    finally:
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        (as_file(""),),
        (as_file(300 * "a"),),
        (as_file("a\0b"),),
        (as_file(str(SCRIPT)),),
        (as_file("https://sounds.example/clip.wav"),),
        (None, as_file("https://sounds.example/clip.wav")),
        (5,),
    ],
    ids=str,
)
def test_what_was_not_uploaded_is_refused_in_a_sentence(url, values):
    ask_to_hear(url, "odd", *values)
    assert read_answer(url, "odd")["error"].startswith("Expected a recording that was uploaded here")


@pytest.mark.slow
@pytest.mark.parametrize("name", ("", 300 * "a" + ".wav", "a\x1b[31m.wav", "   ", ".wav", "CON.wav", "a." + 300 * "b"))
def test_odd_names_are_heard_or_refused_in_a_sentence(url, name):
    part = b'--X\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n\r\n'
    body = part + encode(make_sound("bell"), "wav") + b"\r\n--X--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    (path,) = post(f"{url}gradio_api/upload", content=body, headers=headers).json()
    ask_to_hear(url, "odd", as_file(path))
    answer = read_answer(url, "odd")
    if name == ".wav":  # hidden files are none that Gradio takes
        assert answer["error"] == "Expected a recording that was uploaded here."
    else:
        assert ": 1.00 s, 2 windows of 0.66 s" in answer["data"][1]


@pytest.mark.slow
def test_uploads_are_limited_together_and_to_the_page_itself(url):
    files = [("files", (f"{number}.wav", bytes(2**19))) for number in range(20)]
    assert post(f"{url}gradio_api/upload", files=files).status_code == 413
    elsewhere = {"Origin": "http://elsewhere.example"}
    assert post(f"{url}gradio_api/upload", files=files[:1], headers=elsewhere).status_code == 403
    assert post(f"{url}gradio_api/upload", files=files[:1]).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("path", ("monitoring", "monitoring/summary", "openapi.json", "docs", "runs"))
def test_nobody_can_watch_others(url, path):
    assert get(url + path).status_code in (403, 404)


@pytest.mark.slow
def test_accounts_open_the_page_and_a_killed_one_leaves_nothing_to_the_next(model, tmp_path):
    (tmp_path / "accounts").write_text("me:secret\n")
    arguments = ("--model", model, "--auth", tmp_path / "accounts")
    with opened_page(tmp_path, *arguments) as (url, process):
        assert get(f"{url}config").status_code == 401
        assert post(f"{url}gradio_api/upload", files={"files": ("a.wav", b"")}).status_code == 401
        assert post(f"{url}login", data={"username": "me", "password": "guess"}).status_code == 400
        with httpx.Client(timeout=60) as client:
            client.post(f"{url}login", data={"username": "me", "password": "secret"}).raise_for_status()
            assert client.get(f"{url}config").json()["username"] == "me"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    (left,) = tmp_path.glob("demo_app_*")
    with opened_page(tmp_path, *arguments):
        assert not left.exists() and list(tmp_path.glob("demo_app_*"))


@pytest.mark.slow
def test_page_refuses_a_recording_that_is_too_long_and_stops(page, tmp_path):
    with soundfile.SoundFile(tmp_path / "long.flac", "w", RATE, 1) as file:
        for _ in range(101):
            file.write(np.zeros(60 * RATE))
    upload(page, "long.flac", (tmp_path / "long.flac").read_bytes())
    wait_for_status(page, "long.flac: longer than the 100 minutes that are taken.")
    with soundfile.SoundFile(tmp_path / "hour.flac", "w", RATE, 1) as file:
        for _ in range(60):
            file.write(np.zeros(60 * RATE))
    upload(page, "hour.flac", (tmp_path / "hour.flac").read_bytes())
    page.wait_for_selector("text=Listening")
    page.click("button:has-text('Stop')")
    assert wait_for_status(page, "Stopped.") == "Stopped."
    page.click("#examples button:has-text('an example')")
    wait_for_status(page, "an example.wav: 3.00 s")
    check_results(page)
