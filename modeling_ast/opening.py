"""Sound files as soundfile has them, opened after a look at what they are and at the length that they announce."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from .containers import ENDLESS, Sound, Source, View, end_of_frames, find_sound, has_index, other_kind

# Of the containers that libsndfile knows, those that recordings come in. Some of the others lie and are not found out:
# two kilobytes of a MIDI sample dump give 2^31 samples.
FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "NIST")
# Rates in Hz that recordings of sound have: whales are archived at 250 Hz, porpoises at 1 MHz. What lies outside is a
# broken header, and would cost memory: 1 Hz becomes 16,000 times as long.
FILE_RATES = range(100, 1_000_001)
COMPRESSED = ("FLAC", "OGG", "MP3")  # which show how much there is of them when they are decoded
# So many samples are no length: libsndfile says 2^63 - 1 of a FLAC file that was written into a pipe, and an MP3 file
# without an index is said to have as many bytes as make more.
UNKNOWN_LENGTH = 2**40
IGNORE_LENGTH = "To take what is there, set ignore_length."


class AudioError(ValueError):
    """A sound file that is missing, broken or not decodable. The message holds its name and the decoder's words."""


@contextmanager
def opened(
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
            if stream.seek(0, os.SEEK_END) == 0:
                raise AudioError(f"{name}: cannot be decoded (an empty file, of 0 bytes).")
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
    # libsndfile takes the last whole page of an OGG file for its end, and says in its log only that a part of another
    # follows. That the last page lacks the mark of the end is no fault: some programs that cut or record leave it out.
    if re.search(r"^Ogg ?: Junk after", file.extra_info, re.MULTILINE):
        raise AudioError(f"{name}: truncated, the file ends before the audio that it declares. {IGNORE_LENGTH}")
    seconds = file.frames / file.samplerate
    if sound is not None and sound.is_wrong and seconds > 0:
        announced = seconds * sound.announced / sound.taken
        words = "truncated, " if announced > seconds else ""
        raise AudioError(
            f"{name}: {words}its header announces {announced:.2f} s of sound, and {seconds:.2f} s are there. "
            f"{IGNORE_LENGTH}"
        )


def declared_length(file) -> int:
    """Samples that an open file says it has, 0 where it says nothing."""
    return file.frames if file.frames < UNKNOWN_LENGTH else 0
