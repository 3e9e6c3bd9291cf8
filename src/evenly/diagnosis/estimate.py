"""A figure with its 95 % interval, from a value for each sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

Z = 1.959964
"""Standard errors between a figure and the end of its interval."""

SHARE = ((0.0, 2.0), (1.0, 2.0))
"""Samples added to values from 0 to 1: two at each end (Agresti and Coull, "Approximate is better
than exact for interval estimation of binomial proportions", 1998)."""

DIFFERENCE = ((-1.0, 0.5), (0.0, 1.0), (1.0, 0.5))
"""Samples added to values from -1 to 1: two in all (Agresti and Min, "Simple improved confidence
intervals for comparing matched proportions", 2005)."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its uncertainty.

    Attributes:
        value: The mean over samples, and over seeds if there are several.
        low: Lower end of the 95 % interval.
        high: Upper end.
        count: Number of samples.
    """

    value: float
    low: float
    high: float
    count: int

    @staticmethod
    def around(value: float, error: float, count: int) -> "Estimate":
        """A figure with its standard error."""
        return Estimate(value, value - Z * error, value + Z * error, count)

    @property
    def error(self) -> float:
        """The standard error; the interval extends two of them on either side."""
        return (self.high - self.low) / (2 * Z)

    def samples_for(self, away: float, errors: float) -> int:
        """How many samples would shrink this many standard errors to a distance.

        The distance counts as at least 0.01, and the result exceeds the current number.
        """
        needed = self.count * (errors * self.error / max(away, 0.01)) ** 2
        return max(math.ceil(needed), self.count + 1)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def share(values: Shaped[Tensor, "*s n"]) -> Estimate:
    """The mean of values from 0 to 1, such as whether a sample is predicted correctly.

    Args:
        values: Values of each sample; one row per seed if there are several.
    """
    return _mean(values, SHARE, 0.0)


def difference(values: Shaped[Tensor, "*s n"]) -> Estimate:
    """The mean of values from -1 to 1, such as how two predictions of a sample differ.

    Args:
        values: Values of each sample; one row per seed if there are several.
    """
    return _mean(values, DIFFERENCE, -1.0)


def mean(values: Shaped[Tensor, "*s n"]) -> Estimate:
    """The mean of unbounded values.

    Args:
        values: Values of each sample; one row per seed if there are several.
    """
    return _mean(values, (), -math.inf, math.inf)


def _mean(
    values: Tensor, added: Sequence[tuple[float, float]], least: float, most: float = 1.0
) -> Estimate:
    """The mean and its interval; samples and seeds are both random, and their variances add up.

    A few artificial samples at the ends of the range keep the interval open if all agree.
    """
    by_seed = values.double().reshape(-1, values.shape[-1])
    of_sample = by_seed.mean(0)
    made, weight = of_sample.new_tensor(added).reshape(-1, 2).T
    total = len(of_sample) + weight.sum()
    center = (of_sample.sum() + (made * weight).sum()) / total
    squares = (of_sample - center).square().sum() + ((made - center).square() * weight).sum()
    variance = squares / total**2
    if len(by_seed) > 1:
        variance = variance + by_seed.mean(1).var() / len(by_seed)
    half = Z * float(variance.sqrt())
    low, high = max(float(center) - half, least), min(float(center) + half, most)
    value = float(of_sample.mean())
    return Estimate(value, min(low, value), max(high, value), len(of_sample))
