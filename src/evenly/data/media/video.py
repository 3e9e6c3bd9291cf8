"""Pictures: videos in any container, folders of frames, single images."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from av import VideoFrame
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from evenly.data.media.container import pictures
from evenly.data.media.depth import colours, eight_bits
from evenly.data.media.error import File, MediaError, named, opened

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
"""Endings of the images in a folder of frames."""
KEPT = 128 * 2**20
"""Bytes of decoded frames up to which a video keeps them all, to avoid decoding again."""
REORDERED = 1.0
"""Seconds within which a file's frame stamps may be out of display order."""
WITHOUT = "pick=uniform needs no times"


class Frames:
    """The frames of one video or picture.

    Attributes:
        name: Name of the file or folder that they come from.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def __len__(self) -> int:
        """The number of frames."""

    @property
    @abstractmethod
    def times(self) -> Float[np.ndarray, " t"]:
        """When each frame is shown, in seconds from the beginning of the file, ascending.

        Raises:
            MediaError: If the file does not say.
        """

    @abstractmethod
    def read(
        self, index: Int[np.ndarray, " k"], size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "k 3 h w"]:
        """Some frames in RGB.

        Args:
            index: Frame numbers in ascending order; one may repeat.
            size: Height and width to scale to, ignoring the aspect ratio; their own by default.

        Raises:
            MediaError: If the file is missing or broken.
        """


def frames_of(file: File, stream: int = 0) -> Frames:
    """The frames of a video, a folder of images or one image.

    Args:
        file: A video in any container that FFmpeg knows, a folder, or a still image.
        stream: Which stream of pictures, where a file has several.
    """
    if isinstance(file, Path) and file.is_dir():
        return Folder(file)
    if is_still(file):
        return Stills([file], named(file))
    return Video(file, stream)


def is_still(file: File) -> bool:
    """Whether a file holds one picture, whatever its name."""
    try:
        with opened(file) as source, Image.open(source) as image:
            # Pillow opens some moving pictures too, but only FFmpeg knows their times.
            animated = image.format in ("GIF", "PNG") and getattr(image, "is_animated", False)
            return image.format != "MPEG" and not animated
    except Image.DecompressionBombError:
        return True  # reading it will say that it is too large
    except (MediaError, OSError, SyntaxError):
        return False


class Video(Frames):
    """A stream of pictures in a container, rotated upright as the file says."""

    def __init__(self, file: File, stream: int = 0) -> None:
        super().__init__(named(file))
        self.file, self.stream = file, stream
        self.kept: list[VideoFrame] = []

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def times(self) -> Float[np.ndarray, " t"]:
        """When each frame is shown.

        Frames come in display order, but files that know only their storage order (.avi) may stamp
        them in that order, so the stamps are sorted.
        """
        if None in self._stamps:
            raise MediaError(self.name, f"has no time stamps for its frames; {WITHOUT}")
        stamps = np.array(self._stamps, np.float64)
        back = np.maximum.accumulate(stamps) - stamps
        if back.max() > REORDERED:
            jump = f"sets its clock back by {back.max():.1f} s before frame {back.argmax()}"
            raise MediaError(self.name, f"{jump}; {WITHOUT}")
        return np.sort(stamps)

    @cached_property
    def _stamps(self) -> list[float | None]:
        """When each frame is shown, as the file says.

        This decodes the video, since containers often have wrong data on their frames.
        """
        stamps: list[float | None] = []
        kept, size = [], 0
        for frame, time in pictures(self.file, self.stream):
            stamps.append(time)
            kept.append(frame)
            size += sum(plane.buffer_size for plane in frame.planes)
            if size > KEPT:
                kept.clear()
        if not stamps:
            raise MediaError(self.name, "has no pictures that can be decoded")
        self.kept = kept if size <= KEPT else []
        return stamps

    def read(
        self, index: Int[np.ndarray, " k"], size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "k 3 h w"]:
        """Some frames in RGB; those of a long video are decoded again."""
        wanted = set(index.tolist())
        found: dict[int, UInt8[np.ndarray, "3 h w"]] = {}
        frames = self.kept or (frame for frame, _ in pictures(self.file, self.stream))
        for number, frame in enumerate(frames):
            if number in wanted:
                found[number] = _planes(Image.fromarray(self._rgb(frame)), size)
                if len(found) == len(wanted):
                    break
        if missing := wanted - set(found):
            raise MediaError(self.name, f"ends before frame {min(missing)}")
        return _stacked(self.name, (found[number] for number in index.tolist()))

    def _rgb(self, frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """A frame as displayed."""
        name = frame.format.name
        if re.search(r"f(16|32)[bl]e$", name):
            try:
                values: np.ndarray = frame.to_ndarray()
            except ValueError as error:
                reason = f"holds numbers of a kind ({name}) that is not read"
                raise MediaError(self.name, reason) from error
            values = eight_bits(self.name, values, 1)
            rgb = values[..., :3] if values.ndim > 2 else np.stack([values] * 3, -1)
        elif frame.format.components[0].bits == 16 and not name.startswith("yuv"):
            rgb = eight_bits(self.name, frame.to_ndarray(format="rgb48le"), (1 << 16) - 1)
        else:
            rgb = frame.to_ndarray(format="rgb24")
        return _upright(rgb, frame)


class Stills(Frames):
    """Images, one after another."""

    def __init__(self, files: Sequence[File], name: str) -> None:
        super().__init__(name)
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    @property
    def times(self) -> Float[np.ndarray, " t"]:
        """When each image is shown: one, all the time; of several, no file says."""
        if len(self) > 1:
            raise MediaError(self.name, f"is a folder, whose pictures have no times; {WITHOUT}")
        return np.zeros(1)

    def read(
        self, index: Int[np.ndarray, " k"], size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "k 3 h w"]:
        """Some images in RGB."""
        return _stacked(self.name, (_still(self.files[number], size) for number in index.tolist()))


class Folder(Stills):
    """The images in a folder, in the order of the numbers in their names."""

    def __init__(self, path: Path) -> None:
        files = [
            file
            for file in path.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
        if not files:
            raise MediaError(path, "the folder holds no images")
        files.sort(key=_natural)
        super().__init__(files, str(path))


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts numbers by value: frame 10 comes after frame 9."""
    return [(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", file.name)]


def _upright(picture: UInt8[np.ndarray, "_ _ 3"], frame: VideoFrame) -> UInt8[np.ndarray, "_ _ 3"]:
    """A picture rotated and mirrored as the file says."""
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know everything that FFmpeg writes there
        return np.rot90(picture, frame.rotation // 90)
    if data is None:
        return picture
    # Where a step right, and a step down, in the picture leads on screen.
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(data), np.int32).reshape(3, 3).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _alike(image: Image.Image) -> int:
    """The number of pictures in a file, without smaller copies or views of the first."""
    count = getattr(image, "n_frames", 1) if image.format in ("TIFF", "WEBP", "AVIF") else 1
    if count > 1:
        size = image.size
        image.seek(1)
        count = count if image.size == size else 1
        image.seek(0)
    return count


def _still(file: File, size: tuple[int, int] | None) -> UInt8[np.ndarray, "3 h w"]:
    with opened(file) as source:
        try:
            with Image.open(source) as image:
                if (count := _alike(image)) > 1:
                    raise MediaError(file, f"holds {count} pictures; give one, or a folder of them")
                return _planes(colours(named(file), image), size)
        except Image.DecompressionBombError as error:
            raise MediaError(file, "has too many pixels") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise MediaError(file, "is not a readable, complete image") from error


def _planes(image: Image.Image, size: tuple[int, int] | None) -> UInt8[np.ndarray, "3 h w"]:
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def _stacked(
    name: str, frames: Iterable[UInt8[np.ndarray, "3 h w"]]
) -> UInt8[np.ndarray, "k 3 h w"]:
    kept = list(frames)
    if len({frame.shape for frame in kept}) > 1:
        raise MediaError(name, "its frames differ in size; set the size to scale them to")
    return np.stack(kept)
