"""Gradient blending (G-Blending), by the overfitting-to-generalisation ratio (OGR).

Wang, Tran, Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?", CVPR 2020,
https://arxiv.org/abs/1905.12681.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from evenly import criteria, distributed
from evenly.errors import UserRuntimeError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.optimizers import check_rebuilt, check_trains, unwrapped
from evenly.output import Output
from evenly.presence import having
from evenly.probe import Probe, Split
from evenly.ranges import check_range

FLOOR = 1e-4
"""Lower bound of O² as a divisor: overfitting below 0.01 nats cannot be told from none."""


def weights(
    before: Float[Tensor, "2 k"], after: Float[Tensor, "2 k"], floor: float = FLOOR
) -> Float[Tensor, " k"]:
    """The share of each loss in the blend, based on a training on that loss alone.

    G_k = V_k(n) - V_k(n + N) is the generalisation gained, O_k =
    (V_k - T_k)(n + N) - (V_k - T_k)(n) the overfitting incurred, with training loss T_k and
    validation loss V_k; the weights are w_k ∝ G_k / O_k² and add up to 1. A loss that does not
    generalise gets weight 0; if none does, all are equal.

    Args:
        before: T and V of each loss at epoch n.
        after: The same at epoch n + N.
        floor: Lower bound of O².
    """
    gain = before[1] - after[1]
    overfitting = (after[1] - after[0]) - (before[1] - before[0])
    ratio = gain / overfitting.square().clamp_min(floor)
    weight = torch.where(gain > 0, ratio, 0.0)  # also 0 if a trial diverged
    total = weight.sum()
    return torch.where(total > 0, weight / total, 1 / len(weight))


class GBlending(Method):
    """Weighs the fused loss and each modality's by how well it generalises.

    L = w_0 CE(z) + Σ_m w_m CE(z_m), with w_k ∝ G_k / O_k²: the generalisation gained by a training
    on loss k alone, over the square of the overfitting it incurs (`weights`). Trials from the
    current weights measure them and leave no trace. Two trials are enough: one on the fused loss
    and one on Σ_m CE(z_m), in which each modality learns as it would alone, since encoders and
    unimodal heads share nothing. Losses are means over the samples of a whole split, so batches do
    not matter. If the fused loss gains nothing, w_0 = 0. Its head F, which makes the prediction,
    then learns from detached features, + CE(F(sg f)), and moves no encoder.

    Offline, trials run once before the training and are as long as the training; online, they run
    before each super-epoch and are as long as it.

    Attributes:
        weights: w by 'fused' or 'unimodal/' and modality.
    """

    info = Info(
        title="Gradient Blending (G-Blending, OGR)",
        paper="Wang, Tran, Feiszli. What Makes Training Multi-Modal Classification Networks Hard? "
        "CVPR 2020",
        year=2020,
        url="https://arxiv.org/abs/1905.12681",
        category="objective",
        writes="loss",
        targets=("classes", "soft", "labels", "logit", "number"),
        modalities="any number; each has a weight, and so has the fused loss",
        neutral="no setting makes the trials give the unimodal losses a weight of 0",
        variants=({}, {"online": True}),
        epochs=45,
        in_epochs=("trial_epochs", "super_epoch"),
        needs=("unimodal", "fuse"),
        unimodal="trains",
        needs_probe=True,
        head="multi",
        cost="M unimodal heads; before the first epoch, two trainings of `trial_epochs` epochs "
        "(online: of `super_epoch` epochs before each super-epoch), for all unimodal losses and "
        "for the fused one",
        budget=1.05,
        missing=True,
        doubts="The paper holds out part of the training split to measure the gap. Here it is "
        "the probe's validation split, which thus influences the weights and not only "
        "the choice of the epoch. Weights add up to 1, like those the authors publish; "
        "the paper's formula leaves the constant to a normalisation. Three rules are "
        "not in the paper: a negative gain gets weight 0 (the paper assumes a gain), O² "
        "is at least 1e-4, and all weights are equal if no loss gains. The lengths (45 "
        "epochs, super-epochs of 10) are not verified. Trials use the optimiser's "
        "settings with a constant learning rate, the one before a schedule, also "
        "online, where the training's own may have fallen. The unimodal losses share "
        "one trial, which equals one trial each as long as they share no parameters; a "
        "head of your own with one layer or bias for all modalities breaks that. A "
        "training batch may lack a modality, also in a trial; the losses before and "
        "after a trial come from passes in which no batch may. Where w_0 is 0, the "
        "fused head learns from detached features in each step; the paper does not say "
        "what becomes of it, and a re-implementation fine-tunes it for 25 epochs "
        "afterwards. In that re-implementation a loss that gains nothing has the weight "
        "of its |G|, and by default G and O are the losses afterwards, not their "
        "changes.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "weights")

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        online: bool = False,
        trial_epochs: int = 45,
        super_epoch: int = 10,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the blend.

        Args:
            encoders: By modality; their names say which unimodal logits count.
            optimizer: The training's optimiser; trials use another of its kind with its settings.
            online: Whether to determine the weights before each super-epoch; otherwise once, before
                the first epoch.
            trial_epochs: Length in epochs of trials that run once (the paper: that of the
                training).
            super_epoch: Length of a super-epoch and of its trials in epochs.
            seed: Seed of the trials.
            criterion: See `Method`.

        Raises:
            TypeError: If `optimizer` is not an optimiser.
            ValueError: If a length is below 1, or no second optimiser of its kind can be made.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "at least 1", trial_epochs=trial_epochs, super_epoch=super_epoch)
        self.optimizer, self.seed = unwrapped(optimizer), seed
        check_rebuilt(optimizer)
        self.online, self.trial_epochs, self.super_epoch = online, trial_epochs, super_epoch
        self.epoch = -1  # the epoch before which the weights were determined
        self.weights: dict[str, float] = {}

    def is_due(self, epoch: int) -> bool:
        """Whether weights are determined before this epoch (from 0)."""
        return epoch % self.super_epoch == 0 if self.online else epoch == 0

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Runs the trials if they are due and have not been run for this epoch."""
        if self.weights and (epoch == self.epoch or not self.is_due(epoch)):
            return
        probe = self._probe(probe)
        before = self._losses(probe)
        alone = self._tried(probe, self._unimodal_loss, epoch)
        after = {**alone, "fused": self._tried(probe, super().loss, epoch)["fused"]}
        found = weights(_table(before), _table(after))
        self.epoch = epoch
        self.weights = dict(zip(before, found.tolist(), strict=True))
        self.metrics = {
            f"weight/{name}": torch.tensor(self.weights[f"unimodal/{name}"])
            for name in self.encoders
        } | {"fused_weight": torch.tensor(self.weights["fused"])}

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """w_0 CE(z) + Σ_m w_m CE(z_m), and CE(F(sg f)) if w_0 = 0."""
        logits = self._logits(output)
        fuse = self._need(output, "fuse")
        if not self.weights:
            raise UserRuntimeError(
                "GBlending.loss came before any trial. Call before_epoch before the first batch "
                "of an epoch, or load the method's state."
            )
        losses = [self.weights[part] * self.criterion(z, target) for part, z in logits.items()]
        if self.weights["fused"] == 0:
            still = fuse({name: value.detach() for name, value in output.features.items()})
            losses.append(self.criterion(still, target))
        return torch.stack(losses).sum()

    def _logits(self, output: Output) -> dict[str, Tensor]:
        """The logits of each part of the blend, the fused ones first."""
        unimodal = {f"unimodal/{name}": z for name, z in self._unimodal(output).items()}
        return {"fused": output.logits, **unimodal}

    def _marked(self, output: Output) -> dict[str, Tensor]:
        """The same, with an extra column that tells whether a sample has the modality."""
        found = {}
        for part, z in self._logits(output).items():
            here = having(output, part.removeprefix("unimodal/"))
            mark = torch.ones_like(z[:, :1]) if here is None else here.unsqueeze(1).to(z)
            found[part] = torch.cat([z, mark], 1)
        return found

    def _tried(
        self, probe: Probe, objective: Callable[[Output, Tensor], Tensor], epoch: int
    ) -> dict[str, tuple[float, float]]:
        """The losses after a training on an objective."""
        check_trains(self.optimizer, self.encoders, "GBlending")
        with probe.trained(
            objective,
            epochs=self.super_epoch if self.online else self.trial_epochs,
            optimizer=self.optimizer,
            seed=self.seed + epoch,
            criterion=self.criterion,
        ):
            return self._losses(probe)

    def _losses(self, probe: Probe) -> dict[str, tuple[float, float]]:
        """The mean loss of each part over the training split and over the validation split."""
        train, val = self._means(probe, "train"), self._means(probe, "val")
        return {part: (train[part], val[part]) for part in train}

    def _means(self, probe: Probe, split: Split) -> dict[str, float]:
        found = probe.features(split, lambda output, _: self._marked(output))
        means = {}
        for part, marked in found.features.items():
            here = marked[:, -1] > 0
            logits, target = marked[here, :-1], found.target.to(marked.device)[here]
            # Rows count by class alone, whichever rank holds them; a rank may hold none.
            count = criteria.weights(self.criterion, target).sum()
            total = self.criterion(logits, target) * count if len(logits) else 0 * count
            sums = distributed.sum_(torch.stack([total.float(), count]), sharded=found.sharded)
            means[part] = float(sums[0] / sums[1])
        return means


def _table(losses: dict[str, tuple[float, float]]) -> Float[Tensor, "2 k"]:
    return torch.tensor(list(losses.values()), dtype=torch.float64).T
