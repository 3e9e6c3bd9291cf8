"""The only file that knows about ranks.

Every function is a no-op on one process, and if `sharded=False` says that each rank holds all the
data. Whatever decides a change of weights or gradients goes through here, so that it is computed
from all ranks' data and is the same on each rank.
"""

from collections.abc import Iterable, Sequence
from typing import Any

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
    sizes: list[int] = torch.cat(lengths).tolist()
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def stack(x: Tensor) -> Tensor:
    """`x` of every rank (ranks ...), of the same shape on each; for small tensors.

    It sums zeros and one part each. That takes a number of steps logarithmic in the ranks, while a
    gather takes as many steps as there are ranks.
    """
    parts = x.new_zeros((world_size(), *x.shape))
    parts[rank()] = x
    return sum_(parts)


def share(count: int) -> Tensor:
    """This rank's share of `count` positions: rank, rank + world, ..., equally many on each.

    Positions from `count` on pad the shares, since a model's own collectives (FSDP) need the same
    number of forward passes on each rank; the caller drops their rows.
    """
    even = -(-count // world_size()) * world_size()
    return torch.arange(rank(), even, world_size())


def reshard(model: nn.Module) -> None:
    """Gives FSDP2 its shards back after a forward pass without a backward.

    Until then the root's parameters are whole copies, and anything written to them is lost.
    """
    if world_size() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def joined(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The loss, with zero gradients for parameters that it does not depend on.

    DistributedDataParallel waits for a gradient of everything a model's output depends on, and
    fails in the next step without one. This sends nothing back through the model.
    """
    if world_size() > 1:
        for parameter in parameters:
            if parameter.requires_grad and not is_sharded(parameter):
                loss = loss + parameter.reshape(-1)[:0].sum().to(loss)
    return loss


def idle(outputs: Iterable[Tensor]) -> Tensor:
    """Zero, computed from one or more outputs that a loss has no other use for.

    DistributedDataParallel waits for a gradient of everything a model's output depends on. The sum
    is over no elements, since 0 times the sum of all is NaN if float16 overflows.
    """
    return torch.stack([x.flatten()[:0].sum() for x in outputs]).sum()


def is_sharded(x: Tensor) -> bool:
    """Whether `x` is a DTensor, which FSDP2 and tensor parallelism make of a parameter."""
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


def whole(x: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank; any other as it is.

    All ranks that hold parts must call this.
    """
    if is_sharded(x):
        full: Tensor = x.full_tensor()  # type: ignore[attr-defined]
        return full
    return x


def handed_in(x: Tensor) -> Tensor:
    """A sharded tensor gathered in the host's memory of the first rank; any other as it is.

    On the other ranks it stays sharded. All ranks that hold parts must call this. One after the
    other, since a device may lack the room for all the tensors of a model.
    """
    if not is_sharded(x):
        return x
    full = whole(x)
    return full.cpu() if rank() == 0 else x


def sharded_like(full: Tensor, reference: Tensor) -> Tensor:
    """`full` as a DTensor sharded like `reference`; `full` itself if the reference is whole.

    `full` must be the same on every rank; nothing is communicated.
    """
    if not is_sharded(reference) or is_sharded(full):
        return full
    from torch.distributed.tensor import distribute_tensor

    cut: Tensor = distribute_tensor(
        full,
        reference.device_mesh,  # type: ignore[attr-defined]
        reference.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )
    return cut


def shard_like(full: Tensor, reference: Tensor) -> Tensor:
    """This rank's part of `sharded_like`."""
    return local(sharded_like(full, reference))


def sum_shards_(x: Tensor, reference: Tensor) -> Tensor:
    """Adds `x`, found on this rank's part of `reference`, over the ranks with the other parts."""
    if is_sharded(reference):
        mesh, dims = cut(reference)
        for dim in dims:
            dist.all_reduce(x, group=mesh.get_group(dim))
    return x


def std(x: Tensor) -> Tensor:
    """The standard deviation over all elements of `x`, sharded or not (n - 1 in the divisor).

    Use it for values whose mean is not far above their deviation, such as gradients: in float32,
    the relative error is 4e-4 if the mean is a hundred deviations.
    """
    part = local(x)
    # On a CPU, torch's own goes element by element and takes many times as long.
    sums = torch.stack([part.sum(), torch.linalg.vector_norm(part)]).double()
    total, squares = sum_shards_(torch.stack([sums[0], sums[1].square()]), x)
    n = x.numel()
    spread: Tensor = ((squares - total.square() / n) / (n - 1)).clamp_min(0).sqrt()
    return spread.to(x.dtype)


def square_sums(groups: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    """The sum of all squared elements of each group of tensors, sharded or not.

    The result is on `device`, in float32 or the most precise type of the tensors.
    """
    found = _square_sums([[x for x in group if not is_sharded(x)] for group in groups], device)
    for place in dict.fromkeys(cut(x) for group in groups for x in group if is_sharded(x)):
        parts = [[local(x) for x in group if is_sharded(x) and cut(x) == place] for group in groups]
        share = _square_sums(parts, device)
        mesh, dims = place
        for dim in dims:
            dist.all_reduce(share, group=mesh.get_group(dim))
        found = found + share
    return found


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The norm of this rank's part of each tensor; sparse tensors must be coalesced.

    At least in float32, since in float16 the norm of finite numbers may be infinite.
    """
    narrow = [x for x in tensors if x.dtype.itemsize < 4]
    wide = [x for x in tensors if x.dtype.itemsize >= 4]
    of_narrow = iter(torch._foreach_norm(narrow, 2, torch.float32) if narrow else ())
    of_wide = iter(torch._foreach_norm(wide) if wide else ())
    return [next(of_narrow if x.dtype.itemsize < 4 else of_wide) for x in tensors]


def cut(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """The mesh of a sharded tensor, and the mesh dimensions that shard it."""
    placed: Sequence[Any] = x.placements  # type: ignore[attr-defined]
    dims = tuple(dim for dim, placement in enumerate(placed) if placement.is_shard())
    return x.device_mesh, dims  # type: ignore[attr-defined]


def _square_sums(groups: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    flat = [x for group in groups for x in group]
    if not flat:
        return torch.zeros(len(groups), device=device)
    # Each row of a sparse gradient once.
    flat = [x.coalesce().values() if x.is_sparse else x for x in flat]
    squares = torch.stack([norm.to(device) for norm in norms(flat)]).square()
    return torch.stack([part.sum() for part in squares.split([len(group) for group in groups])])
