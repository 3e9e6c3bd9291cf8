"""What two modalities tell about the class: in common, each alone, and only together.

After Yang, Wang, Hu, "Efficient Quantification of Multimodal Interaction at Sample Level" (LSMI),
ICML 2025, https://arxiv.org/abs/2506.17248, with linear probes for its discriminators. The paper
derives the redundancy from entropies of the features. Here it is the information of the weaker
modality (Barrett, "Exploration of synergistic and redundant information sharing in static and
dynamical Gaussian systems", 2015), so two different bits count as shared.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly.diagnosis.estimate import placed
from evenly.diagnosis.linear_probe import Read, read
from evenly.features import Features

TRUST = 21
"""Degrees, from 0 to 1, of moving the classes' shares towards a probe's prediction."""


@dataclass(frozen=True)
class Interaction:
    """The parts for two modalities, in bits, for each sample of the validation split.

    They are NaN for a sample that lacks one of the two, or whose class no training sample has.

    Attributes:
        redundant: What both tell.
        unique: By modality, what it tells beyond that.
        synergy: What only both together tell; below 0 if a probe on both is worse.
    """

    redundant: Float[Tensor, " n"]
    unique: Mapping[str, Float[Tensor, " n"]]
    synergy: Float[Tensor, " n"]


def interactions(train: Features, val: Features) -> dict[tuple[str, str], Interaction]:
    """The pointwise decomposition of what each pair of modalities tells about the class.

    With i_m = log p(y | x_m) - log p(y), from a linear probe fitted on the training split: r is the
    i of the modality that tells less on average, u_m = i_m - r, s = i_12 - r - u_1 - u_2. A probe
    is trusted as far as it is right on the other half of the samples, since an over-confident probe
    would tell less than nothing.

    Args:
        train: Features of the training split, with classes as targets.
        val: Features of the validation split, whose samples are decomposed.

    Returns:
        Results by pair, without pairs that no sample of a split has both of.
    """
    shares = train.target.bincount().to(val.target.device).double()
    prior = (shares / shares.sum()).log()
    is_known = torch.isin(val.target, train.target.to(val.target.device))
    val = val.where(is_known)

    def informed(found: Read, rows: Tensor) -> Tensor:
        """How many bits a probe tells about the class of each sample."""
        log = found.log[torch.searchsorted(found.rows, rows)].double()
        return _bits(log, prior, val.target[rows])

    known = read(train, val)
    found = {}
    for one, other in combinations(known, 2):
        pair = read(_joined(train, one, other), _joined(val, one, other)).get("")
        if pair is None:
            continue
        rows = pair.rows
        i = {name: informed(known[name], rows) for name in (one, other)}
        redundant = min(i.values(), key=lambda x: float(x.mean()))
        unique = {name: x - redundant for name, x in i.items()}
        synergy = informed(pair, rows) - redundant - unique[one] - unique[other]
        here = torch.zeros_like(is_known)
        here[is_known.nonzero()[rows, 0]] = True
        found[one, other] = Interaction(
            placed(redundant, here),
            {name: placed(x, here) for name, x in unique.items()},
            placed(synergy, here),
        )
    return found


def _bits(
    log: Float[Tensor, "k c"], prior: Float[Tensor, " c"], target: Int[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """log2 of p(y | x) / p(y), with p(y | x) ∝ p(y)^(1 - t) q(y | x)^t for a probe's q.

    t maximises the likelihood of the other half of the samples.
    """
    floor = log.clamp_min(-50)  # for a class that the probe has not seen
    trust = torch.linspace(0, 1, TRUST, dtype=torch.float64, device=log.device)[:, None, None]
    likely = ((1 - trust) * prior.clamp_min(-50) + trust * floor).log_softmax(2)
    own = likely[:, torch.arange(len(target)), target] - prior[target]
    half = torch.arange(len(target), device=log.device) % 2
    found = own[0].clone()
    for one in (0, 1):
        best = int(own[:, half != one].mean(1).argmax())
        found[half == one] = own[best, half == one]
    return found / math.log(2)


def _joined(split: Features, one: str, other: str) -> Features:
    """Both as one modality, for the samples that have both."""
    x = torch.cat([split.features[name].float() for name in (one, other)], 1)
    here = torch.ones_like(split.target, dtype=torch.bool)
    for name in (one, other):
        if name in split.present:
            here &= split.present[name].to(here.device)
    return Features({"": x}, split.target, present={"": here})
