"""What an encoder can learn by itself: trains each alone, then restores the model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from evenly.diagnosis.classes import Classes
from evenly.errors import UserError
from evenly.features import Features
from evenly.optimizers import lowered_from, rate_of, rebuilt, unscheduled, unwrapped
from evenly.output import Output
from evenly.probe import Probe
from evenly.reinit import is_fixed

FEW = 8
"""Samples used to check whether encoders see each other."""


def optimizer_of(model: nn.Module, optimizer: Any | None) -> Optimizer:
    """The optimiser if the loop gives none: AdamW at 0.001."""
    if optimizer is not None:
        return unwrapped(optimizer)
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


class Alone:
    """A training in which each encoder learns by itself, under its own linear layer.

    Encoders share nothing, so under the sum of their losses each learns as if alone, and one
    training serves all.
    """

    def __init__(
        self,
        probe: Probe,
        encoders: Mapping[str, nn.Module],
        output: Output,
        classes: Classes,
        seed: int,
    ) -> None:
        """Prepares the training.

        Args:
            probe: Probe of the model, at the weights that all begin with.
            encoders: Encoders by modality.
            output: Output of some samples.
            classes: What a target means.
            seed: Seed of the linear layers and the order of samples.
        """
        self.probe, self.encoders = probe, dict(encoders)
        self.widths = {name: output.features[name].shape[1] for name in encoders}
        self.device, self.classes, self.seed = output.logits.device, classes, seed

    def trained(
        self, optimizer: Optimizer, epochs: int, tell: Callable[[], None], *, fastest: bool
    ) -> tuple[Features, Features]:
        """The features of the training and validation splits afterwards.

        Args:
            optimizer: The joint training's; a new one of its kind does the work.
            epochs: Passes over the training split.
            tell: Called after each batch.
            fastest: Whether all train at the highest rate of any encoder, including frozen ones;
                otherwise each at its own rate in the joint training.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            heads = {
                name: nn.Linear(width, self.classes.count).to(self.device)
                for name, width in self.widths.items()
            }

        def objective(output: Output, target: Tensor) -> Tensor:
            tell()
            present = output.present or {}
            losses = []
            for name, head in heads.items():
                x = output.features[name]
                here = self.classes.labelled(target)
                if name in present:
                    here = here & present[name].to(here.device)
                if here.any():
                    losses.append(self.classes.loss_alone(head(x[here].float()), target[here]))
            # A batch without labels has nothing to teach.
            return torch.stack(losses or [0 * p.sum() for p in new]).sum()

        new = [p for head in heads.values() for p in head.parameters()]
        with (
            self._rates(optimizer, new, fastest=fastest) as trial,
            self.probe.trained(
                objective,
                epochs=epochs,
                optimizer=trial,
                seed=self.seed,
                criterion=self.classes.criterion,
            ),
        ):
            return self.probe.features("train"), self.probe.features("val")

    def rates(self, optimizer: Optimizer) -> dict[str, float]:
        """The learning rate of each encoder in the joint training, by modality; 0 if frozen.

        Raises:
            ValueError: If the optimiser trains nothing of the model.
        """
        known = _rates(optimizer)
        if not any(known.get(id(p)) for p in self.probe.model.parameters()):
            raise UserError(
                "the optimizer trains nothing of the model: its parameters belong to another "
                "model, or its learning rates are 0. Pass the one that trains the model."
            )
        return {name: _rate(encoder, known) for name, encoder in self.encoders.items()}

    def held_back(self, optimizer: Optimizer) -> dict[str, str]:
        """Notes on encoders that train slower than another, or not at all."""
        own = self.rates(optimizer)
        top = max(own.values())
        return {
            name: f"The encoder of '{name}' learns at a rate of {rate:g}, another at {top:g}."
            if rate
            else f"The encoder of '{name}' is frozen."
            for name, rate in own.items()
            if rate < top or not top
        }

    def lowered(self, optimizer: Optimizer) -> str | None:
        """A note on a rate that something may have lowered; None if nothing suggests it."""
        made = lowered_from(optimizer)
        if made is None:
            return None
        rate = float(rate_of(optimizer.param_groups[0]))
        return (
            f"The short trainings ran at a learning rate of {rate:g}, but the default of this "
            f"{type(optimizer).__name__} is {made:g}. If a schedule has lowered the rate since, "
            "repeat the checkup with a new optimiser like yours, at the rate of your training."
        )

    @contextmanager
    def _rates(
        self, optimizer: Optimizer, new: list[nn.Parameter], *, fastest: bool
    ) -> Iterator[Optimizer]:
        """An optimiser like the given one for the encoders and new parameters."""
        rates = _rates(optimizer)
        own = {p: None for encoder in self.encoders.values() for p in encoder.parameters()}
        top = max(_rate(encoder, rates) for encoder in self.encoders.values())
        top = top or max(rates.values())  # if all are frozen, the highest rate of anything else
        groups = [unscheduled(group) for group in optimizer.param_groups]
        like = next((g for g in groups if g["lr"] == top), groups[0])
        frozen: list[nn.Parameter] = []
        if fastest:
            mine = [p for p in own if p.is_floating_point() and not is_fixed(p)]
            frozen = [p for p in mine if not p.requires_grad]
            groups = [{**like, "params": [*mine, *new]}]
        else:
            groups = [{**g, "params": [p for p in g["params"] if p in own]} for g in groups]
            groups = [g for g in groups if g["params"]] + [{**like, "params": new}]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            yield rebuilt(optimizer, groups)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def check_apart(probe: Probe, encoders: Mapping[str, nn.Module]) -> None:
    """Raises if the features of one modality depend on the encoder of another.

    Raises:
        ValueError: If so, or if an encoder has no features under its name.
    """
    output, _ = probe.sample("train", FEW)
    for name, encoder in encoders.items():
        if name not in output.features:
            raise UserError(
                f"there is an encoder '{name}', but the forward pass gives features of "
                f"{sorted(output.features)} only. Use the same names in both."
            )
        mine = {id(p) for p in encoder.parameters()}
        others = [
            (other, p)
            for other, module in encoders.items()
            for p in module.parameters()
            if p.requires_grad and id(p) not in mine
        ]
        x = output.features[name]
        if not others or not x.requires_grad:
            continue
        slopes = torch.autograd.grad(
            x.float().sum(), [p for _, p in others], retain_graph=True, allow_unused=True
        )
        for (other, _), slope in zip(others, slopes, strict=True):
            if slope is not None and bool(slope.any()):
                raise UserError(
                    f"the features of '{name}' also depend on the encoder of '{other}', so the "
                    "two cannot be told apart. Let Output.features be what leaves each "
                    "encoder, before they exchange anything."
                )


def _rates(optimizer: Optimizer) -> dict[int, float]:
    """The learning rate of each trained parameter."""
    return {
        id(p): float(rate_of(group))
        for group in optimizer.param_groups
        for p in group["params"]
        if p.requires_grad
    }


def _rate(encoder: nn.Module, rates: Mapping[int, float]) -> float:
    """The highest learning rate of an encoder's parameters; 0 if it is frozen."""
    return max((rates.get(id(p), 0.0) for p in encoder.parameters()), default=0.0)
