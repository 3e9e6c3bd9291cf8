"""Learning the modality gap (LFM): how much modalities should agree, learnt while training.

Yang, Wan, Jiang, Xu, "Facilitating Multimodal Classification via Dynamically Learning Modality
Gap", NeurIPS 2024, https://proceedings.neurips.cc/paper_files/paper/2024/hash/\
71b17f00017da0d73823ccf7fbce2d4f-Abstract-Conference.html.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from evenly import distributed
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import as_real, full
from evenly.output import Output
from evenly.probe import Probe
from evenly.targets import SINGLE

LEAST, MOST = 0.05, 0.95
"""Bounds of the alignment's weight."""


def divergence(one: Float[Tensor, "n c"], other: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2, in nats, mean over samples."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1).mean()


def alignment(unimodal: Sequence[Float[Tensor, "n c"]]) -> Float[Tensor, ""]:
    """Mean of JS over all pairs of modalities; of two or more."""
    pairs = [divergence(one, other) for one, other in combinations(unimodal, 2)]
    return torch.stack(pairs).mean()


def mean_curvature(
    total: Float[Tensor, ""],
    classification: Float[Tensor, ""],
    parameters: Sequence[nn.Parameter],
) -> Float[Tensor, ""]:
    """The mean over all parameters of H v: H the Hessian of one loss, v the other's gradient.

    Parameters that one of the losses does not depend on have no part in it.
    """
    slope = torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True)
    vector = torch.autograd.grad(classification, parameters, retain_graph=True, allow_unused=True)
    both = [(s, v) for s, v in zip(slope, vector, strict=True) if s is not None and v is not None]
    product = torch.autograd.grad(
        [s for s, _ in both], parameters, grad_outputs=[v for _, v in both], allow_unused=True
    )
    found = [as_real(part) for part in product if part is not None]
    count = sum(part.numel() for part in found)
    return torch.stack([part.sum().to(total) for part in found]).sum() / max(count, 1)


class LFM(Method):
    """Balances fitting the labels with agreement of the modalities, by a weight that it learns.

    L = 2 · (a₀ · CE(Z) + a₁ · JS), with Z the mean of the modalities' logits, JS the
    Jensen-Shannon divergence of their predictions, mean over all pairs, and a₀ = 1 - a₁.
    Agreement leads at first (a₁ = 0.95). Before each epoch, on the same few held-out samples,

    a₁ ← clip(a₁ - η · mean(H v), 0.05, 0.95),

    where H is the Hessian of a₀ · CE + a₁ · JS, v the gradient of CE, and the mean goes over all
    trained parameters of encoders and head. η is halved every `halve` epochs. With the published
    rate the weight hardly moves: it stays near 0.95, because the mean is so small.

    Attributes:
        weight: a₁.
        history: a₁ by the epoch before which it was learnt.
    """

    info = Info(
        title="Dynamically Learning the Modality Gap (LFM)",
        paper="Yang, Wan, Jiang, Xu. Facilitating Multimodal Classification via Dynamically "
        "Learning Modality Gap. NeurIPS 2024",
        year=2024,
        url="https://proceedings.neurips.cc/paper_files/paper/2024/hash/"
        "71b17f00017da0d73823ccf7fbce2d4f-Abstract-Conference.html",
        category="objective",
        writes="loss",
        targets=SINGLE,
        modalities="the paper has two; with more, the mean over all pairs; with one, joint "
        "training",
        neutral="the weight of agreement is at least 0.05, so it never leaves the loss",
        epochs=200,
        in_epochs=("halve",),
        needs=("unimodal",),
        needs_probe=True,
        head="late",
        cost="a divergence of logits; between epochs a double backward over a few samples",
        budget=1.05,
        missing=True,
        sharded=False,
        doubts="The released code, read in the version of the journal article, takes the mean of "
        "H v over the first parameter tensor alone, with the model in training mode, on 8 of 16 "
        "samples that it takes out of the training split; here over all parameters, in "
        "evaluation mode, on samples of the validation split. Measured on the digits, neither "
        "mean is above 0.03 in its first six epochs, so the published η leaves a₁ at 0.95. The "
        "released divergence is ½ KL(m ‖ p) + ½ KL(m ‖ q); here it is Jensen-Shannon's, as "
        "named. The code also offers to replay a₁ as a polynomial of the epoch that was fitted "
        "to one run, which is not built, and it selects its models on the test split. That mean(H "
        "v) is the derivative that the paper derives could not be verified. Every layer must be "
        "twice differentiable: fused attention and cuDNN are switched off for that pass. It cannot "
        "train parameters that FSDP2 has sharded: the model then runs on whole copies of them, so "
        "the losses have no derivative by the shards, and there is no H v.",
    )
    state: ClassVar[tuple[str, ...]] = ("weight", "history")

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: nn.Module,
        weight: float = 0.95,
        rate: float = 1e-4,
        halve: int = 20,
        samples: int = 16,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the loss; the defaults are the paper's.

        Args:
            encoders: By modality.
            head: What is on them; its parameters are part of the mean.
            weight: a₁ at the start, from 0.05 to 0.95.
            rate: η at the start, not negative.
            halve: After how many epochs η is halved, again and again.
            samples: How many held-out samples a₁ is learnt on.
            seed: Of their draw.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        if not LEAST <= weight <= MOST:
            raise ValueError(f"LFM: 'weight' is from {LEAST} to {MOST}; found {weight}.")
        if not 0 <= rate < math.inf:
            raise ValueError(f"LFM: 'rate' is finite and not negative; found {rate}.")
        for name, value in (("halve", halve), ("samples", samples)):
            if value < 1:
                raise ValueError(f"LFM: '{name}' is at least 1; found {value}.")
        self.head = head
        self.rate, self.halve = rate, halve
        self.samples, self.seed = samples, seed
        self.weight = weight
        self.history: dict[int, float] = {}

    def is_due(self, epoch: int) -> bool:
        """Whether a₁ is learnt before this epoch: it is before each, if there is a pair."""
        return len(self.encoders) > 1 and epoch not in self.history

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Learns a₁."""
        probe = self._probe(probe)
        if self.is_due(epoch):
            step = self.rate * 0.5 ** (epoch // self.halve) * self._curvature(probe)
            if math.isfinite(step):  # float16 may not hold the second derivatives
                self.weight = min(max(self.weight - step, LEAST), MOST)
            self.history[epoch] = self.weight
        self.metrics = {"alignment": torch.tensor(self.weight)}

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """2 · (a₀ · CE(Z) + a₁ · JS)."""
        if len(self.encoders) < 2:
            return super().loss(output, target)
        return 2 * self._weighted(*self._losses(output, target))

    def _losses(self, output: Output, target: Tensor) -> tuple[Tensor, Tensor]:
        unimodal = [full(logits) for logits in self._unimodal(output).values()]
        classification = super().loss(output, target)
        if len(unimodal) < 2:  # a batch of one modality, which has nothing to agree with
            return classification, torch.zeros_like(classification)
        return classification, alignment(unimodal)

    def _weighted(self, classification: Tensor, agreement: Tensor) -> Tensor:
        return (1 - self.weight) * classification + self.weight * agreement

    def _curvature(self, probe: Probe) -> float:
        modules = (*self.encoders.values(), self.head)
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        with torch.enable_grad(), _twice_differentiable():
            output, target = probe.sample("val", self.samples, self.seed)
            classification, agreement = self._losses(output, target)
            total = self._weighted(classification, agreement)
            found = mean_curvature(total, classification, parameters)
        return float(distributed.mean_(found.detach()))


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Keeps away the kernels that have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
