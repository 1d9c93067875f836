"""Sound files: the one place that reads them."""

import math
import os
from collections.abc import Callable, Iterator
from functools import reduce
from typing import BinaryIO

import torch

from .opening import COMPRESSED, IGNORE_LENGTH, AudioError, declared_length, opened
from .resampling import StreamResampler, find_origin, resample, resampled_length

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
# Encodings, also within FLAC, in which libsndfile goes to any sample. In Vorbis it arrives elsewhere once in a hundred
# times; MP3 needs frames before it, of which mpg123 complains on stderr, and differs in the last bits.
SEEKABLE = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
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
MAX_MISSING_SECONDS, MAX_MISSING_SHARE = 0.1, 0.01  # of what is compressed; encoders round, and pad


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
    return _to_one(_decode(source, name, ignore_length), sampling_rate)


def _to_one(decoded: Iterator[tuple[torch.Tensor, int]], sampling_rate: int) -> torch.Tensor:
    blocks, rates = zip(*((_average_channels(samples), rate) for samples, rate in decoded))
    return resample(_concatenate(blocks), rates[0], sampling_rate)


def load_part(
    source: str | os.PathLike[str] | bytes,
    choose: Callable[[int], slice],
    sampling_rate: int = 16000,
    name: str | None = None,
    ignore_length: bool = False,
) -> torch.Tensor:
    """Read a part of what `load_waveform` gives, and decode no more than that takes.

    WAV, FLAC and their like are read from where the part begins, MP3 and OGG from their beginning to its end. A file
    that does not say how long it is, is decoded whole. So is one that fails on the way; but what is wrong with a file
    elsewhere is not noticed.

    Args:
        source: Path of a file, or its bytes.
        choose: Gets the number of samples of the whole waveform, and gives the first and the end of those that are
            wanted; always the same, as it may be asked twice.
        sampling_rate: Of the result, in Hz.
        name: What to call the file in errors; `None` means the path.
        ignore_length: As for `load_waveform`.

    Returns:
        float32 tensor of shape (samples,). Where the file has another rate, within 1e-7 of the part of the whole.

    Raises:
        AudioError, ImportError: As from `load_waveform`, as far as the file is read.
    """
    with opened(source, name, ignore_length) as (file, stream, opened_name):
        length = 0 if ignore_length and file.format in COMPRESSED else declared_length(file)
        wanted = choose(resampled_length(length, file.samplerate, sampling_rate))
        origin, offset = find_origin(wanted, file.samplerate, sampling_rate)
        is_all = origin.stop >= length and (origin.start == 0 or not file.subtype.startswith(SEEKABLE))
        if is_all:
            waveform = _to_one(_decode_opened(file, stream, opened_name, ignore_length), sampling_rate)
            return waveform[choose(len(waveform))]
        samples = _read_stretch(file, origin.start, min(origin.stop, length), opened_name)
        if samples is not None:
            return to_waveform(samples, file.samplerate, sampling_rate)[offset:][: wanted.stop - wanted.start]
    waveform = load_waveform(source, sampling_rate, name, ignore_length)
    return waveform[choose(len(waveform))]


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
    source: str | os.PathLike[str] | bytes | BinaryIO,
    name: str | None = None,
    ignore_length: bool = False,
    choose: Callable[[int, int], slice] | None = None,
) -> tuple[torch.Tensor, int]:
    """Read a sound file as it is, or a part of it, and decode no more than that takes.

    Args:
        source: As for `load_waveform`; a path or bytes, of a part.
        name: What to call the file in errors; `None` means the path.
        ignore_length: As for `load_waveform`.
        choose: As for `load_part`, of the file's own samples, and with its rate behind their number; `None` means all.

    Returns:
        float32 tensor of shape (samples, channels), and the sampling rate in Hz.

    Raises:
        AudioError: As from `load_waveform`.
    """
    if choose is not None:
        with opened(source, name, ignore_length) as (file, _, opened_name):
            length = 0 if ignore_length and file.format in COMPRESSED else declared_length(file)
            wanted = choose(length, file.samplerate)
            samples = _read_stretch(file, wanted.start, wanted.stop, opened_name) if 0 < wanted.stop < length else None
            if samples is not None:
                return samples, file.samplerate
    blocks, rates = zip(*_decode(source, name, ignore_length))
    samples = _concatenate(blocks)
    return samples if choose is None else samples[choose(len(samples), rates[0])], rates[0]


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
    with opened(source, name, ignore_length) as (file, _, _):
        is_known = not (ignore_length and file.format in COMPRESSED)
        declared, rate = declared_length(file) if is_known else 0, file.samplerate
    if not declared:
        blocks = _decode(source, name, ignore_length, block_seconds=10.0)
        declared = sum(len(samples) for samples, _ in blocks)
    return declared / rate


def _decode(
    source: str | os.PathLike | bytes | BinaryIO,
    name: str | None,
    ignore_length: bool,
    block_seconds: float | None = None,
    max_seconds: float = math.inf,
) -> Iterator[tuple[torch.Tensor, int]]:
    """Pieces of (samples, channels), each with the rate; without a length those of a file that is to be kept whole."""
    with opened(source, name, ignore_length) as (file, stream, name):
        yield from _decode_opened(file, stream, name, ignore_length, block_seconds, max_seconds)


def _decode_opened(
    file,
    stream: BinaryIO,
    name: str,
    ignore_length: bool,
    block_seconds: float | None = None,
    max_seconds: float = math.inf,
) -> Iterator[tuple[torch.Tensor, int]]:
    num_samples, rate, longest = 0, file.samplerate, MAX_AT_ONCE // file.channels
    most = max_seconds * rate
    if block_seconds is None:
        most = min(MAX_WHOLE // file.channels, MAX_WHOLE_SECONDS * rate)
    else:
        longest = min(longest, max(1, round(block_seconds * rate)))
    if file.format == "MP3" and (ignore_length or not declared_length(file)):
        longest = min(longest, rate // 4)  # of a block that cannot be decoded to its end, nothing is known
    # soundfile seeks to where it is after each block, which breaks an MP3 decoder's memory of the last frames.
    file.seekable = lambda: False
    while True:
        if max(num_samples, 0 if ignore_length else declared_length(file)) > most:
            if block_seconds is not None:
                raise AudioError(f"{name}: longer than the {max_seconds / 60:.4g} minutes that are taken.")
            hours = most / rate / 3600
            raise AudioError(f"{name}: too long to be read as a whole, more than {hours:.1f} hours.")
        wanted = min(longest, file.frames - num_samples)
        samples = _read(file, wanted, num_samples, name, ignore_length)
        num_samples += len(samples)
        if len(samples):
            _check_samples(file, samples, name)
            yield samples, rate
        if len(samples) < wanted or num_samples == file.frames:
            break
    _check_end(file, stream, num_samples, name, ignore_length)


def _read_stretch(file, first: int, end: int, name: str) -> torch.Tensor | None:
    """Samples from the first to the end, as (samples, channels); `None` where they are not to be had so.

    Raises:
        AudioError: They are no sound.
    """
    import soundfile

    file.seekable = lambda: False  # as above
    position, pieces = 0, []
    try:
        if file.subtype.startswith(SEEKABLE):
            position = file.seek(first)
        while position < end:
            piece = torch.from_numpy(file.read(min(end - position, 2**18), dtype="float32", always_2d=True))
            if len(piece) == 0:
                return None
            pieces.append(piece[max(0, first - position) :])
            position += len(piece)
    except soundfile.SoundFileError:
        return None
    samples = torch.cat(pieces)
    _check_samples(file, samples, name)
    return samples


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


def _check_samples(file, samples: torch.Tensor, name: str) -> None:
    """Refuse what is no sound.

    Raises:
        AudioError: Samples that are NaN, infinite or beyond all measure.
    """
    if file.subtype.startswith("PCM"):  # integers are within the scale
        return
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
    missing = declared_length(file) - num_samples
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


def _bytes_of_frames_behind(stream: BinaryIO) -> int:
    """How much of an MP3 file follows where libsndfile stopped, which it does at the length that a header gives, if it
    goes on with one more frame.
    """
    position, start = stream.tell(), stream.read(2)
    goes_on = len(start) == 2 and start[0] == 0xFF and start[1] >= 0xE0
    return stream.seek(0, os.SEEK_END) - position if goes_on else 0
