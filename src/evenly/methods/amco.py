"""Adaptive mask co-optimisation (AMCo).

Zhou, Liang, Zheng, Xuan, Kumada, "Adaptive Mask Co-optimization for Modal Dependence in Multimodal
Learning", ICASSP 2023, https://doi.org/10.1109/ICASSP49357.2023.10096641.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly.chance import stream
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, full, kept
from evenly.output import Output
from evenly.presence import having, parts, those
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.targets import SINGLE


def masked_share(grown: float, eps: float) -> float:
    """The share of logits to mask: p = sin(π/2 · min(ε, l) / ε)."""
    return math.sin(math.pi / 2 * min(eps, grown) / eps)


def mass(unimodal: Float[Tensor, "m n c"]) -> Float[Tensor, " m"]:
    """Σ_i of each modality's share in the softmax over all modalities' logits together."""
    m, n, c = unimodal.shape
    joined = full(unimodal).transpose(0, 1).reshape(n, m * c).softmax(-1)
    return joined.view(n, m, c).sum((0, 2))


def dependent(share: Float[Tensor, " m"], sigma: float) -> Bool[Tensor, " m"]:
    """Whether the model depends on a modality: its mean share is above 2σ / M."""
    return share > 2 * sigma / len(share)


def masked(
    logits: Float[Tensor, "n c"], dropped: Bool[Tensor, " c"], applies: Bool[Tensor, ""]
) -> Float[Tensor, "n c"]:
    """The logits with zeros in the dropped classes, if the mask applies."""
    return logits.masked_fill(dropped & applies, 0.0)


class AMCo(Method):
    """Masks part of the logits of the modality that the prediction depends on.

    L = CE(z) + Σ_m CE(z_m), with z = U Σ_m z̃_m + b the fused logits after masking. Each step draws
    N = ⌊p C⌋ classes. A modality is dependent if its share in the softmax over all modalities'
    logits was above σ in the step before; it loses its logits of the drawn classes (z̃_m =
    z_m · mask), so that the others are fitted as well. p = sin(π/2 · min(ε, l) / ε) grows from 0 in
    each epoch: l is epoch / 10 times the number of steps made so far in the epoch.
    """

    info = Info(
        title="Adaptive Mask Co-optimization (AMCo)",
        paper="Zhou, Liang, Zheng, Xuan, Kumada. Adaptive Mask Co-optimization for Modal "
        "Dependence in Multimodal Learning. ICASSP 2023",
        year=2023,
        url="https://doi.org/10.1109/ICASSP49357.2023.10096641",
        category="forward",
        writes="loss",
        targets=SINGLE,
        modalities="any number; the threshold is 2σ / M, which for two is the paper's σ; with "
        "one, nothing is masked",
        neutral="without a mask, the losses of the modalities remain",
        needs=("unimodal",),
        unimodal="trains",
        head="amco",
        cost="M unimodal heads, and the fusion of their logits once more",
        budget=1.05,
        missing=True,
        doubts="Unverified: no code was released, and the schedule of the mask (it masks all "
        "logits of a dependent modality some steps into every epoch but the first) "
        "follows a re-implementation. The mask covers classes and is the same for all "
        "samples and dependent modalities of a step. That the unimodal losses see no "
        "mask is taken from the abstract, where they keep the dependent modality from "
        "degrading. A modality is dependent according to the previous step only; the "
        "re-implementation never takes the mark back. Because a method of the head is "
        "called outside its forward pass, FSDP2 must shard the head together with the "
        "whole model.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "batches", "steps", "share")

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: nn.Module,
        sigma: float = 0.5,
        eps: float = 0.3,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the mask.

        Args:
            encoders: By modality; their names say which unimodal logits count.
            head: The model's head, which fuses masked logits: `evenly.nn.heads.AMCoHead`, or your
                own with a method `combined(unimodal)` that fuses unimodal logits given by modality.
            sigma: σ from 0 to 1, the share above which one of two modalities is dependent (0.5).
            eps: ε > 0, the value of l at which all logits are masked (0.3).
            seed: Seed of the mask, which is the same on all ranks and in all passes of a step.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range, or the head cannot fuse unimodal logits.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "from 0 to 1", sigma=sigma)
        check_range(self, "finite and above 0", eps=eps)
        if not callable(getattr(head, "combined", None)):
            raise UserError(
                "AMCo masks unimodal logits and fuses them again with "
                f"`head.combined(unimodal)`, which this {type(head).__name__} lacks. Build the "
                "model with LateFusion(..., head='amco'), or add that method to your head."
            )
        self.head = head
        self.sigma, self.eps, self.seed = sigma, eps, seed
        self.epoch, self.batches, self.steps = -1, 0, 0
        self.share: Tensor | None = None
        self._mass = StepSum(self.encoders)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes the epoch; the mask starts growing from nothing."""
        self._mass.clear()
        if epoch != self.epoch:  # a run resumed mid-epoch continues where it was
            self.epoch, self.batches = epoch, 0

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + Σ_m CE(z_m), with z from masked logits; without gradients, nothing is masked."""
        unimodal = self._unimodal(output)
        self._mass.add(self._counted(output, unimodal), output)
        loss = self.criterion(self._fused(output, unimodal), target)
        for logits in unimodal.values():
            loss = loss + self.criterion(logits, target)
        return loss

    def before_step(self) -> None:
        """Finds the dependent modalities of the next step."""
        found = self._mass.take(self)
        total, count = found[:-1], found[-1]
        before = torch.zeros_like(total) if self.share is None else self.share
        # Unchanged if no pass held all modalities.
        counts = self._mass.counts(found) & (count > 0)
        self.share = share = kept(counts, total / count.clamp_min(1), before)
        self.batches += 1
        self.steps += 1
        self.metrics = self._per_modality(share=share)

    def mask(self, classes: int, device: torch.device) -> Bool[Tensor, " c"]:
        """Which classes are dropped in this step, a function of seed and step."""
        drawn = stream(device, self.seed, self.steps)
        return torch.randperm(classes, generator=drawn, device=device) < self.dropped(classes)

    def dropped(self, classes: int) -> int:
        """N, the number of classes dropped in this step."""
        grown = max(self.epoch, 0) / 10 * self.batches
        return math.floor(masked_share(grown, self.eps) * classes)

    def _fused(self, output: Output, unimodal: dict[str, Tensor]) -> Tensor:
        classes = output.logits.shape[1]
        # If a sample has one modality only, no other could be fitted instead. A validation needs
        # the loss of the prediction, which is made without a mask.
        alone = len(unimodal) == 1
        if self.share is None or not self.dropped(classes) or alone or not torch.is_grad_enabled():
            return output.logits
        device = output.logits.device
        drop = self.mask(classes, device)
        applies = dict(
            zip(self.encoders, dependent(self.share, self.sigma).to(device), strict=True)
        )
        fused: Tensor = self.head.combined(  # type: ignore[operator]
            {name: masked(logits, drop, applies[name]) for name, logits in unimodal.items()}
        )
        for rows, names, _ in parts(output, unimodal):
            if len(names) < 2:
                single = torch.zeros_like(fused[:, :1], dtype=torch.bool)
                single[rows] = True
                fused = fused.where(~single, output.logits.to(fused))
        return fused

    @torch.no_grad()
    def _counted(self, output: Output, unimodal: dict[str, Tensor]) -> Tensor:
        """The mass of each modality and the number of samples, counting only complete samples."""
        if len(unimodal) < len(self.encoders):
            return full(output.logits).new_zeros(len(self.encoders) + 1)
        here = having(output, *self.encoders)
        logits = torch.stack([those(z, here) for z in unimodal.values()])
        total = mass(logits)
        return torch.cat([total, total.new_full((1,), logits.shape[1])])
