"""Numbers as data store them: finite, with types and axes that torch can index."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LARGEST = float(np.finfo(np.float32).max)


def channels_first(values: Array) -> Array:
    """Images (..., c, h, w), transposed from (..., h, w, c) if only the last axis is 1, 3 or 4."""
    channels = (1, 3, 4)
    turned = values.shape[-1] in channels and values.shape[-3] not in channels
    return np.moveaxis(values, -1, -3) if turned else values


def unusable(values: Array) -> Array:
    """Which numbers no model can learn from: not finite, or beyond what float32 can hold."""
    if values.dtype.kind == "f":
        # In float16 and float32, everything finite fits.
        wide = values.dtype.itemsize > 4
        return ~(np.abs(values) <= LARGEST) if wide else ~np.isfinite(values)
    # Torch does not index unsigned integers, and the largest have no signed equivalent.
    return values > np.iinfo(np.int64).max


def spelt(value: Any) -> str:
    """An `unusable` number as text, for a message."""
    if not np.isfinite(value):
        return str(value)
    of, end = ("float32", LARGEST) if isinstance(value, np.floating) else ("int64", 2.0**63)
    return f"{value!s} ({of} ends at {end:.2g})"


def blurred(values: Array) -> tuple[int, str] | None:
    """The first feature that float32 blurs, and a sentence about it; None if there is none.

    A feature is blurred if it varies, rounding to float32 changes it, and the spacing of float32
    numbers there exceeds a hundredth of its standard deviation.

    Args:
        values: (..., d) that are not `unusable`.
    """
    if np.can_cast(values.dtype, np.float32):
        return None
    axes = tuple(range(values.ndim - 1))
    low, high = values.min(axes), values.max(axes)
    varies = low != high
    low, high = low.astype(np.float64), high.astype(np.float64)
    step = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32)).astype(np.float64)
    # A deviation is never below this share of the range, so few have to be computed.
    least = (high - low) / np.sqrt(2 * values[..., 0].size)
    for feature in np.flatnonzero(varies & (step > least / 100)).tolist():
        found = values[..., feature]
        mean, std = found.mean(dtype=np.float64), found.std(dtype=np.float64)
        if step[feature] > std / 100 and (found.astype(np.float32) != found).any():
            return feature, _blur(mean, std, step[feature])
    return None


def _blur(mean: float, std: float, step: float) -> str:
    return (
        f"has mean {mean:.9g} and deviation {std:.3g}. 32-bit floats are {step:.3g} apart at that "
        "size, too coarse to tell its values apart. Subtract the mean"
    )


def pooled(one: tuple[int, Any, Any], other: tuple[int, Any, Any]) -> tuple[int, Any, Any]:
    """The moments of two groups of numbers together, without cancellation even far from 0.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", COMPSTAT 1982, equation 2.1.

    Args:
        one: Count, means, and sums of squares about the means, as arrays or tensors.
        other: The same for the other group; the groups must not both be empty.
    """
    (n, mean, squares), (k, its_mean, its_squares) = one, other
    apart = its_mean - mean
    return (
        n + k,
        mean + apart * (k / (n + k)),
        squares + its_squares + apart**2 * (n * k / (n + k)),
    )


class Blur:
    """Computes `blurred` for numbers that arrive in parts."""

    def __init__(self) -> None:
        self._count = 0
        self._least = self._most = self._mean = self._squares = np.zeros(0)
        self._changed = np.zeros(0, bool)

    def add(self, values: Array) -> None:
        """Adds (..., d) numbers that are not `unusable`, with the same d as before."""
        rows = values.reshape(-1, values.shape[-1])
        changed = (rows.astype(np.float32) != rows).any(0)
        wide = rows.astype(np.float64)
        low, high, mean = wide.min(0), wide.max(0), wide.mean(0)
        found = (len(wide), mean, np.square(wide - mean).sum(0))
        if self._count:
            low, high = np.minimum(low, self._least), np.maximum(high, self._most)
            found = pooled((self._count, self._mean, self._squares), found)
            changed = changed | self._changed
        self._count, self._mean, self._squares = found
        self._least, self._most, self._changed = low, high, changed

    def found(self) -> tuple[int, str] | None:
        """The first feature that float32 blurs, and a sentence about it."""
        largest = np.maximum(np.abs(self._least), np.abs(self._most)).astype(np.float32)
        step = np.spacing(largest).astype(np.float64)
        std = np.sqrt(self._squares / max(self._count, 1))
        varies = self._least != self._most
        for feature in np.flatnonzero(varies & self._changed & (step > std / 100)).tolist():
            return feature, _blur(self._mean[feature], std[feature], step[feature])
        return None


def shown(number: float) -> str:
    """A float32 number in the fewest digits that identify it."""
    digits = str(np.float32(number))
    return str(float(digits)).removesuffix(".0")  # whole up to 1e16, unlike NumPy


def native(values: Array) -> Array:
    """Numbers in memory order and native bytes, with a type that torch can index.

    Raises:
        ValueError: If they are not numbers, or complex.
    """
    if values.dtype.kind not in "iufb":
        raise ValueError(f"holds {values.dtype} values, which cannot be stored as numbers")
    wider = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "float128": "float64"}
    dtype = wider.get(values.dtype.name, values.dtype.newbyteorder("="))
    return np.require(values, dtype, "C")  # unlike ascontiguousarray, it adds no axis
