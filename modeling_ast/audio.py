"""Sound files: the one place that reads them."""

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import Any, BinaryIO

import torch

# Of the containers that libsndfile knows, those that recordings come in. Some of the others lie and are not found out:
# two kilobytes of a MIDI sample dump give 2^31 samples.
FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "NIST")
# What their files are called, in lower case.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".wave", ".bwf", ".rf64", ".w64", ".oga", ".opus"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist"),
)
# Files with sounds that libsndfile does not decode, and what they are.
CONVERTIBLE_SUFFIXES = {
    **dict.fromkeys((".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp"), "MPEG-4"),
    **dict.fromkeys((".webm", ".mkv", ".mka"), "WebM or Matroska"),
    **dict.fromkeys((".wma", ".wmv", ".asf"), "Windows Media"),
    **{".aac": "AAC", ".amr": "AMR", ".awb": "AMR", ".ac3": "AC-3", ".ape": "Monkey's Audio", ".wv": "WavPack"},
    **{".spx": "Speex", ".avi": "AVI"},
}
# Rates in Hz that recordings of sound have: whales are archived at 250 Hz, porpoises at 1 MHz. What lies outside is a
# broken header, and would cost memory: 1 Hz becomes 16,000 times as long.
FILE_RATES = range(100, 1_000_001)
# Numbers (samples of all channels) that are decoded at once, 64 MiB of float32: a header that promises more than the
# file holds costs no more.
MAX_AT_ONCE = 2**24
# What is read whole at most, in numbers (4 GiB of float32) and in seconds (a day): a compressed file of some kilobytes
# can hold days of silence. `read_blocks` knows no limit of its own.
MAX_WHOLE = 2**30
MAX_WHOLE_SECONDS = 24 * 3600
# Larger samples are no sound: full scale is 1, and 32-bit integers that somebody wrote as floats reach 2e9. Features
# square what they get, and float32 ends at 3e38.
MAX_AMPLITUDE = 1e10
MAX_MP3_FRAME = 1441  # bytes: 320 kbit/s at 32 kHz
UNKNOWN_LENGTH = 2**63 - 1  # what libsndfile says of a FLAC file that was written into a pipe
# So many numbers torchaudio's filter may have: it has some 70,000 for 44.1 kHz to 16 kHz, but hundreds of millions
# for 22,051 Hz, which has no divisor in common with 16 kHz.
MAX_FILTER_SIZE = 2**22
FILTERS_AT_ONCE = 16  # in one matrix product: more are longer together, fewer are more products


class AudioError(ValueError):
    """A sound file that is missing, broken or not decodable. The message holds its name and the decoder's words."""


def load_waveform(
    source: str | os.PathLike | bytes | BinaryIO, sampling_rate: int = 16000, name: str | None = None
) -> torch.Tensor:
    """Read a sound file into a mono waveform at one rate.

    WAV, FLAC, OGG and MP3, decoded by libsndfile (no ffmpeg, no torchcodec); channels averaged; resampled as by
    `torchaudio.functional.resample` where the file has another rate.

    Args:
        source: Path of a file, its bytes, or a file that is open for reading bytes.
        sampling_rate: Of the result, in Hz.
        name: What to call the file in errors; `None` means the path.

    Returns:
        float32 tensor of shape (samples,), in [-1, 1] up to the ringing of the resampling filter.

    Raises:
        AudioError: The file is missing, empty, truncated or not decodable, has a rate that no sound has, holds samples
            that are NaN, infinite or beyond all measure, or is too long to be read at once (`read_blocks` reads it).
        ImportError: torchaudio is needed for resampling and cannot be loaded.
    """
    blocks, rates = zip(*((_average_channels(samples), rate) for samples, rate in _decode(source, name)))
    return _resample(_concatenate(blocks), rates[0], sampling_rate)


def read_blocks(
    source: str | os.PathLike | bytes | BinaryIO,
    sampling_rate: int = 16000,
    name: str | None = None,
    block_seconds: float = 10.0,
    max_seconds: float = math.inf,
) -> Iterator[torch.Tensor]:
    """What `load_waveform` gives, piece by piece, so that a file of any length fits into memory.

    Args:
        source: As for `load_waveform`.
        sampling_rate: Of the result, in Hz.
        name: What to call the file in errors; `None` means the path.
        block_seconds: How much is read at once, up to `MAX_AT_ONCE` numbers.
        max_seconds: Length of the longest file that is taken; a longer one is refused before it is decoded if its
            header says so, and otherwise when so much has been decoded.

    Yields:
        float32 tensors of shape (samples,), one behind the other.

    Raises:
        AudioError: As from `load_waveform`, but for the length, which `max_seconds` limits. That a file is truncated
            shows at its end.
        ImportError: torchaudio is needed for resampling and cannot be loaded.
        ValueError: `block_seconds` is no length.
    """
    if not 0 < block_seconds < math.inf:
        raise ValueError(f"Expected block_seconds to be a number above 0, got {block_seconds}.")
    resampler = None
    for samples, file_rate in _decode(source, name, block_seconds, max_seconds):
        resampler = resampler or StreamResampler(file_rate, sampling_rate)
        yield resampler.push(_average_channels(samples))
    yield resampler.finish()


def read_samples(source: str | os.PathLike | bytes | BinaryIO, name: str | None = None) -> tuple[torch.Tensor, int]:
    """Read a sound file as it is.

    Args:
        source: As for `load_waveform`.
        name: What to call the file in errors; `None` means the path.

    Returns:
        float32 tensor of shape (samples, channels), and the sampling rate in Hz.

    Raises:
        AudioError: As from `load_waveform`.
    """
    blocks, rates = zip(*_decode(source, name))
    return _concatenate(blocks), rates[0]


def read_seconds(source: str | os.PathLike | bytes, name: str | None = None) -> float:
    """Length of a sound file in seconds, as its header says; a file that does not say it is decoded.

    Args:
        source: Path of a file, or its bytes.
        name: What to call the file in errors; `None` means the path.

    Raises:
        AudioError: No sound file, or one with a header that none has.
    """
    with _opened(source, name) as (file, _, _):
        declared, rate = _declared_length(file), file.samplerate
    if not declared:
        declared = sum(len(samples) for samples, _ in _decode(source, name, block_seconds=10.0))
    return declared / rate


@contextmanager
def _opened(source: str | os.PathLike | bytes | BinaryIO, name: str | None) -> Iterator[tuple[Any, Any, str]]:
    """The file as soundfile has it, what that opened, and what to call it.

    Raises:
        AudioError: The file is no sound file, or what is read from it raises an error.
    """
    import soundfile

    name = name or _name_of(source)
    try:
        opened = _openable(source, name)
        with soundfile.SoundFile(opened) as file:
            _check_header(file, name)
            yield file, opened, name
    except AudioError:
        raise
    # A TypeError is soundfile's word for an open file whose name ends in `.raw`.
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as error:
        # Without the name or the object that was opened.
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        reason = reason or "not enough memory"  # a MemoryError may say nothing
        raise AudioError(f"{name}: cannot be decoded ({reason}). Readable are WAV, FLAC, OGG and MP3.") from error


def _decode(
    source: str | os.PathLike | bytes | BinaryIO,
    name: str | None,
    block_seconds: float | None = None,
    max_seconds: float = math.inf,
) -> Iterator[tuple[torch.Tensor, int]]:
    """Pieces of (samples, channels), each with the rate; without a length those of a file that is to be kept whole."""
    num_samples = 0
    with _opened(source, name) as (file, opened, name):
        rate, longest = file.samplerate, MAX_AT_ONCE // file.channels
        most = max_seconds * rate
        if block_seconds is None:
            most = min(MAX_WHOLE // file.channels, MAX_WHOLE_SECONDS * rate)
        else:
            longest = min(longest, max(1, round(block_seconds * rate)))
        # soundfile seeks to where it is after each block, which breaks an MP3 decoder's memory of the last frames.
        file.seekable = lambda: False
        while True:
            if max(num_samples, _declared_length(file)) > most:
                if block_seconds is not None:
                    raise AudioError(f"{name}: longer than the {max_seconds / 60:.4g} minutes that are taken.")
                hours = most / rate / 3600
                raise AudioError(f"{name}: too long to be read as a whole, more than {hours:.1f} hours.")
            wanted = min(longest, file.frames - num_samples)
            samples = torch.from_numpy(file.read(wanted, dtype="float32", always_2d=True))
            num_samples += len(samples)
            if len(samples):
                if not file.subtype.startswith("PCM"):  # integers are within the scale
                    _check_samples(samples, name)
                yield samples, rate
            if len(samples) < wanted or num_samples == file.frames:
                break
        _check_end(file, opened, num_samples, name)


def _name_of(source: str | os.PathLike | bytes | BinaryIO) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return "<bytes>" if isinstance(source, bytes) else str(getattr(source, "name", None) or "<file>")


def _openable(source: str | os.PathLike | bytes | BinaryIO, name: str) -> str | int | BinaryIO:
    """What soundfile can open, and closes.

    Raises:
        AudioError: No source, or a path of something else than a file.
    """
    if isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):  # a pipe would wait for somebody to write into it
            found = "not a file, but a folder, a pipe or a device" if os.path.exists(source) else "no such file"
            raise AudioError(f"{name}: {found}.")
        # By its descriptor: libsndfile takes a name such as `clip.gsm` for a format whatever the file holds, and
        # soundfile refuses names that are not UTF-8.
        return os.open(source, os.O_RDONLY) if os.name == "posix" else os.fspath(source)
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise AudioError(f"Expected a path, bytes or a file open for reading bytes, got {type(source).__name__}.")
    # libsndfile counts from the beginning of a file, and goes back and forth in it.
    if hasattr(source, "seekable") and source.seekable() and source.tell() == 0:
        return source
    return io.BytesIO(source.read())


def _check_header(file, name: str) -> None:
    """Refuse what no recording comes in.

    Raises:
        AudioError: Another container or sampling rate.
    """
    if file.format not in FORMATS:
        raise AudioError(f"{name}: cannot be decoded ({file.format_info}). Readable are WAV, FLAC, OGG and MP3.")
    if file.samplerate not in FILE_RATES:
        raise AudioError(
            f"{name}: expected a sampling rate from {FILE_RATES[0]} to {FILE_RATES[-1]} Hz, got {file.samplerate} Hz."
        )


def _check_samples(samples: torch.Tensor, name: str) -> None:
    """Refuse what is no sound.

    Raises:
        AudioError: Samples that are NaN, infinite or beyond all measure.
    """
    samples = samples.flatten()
    # The fastest pass there is: where the sum of squares is no more, no square is, and neither is NaN or infinite.
    if samples.dot(samples).item() <= MAX_AMPLITUDE**2 or samples.abs().max().item() <= MAX_AMPLITUDE:
        return
    raise AudioError(f"{name}: expected samples in [-1, 1], got NaN, infinite or far larger ones.")


def _check_end(file, opened: str | int | BinaryIO, num_samples: int, name: str) -> None:
    """Refuse a file that gave less than it declares or holds. Decoders stop early without a word.

    Raises:
        AudioError: No samples, or not all that there should be.
    """
    if num_samples == 0:
        raise AudioError(f"{name}: holds no samples.")
    # libsndfile takes the last whole page of an OGG file for its end, and says so in its log only.
    is_cut = re.search(r"^Ogg ?: (Last page lacks|Junk after)", file.extra_info, re.MULTILINE)
    if is_cut or _missing_share(file, num_samples) > 0.01:
        raise AudioError(f"{name}: truncated, the file ends before the audio that it declares.")
    # The last frame may hold no more than padding.
    if file.format == "MP3" and _bytes_of_frames_behind(opened) > MAX_MP3_FRAME:
        raise AudioError(
            f"{name}: only a part can be decoded, since no header says how long it is (an MP3 of variable bit rate, "
            "or several in one). Convert it, for example to FLAC."
        )


def _concatenate(pieces: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def to_waveform(samples: torch.Tensor, file_rate: int, sampling_rate: int) -> torch.Tensor:
    """What `read_samples` gives, its channels averaged, at another rate: a tensor of shape (samples,).

    Raises:
        ImportError: torchaudio is needed for resampling and cannot be loaded.
    """
    return _resample(_average_channels(samples), file_rate, sampling_rate)


def _average_channels(samples: torch.Tensor) -> torch.Tensor:
    """(samples, channels) -> (samples,), as `mean` gives it, which is slow along so short an axis."""
    first, *others = samples.unbind(dim=1)
    return reduce(torch.add, others, first).div_(samples.shape[1]) if others else first


class StreamResampler:
    """A mono waveform that arrives in pieces, at another rate: together what resampling it as a whole gives.

    Args:
        source_rate: Of what arrives, in Hz.
        target_rate: Of what comes out, in Hz.
    """

    def __init__(self, source_rate: int, target_rate: int):
        divisor = math.gcd(source_rate, target_rate)
        # `source` samples become `target` samples, which depend on `reach` more on either side.
        self.source, self.target = source_rate // divisor, target_rate // divisor
        # Source: torchaudio.functional.resample, lowpass_filter_width 6 and rolloff 0.99.
        self.reach = math.ceil(6 * self.source / (0.99 * min(self.source, self.target)))
        self.context = math.ceil(self.reach / self.source)  # in units of `source` samples
        self.kept = torch.zeros(0)  # what later output depends on
        self.num_before = 0  # units of it that have been put out

    def push(self, waveform: torch.Tensor) -> torch.Tensor:
        """The samples that the piece completes; perhaps none.

        Args:
            waveform: Of shape (samples,).
        """
        if self.source == self.target:
            return waveform
        self.kept = torch.cat((self.kept, waveform))
        num_units = (len(self.kept) - self.reach) // self.source
        if num_units <= self.num_before:
            return waveform.new_zeros(0)
        output = self._resample()[self.num_before * self.target : num_units * self.target]
        first = max(0, num_units - self.context)
        self.kept, self.num_before = self.kept[first * self.source :].clone(), num_units - first
        return output

    def finish(self) -> torch.Tensor:
        """The samples that are still out when nothing more arrives."""
        output = self._resample()[self.num_before * self.target :] if len(self.kept) else self.kept
        self.kept, self.num_before = torch.zeros(0), 0
        return output

    def _resample(self) -> torch.Tensor:
        return _resample(self.kept, self.source, self.target)


def _resample(waveform: torch.Tensor, source_rate: int, target_rate: int) -> torch.Tensor:
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    if source * target > MAX_FILTER_SIZE:
        return _resample_any(waveform, source, target)
    resampler = _torchaudio_resampler(source, target)
    if target == 1:
        return resampler(waveform)
    # torchaudio multiplies all of `source` samples by each of the `target` filters, which are zero but for a few.
    padded = torch.nn.functional.pad(waveform, (resampler.width, resampler.width + source))
    num_units = len(waveform) // source + 1
    outputs = []
    for first, weights in _filter_bands(source, target):
        windows = padded[first:].unfold(0, len(weights), source)[:num_units]  # (units, samples)
        outputs.append(windows @ weights)  # (units, filters)
    return torch.cat(outputs, dim=1).flatten()[: -(-len(waveform) * target // source)]


@lru_cache(maxsize=8)
def _torchaudio_resampler(source: int, target: int) -> torch.nn.Module:
    """torchaudio's resampling, with its filters made once and not for each clip."""
    require_torchaudio()
    from torchaudio.transforms import Resample

    with torch.device("cpu"), torch.inference_mode(False):  # whatever the mode of the first call
        return Resample(source, target, dtype=torch.float32)


@lru_cache(maxsize=8)
def _filter_bands(source: int, target: int) -> list[tuple[int, torch.Tensor]]:
    """The filters, some neighbours at a time, where they are not zero.

    Returns:
        The first sample that some filters reach, and their weights (samples, filters).
    """
    bands = []
    with torch.inference_mode(False):
        for filters in _torchaudio_resampler(source, target).kernel.squeeze(1).split(FILTERS_AT_ONCE):
            reached = (filters.abs() > 1e-9).any(dim=0).nonzero()  # what is less changes no float32 sum
            first, last = reached[0].item(), reached[-1].item()
            bands.append((first, filters[:, first : last + 1].t().contiguous()))
    return bands


def _resample_any(waveform: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """What torchaudio gives (`sinc_interp_hann`), with the filter of each sample made where it is needed.

    Args:
        waveform: Of shape (samples,).
        source: Rate of it, over the greatest common divisor of the rates.
        target: Rate of the result, likewise.
    """
    cutoff = 0.99 * min(source, target)
    width = math.ceil(6 * source / cutoff)  # samples that the filter reaches to either side
    offsets = torch.arange(-width, width + 1)
    windows = torch.nn.functional.pad(waveform, (width, width)).unfold(0, len(offsets), 1)
    outputs = []
    for numbers in torch.arange(-(-len(waveform) * target // source)).split(max(1, MAX_FILTER_SIZE // len(offsets))):
        nearest, remainder = numbers * source // target, numbers * source % target
        time = (offsets - remainder.double().unsqueeze(1) / target) / source * cutoff  # (outputs, offsets)
        weights = torch.sinc(time) * (time.clamp(-6, 6) * math.pi / 12).cos().square() * cutoff / source
        outputs.append((windows[nearest] * weights.float()).sum(dim=1))
    return torch.cat(outputs)


def _declared_length(file) -> int:
    """Samples that an open file says it has, 0 where it says nothing."""
    return 0 if file.frames == UNKNOWN_LENGTH else file.frames


def _missing_share(file, num_samples: int) -> float:
    """Share of the declared audio that is not in the file, in [0, 1)."""
    # libsndfile corrects the length of a WAV file that is cut off, and says so in its log only. Programs that do not
    # know the length in advance declare about 2 or 4 GiB (SoX 0x7ffff000, rounded down to a block).
    if match := re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE):
        declared_bytes, found_bytes = map(int, match.groups())
        return max(0.0, 1 - found_bytes / declared_bytes) if 0 < declared_bytes < 0x7FFF0000 else 0.0
    declared = _declared_length(file)
    return max(0.0, 1 - num_samples / declared) if declared else 0.0


def _bytes_of_frames_behind(opened: str | int | BinaryIO) -> int:
    """How much of an MP3 file follows where libsndfile stopped, if it goes on with one more frame.

    libsndfile stops at the length that a header gives and, where there is none, that the first frames let expect.
    """
    if isinstance(opened, str):
        return 0
    file = open(opened, "rb", closefd=False) if isinstance(opened, int) else opened
    position, start = file.tell(), file.read(2)
    goes_on = len(start) == 2 and start[0] == 0xFF and start[1] >= 0xE0
    return file.seek(0, os.SEEK_END) - position if goes_on else 0


def require_torchaudio() -> None:
    """Raise one understandable error where torchaudio is missing or does not match torch.

    PyPI's torchaudio declares no requirement, so pip installs pairs that cannot be loaded; and Transformers, which
    finds the package but not that it is broken, then fails in places that do not name it.

    Raises:
        ImportError: With what is installed and the command that mends it.
    """
    try:
        import torchaudio.functional  # noqa: F401
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        from importlib.metadata import PackageNotFoundError, version

        try:
            installed = f"torchaudio {version('torchaudio')} cannot be loaded with torch {torch.__version__}"
        except PackageNotFoundError:
            installed = f"torchaudio is not installed beside torch {torch.__version__}"
        raise ImportError(
            f"{installed}; install a pair that matches: pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'"
        ) from error
