"""A look at a model on whole splits between epochs, which leaves no trace on training."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from evenly import distributed
from evenly.collected import Collected
from evenly.output import Output
from evenly.reinit import is_fixed
from evenly.resampling import Repeated

Forward = Callable[[Any, Any], tuple[Output, Tensor]]
Split = Literal["train", "val"]


@dataclass(frozen=True)
class Features:
    """Representations of one split, with the labels.

    Attributes:
        features: By modality, one row per sample, of any real type.
        target: Class of each sample (integers of any type, kept as int64), or a value to regress on
            (floats).
        index: Position of each sample in its split: the canonical order, which makes a
            clustering independent of the order of rows and of the number of ranks. Row number
            by default.
        sharded: Whether these rows are one rank's share, the others being on the other ranks.
        present: By modality, which samples have it; those it does not name are complete. The
            others do not count in a diagnosis.
    """

    features: Mapping[str, Shaped[Tensor, "n _"]]
    target: Shaped[Tensor, " n"]
    index: Shaped[Tensor, " n"] | None = None
    sharded: bool = False
    present: Mapping[str, Bool[Tensor, " n"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that rows, labels and positions belong together.

        Raises:
            TypeError: If something is no tensor, or of numbers that it cannot be of.
            ValueError: If the shapes do not fit.
        """
        if not self.features:
            raise ValueError("Features: there is no modality. Pass features by its name.")
        parts = {f"features of '{name}'": x for name, x in self.features.items()}
        parts["target"] = self.target
        if self.index is not None:
            parts["index"] = self.index
        parts |= {f"present of '{name}'": here for name, here in self.present.items()}
        for name, x in parts.items():
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"Features: the {name} is a {type(x).__name__}, but a tensor is needed. "
                    "torch.as_tensor makes one of an array."
                )
            wanted = 2 if name.startswith("features") else 1
            if x.ndim != wanted:
                raise ValueError(
                    f"Features: the {name} has shape {tuple(x.shape)}, but {wanted} dimensions "
                    "are needed: one row per sample for features, one number for target and index."
                )
            if wanted == 2 and x.shape[1] == 0:
                raise ValueError(f"Features: the {name} have no columns. Pass one or more.")
            if len(x) != len(self.target):
                raise ValueError(
                    f"Features: the {name} has {len(x)} rows for {len(self.target)} targets. "
                    "Pass the same samples in the same order."
                )
            if x.is_complex():
                raise TypeError(
                    f"Features: {name}: complex numbers ({x.dtype}). Pass real and imaginary parts "
                    "as columns of their own: torch.cat([x.real, x.imag], 1)."
                )
        if self.index is not None and (
            self.index.is_floating_point() or self.index.dtype == torch.bool
        ):
            kind = "bools" if self.index.dtype == torch.bool else "floats"
            raise TypeError(
                f"Features: the index holds {kind}, but positions are whole numbers. Pass them as "
                "int64."
            )
        self._take("target", self.target if self.target.is_floating_point() else self.target.long())
        self._take("index", None if self.index is None else self.index.long())
        self._take("present", {name: here.bool() for name, here in self.present.items()})

    def _take(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass's own way


class Probe:
    """Runs a model over its training and validation split, as a method asks for it.

    The model is in evaluation mode and records no gradient meanwhile; modes, the global random
    streams and those of the loaders are left as found, so that training with and without a
    look is the same bit for bit. On several ranks each looks at its own share of the rows.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        train: Iterable[Any],
        val: Iterable[Any],
        *,
        memory: int | None = None,
    ) -> None:
        """Keeps what is needed for a look; nothing runs yet.

        Args:
            model: The model, as the loop trains it (DistributedDataParallel is seen through).
            forward: `forward(model, batch)` gives an `Output` and the target, and moves the
                batch to the model's device if the loop does so itself.
            train: Loader of the training split. Of a `DataLoader` with an ordinary sampler
                every row is seen once, in the order of the data set; any other iterable of
                batches is taken as it comes.
            val: Loader of the validation split. Never the test split.
            memory: Bytes that the features of one modality on one split may take in memory
                (4 a value). What is larger lies in a temporary file, in the folder that
                `tempfile` chooses (`TMPDIR` sets it), which is deleted with the features; it
                is on the CPU, and so is their diagnosis, for which `Relearn` and `diagnose`
                have `sample`. No limit by default.

        Raises:
            ValueError: If the memory is negative.
        """
        if memory is not None and memory < 0:
            raise ValueError(f"Probe: 'memory' is bytes, from 0 (all to a file); found {memory}.")
        parallel = isinstance(model, nn.parallel.DistributedDataParallel)
        # DDP's forward synchronises buffers, which hangs when ranks have unequal batch counts.
        self.model: nn.Module = cast(nn.Module, model.module) if parallel else model
        self.forward = forward
        self.loaders: dict[Split, Iterable[Any]] = {"train": train, "val": val}
        self.memory = memory

    def features(
        self,
        split: Split,
        of: Callable[[Output, Tensor], Mapping[str, Tensor]] = lambda output, _: output.features,
        *,
        fraction: float = 1.0,
        seed: int = 0,
    ) -> Features:
        """The features of every sample of a split, in float32, on the model's device.

        Those beyond the probe's `memory` are on the CPU, in a file.

        Args:
            split: To look at.
            of: `of(output, target)` gives something else instead, by name, with one row for each
                sample of the batch: for example the logits of each modality.
            fraction: Share of the samples to look at, drawn at random; above 0, at most 1. Of a
                loader that is no ordinary `DataLoader`, its first batches.
            seed: Of that draw.

        Raises:
            ValueError: If the split is empty or the fraction is out of range.
        """
        if not 0 < fraction <= 1:
            raise ValueError(
                f"Probe.features: 'fraction' is above 0 and at most 1; found {fraction}."
            )
        loader = self.loaders[split]
        rows = _known_rows(loader, fraction)
        features: dict[str, Collected] = {}
        present: dict[str, Collected] = {}
        targets, positions = Collected(rows), Collected(rows)
        seen = 0
        try:
            with self._looking():
                for batch, position in _batches(loader, fraction, seed):
                    output, target = self._run(batch)
                    for name, value in of(output, target).items():
                        part = _real(name, value)
                        features.setdefault(name, Collected(rows, self.memory)).add(part)
                    for name, here in (output.present or {}).items():
                        present.setdefault(name, Collected(rows)).add(here)
                    targets.add(target)
                    positions.add(_position(position, output, seen).to(target.device))
                    seen += len(target)
            if not seen:
                raise _empty(split)
            index = positions.take()
            keep = _first_seen(index) if rows is None else index >= 0
            return Features(
                {name: values.take(keep) for name, values in features.items()},
                targets.take(keep),
                index[keep],
                sharded=distributed.world_size() > 1,
                present={
                    name: here.take(keep) for name, here in present.items() if name in features
                },
            )
        finally:
            for values in features.values():
                values.close()

    def sample(self, split: Split, count: int, seed: int = 0) -> tuple[Output, Tensor]:
        """One pass over samples drawn at random, with gradients recorded.

        Args:
            split: To draw from.
            count: How many samples, at most; of a loader that is no ordinary `DataLoader`, the
                first batch is taken.
            seed: Of the draw. All ranks draw the same samples.

        Raises:
            ValueError: If the split is empty or the count is below 1.
        """
        if count < 1:
            raise ValueError(f"Probe.sample: 'count' is at least 1; found {count}.")
        loader = self.loaders[split]
        with self._looking(), torch.enable_grad():
            if isinstance(loader, DataLoader) and _is_plain(loader):
                size = len(cast(Any, loader.dataset))
                stream = torch.Generator().manual_seed(seed)
                rows = torch.randperm(size, generator=stream)[:count].tolist()
                loader = _loader_like(loader, sampler=rows, batch_size=len(rows)) if rows else ()
            for batch in loader:
                return self._run(batch)
        raise _empty(split)

    @contextmanager
    def trained(
        self,
        objective: Callable[[Output, Tensor], Tensor],
        *,
        epochs: int,
        optimizer: torch.optim.Optimizer,
        seed: int = 0,
    ) -> Iterator[None]:
        """Trains the model from where it stands; in the end all is as it was.

        ```python
        with probe.trained(objective, epochs=10, optimizer=optimizer):
            teacher = probe.features("train")  # of the model trained so
        ```

        Within, the model is the trained one. Afterwards weights, buffers, modes, gradients and
        random streams are those from before. On several ranks gradients are averaged, and each
        ends with the same weights.

        The model trains in the modes that it is in, so that a BatchNorm which the loop keeps in
        evaluation mode stays so; only if it is in evaluation mode as a whole is it put into
        training mode.

        Args:
            objective: `objective(output, target)` gives the loss of one batch.
            epochs: Passes over the training split.
            optimizer: The one that the model is trained with: a new one of its kind and settings
                (the learning rate of the moment, without a schedule) does the work, itself it
                stays as it is.
            seed: Of the order of the samples, of dropout and of augmentation.
        """
        distributed.reshard(self.model)
        before = {name: value.clone() for name, value in self._tensors()}
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        modes = [(module, module.training) for module in self.model.modules()]
        kind: Any = type(optimizer)
        # A schedule that warms up may stand near 0 now: the rate is the one that it is made of.
        groups = [
            {**group, "lr": group.get("initial_lr", group["lr"])}
            for group in optimizer.param_groups
        ]
        trial = kind(groups)
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            if not self.model.training:
                self.model.train()
            with _frozen_randomness(*self.loaders.values()), torch.enable_grad():
                _seed(seed)
                for batch in _shuffled(self.loaders["train"], epochs, seed):
                    self._train_step(batch, objective, trial)
            for value in self.model.buffers():
                if value.is_floating_point():  # BatchNorm's are of a rank's own rows
                    distributed.mean_(value)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            distributed.reshard(self.model)
            with torch.no_grad():
                for name, value in self._tensors():
                    value.copy_(before[name])
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def _train_step(
        self,
        batch: Any,
        objective: Callable[[Output, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        optimizer.zero_grad()
        objective(*self._run(batch)).backward()
        _average([p for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What training can move: all but a quantised base, of which a copy would be large."""
        for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
            if not (isinstance(value, nn.Parameter) and is_fixed(value)):
                yield name, value.detach()

    def reestimate_batchnorm(self, modules: Iterable[nn.Module]) -> None:
        """Takes BatchNorm's running statistics anew from the training split.

        Args:
            modules: Where to look for BatchNorm layers; the rest of the model keeps its own.
        """
        layers: list[nn.modules.batchnorm._BatchNorm] = [
            layer
            for module in modules
            for layer in module.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats
        ]
        if not layers:
            return
        momenta = [layer.momentum for layer in layers]
        try:
            with self._looking():
                for layer in layers:
                    layer.reset_running_stats()
                    layer.momentum = None  # a plain average over all batches
                    layer.train()
                for n, (batch, position) in enumerate(_batches(self.loaders["train"])):
                    # BatchNorm can make nothing of a last batch of one.
                    if n == 0 or position is None or len(position) > 1:
                        self._run(batch)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        for layer in layers:
            distributed.mean_(cast(Tensor, layer.running_mean))
            distributed.mean_(cast(Tensor, layer.running_var))

    def _run(self, batch: Any) -> tuple[Output, Tensor]:
        returned: Any = self.forward(self.model, batch)
        if (
            not isinstance(returned, tuple)
            or len(returned) != 2
            or not isinstance(returned[0], Output)
        ):
            raise TypeError(
                "forward(model, batch) returns an evenly.Output and the target; found "
                f"{type(returned).__name__}. Return Output(logits, features), target."
            )
        return returned

    @contextmanager
    def _looking(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad(), _frozen_randomness(*self.loaders.values()):
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            distributed.reshard(self.model)


def _real(name: str, value: Tensor) -> Tensor:
    if value.is_complex():
        raise TypeError(
            f"Probe.features: those of '{name}' are complex numbers. Give `Output` real ones: "
            "torch.view_as_real(x).flatten(1)."
        )
    return value.float()


def _empty(split: Split) -> ValueError:
    return ValueError(f"the loader of the '{split}' split gave no batch.")


def _average(parameters: list[nn.Parameter]) -> None:
    """Averages gradients over ranks, as DistributedDataParallel does; FSDP2 has done so itself."""
    whole = [p for p in parameters if p.requires_grad and not distributed.is_sharded(p)]
    if distributed.world_size() == 1 or not whole:
        return
    # The rows of one rank may lack a modality that another's hold.
    some = torch.tensor([p.grad is not None for p in whole], device=whole[0].device).int()
    for parameter, used in zip(whole, distributed.max_(some).tolist(), strict=True):
        if used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.mean_(parameter.grad)


def _batches(
    loader: Iterable[Any], fraction: float = 1.0, seed: int = 0
) -> Iterator[tuple[Any, Tensor | None]]:
    """Batches of this rank's share, with the rows' positions where they are known."""
    if not (isinstance(loader, DataLoader) and _is_plain(loader)):
        yield from ((batch, None) for batch in _first(loader, fraction))
        return
    count = len(cast(Any, loader.dataset))
    if count == 0:
        return
    rows = torch.arange(count)
    if fraction < 1:
        stream = torch.Generator().manual_seed(seed)
        rows = torch.randperm(count, generator=stream)[: _share(fraction, count)].sort().values
    positions = distributed.share(len(rows))
    size = _batch_size(loader)
    sampler = rows[positions % len(rows)].tolist()
    in_order = _loader_like(loader, sampler=sampler, batch_size=size)
    # A position beyond the last evens out the ranks: it is marked -1, to be dropped.
    positions = torch.where(positions < len(rows), rows[positions % len(rows)], -1)
    yield from zip(in_order, positions.split(size), strict=True)


def _known_rows(loader: Iterable[Any], fraction: float) -> int | None:
    """How many rows `_batches` gives this rank; None of a loader that is no ordinary one."""
    if not (isinstance(loader, DataLoader) and _is_plain(loader)):
        return None
    return -(-_share(fraction, len(cast(Any, loader.dataset))) // distributed.world_size())


def _share(fraction: float, count: int) -> int:
    """A share of a count, rounded up; 0.07 of 100 is 7, although 0.07 * 100 > 7 in floats."""
    return max(1, math.ceil(round(fraction * count, 6)))


def _first(loader: Iterable[Any], fraction: float) -> Iterator[Any]:
    """The first batches of a loader; all of them where it does not know how many it has."""
    try:
        known = fraction < 1 and isinstance(loader, Sized)
        count = _share(fraction, len(loader)) if known else None  # type: ignore[arg-type]
    except TypeError:  # a DataLoader of an IterableDataset
        count = None
    return islice(loader, count)


def _shuffled(loader: Iterable[Any], epochs: int, seed: int) -> Iterator[Any]:
    """Batches of this rank's share for some epochs of training, in random order."""
    if not (isinstance(loader, DataLoader) and _is_plain(loader)):
        for _ in range(epochs):
            yield from loader
        return
    count, size = len(cast(Any, loader.dataset)), _batch_size(loader)
    stream = torch.Generator().manual_seed(seed)
    world, rank = distributed.world_size(), distributed.rank()
    each = -(-count // world)
    # BatchNorm can make nothing of a last batch of one.
    drop = cast(BatchSampler, loader.batch_sampler).drop_last or (each > 1 and each % size == 1)
    for _ in range(epochs):
        rows = torch.randperm(count, generator=stream)
        rows = rows[torch.arange(rank, each * world, world) % count]  # equally many on each rank
        yield from _loader_like(loader, sampler=rows.tolist(), batch_size=size, drop_last=drop)


def _loader_like(loader: DataLoader[Any], **given: Any) -> DataLoader[Any]:
    return DataLoader(
        loader.dataset,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        **given,
    )


def _batch_size(loader: DataLoader[Any]) -> int:
    return int(cast(BatchSampler, loader.batch_sampler).batch_size)


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether the loader's samples are exactly those of its data set, in whatever order."""
    batches = loader.batch_sampler
    sampler = batches.sampler if isinstance(batches, Repeated) else loader.sampler
    return type(batches) in (BatchSampler, Repeated) and isinstance(
        sampler, RandomSampler | SequentialSampler | DistributedSampler
    )


def _position(known: Tensor | None, output: Output, seen: int) -> Tensor:
    if known is not None:
        return known
    if output.index is not None:
        return output.index
    if distributed.world_size() > 1:
        raise ValueError(
            "on several ranks a loader with a sampler of its own needs `Output.index`, the "
            "position of each sample in its split: without it nothing tells which rows two "
            "ranks both have. Fill it in `forward`."
        )
    return torch.arange(seen, seen + len(output.logits))


def _first_seen(index: Tensor) -> Tensor:
    """Marks the rows to keep: each position once over all ranks, none below 0."""
    everyone = distributed.gather(index)
    before = sum(len(part) for part in everyone[: distributed.rank()])
    values = torch.cat(everyone)
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    keep = torch.empty_like(first)
    keep[order] = first & (ordered >= 0)
    return keep[before : before + len(index)]


@contextmanager
def _frozen_randomness(*loaders: Iterable[Any]) -> Iterator[None]:
    """Leaves every random stream that a pass over the loaders may draw from as it was."""
    generators = {
        id(generator): generator
        for loader in loaders
        for owner in _owners(loader)
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator)
    }.values()
    states = [generator.get_state() for generator in generators]
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_cuda()):
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(arrays)


def _owners(loader: Iterable[Any]) -> Iterator[Any]:
    """What may hold a random stream of a loader's own."""
    yield loader
    yield getattr(loader, "sampler", None)
    batches = getattr(loader, "batch_sampler", None)
    yield batches
    yield getattr(batches, "sampler", None)


def _seed(seed: int) -> None:
    """Seeds the streams that `_frozen_randomness` brings back, and no other device's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in _cuda():
        torch.cuda.default_generators[device].manual_seed(seed)


def _cuda() -> list[int]:
    """The CUDA device in use; none before CUDA has started, which this must not cause."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
