"""AUG: boosting the weaker modality with classifiers added during training.

Jiang, Huang, Yang, "Rethinking Multimodal Learning from the Perspective of Mitigating
Classification Ability Disproportion", NeurIPS 2025, https://arxiv.org/abs/2502.20120.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, discrepancy, full, kept, scores
from evenly.output import Output
from evenly.presence import having, only, those
from evenly.probe import Probe
from evenly.ranges import check_range


def residual_loss(
    last: Float[Tensor, "n c"],
    before: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    share: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of the newest classifier with what the earlier ones leave over.

    The label is y - λ y q with q = softmax(before), without gradient, so the loss of a sample is
    (1 - λ q[target]) · CE(last, target).
    """
    known = before.detach().softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    error = torch.nn.functional.cross_entropy(last, target, reduction="none")
    return ((1 - share * known) * error).mean()


def weakest(score: Float[Tensor, " m"], tolerance: float) -> int | None:
    """The modality with the lowest score, if the others' mean is more than `tolerance` ahead."""
    if len(score) < 2:
        return None
    ratio = discrepancy(score)
    lowest = int(ratio.argmin())
    return lowest if float(ratio[lowest]) * (1 + tolerance) < 1 else None


@runtime_checkable
class Configurable(Protocol):
    """A head whose modalities can be given more classifiers, such as 'configurable'."""

    depth: int

    def parts(self, features: Mapping[str, Tensor]) -> Mapping[str, tuple[Tensor, Tensor | None]]:
        """By modality, the logits without the newest classifier, and those of the newest."""

    def active(self, name: str) -> int:
        """The number of classifiers added to a modality."""

    def add(self, name: str) -> None:
        """Adds a classifier to a modality."""


class AUG(Method):
    """Adds classifiers to the weaker modality, each trained on what the earlier ones leave over.

    L = Σ_m [CE(z_m) + CE(z_m') + CE(y - λ y softmax(z_m'), h_m)], with h_m the logits of modality
    m's newest classifier and z_m' = z_m - h_m those of all earlier ones; a modality without added
    classifiers contributes CE(z_m) alone. A modality's score is the mean of softmax(z_m) at the
    true class over the last epoch. After the first epoch, and then before every `every`-th, the
    modality with the lowest score gets one more classifier, if the others are more than `tolerance`
    ahead of it.

    The head creates all classifiers at the start and switches them on one by one. Its buffer counts
    the active ones, so a checkpoint of the model alone predicts the same.
    """

    info = Info(
        title="Sustained boosting with adaptive classifier assignment (AUG)",
        paper="Jiang, Huang, Yang. Rethinking Multimodal Learning from the Perspective of "
        "Mitigating Classification Ability Disproportion. NeurIPS 2025",
        year=2025,
        url="https://arxiv.org/abs/2502.20120",
        category="objective",
        writes="loss",
        modalities="the paper uses two; with more, the weakest is compared with the mean of the "
        "others; with one, it adds nothing",
        neutral="it trains each modality's own logits, and joint training their mean",
        epochs=200,
        in_epochs=("every",),
        needs=("unimodal",),
        unimodal="trains",
        head="configurable",
        fused=False,
        cost="at most ten small layers for each modality, passed through twice",
        budget=1.1,
        partial=True,
        missing=True,
        doubts="The released code creates the optimiser before any layer is added, so added layers "
        "never train; here they do. It steps for one modality after the other, which moves "
        "the shared output layer twice per batch, so that the second encoder meets a layer "
        "that has just moved; here one step is taken on the sum. λ is 0.5 for CREMA-D and 0.2 "
        "for Kinetics-Sounds, whose script also learns a weight for the added layers, which "
        "is not built. Its prediction weighs CREMA-D's modalities by 0.4 and 0.6; here they "
        "are averaged. If the second modality is ahead, the ratio is compared with 1 - "
        "tolerance there, and with 1 / (1 + tolerance) here. No layers are added beyond those "
        "the head holds. Because a method of the head is called outside its forward pass, "
        "FSDP2 must shard the head together with the whole model.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "scores")

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: Configurable,
        residual: float = 0.5,
        every: int = 20,
        tolerance: float = 0.01,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss; the defaults are the paper's for CREMA-D.

        Args:
            encoders: By modality.
            head: The head that classifiers are added to.
            residual: λ, how much of what is already known a new classifier need not learn; from 0
                to 1.
            every: Period in epochs in which a classifier may be added: with 20, before epochs 1,
                20, 40, ... counted from 0.
            tolerance: How far the others' score must be ahead of the weakest's.
            criterion: See `Method`; used for z_m and z_m', while the residual uses cross-entropy.

        Raises:
            TypeError: If nothing can be added to the head.
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        if not isinstance(head, Configurable):
            raise TypeError(
                f"AUG needs a head that can grow classifiers; {type(head).__name__} cannot. Use "
                "the head 'configurable' of evenly.nn."
            )
        check_range(self, "from 0 to 1", residual=residual)
        check_range(self, "at least 1", every=every)
        check_range(self, "not negative", tolerance=tolerance)
        self.head = head
        self.residual, self.every, self.tolerance = residual, every, tolerance
        self.epoch = -1
        self.scores: Tensor | None = None  # this epoch's sums, and of how many samples they are
        self._step_scores = StepSum(self.encoders)

    def is_due(self, epoch: int) -> bool:
        """Whether a classifier may be added before this epoch: 1, and every `every`-th."""
        return epoch == 1 or (epoch > 0 and epoch % self.every == 0)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Gives the weakest modality another classifier, if one is due."""
        self._step_scores.clear()
        if epoch == self.epoch:  # a run resumed mid-epoch continues where it was
            return
        if self.is_due(epoch) and self.scores is not None:
            self._assign(self.scores)
        self.epoch, self.scores = epoch, None
        self.metrics = {
            f"layers/{name}": torch.tensor(float(self.head.active(name))) for name in self.encoders
        }

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Σ_m [CE(z_m) + CE(z_m') + CE(y - λ y softmax(z_m'), h_m)]."""
        unimodal = self._unimodal(output)
        self._step_scores.add(self._scores(output, unimodal, target), output)
        loss = sum(
            (self.criterion(logits, target) for logits in unimodal.values()),
            start=output.logits.new_zeros(()),
        )
        grown = {
            name: full(features)
            for name, features in self._features(output).items()
            if self.head.active(name)
        }
        for name, (before, last) in self.head.parts(grown).items():
            assert last is not None
            before, last = (only(x, having(output, name)) for x in (before, last))
            loss = loss + self.criterion(before, target)
            loss = loss + residual_loss(full(last), full(before), target, self.residual)
        return loss

    def before_step(self) -> None:
        """Adds the scores of the step to the epoch's."""
        found = self._step_scores.take(self)
        before = torch.zeros_like(found) if self.scores is None else self.scores.to(found)
        self.scores = kept(self._step_scores.counts(found), before + found, before)

    @torch.no_grad()
    def _scores(
        self,
        output: Output,
        unimodal: Mapping[str, Float[Tensor, "n c"]],
        target: Int[Tensor, " n"],
    ) -> Float[Tensor, "2 m"]:
        """Each modality's score in this pass, and the number of samples behind it."""
        found = full(output.logits).new_zeros(2, len(self.encoders))
        for m, name in enumerate(self.encoders):
            if name in unimodal:
                here = having(output, name)
                true = those(target, here)
                found[0, m] = scores(those(unimodal[name], here)[None], true)[0]
                found[1, m] = len(true)
        return found

    def _assign(self, found: Float[Tensor, "2 m"]) -> None:
        score, count = found
        if not bool((count > 0).all()):  # a modality absent from every batch has no score
            return
        lowest = weakest(score / count, self.tolerance)
        if lowest is None:
            return
        name = list(self.encoders)[lowest]
        if self.head.active(name) < self.head.depth:
            self.head.add(name)
