"""Adaptive weight constraint (AWC).

Qi, Peng, Zhang, Ma, "Towards Balanced Multi-Modal Learning in 3D Human Pose Estimation", CVPR 2026,
https://arxiv.org/abs/2501.05264.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from evenly import distributed
from evenly.diagnosis.contribution import contributions
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import as_real, check_dense, full
from evenly.optimizers import check_trains, unwrapped
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.targets import ANY, counted

CONSTANT = 1e-6
"""Below this ratio of spread to size, a model's outputs are one number plus rounding errors."""


def correlation(
    prediction: Float[Tensor, "n c"], target: Float[Tensor, "n c"]
) -> Float[Tensor, ""]:
    """Σ over outputs of the Pearson correlation ρ(ŷ, y), from -c to c; 0 for a constant output."""
    units = []
    for x in (prediction.double(), target.double()):
        centred = x - x.mean(0)
        spread, size = centred.norm(dim=0), x.norm(dim=0)
        units.append(torch.where(spread > CONSTANT * size, centred / spread, 0.0))
    return (units[0] * units[1]).sum()


def accuracy(right: Float[Tensor, "n 1"], here: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
    """The share of correct predictions among the labelled samples."""
    return right.double().sum() / here.double().sum().clamp_min(1)


def strong(contribution: Sequence[float]) -> list[bool]:
    """Marks the values in the upper of two clusters (2-means); none if all are equal.

    In one dimension, 2-means cuts the sorted values where the squared distances to the two means
    add up to the least, so all cuts can be tried. Of two values, the larger is the upper cluster.
    """
    ordered = sorted(contribution)
    if math.isclose(ordered[0], ordered[-1], abs_tol=1e-9):  # but for rounding
        return [False] * len(ordered)

    def spread(part: Sequence[float]) -> float:
        mean = sum(part) / len(part)
        return sum((value - mean) ** 2 for value in part)

    cuts = range(1, len(ordered))
    cut = min(cuts, key=lambda n: spread(ordered[:n]) + spread(ordered[n:]))
    return [value >= ordered[cut] for value in contribution]


@torch.no_grad()
def squares(encoder: nn.Module) -> dict[str, Tensor]:
    """g² by parameter name; for a complex parameter, pairs for its real and imaginary parts."""
    return {
        name: as_real(full(p.grad)).square()
        for name, p in encoder.named_parameters()
        if p.grad is not None
    }


@torch.no_grad()
def constrain_(
    encoder: nn.Module,
    start: Mapping[str, Tensor],
    fisher: Mapping[str, Tensor],
    strength: float,
    rates: Mapping[nn.Parameter, float | Tensor] | None = None,
) -> None:
    """Adds the gradient of α ½ Σ_i F_ii (θ_i - θ_0,i)²: g ← g + α F (θ - θ_0).

    Args:
        encoder: Module with gradients; parameters without one are left out.
        start: θ_0 by parameter name.
        fisher: F likewise, as `squares` returns it; parameters missing from it are left out.
        strength: α.
        rates: lr of each parameter, for an implicit step, which evaluates the term's gradient where
            the step ends: g ← (g + α F (θ - θ_0)) / (1 + lr α F).
    """
    for name, p in encoder.named_parameters():
        if p.grad is None or name not in fisher:
            continue
        grad, now = (as_real(distributed.local(x)) for x in (p.grad, p))
        then = as_real(distributed.shard_like(start[name], p))
        weight = strength * distributed.shard_like(fisher[name], p)
        grad.add_(weight * (now - then))
        if rates is not None:
            grad.div_(1 + rates.get(p, 0.0) * weight)


class AWC(Method):
    """Keeps each encoder near its weights at the start of the epoch, strong ones more firmly.

    In the first `window` epochs the loss is L + Σ_m α_m ½ Σ_i F_ii (θ_i - θ_0,i)², over the
    weights θ of encoder m, with θ_0 those at the start of the epoch and F the diagonal of the
    Fisher information there: the mean over batches of the training split of (∂L/∂θ_i)². α_m is
    `strong` for modalities whose contribution is in the upper of two clusters (2-means), `weak` for
    the others. A contribution is a Shapley value over sets of modalities, with the features of all
    others zeroed. A set is worth the model's accuracy on the training split for class numbers, and
    the sum of its outputs' Pearson correlations with the target for any other target.

    The method adds only the term's gradient, α F (θ - θ_0); the returned loss is L. A plain SGD
    step moves a weight back by lr α F of its distance from θ_0, so the weight diverges where lr α F
    exceeds 2 (with momentum β, 2 + 2β). Adam and its kin, which the paper uses, take no longer
    steps because of it. With SGD, set `implicit` or lower the learning rate or α.

    Attributes:
        contribution: By modality, the Shapley value at the start of the epoch.
        strength: α by modality; empty outside the window.
        fisher: F by modality and parameter name.
        start: θ_0 likewise.
    """

    info = Info(
        title="Adaptive weight constraint (AWC)",
        paper="Qi, Peng, Zhang, Ma. Towards Balanced Multi-Modal Learning in 3D Human Pose "
        "Estimation. CVPR 2026",
        year=2026,
        url="https://arxiv.org/abs/2501.05264",
        category="optimisation",
        writes="gradients",
        keeps_loss=True,
        targets=ANY,
        modalities="any number, by the Shapley value over all 2^M sets, of more than six by an "
        "estimate of it; with one, it does nothing",
        neutral={"strong": 0.0, "weak": 0.0},
        epochs=50,
        in_epochs=("window",),
        needs=("fuse",),
        separate=True,
        needs_probe=True,
        cost="before each epoch of the window two passes over the training split, one with the "
        "head run 2^M times and one with gradients; two copies of the encoders' weights, which a "
        "step compares them with",
        budget=1.05,
        missing=True,
        doubts="Unverified: known from summaries of the paper; its released code could not be "
        "read. It is made for regression. For classes, the summaries use cross-entropy "
        "as the worth; here it is accuracy. They recompute F at the start of each "
        "epoch, as happens here, also for contributions and θ_0; one takes the weights "
        "at the start of training as θ_0, but F would then belong to other weights. F "
        "is computed on the loader's batches and depends on their size; the formula "
        "uses single samples, which need a backward pass each and give a larger F. The "
        "paper trains with Adam. With SGD and the command's defaults, training on "
        "digits diverges within a few epochs for two of three seeds; with `implicit`, "
        "which is not in the paper, it does not. F is computed in evaluation mode, so "
        "in the first epoch with BatchNorm's initial statistics. A parameter without a "
        "gradient in a step is not drawn back.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "contribution", "strength", "fisher", "start")

    def __init__(
        self,
        encoders: Encoders,
        *,
        strong: float = 20_000.0,
        weak: float = 10_000.0,
        window: int = 20,
        implicit: bool = False,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the constraint.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            strong: α of modalities that contribute a lot, not negative; 20,000 in the paper, with
                Adam and batches of 192.
            weak: α of the others, not negative; 10,000.
            window: The number of first epochs that are constrained, not negative; 20 of 50 in the
                paper.
            implicit: Whether to take implicit steps of SGD, which are stable for any α; see
                `constrain_`.
            optimizer: The optimiser that trains the model; needed for `implicit`.
            seed: Seed of the orders that estimate the contributions of more than six modalities.
            criterion: See `Method`.

        Raises:
            TypeError: If `optimizer` is not an optimiser.
            ValueError: If a setting is out of range or not finite, or the optimiser is missing or
                belongs to another model.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", strong=strong, weak=weak)
        check_range(self, "not negative", window=window)
        if implicit and optimizer is None:
            raise UserError(
                "AWC: 'implicit' needs the learning rate; found no optimizer. Pass the one that "
                "trains the model."
            )
        self.strong, self.weak, self.window, self.seed = strong, weak, window, seed
        self.implicit = implicit
        self.optimizer = unwrapped(optimizer) if implicit else None
        if self.optimizer is not None:
            check_trains(self.optimizer, self.encoders, "AWC")
        self.epoch = -1
        self.contribution: dict[str, float] = {}
        self.strength: dict[str, float] = {}
        self.fisher: dict[str, dict[str, Tensor]] = {}
        self.start: dict[str, dict[str, Tensor]] = {}

    def is_due(self, epoch: int) -> bool:
        """Whether this epoch (from 0) is constrained."""
        acts = self.strong > 0 or self.weak > 0
        return epoch < self.window and acts and len(self.encoders) > 1

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Finds the strong modalities, and records the weights and the Fisher information."""
        if epoch == self.epoch:  # a run resumed mid-epoch continues with what it had
            return
        self.epoch = epoch
        self.contribution, self.strength, self.fisher, self.start = {}, {}, {}, {}
        if self.is_due(epoch):
            self._look(self._probe(probe))

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The joint loss."""
        self._need(output, "fuse")
        return super().loss(output, target)

    def before_step(self) -> None:
        """Adds the term's gradient to the encoders'."""
        rates = None if self.optimizer is None else _rates(self.optimizer)
        for name, strength in self.strength.items():
            encoder = self.encoders[name]
            check_dense(encoder, self)
            constrain_(encoder, self.start[name], self.fisher[name], strength, rates)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, with copies of weights on the encoders' devices."""
        super().load_state_dict(state)
        self.fisher, self.start = self._placed(self.fisher), self._placed(self.start)

    def _placed(self, found: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        place = {name: next(encoder.parameters()) for name, encoder in self.encoders.items()}
        return {
            name: {key: value.to(place[name].device) for key, value in values.items()}
            for name, values in found.items()
        }

    def _look(self, probe: Probe) -> None:
        names = list(self.encoders)
        self.contribution = contributions(
            lambda chosen: self._worth(probe, chosen), names, seed=self.seed
        )
        are_strong = strong([self.contribution[name] for name in names])
        self.strength = {
            name: self.strong if is_strong else self.weak
            for name, is_strong in zip(names, are_strong, strict=True)
        }
        self.fisher = self._information(probe)
        self.start = {
            name: {
                key: p.detach().clone()
                for key, p in encoder.named_parameters()
                if key in self.fisher[name]
            }
            for name, encoder in self.encoders.items()
        }
        self.metrics = {
            f"{what}/{name}": torch.tensor(values[name], dtype=torch.float32)
            for what, values in (("contribution", self.contribution), ("strength", self.strength))
            for name in names
        }

    def _information(self, probe: Probe) -> dict[str, dict[str, Tensor]]:
        """F of each encoder: the mean of g² over the batches of the training split."""
        totals: dict[str, dict[str, Tensor]] = {name: {} for name in self.encoders}
        count = 0

        def take() -> None:
            nonlocal count
            count += 1
            for name, encoder in self.encoders.items():
                check_dense(encoder, self)
                total = totals[name]
                for key, square in squares(encoder).items():
                    total[key] = total[key] + square if key in total else square

        probe.gradients(super().loss, take, criterion=self.criterion)
        return {
            name: {key: _finite(value / count) for key, value in total.items()}
            for name, total in totals.items()
        }

    def _worth(self, probe: Probe, chosen: Sequence[frozenset[str]]) -> dict[frozenset[str], float]:
        """What the model is worth with each set of modalities; 0 with none."""
        shown = [some for some in chosen if some]
        is_classes = True

        def of(output: Output, target: Tensor) -> Mapping[str, Tensor]:
            nonlocal is_classes
            is_classes = output.logits.shape[1] > 1 and _are_classes(target)
            logits = self._with_each(output, shown)
            judged = self._judged if is_classes else _beside
            return {"rows": torch.cat([judged(z, target) for z in logits], 1)}

        found = probe.features("train", of)
        parts = distributed.gather(found.features["rows"], sharded=found.sharded)
        rows = torch.cat(parts).cpu().tensor_split(len(shown), 1)
        measure = accuracy if is_classes else correlation
        worth = {
            some: float(measure(*each.tensor_split(2, 1)))
            for some, each in zip(shown, rows, strict=True)
        }
        return {frozenset(): 0.0, **worth}

    def _with_each(self, output: Output, shown: Sequence[frozenset[str]]) -> list[Tensor]:
        """The logits with each set of modalities, with the features of the others zeroed."""
        fuse = self._need(output, "fuse")
        own = self._features(output)
        zeros = {name: torch.zeros_like(value) for name, value in own.items()}
        return [
            fuse({**output.features, **{n: x for n, x in zeros.items() if n not in some}})
            for some in shown
        ]

    def _judged(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Tensor:
        """For each sample, whether its prediction is right and whether it has a label."""
        here = counted(target, logits.shape[1], self.criterion)
        return torch.stack([(logits.argmax(1) == target) & here, here], 1).float()


def _rates(optimizer: Optimizer) -> dict[nn.Parameter, float | Tensor]:
    return {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def _are_classes(target: Tensor) -> bool:
    return target.ndim == 1 and not target.is_floating_point()


def _beside(prediction: Float[Tensor, "n c"], target: Tensor) -> Float[Tensor, "n _"]:
    """For each sample, its outputs followed by its targets."""
    return torch.cat([full(prediction), target.reshape(prediction.shape).to(full(prediction))], 1)


def _finite(x: Tensor) -> Tensor:
    """The values, with 0 (no constraint) where a sum overflowed."""
    distributed.local(x).nan_to_num_(0.0, 0.0, 0.0)
    return x
