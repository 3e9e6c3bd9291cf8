"""A look at a model on whole splits between epochs that leaves no trace on training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from evenly import distributed, loaders, modes
from evenly.criteria import weights
from evenly.errors import UserError
from evenly.features import Features, Table
from evenly.optimizers import finish, rebuilt, unscheduled
from evenly.output import Output
from evenly.reinit import is_fixed
from evenly.targets import plain

Forward = Callable[[Any, Any], tuple[Output, Tensor]]
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")


class Probe:
    """Runs a model over its training and validation splits when a method needs it.

    The model runs in evaluation mode and records no gradient. Modes, the global random streams and
    those of the loaders are restored, so that training with and without a look is the same bit for
    bit. On several ranks, each looks at its own share of the rows.
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
        """Stores what a look needs; nothing runs yet.

        Args:
            model: The model as the loop trains it (DistributedDataParallel is unwrapped).
            forward: `forward(model, batch)` returns an `Output` and the target, and moves the batch
                to the model's device if the loop does so itself.
            train: Loader of the training split, as the loop reads it: batches have the same form.
                With one of PyTorch's samplers, the probe sees every row that it draws from once, in
                the order of the data set. It takes a loader with unknown rows, such as one with a
                custom sampler, and any other iterable of batches as they come.
            val: Loader of the validation split. Never the test split.
            memory: Bytes that the features of one modality on one split may take in memory (4 per
                value); no limit by default. Larger ones go to a temporary file in the folder that
                `tempfile` chooses (`TMPDIR` sets it), which is deleted with the features. They are
                on the CPU, and so is their diagnosis, which `sample` in `Relearn` and `diagnose`
                speeds up.

        Raises:
            TypeError: If a loader can be read only once.
            ValueError: If the memory is negative.
        """
        for name, loader in (("train", train), ("val", val)):
            if isinstance(loader, Iterator):
                raise TypeError(
                    f"Probe: the '{name}' loader is an iterator, which the first look would use "
                    "up. Pass what it is made of, such as the DataLoader."
                )
        if memory is not None and memory < 0:
            raise UserError(f"Probe: 'memory' is bytes, from 0 (all to a file); found {memory}.")
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
        every: bool = False,
    ) -> Features:
        """The features of every sample of a split, in float32, on the model's device.

        Those beyond the probe's `memory` are on the CPU, in a file.

        Args:
            split: Split to look at.
            of: `of(output, target)` returns something else instead, by name, with one row for each
                sample of the batch: for example the logits of each modality.
            fraction: Share of the samples to look at, drawn at random; above 0, at most 1. For a
                loader that is not an ordinary `DataLoader`, its first batches.
            seed: Seed of that draw.
            every: Whether to see all rows of a data set, even if a custom sampler gives only some
                of them in an epoch, for results to be looked up later.

        Raises:
            ValueError: If the split is empty or the fraction is out of range.
        """
        if not 0 < fraction <= 1:
            raise UserError(
                f"Probe.features: 'fraction' is above 0 and at most 1; found {fraction}."
            )
        with self._looking():
            draw = loaders.drawn(self.loaders[split], every=every)
            found = None if draw is None else self._in_order(split, of, draw, fraction, seed)
            return self._as_it_comes(split, of, fraction) if found is None else found

    def _in_order(
        self,
        split: Split,
        of: Callable[[Output, Tensor], Mapping[str, Tensor]],
        draw: loaders.Draw,
        fraction: float,
        seed: int,
    ) -> Features | None:
        """Rows in the order of the data set; None for a loader that gives fewer or more."""
        loader = self.loaders[split]
        rows = loaders.share(draw.rows, fraction, seed)
        if not len(rows):
            raise _empty(split)
        mine = rows[distributed.share(len(rows)) % len(rows)]  # some twice, for equal shares
        reading = loaders.Reading(loader, lambda: mine, len(mine))
        table = Table(mine, self.memory, loaders.keeps_order(loader))
        try:
            for batch in reading:
                output, target = self._run(batch)
                if not reading.is_followed:  # its batches come from an iterator that it keeps
                    table.rows = None
                table.add(output, target, of(output, target))
            astray = table.rows is not None and table.count != len(mine)
            if distributed.max_(torch.tensor(int(astray), device=self._device)):
                return None
            return table.features()
        finally:
            table.close()

    def _as_it_comes(
        self,
        split: Split,
        of: Callable[[Output, Tensor], Mapping[str, Tensor]],
        fraction: float,
    ) -> Features:
        table = Table(None, self.memory)
        try:
            for batch in loaders.as_it_comes(self.loaders[split], fraction):
                output, target = self._run(batch)
                table.add(output, target, of(output, target))
            if not table.count:
                raise _empty(split)
            return table.features()
        finally:
            table.close()

    def sample(self, split: Split, count: int, seed: int = 0) -> tuple[Output, Tensor]:
        """One pass over samples drawn at random, with gradients recorded.

        Args:
            split: Split to draw from.
            count: Maximum number of samples. A loader that is not an ordinary `DataLoader` gives
                its first batch.
            seed: Seed of the draw. All ranks draw the same samples.

        Raises:
            ValueError: If the split is empty or the count is below 1.
        """
        if count < 1:
            raise UserError(f"Probe.sample: 'count' must be at least 1; found {count}.")
        loader = self.loaders[split]
        with self._looking(), torch.enable_grad():
            draw = loaders.drawn(loader)
            if draw is not None:
                rows = draw.rows.unique()
                stream = torch.Generator().manual_seed(seed)
                rows = rows[torch.randperm(len(rows), generator=stream)[:count]]
                loader = loaders.Reading(loader, lambda: rows, len(rows), size=count)
            for batch in loader:
                return self._run(batch)
        raise _empty(split)

    def each(
        self, split: Split, take: Callable[[Any, Output, Tensor], None], *, seed: int = 0
    ) -> None:
        """Passes the batches of a split through the model once, in random order.

        Samples that share a batch are then a fair draw, even if the data set is sorted by class. A
        loader with unknown rows gives its batches as they come.

        Args:
            split: Split to look at.
            take: `take(batch, output, target)` is called after each batch.
            seed: Seed of the order.

        Raises:
            ValueError: If the split is empty.
        """
        loader = self.loaders[split]
        count = 0
        with self._looking():
            draw = loaders.drawn(loader)
            if draw is not None:
                rows = draw.rows.unique()
                stream = torch.Generator().manual_seed(seed)
                rows = rows[torch.randperm(len(rows), generator=stream)]
                loader = loaders.Reading(loader, lambda: rows, len(rows))
            for batch in loader:
                take(batch, *self._run(batch))
                count += 1
        if not count:
            raise _empty(split)

    @contextmanager
    def trained(
        self,
        objective: Callable[[Output, Tensor], Tensor],
        *,
        epochs: int,
        optimizer: torch.optim.Optimizer,
        seed: int = 0,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Iterator[None]:
        """Trains the model from its current state, and restores everything at the end.

        ```python with probe.trained(objective, epochs=10, optimizer=optimizer):
            teacher = probe.features("train")  # of the trained model
        ```

        Within the block, the model is the trained one. Afterwards weights, buffers, modes,
        gradients and random streams are restored. On several ranks gradients are averaged, and all
        ranks end with the same weights.

        The model trains in its current modes, so a BatchNorm that the loop keeps in evaluation mode
        stays that way. Only if the whole model is in evaluation mode is it switched to training
        mode.

        Args:
            objective: `objective(output, target)` returns the loss of one batch.
            epochs: Passes over the training split.
            optimizer: The model's optimiser, which stays unchanged: a new one of its kind with its
                settings (its learning rate before a schedule; see `unscheduled`) does the work.
            seed: Seed of the order of samples, of dropout and of augmentation.
            criterion: The criterion whose mean the objective is, if its classes may have weights. A
                batch of several ranks then counts every sample by its weight, as on one process.
        """
        distributed.reshard(self.model)
        before = {name: value.clone() for name, value in self._tensors()}
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        trial = rebuilt(optimizer, map(unscheduled, optimizer.param_groups))
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            with modes.restored(self.model):
                if not self.model.training:
                    self.model.train()
                with loaders.untouched(*self.loaders.values()), torch.enable_grad():
                    loaders.seed_all(seed)
                    for batch in loaders.shuffled(self.loaders["train"], epochs, seed):
                        self._train_step(batch, objective, trial, criterion)
                    finish(trial)
                for value in self.model.buffers():
                    if value.is_floating_point():  # BatchNorm's cover only a rank's own rows
                        distributed.mean_(value)
                yield
        finally:
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
        criterion: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        optimizer.zero_grad()
        self._loss(batch, objective, criterion).backward()
        _average([p for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()

    def gradients(
        self,
        objective: Callable[[Output, Tensor], Tensor],
        take: Callable[[], None],
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Computes the gradients of each batch of the training split, without training.

        The model runs in evaluation mode; at the end everything is restored, including gradients.
        On several ranks gradients are averaged, so a batch is that of all ranks together. A last
        batch of one sample is left out.

        Args:
            objective: `objective(output, target)` returns the loss of one batch.
            take: Called after each batch, when the parameters' `.grad` are that batch's.
            criterion: See `trained`.
        """
        distributed.reshard(self.model)
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        try:
            with self._looking(), torch.enable_grad():
                for batch in self._training_batches():
                    for parameter, _ in gradients:
                        parameter.grad = None
                    self._loss(batch, objective, criterion).backward()
                    _average([parameter for parameter, _ in gradients])
                    take()
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def _loss(
        self,
        batch: Any,
        objective: Callable[[Output, Tensor], Tensor],
        criterion: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        """A batch's loss, times its share: this rank's weights over the mean rank's."""
        output, target = self._run(batch)
        loss = objective(output, target)
        if criterion is None or distributed.world_size() == 1:
            return loss
        weight = weights(criterion, target).sum().to(loss.device)
        mean = distributed.mean_(weight.clone())
        return loss * (weight / mean.clamp_min(torch.finfo(mean.dtype).tiny))  # 0 without labels

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What training can change: everything but a quantised base, whose copy would be large."""
        for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
            if not (isinstance(value, nn.Parameter) and is_fixed(value)):
                yield name, value.detach()

    def reestimate_batchnorm(self, modules: Iterable[nn.Module]) -> None:
        """Recomputes BatchNorm's running statistics on the training split.

        Args:
            modules: Where to look for BatchNorm layers; the rest of the model keeps its statistics.
                Frozen layers keep theirs, too.
        """
        found = (layer for module in modules for layer in trained_batchnorms(module))
        layers = list(dict.fromkeys(found))
        if not layers:
            return
        momenta = [layer.momentum for layer in layers]
        try:
            with self._looking():
                for layer in layers:
                    layer.reset_running_stats()
                    layer.momentum = None  # a plain average over all batches
                    layer.train()
                for batch in self._training_batches():
                    self._run(batch)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        for layer in layers:
            distributed.mean_(cast(Tensor, layer.running_mean))
            distributed.mean_(cast(Tensor, layer.running_var))

    def _training_batches(self) -> Iterable[Any]:
        """This rank's share of the training split, without a last batch of one.

        BatchNorm cannot train on one sample.
        """
        loader = self.loaders["train"]
        draw = loaders.drawn(loader)
        rows = None if draw is None else loaders.share(draw.rows, 1.0, 0)
        if rows is None or not len(rows):
            return loader
        mine = rows[distributed.share(len(rows)) % len(rows)]
        alone = len(mine) > 1 and len(mine) % loaders.batch_size(loader) == 1
        return loaders.Reading(loader, lambda: mine, len(mine), drop_last=alone)

    @property
    def _device(self) -> torch.device | None:
        return next((p.device for p in self.model.parameters()), None)

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
        output, target = returned
        return output, plain(target) if isinstance(target, Tensor) else target

    @contextmanager
    def _looking(self) -> Iterator[None]:
        try:
            with (
                modes.restored(self.model),
                torch.no_grad(),
                loaders.untouched(*self.loaders.values()),
            ):
                self.model.eval()
                yield
        finally:
            distributed.reshard(self.model)


def trained_batchnorms(
    module: nn.Module, is_trained: bool = True
) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers in a module whose running statistics belong to what is trained.

    A layer is left out if its parameters are frozen, or, if it has none, those of the nearest
    module around it.

    Args:
        module: The module.
        is_trained: Whether a module without parameters counts as trained.
    """
    own = [parameter.requires_grad for parameter in module.parameters()]
    is_trained = any(own) if own else is_trained
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.track_running_stats and is_trained:
            yield module
        return
    for child in module.children():
        yield from trained_batchnorms(child, is_trained)


def _empty(split: Split) -> UserError:
    return UserError(f"the loader of the '{split}' split gave no batch.")


def _average(parameters: list[nn.Parameter]) -> None:
    """Averages gradients over ranks, as DistributedDataParallel does; FSDP2 already has."""
    whole = [p for p in parameters if p.requires_grad and not distributed.is_sharded(p)]
    if distributed.world_size() == 1 or not whole:
        return
    # One rank's rows may lack a modality that another's have.
    some = torch.tensor([p.grad is not None for p in whole], device=whole[0].device).int()
    for parameter, used in zip(whole, distributed.max_(some).tolist(), strict=True):
        if used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.mean_(parameter.grad)
