"""What PyAV reads: any container of pictures and sound, stream by stream."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import av
from av.container import InputContainer

from evenly.data.media.error import File, MediaError, NoStream, check_file

S = TypeVar("S")


def pictures(file: File, stream: int) -> Generator[av.VideoFrame]:
    """The frames of a stream of pictures, in the order in which they are shown.

    Args:
        file: That holds it.
        stream: Which stream of pictures, from 0.

    Raises:
        MediaError: If the file is missing, empty or broken, now or while it is read.
        NoStream: If it has no such stream.
    """
    with _opened(file) as container:
        yield from container.decode(_chosen(file, container.streams.video, stream, "pictures"))


def sounds(file: File, stream: int) -> Generator[av.AudioFrame]:
    """The pieces of a stream of sound, likewise."""
    with _opened(file) as container:
        yield from container.decode(_chosen(file, container.streams.audio, stream, "sound"))


@contextmanager
def _opened(file: File) -> Iterator[InputContainer]:
    check_file(file)
    # Without its protocol, a name such as a:b.mp4 would be taken for one.
    source: Any = f"file:{file}" if isinstance(file, Path) else BytesIO(file)
    try:
        with av.open(source) as container:
            yield container
    except av.FFmpegError as error:
        raise MediaError(file, f"cannot be decoded ({error.strerror})") from error


def _chosen(file: File, streams: Sequence[S], stream: int, what: str) -> S:
    if not streams:
        raise NoStream(file, f"holds no {what}")
    if not 0 <= stream < len(streams):
        count = f"{len(streams)} stream{'s' if len(streams) > 1 else ''} of {what}"
        raise NoStream(file, f"has {count}, so there is no number {stream}")
    return streams[stream]
