"""Pictures of any depth, converted to 8 bits by one rule.

White is the largest number in a picture's format: 65,535 for 16 bits, 4,095 for 12, and 1 for
floating-point numbers. So two pictures of one format always share a scale, which their own extremes
would not ensure. A picture is refused if it has numbers below 0 (black) or above white, or if its
brightest pixel is below a quarter of white, so that 8 bits would show little of it. It then has a
scale that its format does not tell, such as 12 bits stored in 16, or millimetres. FFmpeg converts
video frames in 10 or 12 bits, which do tell their scale.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageFile, ImageOps

from evenly.data.media.error import MediaError

DARKEST = 1 / 4
"""Minimum share of white for the brightest pixel of a picture with more than 8 bits."""
NARROWEST = 1 / 10
"""The same for the range of a grey picture's pixels, unless all are equal."""


def colours(name: str, image: ImageFile.ImageFile) -> Image.Image:
    """An image in 8-bit RGB, upright, without transparency.

    Args:
        name: Name of its file, for messages.
        image: An image in any mode, just opened; it is changed.

    Raises:
        MediaError: If no such picture can be made from it.
    """
    deep = ";16" in str(image.tile)  # known only before loading; of colours, Pillow keeps 8 bits
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        values, white = np.asarray(image), _white(image)
        if _tags(image).get(262) == 0:  # numbers that tell how dark it is
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
    bits: int = tags.get(258, (16,))[0]  # Pillow converts PNG, PGM and JPEG 2000 to 16
    signed: bool = tags.get(339, (1,))[0] == 2
    return (1 << bits - signed) - 1


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF."""
    found: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return found


def eight_bits(
    name: str, values: Num[np.ndarray, "*shape"], white: int
) -> UInt8[np.ndarray, "*shape"]:
    """Numbers from 0 to `white`, scaled to 0 to 255.

    Raises:
        MediaError: If they exceed that range, are all near black, or all nearly equal.
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
