"""Pictures: videos in any container, folders of frames, single images."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from av import VideoFrame
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from evenly.data.media.container import pictures
from evenly.data.media.error import File, MediaError, check_file, named, readable

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Of the images in a folder of frames."""
KEPT = 128 * 2**20
"""Bytes of decoded frames up to which a video keeps them all, and need not be decoded again."""


class Frames:
    """The frames of one thing to look at.

    Attributes:
        name: Of the file or folder that they come from.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def times(self) -> Float[np.ndarray, " t"]:
        """When each frame is shown, in seconds from the start."""

    @abstractmethod
    def read(
        self, index: Int[np.ndarray, " k"], size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "k 3 h w"]:
        """Some frames in RGB.

        Args:
            index: Which, in ascending order; one may come more than once.
            size: Height and width that they are scaled to, without regard to the shape of the
                picture; their own by default.

        Raises:
            MediaError: If the file is missing or broken.
        """


def frames_of(file: File, stream: int = 0, fps: float = 25.0) -> Frames:
    """The frames of a video, a folder of images or one image.

    Args:
        file: A video in any container that FFmpeg knows, a folder, or a still image.
        stream: Which stream of pictures, where a file has several.
        fps: Frames a second of a folder, which does not say.
    """
    if isinstance(file, Path) and file.is_dir():
        return Folder(file, fps)
    if is_still(file):
        return Stills([file], named(file), fps)
    return Video(file, stream)


def is_still(file: File) -> bool:
    """Whether a file holds one picture, whatever its name."""
    try:
        with Image.open(readable(file)) as image:
            # Pillow opens some moving pictures too, but it is FFmpeg that knows their times.
            animated = image.format in ("GIF", "PNG") and getattr(image, "is_animated", False)
            return image.format != "MPEG" and not animated
    except Image.DecompressionBombError:
        return True  # reading it says that it is too large
    except (OSError, SyntaxError):
        return False


class Video(Frames):
    """A stream of pictures in a container, turned upright as the file says."""

    def __init__(self, file: File, stream: int = 0) -> None:
        super().__init__(named(file))
        self.file, self.stream = file, stream
        self.kept: list[VideoFrame] = []

    @cached_property
    def times(self) -> Float[np.ndarray, " t"]:
        """When each frame is shown.

        The video is decoded for it: what a container says of its frames is often wrong.
        """
        times, kept, size = [], [], 0
        for frame in pictures(self.file, self.stream):
            if frame.time is None:
                raise MediaError(self.name, "does not say when its frames are shown")
            times.append(frame.time)
            kept.append(frame)
            size += sum(plane.buffer_size for plane in frame.planes)
            if size > KEPT:
                kept.clear()
        if not times:
            raise MediaError(self.name, "holds no pictures that can be decoded")
        self.kept = kept if size <= KEPT else []
        return np.array(times, dtype=np.float64)

    def read(
        self, index: Int[np.ndarray, " k"], size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "k 3 h w"]:
        """Some frames in RGB; those of a long video are decoded once more."""
        wanted = set(index.tolist())
        found: dict[int, UInt8[np.ndarray, "3 h w"]] = {}
        for number, frame in enumerate(self.kept or pictures(self.file, self.stream)):
            if number in wanted:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                found[number] = _planes(Image.fromarray(upright), size)
                if len(found) == len(wanted):
                    break
        if missing := wanted - set(found):
            raise MediaError(self.name, f"ends before frame {min(missing)}")
        return _stacked(self.name, (found[number] for number in index.tolist()))


class Stills(Frames):
    """Images, one after another."""

    def __init__(self, files: Sequence[File], name: str, fps: float) -> None:
        super().__init__(name)
        self.files, self.fps = files, fps

    @property
    def times(self) -> Float[np.ndarray, " t"]:
        """When each image is shown."""
        return np.arange(len(self.files)) / self.fps

    def read(
        self, index: Int[np.ndarray, " k"], size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "k 3 h w"]:
        """Some images in RGB."""
        return _stacked(self.name, (_still(self.files[number], size) for number in index.tolist()))


class Folder(Stills):
    """The images in a folder, in the order of the numbers in their names."""

    def __init__(self, path: Path, fps: float) -> None:
        files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
        if not files:
            raise MediaError(path, "the folder holds no images")
        files.sort(key=_natural)
        super().__init__(files, str(path), fps)


def _natural(file: Path) -> list[tuple[int, str]]:
    """Numbers by their size: frame 10 comes after frame 9."""
    return [(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", file.name)]


def _still(file: File, size: tuple[int, int] | None) -> UInt8[np.ndarray, "3 h w"]:
    check_file(file)
    try:
        with Image.open(readable(file)) as image:
            return _planes(ImageOps.exif_transpose(image).convert("RGB"), size)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise MediaError(file, "is no image that can be read, or part of one") from error


def _planes(image: Image.Image, size: tuple[int, int] | None) -> UInt8[np.ndarray, "3 h w"]:
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def _stacked(
    name: str, frames: Iterable[UInt8[np.ndarray, "3 h w"]]
) -> UInt8[np.ndarray, "k 3 h w"]:
    kept = list(frames)
    if len({frame.shape for frame in kept}) > 1:
        raise MediaError(name, "its frames differ in size; give the size they are scaled to")
    return np.stack(kept)
