"""The parts of a run: model, optimiser and method, the order of samples, a forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from evenly import chance, distributed
from evenly.criteria import weights
from evenly.data import Batch, Data, Padded, Split, SplitName, collate
from evenly.data.tasks import Task
from evenly.lab.run.ahead import Ahead
from evenly.lab.run.augment import Augment
from evenly.lab.run.average import Average
from evenly.lab.run.build import (
    build_criterion,
    build_method,
    build_model,
    build_optimizer,
    build_sampler,
    with_missing,
)
from evenly.lab.run.kept import Noised, with_features
from evenly.lab.run.measures import Measure, measures
from evenly.lab.run.place import Place
from evenly.lab.run.schedule import Schedule
from evenly.lab.run.settings import Cell
from evenly.method import Criterion, Method
from evenly.nn import LateFusion
from evenly.output import Output
from evenly.resampling import Repeated, Resampler

AT_ONCE = 2**21
"""Input numbers evaluated together: larger batches take less time but more memory."""


@dataclass
class Forward:
    """One forward pass, in the form that methods and probe take.

    Inputs are moved to the device, augmented if the model is training, and passed in the run's
    precision; targets are encoded for the task.

    Attributes:
        place: Where it runs.
        task: What is predicted.
        augment: Augmentation of training inputs.
        step: Epoch and batch number during a training step, which decide its augmentation. A
            method's teachers train with the global stream, which the probe seeds.
    """

    place: Place
    task: Task
    augment: Augment
    step: tuple[int, int] | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Output, Tensor]:
        """The output of a batch, and its target, encoded."""
        inputs, target, index = self._moved(batch)
        if model.training and self.augment.changes:
            key = self.step or tuple(torch.randint(2**31, (2,)).tolist())
            inputs = self.augment(inputs, *key)
        with self.place.autocast():
            output: Output = model(inputs, batch["present"])
        return replace(output, index=index), self.task.encoded(target)

    def _moved(self, batch: Batch) -> tuple[dict[str, Tensor | Padded], Tensor, Tensor]:
        """Everything but the masks of present modalities, which the model checks first."""
        device = self.place.device
        if batch["target"].device == device:
            return batch["inputs"], batch["target"], batch["index"]

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        inputs = {
            name: Padded(*map(move, x)) if isinstance(x, Padded) else move(x)
            for name, x in batch["inputs"].items()
        }
        return inputs, move(batch["target"]), move(batch["index"])


@dataclass
class Parts:
    """What trains.

    Attributes:
        cell: What runs.
        data: Data of the run, on the device if there is room.
        place: Where it trains.
        model: The model as built, with its encoders.
        shared: The same in the form that training steps call, on all processes.
        optimizer: Optimiser of its parameters.
        schedule: Schedule of the learning rate; None if constant.
        average: Average of the weights; None if the weights themselves are evaluated.
        method: Method with the encoders, optimiser, head and sampler.
        sampler: The order of the training split.
        forward: One forward pass.
        train: Batches of this process's share of the training split.
        stepped: The same, with all samples of a step in one batch.
        noised: Features of noisy inputs, if already known, see `with_features`.
        measures: The user's own metrics, by name.
    """

    cell: Cell
    data: Data
    place: Place
    model: LateFusion
    shared: nn.Module
    optimizer: Optimizer
    schedule: Schedule | None
    average: Average | None
    method: Method
    sampler: Resampler
    forward: Forward
    train: DataLoader[Batch]
    stepped: DataLoader[Batch]
    noised: Noised
    measures: Mapping[str, Measure]
    _splits: dict[SplitName, Split] = field(default_factory=dict)

    @staticmethod
    def of(cell: Cell, data: Data, place: Place, kept: Path | None = None) -> "Parts":
        """Builds the parts, the same on all processes.

        Args:
            cell: What runs.
            data: Data of the run.
            place: Where it trains.
            kept: The folder for features of frozen encoders; by default none are kept.
        """
        training = cell.training
        model = build_model(data, cell).to(place.device)
        noised: Noised = {}
        if kept is not None:
            data, noised = with_features(model, data, training, place, kept)
        data = with_missing(data, cell)  # features cover all samples, for runs with any seed
        place.spread(model)
        optimizer = build_optimizer(model, training)
        sampler = build_sampler(data, cell, place.world, place.rank)
        criterion = build_criterion(data, training)
        if criterion is not None:
            criterion.to(place.device)
        method = build_method(cell, model, optimizer, sampler, criterion)
        # The object's own facts: whether a step leaves anything out may depend on its settings.
        shared = place.shared(model, partial=method.info.partial)
        data = placed(data, place.device)
        train = data.split("train")

        def loader(count: int) -> DataLoader[Batch]:
            size = count // place.world
            # BatchNorm cannot train on a last batch of one.
            lonely = len(sampler) % size == 1 and len(sampler) > 1
            batches = Repeated(sampler, size, lonely, method.repeats)
            return _reads(data)(train, batch_sampler=batches, collate_fn=collate)

        return Parts(
            cell,
            data,
            place,
            model,
            shared,
            optimizer,
            Schedule.of(optimizer, training),
            None if training.ema is None else Average(model, training.ema),
            method,
            sampler,
            Forward(place, data.task, Augment(training.augment, data.modalities, cell.seed)),
            loader(training.batch_size),
            loader(training.batch_size * training.accumulate),
            noised,
            measures(training.metrics),
            {"train": train},
        )

    def begin(self, epoch: int) -> None:
        """Resets order and global stream, so that a resumed epoch repeats its draws."""
        seed = chance.mixed(self.cell.seed, epoch)
        torch.manual_seed(chance.mixed(seed, self.place.rank) if self.place.rank else seed)
        self.sampler.set_epoch(epoch)
        self.shared.train()

    def steps(self, epoch: int) -> Iterator[Iterator[tuple[float | Tensor, Batch]]]:
        """The steps of an epoch, each as its passes; a turn of the method uses one modality.

        Each pass is a batch with its share of the step's loss.
        """
        for number, batch in enumerate(self.stepped):
            if (turn := self.method.turn) is not None:
                batch = cast(Batch, {**batch, "inputs": {turn: batch["inputs"][turn]}})
            yield self._passes((epoch, number // self.method.repeats), batch)
        self.forward.step = None

    def _passes(
        self, step: tuple[int, int], batch: Batch
    ) -> Iterator[tuple[float | Tensor, Batch]]:
        epoch, number = step
        training = self.cell.training
        if training.accumulate == 1:
            self.forward.step = step
            share: float | Tensor = 1.0
            if self.place.world > 1:
                (share,) = _shares(self.method.criterion, batch["target"], [slice(None)])
            yield share, batch
            return
        size, count = training.batch_size // self.place.world, len(batch["target"])
        count -= size > 1 and count % size == 1  # not one sample, as above
        places = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        shares = _shares(self.method.criterion, batch["target"][:count], places)
        for part, (where, share) in enumerate(zip(places, shares, strict=True)):
            self.forward.step = epoch, number * training.accumulate + part
            cut = tree_map(lambda x, where=where: x[where], batch)
            yield share, cut

    def split(self, name: SplitName) -> Split:
        """One of the splits, created once."""
        if name not in self._splits:
            self._splits[name] = self.data.split(name)
        return self._splits[name]

    @cached_property
    def uninformed(self) -> Tensor:
        """The logits without any input, (c,)."""
        return self.data.task.uninformed(self.split("train").target)

    def in_order(
        self, split: SplitName, batch_size: int | None = None, *, shared: bool = False
    ) -> DataLoader[Batch]:
        """Batches of a split in order.

        Args:
            split: Name of the split.
            batch_size: Samples in a batch; by default as many as make `AT_ONCE` numbers.
            shared: Whether each process reads its interleaved share of the samples, equally many.
        """
        part = self.split(split)
        if batch_size is None:
            numbers = sum(prod(modality.shape) for modality in self.data.modalities.values())
            most = min(AT_ONCE // max(numbers, 1), 4096)
            batch_size = max(self.cell.training.batch_size, most)
        rows = (distributed.share(len(part)) % len(part)).tolist() if shared else range(len(part))
        return _reads(self.data)(part, batch_size, sampler=rows, collate_fn=collate)

    def weights(self) -> dict[str, Any]:
        """The model's weights, gathered on the first process; every process must call this."""
        found: dict[str, Any] = _handed_in(self.model.state_dict())
        return found

    def judged(self) -> dict[str, Any]:
        """The evaluated weights: the average, if there is one; every process must call this."""
        return self.weights() if self.average is None else self.average.weights()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Restores what `weights` returned."""
        like = self.model.state_dict()
        self.model.load_state_dict(
            {
                name: distributed.sharded_like(self._moved(x), like[name])
                for name, x in weights.items()
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run continues from, gathered on the first process.

        Every process must call this.
        """
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {
            **average,
            "state_dict": self.weights(),
            "optimizer": _handed_in(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "method": self.method.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.load_weights(state["state_dict"])
        self.optimizer.load_state_dict(self._cut(state["optimizer"]))
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.method.load_state_dict(tree_map(self._moved, state["method"]))

    def _moved(self, x: Any) -> Any:
        return x.to(self.place.device) if isinstance(x, Tensor) else x

    def _cut(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """An optimiser's state, with tensors of a parameter's shape sharded like it."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        found: dict[int, Any] = {}
        for number, values in state["state"].items():
            like = parameters[number]
            found[number] = {
                name: distributed.sharded_like(self._moved(x), like)
                if isinstance(x, Tensor) and x.shape == like.shape
                else x
                for name, x in values.items()
            }
        return {**state, "state": found}


def _shares(
    criterion: Criterion, target: Tensor, places: Sequence[slice]
) -> Sequence[float | Tensor]:
    """The shares of samples in the mean loss of a step, in which classes may have weights.

    With weights, one can be above 1, as the losses of all processes are averaged.

    Args:
        criterion: The criterion, perhaps with weights of the classes.
        target: Targets of the step, of this process.
        places: Which of them each share is of.
    """
    of_classes: Tensor | None = getattr(criterion, "weight", None)
    if of_classes is None:
        return [len(target[where]) / len(target) for where in places]
    weight = weights(criterion, target.to(of_classes.device, non_blocking=True))
    total = distributed.mean_(weight.sum())
    return [weight[where].sum() / total for where in places]


def _reads(data: Data) -> type[DataLoader[Batch]]:
    """The loader for batches of some data."""
    return Ahead if data.is_streamed else DataLoader


def placed(data: Data, device: torch.device) -> Data:
    """The data on the device, if it is a GPU and they take at most half of its free memory.

    Streamed data are decoded on the CPU and stay there.
    """
    if device.type != "cuda" or data.is_streamed:
        return data
    free, _ = torch.cuda.mem_get_info(device)
    return data.to(device) if data.nbytes <= free / 2 else data


def _handed_in(state: Any) -> Any:
    return tree_map(lambda x: distributed.handed_in(x) if isinstance(x, Tensor) else x, state)
