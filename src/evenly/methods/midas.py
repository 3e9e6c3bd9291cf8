"""Misalignment-based data augmentation (MIDAS).

Hwang, Choi, Whang, "MIDAS: Misalignment-based Data Augmentation Strategy for Imbalanced Multimodal
Learning", NeurIPS 2025, https://arxiv.org/abs/2509.25831.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from evenly import distributed
from evenly.chance import orders, stream
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, full, kept
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range


def swapped(x: Shaped[Tensor, "m n"], partner: Int[Tensor, " n"]) -> Shaped[Tensor, "m k n"]:
    """Modality m's entry where modality k comes from the partner: x_m,j for m = k, else x_m,i."""
    mine = torch.eye(len(x), dtype=torch.bool, device=x.device).unsqueeze(2)
    return torch.where(mine, x[:, None, partner], x[:, None])


def misaligned_loss(
    log_p: Float[Tensor, "m k n"],
    confidence: Float[Tensor, "m k n"],
    alpha: Float[Tensor, " m"],
    similarity: Float[Tensor, "k n"],
) -> Float[Tensor, "k n"]:
    """(1 + (s + 1) / 2) · -Σ_m α_m c_m log p̃[label of m].

    Args:
        log_p: log p̃[label of m], of the fused prediction.
        confidence: c_m, adding up to 1 over modalities.
        alpha: α_m.
        similarity: s, the cosine of the new features and those they replace.
    """
    hardness = 1 + (similarity + 1) / 2
    return -hardness * (alpha[:, None, None] * confidence * log_p).sum(0)


def weights(
    alpha: Float[Tensor, " m"],
    confidence: Float[Tensor, " m"],
    predicted: Float[Tensor, " m"],
    rate: float,
) -> Float[Tensor, " m"]:
    """α of the next step: for the least confident modality, max(1, α + η sign(E c - E p̃)).

    Args:
        alpha: α.
        confidence: E c_m over misaligned samples.
        predicted: E p̃[label of m].
        rate: η.
    """
    weakest = nn.functional.one_hot(confidence.argmin(), len(alpha))
    return (alpha + rate * weakest * (confidence - predicted).sign()).clamp_min(1)


class MIDAS(Method):
    """Also trains on samples in which one modality comes from a sample of another class.

    The warm-up has the loss Σ_m CE(z_m) alone. Then L = CE(z) + Σ_m CE(z_m) + λ L_mis, where L_mis
    is the mean over misaligned samples. These are mixed from features: a permutation gives each
    sample i of the batch a partner j, and if y_i ≠ y_j, each modality of i in turn is replaced by
    that of j. Each modality stands for its own sample's class, in proportion to its confidence: c_m
    = p_m[its label] / Σ_k p_k[its label], from the unimodal logits, and

        L_mis = (1 + (s + 1) / 2) · -Σ_m α_m c_m log p̃[label of m],

    with p̃ the fused prediction and s the cosine of the two exchanged features: similar features
    are harder. After each step, α_m of the modality with the least mean confidence changes. It
    becomes max(1, α_m + η) if c_m is on average above p̃[its label], since the model then follows
    that modality too little, and max(1, α_m - η) if it is below.

    Attributes:
        alpha: α, in the encoders' order.
    """

    info = Info(
        title="Misalignment-based data augmentation (MIDAS)",
        paper="Hwang, Choi, Whang. MIDAS: Misalignment-based Data Augmentation Strategy for "
        "Imbalanced Multimodal Learning. NeurIPS 2025",
        year=2025,
        url="https://arxiv.org/abs/2509.25831",
        category="data",
        writes="loss",
        modalities="of more than two each in turn is a partner's, against all others; with one, "
        "training is joint training",
        neutral="its unimodal losses and its warm-up are part of it at any setting",
        epochs=70,
        in_epochs=("warmup",),
        needs=("unimodal", "fuse"),
        unimodal="trains",
        head="multi",
        cost="M unimodal heads, and the fused head once more on M times the batch",
        budget=1.05,
        within_batch=True,
        missing=True,
        doubts="Written from the paper; no released code was found. The length of "
        "the warm-up could not be found; the default, 5 of 70 epochs, is ours. Our "
        "reading is also how pairs are drawn, that c and s have no gradient, that L_mis "
        "is the mean over samples whose partner has another class, and everything for "
        "more than two modalities. Features are exchanged instead of inputs, which is "
        "the same if encoders neither see each other nor normalise over the batch. The "
        "defaults are those for CREMA-D; λ is 5 for Kinetics-Sounds. Samples and "
        "batches that lack a modality do not enter L_mis. During the warm-up the fused "
        "head gets zero gradients, so weight decay acts on it. α has no upper bound: if "
        "a modality cannot become surer, α climbs, on the votes of CREMA-D to about 10, "
        "and the prediction follows that modality too much (one seed: 72 %; with η = 0 "
        "79 %, joint training 80 %).",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "steps", "alpha")

    def __init__(
        self,
        encoders: Encoders,
        *,
        weight: float = 1.0,
        rate: float = 0.05,
        warmup: int = 5,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss.

        Args:
            encoders: By modality; their names say which modalities are exchanged.
            weight: λ, weight of the misaligned samples, not negative; 1 in the paper, 5 for
                Kinetics-Sounds.
            rate: η, the change of α in each step, not negative; 0.05 in the paper.
            warmup: The number of first epochs with unimodal losses alone.
            seed: Seed of the partners, drawn from a separate stream.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is negative or not finite.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", weight=weight, rate=rate, warmup=warmup)
        if len(self.encoders) < 2:
            self.info = replace(self.info, partial=True)
        self.weight, self.rate, self.warmup, self.seed = weight, rate, warmup, seed
        self.epoch, self.steps = -1, 0
        self.alpha: Float[Tensor, " m"] = torch.ones(len(self.encoders))
        self._found = StepSum(self.encoders)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes the epoch."""
        self.epoch = epoch
        self._found.clear()

    def is_due(self, epoch: int) -> bool:
        """Whether an epoch (from 0) has misaligned samples: after the warm-up."""
        return epoch >= self.warmup and len(self.encoders) > 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + Σ_m CE(z_m) + λ L_mis; in the warm-up, Σ_m CE(z_m)."""
        if len(self.encoders) < 2:
            return super().loss(output, target)
        self._need(output, "fuse")
        unimodal = self._unimodal_loss(output, target)
        if not self.is_due(self.epoch):
            return unimodal + distributed.idle([output.logits])
        misaligned, found = self._misaligned(output, target)
        self._found.add(found, output)
        return super().loss(output, target) + unimodal + self.weight * misaligned

    def before_step(self) -> None:
        """Updates α."""
        self.steps += 1
        if not self.is_due(self.epoch):
            return
        found = self._found.take(self)
        counts = self._found.counts(found)
        confidence, predicted = (found[1:] / found[0]).chunk(2)
        alpha = self.alpha.to(found)
        self.alpha = kept(counts, weights(alpha, confidence, predicted, self.rate), alpha)
        latest = self._per_modality(alpha=self.alpha, confidence=confidence, predicted=predicted)
        self.metrics = {  # unchanged after a step without misaligned samples
            key: torch.where(found[0] > 0, value, self.metrics.get(key, value).to(value))
            for key, value in latest.items()
        }

    def _misaligned(self, output: Output, target: Tensor) -> tuple[Tensor, Tensor]:
        """L_mis, the number of samples in it, and the sums of c_m and p̃[label of m] over them."""
        features = {name: full(x) for name, x in self._features(output).items()}
        count = len(self.encoders)
        if len(features) < count:
            none = torch.zeros_like(full(output.logits[:0]).sum())
            return none, none.detach().repeat(1 + 2 * count)
        partner = self._partners(output.logits)
        with torch.no_grad():
            own = [
                full(z).softmax(1).gather(1, target[:, None])
                for z in self._unimodal(output).values()
            ]
            confidence = swapped(torch.stack(own).squeeze(2), partner)
            confidence = confidence / confidence.sum(0).clamp_min(
                torch.finfo(confidence.dtype).tiny
            )
            similarity = torch.stack(
                [nn.functional.cosine_similarity(x, x[partner]) for x in features.values()]
            )
            differ = self._differ(output, target, partner)
        labels = swapped(target.expand(count, -1), partner)
        log_p = self._mixed(output, partner).log_softmax(-1).expand(count, -1, -1, -1)
        log_p = log_p.gather(3, labels.unsqueeze(3)).squeeze(3)
        loss = misaligned_loss(log_p, confidence, self.alpha.to(log_p), similarity)
        sums = torch.stack([confidence, log_p.detach().exp()]).mul(differ).sum((2, 3))
        total = (differ.sum() * count).to(loss)
        return (loss * differ).sum() / total.clamp_min(1), torch.cat([total[None], sums.flatten()])

    def _mixed(self, output: Output, partner: Int[Tensor, " n"]) -> Float[Tensor, "k n c"]:
        """The fused logits with each modality in turn taken from the partner."""
        names = list(self.encoders)
        features = {
            name: torch.cat([x[partner] if name == moved else x for moved in names])
            for name, x in output.features.items()
        }
        assert output.fuse is not None
        logits: Tensor = full(output.fuse(features)).unflatten(0, (len(names), -1))
        return logits

    def _differ(
        self, output: Output, target: Tensor, partner: Int[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        """Which pairs have two classes and all modalities."""
        found = target != target[partner]
        for name, here in (output.present or {}).items():
            if name in self.encoders:
                found = found & here & here[partner]
        return found

    def _partners(self, logits: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        """A permutation of the samples, a function of seed and step."""
        numbers = stream(logits.device, self.seed, self.steps)
        return orders(1, len(logits), numbers)[0]
