"""Data Remixing: each sample trains its less confident modality, in batches of one modality.

Ma, Chen, Deng, "Improving Multimodal Learning Balance and Sufficiency through Data Remixing",
ICML 2025, https://arxiv.org/abs/2506.11550.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly import distributed, numbering
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import full
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.resampling import Resampler, kept_alone
from evenly.targets import SINGLE


def confidence(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """How far each prediction is from knowing nothing: KL(softmax(z) ‖ uniform)."""
    log_probability = full(logits).log_softmax(-1)
    negative_entropy = (log_probability.exp() * log_probability).sum(-1)
    return negative_entropy + math.log(logits.shape[1])


def assignment(confidence: Float[Tensor, "m n"]) -> Int[Tensor, " n"]:
    """The modality that each sample should train: the one least confident of it."""
    return confidence.argmin(0)


class DataRemixing(Method):
    """Assigns each sample to the modality less confident of it, and batches by modality.

    In the warm-up, L = CE(z) + α Σ_m CE(z_m). Then, before each epoch, sample i goes to the
    modality m whose prediction is nearest to uniform, argmin_m KL(p_m ‖ uniform), and trains it
    alone: L = CE(z) + γ CE(z_m) with the features of all other modalities zeroed in z. A batch
    holds samples of one modality, so that modalities do not disturb each other's gradients. Only
    the remainder of each modality's samples is mixed, in the last batches.

    The loader should draw from the sampler that you pass; see `evenly.Resampler`. With another
    sampler, everything works except that batches mix modalities.
    """

    info = Info(
        title="Data Remixing",
        paper="Ma, Chen, Deng. Improving Multimodal Learning Balance and Sufficiency through "
        "Data Remixing. ICML 2025",
        year=2025,
        url="https://arxiv.org/abs/2506.11550",
        category="data",
        writes="loss",
        targets=SINGLE,
        modalities="each sample goes to the least confident of all; with one, every sample to it",
        neutral={"alpha": 0.0, "warmup": 1000},
        epochs=60,
        in_epochs=("warmup",),
        needs=("unimodal", "index", "fuse"),
        unimodal="trains",
        needs_probe=True,
        head="multi",
        cost="M unimodal heads, and the fused head once more; before each epoch a look at the "
        "training split",
        budget=1.05,
        doubts="The released code trains all batches of one modality, then all of the other; "
        "here their order is random. Leftover samples of the modalities share the last "
        "batches, where the released code makes a smaller batch for each. In the "
        "batches of other modalities, a modality's own head gets a gradient of zeros; "
        "in the released code it gets none and so no weight decay. Its divergence is in "
        "bits, here in nats, which gives the same order.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "assigned", "samples", "batch_size")

    def __init__(
        self,
        encoders: Encoders,
        *,
        sampler: Resampler,
        warmup: int = 10,
        alpha: float = 0.5,
        gamma: float = 1.0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the remixing.

        Args:
            encoders: By modality; their names say which modalities samples may be assigned to.
            sampler: The sampler that the training loader draws from.
            warmup: The number of first epochs that train on whole samples (the paper: 10 of 60).
            alpha: α, weight of each unimodal loss in the warm-up; 0.5 in the paper.
            gamma: γ, weight of the unimodal loss after it; 1 in the paper.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is negative, or nothing would train the unimodal logits.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "not negative", warmup=warmup, alpha=alpha, gamma=gamma)
        if gamma == 0 and (alpha == 0 or warmup == 0):
            raise UserError(
                "DataRemixing: 'gamma' is 0 and there are no unimodal losses in a warm-up, so "
                "nothing trains the unimodal logits that samples are assigned by. Give gamma "
                "above 0, or alpha above 0 and a warmup."
            )
        if alpha == 0:
            self.info = replace(self.info, partial=True)  # in the warm-up
        self.sampler, self.warmup, self.alpha, self.gamma = sampler, warmup, alpha, gamma
        self.epoch = -1
        self.assigned: Int[Tensor, " n"] | None = None  # in the order of `samples`
        self.samples: numbering.Samples = {}
        self.batch_size: int | None = None

    def is_due(self, epoch: int) -> bool:
        """Whether this epoch (from 0) trains on remixed samples."""
        return epoch >= self.warmup

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Assigns the samples, and makes the sampler batch them by modality."""
        probe = self._probe(probe)
        self._check_sampler(probe, self.sampler)
        self.sampler.set_epoch(epoch)
        if epoch == self.epoch:  # a run resumed mid-epoch has its samples assigned
            return
        self.assigned, self.samples, self.batch_size = None, {}, None
        if self.is_due(epoch):
            self.samples, self.assigned = self._assigned(probe)
            self.batch_size = self._global_batch_size(probe)
            share = torch.bincount(self.assigned, minlength=len(self.encoders)) / self.sampler.count
            self.metrics = self._per_modality(share=share)
        self._write_order()
        self.epoch = epoch

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + α Σ_m CE(z_m) in the warm-up, then CE(z) + γ CE(z_m) of the assigned m."""
        index, fuse = self._need(output, "index"), self._need(output, "fuse")
        unimodal = self._unimodal(output)
        # In a validation, positions belong to another split.
        if self.assigned is None or not torch.is_grad_enabled():
            return self._whole(output, unimodal, target)
        rows = numbering.rows(self.samples, index, target, "DataRemixing")
        self.assigned = self.assigned.to(rows.device)
        modality = self.assigned[rows]
        alone = kept_alone(output.features, list(self.encoders), modality + 1)
        own = chosen(torch.stack(list(unimodal.values())), modality)
        return self.criterion(fuse(alone), target) + self.gamma * self.criterion(own, target)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, and with it the sampler's order."""
        super().load_state_dict(state)
        self.sampler.set_epoch(max(self.epoch, 0))
        self._write_order()

    def _whole(self, output: Output, unimodal: Mapping[str, Tensor], target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        if self.alpha == 0:  # heads without a gradient stay as they are, decay included
            return loss
        for logits in unimodal.values():
            loss = loss + self.alpha * self.criterion(logits, target)
        return loss

    def _assigned(self, probe: Probe) -> tuple[numbering.Samples, Int[Tensor, " n"]]:
        """The training samples and the modality of each, the same on all ranks."""

        def of(output: Output, _: Tensor) -> Mapping[str, Tensor]:
            return {
                name: confidence(logits).unsqueeze(1)
                for name, logits in self._unimodal(output).items()
            }

        known, values = numbering.samples(probe.features("train", of), "DataRemixing")
        numbering.check_positions(known, self.sampler.count, "DataRemixing", probe.loaders["train"])
        return known, assignment(torch.cat(list(values.values()), dim=1).T)

    def _global_batch_size(self, probe: Probe) -> int | None:
        """The training loader's batch size over all ranks; None if unknown."""
        batches = getattr(probe.loaders["train"], "batch_sampler", None)
        size = getattr(batches, "batch_size", None)
        # Accelerate shares out the batches of a sampler that itself knows one rank only.
        ranks = max(self.sampler.num_replicas, distributed.world_size())
        return None if size is None else int(size) * ranks

    def _write_order(self) -> None:
        self.sampler.batch_size = self.batch_size
        self.sampler.pool = None
        if self.assigned is not None:
            count = self.sampler.count
            pool = torch.arange(count)
            pool[self.samples["position"].cpu()] += (self.assigned.cpu() + 1) * count
            self.sampler.pool = pool


def chosen(unimodal: Float[Tensor, "m n c"], modality: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """The logits of the modality that each sample is assigned to."""
    row = modality.to(unimodal.device).view(1, -1, 1).expand(1, -1, unimodal.shape[2])
    return unimodal.gather(0, row)[0]
