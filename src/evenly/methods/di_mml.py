"""Detached and interactive multimodal learning (DI-MML).

Fan, Xu, Wang, Liu, Guo, "Detached and Interactive Multimodal Learning", ACM Multimedia 2024,
https://arxiv.org/abs/2407.19514.
"""

import math
from collections.abc import Mapping
from itertools import permutations
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from evenly import distributed
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.output import Output
from evenly.presence import having, only, those
from evenly.probe import Probe
from evenly.ranges import check_range


def effective(
    features: Float[Tensor, "n d"], target: Int[Tensor, " n"], *, sharded: bool = False
) -> Bool[Tensor, " d"]:
    """The dimensions that tell the classes apart better than the average dimension does.

    Each dimension alone assigns a sample to the class with the nearest mean value. Dimensions that
    are right more often than the average dimension are effective. A sample whose features are not
    finite is left out: either float16 cannot hold them, or they are NaN.

    Args:
        features: Features of one modality on the whole training split.
        target: Classes.
        sharded: Whether these are one rank's rows.
    """
    x = features.double()
    is_held = x.isfinite().all(1, keepdim=True)
    x = x.masked_fill(~is_held, 0.0)
    last = distributed.max_(target.max().reshape(1).clone(), sharded=sharded)
    classes = int(last) + 1
    count = distributed.sum_(
        torch.bincount(target[is_held[:, 0]], minlength=classes), sharded=sharded
    )
    total = x.new_zeros(classes, x.shape[1]).index_add_(0, target, x)
    centre = distributed.sum_(total, sharded=sharded) / count[:, None]
    nearest = torch.full_like(x, torch.inf)
    found = torch.zeros_like(x, dtype=torch.int64)
    for c in range(classes):  # a table of all distances would be too large
        closer = (x - centre[c]).abs() < nearest  # never true for a class without samples
        nearest = torch.where(closer, (x - centre[c]).abs(), nearest)
        found = torch.where(closer, c, found)
    right = distributed.sum_(((found == target[:, None]) & is_held).sum(0), sharded=sharded)
    # in whole numbers: equal dimensions must not differ by rounding errors of their mean
    return right * len(right) > right.sum()


def transfer(
    learner: Float[Tensor, "n d"],
    guide: Float[Tensor, "n d"],
    dimensions: Bool[Tensor, " d"],
    temperature: float,
) -> Float[Tensor, ""]:
    """The unidirectional contrastive loss on some dimensions; the guide receives no gradient.

    mean_i -log exp(s_ii) / Σ_j exp(s_ij), with s_ij = ⟨learner_i, guide_j⟩ / temperature.
    """
    s = (learner * dimensions) @ guide.detach().T / temperature
    return nn.functional.cross_entropy(s, torch.arange(len(s), device=s.device))


class DIMML(Method):
    """Trains each modality separately, and lets it learn from others that know more.

    L = Σ_m (CE(z_m) + align · CE(h(f_m))) + Σ_{j ≠ m} DUC(m from j) + CE(g(f)), where h is a layer
    that all modalities share, which gives them a common space, and g a layer on all features,
    detached. The prediction weighs z_m and g(f) by certainty. It is not part of the loss, so
    modalities cannot compete.

    From epoch `start` on, the dimension-decoupled unidirectional contrastive loss DUC pulls the
    features of m towards those of j on the dimensions that are effective in j but not in m; see
    `transfer`, and `effective`, which is evaluated once, before that epoch.

    Attributes:
        effective: By modality, which dimensions are effective; empty until `start`.
    """

    info = Info(
        title="Detached and interactive multimodal learning (DI-MML)",
        paper="Fan, Xu, Wang, Liu, Guo. Detached and Interactive Multimodal Learning. ACM "
        "Multimedia 2024",
        year=2024,
        url="https://arxiv.org/abs/2407.19514",
        category="objective",
        writes="loss",
        modalities="any number: each learns from every other; for two that is the paper's rule, "
        "with one there is no transfer",
        neutral="the fused prediction is never trained as a whole, which is the method",
        epochs=150,
        in_epochs=("start",),
        needs=("unimodal",),
        unimodal="trains",
        needs_probe=True,
        head="certainty",
        fused=False,
        cost="M + 2 linear layers, and one pass over the training split",
        budget=1.05,
        within_batch=True,
        missing=True,
        doubts="The paper trains the layer on all features afterwards, for 20 epochs with "
        "frozen encoders; here it trains alongside, on detached features, so that every "
        "epoch has a prediction. The encoders have the same loss either way. The default "
        "temperature is that of the released script for CREMA-D; the code's own default is "
        "1. The fusion's temperature is 3 for AVE and ModelNet. Because a method of the "
        "head is called outside its forward pass, FSDP2 must shard the head together with "
        "the whole model.",
    )
    state: ClassVar[tuple[str, ...]] = ("effective",)

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: nn.Module,
        align: float = 1.0,
        temperature: float = 50.0,
        start: int = 20,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say whose features and logits count.
            head: The model's head: `head.aligned(features)` returns the logits of the shared layer
                by modality, `head.joined(features)` those of the layer on all features, as in
                `evenly.nn.heads.CertaintyHead`. Both are called outside autocast, with features
                that autocast may have narrowed.
            align: Weight of the shared layer's losses, above 0; 1 in the paper.
            temperature: Temperature of the contrastive loss, above 0; 50 for CREMA-D.
            start: First epoch of the contrastive loss, from 0; 20 in the paper.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range or not finite, or the head lacks a layer.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and above 0", align=align, temperature=temperature)
        check_range(self, "not negative", start=start)
        if not (hasattr(head, "aligned") and hasattr(head, "joined")):
            raise UserError(
                "DIMML needs a head with a shared layer and one on all features; found "
                f"{type(head).__name__}. Build the model with the head 'certainty'."
            )
        self.head: Any = head
        self.align, self.temperature, self.start = align, temperature, start
        self.effective: dict[str, Tensor] = {}

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Finds the effective dimensions when it is time."""
        if self.effective or not self.is_due(epoch):
            return

        def of(output: Output, target: Tensor) -> Mapping[str, Tensor]:
            self.watch.check_target(self, output, target)
            return output.features

        found = self._probe(probe).features("train", of)
        held = {
            name: x.masked_fill(~found.present[name].to(x.device)[:, None], math.nan)
            if name in found.present
            else x
            for name, x in found.features.items()
        }
        self.effective = {
            name: effective(held[name], found.target, sharded=found.sharded)
            for name in self.encoders
        }

    def is_due(self, epoch: int) -> bool:
        """Whether an epoch (from 0) has the contrastive loss."""
        return epoch >= self.start and len(self.encoders) > 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Σ_m (CE(z_m) + align · CE(h(f_m))) + Σ DUC + CE(g(f))."""
        unimodal = self._unimodal(output)
        features = self._features(output)
        held = {name: only(x, having(output, name)) for name, x in output.features.items()}
        loss = self.criterion(full(self.head.joined(held)), target)
        for logits in unimodal.values():
            loss = loss + self.criterion(logits, target)
        for name, logits in self.head.aligned(features).items():
            own = only(full(logits), having(output, name))
            loss = loss + self.align * self.criterion(own, target)
        if self.effective:
            loss = loss + self._transfer(output, features)
        return loss

    def _transfer(self, output: Output, features: Mapping[str, Tensor]) -> Tensor:
        """Σ of `transfer` over ordered pairs (m, j), on dimensions effective in j but not in m."""
        device = next(iter(features.values())).device
        # moved once, if a state was loaded onto another device
        self.effective = {name: there.to(device) for name, there in self.effective.items()}
        total = torch.zeros((), device=device)
        metrics = {}
        for name, other in permutations(features, 2):
            dimensions = self.effective[other] & ~self.effective[name]
            here = having(output, name, other)
            learner, guide = (full(those(features[key], here)) for key in (name, other))
            if not len(learner):
                continue
            found = transfer(learner, guide, dimensions, self.temperature)
            found = len(learner) / len(output.logits) * found
            metrics[f"transfer/{other}/{name}"] = found.detach()
            total = total + found
        if torch.is_grad_enabled():
            self.metrics = metrics
        return total
