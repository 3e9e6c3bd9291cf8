"""How well a clustering agrees with the classes."""

import torch
from jaxtyping import Int
from torch import Tensor

from evenly import distributed

_CHUNK = 2**20  # samples that are counted at a time, so that many of them take no memory


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
    both = (cluster, target)
    # The extremes decide the size of the table and the errors, the same on every rank.
    highest = torch.stack([x.max().long() + 1 if len(x) else x.new_zeros(()).long() for x in both])
    lowest = torch.stack([x.min().long() if len(x) else x.new_zeros(()).long() for x in both])
    if sharded:
        distributed.max_(highest)
        distributed.min_(lowest)
    clusters, classes = highest.clamp_min(0).tolist()
    if clusters == 0:
        raise ValueError("purity: there is no sample. Pass at least one.")
    for name, value in zip(("cluster", "target"), lowest.tolist(), strict=True):
        if value < 0:
            raise ValueError(f"purity: {name} must be numbered from 0; found {value}.")
    table = highest.new_zeros(clusters * classes)
    for mine, own in zip(cluster.split(_CHUNK), target.split(_CHUNK), strict=True):
        table += torch.bincount(mine.long() * classes + own, minlength=len(table))
    if sharded:
        distributed.sum_(table)
    overlap = table.view(clusters, classes).amax(1).sum()
    return float(overlap / table.sum())
