"""Sound files of every format come out as mono float32 at one rate, and broken ones as one kind of error."""

import io
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model

from modeling_ast import ASTFeatureExtractor, AudioError, load_waveform
from modeling_ast.audio import load_part, read_blocks, read_samples, read_seconds, to_waveform
from modeling_ast.data.decoding import decode
from modeling_ast.data.examination import Examination
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.splits import read_splits
from modeling_ast.data.statistics import pooled_statistics
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline
from modeling_ast.opening import opened
from modeling_ast.resampling import StreamResampler
from modeling_ast.training.sampling import read_clip_seconds, sort_by_length

pytestmark = pytest.mark.usefixtures("one_thread")

# Name of the file, subtype (None: the format's own) and the largest error that its coding may cost.
FORMATS = [
    ("tone.wav", "PCM_16", 1e-4),
    ("tone.wav", "PCM_24", 1e-6),
    ("tone.wav", "FLOAT", 1e-6),
    ("tone.wav", "PCM_U8", 0.02),
    ("tone.flac", None, 1e-4),
    ("tone.ogg", None, 0.05),
    ("tone.mp3", None, 0.05),
]


def tone(seconds: float = 1.0, sampling_rate: int = 16000, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * sampling_rate)) / sampling_rate)


def noise(num_samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(num_samples)


def sources(path: Path) -> list[Path | str | bytes]:
    return [path, str(path), path.read_bytes()]


@pytest.mark.parametrize("name, subtype, tolerance", FORMATS)
def test_every_format_is_decoded_from_path_and_bytes(tmp_path, name, subtype, tolerance):
    soundfile.write(tmp_path / name, tone(), 16000, subtype=subtype)
    for source in sources(tmp_path / name):
        waveform = load_waveform(source)
        assert waveform.dtype == torch.float32 and waveform.shape == (16000,)
        inner = slice(1000, -1000)  # lossy coders ring at the ends
        np.testing.assert_allclose(waveform[inner], tone()[inner], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["stereo.wav", "stereo.flac"])
def test_channels_are_averaged(tmp_path, name):
    left, right = tone(frequency=440), tone(frequency=660)
    soundfile.write(tmp_path / name, np.stack((left, right), axis=1), 16000)
    np.testing.assert_allclose(load_waveform(tmp_path / name), (left + right) / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("file_rate, sampling_rate", [(44100, 16000), (8000, 16000), (16000, 22050), (96001, 16000)])
def test_resampling_keeps_frequency_and_duration(tmp_path, file_rate, sampling_rate):
    soundfile.write(tmp_path / "tone.wav", tone(2.0, file_rate, frequency=1000.0), file_rate)
    waveform = load_waveform(tmp_path / "tone.wav", sampling_rate=sampling_rate)
    assert waveform.dtype == torch.float32 and waveform.shape == (2 * sampling_rate,)
    spectrum = torch.fft.rfft(waveform).abs()  # lines 0.5 Hz apart
    assert spectrum.argmax() == 2000
    inner = slice(sampling_rate // 4, -sampling_rate // 4)
    np.testing.assert_allclose(waveform[inner], tone(2.0, sampling_rate, 1000.0)[inner], atol=5e-3, rtol=0)


# Lengths that headers announce, and those that are there

TWO_SECONDS = (32767 * tone(2.0)).astype("<i2").tobytes()


def wav(size: int | None = None, riff: int | None = None, before: bytes = b"", behind: bytes = b"") -> bytes:
    """Two seconds of sound, with what the header says of sizes, and with other chunks before and behind."""
    form = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
    body = chunk(b"fmt ", form) + before + chunk(b"data", TWO_SECONDS, size) + behind
    return b"RIFF" + struct.pack("<I", len(body) + 4 if riff is None else riff) + b"WAVE" + body


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if size is None else size) + content


def lengths(path: Path, **options) -> set[int]:
    """Of the file in samples, by each way to it: one number, if they agree."""
    found = {round(16000 * read_seconds(source, **options)) for source in (path, path.read_bytes())}
    for open_ in (lambda: path, path.read_bytes, lambda: io.BytesIO(path.read_bytes())):
        whole = load_waveform(open_(), **options)
        blocks = torch.cat(list(read_blocks(open_(), block_seconds=0.3, **options)))
        torch.testing.assert_close(blocks, whole, atol=1e-6, rtol=0)
        found |= {len(whole), len(read_samples(open_(), **options)[0])}
    return found


def refusals(path: Path) -> set[str]:
    """What is said of the file, by each way to it, before any of it is given."""
    found = set()
    for read in (load_waveform, read_samples, read_seconds, lambda source: next(read_blocks(source))):
        with pytest.raises(AudioError) as error:
            read(path)
        found.add(str(error.value))
    return found


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(wav(size=0, riff=36), id="lost power"),
        pytest.param(wav(size=0, riff=4088, before=chunk(b"JUNK", bytes(28))), id="lost power, padded"),
        pytest.param(wav(size=0, riff=0), id="lost power, nothing written"),
        pytest.param(wav(size=0xFFFFFFFF, riff=0xFFFFFFFF), id="ffmpeg into a pipe"),
        pytest.param(wav(size=0x7FFFF000, riff=0x7FFFF024), id="SoX into a pipe"),
        pytest.param(wav(size=0x7FFFFFFF), id="largest signed number"),
    ],
)
def test_a_header_that_was_never_finished_means_all_that_is_there(tmp_path, content):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    assert lengths(path) == {32000}
    np.testing.assert_allclose(load_waveform(path), tone(2.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "content, words",
    [
        (wav(size=32000 * 3600), "truncated, its header announces 3600.00 s of sound, and 2.00 s are there"),
        (wav(size=len(TWO_SECONDS) + 400), "truncated, its header announces 2.01 s of sound, and 2.00 s are there"),
        (wav(size=len(TWO_SECONDS) // 2), "its header announces 1.00 s of sound, and 2.00 s are there"),
        (wav(behind=TWO_SECONDS[:8000]), "its header announces 2.00 s of sound, and 2.25 s are there"),
    ],
)
def test_a_header_that_announces_another_length_is_refused_unless_it_is_to_be_ignored(tmp_path, content, words):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    assert refusals(path) == {f"{path}: {words}. To take what is there, set ignore_length."}
    there = 36000 if "2.25" in words else 32000
    assert lengths(path, ignore_length=True) == {there}
    np.testing.assert_allclose(load_waveform(path, ignore_length=True)[:32000], tone(2.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(wav(behind=chunk(b"LIST", b"INFOICMT" + 100 * b"words ")), id="LIST"),
        pytest.param(wav(behind=chunk(b"id3 ", bytes(99)) + chunk(b"cue ", bytes(28))), id="odd and not padded"),
        pytest.param(wav(behind=chunk(b"id3 ", bytes(99)) + b"\0" + chunk(b"cue ", bytes(28))), id="odd and padded"),
        pytest.param(wav(behind=chunk(b"LIST", bytes(40)) + bytes(5000)), id="a chunk and zeros"),
        pytest.param(wav(behind=bytes(32768)), id="a cluster of the disk"),
        pytest.param(wav(behind=b"TAG" + 125 * b"x"), id="ID3v1"),
        pytest.param(wav(behind=b"ID3\x04" + 300 * b"x"), id="ID3v2"),
        pytest.param(wav(behind=b"\n"), id="a line end"),
        pytest.param(wav(size=len(TWO_SECONDS) + 44), id="the header counted too"),
    ],
)
def test_what_lies_behind_the_sound_is_neither_heard_nor_refused(tmp_path, content):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    assert lengths(path) == lengths(path, ignore_length=True) == {32000}
    np.testing.assert_allclose(load_waveform(path), tone(2.0), atol=1e-4, rtol=0)


def test_an_empty_file_with_chunks_behind_its_sound_stays_empty(tmp_path):
    path = tmp_path / "none.wav"
    soundfile.write(path, np.zeros(0), 16000)
    path.write_bytes(path.read_bytes() + chunk(b"LIST", b"INFO" + 100 * b"some"))
    assert refusals(path) == {f"{path}: holds no samples."}


def test_one_key_takes_what_is_there_wherever_clips_are_read(tmp_path):
    """In training, evaluation, statistics, lengths, checks and the pipeline."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.wav").write_bytes(wav(size=32000 * 3600))
    extractor = ASTFeatureExtractor(num_mel_bins=32)
    model = random_model(make_tiny_config())
    classifier = ASTAudioClassificationPipeline(model=model, feature_extractor=extractor)

    def read(ignore_length: bool) -> list:
        """The length of a clip in samples, in all ways there are."""
        splits = read_splits(DataArguments(dataset_name=str(tmp_path), ignore_length=ignore_length), multi_label=False)
        rows, ignore_length = splits.train, splits.ignore_length
        path = rows[0]["audio"]["path"]
        ways = {
            "decode": lambda: len(decode(rows, 16000, ignore_length=ignore_length)[0]["waveform"]),
            "seconds": lambda: read_clip_seconds(rows, ignore_length=ignore_length)[0] * 16000,
            "order": lambda: read_clip_seconds(sort_by_length(rows, ignore_length), ignore_length=True)[0] * 16000,
            "statistics": lambda: pooled_statistics(rows, extractor, 0, ignore_length).frames // len(rows),
            "pipeline": lambda: classifier(path, return_timeline=True, ignore_length=ignore_length)[
                "timeline"
            ].boundaries[-1],
        }
        found = {}
        for name, way in ways.items():
            try:
                found[name] = int(way())
            except AudioError as error:
                found[name] = "truncated" in str(error)
        (summary, *_) = Examination(dict(splits), extractor, {}, ignore_length=ignore_length)
        return [*found.values(), summary.fault is None]

    assert read(True) == [32000, 32000, 32000, 198, 32000, True]
    assert read(False) == [True, True, True, True, True, False]


@pytest.mark.parametrize("format", ["RF64", "W64", "AIFF", "AU", "CAF", "NIST"])
def test_other_containers_are_held_to_their_headers_too(tmp_path, format):
    path = tmp_path / "clip"
    soundfile.write(path, noise(32000), 16000, format=format)
    content, expected = path.read_bytes(), load_waveform(path)
    path.write_bytes(content[:-16000])
    (words,) = refusals(path)
    assert re.search(r"truncated, its header announces 2\.00 s of sound, and 1\.5\d? s are there", words)
    whole = load_waveform(path, ignore_length=True)
    assert lengths(path, ignore_length=True) == {len(whole)} and torch.equal(whole, expected[: len(whole)])
    path.write_bytes(content + content[-16000:])
    (words,) = refusals(path)
    assert re.search(r"clip: its header announces 2\.00 s of sound, and 2\.5\d? s are there", words)
    whole = load_waveform(path, ignore_length=True)
    assert lengths(path, ignore_length=True) == {len(whole)} and torch.equal(whole[:32000], expected)


@pytest.mark.parametrize(
    "format, name, lead, size",
    [("AIFF", b"SSND", 0, bytes(4)), ("CAF", b"data", 0, 8 * b"\xff"), ("W64", b"data", 12, bytes(8))],
)
def test_other_containers_that_were_never_finished_are_read_whole(tmp_path, format, name, lead, size):
    path = tmp_path / "clip"
    soundfile.write(path, noise(32000), 16000, format=format)
    content, expected = path.read_bytes(), load_waveform(path)
    place = content.index(name) + len(name) + lead
    path.write_bytes(content[:place] + size + content[place + len(size) :])
    assert lengths(path) == {32000} and torch.equal(load_waveform(path), expected)


@pytest.mark.parametrize("name, share", [("clip.flac", 0.5), ("clip.ogg", 0.5), ("clip.mp3", 0.5)])
def test_of_what_is_compressed_and_cut_off_there_is_what_can_be_decoded(tmp_path, name, share):
    path = tmp_path / name
    soundfile.write(path, noise(64000), 16000)
    expected = load_waveform(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(AudioError, match="set ignore_length"):
        load_waveform(path)
    found = load_waveform(path, ignore_length=True)
    assert 10000 < len(found) < 40000 and lengths(path, ignore_length=True) == {len(found)}
    torch.testing.assert_close(found[:10000], expected[:10000], atol=1e-6, rtol=0)


GIBIBYTES = 5 * 2**30  # of sound, a hole in the file


@pytest.mark.parametrize(
    "size", [GIBIBYTES % 2**32, 0, 0xFFFFFFFF], ids=["higher bits left off", "never finished", "not known in advance"]
)
def test_recordings_beyond_4_gib_have_all_their_length(tmp_path, size):
    path, word = tmp_path / "week.wav", TWO_SECONDS
    path.write_bytes(wav(size=size).removesuffix(word))
    start = path.stat().st_size
    os.truncate(path, start + GIBIBYTES)
    with path.open("r+b") as file:
        file.seek(start + GIBIBYTES - len(word))
        file.write(word + (chunk(b"LIST", bytes(100)) if size == GIBIBYTES % 2**32 else b""))
    assert read_seconds(path) == GIBIBYTES / 32000
    with opened(path, None, False) as (file, _, _):
        file.seek(GIBIBYTES // 2 - 32000)
        np.testing.assert_allclose(file.read(), tone(2.0), atol=1e-4, rtol=0)


def test_rf64_beyond_4_gib_has_all_its_length(tmp_path):
    path = tmp_path / "week.wav"
    soundfile.write(path, tone(0.1), 16000, format="RF64", subtype="PCM_16")
    content = path.read_bytes()
    sizes, start = content.index(b"ds64") + 16, content.index(b"data") + 8
    for size in (GIBIBYTES, 0):  # finished or not
        path.write_bytes(content[:sizes] + struct.pack("<QQ", size, size // 2) + content[sizes + 16 : start])
        os.truncate(path, start + GIBIBYTES)
        assert read_seconds(path) == GIBIBYTES / 32000


@pytest.mark.parametrize(
    "content, words",
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"a" + b"\nsize 32044\n",
            "a pointer file of git-lfs, not the sound). Fetch the sounds: git lfs pull.",
        ),
        (b"\0\0\0\x20ftypM4A " + bytes(500), "MP4, M4A or MOV). Convert it: ffmpeg -i clip.m4a clip.wav"),
        (b"\x1aE\xdf\xa3" + bytes(500), "WebM or Matroska). Convert it: ffmpeg -i clip.webm clip.wav"),
        (b"0&\xb2u\x8ef\xcf\x11" + bytes(500), "WMA). Convert it: ffmpeg -i clip.wma clip.wav"),
        (b"\xff\xf1\x50\x80" + bytes(500), "AAC). Convert it: ffmpeg -i clip.aac clip.wav"),
        (b"#!AMR\n" + bytes(500), "AMR). Convert it: ffmpeg -i clip.amr clip.wav"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page in place of the sound). Fetch the file again."),
        (b"PK\x03\x04" + bytes(500), "an archive). Unpack it."),
    ],
    ids=["git-lfs", "m4a", "webm", "wma", "aac", "amr", "html", "zip"],
)
def test_what_is_taken_for_a_sound_file_is_called_what_it_is(tmp_path, content, words):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    assert refusals(path) == {f"{path}: cannot be decoded ({words}"}


# In blocks


def assert_blocks_equal_the_whole(source, block_seconds: float, **options) -> None:
    whole = load_waveform(source, **options)
    blocks = list(read_blocks(source, block_seconds=block_seconds, **options))
    assert all(block.dtype == torch.float32 and block.ndim == 1 for block in blocks)
    torch.testing.assert_close(torch.cat(blocks), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name, subtype, file_rate",
    [(name, subtype, 16000) for name, subtype, _ in FORMATS]
    + [("tone.ogg", "OPUS", 48000), ("tone.ogg", None, 44100), ("tone.mp3", None, 44100), ("tone.mp3", None, 22050)]
    + [("tone.flac", None, rate) for rate in (8000, 11025, 44100, 48000)],
)
def test_blocks_equal_the_whole_file(tmp_path, name, subtype, file_rate):
    """0.617 s in blocks that divide it and in blocks that do not, mono and stereo."""
    for num_channels in (1, 2):
        samples = noise(num_channels * int(0.617 * file_rate)).reshape(-1, num_channels)
        soundfile.write(tmp_path / name, samples, file_rate, subtype=subtype)
        for block_seconds in (0.0377, 0.617, 10.0):
            assert_blocks_equal_the_whole(tmp_path / name, block_seconds)


@pytest.mark.parametrize("bitrate_mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("compression_level", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("file_rate", [16000, 44100])
def test_blocks_of_mp3_equal_the_whole_file_at_every_bit_rate(tmp_path, file_rate, compression_level, bitrate_mode):
    """An MP3 frame may hold bits of the ones behind it; a decoder that is told to seek forgets those that it has."""
    samples = 0.5 * tone(2.0, file_rate) * (np.arange(2 * file_rate) > file_rate // 2) + noise(2 * file_rate)
    path = tmp_path / "clip.mp3"
    soundfile.write(path, samples, file_rate, compression_level=compression_level, bitrate_mode=bitrate_mode)
    for block_seconds in (0.1, 0.77):
        assert_blocks_equal_the_whole(path, block_seconds)


PARTS = [
    *(("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW", "MS_ADPCM")),
    *((format, "PCM_16") for format in ("FLAC", "AIFF", "AU", "CAF", "W64", "RF64", "NIST")),
    *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)),
]


@pytest.mark.parametrize("file_rate", [16000, 48000])
@pytest.mark.parametrize("format, subtype", PARTS)
def test_a_part_is_that_of_the_whole(tmp_path, format, subtype, file_rate):
    path, stereo = tmp_path / "clip", np.stack([noise(4 * file_rate), tone(4.0, file_rate)], axis=1)
    soundfile.write(path, stereo, file_rate, format=format, subtype=subtype)
    draws = random.Random(0)
    for sampling_rate in (16000, 22050):
        whole = load_waveform(path, sampling_rate)
        for source in (path, path.read_bytes()):
            places = [0, len(whole) - 5000, *(draws.randrange(len(whole) - 5000) for _ in range(4))]
            for part in (*(slice(place, place + 5000) for place in places), slice(0, len(whole))):
                lengths = []
                found = load_part(source, lambda length: (lengths.append(length), part)[1], sampling_rate)  # noqa: B023
                assert set(lengths) == {len(whole)}
                torch.testing.assert_close(found, whole[part], atol=1e-7, rtol=0)
                assert sampling_rate != file_rate or torch.equal(found, whole[part])


@pytest.mark.parametrize("format, most", [("WAV", 0.2), ("FLAC", 0.2), ("OGG", 4.2), ("MP3", 4.2)])
def test_no_more_is_decoded_than_a_part_takes(tmp_path, format, most, monkeypatch):
    path, read, decoded = tmp_path / "clip", soundfile.SoundFile.read, []
    soundfile.write(path, noise(441000), 44100, format=format)

    def count(*args, **options):
        decoded.append(read(*args, **options))
        return decoded[-1]

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    assert len(load_part(path, lambda length: slice(64000, 64000 + 1600))) == 1600  # a tenth of a second, after 4 s
    assert 0.1 * 44100 < sum(map(len, decoded)) < most * 44100


def test_parts_of_a_rate_without_a_common_divisor_are_those_of_the_whole(tmp_path):
    soundfile.write(tmp_path / "clip.wav", noise(60000), 22051)
    whole = load_waveform(tmp_path / "clip.wav")
    for start in (0, 17000, len(whole) - 4000):
        part = load_part(tmp_path / "clip.wav", lambda length: slice(start, start + 4000))  # noqa: B023
        torch.testing.assert_close(part, whole[start : start + 4000], atol=1e-7, rtol=0)


def test_blocks_are_as_long_as_they_are_asked_to_be(tmp_path):
    soundfile.write(tmp_path / "tone.wav", tone(1.0), 16000)
    lengths = [len(block) for block in read_blocks(tmp_path / "tone.wav", block_seconds=0.3)]
    assert [length for length in lengths if length] == [4800, 4800, 4800, 1600]
    resampled = [len(block) for block in read_blocks(tmp_path / "tone.wav", 8000, block_seconds=0.3)]
    assert sum(resampled) == 8000 and max(resampled) <= 2400 + 20


@pytest.mark.parametrize("declared_hours, num_blocks", [(278, 0), (0, 4)])  # 0 is what a pipe declares
def test_a_file_that_is_too_long_is_refused_as_soon_as_that_is_known(tmp_path, declared_hours, num_blocks):
    soundfile.write(tmp_path / "long.flac", np.zeros(5 * 16000, np.int16), 16000)
    with open(tmp_path / "long.flac", "r+b") as file:  # the number of samples is the last 36 bits of 26 bytes
        start, fields = file.read(18), int.from_bytes(file.read(8), "big")
        fields = fields >> 36 << 36 | declared_hours * 3600 * 16000
        file.seek(len(start))
        file.write(fields.to_bytes(8, "big"))
    blocks = read_blocks(tmp_path / "long.flac", block_seconds=1, max_seconds=3)
    assert [len(next(blocks)) for _ in range(num_blocks)] == num_blocks * [16000]
    with pytest.raises(AudioError, match="long.flac: longer than the 0.05 minutes that are taken.$"):
        next(blocks)
    whole = read_blocks(tmp_path / "long.flac", max_seconds=278 * 3600)
    assert declared_hours or sum(map(len, whole)) == 5 * 16000


@pytest.mark.parametrize("block_seconds", [0, -1.0, float("nan"), float("inf")])
def test_blocks_of_no_length_are_refused(tmp_path, block_seconds):
    soundfile.write(tmp_path / "tone.wav", tone(0.1), 16000)
    with pytest.raises(ValueError, match="block_seconds"):
        list(read_blocks(tmp_path / "tone.wav", block_seconds=block_seconds))


# Source and target rate in Hz.
RATES = [(44100, 16000), (48000, 16000), (8000, 16000), (16000, 22050), (11025, 16000), (16000, 8000), (16000, 16000)]


@pytest.mark.parametrize("source_rate, target_rate", RATES)
def test_resampling_in_pieces_equals_resampling_at_once(source_rate, target_rate):
    from torchaudio.functional import resample

    draw = random.Random(0)
    for length in (1, 60, 3989):
        waveform = torch.from_numpy(noise(length)).float()
        for longest in (1 if length < 100 else 200, 3000):
            resampler, found, start = StreamResampler(source_rate, target_rate), [], 0
            while start < length:
                end = start + draw.randint(0, longest)  # empty pieces too
                found.append(resampler.push(waveform[start:end]))
                start = end
            found.append(resampler.finish())
            expected = resample(waveform, source_rate, target_rate)
            torch.testing.assert_close(torch.cat(found), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("source_rate, target_rate", [*RATES, (32000, 16000), (47250, 16000), (96000, 22050)])
@pytest.mark.parametrize("length", [1, 440, 441, 30001])
def test_clips_are_resampled_as_by_torchaudio(source_rate, target_rate, length):
    from torchaudio.functional import resample

    waveform = torch.from_numpy(noise(length)).float()
    found = to_waveform(waveform.unsqueeze(1), source_rate, target_rate)
    torch.testing.assert_close(found, resample(waveform, source_rate, target_rate), atol=3e-7, rtol=0)


@pytest.mark.parametrize(
    "mode, source_rate, target_rate",  # rates that are met nowhere else, so that their filters are made here
    [
        pytest.param(torch.inference_mode, 72000, 12000, id="inference, one filter"),
        pytest.param(torch.inference_mode, 72000, 12600, id="inference, many"),
        pytest.param(lambda: torch.device("meta"), 84000, 12600, id="another device, many"),
    ],
)
def test_filters_do_not_depend_on_the_mode_of_the_first_call(mode, source_rate, target_rate):
    from torchaudio.functional import resample

    waveform = torch.from_numpy(noise(5000)).float()
    with mode():
        to_waveform(waveform.unsqueeze(1), source_rate, target_rate)
    learnt = waveform.clone().requires_grad_()
    found = to_waveform(learnt.unsqueeze(1), source_rate, target_rate)
    torch.testing.assert_close(found, resample(waveform, source_rate, target_rate), atol=3e-7, rtol=0)
    found.sum().backward()  # needs filters that may take part in gradients
    assert learnt.grad.abs().sum() > 0


@pytest.mark.parametrize("num_channels", [1, 2, 3, 6, 24])
def test_channels_are_averaged_as_by_mean_and_left_as_they_are(num_channels):
    samples = torch.from_numpy(noise(1000 * num_channels)).float().view(1000, num_channels)
    before = samples.clone()
    torch.testing.assert_close(to_waveform(samples, 16000, 16000), samples.mean(dim=1), atol=1e-6, rtol=0)
    assert torch.equal(samples, before)


@pytest.mark.parametrize(
    "source_rate, target_rate", [(311, 500), *(pytest.param(*rates, marks=pytest.mark.slow) for rates in RATES[:-1])]
)
def test_filters_made_where_they_are_needed_are_those_of_torchaudio(source_rate, target_rate, monkeypatch):
    """As rates with no divisor in common have them, for which torchaudio's filter would take gigabytes."""
    from torchaudio.functional import resample

    waveform = torch.from_numpy(noise(10000)).float()
    expected = resample(waveform.double(), source_rate, target_rate).float()  # its filter in double precision
    monkeypatch.setattr("modeling_ast.resampling.MAX_FILTER_SIZE", 0)
    resampler = StreamResampler(source_rate, target_rate)
    found = [*map(resampler.push, waveform.split(3000)), resampler.finish()]
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-6, rtol=0)


def test_resampler_gives_what_it_can_and_keeps_little():
    resampler, given = StreamResampler(44100, 16000), 0
    for seconds in range(1, 10):
        given += len(resampler.push(torch.zeros(44100)))
        assert seconds * 16000 - 200 <= given <= seconds * 16000  # 10 ms behind at the most
        assert len(resampler.kept) < 2000
    assert given + len(resampler.finish()) == 9 * 16000
    assert len(resampler.finish()) == 0


def test_resampler_can_be_used_again():
    resampler, waveform = StreamResampler(48000, 16000), torch.from_numpy(noise(5000)).float()
    first, second = (torch.cat((resampler.push(waveform), resampler.finish())) for _ in range(2))
    assert torch.equal(first, second) and len(first) == 1667


# Open files


class Socket(io.RawIOBase):
    """Can be read once, from the beginning to the end."""

    def __init__(self, content: bytes):
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.content.readinto(buffer)


class Reader:
    """The least that is called a file."""

    def __init__(self, content: bytes):
        self.read = io.BytesIO(content).read


def after_a_header(content: bytes) -> io.BytesIO:
    file = io.BytesIO(b"header" + content)
    file.seek(6)
    return file


@pytest.mark.parametrize("name", ["tone.wav", "tone.flac", "tone.ogg", "tone.mp3"])
@pytest.mark.parametrize("open_", [io.BytesIO, Socket, Reader, after_a_header])
def test_open_files_are_read_as_their_paths(tmp_path, name, open_):
    path = tmp_path / name
    soundfile.write(path, tone(0.5, 44100), 44100)
    expected = load_waveform(path)
    for read in (load_waveform, lambda file: torch.cat(list(read_blocks(file, block_seconds=0.11)))):
        torch.testing.assert_close(read(open_(path.read_bytes())), expected, atol=1e-6, rtol=0)
        with path.open("rb") as file:
            torch.testing.assert_close(read(file), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("read", [load_waveform, lambda source: list(read_blocks(source))], ids=["whole", "blocks"])
def test_errors_of_open_files_say_which(tmp_path, read):
    (tmp_path / "broken.wav").write_bytes(b"not a sound")
    with (
        (tmp_path / "broken.wav").open("rb") as file,
        pytest.raises(AudioError, match="broken.wav: cannot be decoded"),
    ):
        read(file)
    with pytest.raises(AudioError, match="^<file>: cannot be decoded"):
        read(io.BytesIO(b"not a sound"))


@pytest.mark.parametrize("source", [None, 5, ["clip.wav"], io.StringIO("text")], ids=["None", "int", "list", "text"])
def test_what_is_no_source_is_refused(source):
    for read in (load_waveform, lambda source: list(read_blocks(source))):
        with pytest.raises(AudioError, match=f"a path, bytes or .*, got {type(source).__name__}"):
            read(source)


# Errors


def test_truncated_file_gives_its_blocks_before_the_error(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, noise(64000), 16000)
    expected = load_waveform(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = []
    with pytest.raises(AudioError, match="tone.flac: cannot be decoded beyond 1.79 s .* set ignore_length"):
        for block in read_blocks(path, block_seconds=0.3):
            found.append(block)
    found = torch.cat(found)
    assert len(found) > 16000
    torch.testing.assert_close(found[:16000], expected[:16000], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_broken_torchaudio_is_one_sentence_and_only_where_it_is_needed(tmp_path):
    """torchaudio raises at import when it does not match torch; files at the right rate do not need it."""
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('PyTorch and torchaudio: different CUDA versions')\n")
    soundfile.write(tmp_path / "16k.wav", tone(), 16000)
    soundfile.write(tmp_path / "44k.wav", tone(1.0, 44100), 44100)
    program = (
        "from modeling_ast import load_waveform\n"
        "print(len(load_waveform('16k.wav')))\n"
        "try:\n    load_waveform('44k.wav')\nexcept ImportError as error:\n    print(error)\n"
    )
    repository = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(repository)))}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    num_samples, *message = result.stdout.splitlines()
    assert num_samples == "16000"
    assert len(message) == 1 and "torchaudio" in message[0] and torch.__version__ in message[0]
    assert "pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'" in message[0]


@pytest.mark.parametrize("name, words", [(None, "<bytes>"), ("row 7", "row 7")])
def test_broken_bytes_are_an_error_that_says_which(name, words):
    with pytest.raises(AudioError, match=f"{words}: cannot be decoded"):
        load_waveform(b"not a sound", name=name)


def test_seconds_are_those_of_the_header_and_of_what_is_decoded(tmp_path):
    tone = torch.sin(torch.arange(24000) / 9).numpy()
    for name in ("a.wav", "a.flac", "a.ogg", "a.mp3"):
        soundfile.write(tmp_path / name, tone, 16000)
        for source in (tmp_path / name, (tmp_path / name).read_bytes()):
            assert read_seconds(source) == pytest.approx(len(load_waveform(source)) / 16000, abs=1e-9)
    os.mkfifo(tmp_path / "pipe.wav")
    for name, words in (("pipe.wav", "not a file"), ("none.wav", "no such file")):
        with pytest.raises(AudioError, match=f"{tmp_path / name}: {words}"):
            read_seconds(tmp_path / name)
    # A FLAC that was written into a pipe does not say how long it is.
    flac = bytearray((tmp_path / "a.flac").read_bytes())
    flac[21] &= 0xF0  # the 36 bits of its number of samples
    flac[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(flac)
    assert read_seconds(tmp_path / "piped.flac") == pytest.approx(1.5)
