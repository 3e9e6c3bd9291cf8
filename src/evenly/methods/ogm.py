"""On-the-fly gradient modulation (OGM), without the generalisation enhancement.

Peng, Wei, Deng, Wang, Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation",
CVPR 2022, https://arxiv.org/abs/2203.15332.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, discrepancy, scale_, scores
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range


def modulation(ratio: Float[Tensor, " m"], alpha: float) -> Float[Tensor, " m"]:
    """The factor for each encoder's gradient: 1 - tanh(α ρ) where ρ > 1, else 1."""
    return torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), 1.0)


class OGM(Method):
    """Damps the gradient of the modality that is ahead.

    In each step the gradient of encoder m is multiplied by k_m = 1 - tanh(α ρ_m) if its share
    in the prediction of the true class is ahead of the others' (ρ_m > 1), else by 1.
    """

    info = Info(
        title="On-the-fly Gradient Modulation (OGM)",
        paper="Peng, Wei, Deng, Wang, Hu. Balanced Multimodal Learning via On-the-fly Gradient "
        "Modulation. CVPR 2022",
        year=2022,
        url="https://arxiv.org/abs/2203.15332",
        category="optimisation",
        writes="gradients",
        keeps_loss=True,
        modalities="the paper uses two; with more, a score is compared with the mean of the "
        "others, which for two is the paper's rule; with one, it does nothing",
        neutral={"alpha": 0.0},
        epochs=100,
        in_epochs=("start", "end"),
        needs=("unimodal",),
        budget=1.05,
        scales_gradients=True,
        multiplies=True,
        doubts="For three or more modalities the authors advise the mean of the pairwise "
        "ratios (2.25 for scores of 30, 20 and 10); here it is the ratio to the mean of "
        "the others (2.0). The released code changes only four-dimensional tensors (the "
        "convolutions of its ResNets); here all weights of two or more dimensions "
        "change, so that encoders of linear layers are included.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        alpha: float = 0.8,
        start: int = 0,
        end: int = 50,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the modulation.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            alpha: α, strength of the damping; the authors recommend 0.8 for CREMA-D and 0.1
                for VGGSound.
            start: First epoch of modulation, from 0.
            end: Last epoch of modulation (the paper: 50 of 100).
            criterion: See `Method`.

        Raises:
            ValueError: If alpha is negative or not finite, or the epochs end before they start.
        """
        super().__init__(encoders, criterion=criterion)
        name = type(self).__name__
        check_range(self, "finite and not negative", alpha=alpha)
        if end < start:
            raise UserError(f"{name}: 'end' must not be before 'start' = {start}; found {end}.")
        self.alpha, self.start, self.end = alpha, start, end
        self.epoch = -1
        self._score = StepSum()

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes the epoch."""
        self.epoch = epoch
        self._score.clear()

    def is_due(self, epoch: int) -> bool:
        """Whether an epoch (from 0) is modulated."""
        return self.start <= epoch <= self.end and len(self.encoders) > 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The joint loss; also takes the scores."""
        if self.is_due(self.epoch):
            with torch.no_grad():
                score = scores(torch.stack(list(self._unimodal(output).values())), target)
            self._score.add(score)
        return super().loss(output, target)

    def before_step(self) -> None:
        """Changes the encoders' gradients."""
        if not self.is_due(self.epoch):
            return
        coefficients = modulation(discrepancy(self._score.take(self)), self.alpha)
        self._modulate(coefficients)
        self.metrics = self._per_modality(coefficient=coefficients)

    def _modulate(self, coefficients: Float[Tensor, " m"]) -> None:
        for coefficient, encoder in zip(coefficients, self.encoders.values(), strict=True):
            scale_(encoder, coefficient)
