"""Multi-loss gradient modulation (MLB, multi-loss balanced).

Kontras, Chatzichristos, Blaschko, De Vos, "Improving Multimodal Learning with Multi-Loss Gradient
Modulation", BMVC 2024, https://arxiv.org/abs/2405.07930.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info
from evenly.methods.multi_loss import MultiLoss
from evenly.modulation import StepSum, discrepancy, scale_, scores
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range


def lag(score: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """How far each modality is behind: ρ_m = mean of the other scores / s_m."""
    return discrepancy(score).clamp_min(torch.finfo(score.dtype).tiny).reciprocal()


def modulation(ratio: Float[Tensor, " m"], alpha: float, beta: float) -> Float[Tensor, " m"]:
    """The factor for each encoder's gradient: 1 + (β_m - 1) tanh(α (ρ_m - 1)).

    β_m is β where ρ_m > 1, else 2.
    """
    change = torch.tanh(alpha * (ratio - 1))
    return 1 + torch.where(change > 0, (beta - 1) * change, change)


class MLB(MultiLoss):
    """Trains with a loss for each modality, damps encoders that are ahead and speeds up the others.

    L = CE(z) + weight · Σ_m CE(z_m). In each step the gradient of encoder m is multiplied by
    k_m = 1 + tanh(α (ρ_m - 1)), where ρ_m is the mean of the other modalities' scores over its
    own; a score is the probability that a modality's own logits give the true class. If the encoder
    is behind (ρ_m > 1), the tanh is multiplied by β - 1, so that k_m is between 1 and β. As the
    scores converge, the balancing phases out.
    """

    info = Info(
        title="Multi-loss gradient modulation (MLB)",
        paper="Kontras, Chatzichristos, Blaschko, De Vos. Improving Multimodal Learning with "
        "Multi-Loss Gradient Modulation. BMVC 2024",
        year=2024,
        url="https://arxiv.org/abs/2405.07930",
        category="optimisation",
        writes="gradients",
        modalities="any number: a score is compared with the mean of the others, as in the "
        "released code for three; for two that is the paper's rule; with one, it scales nothing",
        neutral={"alpha": 0.0, "weight": 0.0},
        needs=("unimodal",),
        unimodal="trains",
        head="multi",
        cost="M unimodal heads",
        budget=1.05,
        scales_gradients=True,
        multiplies=True,
        doubts="The released code also scales the modality's slice of the fused layer and its "
        "unimodal classifier; here only the encoders are scaled. Its scripts tune alpha and "
        "beta per data set: for CREMA-D with ResNets 0.5 and 10, or 3 without beta; 2 and 1 "
        "for AVE; 2 and 0.5 for UCF. With Conformers (alpha 3 and 5) and for "
        "Something-Something (2) they leave beta out, which means beta = 2. Our defaults, 0.5 "
        "and 2, are none of these pairs. Its class raises an error when it is constructed, "
        "which is fixed here. A beta below 1 also damps an encoder that is behind.",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        alpha: float = 0.5,
        beta: float = 2.0,
        weight: float = 1.0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the modulation.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            alpha: α, strength of the balancing, not negative; 0.5 for CREMA-D, with a beta of 10.
            beta: β, the limit of the factor for an encoder far behind, above 0. 2 is the plain
                formula, 1 speeds up no encoder, and below 1 those behind are damped, too.
            weight: Weight of each unimodal loss, above 0 unless alpha is 0; 1 in the paper.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range, or nothing would train the unimodal logits.
        """
        super().__init__(encoders, weight=weight, criterion=criterion)
        check_range(self, "finite and not negative", alpha=alpha)
        check_range(self, "finite and above 0", beta=beta)
        if alpha and weight == 0 and len(self.encoders) > 1:
            raise UserError(
                "MLB: 'weight' is 0, so nothing trains the unimodal logits that 'alpha' goes by. "
                "Give a weight above 0, or alpha=0 as well."
            )
        self.alpha, self.beta = alpha, beta
        self._score = StepSum()

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Discards what an unfinished step left behind."""
        self._score.clear()

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + weight · Σ_m CE(z_m); also takes the scores."""
        with torch.no_grad():
            score = scores(torch.stack(list(self._unimodal(output).values())), target)
        self._score.add(score)
        return super().loss(output, target)

    def before_step(self) -> None:
        """Changes the encoders' gradients."""
        score = self._score.take(self)
        if len(self.encoders) == 1:
            return
        coefficients = modulation(lag(score), self.alpha, self.beta)
        for coefficient, encoder in zip(coefficients, self.encoders.values(), strict=True):
            scale_(encoder, coefficient, least=0)
        self.metrics = self._per_modality(coefficient=coefficients)
