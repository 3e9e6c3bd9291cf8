"""A figure with its 95 % interval, from a value for each sample.

With several seeds, samples and seeds are both random, and their variances add up. The variance of a
few seeds is itself uncertain, so the interval is then Student's, with degrees of freedom after
Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Z = 1.959964
"""Standard errors between a figure and the end of its interval, if they are known exactly."""

SHARE = ((0.0, 2.0), (1.0, 2.0))
"""Samples added to values from 0 to 1: two at each end (Agresti and Coull, "Approximate is better
than exact for interval estimation of binomial proportions", 1998)."""

DIFFERENCE = ((-1.0, 0.5), (0.0, 1.0), (1.0, 0.5))
"""Samples added to values from -1 to 1: two in all (Agresti and Min, "Simple improved confidence
intervals for comparing matched proportions", 2005)."""

NORMAL = 1000
"""Degrees of freedom above which Student's t counts as normal: its quantile differs by 0.1 %."""

STEPS = 100_001
"""Angles from 0 to π/2 at which the density of Student's t is summed."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its uncertainty.

    Attributes:
        value: The mean over samples, and over seeds if there are several.
        low: Lower end of the 95 % interval.
        high: Upper end.
        count: Number of samples.
        standard_error: Standard error over several seeds, whose interval is Student's; None for one
            seed.
        seed_error: The part of the standard error that comes from the seeds, and that more samples
            do not lower; 0 for one seed. The squares of both parts add up.
    """

    value: float
    low: float
    high: float
    count: int
    standard_error: float | None = None
    seed_error: float = 0.0

    @staticmethod
    def around(value: float, error: float, count: int) -> "Estimate":
        """A figure with its standard error."""
        return Estimate(value, value - Z * error, value + Z * error, count)

    @staticmethod
    def over_seeds(
        by_seed: Float[Tensor, " s"], errors: Float[Tensor, " s"], count: int
    ) -> "Estimate":
        """The mean of a figure known for each seed, with its standard error on the same samples."""
        of_samples = float(errors.double().square().mean())
        error, quantile = error_and_quantile(of_samples, by_seed)
        value, half = float(by_seed.mean()), quantile * error
        return Estimate(value, value - half, value + half, count, *_over_several(error, by_seed))

    @property
    def error(self) -> float:
        """The standard error; the interval of one seed extends two of them on either side."""
        if self.standard_error is not None:
            return self.standard_error
        return (self.high - self.low) / (2 * Z)

    def samples_for(self, away: float, errors: float) -> int | None:
        """How many samples would shrink this many standard errors to a distance.

        The distance counts as at least 0.01, and the result exceeds the current number. None if the
        part of the seeds makes up over half of the variance that this allows: more seeds then do
        more than more samples.
        """
        of_seeds = self.seed_error**2
        allowed = (max(away, 0.01) / errors) ** 2 - of_seeds
        if allowed < of_seeds:
            return None
        needed = self.count * (self.error**2 - of_seeds) / allowed
        return max(math.ceil(needed), self.count + 1)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def share(values: Shaped[Tensor, "*s n"]) -> Estimate:
    """The mean of values from 0 to 1, such as whether a sample is predicted correctly.

    Args:
        values: Values of each sample, NaN for one that does not count; one row per seed if there
            are several.
    """
    return _mean(values, SHARE, 0.0)


def difference(values: Shaped[Tensor, "*s n"]) -> Estimate:
    """The mean of values from -1 to 1, such as how two predictions of a sample differ.

    Args:
        values: As for `share`.
    """
    return _mean(values, DIFFERENCE, -1.0)


def mean(values: Shaped[Tensor, "*s n"]) -> Estimate:
    """The mean of unbounded values.

    Args:
        values: As for `share`.
    """
    return _mean(values, (), -math.inf, math.inf)


def placed(values: Shaped[Tensor, " k"], rows: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Values of some samples in a row for all; NaN for the others."""
    found = torch.full((len(rows),), math.nan, dtype=torch.float64, device=values.device)
    found[rows] = values.double()
    return found


def error_and_quantile(variance: float, by_seed: Float[Tensor, " s"]) -> tuple[float, float]:
    """The standard error of a figure, and how many of them its 95 % interval extends either way.

    Args:
        variance: Variance of the figure for other samples.
        by_seed: The figure of each seed.
    """
    if len(by_seed) < 2:
        return math.sqrt(variance), Z
    between = float(by_seed.double().var()) / len(by_seed)
    total = variance + between
    freedom = (len(by_seed) - 1) * (total / between) ** 2 if between else math.inf
    return math.sqrt(total), student(freedom)


def student(freedom: float) -> float:
    """Standard errors between a figure and the end of its 95 % interval, for estimated ones.

    The quantile of Student's t for any degrees of freedom from 1, to three digits. With
    t = √freedom · tan θ, the density of θ is proportional to cos(θ) to the power of freedom - 1.
    """
    if freedom > NORMAL:
        return Z
    angle = torch.linspace(0, math.pi / 2, STEPS, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(angle.cos() ** (freedom - 1))
    end = int(torch.searchsorted(mass, 0.95 * mass[-1]))
    return math.sqrt(freedom) * math.tan(float(angle[end + 1]))


def _mean(
    values: Tensor, added: Sequence[tuple[float, float]], least: float, most: float = 1.0
) -> Estimate:
    """The mean and its interval.

    A few artificial samples at the ends of the range keep the interval open if all agree.
    """
    by_seed = values.double().reshape(-1, values.shape[-1])
    counts = ~by_seed.isnan()
    by_seed = by_seed[counts.any(1)][:, counts.any(0)]
    of_sample = by_seed.nanmean(0)
    made, weight = of_sample.new_tensor(added).reshape(-1, 2).T
    total = len(of_sample) + weight.sum()
    center = (of_sample.sum() + (made * weight).sum()) / total
    squares = (of_sample - center).square().sum() + ((made - center).square() * weight).sum()
    means = by_seed.nanmean(1)
    error, quantile = error_and_quantile(float(squares / total**2), means)
    low = max(float(center) - quantile * error, least)
    high = min(float(center) + quantile * error, most)
    value = float(of_sample.mean())
    low, high = min(low, value), max(high, value)
    return Estimate(value, low, high, len(of_sample), *_over_several(error, means))


def _over_several(error: float, by_seed: Float[Tensor, " s"]) -> tuple[float | None, float]:
    """The standard error if there are several seeds, and the part that comes from them."""
    if len(by_seed) < 2:
        return None, 0.0
    return error, float(by_seed.double().std()) / math.sqrt(len(by_seed))
