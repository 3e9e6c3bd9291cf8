"""How well a clustering agrees with the classes."""

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from evenly import distributed
from evenly.errors import UserError

MOST = 10_000_000
"""Classes or clusters beyond which a number is taken for something else."""

_CHUNK = 2**20  # samples that are counted at a time, so that many of them take no memory


@torch.no_grad()
def purity(
    cluster: Shaped[Tensor, " n"], target: Shaped[Tensor, " n"], *, sharded: bool = False
) -> float:
    """The share of samples, 0 to 1, that are of their cluster's commonest class.

    (1/N) sum over clusters of the largest overlap with a class (Wei et al., ECCV 2024).

    Args:
        cluster: Cluster of each sample, numbered from 0, in integers of any type.
        target: Class of each sample, the same.
        sharded: Whether these samples are this rank's share; every rank must then call.

    Raises:
        TypeError: If the numbers are no tensors of integers.
        ValueError: If there is no sample, over all ranks, or a number is below 0 or so large that
            it numbers nothing.
    """
    cluster, target = _whole_numbers("cluster", cluster), _whole_numbers("target", target)
    both = (cluster, target)
    # The extremes decide the size of the table and the errors, the same on every rank.
    highest = torch.stack([x.max() + 1 if len(x) else x.new_zeros(()) for x in both])
    lowest = torch.stack([x.min() if len(x) else x.new_zeros(()) for x in both])
    if sharded:
        distributed.max_(highest)
        distributed.min_(lowest)
    clusters, classes = highest.clamp_min(0).tolist()
    if clusters == 0:
        raise UserError("purity: there is no sample. Pass at least one.")
    for name, value in zip(("cluster", "target"), lowest.tolist(), strict=True):
        if value < 0:
            raise UserError(f"purity: {name} must be numbered from 0; found {value}.")
    for name, count in (("cluster", clusters), ("target", classes)):
        if count > MOST:
            raise UserError(
                f"purity: {name} must be numbered from 0; found {count - 1}. Of any other numbers "
                "x.unique(return_inverse=True)[1] makes such."
            )
    return of_table(counted(cluster, target, clusters, classes, sharded=sharded))


def counted(
    cluster: Int[Tensor, " n"],
    target: Int[Tensor, " n"],
    clusters: int,
    classes: int,
    *,
    sharded: bool = False,
) -> Int[Tensor, "clusters classes"]:
    """How many samples of each class each cluster holds, over all ranks."""
    table = cluster.new_zeros(clusters * classes)
    for mine, own in zip(cluster.split(_CHUNK), target.split(_CHUNK), strict=True):
        table += torch.bincount(mine * classes + own, minlength=len(table))
    return distributed.sum_(table, sharded=sharded).view(clusters, classes)


def of_table(table: Int[Tensor, "clusters classes"]) -> float:
    """The purity of clusters that hold so many samples of each class."""
    return int(table.amax(1).sum()) / int(table.sum())


def shuffled(
    table: Int[Tensor, "clusters classes"], seed: int, times: int
) -> list[Int[Tensor, "clusters classes"]]:
    """What the clusters hold after the labels were shuffled, several times; on the CPU.

    Each cluster draws as many labels as it has samples from those that are left.
    """
    draw = np.random.default_rng(seed).multivariate_hypergeometric
    table = table.cpu()
    some = table.sum(0) > 0
    sizes, labels = table.sum(1).tolist(), table.sum(0)[some].numpy()
    found = []
    for _ in range(times):
        left, one = labels, torch.zeros_like(table)
        for row, size in zip(one, sizes, strict=True):
            drawn = draw(left, size, method="marginals")
            row[some] = torch.from_numpy(drawn)
            left = left - drawn
        found.append(one)
    return found


def _whole_numbers(name: str, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"purity: {name} is a tensor of integers; found {found}. torch.as_tensor makes a "
            "tensor of an array, .long() integers of its numbers."
        )
    return x.long()
