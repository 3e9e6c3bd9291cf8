"""Asymmetric representation learning (ARL).

Wei, Luo, Luo, "Improving Multimodal Learning via Imbalanced Learning", ICCV 2025,
https://arxiv.org/abs/2507.10203.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, full, scale_
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.targets import SINGLE


def findings(unimodal: Float[Tensor, "m n c"]) -> Float[Tensor, "2 m"]:
    """Σ_i ‖z_m,i‖₁ and the entropies Σ_i H(softmax(z_m,i)) of one batch, by modality."""
    log_probability = unimodal.log_softmax(-1)
    entropy = -(log_probability.exp() * log_probability).sum((1, 2))
    return torch.stack([unimodal.abs().sum((1, 2)), entropy])


def weights(
    dependence: Float[Tensor, " m"], entropy: Float[Tensor, " m"], temperature: float
) -> Float[Tensor, " m"]:
    """How much more each modality's encoder should learn than the others; the weights add up to 1.

    With d_m the share of the dependence, h_m the share of the entropy (a stand-in for the variance)
    and u_m ∝ 1 / max(h_m, 0.6 / M): w = softmax over modalities of T · u_m · mean of the others' d.
    A modality's share should be inversely proportional to its variance, so a modality that is
    certain while the model depends on the others learns most.
    """
    count, tiny = len(entropy), torch.finfo(entropy.dtype).tiny
    d = dependence / dependence.sum().clamp_min(tiny)
    inverse = 1 / (entropy / entropy.sum().clamp_min(tiny)).clamp_min(0.6 / count)
    others = (1 - d) / (count - 1)
    return (temperature * others * inverse / inverse.sum()).softmax(0)


class ARL(Method):
    """Lets encoders learn unequally, in inverse proportion to their variance.

    L = CE(z) + gamma · Σ_m CE(z_m), where the fusion itself predicts z_m from modality m alone, so
    no parameters are added. From epoch start + 1 on, the gradient of encoder m is multiplied by
    1 + w_m, with

    w = softmax over modalities of T · u_m · mean of the others' d,   u_m ∝ 1 / max(h_m, 0.6 / M)

    where d_m is a modality's share of the dependence and h_m of the entropy; see `weights`.
    """

    info = Info(
        title="Asymmetric representation learning (ARL)",
        paper="Wei, Luo, Luo. Improving Multimodal Learning via Imbalanced Learning. ICCV 2025",
        year=2025,
        url="https://arxiv.org/abs/2507.10203",
        category="optimisation",
        writes="gradients",
        targets=SINGLE,
        modalities="the paper uses two; with more, the mean of the others' d counts, and h_m is at "
        "least 0.6 / M, which for two is its 0.3; with one, it scales nothing",
        neutral={"gamma": 0.0, "start": 1_000_000},
        epochs=100,
        in_epochs=("start",),
        needs=("fuse",),
        separate=True,
        cost="M passes through the head",
        budget=1.05,
        scales_gradients=True,
        multiplies=True,
        doubts="The released code was first published without applying its weights. A later "
        "version applies those of the step before, 0.5 in the first; here they are the "
        "step's own. Dependence and variance are measured as in that code, not checked "
        "against the paper's text. Its unimodal losses have weight 1 up to `start`, "
        "whatever gamma is (here always gamma). Its scripts use T = 8 for CREMA-D and 4 for "
        "AVE, Kinetics-Sounds and VGGSound, and clip gradients to the norm 40, which is "
        "left to the loop. With these, gamma is 4 for CREMA-D and 3 for Kinetics-Sounds, so "
        "our defaults, T = 8 and gamma = 1, are none of their pairs.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        temperature: float = 8.0,
        gamma: float = 1.0,
        start: int = 5,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the scaling.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            temperature: T, which makes the weights more unequal, not negative; 8 in the paper.
            gamma: Weight of each unimodal loss; 1 by default, 4 for CREMA-D, where T is 8.
            start: Last epoch without scaling, from 0; 5 in the paper.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is negative or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(
            self, "finite and not negative", temperature=temperature, gamma=gamma, start=start
        )
        self.temperature, self.gamma, self.start = temperature, gamma, start
        self.epoch = -1
        self._found = StepSum()

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes the epoch."""
        self.epoch = epoch
        self._found.clear()

    def is_due(self, epoch: int) -> bool:
        """Whether gradients are scaled in an epoch (from 0): after `start`."""
        return epoch > self.start and len(self.encoders) > 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + gamma · Σ_m CE(z_m); also measures the logits."""
        loss = super().loss(output, target)
        fuse = self._need(output, "fuse")
        if not self.is_due(self.epoch) and self.gamma == 0:
            return loss
        unimodal = {
            name: full(fuse({name: value})) for name, value in self._features(output).items()
        }
        if self.is_due(self.epoch):
            self._found.add(findings(torch.stack(list(unimodal.values())).detach()))
        for logits in unimodal.values():
            loss = loss + self.gamma * self.criterion(logits, target)
        return loss

    def before_step(self) -> None:
        """Changes the encoders' gradients."""
        if not self.is_due(self.epoch):
            return
        dependence, entropy = self._found.take(self)
        found = weights(dependence, entropy, self.temperature)
        for weight, encoder in zip(found, self.encoders.values(), strict=True):
            scale_(encoder, 1 + weight, least=0)
        self.metrics = self._per_modality(weight=found)
