"""A look at a model on whole splits between epochs, which leaves no trace on training."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from evenly import distributed
from evenly.output import Output

Forward = Callable[[Any, Any], tuple[Output, Tensor]]
Split = Literal["train", "val"]


@dataclass(frozen=True)
class Features:
    """Representations of one split, with the labels.

    Attributes:
        features: By modality, one row per sample.
        target: Class of each sample (integers), or a value to regress on (floats).
        index: Position of each sample in its split: the canonical order, which makes a
            clustering independent of the order of rows and of the number of ranks. Row number
            by default.
        sharded: Whether these rows are one rank's share, the others being on the other ranks.
    """

    features: Mapping[str, Float[Tensor, "n _"]]
    target: Shaped[Tensor, " n"]
    index: Int[Tensor, " n"] | None = None
    sharded: bool = False

    def __post_init__(self) -> None:
        """Checks that rows, labels and positions belong together.

        Raises:
            TypeError: If something is no tensor.
            ValueError: If the shapes do not fit.
        """
        if not self.features:
            raise ValueError("Features: there is no modality. Pass features by its name.")
        parts = {f"features of '{name}'": x for name, x in self.features.items()}
        parts["target"] = self.target
        if self.index is not None:
            parts["index"] = self.index
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
        if self.index is not None and self.index.is_floating_point():
            raise TypeError(
                "Features: the index holds floats, but positions are whole numbers. Pass them as "
                "int64."
            )


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
        """
        parallel = isinstance(model, nn.parallel.DistributedDataParallel)
        # DDP's forward synchronises buffers, which hangs when ranks have unequal batch counts.
        self.model: nn.Module = cast(nn.Module, model.module) if parallel else model
        self.forward = forward
        self.loaders: dict[Split, Iterable[Any]] = {"train": train, "val": val}

    def features(self, split: Split) -> Features:
        """The features of every sample of a split, in float32, on the model's device."""
        features: dict[str, list[Tensor]] = {}
        targets: list[Tensor] = []
        positions: list[Tensor] = []
        seen = 0
        with self._looking():
            for batch, position in _batches(self.loaders[split]):
                output, target = self._run(batch)
                for name, value in output.features.items():
                    features.setdefault(name, []).append(value.detach().float())
                targets.append(target.detach())
                positions.append(_position(position, output, seen).to(target.device))
                seen += len(target)
        if not targets:
            raise ValueError(f"the loader of the '{split}' split gave no batch.")
        index = torch.cat(positions)
        keep = _first_seen(index)
        return Features(
            {name: _pick(torch.cat(values), keep) for name, values in features.items()},
            _pick(torch.cat(targets), keep),
            _pick(index, keep),
            sharded=distributed.world_size() > 1,
        )

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


def _pick(x: Tensor, keep: Tensor) -> Tensor:
    """Some rows; encoders may be on several devices."""
    return x[keep.to(x.device)]


def _batches(loader: Iterable[Any]) -> Iterator[tuple[Any, Tensor | None]]:
    """Batches of this rank's share, with the rows' positions where they are known."""
    if not (isinstance(loader, DataLoader) and _is_plain(loader)):
        for batch in loader:
            yield batch, None
        return
    count = len(cast(Any, loader.dataset))
    if count == 0:
        return
    positions = distributed.share(count)
    size = cast(int, loader.batch_size)
    in_order: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=(positions % count).tolist(),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    # A position beyond the last evens out the ranks: it is marked -1, to be dropped.
    positions = torch.where(positions < count, positions, -1)
    yield from zip(in_order, positions.split(size), strict=True)


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether the loader's samples are exactly those of its data set, in whatever order."""
    return type(loader.batch_sampler) is BatchSampler and isinstance(
        loader.sampler, RandomSampler | SequentialSampler | DistributedSampler
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
        for owner in (loader, getattr(loader, "sampler", None))
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


def _cuda() -> list[int]:
    """The CUDA device in use; none before CUDA has started, which this must not cause."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
