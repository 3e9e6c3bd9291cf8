"""Mean, interval and paired test over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
DRAWS = 10_000
"""Patterns of signs that a permutation test looks at, at most."""
ROUNDING = 1e-6
"""Differences this close, relative to the largest value, count as equal: one sample of a test split
is worth more, up to a million samples, and rounding to 32 bits a tenth of it."""


@dataclass(frozen=True)
class Summary:
    """A metric over seeds.

    Attributes:
        mean: Mean over the seeds; NaN without seeds.
        std: Standard deviation over the seeds (n - 1); None for one seed.
        low: Lower end of the 95 % interval of the mean (Student's t); None for one seed.
        high: Its upper end.
        seeds: Number of seeds.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    seeds: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean and 95 % interval over seeds."""
    mean = float(np.mean(values)) if values else math.nan
    if len(values) < 2:
        return Summary(mean, None, None, None, len(values))
    std = float(np.std(values, ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * std / len(values) ** 0.5
    return Summary(mean, std, mean - half, mean + half, len(values))


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test over seeds: both runs of a seed share data and weights.

    Returns None if there is nothing to test: fewer than two seeds, or the same difference for every
    seed, from which rounding would make a tiny deviation and a tiny p.
    """
    difference = np.subtract(ours, theirs, dtype=np.float64)
    size = np.abs([*ours, *theirs]).max(initial=0.0)
    if len(difference) < 2 or np.ptp(difference) <= ROUNDING * size:
        return None
    t = difference.mean() / (difference.std(ddof=1) / len(difference) ** 0.5)
    return float(2 * stdtr(len(difference) - 1, -abs(t)))


def permutation_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Two-sided p of the exact permutation test over seeds: signs of the differences flip.

    It makes no assumption about their distribution, and cannot be below 2 / 2ⁿ: .0625 with five
    seeds. Above 13 seeds, it uses 10,000 draws. None for fewer than two seeds.
    """
    difference = np.subtract(ours, theirs, dtype=np.float64)
    if len(difference) < 2:
        return None
    exact = 2 ** len(difference) <= DRAWS
    signs = _signs(len(difference), exact=exact)
    sums, alike = np.abs(signs @ difference), ROUNDING * np.abs(difference).max()
    extreme = int((sums >= abs(difference.sum()) - alike).sum())
    # Beside draws, the signs that came about count as one more.
    return extreme / len(signs) if exact else (extreme + 1) / (DRAWS + 1)


@cache
def _signs(count: int, *, exact: bool) -> Float[np.ndarray, "b n"]:
    """Every pattern of signs, or draws of them."""
    if exact:
        return 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    return np.random.default_rng(0).choice((-1.0, 1.0), (DRAWS, count))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for testing several methods: the i-th smallest p times (n - i)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return [float(value) for value in corrected]
