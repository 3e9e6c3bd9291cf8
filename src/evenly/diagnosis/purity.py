"""How well a clustering agrees with the classes."""

import torch
from jaxtyping import Int
from torch import Tensor

from evenly import distributed


@torch.no_grad()
def purity(
    cluster: Int[Tensor, " n"], target: Int[Tensor, " n"], *, sharded: bool = False
) -> float:
    """The share of samples, 0 to 1, that are of their cluster's commonest class.

    (1/N) sum over clusters of the largest overlap with a class (Wei et al., ECCV 2024).

    Args:
        cluster: Cluster of each sample, numbered from 0.
        target: Class of each sample, numbered from 0.
        sharded: Whether these samples are this rank's share; every rank must then call.

    Raises:
        ValueError: If there is no sample, over all ranks, or a number is below 0.
    """
    # The extremes decide the size of the table and the errors, the same on every rank.
    pairs = torch.stack([cluster.long(), target.long()])
    none = pairs.new_zeros(2, 1)
    highest = torch.cat([pairs + 1, none], 1).amax(1)
    lowest = torch.cat([pairs, none], 1).amin(1)
    if sharded:
        distributed.max_(highest)
        distributed.min_(lowest)
    clusters, classes = highest.tolist()
    if clusters == 0:
        raise ValueError("purity: there is no sample. Pass at least one.")
    for name, value in zip(("cluster", "target"), lowest.tolist(), strict=True):
        if value < 0:
            raise ValueError(f"purity: {name} must be numbered from 0; found {value}.")
    table = torch.bincount(pairs[0] * classes + pairs[1], minlength=clusters * classes)
    if sharded:
        distributed.sum_(table)
    overlap = table.view(clusters, classes).amax(1).sum()
    return float(overlap / table.sum())
