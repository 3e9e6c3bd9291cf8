"""Which modalities are taken from which samples, so that each keeps one."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenly import chance

_SALT = 0x6D697373
"""Sets these numbers apart from those that methods draw by sample."""
_FULL = 1 - 1e-6
"""Of the most that samples can lose, as there the odds of an independent loss are infinite."""


def lost(
    rates: Sequence[float], here: Bool[Tensor, "m n"], row: Int[Tensor, " n"], seed: int
) -> Bool[Tensor, "m n"]:
    """Which samples lose which of the modalities that they have.

    Of the samples that have the same modalities, each of these is lost by its rate's share, up to
    rounding. Losses are independent but for one thing: no sample loses its last modality. Where
    rates ask for more, they are scaled down to what leaves one, those of samples that have but
    one modality to 0.

    Args:
        rates: Of each modality, from 0 to 1.
        here: Which samples have it.
        row: Of each sample, the number that its draw is a function of, beside the seed.
        seed: Of the draw.
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
    """The same of samples that have all of two modalities or more, by a number for each."""
    most = _FULL * (len(rates) - 1)
    scale = min(1.0, most / max(sum(rates), most))
    odds = unconditional([scale * rate for rate in rates])
    gone = torch.zeros(numbers.shape, dtype=torch.bool)
    keeps = torch.zeros(numbers.shape[1], dtype=torch.bool)  # a modality of those so far
    for m, p in enumerate(odds):
        # Of who has lost all so far, those are left who keep one of the rest.
        rest = p * (1 - prod(odds[m + 1 :])) / (1 - prod(odds[m:]))
        for rows, share in ((keeps, p), (~keeps, rest)):
            seats = rows.nonzero().flatten()
            first = numbers[m, seats].argsort(stable=True)[: round(share * len(seats))]
            gone[m, seats[first]] = True
        keeps |= ~gone[m]
    return gone


def unconditional(rates: Sequence[float]) -> list[float]:
    """With which probabilities to lose each independently, so that the rates are of those left.

    Left are those who do not lose all. With P the chance of that, r = (p - P) / (1 - P), so that
    p = r + P (1 - r), and P is the least root of P = Π p.

    Args:
        rates: r of each, which add up to less than their number less 1.
    """
    everything = 0.0
    for _ in range(100):  # Newton's steps rise to the root, as the difference is convex
        p = [rate + everything * (1 - rate) for rate in rates]
        slope = sum((1 - r) * prod(p[:m] + p[m + 1 :]) for m, r in enumerate(rates)) - 1
        everything -= (prod(p) - everything) / slope
    return [rate + everything * (1 - rate) for rate in rates]
