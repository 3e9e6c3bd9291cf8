"""Multimodal learning with alternating unimodal adaptation (MLA).

Zhang, Yoon, Bansal, Yao, "Multimodal Representation Learning by Alternating Unimodal Adaptation",
CVPR 2024, https://arxiv.org/abs/2311.10707.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly import distributed
from evenly.errors import UserError, UserRuntimeError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, full, kept
from evenly.output import Output
from evenly.presence import having, those
from evenly.probe import Probe
from evenly.targets import SINGLE


def damping(progress: float) -> float:
    """α = 0.1^(1 + progress), with progress through an epoch from 0 to 1."""
    return float(0.1 ** (1 + progress))


def updated(
    projection: Float[Tensor, "d d"], mean: Float[Tensor, " d"], alpha: float
) -> Float[Tensor, "d d"]:
    """P - P r rᵀ Pᵀ / (α + rᵀ P r), divided by its Frobenius norm, which removes direction r."""
    k = projection @ mean
    smaller = projection - torch.outer(k, k) / (alpha + mean @ k)
    return smaller / smaller.square().sum().sqrt()


def projected(grad: Float[Tensor, "c d"], projection: Float[Tensor, "d d"]) -> Float[Tensor, "c d"]:
    """G Pᵀ: the gradient of the head's weight without the directions that P has lost."""
    return grad @ projection.T


class MLA(Method):
    """Trains one modality at a time, on a head that all of them share.

    Each batch comes once for every modality (`repeats`), each time with an optimiser step on the
    loss of that modality's own logits (`turn`). So that the head does not forget one modality while
    it learns the next, the gradient G of its weight is replaced by G Pᵀ, where P has lost the
    directions of earlier modalities' mean features. After each step, with r the mean of its
    modality's features, P ← P - P r rᵀ Pᵀ / (α + rᵀ P r), and P ← P / ‖P‖. The very first step has
    nothing to protect. The other encoders get no gradient at all, so neither momentum nor weight
    decay moves them. If no batch of a step holds its modality, head and encoders get no gradient,
    and P stays.

    The prediction is the head's: the modalities' logits, weighted for each sample by how certain
    they are.

    Attributes:
        projection: P; None before the first step.
        step: Steps taken in this epoch.
        length: Steps in the previous epoch; 0 in the first.
    """

    info = Info(
        title="Alternating Unimodal Adaptation (MLA)",
        paper="Zhang, Yoon, Bansal, Yao. Multimodal Representation Learning by Alternating "
        "Unimodal Adaptation. CVPR 2024",
        year=2024,
        url="https://arxiv.org/abs/2311.10707",
        category="optimisation",
        writes="gradients",
        targets=SINGLE,
        modalities="any number, in the order of the encoders; with one there is no other to "
        "protect, and nothing is projected",
        neutral="it takes a step for each modality on that one's own loss, and joint training "
        "never does",
        epochs=100,
        needs=("unimodal",),
        unimodal="trains",
        head="shared",
        fused=False,
        cost="a step for each modality, which costs one modality's share if the loop feeds only "
        "that one; P takes two products of a d x d matrix",
        budget=1.1,
        partial=True,
        missing=True,
        doubts="As in the paper, the projection uses the features of the previous modality. "
        "The released code first updates P with the current modality's own features, "
        "and divides elementwise by the matrix α + k r, where the paper has the number "
        "α + rᵀ k; it projects only if the head is wrapped in DataParallel, because it "
        "looks for a parameter of another name. Its test-time entropy is taken over the "
        "batch. α falls from 0.1 to 0.01 within each epoch, whose length is that of the "
        "previous one; in the first it stays at 0.1. Dividing P by its Frobenius norm "
        "makes the head's gradient smaller, by about √d at the start, as published. "
        "Encoders that a loop feeds out of turn still update BatchNorm's running "
        "statistics. The paper's other inference rule, fixed weights, is not built.",
    )
    state: ClassVar[tuple[str, ...]] = ("projection", "epoch", "step", "length")

    def __init__(
        self, encoders: Encoders, *, head: nn.Module, criterion: Criterion | None = None
    ) -> None:
        """Prepares the projection; as in the paper, there are no settings.

        Args:
            encoders: By modality, in the order of their turns.
            head: The head that all modalities share, with one linear layer.
            criterion: See `Method`.

        Raises:
            ValueError: If the head does not have one linear layer.
        """
        super().__init__(encoders, criterion=criterion)
        layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
        if len(layers) != 1:
            raise UserError(
                f"MLA: the head that all modalities share has one linear layer; found "
                f"{len(layers)} in {type(head).__name__}. Use the head 'shared' of evenly.nn."
            )
        self.head, self._layer = head, layers[0]
        self.projection: Tensor | None = None
        self.epoch, self.step, self.length = -1, 0, 0
        self._features_sum = StepSum(self.encoders)
        self._is_held = False
        self._target: Tensor | None = None  # of the last pass
        self._of_batch: Tensor | None = None  # of the batch that each modality should see
        self._is_repeated = False  # whether each modality of a batch was seen to get it

    @property
    def repeats(self) -> int:  # type: ignore[override]
        """One pass over each batch for every modality."""
        return len(self.encoders)

    @property
    def turn(self) -> str:  # type: ignore[override]
        """The modality that the next pass is about."""
        return list(self.encoders)[self.step % len(self.encoders)]

    @property
    def progress(self) -> float:
        """The share of the epoch's batches seen so far; 0 while their number is unknown."""
        modalities = len(self.encoders)
        batch, batches = self.step // modalities, self.length // modalities
        return min(batch / batches, 1.0) if batches else 0.0

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes how long the last epoch was."""
        self._features_sum.clear()
        self._is_held = False
        if epoch != self.epoch:  # a run resumed mid-epoch continues where it was
            self.epoch, self.length, self.step = epoch, self.step, 0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; the next pass may be of any batch."""
        super().load_state_dict(state)
        self._features_sum.clear()
        self._is_held = False
        self._target = self._of_batch = None
        self._is_repeated = False

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z_m) of the modality m whose turn it is."""
        if torch.is_grad_enabled():
            self._target = target
        unimodal, features = self._unimodal(output), self._features(output)
        if self.turn not in unimodal:  # missing from the batch: nothing to learn, and no error
            self._features_sum.add(output.logits.new_zeros(self._layer.in_features + 1), output)
            return output.logits[:0].sum()
        held = those(full(features[self.turn]), having(output, self.turn))
        self._features_sum.add(_sum_and_count(held), output)
        self._is_held |= torch.is_grad_enabled() and len(held) > 0
        loss = self.criterion(unimodal[self.turn], target)
        waiting = (self.encoders[name].parameters() for name in features if name != self.turn)
        return distributed.joined(loss, chain.from_iterable(waiting))

    @torch.no_grad()
    def before_step(self) -> None:
        """Projects the head's gradient, and removes the other encoders'.

        If the layer has no gradient (None, not zeros), as after a pass that the loop skips, only
        the turn goes on.
        """
        self._check_repeated()
        found = self._features_sum.take(self)
        counts = self._features_sum.counts(found)
        total, count = found.tensor_split([-1])
        for name, encoder in self.encoders.items():
            if name != self.turn:
                encoder.zero_grad(set_to_none=True)
        if not self._was_held(count):  # with zeros, momentum and decay would move the head
            self.head.zero_grad(set_to_none=True)
        elif len(self.encoders) > 1 and self._layer.weight.grad is not None:
            self._protect(total / count, counts)
        self.step += 1

    def _check_repeated(self) -> None:
        """Raises if a modality did not get the batch that the one before it had.

        Only the first whole batch is compared, of a new training and of a resumed one: on a device
        this waits, and after a pass that a loop skipped, the turns may begin within a batch.
        """
        if self._is_repeated:
            return
        place = self.step % len(self.encoders)
        target, before = self._target, self._of_batch if place else None
        self._target, self._of_batch = None, target
        if target is None or before is None:
            return
        self._is_repeated = place == len(self.encoders) - 1
        if target.shape != before.shape or not torch.equal(target, before):
            raise UserRuntimeError(
                f"MLA takes each batch {len(self.encoders)} times in a row, once for each "
                "modality, with a step each time; here, a modality got another batch than the one "
                "before it. Build the training loader with batch_sampler=evenly.Repeated(sampler, "
                "batch_size, repeats=method.repeats), accumulate no gradients over batches, and "
                "call before_step for a pass that you skip, too."
            )

    def _was_held(self, count: Float[Tensor, "1"]) -> bool:
        """Whether a batch of this step, on any rank, held the modality whose turn it is.

        Only a rank whose own batches lacked it, among several, has to wait for the count.
        """
        mine, self._is_held = self._is_held, False
        return mine or (distributed.world_size() > 1 and bool(count > 0))

    def _protect(self, mean: Float[Tensor, " d"], counts: Bool[Tensor, ""]) -> None:
        """Projects with the P of earlier steps, then removes this step's mean from it."""
        weight = self._layer.weight
        precise = torch.promote_types(weight.dtype, torch.float32)
        mean = mean.to(weight.device, precise)
        if self.projection is None:
            projection = torch.eye(len(mean), dtype=precise, device=weight.device)
        else:
            projection = self.projection.to(weight.device, precise)
            self._project(weight.grad, projection)
        after = updated(projection, mean, damping(self.progress))
        self.projection = kept(counts, after, projection)

    def _project(self, grad: Tensor | None, projection: Float[Tensor, "d d"]) -> None:
        if grad is None:
            return
        part = distributed.local(grad)  # FSDP2 splits rows, and each row is projected by itself
        before = part.to(projection.dtype)
        after = projected(before, projection)
        squares = torch.stack([after.norm(), before.norm()]).double().square()
        norms = distributed.sum_shards_(squares, grad).sqrt().to(before.dtype)
        share = norms[0] / norms[1].clamp_min(torch.finfo(before.dtype).tiny)
        self.metrics = {**self.metrics, f"kept/{self.turn}": share}
        part.copy_(after)  # `before` may share its memory


def _sum_and_count(features: Float[Tensor, "n d"]) -> Float[Tensor, " d1"]:
    """The sum over samples, followed by their number."""
    count = features.new_full((1,), len(features))
    return torch.cat([features.sum(0), count])
