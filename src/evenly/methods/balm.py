"""Balanced learning under imbalanced missing rates (BALM).

Nguyen, Pham, Le, Nguyen, "BALM: A Model-Agnostic Framework for Balanced Multimodal Learning under
Imbalanced Missing Rates", CVPR 2026, https://arxiv.org/abs/2603.19718.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.methods.cggm import coefficients, cosine
from evenly.modulation import StepSum, full, kept, scale_
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.targets import SINGLE


def divergence(unimodal: Float[Tensor, "n c"], fused: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """KL(ŷ_m ‖ ŷ) of each sample, from logits; not negative."""
    own, whole = full(unimodal).log_softmax(1), full(fused).log_softmax(1)
    return (own.exp() * (own - whole)).sum(1)


def progress(before: Float[Tensor, " m"], now: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Δ_m = D_m(t - 1) - D_m(t); if none was known before (0), D_m(t)."""
    return torch.where(before > 0, before - now, now)


def alignment(share: Float[Tensor, " m"], cosines: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """1/M Σ_m |c_m cos_m|; 0 if all are orthogonal."""
    return (share * cosines).abs().mean()


class BALM(Method):
    """Slows down encoders whose predictions approach the fused one faster than the others'.

    L = CE(z) + Σ_m CE(z_m) + τ/M Σ_m |c_m cos(U, U_m)|. Networks in the head make the unimodal
    predictions from detached features, so encoders learn from CE(z) alone. In each step, with D_m
    the mean of KL(softmax z_m ‖ softmax z) over the samples that have modality m and Δ_m =
    D_m(t - 1) - D_m(t), the gradient of encoder m is multiplied by ρ c_m, where c_m = (Σ_j
    Δ_j - Δ_m) / Σ_j Δ_j; see `evenly.methods.cggm.coefficients`. The last term compares U, the
    weights of the layer that makes the fused logits, with U_m, those of the networks' last layers.
    It takes c_m from the last step, and U alone learns from it.

    The head calibrates each modality's features by those of all modalities; see
    `evenly.nn.heads.BALMHead`.

    Attributes:
        distance: D, in the encoders' order; 0 before the first step.
        shares: c of the last step, likewise.
    """

    info = Info(
        title="BALM",
        paper="Nguyen, Pham, Le, Nguyen. BALM: A Model-Agnostic Framework for Balanced Multimodal "
        "Learning under Imbalanced Missing Rates. CVPR 2026",
        year=2026,
        url="https://arxiv.org/abs/2603.19718",
        category="optimisation",
        writes="gradients",
        targets=SINGLE,
        modalities="any number, three in the paper; with one, it does nothing",
        neutral="the coefficients of all encoders add up to ρ (M - 1), so for more than two "
        "modalities or unequal progress no setting makes each of them 1",
        epochs=80,
        needs=("unimodal",),
        unimodal="detaches",
        head="balm",
        cost="a gate on the features, and M networks of two layers on them",
        budget=1.05,
        scales_gradients=True,
        multiplies=True,
        missing=True,
        doubts="Read in the released code; the paper is known from summaries. The code lets "
        "the coefficients grow without bound and change sign as progress and regress "
        "cancel, and clips gradients to the norm 2; here a Δ_m below 0 counts as 0, all "
        "get 1 if none improved, as in CGGM, and clipping is left to the loop. As in "
        "the code, Δ_m is D_m in the first step. Its D is KL(ŷ ‖ ŷ_m), the reverse of "
        "the paper's. According to a summary, the part of a modality's gradient that "
        "conflicts with the fused prediction's is projected out. The code has no such "
        "projection, nor could it: a layer of a head and an encoder have gradients of "
        "different spaces, and the unimodal predictions send encoders none. The code, "
        "and this class, have the last term, on weights where the paper speaks of "
        "gradients; the code uses those of the previous step. The factors are 2σ in the "
        "code, 1 + σ in the summaries. The code computes them from means over the "
        "utterances of a conversation, and they calibrate the inputs of encoders. "
        "Inputs here are of any kind, so they calibrate features, and each sample is a "
        "conversation of one utterance. The code's networks have an optimiser of their "
        "own, Adam like the model's. Its scripts add noise with each gradient's own "
        "spread, which is not built. Defaults are those for IEMOCAP with MMGCN; for "
        "MOSEI ρ is 1.6 and τ 0.4. Because a method of the head is called outside its "
        "forward pass, FSDP2 must shard the head together with the whole model.",
    )
    state: ClassVar[tuple[str, ...]] = ("distance", "shares")

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: nn.Module,
        rho: float = 1.4,
        tau: float = 0.3,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the modulation.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            head: The model's head, `evenly.nn.heads.BALMHead`, or your own with a method
                `last_layers()` that returns the weights of the fused layer and, by modality,
                unimodal weights of the same shape.
            rho: ρ, the factor on all coefficients; above 0, between 1.1 and 1.6 in the released
                code.
            tau: τ, weight of the last term; not negative, between 0.2 and 0.8 there.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range, or the head cannot show its layers.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and above 0", rho=rho)
        check_range(self, "finite and not negative", tau=tau)
        if not callable(getattr(head, "last_layers", None)):
            raise UserError(
                f"BALM compares the head's last layers, but {type(head).__name__} has no method "
                "'last_layers'. Build the model with the head 'balm', or add that method to "
                "your own: it gives the weights of the fused layer, and of each modality's."
            )
        if len(self.encoders) == 1:
            self.info = replace(self.info, partial=True)
        self.head, self.rho, self.tau = head, rho, tau
        self.distance: Float[Tensor, " m"] = torch.zeros(len(self.encoders))
        self.shares: Float[Tensor, " m"] = torch.zeros(len(self.encoders))
        self._found = StepSum(self.encoders)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Discards what an unfinished step left behind."""
        self._found.clear()

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + Σ_m CE(z_m) and the last term; also takes the distances."""
        loss = super().loss(output, target)
        if len(self.encoders) == 1:
            return loss
        loss = loss + self._unimodal_loss(output, target)
        if not torch.is_grad_enabled():
            return loss
        self._found.add(self._distances(output), output)
        cosines = self._cosines()
        return loss + self.tau * alignment(self.shares.to(cosines), cosines)

    def before_step(self) -> None:
        """Changes the encoders' gradients."""
        if len(self.encoders) == 1:
            return
        found = self._found.take(self)
        total, count = found
        counts = self._found.counts(found)
        before = self.distance.to(total)
        now = torch.where(count > 0, total / count.clamp_min(1), before)  # D of a missing one stays
        shares = coefficients(progress(before, now))
        self.shares = kept(counts, shares, self.shares)
        self.distance = kept(counts, now, before)
        for share, encoder in zip(self.shares, self.encoders.values(), strict=True):
            scale_(encoder, self.rho * share, least=0)
        self.metrics = self._per_modality(
            coefficient=self.rho * self.shares, distance=self.distance
        )

    @torch.no_grad()
    def _distances(self, output: Output) -> Float[Tensor, "2 m"]:
        """Σ_i KL(ŷ_m,i ‖ ŷ_i) of each modality, and the number of samples."""
        unimodal, present = self._unimodal(output), output.present or {}
        found = full(output.logits).new_zeros(2, len(self.encoders))
        for m, name in enumerate(self.encoders):
            if name in unimodal:
                here = present.get(name, torch.ones_like(output.logits[:, 0], dtype=torch.bool))
                found[0, m] = (divergence(unimodal[name], output.logits) * here).sum()
                found[1, m] = here.sum()
        return found

    def _cosines(self) -> Float[Tensor, " m"]:
        """The cosines of the fused layer's weights, which learn from them, with each network's."""
        fused, own = self.head.last_layers()  # type: ignore[operator]
        return torch.stack([cosine(own[name].detach(), fused) for name in self.encoders])
