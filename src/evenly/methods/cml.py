"""Calibrating multimodal learning (CML).

Ma, Zhang, Zhang, Wu, Fu, Zhou, Hu, "Calibrating Multimodal Learning", ICML 2023,
https://arxiv.org/abs/2306.01265.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly import criteria
from evenly.chance import stream
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.output import Output
from evenly.presence import parts
from evenly.ranges import check_range


def penalties(
    larger: Float[Tensor, "n c"], smaller: Float[Tensor, "n c"], target: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Each sample's penalty for a confidence that rises when a modality is removed.

    relu(conf(smaller) - conf(larger)), with conf the largest probability; 0 where the smaller set
    of modalities is right and the larger one wrong, since the rise is then an improvement.
    """
    confidence, predicted = _confidence(larger)
    confidence_left, predicted_left = _confidence(smaller)
    better = (predicted_left == target) & (predicted != target)
    return (confidence_left - confidence).relu() * ~better


def _confidence(logits: Float[Tensor, "n c"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    confidence, predicted = full(logits).softmax(-1).max(-1)
    return confidence, predicted


class CML(Method):
    """Keeps confidence from rising when modalities are removed.

    Each step removes modalities one after the other, in random order, until one is left. This makes
    K sets of modalities. With z_0 the fused logits and z_k those without the first k modalities of
    the order,

        L = Σ_{k ≥ 0} CE(z_k) / K + λ Σ_{k ≥ 1} mean_i sign_i relu(conf_i(z_k) - conf_i(z_{k-1})),

    where sign_i is 0 if z_k is right and z_{k-1} is wrong, else 1.
    """

    info = Info(
        title="Calibrating Multimodal Learning (CML)",
        paper="Ma, Zhang, Zhang, Wu, Fu, Zhou, Hu. Calibrating Multimodal Learning. ICML 2023",
        year=2023,
        url="https://arxiv.org/abs/2306.01265",
        category="objective",
        writes="loss",
        modalities="any number, by a chain of nested subsets in random order; with one, there is "
        "no subset, and training is joint training",
        neutral="without the penalty, the losses of the subsets remain",
        needs=("fuse",),
        separate=True,
        cost="the head once more for each modality but one",
        budget=1.05,
        missing=True,
        doubts="The released code has no late fusion, only CPM-Nets and MIWAE. Like here, its "
        "CPM-Nets divide the classification loss by the number of sets but not the "
        "penalty; both are sums over samples, here means, which leaves their ratio "
        "unchanged. Its classification loss uses distances in the latent space, beside "
        "a reconstruction loss; here it is cross-entropy alone, so a weight may not "
        "mean the same. It draws an order of removal once per sample; here one order "
        "for all samples of a step is drawn anew in each step. The paper searches the "
        "weight among 0, 5, ..., 100; the default is the smallest that acts.",
    )
    state: ClassVar[tuple[str, ...]] = ("steps",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        penalty: float = 5.0,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say which modalities may be removed.
            penalty: λ ≥ 0, weight of the penalty, which the paper searches from 0 to 100.
            seed: Seed of the order in which modalities are removed, the same on all ranks.
            criterion: See `Method`.

        Raises:
            ValueError: If the weight is negative or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", penalty=penalty)
        self.penalty, self.seed = penalty, seed
        self.steps = 0

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The mean loss of all sets in the chain, and the penalties between neighbours."""
        order = [name for name in self.order() if name in self._features(output)]
        without = self._without(output, order[:-1])
        loss: Tensor = output.logits[:0].sum()
        found = {name: torch.zeros_like(loss) for name in without}
        weight = criteria.weights(self.criterion, target).to(full(output.logits))
        for part in parts(output, order):
            larger, true = part.of(output.logits), part.of(target)
            losses = [self.criterion(larger, true)]
            for name in part.names[:-1]:
                smaller = part.of(without[name])
                losses.append(self.criterion(smaller, true))
                found[name] = found[name] + part.share * penalties(larger, smaller, true).mean()
                larger = smaller
            counts = part.of(weight).sum() / weight.sum()
            loss = loss + counts * sum(losses[1:], losses[0]) / len(losses)
        for penalty in found.values():
            loss = loss + self.penalty * penalty
        if torch.is_grad_enabled():
            self.metrics = {f"penalty/{name}": x.detach() for name, x in found.items()}
        return loss

    def _without(self, output: Output, order: list[str]) -> dict[str, Tensor]:
        """By modality, the fused logits without it and all modalities removed before it."""
        fuse = self._need(output, "fuse")
        kept, found = dict(output.features), {}
        for name in order:
            del kept[name]
            found[name] = fuse(kept)
        return found

    def before_step(self) -> None:
        """Moves on to the next order."""
        self.steps += 1

    def order(self) -> list[str]:
        """The modalities in the order of their removal in this step; the last one stays."""
        names = list(self.encoders)
        drawn = stream(torch.device("cpu"), self.seed, self.steps)
        return [names[n] for n in torch.randperm(len(names), generator=drawn).tolist()]
