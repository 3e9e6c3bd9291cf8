"""Balance-aware sequence sampling (BSS): samples on which modalities agree come first.

Guan, Jiang, Yang, "Balance-Aware Sequence Sampling Makes Multi-Modal Learning Better", IJCAI 2025,
https://www.ijcai.org/proceedings/2025/316.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly import chance, numbering
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_choice, check_range
from evenly.resampling import Resampler


def similarity(unimodal: Float[Tensor, "m n c"]) -> Float[Tensor, " n"]:
    """How alike the modalities' predictions are: the mean of cos(p_k, p_m) over pairs, 0 to 1.

    p_m = softmax(z_m), of two modalities or more.
    """
    unit = nn.functional.normalize(full(unimodal).softmax(-1), dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    return (unit[first] * unit[second]).sum(-1).mean(0)


def scaled(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The values scaled from 0 (the least) to 1 (the greatest); 0 if all are equal."""
    above = x - x.min()
    return above / above.max().clamp_min(torch.finfo(x.dtype).tiny)


def difficulty(alike: Float[Tensor, " n"], loss: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How hard, and how far from balanced, each sample is, 0 to 2: (1 - similarity) + loss."""
    return (1 - scaled(alike)) + scaled(loss)


def reached(epoch: int, start: float, grow: int) -> float:
    """The share of the samples that a curriculum has reached, at most 1.

    λ_t = √((1 - λ₀²) (t + 1) / T + λ₀²).

    Args:
        epoch: t, from 0.
        start: λ₀.
        grow: T, epochs until it is 1.
    """
    if epoch + 1 >= grow:  # rounding would leave some roots below 1
        return 1.0
    return math.sqrt((1 - start**2) * (epoch + 1) / grow + start**2)


def weights(difficulty: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Weights that draw a self-paced order: 1 - (loss - similarity) + 0.01, from 0.01 to 2.01."""
    return 1 - (difficulty - 1) + 0.01


def drawn(weight: Float[Tensor, " n"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """All samples in random order, drawn without replacement in proportion to the weights.

    Each sample gets an exponential waiting time with its weight as the rate. Sorted by time, the
    next sample is always one of the rest, in proportion to its weight.

    Args:
        weight: Above 0.
        uniform: A random number in [0, 1) for each sample.
    """
    return (-torch.log1p(-uniform) / weight).argsort(stable=True)


class BSS(Method):
    """Orders samples from balanced and easy to imbalanced and hard.

    L = fused · CE(z) + unimodal · Σ_m CE(z_m), with the prediction Z = z + Σ_m z_m made by the
    head. The difficulty of a sample is (1 - cos(p_a, p_v)) + its loss, each scaled to [0, 1] over
    the training split.

    With `pace="self_paced"`, difficulty is measured before each epoch. Every sample comes once,
    drawn without replacement in proportion to 1 - (loss - cos(p_a, p_v)) + 0.01, so easy ones tend
    to come first. With `pace="curriculum"`, it is measured before the first epoch, and epoch t
    draws from the easiest share λ_t of the samples.

    The loader must draw from the sampler that you pass; see `evenly.Resampler`.

    Attributes:
        order: Positions of the samples: for a curriculum, from the easiest on; otherwise as drawn
            for this epoch.
    """

    info = Info(
        title="Balance-aware sequence sampling (BSS)",
        paper="Guan, Jiang, Yang. Balance-Aware Sequence Sampling Makes Multi-Modal Learning "
        "Better. IJCAI 2025",
        year=2025,
        url="https://www.ijcai.org/proceedings/2025/316",
        category="data",
        writes="loss",
        modalities="any number; how alike predictions are is the mean over pairs, as in the "
        "released code for three; with one, training is joint training",
        neutral="its losses are of the parts of the prediction, joint training's of their sum",
        variants=({}, {"pace": "curriculum"}),
        epochs=120,
        in_epochs=("grow",),
        needs=("unimodal", "index"),
        unimodal="trains",
        needs_probe=True,
        head="total",
        cost="M unimodal heads; a pass over the training split before each epoch, for a curriculum "
        "before the first alone",
        budget=1.05,
        doubts="Read in the released code, and in the paper's abstract. Epochs keep their "
        "length: while a curriculum has reached only a share of the samples, these come "
        "several times per epoch, where the released code has a shorter epoch. That code "
        "measures in training mode, so that BatchNorm uses and records each batch's "
        "statistics; here the model is in evaluation mode and stays unchanged. As in "
        "that code, the untrained model orders the curriculum, which says little "
        "without pre-trained encoders. The weights of the losses, 0.1 and 0.9, are "
        "those for CREMA-D; for the other data sets that we looked at both are 1, which "
        "is uniform multi-loss training. The released code predicts with z + Σ_m z_m, as "
        "here, but for CREMA-D with Σ_m z_m alone. For NVGesture it leaves out the 0.01. "
        "It drops an incomplete last batch, which in a self-paced order holds hard "
        "samples. Cross-entropy decides what is hard, whatever the criterion.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "order")

    def __init__(
        self,
        encoders: Encoders,
        *,
        sampler: Resampler,
        pace: Literal["self_paced", "curriculum"] = "self_paced",
        fused: float = 0.1,
        unimodal: float = 0.9,
        start: float = 0.1,
        grow: int = 40,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the order.

        Args:
            encoders: By modality; their names say which unimodal logits are compared.
            sampler: The sampler that the training loader draws from.
            pace: How samples are chosen; see above.
            fused: Weight of the fused loss, not negative; the released code uses 0.1 for CREMA-D,
                else 1.
            unimodal: Weight of each unimodal loss, likewise 0.9 or 1.
            start: λ₀ of a curriculum, from 0 to 1; 0.1.
            grow: T, epochs until a curriculum has reached all samples; 40 of 120.
            seed: Seed of a self-paced order.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        check_choice(self, ("self_paced", "curriculum"), pace=pace)
        check_range(self, "finite and not negative", fused=fused, unimodal=unimodal)
        check_range(self, "from 0 to 1", start=start)
        check_range(self, "at least 1", grow=grow)
        self.sampler, self.pace, self.seed = sampler, pace, seed
        self.fused, self.unimodal, self.start, self.grow = fused, unimodal, start, grow
        self.epoch = -1
        self.order: Int[Tensor, " n"] | None = None

    def is_due(self, epoch: int) -> bool:
        """Whether the order of this epoch (from 0) differs from joint training's."""
        if self.pace == "curriculum" and reached(epoch, self.start, self.grow) == 1:
            return False
        return len(self.encoders) > 1

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Measures the samples, and sets the order of the epoch."""
        probe = self._probe(probe)
        self._check_sampler(probe, self.sampler)
        self.sampler.set_epoch(epoch)
        if epoch == self.epoch:  # a run resumed mid-epoch keeps its order
            return
        if self.is_due(epoch) and (self.pace == "self_paced" or self.order is None):
            hard = self._difficulty(probe)
            self.order = hard.argsort(stable=True)
            if self.pace == "self_paced":
                position = torch.arange(len(hard))
                uniform = chance.uniform(position, self.seed, epoch).double()
                self.order = drawn(weights(hard), uniform)
        self.epoch = epoch
        self._write_pool()

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """L = fused · CE(z) + unimodal · Σ_m CE(z_m), with z = Z - Σ_m z_m."""
        if len(self.encoders) < 2:
            return super().loss(output, target)
        self._need(output, "index")  # fails in the first step rather than in a later pass
        loss = self.fused * self.criterion(self._joint(output), target)
        for logits in self._unimodal(output).values():
            loss = loss + self.unimodal * self.criterion(logits, target)
        return loss

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, and with it the sampler's order."""
        super().load_state_dict(state)
        self.sampler.set_epoch(max(self.epoch, 0))
        self._write_pool()

    def _joint(self, output: Output) -> Float[Tensor, "n c"]:
        """The logits of the fused layer alone."""
        unimodal = self._need(output, "unimodal")
        return full(output.logits) - full(torch.stack(list(unimodal.values()))).sum(0)

    def _difficulty(self, probe: Probe) -> Float[Tensor, " n"]:
        """The difficulty of each training sample by position, the same on all ranks, on the CPU."""

        def of(output: Output, target: Tensor) -> Mapping[str, Tensor]:
            self.watch.check_target(self, output, target)
            unimodal = torch.stack(list(self._unimodal(output).values()))
            joint, *own = (
                nn.functional.cross_entropy(full(z), target, reduction="none")
                for z in (self._joint(output), *unimodal)
            )
            loss = self.fused * joint + self.unimodal * torch.stack(own).sum(0)
            return {"similarity": similarity(unimodal).unsqueeze(1), "loss": loss.unsqueeze(1)}

        known, found = numbering.samples(probe.features("train", of), "BSS")
        numbering.check_positions(known, self.sampler.count, "BSS", probe.loaders["train"])
        order = known["position"].cpu().argsort()
        alike, loss = (found[name][:, 0].cpu()[order].double() for name in ("similarity", "loss"))
        return difficulty(alike, loss)

    def _write_pool(self) -> None:
        self.sampler.in_order = self.pace == "self_paced"
        self.sampler.pool = None
        if self.order is not None and self.is_due(self.epoch):
            share = 1.0 if self.sampler.in_order else reached(self.epoch, self.start, self.grow)
            self.sampler.pool = self.order[: max(1, int(share * self.sampler.count))]
