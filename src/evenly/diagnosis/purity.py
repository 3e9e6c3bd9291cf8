"""How well a clustering agrees with classes, or with several labels per sample."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from evenly import distributed
from evenly.errors import UserError

MOST = 10_000_000
"""Largest class or cluster number; a larger one must be something else."""

_CHUNK = 2**20  # samples counted at a time, so that many samples take no memory


@torch.no_grad()
def purity(
    cluster: Shaped[Tensor, " n"], target: Shaped[Tensor, "n *c"], *, sharded: bool = False
) -> float:
    """The share of samples, 0 to 1, that belong to their cluster's commonest class.

    (1/N) sum over clusters of the largest overlap with a class (Wei et al., ECCV 2024).

    No paper defines it for several labels. Here each cluster stands for a set of labels, and the
    purity is the average overlap of a sample's labels with its cluster's: the Jaccard index
    |both| / |either|, 1 if neither has any. It ignores agreement on absent labels, which would be
    high for rare labels. A cluster stands for its commonest labels, as many as fit best. If each
    sample has exactly one label, or there is one label that a sample has or not, it equals the
    published purity.

    Args:
        cluster: Cluster of each sample, numbered from 0, in integers of any type.
        target: Class of each sample, likewise; or (n, c) of several labels, 1 or 0, of any type.
        sharded: Whether these samples are only this rank's share; then every rank must call this.

    Raises:
        TypeError: If the numbers are not tensors of integers.
        ValueError: If there is no sample, over all ranks, or a number is below 0 or implausibly
            large.
    """
    cluster = _whole_numbers("cluster", cluster)
    sets = None
    if isinstance(target, Tensor) and target.ndim == 2:
        check_labels("purity: target", target, sharded=sharded)
        sets, target = LabelSets.of(target, sharded=sharded)
    target = _whole_numbers("target", target)
    both = (cluster, target)
    # The extremes decide the table's size and any error, the same on every rank.
    highest = torch.stack([x.max() + 1 if len(x) else x.new_zeros(()) for x in both])
    lowest = torch.stack([x.min() if len(x) else x.new_zeros(()) for x in both])
    if sharded:
        distributed.max_(highest)
        distributed.min_(lowest)
    clusters, classes = highest.clamp_min(0).tolist()
    if clusters == 0:
        raise UserError("purity: no samples. Pass at least one.")
    for name, value in zip(("cluster", "target"), lowest.tolist(), strict=True):
        if value < 0:
            raise UserError(f"purity: {name} must be numbered from 0; found {value}.")
    for name, count in (("cluster", clusters), ("target", classes)):
        if count > MOST:
            raise UserError(
                f"purity: {name} must be numbered from 0; found {count - 1}. Number other "
                "values with x.unique(return_inverse=True)[1]."
            )
    return of_table(counted(cluster, target, clusters, classes, sharded=sharded), sets)


def counted(
    cluster: Int[Tensor, " n"],
    target: Int[Tensor, " n"],
    clusters: int,
    classes: int,
    *,
    sharded: bool = False,
) -> Int[Tensor, "clusters classes"]:
    """The number of samples of each class in each cluster, over all ranks."""
    table = cluster.new_zeros(clusters * classes)
    for mine, own in zip(cluster.split(_CHUNK), target.split(_CHUNK), strict=True):
        table += torch.bincount(mine * classes + own, minlength=len(table))
    return distributed.sum_(table, sharded=sharded).view(clusters, classes)


@dataclass(frozen=True)
class LabelSets:
    """The sets of labels that samples have; a sample's target is the number of its set.

    Attributes:
        has: Which labels each set has.
    """

    has: Bool[Tensor, "m c"]

    @staticmethod
    def of(
        labels: Shaped[Tensor, "n c"], *, sharded: bool = False
    ) -> "tuple[LabelSets, Int[Tensor, ' n']]":
        """The sets over all ranks, and the number of each sample's set."""
        own = (labels > 0).to(torch.uint8)
        every = torch.cat(distributed.gather(own.unique(dim=0), sharded=sharded)).unique(dim=0)
        number = torch.cat([every, own]).unique(dim=0, return_inverse=True)[1]
        return LabelSets(every.bool()), number[len(every) :]

    def fit(self, table: Int[Tensor, "k m"]) -> Float[Tensor, "k m"]:
        """The Jaccard index of each cluster's labels with each set; on the CPU."""
        has, named = self.has[: table.shape[1]].cpu().double(), self.named(table).double()
        return jaccard(named @ has.T, named.sum(1, True) + has.sum(1))

    def named(self, table: Int[Tensor, "k m"]) -> Bool[Tensor, "k c"]:
        """The labels that each cluster stands for; on the CPU."""
        has = self.has[: table.shape[1]].cpu().double()
        size, named = has.sum(1), has.new_zeros(len(table), has.shape[1], dtype=torch.bool)
        most = torch.arange(has.shape[1] + 1, device="cpu")
        for counts, own in zip(table.cpu(), named, strict=True):
            here = counts > 0
            count = counts[here].double()
            order = (count @ has[here]).argsort(descending=True, stable=True)
            both = has[here][:, order].cumsum(1)
            both = torch.cat([both.new_zeros(len(both), 1), both], 1)  # for 0, 1, ... labels
            found = count @ jaccard(both, size[here, None] + most)
            # In a tie, which rounding may hide, the fewest labels.
            fewest = int((found >= found.max() - 1e-6).int().argmax())
            own[order[:fewest]] = True
        return named

    def rarest(self, count: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
        """Each set's rarest label, given each set's count; for the empty set, one past the last."""
        of_label = (count[:, None] * self.has).sum(0)
        order = of_label.argsort(stable=True)
        ranked = self.has[:, order]
        return order[ranked.int().argmax(1)].where(ranked.any(1), len(order))


def are_labels(target: Shaped[Tensor, "n *c"], *, sharded: bool = False) -> bool:
    """Whether a target holds 0 or 1 for each of several labels, on every rank."""
    if target.ndim != 2:
        return False
    bad = (~((target == 0) | (target == 1))).any().long()
    return not int(distributed.max_(bad, sharded=sharded))


def check_labels(where: str, labels: Shaped[Tensor, "n c"], *, sharded: bool = False) -> None:
    """Raises on every rank if labels are not 0 and 1."""
    if not are_labels(labels, sharded=sharded):
        raise UserError(
            f"{where} of shape {tuple(labels.shape)} is of several labels a sample, which are 0 or "
            "1 each; found other values. Pass (labels >= 0.5), or one class or value a sample."
        )


def fit(table: Int[Tensor, "k m"], sets: LabelSets | None = None) -> Float[Tensor, "k m"]:
    """How well what each cluster stands for fits each class or set of labels, 0 to 1; on the CPU.

    For classes, it is 1 for the cluster's commonest and 0 for all others.
    """
    if sets is not None:
        return sets.fit(table)
    table = table.cpu()
    found = table.new_zeros(table.shape, dtype=torch.float64)
    return found.scatter_(1, table.argmax(1, keepdim=True), 1)


def of_table(table: Int[Tensor, "clusters classes"], sets: LabelSets | None = None) -> float:
    """The purity of clusters with these numbers of samples of each class or set of labels."""
    if sets is None:
        return int(table.amax(1).sum()) / int(table.sum())
    table = table.cpu()
    return float((table * sets.fit(table)).sum()) / int(table.sum())


def jaccard(both: Float[Tensor, "*n"], together: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The Jaccard index of pairs of sets; 1 if both are empty.

    Args:
        both: The number of common elements.
        together: The sizes of the two, added.
    """
    either = together - both
    return torch.where(either > 0, both / either, 1.0)


def shuffled(
    table: Int[Tensor, "clusters classes"], seed: int, times: int
) -> list[Int[Tensor, "clusters classes"]]:
    """The clusters' contents after shuffling the labels, several times; on the CPU.

    Each cluster draws as many labels as it has samples from the remaining ones.
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
