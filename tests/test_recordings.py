"""Whatever a recording is held in, the same waveform comes out; windows are those of plain slicing; bad input is one
sentence that says which recording.
"""

import gzip
import io
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from modeling_ast import AudioError
from modeling_ast.inference import recordings
from modeling_ast.inference.recordings import read_recording
from modeling_ast.inference.windows import WindowCutter

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 16000
# File name, subtype (None: the format's own).
FORMATS = [
    ("clip.wav", "PCM_16"),
    ("clip.wav", "PCM_24"),
    ("clip.wav", "FLOAT"),
    ("clip.wav", "PCM_U8"),
    ("clip.flac", None),
    ("clip.ogg", None),
    ("clip.mp3", None),
]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def read(source, sampling_rate: int = RATE) -> torch.Tensor:
    return torch.cat(list(read_recording(source, sampling_rate)))


def whole(path: Path) -> torch.Tensor:
    """Decoded, averaged and resampled at once."""
    samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(torch.from_numpy(samples.mean(axis=1)), file_rate, RATE)


def message_of(source) -> str:
    """The one sentence, of which nothing is left to a traceback."""
    with pytest.raises(ValueError) as caught:
        read(source)
    assert isinstance(caught.value, AudioError) and "\n" not in str(caught.value)
    return str(caught.value)


# Files


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("file_rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize(("name", "subtype"), FORMATS)
def test_every_format_rate_and_channel_count_is_decoded_averaged_and_resampled(
    tmp_path, name, subtype, file_rate, num_channels
):
    soundfile.write(tmp_path / name, noise(file_rate, num_channels), file_rate, subtype=subtype)
    waveform = read(tmp_path / name)
    assert waveform.dtype == torch.float32 and waveform.ndim == 1 and len(waveform) >= RATE
    torch.testing.assert_close(waveform, whole(tmp_path / name), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["clip.wav", "clip.flac", "clip.ogg", "clip.mp3"])
def test_blocks_of_a_long_file_are_the_file(tmp_path, name):
    """MP3 and OGG keep a state from one block to the next."""
    soundfile.write(tmp_path / name, noise(25 * 22050, 2), 22050)
    pieces = list(read_recording(tmp_path / name, RATE))
    assert len(pieces) > 2 and max(map(len, pieces)) < 11 * RATE
    torch.testing.assert_close(torch.cat(pieces), whole(tmp_path / name), atol=1e-6, rtol=0)


@pytest.fixture
def serve() -> Iterator[Callable[[Iterable[bytes]], str]]:
    """A server on this machine that sends what it is told, whatever is asked for; it gives its address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def answer_all(pieces):
            with suppress(OSError):  # the other end, or the test, has had enough
                while True:
                    connection, _ = server.accept()
                    with closing(connection), suppress(OSError):
                        connection.recv(2**16)
                        for piece in pieces:
                            connection.sendall(piece)

        def serve(pieces):
            threading.Thread(target=answer_all, args=(pieces,), daemon=True).start()
            return f"127.0.0.1:{server.getsockname()[1]}"

        yield serve


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_every_holder_of_a_file_gives_the_same(tmp_path, serve):
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise(22050, 2), 22050)
    content = path.read_bytes()
    expected = whole(path)
    address = serve([answer(gzip.compress(content), Content_Encoding="gzip")])
    with open(path, "rb") as file:
        for source in (
            path,
            str(path),
            content,
            io.BytesIO(content),
            file,
            {"path": str(path)},
            {"path": path, "bytes": None},
            {"path": "gone.wav", "bytes": content},
            f"http://{address}/clip.wav",
        ):
            torch.testing.assert_close(read(source), expected, atol=1e-6, rtol=0)


# Arrays


def holders(waveform: np.ndarray) -> dict[str, object]:
    tensor = torch.from_numpy(waveform)
    stereo = np.stack((waveform + 0.05, waveform - 0.05))
    return {
        "array": waveform,
        "float64": waveform.astype(np.float64),
        "another byte order": waveform.astype(">f4"),
        "not contiguous": np.repeat(waveform, 2)[::2],
        "backwards": waveform[::-1].copy()[::-1],
        "read only": np.frombuffer(waveform.tobytes(), np.float32),
        "tensor": tensor,
        "tensor with gradient": tensor.clone().requires_grad_(),
        "channels first": stereo,
        "channels last": stereo.T,
        "one channel": waveform[None],
        "tensor with channels": torch.from_numpy(stereo),
        "dict with array": {"array": waveform, "sampling_rate": RATE, "path": None},
        "dict with raw": {"raw": tensor, "sampling_rate": np.int64(RATE)},
        "dict with pieces": {"pieces": [waveform[:100], waveform[100:100], stereo[:, 100:]], "sampling_rate": RATE},
        "dict with a list": {"array": waveform.tolist(), "sampling_rate": RATE},
        "decoder": SimpleNamespace(
            get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(stereo), sample_rate=RATE)
        ),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("holder", holders(noise(8)))
def test_every_holder_of_samples_gives_the_same(holder):
    waveform = noise(RATE)
    read_waveform = read(holders(waveform)[holder])
    assert read_waveform.dtype == torch.float32 and not read_waveform.requires_grad
    np.testing.assert_allclose(read_waveform, waveform, atol=1e-6)


@pytest.mark.parametrize("type_", [np.int16, np.int32, np.uint8, np.int8, ">i2"])
def test_integer_pcm_has_its_full_scale(type_):
    type_ = np.dtype(type_)
    full, middle = 2.0 ** (8 * type_.itemsize - 1), 128 if type_ == np.uint8 else 0
    waveform = noise(RATE).clip(-0.9, 0.9)
    pcm = np.rint(waveform.astype(np.float64) * full + middle).astype(type_)
    np.testing.assert_allclose(read(pcm), waveform, atol=0.51 / full + 1e-7)


def test_samples_at_another_rate_are_resampled():
    waveform = torch.from_numpy(noise(44100))
    decoder = SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=waveform[None], sample_rate=44100))
    for source in ({"array": waveform, "sampling_rate": 44100}, decoder):
        torch.testing.assert_close(read(source), resample(waveform, 44100, RATE), atol=1e-6, rtol=0)


def test_what_is_read_is_not_changed_by_what_is_done_to_it():
    source = {"array": noise(100), "sampling_rate": RATE}
    before = source["array"].copy()
    read(source)
    assert source.keys() == {"array", "sampling_rate"} and (source["array"] == before).all()


# What is none


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "got NoneType"),
        (5, "got int"),
        (0.5, "got float"),
        (object(), "got object"),
        (bytearray(b"RIFF"), "got bytearray"),
        (b"", "<bytes>: cannot be decoded"),
        (b"RIFF", "<bytes>: cannot be decoded"),
        (io.BytesIO(b"no sound"), "<BytesIO>: cannot be decoded"),
        (io.StringIO("no sound"), "<StringIO>: expected a file that is open for reading bytes, got one for text"),
        ("", ": no such file"),
        ("no/such.wav", "^no/such.wav: no such file"),
        ("no\0such.wav", "no such file"),
        (Path("no_such.wav"), "^no_such.wav: no such file"),
        ({"path": "no_such.wav"}, "^no_such.wav: no such file"),
        ({"path": "row 7", "bytes": b"no sound"}, "^row 7: cannot be decoded"),
        ({}, "<dict>: expected a dictionary with array .* got the keys none"),
        ({"audio": {}, "label": 3}, "got the keys audio, label"),
        ({"path": 5}, "got the keys path"),
        ({"bytes": np.zeros(100)}, "got the keys bytes"),
        ({"path": None, "bytes": None}, "got the keys path, bytes"),
        ({"array": np.zeros(100)}, "expected a sampling_rate in Hz beside 'array', got None"),
        ({"raw": np.zeros(100), "sampling_rate": 0}, "beside 'raw', got 0"),
        ({"raw": np.zeros(100), "sampling_rate": -16000}, "got -16000"),
        ({"raw": np.zeros(100), "sampling_rate": "16000"}, "got '16000'"),
        ({"raw": np.zeros(100), "sampling_rate": True}, "got True"),
        ({"raw": np.zeros(100), "sampling_rate": 44100.5}, "got 44100.5"),
        ({"pieces": [], "sampling_rate": 0}, "beside 'pieces', got 0"),
        ({"pieces": ["abc"], "path": "row 7", "sampling_rate": RATE}, "^row 7: expected an array of numbers"),
        ({"array": "abc", "sampling_rate": RATE}, "expected an array of numbers"),
        ({"array": [[0.1], [0.1, 0.2]], "sampling_rate": RATE}, "expected an array of numbers"),
        ({"array": np.zeros((3, 3, 9)), "path": "row 7", "sampling_rate": RATE}, r"^row 7: .*shape \(3, 3, 9\)"),
        (np.array([None] * 100), "<ndarray>: expected an array of numbers, got one of type object"),
        (np.zeros(100, dtype=complex), "type complex128"),
        (np.zeros(100, dtype=bool), "type bool"),
        (np.zeros(100, dtype=np.int64), "<ndarray>: .*got torch.int64 .*full scale is not known"),
        (np.zeros(100, dtype=np.uint16), "full scale is not known"),
        (torch.zeros(100, dtype=torch.int64), "<Tensor>: .*got torch.int64"),
        (np.zeros(()), r"shape \(\)"),
        (np.zeros((9, 100)), r"<ndarray>: .*up to 8 channels, got an array of shape \(9, 100\). Give several"),
        (np.zeros((2, 3, 100)), r"shape \(2, 3, 100\)"),
        (np.zeros((2, 2)), r"shape \(2, 2\)"),
        (np.zeros((2, 0)), r"shape \(2, 0\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_recording_is_one_sentence(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError, match=words) as caught:
        read(source)
    assert "\n" not in str(caught.value)


def test_an_open_file_is_called_by_its_name(tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"no sound")
    with open(tmp_path / "clip.wav", "rb") as file:
        assert message_of(file).startswith(f"{tmp_path / 'clip.wav'}: cannot be decoded")


def dripped(content: bytes) -> Iterator[bytes]:
    for byte in content:
        yield bytes([byte])
        time.sleep(0.05)


class Endless:
    """A start, and then zeros as long as somebody takes them."""

    def __init__(self, start: bytes):
        self.start = start

    def __iter__(self) -> Iterator[bytes]:
        yield self.start
        while True:
            yield bytes(2**16)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([answer(status="404 \x1b[31mEvil")], "404 Not Found"),
        ([answer(status="500 Internal Server Error")], "500 Internal Server Error"),
        ([answer(status="304 Not Modified")], "304 Not Modified"),
        ([b"no HTTP\r\n\r\n"], "illegal status line"),
        ([], "Server disconnected without sending a response"),
        ([answer(b"RIFF")[:-1]], "peer closed connection"),
        ([answer(status="302 Found", Location="file:///etc/hostname")], "unsupported protocol 'file://'"),
        ([answer(status="302 Found", Location="ftp://sounds.example/clip.wav")], "unsupported protocol 'ftp://'"),
        ([answer(status="302 Found", Location="http://\x1b[31m/")], "Invalid URL in location header"),
        ([answer(status="302 Found", Location="/")], "more than 10 redirections"),
        (Endless(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), "more than 10 redirections"),
        (Endless(b"HTTP/1.1 200 OK\r\n\r\n"), "it has more than 1,000,000 bytes: fetch it to a file by other means"),
        ([answer(gzip.compress(bytes(2_000_000)), Content_Encoding="gzip")], "it has more than 1,000,000 bytes"),
        ([answer(gzip.compress(gzip.compress(b"")), Content_Encoding="gzip, gzip")], "in an encoding of its own"),
        (dripped(b"HTTP/1.1 200 OK\r\nX: " + 200 * b"x"), "it takes longer than 0.3 s"),
        (dripped(answer(1000 * b"x")), "it takes longer than 0.3 s"),
        (dripped(answer(status="302 Found", Location="/")), "it takes longer than 0.3 s"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence_without_secrets(monkeypatch, serve, pieces, words):
    monkeypatch.setattr(recordings, "MAX_FETCHED_BYTES", 1_000_000)
    monkeypatch.setattr(recordings, "MAX_FETCH_SECONDS", 0.3 if words.startswith("it takes") else 20)
    address = serve(pieces)
    message = message_of(f"http://me:secret@{address}/clip.wav?token=secret#secret")
    assert message.startswith(f"http://{address}/clip.wav: cannot be fetched (") and words in message
    assert "secret" not in message and message.isprintable()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:sec/ret@sounds.example/clip.wav", "http://..."),
        ("http://me:sec?ret@sounds.example/clip.wav", "http://..."),
        ("http://[::1/clip.wav", "http://..."),
        ("http://sounds\x1b.example/\x1b[31m", r"http://sounds\x1b.example/\x1b[31m"),
        ("http://sounds.example/a\nb", "http://sounds.example/a b"),
        ("http://\udc80/clip.wav", r"http://\udc80/clip.wav"),
    ],
)
def test_what_is_no_address_is_one_sentence_that_shows_no_part_of_a_password(url, shown):
    assert message_of(url) == f"{shown}: cannot be fetched (this is no valid address)."


def test_a_page_instead_of_a_sound_is_called_by_its_address(serve):
    address = serve([answer(b"<html>")])
    assert message_of(f"http://{address}/a?token=secret").startswith(f"http://{address}/a: cannot be decoded")


# Windows


def slices(num_samples: int, length: int, left: int, right: int, min_length: int) -> tuple[list, list]:
    """Windows as (start, stop) of plain slices, and the boundaries of what each speaks for."""
    starts = [0]
    while starts[-1] + length < num_samples:
        starts.append(starts[-1] + length - left - right)
    if len(starts) > 1 and num_samples - starts[-1] < min_length:
        starts.pop()
    windows = [(start, min(start + length, num_samples)) for start in starts]
    return windows, [0, *(start + left for start in starts[1:]), num_samples]


def pieces_of(waveform: torch.Tensor, generator: np.random.Generator, largest: int) -> list[torch.Tensor]:
    """Cut at random, empty pieces among them."""
    pieces, position = [], 0
    while position < len(waveform):
        size = int(generator.integers(0, largest))
        pieces.append(waveform[position : position + size])
        position += size
    return pieces


@pytest.mark.parametrize("seed", range(200))
def test_windows_are_those_of_plain_slicing_however_the_recording_arrives(seed):
    generator = np.random.default_rng(seed)
    length = int(generator.integers(2, 60))
    left = int(generator.integers(0, length))
    right = int(generator.integers(0, length - left))
    min_length = int(generator.integers(1, length + 1))
    # Every so often exactly a number of hops, one more, one less.
    num_samples = length + int(generator.integers(-1, 6)) * (length - left - right) + int(generator.integers(-1, 2))
    num_samples = max(1, num_samples if seed % 2 else int(generator.integers(1, 400)))
    waveform = torch.arange(num_samples, dtype=torch.float32)
    expected, boundaries = slices(num_samples, length, left, right, min_length)
    for largest in (2, 7, 1000):
        cutter = WindowCutter(length, left, right, min_length)
        windows = []
        for piece in pieces_of(waveform, generator, largest):
            windows += cutter.push(piece)
        windows += cutter.finish()
        assert [(int(window.waveform[0]), int(window.waveform[-1]) + 1) for window in windows] == expected
        assert all((window.waveform.diff() == 1).all() for window in windows)
        assert [window.start for window in windows] == boundaries[:-1]
        assert [window.stop for window in windows[:-1]] == boundaries[1:-1]
        assert cutter.num_samples == num_samples
        # What a window speaks for is in it, but for an end that is too short for a window of its own.
        own = zip(boundaries, boundaries[1:-1] + [expected[-1][1]], expected)
        assert all(start <= begin < end <= stop for begin, end, (start, stop) in own)
        assert num_samples - expected[-1][1] < min_length
        assert [window.is_whole_recording for window in windows if window.is_whole_recording] == (
            [True] if num_samples < length else []
        )


def test_nothing_gives_no_window():
    cutter = WindowCutter(10, 2, 2, 3)
    assert cutter.push(torch.zeros(0)) == [] == cutter.finish()


def test_the_cutter_keeps_no_more_than_a_window():
    cutter = WindowCutter(1000, 100, 100, 10)
    for _ in range(200):
        cutter.push(torch.zeros(170))
        assert len(cutter.kept) < 1000 and cutter.kept.untyped_storage().nbytes() <= 4 * 1170
