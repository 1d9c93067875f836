"""Sound files that are broken or made to harm: each gives finite samples, or is one error with its name, at once and
in little memory, and none takes the process along.
"""

import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import save_checkpoint
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from modeling_ast import ASTFeatureExtractor, AudioError, load_waveform
from modeling_ast.audio import AUDIO_SUFFIXES, load_part, read_blocks, read_samples
from modeling_ast.data.labels import plain
from modeling_ast.inference.recordings import read_recording
from modeling_ast.opening import FILE_RATES

ROOT = Path(__file__).resolve().parents[1]
RATE = 16000
pytestmark = pytest.mark.usefixtures("one_thread")


def sound(seconds: float = 0.3, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Noise, (samples, channels): every bit of it counts."""
    shape = (round(seconds * rate), channels)
    return (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def encode(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if size is None else size) + content + b"\0" * (len(content) % 2)


def wav(
    *,
    data: bytes | None = None,
    code: int = 1,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    align: int | None = None,
    size: int | None = None,
    between: bytes = b"",
) -> bytes:
    """A WAV file whose header says what it is told to. `code` is 1 for integers, 3 for floats."""
    data = pcm(sound()) if data is None else data
    align = channels * bits // 8 % 2**16 if align is None else align
    header = struct.pack("<HHIIHH", code, channels, rate, rate * align % 2**32, align, bits)
    content = b"WAVE" + chunk(b"fmt ", header) + between + chunk(b"data", data, size)
    return chunk(b"RIFF", content)


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def floats(*values: float, type: str = "<f4") -> bytes:
    samples = sound()[:, 0].astype(type)
    samples[-len(values) :] = values
    return wav(data=samples.tobytes(), code=3, bits=8 * samples.itemsize)


def cut(content: bytes, share: float) -> bytes:
    return content[: round(share * len(content))]


def replace_in(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) >= 1 and len(old) == len(new)
    return content.replace(old, new, 1)


def flac_header(content: bytes, *, rate: int = RATE, channels: int = 1, samples: int = 0) -> bytes:
    """With another STREAMINFO: 20 bits of rate, 3 of channels, 5 of depth and 36 of length."""
    packed = (rate << 44 | (channels - 1) << 41 | 15 << 36 | samples).to_bytes(8, "big")
    return content[:18] + packed + content[26:]


OGG_CRC = []
for number in range(256):
    value = number << 24
    for _ in range(8):
        value = (value << 1 ^ 0x104C11DB7) if value & 0x80000000 else value << 1
    OGG_CRC.append(value)


def mend_ogg(content: bytes) -> bytes:
    """With the checksums of its pages made right, without which a decoder passes over them."""
    content, start = bytearray(content), 0
    while (start := content.find(b"OggS", start)) >= 0 and start + 27 <= len(content):
        count = content[start + 26]
        end = start + 27 + count + sum(content[start + 27 : start + 27 + count])
        content[start + 22 : start + 26] = bytes(4)
        value = 0
        for byte in content[start:end]:
            value = (value << 8 & 0xFFFFFFFF) ^ OGG_CRC[value >> 24 ^ byte]
        content[start + 22 : start + 26] = value.to_bytes(4, "little")
        start = max(start + 4, end)
    return bytes(content)


def without_end(content: bytes) -> bytes:
    """An OGG file whose last page does not say that it is the last, as some programs write it."""
    place = content.rindex(b"OggS") + 5
    assert content[place] & 4
    return mend_ogg(content[:place] + bytes([content[place] & ~4]) + content[place + 1 :])


def ogg_of_another_codec(header: bytes) -> bytes:
    """The first page of a stream names its codec."""
    page = b"OggS\0\x02" + bytes(8) + b"\x01\0\0\0" + bytes(8) + b"\x01" + bytes([len(header)]) + header
    return mend_ogg(page + page.replace(b"OggS\0\x02", b"OggS\0\x04"))


def with_garbage_between_frames(content: bytes) -> bytes:
    """An MP3 file with 100 bytes before every tenth frame; frames begin with the same two bytes."""
    start, frames = content[:2], content.split(content[:2])[1:]
    garbage = random.Random(0).randbytes(100).replace(b"\xff", b"\0")  # nothing that looks like a frame
    return b"".join((garbage if number % 10 == 9 else b"") + start + frame for number, frame in enumerate(frames))


def without_header(content: bytes) -> bytes:
    """An MP3 file without its first frame, in which encoders write how long it is."""
    return content[content.index(content[:2], 2) :]


def loud_then_quiet() -> np.ndarray:
    """Of whose bit rate the beginning tells nothing."""
    samples = sound(5.0)
    samples[len(samples) // 2 :] *= 1e-4
    return samples


WAV, FLAC, OGG, MP3 = (encode(sound(), format=name) for name in ("WAV", "FLAC", "OGG", "MP3"))
OPUS = encode(sound(), format="OGG", subtype="OPUS")
AIFF = encode(sound(), format="AIFF")
AIFF_RATE = b"\x40\x0c\xfa" + bytes(7)  # 16,000 as a float of 80 bits
HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>" + 500 * b"gone " + b"</body></html>"
VARIABLE = encode(loud_then_quiet(), format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
CONSTANT = encode(sound(1.0), format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
QUIET_THEN_LOUD = encode(loud_then_quiet()[::-1], format="MP3", bitrate_mode="VARIABLE")
ONE_SECOND = encode(sound(1.0), format="MP3")
ID3V1 = b"TAG" + bytes(125)

OTHERS = [
    ("SDS", "PCM_16"),
    ("IRCAM", "PCM_16"),
    ("MAT5", "PCM_16"),
    ("VOC", "PCM_16"),
    ("XI", "DPCM_16"),
    ("HTK", "PCM_16"),
]

NO_SOUND = "cannot be decoded|holds no samples"
RATE_WORDS = f"expected a sampling rate from {FILE_RATES[0]} to {FILE_RATES[-1]} Hz, got "
SAMPLE_WORDS = r"expected samples in \[-1, 1\], got NaN, infinite or far larger ones"

# Name of the file, what it holds, and a pattern of the words that refuse it.
REFUSED = [
    *((f"empty.{suffix}", b"", "cannot be decoded") for suffix in ("wav", "flac", "ogg", "mp3", "raw", "gsm")),
    *((f"random.{suffix}", random.Random(0).randbytes(5000), NO_SOUND) for suffix in ("wav", "flac", "ogg", "mp3")),
    *((f"text.{suffix}", HTML, "cannot be decoded") for suffix in ("wav", "flac", "ogg", "mp3", "raw", "gsm", "vox")),
    ("picture.wav", b"\x89PNG\r\n\x1a\n" + bytes(1000), "cannot be decoded"),
    ("archive.mp3", b"PK\x03\x04" + bytes(1000), "cannot be decoded"),
    ("zeros.wav", bytes(10000), NO_SOUND),
    *(
        (f"tone.{format}", encode(sound(rate=8000), 8000, format, subtype), "cannot be decoded")
        for format, subtype in OTHERS
    ),
    # Cut off
    *((f"cut_{share}.wav", cut(WAV, share), "truncated") for share in (0.9, 0.5)),
    *((f"cut_{share}.flac", cut(FLAC, share), "truncated|cannot be decoded") for share in (0.9, 0.5)),
    *((f"cut_{share}.ogg", cut(OGG, share), "truncated|cannot be decoded|no samples") for share in (0.9, 0.5)),
    *((f"cut_{share}.opus.ogg", cut(OPUS, share), "truncated|cannot be decoded") for share in (0.9, 0.5)),
    *((f"cut_{share}.mp3", cut(MP3, share), "truncated|cannot be decoded") for share in (0.9, 0.5)),
    *(
        (f"cut_0.01.{name}", cut(content, 0.01), "truncated|" + NO_SOUND)
        for name, content in (("wav", WAV), ("flac", FLAC), ("ogg", OGG), ("opus.ogg", OPUS), ("mp3", MP3))
    ),
    *(
        (f"cut_{subtype}.wav", cut(encode(sound(), subtype=subtype), 0.9), "truncated")
        for subtype in ("PCM_24", "FLOAT", "PCM_U8")
    ),
    *((f"first_{length}.wav", WAV[:length], NO_SOUND) for length in (4, 12, 30, 43, 44)),
    ("two_in_one.mp3", VARIABLE + VARIABLE, "only a part can be decoded, .* Convert it: ffmpeg -i clip.mp3 clip.wav"),
    ("text_behind_unknown_length.mp3", without_header(VARIABLE) + bytes(9997), "cannot be decoded beyond 5.0"),
    # Rates
    *((f"rate_{rate}.wav", wav(rate=rate), RATE_WORDS + str(rate)) for rate in (1, 99, 10**6 + 1, 10**9)),
    *((f"rate_{rate}.wav", wav(rate=rate), "cannot be decoded|" + RATE_WORDS) for rate in (0, 2**31, 2**32 - 1)),
    ("rate_1.flac", flac_header(FLAC, rate=1), RATE_WORDS + "1 Hz"),
    ("rate_0.flac", flac_header(FLAC, rate=0), "cannot be decoded"),
    ("rate_1e9.aiff", replace_in(AIFF, AIFF_RATE, b"\x40\x1c\xee\x6b\x28\0\0\0\0\0"), RATE_WORDS + "1000000000 Hz"),
    ("rate_huge.aiff", replace_in(AIFF, AIFF_RATE, b"\x7f\xfe\xff" + bytes(7)), "cannot be decoded|" + RATE_WORDS),
    ("rate_negative.aiff", replace_in(AIFF, AIFF_RATE, b"\xc0\x0c\xfa" + bytes(7)), "cannot be decoded|" + RATE_WORDS),
    # Channels, depths, codecs
    *((f"channels_{count}.wav", wav(channels=count), "cannot be decoded") for count in (0, 1025, 2**16 - 1)),
    *((f"bits_{bits}.wav", wav(bits=bits), "cannot be decoded") for bits in (0, 255, 2**16 - 1)),
    *((f"float_{bits}.wav", wav(code=3, bits=bits), "cannot be decoded") for bits in (8, 16, 128)),
    ("unknown_codec.wav", wav(code=0x1234), "cannot be decoded"),
    *((f"adpcm_{align}.wav", wav(code=0x11, bits=4, align=align), "cannot be decoded") for align in (0, 1, 2**16 - 1)),
    *((f"adpcm_ms_{align}.wav", wav(code=2, bits=4, align=align), "cannot be decoded") for align in (0, 2**16 - 1)),
    ("speex.ogg", ogg_of_another_codec(b"Speex   1.2.0" + bytes(67)), "cannot be decoded"),
    ("theora.ogg", ogg_of_another_codec(b"\x80theora\3\2\1" + bytes(32)), "cannot be decoded"),
    ("nothing.ogg", ogg_of_another_codec(bytes(30)), "cannot be decoded"),
    # Sizes
    ("no_data.wav", wav(data=b""), "holds no samples"),
    ("no_format.wav", chunk(b"RIFF", b"WAVE" + chunk(b"data", pcm(sound()))), "cannot be decoded"),
    ("format_without_end.wav", replace_in(WAV, b"fmt \x10\0\0\0", b"fmt \xff\xff\xff\xff"), "cannot be decoded"),
    (
        "list_without_end.wav",
        wav(between=chunk(b"LIST", b"INFO", 2**32 - 1)),
        "cannot be decoded|no samples|truncated",
    ),
    ("chunk_without_name.wav", wav(between=chunk(b"\xff\xfe\0\n", bytes(99))), "cannot be decoded"),
    ("lies_about_length.wav", wav(size=2**30), "truncated"),
    ("lies_about_length.flac", flac_header(FLAC, samples=10**6), "truncated"),
    # Samples
    ("nan.wav", floats(np.nan), SAMPLE_WORDS),
    ("infinite.wav", floats(np.inf), SAMPLE_WORDS),
    ("minus_infinite.wav", floats(-np.inf), SAMPLE_WORDS),
    ("both.wav", floats(np.inf, -np.inf), SAMPLE_WORDS),
    ("large.wav", encode(2e10 * np.sign(sound()), subtype="FLOAT"), SAMPLE_WORDS),
    ("one_is_large.wav", floats(1.1e10), SAMPLE_WORDS),
    ("more_than_float32.wav", floats(1e300, type="<f8"), SAMPLE_WORDS),
]

# Name of the file, what it holds, and the samples that it gives at 16 kHz.
LENGTH = len(sound())
DECODED = [
    ("silence.wav", encode(np.zeros(LENGTH)), LENGTH),
    ("silence.flac", encode(np.zeros(LENGTH), format="FLAC"), LENGTH),
    ("silence.ogg", encode(np.zeros(LENGTH), format="OGG"), LENGTH),
    ("silence.mp3", encode(np.zeros(LENGTH), format="MP3"), LENGTH),
    ("no_last_page.ogg", without_end(OGG), LENGTH),
    ("clipping.wav", encode(np.sign(sound())), LENGTH),
    ("clipping.mp3", encode(np.sign(sound()), format="MP3"), LENGTH),
    ("integers_as_floats.wav", encode(2**31 * np.sign(sound()), subtype="FLOAT"), LENGTH),
    ("one_is_large.wav", floats(0.9e10), LENGTH),
    ("tiny.wav", encode(1e-40 * sound(), subtype="DOUBLE"), LENGTH),
    ("one_sample.wav", encode(sound()[:1]), 1),
    ("rate_100.wav", encode(sound(rate=100), 100), LENGTH),
    ("rate_101.wav", encode(sound(1.0, rate=101), 101), RATE),
    ("rate_128000.wav", encode(sound(rate=128000), 128000), LENGTH),
    ("rate_1e6.wav", encode(sound(rate=10**6), 10**6), LENGTH),
    ("rate_999983.wav", encode(sound(rate=999983), 999983), LENGTH + 1),
    ("half_the_rate.wav", wav(rate=RATE // 2), 2 * LENGTH),
    ("channels_64.wav", encode(sound(channels=64)), LENGTH),
    ("channels_1024.wav", encode(sound(channels=1024)), LENGTH),
    ("wrong_suffix.wav", FLAC, LENGTH),
    ("wrong_suffix.mp3", OGG, LENGTH),
    ("wrong_suffix.flac", MP3, LENGTH),
    ("wrong_suffix.raw", WAV, LENGTH),
    ("wrong_suffix.gsm", WAV, LENGTH),
    ("no_suffix", OPUS, LENGTH),
    ("tone.aiff", AIFF, LENGTH),
    *(
        (f"tone.{name}", encode(sound(), format=name), LENGTH)
        for name in ("AU", "CAF", "W64", "RF64", "WAVEX", "NIST")
    ),
    *((f"{name}.wav", encode(sound(), subtype=name), LENGTH) for name in ("ULAW", "ALAW", "PCM_U8", "PCM_32")),
    ("riff_without_end.wav", WAV[:4] + b"\xff\xff\xff\xff" + WAV[8:], LENGTH),
    ("strange_chunks.wav", wav(between=chunk(b"JUNK", bytes(999)) + chunk(b"LIST", b"\n\0" * 99)), LENGTH),
    ("length_unknown.flac", flac_header(FLAC, samples=0), LENGTH),
    ("variable.mp3", VARIABLE, 5 * RATE),
    ("text_behind.mp3", VARIABLE + b"TAG" + bytes(9997), 5 * RATE),
    # Without a header there is no word of the padding to whole frames: 81,216 samples are 141 of 576.
    ("constant_without_header.mp3", without_header(CONSTANT), 30 * 576),
    ("length_unknown.mp3", without_header(VARIABLE), 141 * 576),
    ("length_unknown_quiet.mp3", without_header(QUIET_THEN_LOUD), 141 * 576),
    ("length_unknown_two_in_one.mp3", 2 * without_header(VARIABLE), 282 * 576),
    ("length_unknown_before_tags.mp3", without_header(VARIABLE) + b"APETAGEX" + bytes(3000) + ID3V1, 141 * 576),
    ("picture_before.mp3", b"ID3\x04\0\0\0\0\x07\x68" + bytes(1000) + MP3, LENGTH),
    ("garbage_between_frames.mp3", with_garbage_between_frames(ONE_SECOND), RATE),
]


def join(blocks) -> torch.Tensor:
    return torch.cat(list(blocks))


READERS: dict[str, Callable[..., torch.Tensor]] = {
    "load_waveform": load_waveform,
    "load_part": lambda source, name=None: load_part(source, lambda length: slice(0, length), RATE, name),
    "read_samples": lambda source, name=None: read_samples(source, name=name)[0],
    "read_blocks": lambda source, name=None: join(read_blocks(source, name=name, block_seconds=0.11)),
    "read_recording": lambda source, name=None: join(
        read_recording({"bytes": source, "path": name} if name else source, RATE)
    ),
}


@pytest.fixture(autouse=True)
def at_once(request):
    """What waits for ever, or nearly, fails."""
    seconds = 300 if request.node.get_closest_marker("slow") else 60

    def stop(*_):
        raise TimeoutError(f"this took more than {seconds} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


# A corpus of broken files


@pytest.mark.parametrize(("name", "content", "words"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_is_broken_is_one_error_with_its_name(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    for read in READERS.values():
        with path.open("rb") as file:
            for source in (path, str(path), file):
                with pytest.raises(AudioError, match=words) as error:
                    read(source)
                assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        with pytest.raises(AudioError, match=f"^row 7: .*({words})"):
            read(content, name="row 7")


@pytest.mark.parametrize(("name", "content", "length"), DECODED, ids=[name for name, *_ in DECODED])
def test_what_is_odd_is_decoded_alike_from_everywhere(tmp_path, name, content, length):
    path = tmp_path / name
    path.write_bytes(content)
    waveform = load_waveform(path)
    assert waveform.ndim == 1 and waveform.isfinite().all()
    assert len(waveform) == length
    for source in (content, io.BytesIO(content)):
        assert torch.equal(load_waveform(source), waveform)
    scale = waveform.abs().max().clamp(min=1).item()
    for source in (path, content, io.BytesIO(content)):
        torch.testing.assert_close(READERS["read_blocks"](source), waveform, atol=1e-6 * scale, rtol=0)
    samples, rate = read_samples(path)
    assert samples.isfinite().all() and length == math.ceil(len(samples) * RATE / rate)
    if length >= 400:
        assert ASTFeatureExtractor()(waveform, return_tensors="pt")["input_values"].isfinite().all()


def test_silence_is_silence_and_clipping_stays_at_full_scale():
    for format in ("WAV", "FLAC", "OGG", "MP3"):
        assert load_waveform(encode(np.zeros(4800), format=format)).abs().max() < 1e-6
    clipped = load_waveform(encode(np.sign(sound())))
    assert clipped.abs().min() > 0.99 and clipped.abs().max() <= 1


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_mono_hidden_in_stereo_is_the_mean_of_its_channels(format):
    mono = sound()
    expected = load_waveform(encode(mono, format=format))
    for other, factor in ((0 * mono, 0.5), (mono, 1.0), (-mono, 0.0)):  # silent, twice the same, inverted
        waveform = load_waveform(encode(np.hstack((mono, other)), format=format))
        torch.testing.assert_close(waveform, factor * expected, atol=1e-4, rtol=0)


def test_what_lies_beside_a_file_changes_nothing(tmp_path):
    """Archives of macOS hold a `._clip.mp3` beside `clip.mp3`, which made libsndfile take that for something else."""
    for name, content in {"clip.wav": WAV, "clip.flac": FLAC, "clip.ogg": OGG, "clip.mp3": MP3}.items():
        (tmp_path / name).write_bytes(content)
        expected = load_waveform(tmp_path / name)
        (tmp_path / f"._{name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100))
        assert torch.equal(load_waveform(tmp_path / name), expected)
        with pytest.raises(AudioError, match=r"cannot be decoded \(what macOS keeps about a file"):
            load_waveform(tmp_path / f"._{name}")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


PLACES = {
    "missing": (lambda path: None, "no such file"),
    "folder": (Path.mkdir, "not a file, but a folder, a pipe or a device"),
    "pipe": (make_pipe, "not a file, but a folder, a pipe or a device"),
    "socket": (make_socket, "not a file, but a folder, a pipe or a device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a file, but a folder, a pipe or a device"),
    "link to a folder": (lambda path: path.symlink_to(path.parent), "not a file, but a folder, a pipe or a device"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "link to itself": (lambda path: path.symlink_to(path), "no such file"),
    "in a file": (lambda path: path.write_bytes(WAV), "no such file"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_not_waited_for(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)  # since the names of sockets are short
    make, words = PLACES[place]
    path = Path("clip.wav")
    make(path)
    path = path / "clip.wav" if place == "in a file" else path
    for read in READERS.values():
        for source in (path, str(path)):
            with pytest.raises(AudioError, match=f"^{path}: {words}"):
                read(source)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "clip.wav"
    path.write_bytes(WAV)
    path.chmod(0)
    if os.access(path, os.R_OK):  # whoever may read all files
        monkeypatch.setattr(os, "open", deny)
    with pytest.raises(AudioError, match=r"clip.wav: cannot be decoded \(Permission denied\)"):
        load_waveform(path)


def deny(path, *_):
    raise PermissionError(13, "Permission denied", path)


NAMES = [
    b"a\nb.wav",
    b"a\x1b[31m.wav",
    b"\xff\xfe.wav",
    b" .wav",
    b"-.wav",
    b"%s{}.wav",
    b"a" * 251 + b".wav",
    b"\xed\xa0\x80.wav",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_all_kinds_are_read_and_said(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(WAV)
    expected = load_waveform(WAV)
    assert torch.equal(load_waveform(path), expected)
    assert torch.equal(READERS["read_blocks"](str(path)), expected)
    path.write_bytes(HTML)
    for read in READERS.values():
        with pytest.raises(AudioError) as error:
            read(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["no\0such.wav", "a" * 300 + ".wav", "clip.wav/" * 2000])
def test_names_that_no_file_has_are_no_files(name):
    for read in READERS.values():
        with pytest.raises(AudioError) as error:
            read(name)
        assert str(error.value) == f"{name}: no such file."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # which soundfile passes on
def test_open_files_that_cannot_be_read_are_one_error(tmp_path):
    closed = io.BytesIO(WAV)
    closed.close()
    named = io.BytesIO(WAV)
    named.name = "clip.raw"  # by which soundfile takes it for samples without a header
    only_written = (tmp_path / "new.wav").open("wb")
    text = io.BytesIO(WAV)
    text.seekable, text.read = lambda: False, lambda: "text"
    with only_written:
        for source in (closed, named, only_written, text):
            for read in READERS.values():
                with pytest.raises(AudioError, match=": cannot be decoded"):
                    read(source)


# Parts


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3"])
def test_a_part_is_read_before_a_break_and_told_as_the_whole_behind_it(format):
    content = encode(sound(3.0), format=format)
    whole, cut = load_waveform(content), content[: len(content) // 2]
    with pytest.raises(AudioError) as of_whole:
        load_waveform(cut)
    for start in (0, 8000):
        part = slice(start, start + 8000)
        if format == "OGG":  # which shows that its end is missing when it is opened
            with pytest.raises(AudioError, match="truncated"):
                load_part(cut, lambda length: part)  # noqa: B023
        else:
            assert torch.equal(load_part(cut, lambda length: part), whole[part])  # noqa: B023
    for start in (20000, 40000):
        with pytest.raises(AudioError) as of_part:
            load_part(cut, lambda length: slice(start, start + 8000))  # noqa: B023
        assert str(of_part.value) == str(of_whole.value)


def test_a_part_is_refused_for_samples_of_its_own_that_are_no_sound():
    samples = sound(3.0)
    samples[30000] = np.nan
    content = encode(samples, subtype="FLOAT")
    assert load_part(content, lambda length: slice(0, 30000)).isfinite().all()
    for part in (slice(29999, 30001), slice(30000, 48000)):
        with pytest.raises(AudioError, match="got NaN, infinite or far larger ones"):
            load_part(content, lambda length: part)  # noqa: B023


def test_a_header_that_promises_years_costs_no_more_for_a_part():
    content = flac_header(encode(sound(3.0), format="FLAC"), samples=2**36 - 1)
    with pytest.raises(AudioError, match="too long to be read as a whole"):
        load_part(content, lambda length: slice(length - 8000, length))
    unknown = flac_header(content, samples=0)
    whole = load_waveform(unknown)
    assert torch.equal(load_part(unknown, lambda length: slice(length - 8000, length)), whole[-8000:])


# Little memory, and no long wait


def test_files_that_are_too_long_are_read_in_blocks_alone(monkeypatch):
    known, unknown = encode(sound(1.0), format="FLAC"), flac_header(encode(sound(1.0), format="FLAC"))
    expected = load_waveform(known)
    monkeypatch.setattr("modeling_ast.audio.MAX_AT_ONCE", 4000)
    for limit, value in (("MAX_WHOLE", RATE - 1), ("MAX_WHOLE_SECONDS", 0.99)):
        with monkeypatch.context() as patch:
            patch.setattr(f"modeling_ast.audio.{limit}", value)
            for content in (known, unknown):
                for read in (load_waveform, read_samples):
                    with pytest.raises(AudioError, match="^<bytes>: too long to be read as a whole"):
                        read(content)
                assert torch.equal(READERS["read_blocks"](content), expected)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_what_is_decoded_in_several_goes_is_the_same(format, monkeypatch):
    content = encode(sound(1.0, 22050, 2), 22050, format)
    expected, samples = load_waveform(content), read_samples(content)
    monkeypatch.setattr("modeling_ast.audio.MAX_AT_ONCE", 10001)
    torch.testing.assert_close(load_waveform(content), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(read_samples(content), samples, atol=1e-6, rtol=0)
    torch.testing.assert_close(READERS["read_blocks"](content), expected, atol=1e-6, rtol=0)
    assert max(map(len, read_blocks(content, 22050, block_seconds=1.0))) == 5000


READ_WITH_LITTLE_MEMORY = """
import json, resource, sys, time
from pathlib import Path
from modeling_ast import AudioError, load_waveform
from modeling_ast.audio import read_blocks

taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, taken + 2**29))
readers = {"whole": lambda path: len(load_waveform(path)), "blocks": lambda path: sum(map(len, read_blocks(path)))}
for line in sys.stdin:
    how, path = line.split()
    start = time.process_time()
    try:
        found = readers[how](path)
    except AudioError as error:
        assert not isinstance(error.__cause__, MemoryError), path
        found = str(error)
    print(json.dumps([found, time.process_time() - start]))
"""


@pytest.mark.slow
def test_headers_that_lie_and_long_files_take_little_memory_and_time(tmp_path):
    """In a process that may take half a gigabyte more than it has once all is imported."""
    tone = encode(sound(1.0, channels=8), format="FLAC")
    too_long, cut_off = "too long to be read as a whole", "truncated"
    # What a file holds, bytes of silence after that, and what is heard of it whole and in blocks: how much, or words.
    files = {
        "declares_2^36.flac": (flac_header(FLAC, samples=2**36 - 1), 0, too_long, cut_off),
        "declares_2^31.flac": (flac_header(tone, samples=2**31, channels=8), 0, too_long, cut_off),
        "declares_2^29.flac": (flac_header(FLAC, samples=2**29), 0, cut_off, cut_off),
        "unknown.flac": (flac_header(tone, samples=0, channels=8), 0, RATE, RATE),
        "declares_2^31.wav": (wav(size=2**31), 0, LENGTH, LENGTH),  # as who does not know the length in advance
        "declares_2^30.wav": (wav(size=2**30, channels=1024), 0, cut_off, cut_off),
        "rate_1.wav": (wav(rate=1, size=10**7), 10**7, RATE_WORDS, RATE_WORDS),
        "rate_100.wav": (wav(data=bytes(2 * 10**4), rate=100), 0, 100 * RATE, 100 * RATE),
        "rate_999983.wav": (wav(data=bytes(2 * 999983), rate=999983), 0, RATE, RATE),
        "rate_2^20.flac": (flac_header(FLAC, rate=2**20 - 1), 0, RATE_WORDS, RATE_WORDS),
        "channels.wav": (wav(data=b"", channels=1024, size=2**28), 2**28, 2**17, 2**17),
        "hours.wav": (wav(data=b"", size=2**30), 2**30, None, 2**29),
        "days.wav": (wav(data=b"", rate=100, size=2 * 10**7), 2 * 10**7, too_long, None),
    }
    expected = {}
    for name, (content, silence, *heard) in files.items():
        (tmp_path / name).write_bytes(content)
        os.truncate(tmp_path / name, len(content) + silence)  # a hole, where the disk can have one
        expected |= {f"{how} {name}": each for how, each in zip(("whole", "blocks"), heard) if each is not None}
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_LITTLE_MEMORY],
        input="\n".join(expected),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for (task, wanted), line in zip(expected.items(), done.stdout.splitlines(), strict=True):
        found, seconds = json.loads(line)
        assert found == wanted or isinstance(wanted, str) and re.search(wanted, found), (task, found)
        assert seconds < (30 if task in ("blocks hours.wav", "blocks channels.wav", "whole channels.wav") else 5), task


# What else takes clips


@pytest.mark.parametrize("clips", [[], ()])
def test_no_clips_are_one_clear_error(clips):
    with pytest.raises(ValueError, match="Expected at least one clip, got an empty batch"):
        ASTFeatureExtractor()(clips, return_tensors="pt")


def test_features_of_the_largest_samples_that_are_decoded_are_finite():
    for samples in (1e10 * np.sign(sound(1.0)), np.full(RATE, 1e10), 1e10 * np.eye(1, RATE, 999)[0]):
        waveform = load_waveform(encode(0.99 * samples, subtype="FLOAT"))
        assert waveform.abs().max() > 9e9
        for rate in (100, 16000, 192000):
            features = ASTFeatureExtractor(sampling_rate=rate)(waveform, return_tensors="pt")["input_values"]
            assert features.isfinite().all()


@pytest.mark.parametrize("rate", [1, 99, 10**6 + 1, 10**9, np.int64(1)])
def test_arrays_of_rates_that_no_sound_has_are_refused(rate):
    with pytest.raises(AudioError, match=f"beside 'array', got .*{rate}.*. Recordings have 100 to 1000000"):
        list(read_recording({"array": np.zeros(10**6, np.float32), "sampling_rate": rate}, RATE))


# The script


def test_a_folder_of_broken_files_is_tagged_where_it_can_be_and_nothing_is_lost(tmp_path, monkeypatch):
    from modeling_ast.commands.tag import main

    model, sounds, out = tmp_path / "model", tmp_path / "sounds", tmp_path / "out"
    save_checkpoint(model, random_model(make_tiny_config()))
    sounds.mkdir()
    for name, content, _ in (*REFUSED, *DECODED):
        (sounds / name).write_bytes(content)
    for name in NAMES:
        (sounds / os.fsdecode(name)).write_bytes(WAV)
        (sounds / os.fsdecode(b"broken" + name[-200:])).write_bytes(HTML)
    os.mkfifo(sounds / "pipe.wav")
    (sounds / "folder.wav").mkdir()
    (sounds / "broken_link.wav").symlink_to("nowhere")
    (sounds / "endless_link.wav").symlink_to("endless_link.wav")
    (sounds / "device.wav").symlink_to("/dev/zero")
    paths = [os.path.join(sounds, name) for name in os.listdir(sounds) if name.lower().endswith(AUDIO_SUFFIXES)]
    paths.remove(str(sounds / "folder.wav"))
    argv = [str(sounds), "--model", str(model), "--output_dir", str(out), "--device", "cpu", "--window", "0.5"]
    said = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stderr", said)
    for _ in range(2):  # the second time all is there
        assert main(argv) == 1
        entries = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert sorted(entry["path"] for entry in entries) == sorted(paths)
    said = said.buffer.getvalue().decode("utf-8", "surrogateescape")
    for entry in entries:
        try:
            is_tagged = len(load_waveform(entry["path"])) >= 400
        except AudioError:
            is_tagged = False
        assert ("tags" in entry) == is_tagged and ("error" in entry) != is_tagged
        if not is_tagged:
            assert entry["error"].startswith(f"{entry['path']}: ") and plain(entry["error"]) in said
    assert "\x1b" not in said
    assert len([entry for entry in entries if "tags" in entry]) >= 30
    assert main([str(sounds / "silence.wav"), *argv[1:], "--overwrite"]) == 0


# Mutated files

VALID = {
    "integers.wav": encode(sound(0.1)),
    "floats.wav": encode(sound(0.1, 22050, 2), 22050, subtype="FLOAT"),
    "clip.flac": encode(sound(0.1, 22050, 2), 22050, "FLAC"),
    "clip.ogg": encode(sound(0.5), format="OGG"),  # much of which is its codebooks
    "opus.ogg": encode(sound(0.1), format="OGG", subtype="OPUS"),
    "clip.mp3": encode(sound(0.1), format="MP3"),
}
# Of four bytes: what sizes, counts and floats go wrong with.
NUMBERS = (0, 1, 2**7, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 0x7F800000, 0x7FC00000)


@st.composite
def mutated_files(draw) -> tuple[str, bytes]:
    """The name of a valid file, and its bytes with a few of them changed, most of them in the header."""
    name = draw(st.sampled_from(list(VALID)))
    content = bytearray(VALID[name])
    place = st.one_of(st.integers(0, 127), st.integers(0, 2**14))
    for _ in range(draw(st.integers(1, 3))):
        first = draw(place) % max(1, len(content))
        length = draw(st.one_of(st.integers(1, 8), st.integers(1, 1000)))
        kind = draw(st.sampled_from(("bit", "number", "random", "cut", "delete", "repeat", "insert", "splice")))
        if kind == "bit" and content:
            content[first] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            order = draw(st.sampled_from(("little", "big")))
            content[first : first + 4] = draw(st.sampled_from(NUMBERS)).to_bytes(4, order)
        elif kind == "random":
            content[first : first + length % 64] = draw(st.binary(min_size=length % 64, max_size=length % 64))
        elif kind == "cut":
            del content[-length:]
        elif kind == "delete":
            del content[first : first + length]
        elif kind == "repeat":
            content[first:first] = content[first : first + length] * draw(st.integers(1, 5))
        elif kind == "insert":
            content[first:first] = draw(st.binary(max_size=64))
        else:
            other = VALID[draw(st.sampled_from(list(VALID)))]
            content[first : first + length] = other[first : first + length]
    content = bytes(content)
    return name, mend_ogg(content) if name.endswith(".ogg") and draw(st.booleans()) else content


def read(path: Path, content: bytes, extractor: ASTFeatureExtractor) -> str:
    """What becomes of a file, which is the same whole and in blocks, by its path and by its bytes."""
    try:
        waveform = load_waveform(path)
    except AudioError as error:
        assert str(path) in str(error)
        assert not isinstance(error.__cause__, MemoryError), error
        with pytest.raises(AudioError, match="^<file>: "):
            join(read_blocks(io.BytesIO(content), block_seconds=0.03))
        return "refused"
    assert waveform.ndim == 1 and len(waveform) > 0 and waveform.isfinite().all()
    scale = waveform.abs().max().clamp(min=1).item()
    blocks = join(read_blocks(io.BytesIO(content), block_seconds=0.03))
    torch.testing.assert_close(blocks, waveform, atol=1e-5 * scale, rtol=0)
    if len(waveform) < 400:
        with pytest.raises(ValueError, match="Expected at least 400 samples"):
            extractor(waveform)
        return "too short"
    features = extractor(waveform, return_tensors="pt")["input_values"]
    assert features.shape == (1, extractor.max_length, 128) and features.isfinite().all()
    return "decoded"


def hear_mutated_files(number: int, num_files: int, folder: Path) -> None:
    """Hear so many files, those of a seed, and write down what became of them.

    To be called in a process of its own: whatever kills it, the file lies in the folder. It kills itself when a file
    takes more than 10 s of the processor.
    """
    torch.set_num_threads(1)
    extractor = ASTFeatureExtractor(max_length=64)
    for name, content in VALID.items():
        (folder / name).write_bytes(content)
        assert read(folder / name, content, extractor) == "decoded"  # all is loaded now
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes, longest = Counter(), 0.0

    @seed(number)
    @settings(
        max_examples=num_files,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated_files())
    def hear_one(file):
        nonlocal longest
        name, content = file
        path = folder / name
        path.write_bytes(content)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, 10)  # whose signal ends the process, in the middle of a decoder too
        outcomes[f"{name} {read(path, content, extractor)}"] += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        longest = max(longest, time.process_time() - start)

    hear_one()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    (folder / REPORT).write_text(json.dumps({"outcomes": outcomes, "longest": round(longest, 2), "grown": grown}))


REPORT = "report.json"
MEMORY = 2**30  # bytes that a process may take besides what it has once all is loaded


def campaign(num_files: int, num_processes: int, folder: Path) -> Counter:
    """Hear mutated files in some processes, one after the other; a crash of one fails and names the file.

    Returns:
        How many files of each name were decoded, refused, or too short for features.
    """
    total = Counter()
    for number in range(num_processes):
        place = folder / f"process_{number}"
        place.mkdir()
        process = multiprocessing.get_context("fork").Process(  # which imports nothing again
            target=hear_mutated_files, args=(number, num_files // num_processes, place), daemon=True
        )
        process.start()
        process.join(300)
        newest = max(place.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        assert process.exitcode == 0, f"{newest} ended the process: {process.exitcode}"
        report = json.loads((place / REPORT).read_text())
        assert report["grown"] < MEMORY / 2 and report["longest"] < 5, report
        total.update(report["outcomes"])
    print(f"{total.total()} mutated files: {dict(sorted(total.items()))}")
    return total


def test_mutated_files_are_heard_or_refused(tmp_path):
    total = campaign(60, 1, tmp_path)
    assert total.total() >= 60
    for outcome in ("decoded", "refused"):
        assert sum(count for key, count in total.items() if key.endswith(outcome)) > 5


@pytest.mark.slow
def test_thousands_of_mutated_files_are_heard_or_refused(tmp_path):
    total = campaign(5200, 2, tmp_path)
    assert total.total() >= 5000
    for name in VALID:
        assert total[f"{name} decoded"] > 10 and total[f"{name} refused"] > 100, name
