"""What PyAV reads: any container of pictures and sound, stream by stream."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import av
from av.container import InputContainer

from evenly.data.media.error import MediaError, NoStream, check_file

S = TypeVar("S")


def pictures(path: Path, stream: int) -> Generator[av.VideoFrame]:
    """The frames of a stream of pictures, in the order in which they are shown.

    Args:
        path: Of the file.
        stream: Which stream of pictures, from 0.

    Raises:
        MediaError: If the file is missing, empty or broken, now or while it is read.
        NoStream: If it has no such stream.
    """
    with _opened(path) as container:
        yield from container.decode(_chosen(path, container.streams.video, stream, "pictures"))


def sounds(path: Path, stream: int) -> Generator[av.AudioFrame]:
    """The pieces of a stream of sound, likewise."""
    with _opened(path) as container:
        yield from container.decode(_chosen(path, container.streams.audio, stream, "sound"))


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    check_file(path)
    try:
        with av.open(str(path)) as container:
            yield container
    except av.FFmpegError as error:
        raise MediaError(path, f"cannot be decoded ({error.strerror})") from error


def _chosen(path: Path, streams: Sequence[S], stream: int, what: str) -> S:
    if not streams:
        raise NoStream(path, f"holds no {what}")
    if not 0 <= stream < len(streams):
        count = f"{len(streams)} stream{'s' if len(streams) > 1 else ''} of {what}"
        raise NoStream(path, f"has {count}, so there is no number {stream}")
    return streams[stream]
