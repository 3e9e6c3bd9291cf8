"""What PyAV reads: any container of pictures and sound, stream by stream."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition, Stream

from evenly.data.media.error import File, MediaError, NoStream, check_file
from evenly.data.media.whole import check_whole


class Picture(NamedTuple):
    """A frame of a stream of pictures.

    Attributes:
        frame: The decoded frame.
        time: When it is shown, in seconds from the beginning of the file; None if unknown.
    """

    frame: av.VideoFrame
    time: float | None


class Sound(NamedTuple):
    """A piece of a stream of sound.

    Attributes:
        frame: The decoded frame.
        time: When it begins, likewise; also None if the file holds nothing else to be in sync with.
    """

    frame: av.AudioFrame
    time: float | None


def pictures(file: File, stream: int) -> Generator[Picture]:
    """The frames of a stream of pictures, in display order.

    Cover art attached to sound is not a stream of pictures. A file begins where the first of its
    streams of pictures and sound does.

    Args:
        file: The file with the stream.
        stream: Which stream of pictures, from 0.

    Raises:
        MediaError: If the file is missing, empty or broken, now or during reading.
        NoStream: If it has no such stream.
    """
    with _opened(file) as container:
        seen, heard = _streams(container)
        begin = _begin([*seen, *heard])
        for frame in _frames(container, _chosen(file, seen, stream, "pictures")):
            if begin is None:
                begin = frame.time
            yield Picture(frame, _since(begin, frame.time))


def sounds(file: File, stream: int) -> Generator[Sound]:
    """The pieces of a stream of sound, likewise."""
    with _opened(file) as container:
        seen, heard = _streams(container)
        begin = _begin([*seen, *heard])
        for frame in _frames(container, _chosen(file, heard, stream, "sound")):
            yield Sound(frame, _since(begin, frame.time))


@contextmanager
def _opened(file: File) -> Iterator[InputContainer]:
    check_file(file)
    check_whole(file)
    # Without its protocol, a name such as a:b.mp4 would be mistaken for one.
    source: Any = f"file:{file}" if isinstance(file, Path) else BytesIO(file)
    try:
        with av.open(source) as container:
            yield container
    except av.FFmpegError as error:
        raise MediaError(file, f"cannot be decoded ({error.strerror})") from error


def _streams(container: InputContainer) -> tuple[list[Stream], list[Stream]]:
    """The streams of pictures and those of sound."""
    video: Sequence[Stream] = container.streams.video
    seen = [stream for stream in video if not stream.disposition & Disposition.attached_pic]
    return seen, list(container.streams.audio)


def _begin(streams: Sequence[Stream]) -> float | None:
    """When the first of several streams begins, on the file's clock; None for a single one.

    It is the time in the file, before any decoder's correction: it only has to be the same moment
    for all streams.
    """
    known = [
        float(stream.start_time * stream.time_base)
        for stream in streams
        if stream.start_time is not None and stream.time_base is not None
    ]
    return min(known, default=None) if len(streams) > 1 else None


def _since(begin: float | None, time: float | None) -> float | None:
    return None if begin is None or time is None else time - begin


def _frames(container: InputContainer, stream: Stream) -> Iterator[Any]:
    for packet in container.demux(stream):
        # An empty packet means that nothing has changed; only the last one ends the stream.
        if packet.size or packet.dts is None:
            yield from packet.decode()


def _chosen(file: File, streams: Sequence[Stream], stream: int, what: str) -> Stream:
    if not streams:
        raise NoStream(file, f"has no {what}")
    if not 0 <= stream < len(streams):
        count = f"{len(streams)} stream{'s' if len(streams) > 1 else ''} of {what}"
        raise NoStream(file, f"has {count}, but stream {stream} was asked for")
    return streams[stream]
