"""The only file that knows about ranks.

Every function is a no-op on one process, and where `sharded=False` says that each rank holds
all the data. What decides a change of weights or gradients goes through here, so that it is
computed from all ranks' data and is the same on each rank.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_(x: Tensor, *, sharded: bool = True) -> Tensor:
    """Adds `x` over all ranks, in place."""
    if sharded and world_size() > 1:
        dist.all_reduce(x)
    return x


def mean_(x: Tensor) -> Tensor:
    """Averages `x` over all ranks, in place."""
    return sum_(x).div_(world_size()) if world_size() > 1 else x


def min_(x: Tensor, *, sharded: bool = True) -> Tensor:
    """The smallest of each element over all ranks, in place."""
    if sharded and world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MIN)
    return x


def max_(x: Tensor, *, sharded: bool = True) -> Tensor:
    """The largest of each element over all ranks, in place."""
    if sharded and world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def gather(x: Tensor, *, sharded: bool = True) -> list[Tensor]:
    """`x` of every rank, in rank order; the first dimension may differ from rank to rank."""
    if not sharded or world_size() == 1:
        return [x]
    lengths = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(x)], device=x.device))
    sizes = [int(length) for length in lengths]
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def share(count: int) -> Tensor:
    """This rank's share of `count` positions: rank, rank + world, ... and equally many on each.

    Positions from `count` on are there to even out the ranks, as a model's own collectives
    (FSDP) need the same number of forward passes on each; the caller drops their rows.
    """
    even = -(-count // world_size()) * world_size()
    return torch.arange(rank(), even, world_size())


def reshard(model: nn.Module) -> None:
    """Gives FSDP2 its shards back after a forward pass without a backward.

    Until then the root's parameters are whole copies, and what is written to them is lost.
    """
    if world_size() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(x: Tensor) -> bool:
    """Whether `x` is a DTensor, as FSDP2 and tensor parallelism make of a parameter."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def local(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    if is_sharded(x):
        part: Tensor = x.to_local()  # type: ignore[attr-defined]
        return part
    return x


def shard_like(full: Tensor, reference: Tensor) -> Tensor:
    """This rank's part of `full`, cut as `reference` is; `full` itself if that is whole.

    `full` must be the same on every rank; nothing is communicated.
    """
    if not is_sharded(reference) or is_sharded(full):
        return local(full)
    from torch.distributed.tensor import distribute_tensor

    return local(
        distribute_tensor(
            full,
            reference.device_mesh,  # type: ignore[attr-defined]
            reference.placements,  # type: ignore[attr-defined]
            src_data_rank=None,
        )
    )


def std(x: Tensor) -> Tensor:
    """The standard deviation over all elements of `x`, sharded or not (n - 1 in the divisor)."""
    if not is_sharded(x):
        return x.std()
    part = local(x).double()
    moments = torch.stack([part.sum(), part.square().sum()])
    placed: Sequence[object] = x.placements  # type: ignore[attr-defined]
    for dim, placement in enumerate(placed):
        if placement.is_shard():  # type: ignore[attr-defined]
            group = x.device_mesh.get_group(dim)  # type: ignore[attr-defined]
            dist.all_reduce(moments, group=group)
    total, squares = moments
    n = x.numel()
    spread: Tensor = ((squares - total.square() / n) / (n - 1)).clamp_min(0).sqrt()
    return spread.to(x.dtype)
