"""Modality-informed learning rate scheduler (MILES).

Guerra-Manzanares, Shamout, "MILES: Modality-Informed Learning Rate Scheduler for Balancing
Multimodal Learning", IJCNN 2025, https://arxiv.org/abs/2510.17394.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info
from evenly.output import Output
from evenly.pacing import Paced
from evenly.probe import Probe
from evenly.ranges import check_range


def utilisation(fused: float, unimodal: Sequence[float]) -> list[float]:
    """What each modality adds to the others: u_m = (acc - mean of the others' acc_k) / acc.

    Args:
        fused: acc, accuracy of the prediction; if it is 0, so is each u_m.
        unimodal: acc_m, accuracy of each of two or more modalities alone.
    """
    if fused == 0:
        return [0.0] * len(unimodal)
    total, others = sum(unimodal), len(unimodal) - 1
    return [(fused - (total - own) / others) / fused for own in unimodal]


def factors(rates: Sequence[float], threshold: float, reduction: float) -> list[float]:
    """μ for each modality whose u_m is more than τ above the mean of the others', else 1.

    While every u_m is negative, all factors are 1: the prediction has learnt less than its
    modalities.

    Args:
        rates: u_m of two or more modalities.
        threshold: τ.
        reduction: μ.
    """
    if max(rates) < 0:
        return [1.0] * len(rates)
    total, others = sum(rates), len(rates) - 1
    return [reduction if u - (total - u) / others > threshold else 1.0 for u in rates]


class MILES(Paced):
    """Slows the encoder of the modality that the prediction depends on too much.

    L = CE(z) + unimodal · Σ_m CE(z_m). Before each epoch but the first, accuracies on the
    validation split give the conditional utilisation of each modality, for two modalities A and B

        u_A = (acc_AB - acc_B) / acc_AB,   u_B = (acc_AB - acc_A) / acc_AB,

    If |u_A - u_B| > τ and not both are negative, the encoder with the larger one trains at μ times
    the learning rate in this epoch. The factors are computed afresh each time, so they do not
    compound. The head keeps the common rate.

    Attributes:
        epoch: The last that has begun.
    """

    info = Info(
        title="Modality-informed learning rate scheduler (MILES)",
        paper="Guerra-Manzanares, Shamout. MILES: Modality-Informed Learning Rate Scheduler for "
        "Balancing Multimodal Learning. IJCNN 2025",
        year=2025,
        url="https://arxiv.org/abs/2510.17394",
        category="optimisation",
        writes="learning rates",
        modalities="the paper uses two; with more, acc_B is the mean of the others' accuracies, "
        "and an encoder is slowed if its u_m is more than τ above the mean of the others', which "
        "for two is the paper's rule; with one, training is joint training",
        neutral={"reduction": 1.0, "unimodal": 0.0},
        needs=("unimodal",),
        unimodal="trains",
        needs_probe=True,
        head="multi",
        cost="M unimodal heads; before each epoch a pass over the validation split",
        budget=1.05,
        missing=True,
        doubts="No code by the authors is known, and the paper's full text could not be read: rule "
        "and settings follow the re-implementation by PGGB's authors, who say that they "
        "follow the paper's algorithm. They use accuracies of the test split; here it is the "
        "validation split, so the data that selects the best epoch has also chosen the rates. "
        "That factors do not compound, that the head keeps its rate, and the weight of the "
        "unimodal losses also come from there. With three or more modalities, that "
        "re-implementation slows only the one with the largest u_m, if it is more than τ "
        "above the smallest. It trains with Adam, as the paper reportedly does.",
    )
    state: ClassVar[tuple[str, ...]] = ("factor", "epoch")

    def __init__(
        self,
        encoders: Encoders,
        *,
        optimizer: Optimizer,
        threshold: float = 0.2,
        reduction: float = 0.5,
        unimodal: float = 1.0,
        criterion: Criterion | None = None,
    ) -> None:
        """Makes the optimiser's steps use learning rates by modality.

        Args:
            encoders: The modules whose learning rates are set, by modality.
            optimizer: The optimiser that trains them.
            threshold: τ, how far apart utilisations may be, not negative.
            reduction: μ, the factor on the rate of the encoder with the larger one, above 0 and at
                most 1.
            unimodal: Weight of the unimodal losses, above 0 unless reduction is 1.
            criterion: See `Method`.

        Raises:
            TypeError: If `optimizer` is not an optimiser.
            ValueError: If a setting is out of range, nothing would train the unimodal logits, or
                the optimiser does not suit `Paced`.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", threshold=threshold, unimodal=unimodal)
        check_range(self, "above 0 and at most 1", reduction=reduction)
        if unimodal == 0 and reduction < 1 and len(self.encoders) > 1:
            raise UserError(
                "MILES: 'unimodal' is 0, so nothing trains the unimodal logits whose accuracies "
                "set the rates. Give a weight above 0, or reduction=1 as well."
            )
        if unimodal == 0:
            self.info = replace(self.info, partial=True, unimodal="leaves")
        elif len(self.encoders) < 2:
            self.info = replace(self.info, partial=True)
        self.threshold, self.reduction, self.unimodal = threshold, reduction, unimodal
        self.epoch = -1
        self._pace(optimizer)

    @property
    def is_active(self) -> bool:
        """Whether there is anything to slow."""
        return self.reduction < 1 and len(self.encoders) > 1

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Recomputes the factors from what has been learnt so far."""
        probe = self._probe(probe)
        if self.is_active and epoch > 0 and epoch != self.epoch:
            self._adapt(probe)
        self.epoch = epoch

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + unimodal · Σ_m CE(z_m)."""
        loss = super().loss(output, target)
        if len(self.encoders) < 2:
            return loss
        unimodal = self._unimodal(output)
        if self.unimodal == 0:  # heads without a gradient stay as they are, decay included
            return loss
        for logits in unimodal.values():
            loss = loss + self.unimodal * self.criterion(logits, target)
        return loss

    def _adapt(self, probe: Probe) -> None:
        fused, right, _ = self._right(probe)  # counts of the same samples, so their ratios suffice
        rates = utilisation(fused, list(right.values()))
        found = factors(rates, self.threshold, self.reduction)
        self.factor = dict(zip(right, found, strict=True))
        self.metrics = {
            f"{what}/{name}": torch.tensor(value)
            for what, values in (("rate", found), ("utilisation", rates))
            for name, value in zip(right, values, strict=True)
        }
