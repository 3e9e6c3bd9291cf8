"""Pictures of any depth, brought to 8 bits by one rule.

White is the largest number that a picture's format holds: 65,535 in one of 16 bits, 4,095 in one
of 12; of floating-point numbers it is 1. So two pictures of one format are always on one scale,
which their own extremes would not give. A picture is refused if it has numbers below 0 (black) or
above white, or if its brightest pixel is below a quarter of white, so that 8 bits would show
little of it: it has a scale that its format does not tell, such as 12 bits stored in 16, or
millimetres. Frames of videos in 10 or 12 bits, which tell their scale, are brought to 8 by FFmpeg.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageFile, ImageOps

from evenly.data.media.error import MediaError

DARKEST = 1 / 4
"""Share of white that the brightest pixel of a picture with more than 8 bits has at least."""
NARROWEST = 1 / 10
"""The same between the darkest and the brightest pixel of one in grey, unless it is all one."""


def colours(name: str, image: ImageFile.ImageFile) -> Image.Image:
    """An image in RGB of 8 bits, upright, without what makes it transparent.

    Args:
        name: Of its file, for messages.
        image: In any mode, just opened; it is changed.

    Raises:
        MediaError: If there is no such picture to be made of it.
    """
    deep = ";16" in str(image.tile)  # known until it is loaded; of colours Pillow keeps 8 bits
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        values, white = np.asarray(image), _white(image)
        if _tags(image).get(262) == 0:  # numbers that say how dark it is
            values = white - values.astype(np.float64)
        return Image.fromarray(eight_bits(name, values, white)).convert("RGB")
    image.info.pop("transparency", None)
    try:
        found = image.convert("RGB")
    except ValueError as error:
        raise MediaError(name, f"has an unsupported colour mode ({image.mode})") from error
    if deep:
        eight_bits(name, np.asarray(found), 255)
    return found


def _white(image: Image.Image) -> int:
    """The number that is white in an image of one channel."""
    if image.mode == "F":
        return 1
    tags = _tags(image)
    bits: int = tags.get(258, (16,))[0]  # Pillow brings PNG, PGM and JPEG 2000 to 16
    signed: bool = tags.get(339, (1,))[0] == 2
    return (1 << bits - signed) - 1


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Those of a TIFF."""
    found: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return found


def eight_bits(
    name: str, values: Num[np.ndarray, "*shape"], white: int
) -> UInt8[np.ndarray, "*shape"]:
    """Numbers from 0 to `white`, as 0 to 255.

    Raises:
        MediaError: If they are not within that, are all near black, or all near one another.
    """
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise MediaError(name, "holds numbers that are not finite")
    narrow = values.ndim == 2 and 0 < high - low < NARROWEST * white
    if low < 0 or high > white or 0 < high < DARKEST * white or narrow:
        raise MediaError(
            name,
            f"holds numbers from {low:,g} to {high:,g} where {white:,} is white, so they are on a "
            "scale that 8 bits would not show. Bring them to 8 bits by a scale of your own, or "
            "save them as .npy, which the reader array takes as they are",
        )
    return np.rint(values * (255 / white)).astype(np.uint8)
