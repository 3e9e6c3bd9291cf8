"""Mean, interval and paired test over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
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
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * std / len(values) ** 0.5
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
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def permutation_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Two-sided p of the exact permutation test over seeds: signs of the differences flip.

    It makes no assumption about their distribution, and cannot be below 2 / 2ⁿ: .0625 with five
    seeds. Above 13 seeds, it uses 10,000 draws. None for fewer than two seeds.
    """
    difference = np.subtract(ours, theirs, dtype=np.float64)
    if len(difference) < 2:
        return None
    found = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for testing several methods: the i-th smallest p times (n - i)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return [float(value) for value in corrected]
