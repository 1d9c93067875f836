"""Headers of sound files: the length that they announce, what is there, and how the one is made to fit the other.

libsndfile takes a header's word for a length that is too small, and corrects one that is too large without a word.
"""

import io
import math
import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

# Bytes by which a header may be wrong without a word: some programs count it as sound, or leave a few bytes behind.
MAX_SLIP = 64
# From here on 32 bits stand for a length that was not known in advance, unless it is there: SoX writes 0x7ffff000 into
# a pipe, ffmpeg 0xffffffff.
UNKNOWN_BYTES = 0x7FFF0000
MAX_PADDING = 2**20  # bytes of zeros behind the sound: recorders fill the units of their disks
MAX_HEADER = 2**24  # bytes before the sound, which may hold a picture
MAX_TAGS = 2**20  # bytes behind the frames of an MP3 file
MAX_CHUNKS = 1000  # before the sound, or behind it
ENDLESS = 2**44  # bytes that an MP3 file without an index is said to have, so that all of it is decoded
# By how they begin, files that people take for sound files, and what to do with them.
OTHER_KINDS = {
    rb"version https://git-lfs": (
        "a pointer file of git-lfs, not the sound",
        "Fetch the sounds: git lfs pull.",
    ),
    rb"\s*<(?i:!doctype|html)": ("a web page in place of the sound", "Fetch the file again."),
    rb"\x00\x05\x16\x07": ("what macOS keeps about a file, without its sound", "Delete it."),
    rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf": ("an archive", "Unpack it."),
    rb"....ftyp": ("MP4, M4A or MOV", "Convert it: ffmpeg -i clip.m4a clip.wav"),
    rb"\x1aE\xdf\xa3": ("WebM or Matroska", "Convert it: ffmpeg -i clip.webm clip.wav"),
    rb"0&\xb2u\x8ef\xcf\x11": ("WMA", "Convert it: ffmpeg -i clip.wma clip.wav"),
    rb"\xff[\xf0\xf1\xf8\xf9]|ADIF": ("AAC", "Convert it: ffmpeg -i clip.aac clip.wav"),
    rb"RIFF....AVI ": ("AVI", "Convert it: ffmpeg -i clip.avi clip.wav"),
    rb"#!AMR": ("AMR", "Convert it: ffmpeg -i clip.amr clip.wav"),
    rb"MAC ": ("Monkey's Audio", "Convert it: ffmpeg -i clip.ape clip.wav"),
    rb"wvpk": ("WavPack", "Convert it: ffmpeg -i clip.wv clip.wav"),
}
_OTHER_KINDS = re.compile(b"|".join(b"(%s)" % start for start in OTHER_KINDS), re.DOTALL)


def read_at(stream: BinaryIO, position: int, count: int) -> bytes:
    stream.seek(position)
    return stream.read(count)


class Source:
    """A file, with its first kilobytes at hand: to ask the system for each chunk takes as long as to decode a clip."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.num_bytes = stream.seek(0, os.SEEK_END)
        self.head = read_at(stream, 0, 4096)

    def read_at(self, position: int, count: int) -> bytes:
        if position + count <= len(self.head):
            return self.head[position : position + count]
        return read_at(self.stream, position, count)


def other_kind(source: Source) -> tuple[str, str] | None:
    """What a file is that is no sound file, and what to do with it; `None` of one that may be."""
    kind = _OTHER_KINDS.match(source.head)
    return kind and list(OTHER_KINDS.values())[kind.lastindex - 1]


@dataclass(frozen=True)
class _Layout:
    """How a container writes its chunks: a name, a size, and so many bytes."""

    order: str  # of the bytes of a size, as `struct` writes it
    name_bytes: int
    size_code: str
    first: int  # where the chunks begin
    sound: bytes  # name of the one with the sound
    lead: int = 0  # bytes in it before the sound
    align: int = 2
    counts_itself: bool = False  # name and size are part of the size

    @property
    def head_bytes(self) -> int:
        return self.name_bytes + struct.calcsize(self.order + self.size_code)

    def read_head(self, source: Source, position: int) -> tuple[bytes, int] | None:
        """Name of the chunk that begins there, and bytes behind its head as it says."""
        head = source.read_at(position, self.head_bytes)
        if len(head) < self.head_bytes:
            return None
        (length,) = struct.unpack(self.order + self.size_code, head[self.name_bytes :])
        return head[: self.name_bytes], length - self.counts_itself * self.head_bytes


_GUID = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_LAYOUTS = {
    **{b"RIFF": _Layout("<", 4, "I", 12, b"data"), b"RF64": _Layout("<", 4, "I", 12, b"data")},  # WAV
    b"RIFX": _Layout(">", 4, "I", 12, b"data"),
    b"FORM": _Layout(">", 4, "I", 12, b"SSND", lead=8),  # AIFF
    b"riff": _Layout("<", 16, "Q", 40, b"data" + _GUID, align=8, counts_itself=True),  # W64
    b"caff": _Layout(">", 4, "Q", 8, b"data", lead=4, align=1),  # CAF
}


@dataclass
class Sound:
    """Where the sound of a file is.

    The header has the size of `written` bytes, by which it announces `announced` bytes, or `None` where it says
    nothing. `held` bytes are there, of which `taken` are sound.
    """

    start: int
    written: int
    size_place: int | None  # of the size in the header; `None` of one that libsndfile does not read
    size_code: str  # for `struct`
    size_more: int = 0  # what the size counts beside the sound
    is_read_to_end: bool = False  # libsndfile takes all that there is, whatever the header says
    announced: int | None = None
    held: int = 0
    taken: int = 0

    @property
    def is_wrong(self) -> bool:
        """Whether another length is announced than there is."""
        return self.announced is not None and abs(self.announced - self.taken) > MAX_SLIP

    @property
    def needs_view(self) -> bool:
        """Whether libsndfile takes something else than is to be taken."""
        return self.taken != (self.held if self.is_read_to_end else self.written)

    def view(self, source: Source) -> "View":
        """The file with a header that announces what is taken, which is its end."""
        header, size = source.read_at(0, self.start), self.taken + self.size_more
        largest = 2 ** (8 * struct.calcsize(self.size_code)) - 1
        if size > largest and header.startswith(b"RIFF"):
            # RF64 has a chunk with lengths of 64 bits: of all, of the sound, and of the samples.
            lengths = struct.pack("<QQQI", self.start + self.taken, self.taken, 0, 0)
            head = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", len(lengths)) + lengths
            header = head + header[12:-4] + b"\xff\xff\xff\xff"
        elif self.size_place is not None:  # the largest of 32 bits means all that is there, where they do not suffice
            field = struct.pack(self.size_code, min(size, largest))
            header = header[: self.size_place] + field + header[self.size_place + len(field) :]
        return View(source.stream, self.start, self.taken, header)


def find_sound(source: Source) -> Sound | None:
    """The sound of a file whose header says how many bytes of it there are; `None` of all others."""
    num_bytes, magic = source.num_bytes, source.head[:4]
    layout = _LAYOUTS.get(magic)
    if layout is not None:
        sound = _find_sound_chunk(source, layout)
    elif magic in (b".snd", b"dns."):  # AU
        sound = _find_au_sound(source, ">" if magic == b".snd" else "<")
    elif magic == b"NIST":
        sound = _find_nist_sound(source)
    else:
        return None
    if sound is None or not 0 < sound.start <= min(num_bytes, MAX_HEADER):
        return None
    sound.held = sound.taken = num_bytes - sound.start
    largest = 2 ** (8 * struct.calcsize(sound.size_code)) - 1
    is_short, written = largest < 2**32, sound.written
    if written <= 0:  # never finished, or empty
        sound.taken = 0 if _holds_no_sound(source, layout, sound.start, num_bytes) else sound.held
        return sound
    if written + sound.size_more == largest or (is_short and written >= UNKNOWN_BYTES and written > sound.held):
        return sound
    # Programs that have 32 bits for the length of a longer recording leave off the higher ones.
    wrapped = max(0, sound.held - written) // 2**32 * 2**32 if is_short else 0
    sound.announced = written + wrapped
    if _holds_no_sound(source, layout, sound.start + sound.announced, num_bytes):
        sound.taken = min(sound.announced, sound.held)
    return sound


def _find_sound_chunk(source: Source, layout: _Layout) -> Sound | None:
    position, long_size = layout.first, None
    for _ in range(MAX_CHUNKS):
        if (head := layout.read_head(source, position)) is None:
            return None
        name, length = head
        start, size_code = position + layout.head_bytes, layout.order + layout.size_code
        if name == layout.sound:
            size_place, announced = position + layout.name_bytes, length - layout.lead
            if long_size is not None and length == 2**32 - 1:  # RF64
                size_place, size_code = long_size, "<Q"
                (announced,) = struct.unpack(size_code, source.read_at(size_place, 8))
            more = layout.lead + layout.counts_itself * layout.head_bytes
            # libsndfile does so with W64.
            return Sound(start + layout.lead, announced, size_place, size_code, more, layout.counts_itself)
        if length < 0:
            return None
        if name == b"ds64" and length >= 16:
            long_size = start + 8
        position = start + length + -length % layout.align
    return None


def _find_au_sound(source: Source, order: str) -> Sound | None:
    head = source.read_at(4, 8)
    if len(head) < 8:
        return None
    start, announced = struct.unpack(f"{order}II", head)
    return Sound(start, announced, 8, f"{order}I")


def _find_nist_sound(source: Source) -> Sound | None:
    """Of a header in text, such as TIMIT has."""
    head = source.read_at(0, 1024)
    start = re.match(rb"NIST_1A\s+(\d{1,7})\s", head)
    counts = [
        re.search(rb"^%s -i (\d{1,12})\s" % name, head, re.MULTILINE)
        for name in (b"sample_count", b"channel_count", b"sample_n_bytes")
    ]
    if start is None or None in counts or re.search(rb"^sample_coding .*,", head, re.MULTILINE):  # compressed
        return None
    announced = math.prod(int(count[1]) for count in counts)
    return Sound(int(start[1]), announced, None, "<Q", is_read_to_end=True)


def _holds_no_sound(source: Source, layout: _Layout | None, start: int, end: int) -> bool:
    """Whether behind the sound there is nothing but other chunks, tags and padding."""
    for _ in range(MAX_CHUNKS):
        head = source.read_at(start, MAX_SLIP + 1)
        if len(head) <= MAX_SLIP or re.match(rb"ID3|TAG|APETAGEX|LYRICSBEGIN", head):
            return True
        if end - start <= MAX_PADDING and not any(head) and not any(source.read_at(start, end - start)):
            return True
        if layout is None:
            return False
        for position in (start, start + -start % layout.align):  # some programs do not pad
            name, length = layout.read_head(source, position) or (b"", 0)
            following = position + layout.head_bytes + length
            if re.fullmatch(rb"[ -~]{4}", name[:4]) and length >= 0 and following <= end:
                start = following
                break
        else:
            return False
    return False


class View(io.RawIOBase):
    """A part of a file as a file of its own, for soundfile.

    Args:
        stream: The file.
        start: Where the part begins.
        length: Of the part, in bytes.
        header: What comes before it.
        beyond: Bytes that the file is said to have more.
    """

    def __init__(self, stream: BinaryIO, start: int, length: int, header: bytes = b"", beyond: int = 0):
        self.stream, self.start, self.header = stream, start, header
        self.end = len(header) + length
        self.num_bytes = self.end + beyond
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.num_bytes}
        self.position = max(0, origin[whence] + offset)
        return self.position

    def readinto(self, buffer) -> int:
        count = len(buffer)
        if self.position < len(self.header):
            content = self.header[self.position : self.position + count]
        elif self.position < self.end:
            place = self.start + self.position - len(self.header)
            content = read_at(self.stream, place, min(count, self.end - self.position))
        else:
            # At the end that it is said to have, mpg123 looks for a tag of 128 bytes.
            rest = self.num_bytes - self.position
            content = bytes(min(count, max(0, rest))) if rest <= 128 else b""
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def has_index(source: Source) -> bool:
    """Whether an MP3 file says how long it is: in its first frame, behind tags."""
    position = 0
    while (tag := source.read_at(position, 10))[:3] == b"ID3" and len(tag) == 10:
        length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(tag[6:])))
        position += 10 + length + (10 if tag[5] & 0x10 else 0)
    # The lowest bit says that the number of frames is there.
    words = rb"VBRI|(Xing|Info)\0\0\0[\1\3\5\7\t\v\r\x0f]"
    return re.search(words, source.read_at(position, 2048)) is not None


def end_of_frames(source: Source) -> int:
    """Where the tags behind the frames of an MP3 file begin, or else its end: mpg123 takes them for broken frames."""
    start = max(0, source.num_bytes - MAX_TAGS)
    tail = source.read_at(start, MAX_TAGS)
    if tail[-128:].startswith(b"TAG"):
        tail = tail[:-128]
    tag = re.search(rb"APETAGEX|LYRICSBEGIN", tail)
    return start + (tag.start() if tag else len(tail))
