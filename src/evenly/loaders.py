"""Reads a loop's loaders in an order of our own, with batches in the same form."""

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from evenly import distributed
from evenly.resampling import Repeated, Resampler

# Where accelerate and Fabric keep the loader whose batches they put on a device.
_WITHIN = ("base_dataloader", "_dataloader")
# Their samplers give the same rows as the classes they derive from; others may give any.
_TRUSTED = {
    *("torch", "torchdata", "accelerate", "evenly"),
    *("lightning", "lightning_fabric", "pytorch_lightning"),
}


@dataclass(frozen=True)
class Draw:
    """What a sampler gives in an epoch.

    Attributes:
        rows: Rows of the data set to draw from, repeated as often as the sampler has them.
        count: The number of rows drawn.
        replacement: Whether to draw with replacement.
        weights: How likely each row is; all the same by default.
    """

    rows: Int[Tensor, " r"]
    count: int
    replacement: bool = False
    weights: Float[Tensor, " r"] | None = None

    def again(self, stream: torch.Generator) -> Int[Tensor, " count"]:
        """The rows of another epoch, in random order."""
        size = len(self.rows)
        if self.weights is not None:
            drawn = torch.multinomial(self.weights, self.count, self.replacement, generator=stream)
        elif self.replacement:
            drawn = torch.randint(size, (self.count,), generator=stream)
        else:
            rounds = range(-(-self.count // max(size, 1)))
            drawn = torch.cat([torch.randperm(size, generator=stream) for _ in rounds])[
                : self.count
            ]
        return self.rows[drawn]


def drawn(loader: Iterable[Any], *, every: bool = False) -> Draw | None:
    """What the sampler of a loader gives; None if unknown.

    Args:
        loader: Whatever the loop reads.
        every: Whether a custom sampler stands for all rows of the data set.
    """
    core = _core(loader)
    if core is None or isinstance(core.dataset, IterableDataset):
        return None
    if hasattr(loader, "_fetch_batches"):  # accelerate's, in which one rank reads for all
        return None
    batches, _ = _batches(core)
    if not _is_theirs(batches, BatchSampler | Repeated):
        return None
    found = _draw(batches.sampler)
    if found is None and every and isinstance(core.dataset, Sized):
        return _draw(range(len(core.dataset)))
    return found


def share(rows: Int[Tensor, " r"], fraction: float, seed: int) -> Int[Tensor, " s"]:
    """Each row once, in the order of the data set; a fraction of them is drawn at random."""
    rows = rows.unique()
    if fraction < 1 and len(rows):
        stream = torch.Generator().manual_seed(seed)
        kept = torch.randperm(len(rows), generator=stream)[: _part(fraction, len(rows))]
        rows = rows[kept].sort().values
    return rows


class Reading:
    """Batches of given rows, as the loop's own loader makes them.

    Attributes:
        is_followed: Whether the loader took these rows: one with its own order does not.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        rows: Callable[[], Tensor],
        count: int,
        size: int | None = None,
        *,
        drop_last: bool = False,
    ) -> None:
        """Prepares the reading.

        Args:
            loader: A loader whose sampler `drawn` recognises.
            rows: Returns the rows of a pass.
            count: The number of rows.
            size: Batch size; the loader's own by default.
            drop_last: Whether to leave out an incomplete last batch.
        """
        self._given = _Given(rows, count, size or batch_size(loader), drop_last)
        self._loader = _like(loader, self._given)

    @property
    def is_followed(self) -> bool:
        """Whether the loader took the rows."""
        return self._given.is_read

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


class _Given(BatchSampler):
    """Batches of rows, and whether anyone has read them."""

    def __init__(self, rows: Callable[[], Tensor], count: int, size: int, drop_last: bool) -> None:
        super().__init__(range(count), size, drop_last)  # of this length in each pass
        self.rows, self.is_read = rows, False

    def __iter__(self) -> Iterator[list[int]]:
        self.is_read = True
        self.sampler = self.rows().tolist()
        return super().__iter__()


def as_it_comes(loader: Iterable[Any], fraction: float = 1.0) -> Iterator[Any]:
    """The first batches of a loader; all of them if it does not know its length."""
    try:
        known = fraction < 1 and isinstance(loader, Sized)
        count = _part(fraction, len(loader)) if known else None  # type: ignore[arg-type]
    except TypeError:  # a DataLoader of an IterableDataset
        count = None
    return islice(loader, count)


def shuffled(loader: Iterable[Any], epochs: int, seed: int) -> Iterator[Any]:
    """Batches of this rank's share for some epochs of training, in random order."""
    draw = drawn(loader)
    if draw is None:
        for epoch in range(epochs):
            _set_epoch(loader, epoch)
            yield from loader
        return
    size, world = batch_size(loader), distributed.world_size()
    stream = torch.Generator().manual_seed(seed)
    each = -(-draw.count // world)

    def rows() -> Tensor:
        found = draw.again(stream)
        mine = torch.arange(distributed.rank(), each * world, world)
        return found[mine % len(found)] if len(found) else found  # equally many on each rank

    # BatchNorm cannot train on a last batch of one.
    core = cast(DataLoader[Any], _core(loader))
    drop = _batches(core)[0].drop_last or (each > 1 and each % size == 1)
    reading = Reading(loader, rows, each, drop_last=drop)
    for _ in range(epochs):
        yield from reading


def batch_size(loader: Iterable[Any]) -> int:
    """The batch size of a loader whose sampler `drawn` recognises."""
    batches, ranks = _batches(cast(DataLoader[Any], _core(loader)))
    return max(int(batches.batch_size) // ranks, 1)


def keeps_order(loader: Iterable[Any]) -> bool:
    """Whether the rows of a batch are guaranteed to be in the order of the draw."""
    core = _core(loader)
    return core is not None and core.collate_fn is default_collate


@contextmanager
def untouched(*loaders: Iterable[Any]) -> Iterator[None]:
    """Restores what a pass over loaders changes: random streams, epochs, counters."""
    parts = list(_parts(loaders))
    counters = [
        (part, {name: x for name, x in vars(part).items() if isinstance(x, int | float | str)})
        for part in parts
        if isinstance(part, DataLoader | Sampler) or not vars(part).keys().isdisjoint(_WITHIN)
    ]
    streams = {id(x): x for part in parts for x in vars(part).values() if _state(x) is not None}
    states = [(stream, _state(stream)) for stream in streams.values()]
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_cuda()):
            yield
    finally:
        for part, found in counters:
            vars(part).update(found)
        for stream, state in states:
            _set_state(stream, state)
        random.setstate(python)
        np.random.set_state(arrays)


def seed_all(seed: int) -> None:
    """Seeds the streams that `untouched` restores, and no other device's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in _cuda():
        torch.cuda.default_generators[device].manual_seed(seed)


def _cuda() -> list[int]:
    """The CUDA device in use; none before CUDA has started, and this must not start it."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def _part(fraction: float, count: int) -> int:
    """A fraction of a count, rounded up; 0.07 of 100 is 7, although 0.07 * 100 > 7 in floats."""
    return max(1, math.ceil(round(fraction * count, 6)))


def _core(loader: Any) -> DataLoader[Any] | None:
    """The `DataLoader` that makes the batches, which may be inside another."""
    for name in _WITHIN:
        if isinstance(inner := getattr(loader, "__dict__", {}).get(name), DataLoader):
            return _core(inner)
    return loader if isinstance(loader, DataLoader) else None


def _batches(core: DataLoader[Any]) -> tuple[Any, int]:
    """The batch sampler of all ranks, and how many ranks share each batch."""
    batches: Any = core.batch_sampler
    ranks = 1
    while hasattr(batches, "batch_sampler"):  # accelerate's share of a rank
        if batches.split_batches:
            ranks *= batches.num_processes
        batches = batches.batch_sampler
    return batches, ranks


def _like(loader: Any, batches: BatchSampler) -> Any:
    """A loader that differs only in its batches: device, workers and class stay."""
    found = copy.copy(loader)
    vars(found).update(  # a DataLoader forbids to set these
        {name: _like(x, batches) for name, x in vars(found).items() if name in _WITHIN},
        batch_sampler=batches,
        sampler=batches,
        _iterator=None,
    )
    return found


def _draw(sampler: Any) -> Draw | None:
    try:
        return _told(sampler)
    except (TypeError, ValueError, RuntimeError):  # rows that are not numbers, for example
        return None


def _told(sampler: Any) -> Draw | None:
    if isinstance(sampler, list | tuple | range):
        rows = torch.tensor(list(sampler), dtype=torch.int64)
        return Draw(rows, len(rows))
    if not _is_theirs(sampler, Sampler):
        return None
    if isinstance(sampler, SubsetRandomSampler):
        rows = torch.as_tensor(sampler.indices)
        return None if rows.is_floating_point() else Draw(rows.long(), len(rows))
    if isinstance(sampler, WeightedRandomSampler):
        weights = torch.as_tensor(sampler.weights)
        rows = weights.nonzero().flatten()
        return Draw(rows, sampler.num_samples, sampler.replacement, weights[rows])
    if hasattr(sampler, "data_source"):  # all of it, in order or at random
        rows = torch.arange(len(sampler.data_source))
        count = getattr(sampler, "num_samples", len(rows))
        return Draw(rows, count, getattr(sampler, "replacement", False))
    if not isinstance(sampler, DistributedSampler):
        return None
    # Lightning shares the rows of any sampler among ranks.
    inner = getattr(sampler.dataset, "_sampler", None)
    if isinstance(inner, Sampler):
        return _draw(inner)
    # A sampler of one rank gives all rows, which accelerate shares by batches. Any other number of
    # ranks does not match this process group.
    shares = (1, distributed.world_size())
    if not isinstance(sampler, Resampler) and sampler.num_replicas not in shares:
        return None
    rows = torch.arange(len(cast(Sized, sampler.dataset)))
    return Draw(rows, len(rows))


def _is_theirs(sampler: Any, kinds: Any) -> bool:
    """Whether a sampler gives rows as one of these kinds does, without a subclass's own order."""
    maker = next((cls for cls in type(sampler).__mro__ if "__iter__" in vars(cls)), object)
    return isinstance(sampler, kinds) and maker.__module__.split(".")[0] in _TRUSTED


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tells samplers that shuffle by epoch which epoch it is."""
    for part in _parts([loader]):
        if isinstance(part, Sampler) and callable(set_epoch := getattr(part, "set_epoch", None)):
            set_epoch(epoch)


def _parts(loaders: Iterable[Any]) -> Iterator[Any]:
    """Loaders, and the loaders, samplers and data sets within them, each once."""
    seen: set[int] = set()
    rest = list(loaders)
    while rest:
        part = rest.pop()
        if id(part) in seen or not hasattr(part, "__dict__"):
            continue
        seen.add(id(part))
        yield part
        for name, value in list(vars(part).items()):
            within = value if isinstance(value, list | tuple) else [value]
            if name in ("sampler", "batch_sampler") or all(
                isinstance(x, DataLoader | Sampler | Dataset) for x in within[:1]
            ):
                rest += within


def _state(x: Any) -> Any:
    """The state of a random stream; None for anything else."""
    if isinstance(x, torch.Generator | np.random.RandomState):
        return x.get_state()
    if isinstance(x, np.random.Generator):
        return x.bit_generator.state
    return x.getstate() if isinstance(x, random.Random) else None


def _set_state(x: Any, state: Any) -> None:
    if isinstance(x, torch.Generator | np.random.RandomState):
        x.set_state(state)
    elif isinstance(x, np.random.Generator):
        x.bit_generator.state = state
    else:
        x.setstate(state)
