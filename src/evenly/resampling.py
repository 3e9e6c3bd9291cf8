"""Orders of samples that a method may set: a sampler, and batches that come several times."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler

from evenly import distributed
from evenly.errors import UserError


class Resampler(DistributedSampler[Any]):
    """A shuffling sampler whose pool of samples a method may change before each epoch.

    ```python
    sampler = evenly.Resampler(dataset, seed=0)
    loader = DataLoader(dataset, 64, sampler=sampler)
    method = evenly.methods.SMV(encoders, sampler=sampler)
    ```

    As long as no method has set `pool`, it works like PyTorch's `DistributedSampler`: each rank
    takes part of the samples, and you call `set_epoch` before each epoch; else each epoch has the
    same order. A method that sets the pool calls it in its `before_epoch`.

    With n samples in the data set, entry i of the pool means sample i % n in variant i // n, which
    the method interprets. The data set itself only sees i % n, so any will do. Epochs keep their
    length: an epoch draws as many entries from the pool as there are samples, each as often as the
    pool holds it (all of them again if the pool is shorter than an epoch). The draw depends on seed
    and epoch, so that a resumed run repeats it.

    Attributes:
        pool: Entries to draw from, the same on each rank; None for every sample once.
        batch_size: If given, batches of this size (over all ranks) hold one variant each, except
            for the remainder, which comes last.
        passes: Batches per step (gradient accumulation): that many in a row then hold one variant.
        in_order: Whether entries come in the pool's order rather than in random order.
    """

    pool: Int[Tensor, " p"] | None

    def __init__(
        self,
        dataset: Any,
        num_replicas: int | None = None,
        rank: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """Prepares the order, which equals that of `DistributedSampler` with the same seed.

        Args:
            dataset: The data set to sample.
            num_replicas: Number of ranks; the process group's by default.
            rank: This rank; the process group's by default.
            seed: Seed of the order.
        """
        world = distributed.world_size() if num_replicas is None else num_replicas
        super().__init__(
            dataset, world, distributed.rank() if rank is None else rank, shuffle=True, seed=seed
        )
        self.pool = None
        self.batch_size: int | None = None
        self.passes = 1
        self.in_order = False

    @property
    def count(self) -> int:
        """The number of samples, n."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        if self.pool is None:
            return super().__iter__()
        order = self._drawn(self.pool) % self.count
        return iter(order[self.rank :: self.num_replicas].tolist())

    def _drawn(self, pool: Tensor) -> Tensor:
        if not len(pool):
            raise UserError(
                "Resampler: the pool is empty, so there is nothing to draw from. Write entries "
                "to it, or None for every sample once."
            )
        pool = pool.cpu()
        stream = torch.Generator().manual_seed(self.seed + self.epoch)
        rounds = -(-self.total_size // len(pool))
        parts = [
            pool if self.in_order else pool[torch.randperm(len(pool), generator=stream)]
            for _ in range(rounds)
        ]
        order = torch.cat(parts)[: self.total_size]
        return order if self.batch_size is None else self._grouped(order, stream)

    def _grouped(self, order: Tensor, stream: torch.Generator) -> Tensor:
        """Whole batches of one variant in random order, then the remainder."""
        assert self.batch_size is not None
        size = self.batch_size * self.passes
        whole: list[Tensor] = []
        rest: list[Tensor] = []
        for variant in torch.unique(order // self.count):
            group = order[order // self.count == variant]
            cut = len(group) // size * size
            whole += group[:cut].split(size) if cut else []
            rest.append(group[cut:])
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=stream).tolist()]
        return torch.cat([*shuffled, *rest])


class Repeated(BatchSampler):
    """Batches that come several times in a row, for a method with `repeats`.

    ```python
    batches = evenly.Repeated(sampler, batch_size=64, repeats=method.repeats)
    loader = DataLoader(dataset, batch_sampler=batches)
    ```
    """

    def __init__(
        self, sampler: Any, batch_size: int, drop_last: bool = False, repeats: int = 1
    ) -> None:
        """Prepares the batches.

        Args:
            sampler: Sampler of the samples.
            batch_size: Samples in a batch.
            drop_last: Whether to leave out an incomplete last batch.
            repeats: How often each batch comes.
        """
        super().__init__(sampler, batch_size, drop_last)
        self.repeats = repeats

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            for _ in range(self.repeats):
                yield list(batch)

    def __len__(self) -> int:
        return super().__len__() * self.repeats


def kept_alone(
    features: Mapping[str, Float[Tensor, "n _"]],
    names: Sequence[str],
    variant: Int[Tensor, " n"],
) -> dict[str, Float[Tensor, "n _"]]:
    """The features with all but one modality zeroed, sample by sample.

    Args:
        features: Features by modality.
        names: The modalities in order.
        variant: Variant of each sample: 0 keeps all modalities, v from 1 only the v-th.
    """
    found = dict(features)
    for number, name in enumerate(names, start=1):
        if name in features:
            x = features[name]
            dropped = (variant != 0) & (variant != number)
            found[name] = x.masked_fill(dropped.to(x.device).unsqueeze(1), 0)
    return found
