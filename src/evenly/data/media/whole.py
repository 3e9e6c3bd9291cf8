"""Whether a file is as long as its header says."""

import re
import struct
from collections.abc import Iterator
from io import BufferedIOBase

from evenly.data.media.error import File, MediaError, opened

SLACK = 64
"""Bytes by which a header may be off: some count themselves."""
UNKNOWN = 0x7FFF_0000
"""Sizes from here on mean that the end of a sound or video was not yet known."""


def check_whole(file: File) -> None:
    """Raises `MediaError` if the file ends before its header says, or its sound continues beyond.

    This is known for .wav, .aiff, .avi, .mp4 and .mkv files and their kin, and most .mp3 files. A
    zero length, or the largest possible number, means no length: the file goes on to its end. Other
    formats can be cut anywhere.
    """
    with opened(file) as source:
        length = source.seek(0, 2)
        source.seek(0)
        head = source.read(12)
        for name, begin, size in _parts(head, source):
            end = begin + size
            if end > length + SLACK:
                raise MediaError(
                    file,
                    f"is cut off: it has {length:,} of the {end:,} bytes that its header gives",
                )
            if name in (b"data", b"SSND") and (more := _more(source, end, length)):
                raise MediaError(
                    file,
                    f"goes on for {more:,} bytes after the end that its header gives the sound; "
                    "repair the header, or cut them off",
                )


def _parts(head: bytes, source: BufferedIOBase) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of the parts of a file that hold sound and pictures."""
    if head[:4] in (b"RIFF", b"FORM"):
        yield from _chunks(source, "<" if head[:4] == b"RIFF" else ">")
    elif head[4:8] in (b"ftyp", b"wide", b"free", b"skip", b"mdat", b"moov"):
        yield from _boxes(source)
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        yield from _segment(source)
    elif head[:3] == b"ID3" or head[:1] == b"\xff":
        yield from _frames(source)


def _chunks(source: BufferedIOBase, order: str) -> Iterator[tuple[bytes, int, int]]:
    """The parts of .wav, .avi and .aiff: chunks of even length, up to the one that matters."""
    place = 12
    while len(head := _at(source, place, 12)) >= 8:
        name, size = struct.unpack_from(f"{order}4sI", head)
        if name in (b"data", b"SSND") or head[8:] == b"movi":
            if 0 < size < UNKNOWN:
                yield name, place + 8, size
            return
        place += 8 + size + size % 2


def _more(source: BufferedIOBase, end: int, length: int) -> int:
    """Bytes after a sound that are neither chunks nor zeros."""
    rest = _at(source, end, 2**20)
    for n in (0, 1):  # some writers forget the byte that makes a chunk's length even
        name, size = rest[n : n + 4], rest[n + 4 : n + 8]
        fits = any(int.from_bytes(size, order) <= length for order in ("little", "big"))
        if len(size) < 4 or (fits and all(32 <= letter < 127 for letter in name)):
            return 0
    return length - end if any(rest) else 0


def _boxes(source: BufferedIOBase) -> Iterator[tuple[bytes, int, int]]:
    """The parts of .mp4, .mov and .m4a."""
    place = 0
    while len(head := _at(source, place, 16)) >= 8:
        size, name = struct.unpack_from(">I4s", head)
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack_from(">Q", head, 8)
        if size < 8:
            return  # up to the end of the file
        if name in (b"moov", b"mdat", b"moof"):
            yield name, place, size
        place += size


def _segment(source: BufferedIOBase) -> Iterator[tuple[bytes, int, int]]:
    """The parts of .mkv and .webm."""
    size, place = _vint(source, 4)
    if size is None or _at(source, place + size, 4) != b"\x18\x53\x80\x67":
        return
    length, begin = _vint(source, place + size + 4)
    if length is not None:
        yield b"Segment", begin, length


def _frames(source: BufferedIOBase) -> Iterator[tuple[bytes, int, int]]:
    """The part of .mp3, whose first frame counts all bytes if the encoder knew them."""
    tag = _at(source, 0, 10)
    begin = 0
    if tag[:3] == b"ID3" and len(tag) == 10:
        begin = 10 + sum(byte << 7 * n for n, byte in enumerate(reversed(tag[6:])))
    found = re.search(rb"(Xing|Info)\0\0\0(.)(.{8})", _at(source, begin, 64), re.DOTALL)
    if found and found[2][0] & 2:
        frames = found[2][0] & 1
        yield found[1], begin, int.from_bytes(found[3][4 * frames :][:4])


def _vint(source: BufferedIOBase, place: int) -> tuple[int | None, int]:
    """An EBML number, None if all its bits are set, and where it ends."""
    first = _at(source, place, 1)
    width = 9 - first[0].bit_length() if first else 9
    digits = _at(source, place, width)
    value = int.from_bytes(digits) & ((1 << 7 * width) - 1)
    return (None if width > 8 or value == (1 << 7 * width) - 1 else value), place + width


def _at(source: BufferedIOBase, place: int, count: int) -> bytes:
    source.seek(place)
    return source.read(count)
