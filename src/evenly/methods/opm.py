"""On-the-fly prediction modulation (OPM).

Wei, Hu, Du, Wen, "On-the-fly Modulation for Balanced Multimodal Learning", TPAMI 2024,
https://arxiv.org/abs/2410.11582.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evenly import distributed
from evenly.chance import uniform
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import discrepancy, scores
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range


def drop_rates(score: Float[Tensor, " m"], base: float, strength: float) -> Float[Tensor, " m"]:
    """How often each modality is dropped: q_m = base (1 + λ r_m) where r_m > 0, else 0.

    r_m = tanh(relu(ρ_m - 1)), and q_m is at most 1. The weakest modality has q_m = 0, however equal
    scores are rounded, so no sample ever loses all modalities.
    """
    lead = torch.tanh(torch.relu(discrepancy(score) - 1))
    is_ahead = (lead > 0) & (score > score.min())
    return torch.where(is_ahead, base * (1 + strength * lead), 0.0).clamp(0, 1)


def modulated(
    features: Mapping[str, Float[Tensor, "n _"]],
    kept: Mapping[str, Bool[Tensor, " n"]],
    rate: Mapping[str, Float[Tensor, ""]],
) -> dict[str, Float[Tensor, "n _"]]:
    """Features with the samples that are not kept zeroed: f_m kept_m / (1 - θ).

    θ = Σ_m d_m q_m / Σ_m d_m, the expected share of dropped numbers, with d_m the width of f_m. A
    modality without a rate is never dropped.
    """
    width = sum(feature.shape[1] for feature in features.values())
    some = next(iter(features.values()))
    theta = some.new_zeros(())
    for name, q in rate.items():
        theta = theta + features[name].shape[1] / width * q
    changed = {}
    for name, feature in features.items():
        mask = kept[name].to(feature).unsqueeze(1) if name in kept else 1.0
        changed[name] = feature * mask / (1 - theta).to(feature)
    return changed


class OPM(Method):
    """Drops the features of the modality that is ahead, sample by sample, before the fusion.

    The scores are OGM's: s_m = Σ_i softmax(z_m,i)[y_i] and ρ_m = s_m / mean of the others. Where
    ρ_m > 1, modality m is dropped from each sample with probability q_m = base
    (1 + strength · tanh(ρ_m - 1)). The rest is divided by 1 - θ, its expected share. A step is
    modulated with a given probability, and otherwise plain; the loss is CE(z) of the remaining
    features.
    """

    info = Info(
        title="On-the-fly Prediction Modulation (OPM)",
        paper="Wei, Hu, Du, Wen. On-the-fly Modulation for Balanced Multimodal Learning. "
        "TPAMI 2024",
        year=2024,
        url="https://arxiv.org/abs/2410.11582",
        category="forward",
        writes="loss",
        modalities="the paper uses two; with more, a score is compared with the mean of the "
        "others, which for two is the paper's rule; the weakest is never dropped, so no sample is "
        "left empty; with one, it drops nothing",
        neutral={"base": 0.0},
        epochs=100,
        in_epochs=("start",),
        needs=("unimodal", "index", "fuse"),
        separate=True,
        cost="a second pass through the head",
        budget=1.05,
        by_pass=True,
        doubts="The probability that a step is modulated and the defaults follow the released "
        "code, whose class has a base rate of 0.4 and whose command 0.5. Its drop rate "
        "has a gradient, through the scores; here it is a number.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "steps")

    def __init__(
        self,
        encoders: Encoders,
        *,
        base: float = 0.5,
        strength: float = 0.5,
        probability: float = 0.7,
        start: int = 6,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the modulation; the defaults are the released code's.

        Args:
            encoders: By modality; their names say which features may be dropped.
            base: q_base, from 0 to 1: how often a modality that is barely ahead is dropped.
            strength: λ, not negative: how much more often a modality far ahead is dropped.
            probability: p_exe, from 0 to 1: the share of steps that are modulated.
            start: First epoch with dropping, from 0; earlier epochs are the warm-up.
            seed: Seed of the drops, which depend on seed, step and sample.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "from 0 to 1", base=base, probability=probability)
        check_range(self, "not negative", strength=strength, start=start)
        self.base, self.strength, self.probability = base, strength, probability
        self.start, self.seed = start, seed
        self.epoch = -1
        self.steps = 0

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes the epoch."""
        self.epoch = epoch

    def is_due(self, epoch: int) -> bool:
        """Whether features are dropped in an epoch (from 0): after the warm-up."""
        return epoch >= self.start and len(self.encoders) > 1

    @property
    def is_modulated(self) -> bool:
        """Whether this step drops features: by chance, in epochs with dropping."""
        if not self.is_due(self.epoch):
            return False
        one = torch.zeros(1, dtype=torch.int64)  # on the CPU, so that nothing waits for the device
        return float(uniform(one, self.seed, self.steps, -1)) < self.probability

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) of the features that remain, given the scores of the batch."""
        if len(self.encoders) < 2 or not torch.is_grad_enabled():
            return super().loss(output, target)
        fuse, index = self._need(output, "fuse"), self._need(output, "index")
        unimodal = torch.stack(list(self._unimodal(output).values()))
        if not self.is_modulated:
            return super().loss(output, target)
        with torch.no_grad():
            score = distributed.sum_(scores(unimodal, target))
            rates = drop_rates(score, self.base, self.strength).nan_to_num(0.0)
        rate = dict(zip(self.encoders, rates, strict=True))
        self.metrics = {f"rate/{name}": value for name, value in rate.items()}
        kept = {
            name: uniform(index, self.seed, self.steps, salt) >= q.to(index.device)
            for salt, (name, q) in enumerate(rate.items())
        }
        return self.criterion(fuse(modulated(output.features, kept, rate)), target)

    def before_step(self) -> None:
        """Counts the steps, since each drops different samples."""
        self.steps += 1
