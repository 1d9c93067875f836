"""Sound files: the one place that reads them."""

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, BinaryIO

import torch

from .containers import ENDLESS, Sound, Source, View, end_of_frames, find_sound, has_index, other_kind
from .resampling import StreamResampler, resample

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
COMPRESSED = ("FLAC", "OGG", "MP3")  # which show how much there is of them when they are decoded
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
# So many samples are no length: libsndfile says 2^63 - 1 of a FLAC file that was written into a pipe, and an MP3 file
# without an index is said to have as many bytes as make more.
UNKNOWN_LENGTH = 2**40
MAX_MISSING_SECONDS, MAX_MISSING_SHARE = 0.1, 0.01  # of what is compressed; encoders round, and pad
IGNORE_LENGTH = "To take what is there, set ignore_length."


class AudioError(ValueError):
    """A sound file that is missing, broken or not decodable. The message holds its name and the decoder's words."""


def load_waveform(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    sampling_rate: int = 16000,
    name: str | None = None,
    ignore_length: bool = False,
) -> torch.Tensor:
    """Read a sound file into a mono waveform at one rate.

    WAV, FLAC, OGG and MP3, decoded by libsndfile (no ffmpeg, no torchcodec); channels averaged; resampled as by
    `torchaudio.functional.resample` where the file has another rate.

    Args:
        source: Path of a file, its bytes, or a file that is open for reading bytes.
        sampling_rate: Of the result, in Hz.
        name: What to call the file in errors; `None` means the path.
        ignore_length: Whether a file that announces more sound than it holds, or less, is read as far as it goes. One
            that does not say how much it holds, as its header was never finished, is read so in any case.

    Returns:
        float32 tensor of shape (samples,), in [-1, 1] up to the ringing of the resampling filter.

    Raises:
        AudioError: The file is missing, empty, truncated or not decodable, announces less than it holds, has a rate
            that no sound has, holds samples that are NaN, infinite or beyond all measure, or is too long to be read
            at once (`read_blocks` reads it).
        ImportError: torchaudio is needed for resampling and cannot be loaded.
    """
    decoded = _decode(source, name, ignore_length)
    blocks, rates = zip(*((_average_channels(samples), rate) for samples, rate in decoded))
    return resample(_concatenate(blocks), rates[0], sampling_rate)


def read_blocks(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    sampling_rate: int = 16000,
    name: str | None = None,
    block_seconds: float = 10.0,
    max_seconds: float = math.inf,
    ignore_length: bool = False,
) -> Iterator[torch.Tensor]:
    """What `load_waveform` gives, piece by piece, so that a file of any length fits into memory.

    Args:
        source: As for `load_waveform`.
        sampling_rate: Of the result, in Hz.
        name: What to call the file in errors; `None` means the path.
        block_seconds: How much is read at once, up to `MAX_AT_ONCE` numbers.
        max_seconds: Length of the longest file that is taken; a longer one is refused before it is decoded if its
            header says so, and otherwise when so much has been decoded.
        ignore_length: As for `load_waveform`.

    Yields:
        float32 tensors of shape (samples,), one behind the other.

    Raises:
        AudioError: As from `load_waveform`, but for the length, which `max_seconds` limits. That FLAC or MP3 is
            truncated shows at its end.
        ImportError: torchaudio is needed for resampling and cannot be loaded.
        ValueError: `block_seconds` is no length.
    """
    if not 0 < block_seconds < math.inf:
        raise ValueError(f"Expected block_seconds to be a number above 0, got {block_seconds}.")
    resampler = None
    for samples, file_rate in _decode(source, name, ignore_length, block_seconds, max_seconds):
        resampler = resampler or StreamResampler(file_rate, sampling_rate)
        yield resampler.push(_average_channels(samples))
    yield resampler.finish()


def read_samples(
    source: str | os.PathLike[str] | bytes | BinaryIO, name: str | None = None, ignore_length: bool = False
) -> tuple[torch.Tensor, int]:
    """Read a sound file as it is.

    Args:
        source: As for `load_waveform`.
        name: What to call the file in errors; `None` means the path.
        ignore_length: As for `load_waveform`.

    Returns:
        float32 tensor of shape (samples, channels), and the sampling rate in Hz.

    Raises:
        AudioError: As from `load_waveform`.
    """
    blocks, rates = zip(*_decode(source, name, ignore_length))
    return _concatenate(blocks), rates[0]


def read_seconds(
    source: str | os.PathLike[str] | bytes, name: str | None = None, ignore_length: bool = False
) -> float:
    """Length of a sound file in seconds, as its header says; a file that does not say it is decoded.

    Args:
        source: Path of a file, or its bytes.
        name: What to call the file in errors; `None` means the path.
        ignore_length: As for `load_waveform`.

    Raises:
        AudioError: No sound file, one with a header that none has, or that announces another length than is there. Of
            FLAC and MP3 the latter shows when they are decoded.
    """
    with _opened(source, name, ignore_length) as (file, _, _):
        is_known = not (ignore_length and file.format in COMPRESSED)
        declared, rate = _declared_length(file) if is_known else 0, file.samplerate
    if not declared:
        blocks = _decode(source, name, ignore_length, block_seconds=10.0)
        declared = sum(len(samples) for samples, _ in blocks)
    return declared / rate


@contextmanager
def _opened(
    source: str | os.PathLike | bytes | BinaryIO, name: str | None, ignore_length: bool
) -> Iterator[tuple[Any, BinaryIO, str]]:
    """The file as soundfile has it, what that reads from, and what to call it.

    Raises:
        AudioError: The file is no sound file, announces another length than is there, or what is read from it raises
            an error.
    """
    import soundfile

    name = name or _name_of(source)
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(_open(source, name))
            in_file = Source(stream)
            if (other := other_kind(in_file)) is not None:
                kind, remedy = other
                raise AudioError(f"{name}: cannot be decoded ({kind}). {remedy}")
            sound = find_sound(in_file)
            if sound is not None and sound.needs_view:
                stream = sound.view(in_file)
            file = stack.enter_context(_soundfile(stream))
            if file.format == "MP3":
                position = stream.tell()  # which is the decoder's
                if has_index(in_file):
                    stream.seek(position)
                else:
                    stream = View(stream, 0, end_of_frames(in_file), beyond=ENDLESS)
                    file = stack.enter_context(_soundfile(stream))
            _check_header(file, name)
            if not ignore_length:
                _check_length(file, sound, name)
            yield file, stream, name
    except AudioError:
        raise
    # A TypeError is soundfile's word for an open file whose name ends in `.raw`.
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as error:
        # Without the name or the object that was opened.
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        reason = reason or "not enough memory"  # a MemoryError may say nothing
        raise AudioError(f"{name}: cannot be decoded ({reason}). Readable are WAV, FLAC, OGG and MP3.") from error


def _soundfile(stream: BinaryIO):
    """The stream, from its beginning, as soundfile has it, which leaves it open.

    A file of the system's by its descriptor: libsndfile takes a name such as `clip.gsm` for a format whatever the file
    holds, and soundfile refuses names that are not UTF-8.
    """
    import soundfile

    stream.seek(0)
    is_systems = isinstance(stream, io.FileIO) and os.name == "posix"
    return soundfile.SoundFile(stream.fileno() if is_systems else stream, closefd=False)


def _decode(
    source: str | os.PathLike | bytes | BinaryIO,
    name: str | None,
    ignore_length: bool,
    block_seconds: float | None = None,
    max_seconds: float = math.inf,
) -> Iterator[tuple[torch.Tensor, int]]:
    """Pieces of (samples, channels), each with the rate; without a length those of a file that is to be kept whole."""
    num_samples = 0
    with _opened(source, name, ignore_length) as (file, stream, name):
        rate, longest = file.samplerate, MAX_AT_ONCE // file.channels
        most = max_seconds * rate
        if block_seconds is None:
            most = min(MAX_WHOLE // file.channels, MAX_WHOLE_SECONDS * rate)
        else:
            longest = min(longest, max(1, round(block_seconds * rate)))
        if file.format == "MP3" and (ignore_length or not _declared_length(file)):
            longest = min(longest, rate // 4)  # of a block that cannot be decoded to its end, nothing is known
        # soundfile seeks to where it is after each block, which breaks an MP3 decoder's memory of the last frames.
        file.seekable = lambda: False
        while True:
            if max(num_samples, 0 if ignore_length else _declared_length(file)) > most:
                if block_seconds is not None:
                    raise AudioError(f"{name}: longer than the {max_seconds / 60:.4g} minutes that are taken.")
                hours = most / rate / 3600
                raise AudioError(f"{name}: too long to be read as a whole, more than {hours:.1f} hours.")
            wanted = min(longest, file.frames - num_samples)
            samples = _read(file, wanted, num_samples, name, ignore_length)
            num_samples += len(samples)
            if len(samples):
                if not file.subtype.startswith("PCM"):  # integers are within the scale
                    _check_samples(samples, name)
                yield samples, rate
            if len(samples) < wanted or num_samples == file.frames:
                break
        _check_end(file, stream, num_samples, name, ignore_length)


def _read(file, wanted: int, num_before: int, name: str, ignore_length: bool) -> torch.Tensor:
    """The next samples (samples, channels), fewer than are wanted where the file ends.

    Raises:
        AudioError: They cannot be decoded, unless it is known that the file may end anywhere.
    """
    import soundfile

    samples = torch.empty(wanted, file.channels)
    try:
        count = len(file.read(out=samples.numpy()))
        # A part would keep, and take to other processes, all of the memory.
        return samples if count == wanted else samples[:count].clone()
    except soundfile.SoundFileError as error:
        count = file.tell() - num_before  # what was decoded before it
        if num_before + count == 0:
            raise
        if ignore_length:
            return samples[:count].clone()
        seconds, reason = (num_before + count) / file.samplerate, getattr(error, "error_string", error)
        raise AudioError(
            f"{name}: cannot be decoded beyond {seconds:.2f} s ({reason}). Is it truncated? {IGNORE_LENGTH}"
        ) from error


def _name_of(source: str | os.PathLike | bytes | BinaryIO) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return "<bytes>" if isinstance(source, bytes) else str(getattr(source, "name", None) or "<file>")


@contextmanager
def _open(source: str | os.PathLike | bytes | BinaryIO, name: str) -> Iterator[BinaryIO]:
    """A source from its beginning, in which one can go back and forth; closed at the end if it was opened here.

    Raises:
        AudioError: No source, or a path of something else than a file.
    """
    if isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):  # a pipe would wait for somebody to write into it
            found = "not a file, but a folder, a pipe or a device" if os.path.exists(source) else "no such file"
            raise AudioError(f"{name}: {found}.")
        descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb", buffering=0) as file:
            yield file
        return
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise AudioError(f"Expected a path, bytes or a file open for reading bytes, got {type(source).__name__}.")
    # libsndfile counts from the beginning of a file, and goes back and forth in it.
    elif hasattr(source, "seekable") and source.seekable() and source.tell() == 0:
        yield source
    else:
        yield io.BytesIO(source.read())


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


def _check_length(file, sound: Sound | None, name: str) -> None:
    """Refuse a file of which another length is announced than is there, as far as that shows before it is decoded.

    Raises:
        AudioError: It is more than a slip of some bytes.
    """
    # libsndfile takes the last whole page of an OGG file for its end, and says so in its log only.
    if re.search(r"^Ogg ?: (Last page lacks|Junk after)", file.extra_info, re.MULTILINE):
        raise AudioError(f"{name}: truncated, the file ends before the audio that it declares. {IGNORE_LENGTH}")
    seconds = file.frames / file.samplerate
    if sound is not None and sound.is_wrong and seconds > 0:
        announced = seconds * sound.announced / sound.taken
        words = "truncated, " if announced > seconds else ""
        raise AudioError(
            f"{name}: {words}its header announces {announced:.2f} s of sound, and {seconds:.2f} s are there. "
            f"{IGNORE_LENGTH}"
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


def _check_end(file, stream: BinaryIO, num_samples: int, name: str, ignore_length: bool) -> None:
    """Refuse a file that gave less than it declares or holds. Decoders stop early without a word.

    Raises:
        AudioError: No samples, or not all that there should be.
    """
    if num_samples == 0:
        raise AudioError(f"{name}: holds no samples.")
    missing = _declared_length(file) - num_samples
    allowed = min(MAX_MISSING_SECONDS * file.samplerate, MAX_MISSING_SHARE * file.frames)
    if missing > allowed and not ignore_length:
        raise AudioError(f"{name}: truncated, the file ends before the audio that it declares. {IGNORE_LENGTH}")
    # The last frame may hold no more than padding.
    if file.format == "MP3" and _bytes_of_frames_behind(stream) > MAX_MP3_FRAME:
        raise AudioError(
            f"{name}: only a part can be decoded, which a header says is all (several MP3 files in one, or one that "
            "was cut). Convert it: ffmpeg -i clip.mp3 clip.wav"
        )


def _concatenate(pieces: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def to_waveform(samples: torch.Tensor, file_rate: int, sampling_rate: int) -> torch.Tensor:
    """What `read_samples` gives, its channels averaged, at another rate: a tensor of shape (samples,).

    Raises:
        ImportError: torchaudio is needed for resampling and cannot be loaded.
    """
    return resample(_average_channels(samples), file_rate, sampling_rate)


def _average_channels(samples: torch.Tensor) -> torch.Tensor:
    """(samples, channels) -> (samples,), as `mean` gives it, which is slow along so short an axis."""
    first, *others = samples.unbind(dim=1)
    return reduce(torch.add, others, first).div_(samples.shape[1]) if others else first


def _declared_length(file) -> int:
    """Samples that an open file says it has, 0 where it says nothing."""
    return file.frames if file.frames < UNKNOWN_LENGTH else 0


def _bytes_of_frames_behind(stream: BinaryIO) -> int:
    """How much of an MP3 file follows where libsndfile stopped, which it does at the length that a header gives, if it
    goes on with one more frame.
    """
    position, start = stream.tell(), stream.read(2)
    goes_on = len(start) == 2 and start[0] == 0xFF and start[1] >= 0xE0
    return stream.seek(0, os.SEEK_END) - position if goes_on else 0
