"""Numbers as data hold them: finite, of types and axes that torch can index."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LARGEST = float(np.finfo(np.float32).max)


def channels_first(values: Array) -> Array:
    """Images (..., c, h, w), turned if they are (..., h, w, c): if only the last is 1, 3 or 4."""
    channels = (1, 3, 4)
    turned = values.shape[-1] in channels and values.shape[-3] not in channels
    return np.moveaxis(values, -1, -3) if turned else values


def unusable(values: Array) -> Array:
    """Which numbers no model can learn from: not finite, or beyond what float32 can hold."""
    if values.dtype.kind == "f":
        # In float16 and float32, all that is finite fits.
        wide = values.dtype.itemsize > 4
        return ~(np.abs(values) <= LARGEST) if wide else ~np.isfinite(values)
    # Torch indexes no unsigned integers; the largest of them have no signed ones.
    return values > np.iinfo(np.int64).max


def spelt(value: Any) -> str:
    """A number that is `unusable`, for a message."""
    if not np.isfinite(value):
        return str(value)
    of, end = ("float32", LARGEST) if isinstance(value, np.floating) else ("int64", 2.0**63)
    return f"{value!s} ({of} ends at {end:.2g})"


def native(values: Array) -> Array:
    """Numbers in memory order and native bytes, and of a type that torch can index.

    Raises:
        ValueError: If they are no numbers, or complex ones.
    """
    if values.dtype.kind not in "iufb":
        raise ValueError(f"holds {values.dtype} values, which are no numbers that can be stored")
    wider = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "float128": "float64"}
    dtype = wider.get(values.dtype.name, values.dtype.newbyteorder("="))
    return np.require(values, dtype, "C")  # unlike ascontiguousarray, it adds no axis
