"""Multimodal negative learning (MNL).

Gong, Gao, Zhu, Hu, Cao, "Multimodal Negative Learning", NeurIPS 2025,
https://arxiv.org/abs/2510.20877.
"""

import math
from itertools import permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.output import Output
from evenly.presence import parts
from evenly.ranges import check_range


def rivals(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The wrong class that each sample's fused logits rate most likely."""
    return logits.scatter(1, target.unsqueeze(1), -math.inf).argmax(1)


def standing(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], rival: Int[Tensor, " n"]
) -> Float[Tensor, "2 n"]:
    """How well a modality knows each sample: its p[y], and its margin z[y] - z[rival]."""
    return torch.stack([_at(logits.softmax(1), target), _at(logits, target) - _at(logits, rival)])


def guidance(
    guide: Float[Tensor, "n c"],
    guided: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    weight: float,
) -> Float[Tensor, " n"]:
    """What a modality learns from a guide: (-log p[y] - λ Σ_{c≠y} q[c] log p[c]) / C.

    Here p are its own probabilities and q the guide's, which get no gradient.
    """
    label = nn.functional.one_hot(target, guide.shape[1]).to(guide)
    teaching = label + weight * (1 - label) * guide.detach().softmax(1)
    return -(teaching * guided.log_softmax(1)).mean(1)


class MNL(Method):
    """Lets the modality that knows a sample better tell the other which classes it is not.

    L = CE(z) + Σ_m CE(z_m) + Σ_{g ≠ m} mean_i [g guides m] G_gm / (M - 1), with z the mean of the
    modalities' logits z_m. Modality g guides m on a sample if both its p[y] and its margin
    z_g[y] - z_g[j] are larger, with j the wrong class that z rates most likely. Then

        G_gm = (-log p_m[y] - λ Σ_{c ≠ y} p_g[c] log p_m[c]) / C,

    so that m learns the label, but from the guide, which gets no gradient, only what the sample is
    not.
    """

    info = Info(
        title="Multimodal Negative Learning (MNL)",
        paper="Gong, Gao, Zhu, Hu, Cao. Multimodal Negative Learning. NeurIPS 2025",
        year=2025,
        url="https://arxiv.org/abs/2510.20877",
        category="objective",
        writes="loss",
        modalities="the paper uses two; with more, all that are ahead of one guide it, each with a "
        "weight of 1 / (M - 1); with one, training is joint training",
        neutral="without what guides say of other classes, their samples' labels and the unimodal "
        "losses remain",
        needs=("unimodal",),
        unimodal="trains",
        head="late",
        cost="M unimodal losses, and M (M - 1) more on the logits",
        budget=1.05,
        missing=True,
        doubts="The released code covers only text and images (MVSA), which is where the "
        "weight comes from. If p[y] and margin are level, images guide text there; here "
        "nobody guides. As in that code, the guidance is a mean over samples and "
        "classes, so it weighs 1 / C of a cross-entropy.",
    )

    def __init__(
        self,
        encoders: Encoders,
        *,
        weight: float = 0.7,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say which modalities learn from each other.
            weight: λ, weight of what a guide says about the other classes, not negative; 0.7 in the
                released code.
            criterion: See `Method`.

        Raises:
            ValueError: If the weight is negative or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", weight=weight)
        self.weight = weight

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + Σ_m CE(z_m) and the guidance."""
        loss = super().loss(output, target)
        if len(self.encoders) < 2:
            return loss
        loss = loss + self._unimodal_loss(output, target)
        unimodal = {name: full(logits) for name, logits in self._unimodal(output).items()}
        guided = {name: torch.zeros_like(loss) for name in unimodal}
        for part in parts(output, unimodal):
            true, own = part.of(target), {name: part.of(unimodal[name]) for name in part.names}
            with torch.no_grad():
                rival = rivals(full(part.of(output.logits)), true)
                known = {name: standing(logits, true, rival) for name, logits in own.items()}
            for one, other in permutations(own, 2):
                leads = (known[one] > known[other]).all(0)
                term = guidance(own[one], own[other], true, self.weight)
                loss = loss + part.share * (leads * term).mean() / (len(own) - 1)
                guided[other] = guided[other] + part.share * leads.float().mean()
        if torch.is_grad_enabled():
            self.metrics = {f"guided/{name}": share for name, share in guided.items()}
        return loss


def _at(x: Float[Tensor, "n c"], column: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return x.gather(1, column.unsqueeze(1)).squeeze(1)
