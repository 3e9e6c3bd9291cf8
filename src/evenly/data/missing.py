"""Removes modalities from samples so that each sample keeps one."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenly import chance

_SALT = 0x6D697373
"""Separates these random numbers from those that methods draw by sample."""
_FULL = 1 - 1e-6
"""Share of the maximum loss, at which the odds of an independent loss would be infinite."""


def lost(
    rates: Sequence[float], here: Bool[Tensor, "m n"], row: Int[Tensor, " n"], seed: int
) -> Bool[Tensor, "m n"]:
    """Which samples lose which of their modalities.

    Among samples with the same modalities, the share given by its rate loses each modality, up to
    rounding. Losses are independent, except that no sample loses its last modality. If rates ask
    for more, they are scaled down to leave one; for samples with only one modality, to 0.

    Args:
        rates: Rate of each modality, from 0 to 1.
        here: Which samples have it.
        row: A number for each sample that decides its draw, besides the seed.
        seed: Seed of the draw.
    """
    gone = torch.zeros_like(here)
    numbers = torch.stack([chance.uniform(row, _SALT, seed, m) for m in range(len(rates))])
    for pattern in here.unique(dim=1).T:
        held = pattern.nonzero().flatten()
        rows = (here == pattern[:, None]).all(0).nonzero().flatten()
        if len(held) > 1:
            some = _lost([rates[m] for m in held], numbers[held][:, rows])
            gone[held[:, None], rows] = some
    return gone


def _lost(rates: Sequence[float], numbers: Float[Tensor, "m n"]) -> Bool[Tensor, "m n"]:
    """The same for samples that have all of two or more modalities, given a number for each."""
    most = _FULL * (len(rates) - 1)
    scale = min(1.0, most / max(sum(rates), most))
    odds = unconditional([scale * rate for rate in rates])
    gone = torch.zeros(numbers.shape, dtype=torch.bool)
    keeps = torch.zeros(numbers.shape[1], dtype=torch.bool)  # keeps one so far
    for m, p in enumerate(odds):
        # Among samples that have lost all so far, those that keep one of the rest remain.
        rest = p * (1 - prod(odds[m + 1 :])) / (1 - prod(odds[m:]))
        for rows, share in ((keeps, p), (~keeps, rest)):
            seats = rows.nonzero().flatten()
            first = numbers[m, seats].argsort(stable=True)[: round(share * len(seats))]
            gone[m, seats[first]] = True
        keeps |= ~gone[m]
    return gone


def unconditional(rates: Sequence[float]) -> list[float]:
    """Probabilities of independent losses that give these rates among the remaining samples.

    The remaining samples are those that do not lose everything. With P the probability of losing
    everything, r = (p - P) / (1 - P), so that p = r + P (1 - r), and P is the smallest root of P =
    Π p.

    Args:
        rates: r of each, with a sum below their number minus 1.
    """
    everything = 0.0
    for _ in range(100):  # Newton's steps rise to the root, since the difference is convex
        p = [rate + everything * (1 - rate) for rate in rates]
        slope = sum((1 - r) * prod(p[:m] + p[m + 1 :]) for m, r in enumerate(rates)) - 1
        everything -= (prod(p) - everything) / slope
    return [rate + everything * (1 - rate) for rate in rates]
