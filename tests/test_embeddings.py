"""Embeddings are what the model computes for the stretch of sound that they name, however it is batched and stored."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from datasets import Dataset, load_dataset
from helpers import another_process, few_synthetic_sounds
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modeling_ast import ASTFeatureExtractor, AudioError, __version__, load_waveform
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import claimed
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.synthetic import CLASSES, generate_clip
from modeling_ast.inference import parquet_tables
from modeling_ast.inference.embedding_tables import EmbeddingsFolder
from modeling_ast.inference.embeddings import LEVELS, ASTEmbeddingPipeline, Embeddings, audio_embedder
from modeling_ast.inference.journal import Journal
from modeling_ast.loading import ModelError

ROOT = Path(__file__).resolve().parents[1]
from modeling_ast.commands.embed import main as main  # noqa: E402

RATE = 16000
PATCH = 2800  # samples that 16 frames hear: 15 shifts of 160, and 400
# Windows of 0.4 s: 38 frames, 3 columns. They start every 0.25 s.
WINDOWS = {"chunk_length_s": 0.4, "stride_length_s": (0.11875, 0.03125)}
LENGTH, LEFT, HOP = 6400, 1900, 4000


few_sounds = few_synthetic_sounds(train=1, validation=1, test=2)


@pytest.fixture(scope="module")
def model():
    return random_model(make_tiny_config(time_stride=10))


@pytest.fixture(scope="module")
def extractor():
    return ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-7.3, std=4.8)


@pytest.fixture(scope="module")
def embedder(model, extractor) -> ASTEmbeddingPipeline:
    return ASTEmbeddingPipeline(model=model, feature_extractor=extractor, device="cpu")


@pytest.fixture(scope="module")
def folder(model, extractor, tmp_path_factory) -> Path:
    """The model as a checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """1.8 s, whose last window of 0.4 s is partial."""
    generator = torch.Generator().manual_seed(3)
    clips = [generate_clip(kind, generator) for kind in ("siren", "clicks")]
    return torch.cat(clips)[: int(1.8 * RATE)].numpy()


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A folder with three recordings, of which one is broken, and something else."""
    generator = torch.Generator().manual_seed(5)
    root = tmp_path / "sounds"
    (root / "b").mkdir(parents=True)
    soundfile.write(root / "long.wav", torch.cat([generate_clip("siren", generator)] * 2).numpy(), RATE)
    soundfile.write(root / "b" / "short.FLAC", generate_clip("bell", generator)[:6000].numpy(), RATE, format="FLAC")
    (root / "broken.wav").write_bytes(b"RIFF and nothing more")
    (root / "notes.txt").write_text("no sound")
    return root


def forward(model, extractor, waveform: np.ndarray, **kwargs):
    """The outputs of the model without a head, as anybody would compute them."""
    with torch.no_grad():
        return model.base_model(**extractor(waveform, return_tensors="pt", **kwargs))


def columns_of(model, outputs) -> np.ndarray:
    """Patch tokens, which are frequency-major behind two special ones, averaged over frequency."""
    rows = model.config.num_frequency_patches
    patches = outputs.last_hidden_state[0, 2:].numpy()
    return patches.reshape(rows, -1, patches.shape[-1]).mean(axis=0)


def begins_of(num_samples: int) -> list[int]:
    """Where windows begin: until one reaches the end."""
    begins = [0]
    while begins[-1] + LENGTH < num_samples:
        begins.append(begins[-1] + HOP)
    return begins


def samples(seconds: np.ndarray) -> np.ndarray:
    numbers = np.rint(seconds * RATE).astype(int)
    np.testing.assert_allclose(numbers / RATE, seconds, rtol=0, atol=1e-12)
    return numbers


def close(left: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_allclose(left, right, atol=1e-5, rtol=1e-5)


# What a row is


@pytest.mark.parametrize("level", ["clip", "window"])
def test_a_short_clip_is_embedded_as_the_model_hears_it(embedder, model, extractor, sound, level):
    clip = sound[:8000]
    result = embedder(clip, level=level)
    close(result.vectors, forward(model, extractor, clip).pooler_output)
    assert (result.vectors.dtype, result.vectors.shape) == (np.float32, (1, 32))
    assert (result.starts.tolist(), result.ends.tolist()) == ([0.0], [0.5])


def test_windows_are_what_the_model_says_of_each_stretch_alone(embedder, model, extractor, sound):
    result = embedder(sound, level="window", batch_size=3, **WINDOWS)
    begins = begins_of(len(sound))
    assert samples(result.starts).tolist() == begins
    assert samples(result.ends).tolist() == [min(begin + LENGTH, len(sound)) for begin in begins]
    assert len(sound) - begins[-1] < LENGTH  # the last one is partial, and heard at its own length
    for vector, start, end in zip(result.vectors, samples(result.starts), samples(result.ends)):
        close(vector[None], forward(model, extractor, sound[start:end], padding="longest").pooler_output)


def test_a_last_window_that_is_too_short_is_left_out(embedder, sound):
    result = embedder(sound[: 2 * HOP + PATCH], level="window", **WINDOWS)
    assert samples(result.starts).tolist() == [0, HOP, 2 * HOP]
    # 2500 samples reach beyond the second window's 2400, and are less than a patch.
    result = embedder(sound[: 2 * HOP + 2500], level="window", **WINDOWS)
    assert (samples(result.starts).tolist(), samples(result.ends).tolist()) == ([0, HOP], [LENGTH, HOP + LENGTH])


def test_a_clip_is_the_mean_of_its_windows_by_the_time_that_they_speak_for(embedder, sound):
    windows = embedder(sound, level="window", **WINDOWS).vectors
    takes_over = [0, *(begin + LEFT for begin in begins_of(len(sound))[1:]), len(sound)]
    weights = np.diff(takes_over) / len(sound)
    assert len(set(weights)) == 3  # first, middle and last ones
    clip = embedder(sound, **WINDOWS)
    close(clip.vectors, weights @ windows[None])
    assert (clip.starts.tolist(), clip.ends.tolist()) == ([0.0], [len(sound) / RATE])


@pytest.mark.parametrize("kwargs", [{}, {"padding": "longest"}])
@pytest.mark.parametrize("num_samples", [8000, 10480, 4401, 700])
def test_patches_of_a_short_clip_are_its_own_columns(embedder, model, extractor, sound, kwargs, num_samples):
    """And those of its padding, which the model hears by default, have no rows."""
    clip = sound[:num_samples]
    result = embedder(clip, level="patch", **kwargs)
    frames = (num_samples - 400) // 160 + 1
    count = max((frames - 16) // 10 + 1, 1)
    assert result.vectors.shape == (count, 32)
    close(result.vectors, columns_of(model, forward(model, extractor, clip, **kwargs))[:count])
    np.testing.assert_allclose(result.starts, np.arange(count) * 0.1, atol=1e-12)
    np.testing.assert_allclose(result.ends, np.minimum(result.starts + 0.175, num_samples / RATE), atol=1e-12)


def test_patches_of_a_long_recording_go_through_time_once(embedder, model, extractor, sound):
    result = embedder(sound, level="patch", batch_size=4, **WINDOWS)
    starts, ends = samples(result.starts), samples(result.ends)
    assert (ends - starts == PATCH).all() and (np.diff(starts) > 0).all()
    begins = begins_of(len(sound))
    expected = []
    for begin in begins:
        stretch = sound[begin : begin + LENGTH]
        columns = columns_of(model, forward(model, extractor, stretch, padding="longest"))
        is_first, is_last = begin == 0, begin == begins[-1]
        for number, vector in enumerate(columns):
            start = begin + 1600 * number
            centre = start + PATCH // 2
            if (is_first or centre >= begin + LEFT) and (is_last or centre < begin + HOP + LEFT):
                expected.append((start, vector))
    assert starts.tolist() == [start for start, _ in expected]
    close(result.vectors, np.array([vector for _, vector in expected]))
    # No stretch is left out: neighbouring patches overlap.
    assert (starts[1:] < ends[:-1]).all() and starts[0] == 0 and len(sound) - ends[-1] < 1600 + 160


@pytest.mark.parametrize("level", LEVELS)
def test_embeddings_do_not_depend_on_batches_workers_and_neighbours(embedder, sound, level):
    recordings = [sound, sound[4000:9000], sound[100:800], sound[::-1].copy()]
    alone = [embedder(recording, level=level, **WINDOWS) for recording in recordings]
    for kwargs in ({"batch_size": 1}, {"batch_size": 5}, {"batch_size": 64}, {"batch_size": 3, "num_workers": 2}):
        for result, expected in zip(embedder(recordings, level=level, **WINDOWS, **kwargs), alone, strict=True):
            close(result.vectors, expected.vectors)
            assert (result.starts.tolist(), result.ends.tolist()) == (expected.starts.tolist(), expected.ends.tolist())


def test_a_model_without_a_head_gives_the_same(embedder, model, extractor, folder, sound, tmp_path):
    model.base_model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    for path in (folder, tmp_path):
        loaded = audio_embedder(path, device="cpu", **WINDOWS)
        for level in LEVELS:
            close(loaded(sound, level=level).vectors, embedder(sound, level=level, **WINDOWS).vectors)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("top_k", 3), ("threshold", 0.5), ("aggregate", "max"), ("function_to_apply", "none"), ("return_timeline", True)],
)
def test_keywords_of_scores_are_refused(embedder, sound, keyword, value):
    with pytest.raises(TypeError, match=f"'{keyword}'.*embeddings have none"):
        embedder(sound, **{keyword: value})


def test_other_keywords_are_refused(embedder, sound):
    with pytest.raises(TypeError, match="no keyword 'layer'"):
        embedder(sound, layer=3)
    with pytest.raises(ValueError, match="level to be one of clip, window, patch, got 'token'"):
        embedder(sound, level="token")


def test_a_broken_recording_raises_or_is_returned_as_an_error(embedder, sound, sounds):
    with pytest.raises(AudioError, match="broken.wav: cannot be decoded"):
        embedder(str(sounds / "broken.wav"))
    first, second = embedder([str(sounds / "broken.wav"), sound], on_error="return")
    assert "broken.wav: cannot be decoded" in first["error"] and isinstance(second, Embeddings)


# Files


def run(*argv) -> int:
    return main([str(argument) for argument in argv])


@pytest.mark.parametrize(("layers", "expected"), [(None, (1, 2)), ([2], (2,)), ([0, 2, 1], (0, 2, 1))])
def test_rows_are_mean_and_deviation_of_each_row_of_patches(embedder, model, extractor, sound, layers, expected):
    window = sound[:LENGTH]
    (vector,) = embedder(window, readout="rows", layers=layers, padding="longest").vectors
    features = extractor(window, return_tensors="pt", padding="longest")
    with torch.no_grad():
        output = model.base_model(**features, output_hidden_states=True)
    rows = [row for layer in expected for row in model.fold_patches(output.hidden_states[layer])[0].numpy()]
    np.testing.assert_allclose(vector, np.concatenate([[r.mean(0), r.std(0)] for r in rows]).ravel(), atol=1e-5)
    assert len(vector) == embedder.vector_size(expected)


def test_rows_do_not_depend_on_padding_and_neighbours(embedder, sound):
    options = {"readout": "rows", "level": "window", **WINDOWS}
    clips = [sound[:length] for length in (9000, 4000, 7000)]
    together = embedder(clips, batch_size=8, **options)
    for clip, found in zip(clips, together):
        np.testing.assert_allclose(embedder(clip, batch_size=1, **options).vectors, found.vectors, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [1]}, "layers together with readout rows"),
        ({"readout": "rows", "layers": [3]}, r"layers of 0 to 2, got \[3\]"),
        ({"readout": "rows", "level": "patch"}, "level clip or window with readout rows"),
        ({"readout": "all"}, "readout to be one of pooled, rows, got 'all'"),
    ],
)
def test_a_readout_that_cannot_be_is_refused(embedder, sound, options, words):
    with pytest.raises(ValueError, match=words):
        embedder(sound[:LENGTH], **options)


def test_the_table_of_rows_is_as_wide_and_goes_on_with_the_same_readout_alone(folder, sounds, tmp_path):
    argv = [str(sounds), "--model", str(folder), "--output", str(tmp_path / "rows.parquet")]
    assert main([*argv, "--readout", "rows", "--layers", "2"]) == 1  # one is broken
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.schema.field("embedding").type.list_size == 2 * 2 * 32  # rows, mean and deviation, width
    with pytest.raises(DataError, match="layers"):
        main([*argv, "--readout", "rows", "--layers", "1"])
    with pytest.raises(CommandError, match=r"layers of 0 to 2, got \[9\]"):
        main([*argv, "--readout", "rows", "--layers", "9"])


@pytest.mark.parametrize("level", LEVELS)
def test_parquet_holds_every_row_with_its_path_and_times(embedder, folder, sounds, tmp_path, level, capsys):
    output = tmp_path / "emb.parquet"
    options = ["--model", folder, "--level", level, "--window", 0.4, "--hop", 0.25, "--batch_size", 3]
    assert run(sounds, "--output", output, *options) == 1
    table = pq.read_table(output)
    paths = [str(sounds / "b" / "short.FLAC"), str(sounds / "long.wav")]
    # The same windows and another overlap: 0.15 s, half on either side.
    keywords = {"chunk_length_s": 0.4, "stride_length_s": (0.075, 0.075)}
    expected = [embedder(path, level=level, **keywords) for path in paths]
    assert table["path"].to_pylist() == [path for path, part in zip(paths, expected) for _ in part.starts]
    close(np.array(table["embedding"].to_pylist()), np.concatenate([part.vectors for part in expected]))
    assert table["start"].to_pylist() == np.concatenate([part.starts for part in expected]).tolist()
    assert table["end"].to_pylist() == np.concatenate([part.ends for part in expected]).tolist()
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[32]"

    told = json.loads(table.schema.metadata[b"modeling_ast"])
    base = audio_embedder(folder, device="cpu")
    assert told == {
        "model": str(folder),
        "fingerprint": fingerprint_model(base.model, base.feature_extractor),
        "level": level,
        "chunk_length_s": 0.4,
        "stride_length_s": [0.075, 0.075],
        "version": __version__,
    }
    printed = capsys.readouterr()
    assert f"{sounds / 'broken.wav'}: cannot be decoded" in printed.err
    assert "3 recording(s), 3 of them now" in printed.out and f", {len(table)} row(s).\n" in printed.out
    assert f"1 cannot be used (--retry tries again), such as {sounds / 'broken.wav'}." in printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emb.journal", "emb.parquet", "sounds"]
    assert contents(tmp_path / "emb.journal") == ["results.jsonl", "settings.json"]


def test_parquet_is_read_by_datasets(folder, sounds, tmp_path):
    output = tmp_path / "emb.parquet"
    assert run(sounds / "long.wav", "--model", folder, "--output", output, "--level", "window") == 0
    rows = load_dataset("parquet", data_files=str(output), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows.column_names == ["path", "start", "end", "embedding"]
    assert rows.features["embedding"].length == 32
    vectors = rows.with_format("numpy")[:]["embedding"]
    np.testing.assert_array_equal(vectors, np.array(pq.read_table(output)["embedding"].to_pylist()))


def test_rows_are_written_while_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_tables, "ROWS_A_GROUP", 4)
    sizes = []

    def rows():
        for number in range(2000):
            sizes.append(sum(path.stat().st_size for path in tmp_path.glob(".*.unfinished*")))
            yield {"vector": np.full(32, number, dtype=np.float32)}

    fields = {"vector": pa.list_(pa.float32(), 32)}
    parquet_tables.write_rows(tmp_path / "emb.parquet", rows(), fields, {})
    file = pq.ParquetFile(tmp_path / "emb.parquet")
    assert file.metadata.num_rows == 2000 and file.metadata.num_row_groups == 500
    assert file.read()["vector"].to_pylist()[-1] == [1999.0] * 32
    assert sizes[1000] > 20_000


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Stopping, going on, and parts


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """Names of the recordings that are embedded."""
    names, add = [], EmbeddingsFolder.add

    def add_and_tell(self, file, embeddings):
        add(self, file, embeddings)
        names.append(Path(file.path).name)

    monkeypatch.setattr(EmbeddingsFolder, "add", add_and_tell)
    return names


@pytest.fixture
def many(tmp_path, monkeypatch) -> str:
    """A folder of twelve short recordings; the parts are those of their paths from here."""
    generator = torch.Generator().manual_seed(7)
    (tmp_path / "many").mkdir()
    for number in range(12):
        clip = generate_clip("siren", generator)[: 4000 + 500 * number]
        soundfile.write(tmp_path / "many" / f"{number:02}.wav", clip.numpy(), RATE)
    monkeypatch.chdir(tmp_path)
    return "many"


def rows_of(table: Path) -> tuple[list, np.ndarray]:
    rows = pq.read_table(table)
    return rows.drop_columns("embedding").to_pylist(), np.array(rows["embedding"].to_pylist())


def same_rows(table: Path, other: Path) -> None:
    (known, vectors), (expected, expected_vectors) = rows_of(table), rows_of(other)
    assert known == expected
    close(vectors, expected_vectors)


def test_what_was_stopped_goes_on_and_leaves_the_older_table_till_then(folder, many, tmp_path, embedded, monkeypatch):
    options = ["--model", folder, "--level", "window", "--batch_size", 1, "--output"]
    run(many, *options, tmp_path / "whole.parquet")
    run(f"{many}/03.wav", *options, tmp_path / "emb.parquet")
    before = (tmp_path / "emb.parquet").read_bytes()
    embedded.clear()
    append = Journal.append

    def stop(self, entry):
        if len(self.entries) == 5:
            raise KeyboardInterrupt
        append(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            run(many, *options, tmp_path / "emb.parquet")
    assert (tmp_path / "emb.parquet").read_bytes() == before and len(embedded) == 4
    with open(tmp_path / "emb.journal" / "results.jsonl", "a") as file:
        file.write('{"path": "many/07.wav", "vect')  # cut off
    assert run(many, *options, tmp_path / "emb.parquet") == 0
    assert sorted(embedded) == [f"{number:02}.wav" for number in range(12) if number != 3]
    same_rows(tmp_path / "emb.parquet", tmp_path / "whole.parquet")
    # And nothing is done twice, but for what has changed.
    embedded.clear()
    assert run(many, *options, tmp_path / "emb.parquet") == 0 and not embedded
    soundfile.write(tmp_path / "many" / "04.wav", np.zeros(5000), RATE)
    assert run(f"{many}/04.wav", f"{many}/02.wav", *options, tmp_path / "emb.parquet") == 0
    assert embedded == ["04.wav"]
    assert pq.read_table(tmp_path / "emb.parquet")["path"].to_pylist() == [f"{many}/04.wav", f"{many}/02.wav"]


def test_parts_and_then_others_give_what_one_run_gives(folder, many, tmp_path, embedded, monkeypatch, capsys):
    options = ["--model", folder, "--batch_size", 1, "--output"]
    run(many, *options, tmp_path / "whole.parquet")
    embedded.clear()
    append = Journal.append

    def stop(self, entry):
        if len(self.entries) == {1: 2, 2: 5, 3: 8}[self.part.number]:
            raise KeyboardInterrupt
        append(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        for number in (1, 2, 3):
            with suppress(KeyboardInterrupt):
                run(many, *options, tmp_path / "emb.parquet", "--part", f"{number}/3")
    num_done = len(embedded)
    assert 0 < num_done < 12 and not (tmp_path / "emb.parquet").exists()
    capsys.readouterr()
    assert run(many, *options, tmp_path / "emb.parquet", "--part", "2/2") == 0
    said = capsys.readouterr().out
    assert "Part 2/2 is done; the last one writes the tables." in said and "no results yet: " in said
    assert not (tmp_path / "emb.parquet").exists()
    assert run(many, *options, tmp_path / "emb.parquet", "--part", "1/2") == 0
    assert sorted(embedded) == sorted(set(embedded)) and len(embedded) == 12
    same_rows(tmp_path / "emb.parquet", tmp_path / "whole.parquet")


@pytest.mark.slow
def test_processes_of_a_launcher_embed_each_recording_once(folder, many, tmp_path):
    options = ["--model", str(folder), "--batch_size", "1", "--output"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "modeling_ast.commands.embed", many, *options, str(tmp_path / "emb.parquet")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    now = [int(number) for number in re.findall(r"recording\(s\), (\d+) of them now", ended.stdout)]
    assert len(now) == 2 and sum(now) == 12 and min(now) > 0, ended.stdout
    assert run(many, *options, tmp_path / "whole.parquet") == 0
    same_rows(tmp_path / "emb.parquet", tmp_path / "whole.parquet")


def test_embeddings_of_other_settings_are_not_mixed(folder, many, tmp_path, embedded):
    options = [many, "--model", folder, "--output", tmp_path / "emb.parquet"]
    run(*options)
    with pytest.raises(DataError) as error:
        run(*options, "--level", "window")
    assert str(error.value) == (
        f"{tmp_path / 'emb.journal'} holds results of other settings: level was clip, is window. Give another "
        "--output, or --overwrite to delete them and begin anew."
    )
    with pytest.raises(CommandError, match="Expected no --overwrite of part 1/2, which would delete"):
        run(*options, "--level", "window", "--part", "1/2", "--overwrite")
    assert run(*options, "--level", "window", "--overwrite") == 0 and len(embedded) == 24
    journal = tmp_path / "emb.journal" / "results.jsonl"
    lines = journal.read_text().splitlines()
    for changes in ({"vectors": "AAAA"}, {"starts": []}, {"ends": None}, {"seconds": "long"}):
        journal.write_text(json.dumps({**json.loads(lines[0]), **changes}) + "\n")
        with pytest.raises(DataError, match="results.jsonl, line 1: not a line of results. Give another --output, "):
            run(*options, "--level", "window")


def test_a_second_start_for_the_same_table_is_one_sentence(folder, sounds, tmp_path):
    table = tmp_path / "table.parquet"
    arguments = [sounds / "long.wav", "--model", folder, "--output"]
    with another_process(claimed, tmp_path / "table.journal", None):
        with pytest.raises(DataError, match=f"Another run is writing to {table} .*or choose another --output[.]"):
            run(*arguments, table)
        run(*arguments, tmp_path / "other.parquet")
    run(*arguments, table)
    assert contents(tmp_path) == ["other.journal", "other.parquet", "sounds", "table.journal", "table.parquet"]


def test_no_table_is_written_where_no_recording_can_be_used(folder, sounds, tmp_path, capsys):
    options = ["--model", folder, "--output", tmp_path / "emb.parquet"]
    with pytest.raises(AudioError, match="got none: no table is written"):
        run(sounds / "broken.wav", *options)
    assert not (tmp_path / "emb.parquet").exists() and "broken.wav: " in capsys.readouterr().err
    # A recording that was broken is tried again when asked to.
    assert run(sounds, *options) == 1 and "broken.wav: cannot" not in capsys.readouterr().err
    assert run(sounds, *options, "--retry") == 1 and "broken.wav: cannot" in capsys.readouterr().err


def test_names_that_are_no_utf_8_are_shown_in_the_table(folder, tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    soundfile.write(tmp_path / "a.wav", np.zeros(5000), RATE)
    try:
        (tmp_path / "a.wav").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert run(tmp_path / name, "--model", folder, "--output", tmp_path / "emb.parquet") == 0
    assert pq.read_table(tmp_path / "emb.parquet")["path"].to_pylist() == [f"{tmp_path}/caf\\udce9.wav"]


# Data sets


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: synthetic\n")
    return path


def test_clips_of_a_recipe_come_with_split_and_label(embedder, folder, recipe, tmp_path):
    output = tmp_path / "emb.parquet"
    assert run("--recipe", recipe, "--model", folder, "--output", output, "--num_workers", 2) == 0
    table = pq.read_table(output)
    assert table.column_names == ["path", "split", "label", "start", "end", "embedding"]
    assert len(table) == 4 * len(CLASSES)
    for row in table.slice(
        0,
        40,
    ).to_pylist()[::7]:
        path = Path(row["path"])
        assert path.parent.name == row["label"] and path.name.startswith(row["split"])
        close(np.array(row["embedding"])[None], embedder(load_waveform(path)).vectors)


def test_splits_and_rows_can_be_chosen(folder, recipe, tmp_path, capsys):
    options = ["--model", folder, "--output", tmp_path / "emb.parquet", "--split", "validation", "test"]
    assert run("--max_eval_samples", 3, *options, "--recipe", recipe) == 0
    table = pq.read_table(tmp_path / "emb.parquet")
    assert table["split"].to_pylist() == ["validation"] * 3 + ["test"] * 3
    # Clips are known again, and those of another split beside them are new.
    capsys.readouterr()
    assert run("--max_eval_samples", 3, *options, "train", "--max_train_samples", 2, "--recipe", recipe) == 0
    assert "8 recording(s), 2 of them now" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "emb.parquet")["split"].to_pylist()[2:] == table["split"].to_pylist()


def test_clips_may_have_several_labels_and_no_name(folder, tmp_path):
    """Sounds that lie in a table, as Parquet of the Hub has them."""
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", generate_clip("bell", torch.Generator()).numpy(), RATE)
    sounds = [{"bytes": (tmp_path / f"{name}.wav").read_bytes(), "path": None} for name in ("a", "b")]
    labels = [["siren", "bell, struck"], ["bell, struck"]]
    rows = Dataset.from_dict({"audio": sounds * 5, "label": labels * 5})
    rows.to_parquet(str(tmp_path / "clips.parquet"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {tmp_path / 'clips.parquet'}\nproblem_type: multi_label_classification\n")
    options = ["--recipe", recipe, "--model", folder, "--split", "train"]
    assert run(*options, "--output", tmp_path / "emb.parquet") == 0
    rows = pq.read_table(tmp_path / "emb.parquet").to_pylist()
    assert [row["path"] for row in rows] == [f"row {number}" for number in range(9)]
    assert {tuple(row["labels"]) for row in rows} == {("siren", "bell, struck"), ("bell, struck",)}


def test_sounds_in_a_table_are_known_by_what_they_are(embedder, folder, tmp_path, capsys):
    """Another table in the place of the first one, with other sounds under the same names."""
    (tmp_path / "recipe.yaml").write_text(f"dataset_name: {tmp_path / 'clips.parquet'}\n")
    options = ["--recipe", tmp_path / "recipe.yaml", "--model", folder, "--split", "train"]
    for number in range(2):
        clips = [generate_clip("bell", torch.Generator().manual_seed(seed)).numpy() for seed in (0, 1 + number)]
        contents = []
        for clip in clips:
            soundfile.write(tmp_path / "clip.wav", clip, RATE)
            contents.append({"bytes": (tmp_path / "clip.wav").read_bytes(), "path": f"{len(contents)}.wav"})
        rows = Dataset.from_dict({"audio": contents + 2 * contents[:1], "label": ["a", "b", "a", "a"]})
        rows.to_parquet(str(tmp_path / "clips.parquet"))
        capsys.readouterr()
        assert run(*options, "--output", tmp_path / "emb.parquet", "--validation_fraction", 0.25) == 0
        table = pq.read_table(tmp_path / "emb.parquet")
        paths, vectors = table["path"].to_pylist(), np.array(table["embedding"].to_pylist())
        assert "1.wav" in paths
        close(vectors[paths.index("1.wav")][None], embedder(tmp_path / "clip.wav").vectors)
    assert "3 recording(s), 1 of them now" in capsys.readouterr().out


def test_recordings_that_are_not_named_now_are_told_to_be_left_out(folder, many, caplog):
    options = ["--model", folder, "--output", "emb.parquet"]
    run(many, *options)
    assert "not named now" not in caplog.text
    run(f"{many}/03.wav", *options)
    assert "11 recording(s) that were embedded before are not named now, and not in the table." in caplog.text
    assert len(pq.read_table("emb.parquet")) == 1


def test_a_linear_model_on_the_embeddings_tells_two_sounds_apart(embedder):
    """Even on those of a random network: they hold what was heard."""
    generator = torch.Generator().manual_seed(0)
    kinds = ["whistle", "drone"] * 30
    vectors = np.concatenate([embedder(generate_clip(kind, generator)).vectors for kind in kinds])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(vectors[:30], kinds[:30])
    assert probe.score(vectors[30:], kinds[30:]) >= 0.9


# Errors


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "Expected files or folders, or --recipe"),
        (["a.wav", "--fold", "1"], "Unknown: --fold. Keys of a recipe need --recipe"),
        (["a.wav", "--split", "test"], "--split together with --recipe"),
        (["a.wav", "--output", "emb.csv"], "output to end in .parquet, in a folder that exists, got emb.csv"),
        (["a.wav", "--output", "missing/emb.parquet"], "in a folder that exists, got missing/emb.parquet"),
        (["a.wav", "--batch_size", "0"], "batch_size of at least 1"),
        (["a.wav", "--hop", "2"], "at most the window, 0.6649"),
        (["a.wav", "--window", "0.1"], "Expected a window of at least 0.175 s, which is one patch, got 0.1 s"),
        (["a.wav", "--model", "./missing"], "./missing cannot be used: "),
        (["--recipe", "RECIPE", "--learning_rate", "1"], "No effect on embeddings: learning_rate"),
        (["--recipe", "RECIPE", "a.wav"], "Unknown: a.wav"),
        (["--recipe", "RECIPE", "--streaming", "true"], "Expected streaming: false"),
    ],
)
def test_arguments_that_cannot_work_are_refused(folder, recipe, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(5000), RATE)
    argv = [str(recipe) if word == "RECIPE" else word for word in argv]
    defaults = {"--model": folder, "--output": tmp_path / "emb.parquet"}
    given = [word for option, value in defaults.items() if option not in argv for word in (option, value)]
    with pytest.raises((CommandError, RecipeError, ModelError)) as caught:
        run(*argv, *given)
    assert words in str(caught.value)
    assert not list(tmp_path.glob("emb*"))


def test_a_split_a_file_or_a_sound_that_there_is_not_is_refused(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    sounds = tmp_path / "data"
    for kind in ("bell", "siren"):
        (sounds / kind).mkdir(parents=True)
        for number in range(2):
            clip = generate_clip(kind, torch.Generator().manual_seed(number))
            soundfile.write(sounds / kind / f"{number}.wav", clip.numpy(), RATE)
    recipe.write_text(f"dataset_name: {sounds}\n")
    options = ["--model", folder, "--output", tmp_path / "emb.parquet"]
    with pytest.raises(CommandError, match="data with a split test, got train, validation"):
        run("--recipe", recipe, "--split", "test", *options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No sound files"):
        run(tmp_path / "empty", *options)
    with pytest.raises(DataError, match="missing.wav: no such file"):
        run(sounds, tmp_path / "missing.wav", *options)
    with pytest.raises(CommandError, match="Expected a window of at least 0.175 s"):
        run(sounds, "--window", "-1", *options)
