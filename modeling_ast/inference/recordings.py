"""Recordings as pipelines take them (paths, URLs, bytes, arrays), to mono pieces at one rate."""

import io
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Timer
from typing import Any, BinaryIO

import numpy as np
import torch

from modeling_ast.audio import AudioError, read_blocks
from modeling_ast.data.clips import Clip
from modeling_ast.data.download import shown_address
from modeling_ast.data.labels import plain
from modeling_ast.opening import FILE_RATES
from modeling_ast.resampling import StreamResampler
from modeling_ast.samples import to_float32, to_native

# An array with more channels than this is refused: it is more likely a batch of clips.
MAX_CHANNELS = 8
# What is fetched of a URL, into memory: an hour and a half of stereo WAV. Servers may send without end, bombs of gzip,
# or a byte a second.
MAX_FETCHED_BYTES = 2**30  # unpacked
MAX_FETCH_SECONDS = 600.0  # with all redirections
_MAX_SILENT_SECONDS = 30.0
_MAX_REDIRECTIONS = 10

_SCHEMES = ("http://", "https://")
Recording = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | torch.Tensor | Mapping[str, Any]


def recording_name(source: Recording) -> str:
    """What to call a recording in messages: its path where it has one; of a URL what holds no secrets."""
    if isinstance(source, str) and source.startswith(_SCHEMES):
        return shown_address(source)
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Mapping) and isinstance(source.get("path"), (str, os.PathLike)):
        return os.fspath(source["path"])
    if hasattr(source, "read") and isinstance(getattr(source, "name", None), str):
        return source.name
    return f"<{type(source).__name__}>"


def read_recording(source: Recording, sampling_rate: int, ignore_length: bool = False) -> Iterator[torch.Tensor]:
    """A recording as pieces of mono waveform, files in blocks, so that an hour fits into memory as a minute does.

    Args:
        source: A path, a URL (http or https), the bytes of a sound file, a file that is open for reading bytes, a
            waveform (array or tensor; floats in [-1, 1] or integer PCM) at the rate asked for, a dictionary with
            `array` (or `raw`) and `sampling_rate`, one with `pieces` (of a waveform, one behind the other) and
            `sampling_rate`, one with `bytes` or `path` as `datasets` gives them undecoded, perhaps with the `start`
            and `end` of a stretch in seconds, or a decoder of torchcodec as it gives them decoded. Several channels
            (along the shorter axis) are averaged.
        sampling_rate: Of the result, in Hz.
        ignore_length: As for `modeling_ast.load_waveform`, of files.

    Yields:
        float32 tensors of shape (samples,), one behind the other.

    Raises:
        AudioError: A file that is missing, broken or not decodable, or an array that is no recording.
    """
    name = recording_name(source)
    if isinstance(source, str) and source.startswith(_SCHEMES):
        source = _fetch(source, name)
    if isinstance(source, Mapping) and source.get("pieces") is not None:
        yield from _resample(source["pieces"], _rate_beside("pieces", source, name), sampling_rate, name)
        return
    if isinstance(source, Mapping) and not source.keys().isdisjoint(("start", "end")) and Clip(source).is_stretch:
        yield Clip(source).load(sampling_rate, ignore_length)
        return
    if isinstance(source, Mapping):
        source, source_rate, name = _open_mapping(source, name)
    elif isinstance(source, io.TextIOBase):
        raise AudioError(f"{name}: expected a file that is open for reading bytes, got one for text.")
    elif hasattr(source, "get_all_samples"):  # torchcodec's AudioDecoder
        decoded = source.get_all_samples()
        source, source_rate = decoded.data, decoded.sample_rate
    else:
        source_rate = sampling_rate
    if isinstance(source, (np.ndarray, torch.Tensor)):
        yield from _resample((source,), source_rate, sampling_rate, name)
    else:
        yield from read_blocks(source, sampling_rate, name, ignore_length=ignore_length)


def read_stretch(
    path: Path,
    sampling_rate: int,
    start_seconds: float,
    end_seconds: float | None,
    window: int,
    ignore_length: bool = False,
) -> tuple[torch.Tensor, bool]:
    """A part of a file, without holding the rest of it.

    Args:
        path: Of the file.
        sampling_rate: Of the result, in Hz.
        start_seconds: Where it begins.
        end_seconds: Where it ends; `None` means after `window` samples, or with the file.
        window: In samples.
        ignore_length: As for `read_blocks`.

    Returns:
        The waveform (samples,), and whether the file goes on where `end_seconds` did not say that it ends.

    Raises:
        AudioError: The file cannot be read, or ends too early.
    """
    first = round(start_seconds * sampling_rate)
    last = first + window if end_seconds is None else round(end_seconds * sampling_rate)
    pieces, position = [], 0
    for block in read_blocks(path, sampling_rate, ignore_length=ignore_length):
        pieces.append(block[max(0, first - position) : max(0, last - position)])
        position += len(block)
        if position > last:
            break
    if position <= first or (end_seconds is not None and position < last):
        wanted = start_seconds if position <= first else end_seconds
        raise AudioError(f"{path}: ends after {position / sampling_rate:.2f} s, before {wanted:g} s.")
    return torch.cat(pieces), end_seconds is None and position > last


def _resample(pieces: Iterable[Any], source_rate: int, sampling_rate: int, name: str) -> Iterator[torch.Tensor]:
    resampler = StreamResampler(source_rate, sampling_rate)
    for piece in pieces:
        yield resampler.push(to_mono(piece, name))
    yield resampler.finish()


def _rate_beside(key: str, source: Mapping[str, Any], name: str) -> int:
    rate = source.get("sampling_rate")
    if not isinstance(rate, (int, np.integer)) or isinstance(rate, bool) or int(rate) not in FILE_RATES:
        raise AudioError(
            f"{name}: expected a sampling_rate in Hz beside {key!r}, got {rate!r}. Recordings have "
            f"{FILE_RATES[0]} to {FILE_RATES[-1]}."
        )
    return int(rate)


def _open_mapping(source: Mapping[str, Any], name: str) -> tuple[Any, int | None, str]:
    """What a dictionary holds: an array with its rate, or bytes or a path."""
    for key in ("raw", "array"):
        if source.get(key) is not None:
            rate = _rate_beside(key, source, name)
            return _to_tensor(source[key], name), rate, name
    for key, type_ in (("bytes", bytes), ("path", (str, os.PathLike))):
        if isinstance(source.get(key), type_):
            return source[key], None, name
    raise AudioError(
        f"{name}: expected a dictionary with array (or raw) and sampling_rate, or with bytes or path, got the keys "
        f"{', '.join(map(str, source)) or 'none'}."
    )


def _to_tensor(samples: Any, name: str) -> torch.Tensor:
    """Numbers in any form; features need no gradients, and processes cannot exchange them."""
    if isinstance(samples, torch.Tensor):
        return samples.detach().cpu()
    try:
        samples = np.asarray(samples)
    except ValueError:  # lists of different lengths
        samples = np.asarray(None)
    if samples.dtype.kind not in "fiu":
        raise AudioError(f"{name}: expected an array of numbers, got one of type {samples.dtype}.")
    return torch.from_numpy(to_native(samples))


def to_mono(samples: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Samples, of one channel or several along the shorter axis, to float32 (samples,).

    Raises:
        AudioError: Another shape, or a type without a known full scale.
    """
    try:
        waveform = to_float32(_to_tensor(samples, name), "the samples")
    except AudioError:
        raise
    except ValueError as error:
        raise AudioError(f"{name}: {error}") from error
    if waveform.ndim == 1:
        return waveform
    shape = tuple(waveform.shape)
    if waveform.ndim != 2 or not 1 <= min(shape) <= MAX_CHANNELS < max(shape):
        raise AudioError(
            f"{name}: expected one recording of shape (samples,), or with up to {MAX_CHANNELS} channels, got an array "
            f"of shape {shape}. Give several recordings as a list."
        )
    return waveform.mean(dim=int(np.argmin(shape)))


def _fetch(url: str, name: str) -> BinaryIO:
    """What a URL gives.

    Raises:
        AudioError: Nothing, or more than is fetched, in bytes or in time.
    """
    import httpx

    client = httpx.Client(timeout=_MAX_SILENT_SECONDS, headers={"Accept-Encoding": "identity"})
    # Who sends a byte a second keeps every timeout of a single read; a closed connection ends the reading.
    end, closing = time.monotonic() + MAX_FETCH_SECONDS, Timer(MAX_FETCH_SECONDS, client.close)
    closing.daemon = True
    closing.start()
    try:
        with client:
            return _read_body(_follow(client, url), end)
    # A RuntimeError is httpx's word for a client that is closed.
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OSError, RuntimeError) as error:
        if time.monotonic() >= end:
            reason = f"it takes longer than {MAX_FETCH_SECONDS:g} s: fetch it to a file by other means"
        elif isinstance(error, (httpx.InvalidURL, UnicodeError)):
            reason = "this is no valid address"  # the library's words hold what it took for a part, such as a password
        else:
            reason = str(error).partition("\n")[0] or type(error).__name__
        raise AudioError(f"{name}: cannot be fetched ({plain(reason)}).") from error
    finally:
        closing.cancel()


def _follow(client: Any, url: str) -> Any:
    """The open response at the end of all redirections, whose own bodies nobody needs."""
    import httpx

    request = client.build_request("GET", url)
    for _ in range(_MAX_REDIRECTIONS):
        response = client.send(request, stream=True)
        if response.is_success:
            return response
        if response.next_request is None:
            raise OSError(f"{response.status_code} {httpx.codes.get_reason_phrase(response.status_code)}")
        response.close()
        request = response.next_request
    raise OSError(f"more than {_MAX_REDIRECTIONS} redirections")


def _read_body(response: Any, end: float) -> BinaryIO:
    # A piece from the network unpacks to a thousandfold by gzip, and to any size by others or by gzip within gzip.
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise OSError("the server sends it in an encoding of its own")
    content = io.BytesIO()
    for piece in response.iter_bytes():
        content.write(piece)
        if content.tell() > MAX_FETCHED_BYTES:
            raise OSError(f"it has more than {MAX_FETCHED_BYTES:,} bytes: fetch it to a file by other means")
        if time.monotonic() >= end:
            raise TimeoutError
    content.seek(0)
    return content
