"""What is found is what is nearest, exactly or by an index, and its page plays it."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import make_tiny_config, random_model
from helpers import end_of, read_csv, save_checkpoint, write_sound

from modeling_ast import AudioError
from modeling_ast.commands import command_faults, embed
from modeling_ast.commands import search as command
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.labels import DataError
from modeling_ast.data.synthetic import generate_clip
from modeling_ast.inference import parquet_tables
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.parquet_tables import write_rows
from modeling_ast.inference.search import Stretch, search

pytestmark = pytest.mark.usefixtures("one_thread")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_store(path: Path, vectors: np.ndarray, rows_a_recording: int = 50) -> EmbeddingStore:
    """Windows of a second, every half of one."""
    rows = (
        {"path": f"{row // rows_a_recording}.wav", "start": at / 2, "end": at / 2 + 1, "embedding": vector}
        for row, vector in enumerate(vectors)
        for at in [row % rows_a_recording]
    )
    fields = {"path": pa.string(), "start": pa.float64(), "end": pa.float64()}
    fields["embedding"] = pa.list_(pa.float32(), vectors.shape[1])
    write_rows(path, rows, fields, {"model": "none", "fingerprint": "", "level": "window"})
    return EmbeddingStore(path)


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)


def expected_rows(vectors: np.ndarray, vector: np.ndarray, top_k: int, taken: list[tuple[int, float]]) -> list:
    """The nearest rows, as (recording, start), leaving out those that overlap a better one: one by one, in float64."""
    vectors, vector = vectors.astype(float), vector.astype(float)
    cosines = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
    found = []
    for row in np.argsort(-cosines):
        place = (row // 50, row % 50 / 2)
        if all(place[0] != other[0] or abs(place[1] - other[1]) >= 1 for other in found + taken):
            found.append(place)
    return found[:top_k]


def places(matches) -> list:
    return [(int(match.path.partition(".")[0]), match.start) for match in matches]


@pytest.mark.parametrize("approximate", [False, True])
def test_the_nearest_stretches_are_found_whatever_the_blocks(tmp_path, vectors, monkeypatch, approximate):
    if approximate:
        pytest.importorskip("usearch")
    monkeypatch.setattr(parquet_tables, "ROWS_A_GROUP", 300)
    store = write_store(tmp_path / "store.parquet", vectors)
    vector = vectors[123] + 0.1
    matches = search(store, vector, 30, approximate=approximate)
    assert places(matches) == expected_rows(vectors, vector, 30, []) and places(matches)[0] == (2, 11.5)
    assert all(first.similarity >= second.similarity for first, second in zip(matches, matches[1:]))
    assert matches[0].similarity == pytest.approx(
        vectors[123] @ vector / np.linalg.norm(vectors[123]) / np.linalg.norm(vector), abs=1e-3
    )
    asked = Stretch(os.path.realpath("2.wav"), 11.4, 12.4)
    others = places(search(store, vector, 30, asked, approximate))
    assert others == expected_rows(vectors, vector, 30, [(2, 11.4)]) and (2, 11.5) not in others


def test_an_index_is_built_once_and_again_when_the_store_changes(tmp_path, vectors, monkeypatch):
    index = pytest.importorskip("usearch.index").Index
    built, add = [], index.add
    monkeypatch.setattr(index, "add", lambda self, keys, rows: built.append(len(rows)) or add(self, keys, rows))
    store = write_store(tmp_path / "store.parquet", vectors)
    for _ in range(2):
        search(store, vectors[5], 3, approximate=True)
    assert sum(built) == 1000
    store = write_store(tmp_path / "store.parquet", vectors[::-1])
    assert places(search(store, vectors[5], 1, approximate=True)) == [(19, 22)]
    assert sum(built) == 2000


def test_an_index_that_is_not_installed_is_one_sentence(archive, monkeypatch):
    monkeypatch.chdir(archive)
    for name in ("usearch", "usearch.index"):
        monkeypatch.setitem(sys.modules, name, None)
    # As from a checkout that is installed.
    monkeypatch.setattr(command_faults, "requires", lambda _: ['usearch>=2; extra == "search"'])
    status, said = end_of("search", "store.parquet", "sounds/0.wav", "--approximate")
    assert status == 2 and said == "error: usearch is not installed: pip install 'modeling_ast[search]'"


# The command


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Six recordings of four seconds, and a piece of the third one; their store, and a model."""
    folder = tmp_path_factory.mktemp("archive")
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        sound = torch.cat([generate_clip(kind, generator) for kind in ("bell", "siren", "drone", "clicks")])
        write_sound(folder / "sounds" / f"{number}.wav", sound)
        if number == 2:
            write_sound(folder / "a piece #1.wav", sound[20000:36000])
    save_checkpoint(folder / "model", random_model(make_tiny_config()), mean=-7.3, std=4.8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        windows = ["--level", "window", "--window", "0.5", "--hop", "0.25"]
        embed.main(["sounds", "--model", "model", "--output", "store.parquet", *windows])
    return folder


def test_a_recording_that_has_moved_does_not_find_itself(archive, tmp_path, monkeypatch, capsys):
    shutil.copytree(archive / "sounds", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    argv = [str(archive / "store.parquet"), "moved/2.wav", "--end", "0.5", "--top_k", "3", "--model"]
    shutil.copy(archive / "store.parquet", tmp_path / "elsewhere.parquet")
    argv[0] = "elsewhere.parquet"
    matches = command.main([*argv, str(archive / "model")])
    assert not [match for match in matches if Path(match.path).name == "2.wav" and match.start < 0.5]
    assert "But 3 of them are not where the store says, such as sounds/" in capsys.readouterr().out


@pytest.fixture
def run(archive, monkeypatch):
    monkeypatch.chdir(archive)
    return lambda *words: command.main(["store.parquet", *map(str, words)])


def test_a_clip_finds_its_like_with_their_times(archive, run, tmp_path, capsys):
    matches = run("a piece #1.wav", "--start", "0.25", "--top_k", "3", "--output", tmp_path / "out")
    assert (matches[0].path, matches[0].start, matches[0].end) == ("sounds/2.wav", 1.5, 2.0)
    assert matches[0].similarity == pytest.approx(1, abs=1e-4)
    said = capsys.readouterr().out
    assert "The file goes on; what is looked for is one window, 0.50 s." in said and "index.html plays them." in said
    rows = read_csv(tmp_path / "out" / "matches.csv")
    assert list(rows[0]) == ["audio", "start", "end", "similarity"] and len(rows) == 3
    assert (tmp_path / "out" / rows[0]["audio"]).resolve() == archive / "sounds" / "2.wav"
    assert [float(row["start"]) for row in rows] == [match.start for match in matches]


def test_a_table_that_was_labelled_is_not_replaced(run, tmp_path):
    run("sounds/2.wav", "--end", 0.5, "--top_k", 3, "--output", tmp_path)
    run("sounds/3.wav", "--end", 0.5, "--top_k", 3, "--output", tmp_path)  # as long as it is our own
    table = tmp_path / "matches.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{head},label", *(f"{row},owl" for row in rows)]))
    with pytest.raises(DataError, match="has columns of your own, which a new search would replace"):
        run("sounds/2.wav", "--end", 0.5, "--output", tmp_path)
    assert "owl" in table.read_text()


def test_what_is_looked_for_is_no_find(run, archive, tmp_path):
    found = run("sounds/2.wav", "--start", 1, "--end", 2, "--top_k", 100, "--output", tmp_path)
    own = sorted((match.start, match.end) for match in found if match.path == "sounds/2.wav")
    assert own and all(end <= 1 or start >= 2 for start, end in own)
    assert len({match.path for match in found}) == 6


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (["sounds/0.wav", "--start", "-1"], CommandError, "Expected start of at least 0, got -1.0"),
        (["sounds/0.wav", "--top_k", "0"], CommandError, "Expected top_k of at least 1"),
        (
            ["sounds/0.wav", "--start", "2", "--end", "2"],
            CommandError,
            "Expected an end behind the start, 2 s, got 2 s",
        ),
        (
            ["sounds/0.wav", "--output", "store.parquet"],
            CommandError,
            "Expected a folder as output, got store.parquet",
        ),
        (["sounds/0.wav", "--start", "9"], AudioError, "ends after 4.00 s, before 9 s"),
        (["sounds/9.wav"], AudioError, "sounds/9.wav"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(run, words, error, sentence):
    with pytest.raises(error, match=sentence):
        run(*words)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_plays_each_stretch_in_a_browser(archive, run, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    matches = run("a piece #1.wav", "--end", "0.5", "--top_k", "4", "--output", tmp_path / "out")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto((tmp_path / "out" / "index.html").as_uri())
        assert page.locator("audio").count() == 5 and "a piece #1.wav" in page.inner_text("h1")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for number, start in enumerate([0.0, *(match.start for match in matches)]):
            play = (
                "player => { player.load(); return player.play().then(() => [player.currentTime, player.duration]) }"
            )
            at, duration = page.locator("audio").nth(number).evaluate(play)
            assert start <= at < start + 0.4 and duration == pytest.approx(1 if number == 0 else 4, abs=0.01)
            page.locator("audio").nth(number).evaluate("player => player.pause()")
        page.screenshot(path=tmp_path / "page.png")
        browser.close()
