"""Quality-aware multimodal fusion (QMF).

Zhang, Wu, Zhang, Hu, Fu, Zhou, Peng, "Provable Dynamic Fusion for Low-Quality Multimodal Data",
ICML 2023, https://arxiv.org/abs/2306.02050.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly import distributed
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import Overflow, full
from evenly.output import Output
from evenly.presence import having, those
from evenly.probe import Probe
from evenly.ranges import check_range

UNKNOWN = -1.0
"""Stands for a missing loss: the sample lacks the modality, or the step overflowed."""


def confidence(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """How sure a modality is of each sample: its negative free energy, w = log Σ_c exp(z_c) / 10.

    `EnergyHead` fuses with these weights.
    """
    return 0.1 * full(logits).logsumexp(-1)


def difficulty(total: Float[Tensor, " N"], count: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """κ: each sample's mean loss over the epochs so far, scaled to [0, 1] over all samples.

    NaN for a sample never seen.

    Args:
        total: Sum of the losses of each sample.
        count: The number of these losses.
    """
    mean = total / count  # NaN where it is 0 / 0
    unseen = count == 0
    least = mean.masked_fill(unseen, math.inf).amin()
    spread = mean.masked_fill(unseen, -math.inf).amax() - least
    return (mean - least) / spread.clamp_min(torch.finfo(mean.dtype).tiny)


def ranking(w: Float[Tensor, " n"], kappa: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """How far the order of confidences contradicts the difficulty of the samples.

    Mean over neighbours i, j in the batch (the last with the first) of max(0, sign(κ_i - κ_j)
    (w_i - w_j) - |κ_i - κ_j|): the harder sample's confidence may not exceed the other's by more
    than their difference in difficulty. Samples whose κ is NaN contribute 0.
    """
    harder = (kappa - kappa.roll(-1)).nan_to_num(0)
    return (harder.sign() * (w - w.roll(-1)) - harder.abs()).relu().mean()


class QMF(Method):
    """Weights each modality by its energy, and keeps that weight in line with past losses.

    L = CE(z) + Σ_m CE(z_m) + weight · Σ_m R_m, where the head fuses z = Σ_m w_m z_m, and R_m is the
    `ranking` of confidences w_m against κ_m, each sample's past cross-entropy in modality m. An
    epoch's losses join the history before the next epoch; in the first, there is none and R_m = 0.

    Attributes:
        samples: Indices of samples with known losses, in increasing order.
        total: By modality, the sum of each sample's losses; the same on all ranks.
        count: By modality, the number of these losses.
    """

    info = Info(
        title="Quality-aware Multimodal Fusion (QMF)",
        paper="Zhang, Wu, Zhang, Hu, Fu, Zhou, Peng. Provable Dynamic Fusion for Low-Quality "
        "Multimodal Data. ICML 2023",
        year=2023,
        url="https://arxiv.org/abs/2306.02050",
        category="objective",
        writes="loss",
        neutral="its unimodal losses and its fusion by energy are part of it at any setting",
        needs=("unimodal", "index"),
        unimodal="trains",
        head="energy",
        cost="M unimodal losses, and, on several ranks, a gather in each step, which waits for "
        "the device",
        budget=1.1,
        within_batch=True,
        missing=True,
        doubts="The ranking follows the released code: it tolerates a wrong order up to the "
        "margin |κ_i - κ_j|, whereas the loss it builds on (correctness ranking, Moon "
        "et al., ICML 2020) demands that margin. The paper's equation could not be "
        "checked. The weight 0.1 and the gradient through w_m follow the code for "
        "scenes, whose runs on SUN RGB-D use the weight 1; the code for text and images "
        "uses the weight 1 and detaches w_m. In that code the first batch, without a "
        "history, is 0/0; here it has no ranking. Its history is a running sum updated "
        "in each step; here it is a mean updated between epochs, which orders samples "
        "alike if each comes once per epoch. As published, a confidence can be "
        "negative.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "samples", "total", "count", "pending")

    def __init__(
        self,
        encoders: Encoders,
        *,
        weight: float = 0.1,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say which unimodal logits count.
            weight: λ, weight of the ranking; 0.1 for scenes (RGB-D), 1 for text and images.
            criterion: See `Method`. The history always consists of cross-entropies.

        Raises:
            ValueError: If the weight is negative or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", weight=weight)
        self.weight = weight
        self.epoch = -1
        self.samples: Int[Tensor, " N"] = torch.zeros(0, dtype=torch.int64)
        self.total: dict[str, Tensor] = {}
        self.count: dict[str, Tensor] = {}
        self.pending: dict[int, Tensor] = {}
        self._passes: list[Tensor] = []
        self._overflow = Overflow(self.encoders)
        self._kappa: dict[str, Tensor] = {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self._rate()

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Adds the last epoch's losses to the history."""
        self._passes = []
        self._overflow.clear()
        if epoch == self.epoch:  # resumed mid-epoch
            return
        self.epoch = epoch
        if self.pending:
            rows = list(self.pending.values())
            self._remember(torch.cat([part.to(rows[-1].device) for part in rows]))
            self.pending = {}
            self._rate()

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + Σ_m CE(z_m) + weight · Σ_m R_m; without gradients, R_m is left out."""
        loss = super().loss(output, target)
        unimodal = self._unimodal(output)
        for logits in unimodal.values():
            loss = loss + self.criterion(logits, target)
        if not torch.is_grad_enabled():
            return loss
        index = self._need(output, "index")
        self._overflow.watch(output)
        self._note(output, unimodal, target)
        for name, logits in unimodal.items():
            here = having(output, name)
            w = confidence(those(logits, here))
            if name in self._kappa and len(w):
                found = ranking(w, self._looked_up(name, those(index, here)).to(w))
                found = len(w) / len(logits) * found
                self.metrics[f"ranking/{name}"] = found.detach()
                loss = loss + self.weight * found
        return loss

    def before_step(self) -> None:
        """Gathers the findings of this step's passes and ranks."""
        if self._passes:
            rows = torch.cat(distributed.gather(torch.cat(self._passes)))
            index, losses = rows[:, :1], rows[:, 1:]
            # The index is read as bits, which may look like a NaN.
            is_known = losses.isfinite() & self._overflow.counts(rows.new_zeros(()))
            self.pending[len(self.pending)] = torch.cat(
                [index, losses.where(is_known, UNKNOWN)], dim=1
            )
            self._passes = []

    @torch.no_grad()
    def _note(self, output: Output, unimodal: Mapping[str, Tensor], target: Tensor) -> None:
        """A row for each sample: its index, then its loss in each modality, NaN if it lacks that.

        In doubles, one of them with the bits of the index, so that one message carries both.
        """
        index = self._need(output, "index")
        absent = torch.full(index.shape, math.nan, device=index.device, dtype=torch.float64)
        losses = []
        for name in self.encoders:
            loss, here = absent, having(output, name)
            if name in unimodal:
                loss = nn.functional.cross_entropy(
                    unimodal[name].double(), target, reduction="none"
                )
            losses.append(loss if here is None else loss.where(here.to(loss.device), absent))
        row = torch.stack(
            [index.long().view(torch.float64), *(x.to(index.device) for x in losses)], dim=1
        )
        self._passes.append(row)
        self.metrics = {
            f"confidence/{name}": confidence(those(logits, having(output, name))).mean()
            for name, logits in unimodal.items()
        }

    def _remember(self, rows: Float[Tensor, "r _"]) -> None:
        index, losses = rows[:, 0].contiguous().view(torch.int64), rows[:, 1:]
        known = self.samples.to(index.device)
        self.samples = torch.cat([known, index]).unique()
        before, now = (torch.searchsorted(self.samples, x) for x in (known, index))
        for name, loss in zip(self.encoders, losses.unbind(1), strict=True):
            there = loss != UNKNOWN
            for table, new in ((self.total, loss), (self.count, torch.ones_like(loss))):
                longer = new.new_zeros(len(self.samples))
                if name in table:
                    longer[before] = table[name].to(longer.device)
                table[name] = longer.index_add_(0, now[there], new[there])

    def _rate(self) -> None:
        self._kappa = {
            name: difficulty(total, self.count[name]) for name, total in self.total.items()
        }

    def _looked_up(self, name: str, index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """κ of some samples; NaN for those without a history."""
        kappa = self._kappa[name] = self._kappa[name].to(index.device)
        self.samples = self.samples.to(index.device)
        row = torch.searchsorted(self.samples, index.long()).clamp_max(len(kappa) - 1)
        return kappa[row].masked_fill(self.samples[row] != index, math.nan)
