"""Learning the modality gap (LFM): how much modalities should agree, from epoch to epoch.

Yang, Wan, Jiang, Xu, "Facilitating Multimodal Classification via Dynamically Learning Modality
Gap", NeurIPS 2024, https://proceedings.neurips.cc/paper_files/paper/2024/hash/\
71b17f00017da0d73823ccf7fbce2d4f-Abstract-Conference.html.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from evenly import distributed
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import as_real, full
from evenly.output import Output
from evenly.presence import parts
from evenly.probe import Probe
from evenly.ranges import check_range
from evenly.suggest import unknown
from evenly.targets import SINGLE

Schedule = Literal["replayed", "learnt", "heuristic"]

LEAST, MOST = 0.05, 0.95
"""Bounds of the alignment's weight when it is learnt."""

EPOCHS = 200
"""Length of the authors' training; their schedules count in its epochs."""

REPLAYED = (
    0.795376296,
    -3.35472727e-3,
    -1.22989557e-4,
    2.92947416e-6,
    -2.23835486e-8,
    5.39717505e-11,
)
"""Coefficients, from t⁰ on, of the polynomial that sets a₁ by epoch in the documented run."""


def replayed(epoch: float) -> float:
    """a₁ of the documented run: 0.80 at epoch 0, 0.50 at 80, 0.08 from 199 on, never below 0."""
    t = min(epoch, EPOCHS - 1)
    return max(sum(c * t**n for n, c in enumerate(REPLAYED)), 0.0)


def heuristic(epoch: float) -> float:
    """a₁ of the first release: exp(-0.3 t), from 0.95 to 0.05."""
    return min(max(math.exp(-0.3 * epoch), LEAST), MOST)


def divergence(one: Float[Tensor, "n c"], other: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2, in nats, mean over samples."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1).mean()


def alignment(unimodal: Sequence[Float[Tensor, "n c"]]) -> Float[Tensor, ""]:
    """Σ JS over all pairs of two or more modalities."""
    pairs = [divergence(one, other) for one, other in combinations(unimodal, 2)]
    return torch.stack(pairs).sum()


def mean_curvature(
    total: Float[Tensor, ""],
    classification: Float[Tensor, ""],
    parameters: Sequence[nn.Parameter],
) -> Float[Tensor, ""]:
    """Mean of H v over all parameters: H the Hessian of one loss, v the other's gradient.

    Parameters that do not affect both losses are left out.
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
    """Balances fitting the labels and agreement of the modalities with a changing weight.

    L = 2 · (a₀ · CE(Z) + a₁ · JS), with Z the mean of the modalities' logits, JS the Jensen-Shannon
    divergence of their predictions, summed over all pairs, and a₀ = 1 - a₁. Agreement dominates at
    first. There are three schedules of a₁:

    - `replayed`: the authors' documented run on CREMA-D, a polynomial of the epoch that falls from
      0.80 to nearly 0, stretched to a training of `epochs` epochs.
    - `learnt`: starts at `weight`. Before each epoch, always on the same few held-out samples,
      a₁ ← clip(a₁ - η · mean(H v), 0.05, 0.95), where H is the Hessian of a₀ · CE + a₁ · JS, v the
      gradient of CE, and the mean is over all trained parameters of encoders and head. η is halved
      every `halve` epochs. With the published rate the weight hardly moves: it stays near 0.95, so
      cross-entropy keeps a tenth of its weight throughout.
    - `heuristic`: that of the first release, clip(exp(-0.3 t), 0.05, 0.95), stretched likewise.

    Attributes:
        weight: a₁.
        history: a₁, by the epoch before which it was set.
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
        modalities="the paper uses two; with more, the sum over all pairs, as the author advises; "
        "with one, joint training",
        neutral="agreement is in the loss at least at first, whatever the schedule",
        epochs=EPOCHS,
        in_epochs=("epochs", "halve"),
        needs=("unimodal",),
        unimodal="trains",
        head="late",
        cost="a divergence of logits (`learnt`: between epochs a double backward over a few "
        "samples)",
        budget=1.05,
        missing=True,
        doubts="The author says that the uploaded scripts are a simplified version, and that "
        "the paper's alignment is a contrast of cosines; neither is published, so this "
        "follows the scripts. The documented run replays a₁ as a polynomial fitted to "
        "one training of 200 epochs on CREMA-D; it is slightly negative in epochs 177 "
        "to 188 (here 0), and the script selects models on the test split. The first "
        "release, whose schedule is `heuristic`, also had a contrastive loss and "
        "unimodal pre-training, which are not built. The released divergence is ½ KL(m "
        "‖ p) + ½ KL(m ‖ q); here it is Jensen-Shannon's, as its name says. For "
        "`learnt`, the released code takes the mean of H v over the first parameter "
        "tensor only, in training mode, on 8 of 16 samples taken out of the training "
        "split; here over all parameters, in evaluation mode, on samples of the "
        "validation split. In both, the mean is so small that a₁ stays at 0.95. Whether "
        "it is the derivative that the paper derives could not be verified. Every layer "
        "must be twice differentiable for it: fused attention and cuDNN are switched "
        "off for that pass. It cannot train parameters sharded by FSDP2: the model then "
        "runs on whole copies of them, so the losses have no derivative with respect to "
        "the shards, and there is no H v.",
    )
    state: ClassVar[tuple[str, ...]] = ("weight", "history")

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: nn.Module,
        schedule: Schedule = "replayed",
        epochs: int = EPOCHS,
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
            head: The head on the encoders; its parameters are part of the mean.
            schedule: Schedule of a₁: `replayed`, `learnt` or `heuristic`; see above.
            epochs: Length of the training that `replayed` and `heuristic` are stretched to.
            weight: a₁ at the start of `learnt`, from 0.05 to 0.95.
            rate: η at the start, not negative.
            halve: η is halved every so many epochs.
            samples: Number of held-out samples on which a₁ is learnt.
            seed: Seed of their draw.
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        if schedule not in get_args(Schedule):
            raise unknown("schedule of LFM", schedule, get_args(Schedule))
        if not LEAST <= weight <= MOST:
            raise UserError(f"LFM: 'weight' is from {LEAST} to {MOST}; found {weight}.")
        check_range(self, "finite and not negative", rate=rate)
        check_range(self, "at least 1", epochs=epochs, halve=halve, samples=samples)
        if schedule == "learnt":
            self.info = replace(self.info, needs_probe=True, sharded=False)
        self.head = head
        self.schedule, self.epochs = schedule, epochs
        self.rate, self.halve = rate, halve
        self.samples, self.seed = samples, seed
        self.weight = weight if schedule == "learnt" else self._at(0)
        self.history: dict[int, float] = {}

    def is_due(self, epoch: int) -> bool:
        """Whether a₁ is set before this epoch: before each, if there are two modalities."""
        return len(self.encoders) > 1 and epoch not in self.history

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Sets a₁."""
        if self.is_due(epoch):
            self.weight = self._next(epoch, probe)
            self.history[epoch] = self.weight
        self.metrics = {"alignment": torch.tensor(self.weight)}

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """2 · (a₀ · CE(Z) + a₁ · JS)."""
        if len(self.encoders) < 2:
            return super().loss(output, target)
        return 2 * self._weighted(*self._losses(output, target))

    def _losses(self, output: Output, target: Tensor) -> tuple[Tensor, Tensor]:
        unimodal = {name: full(logits) for name, logits in self._unimodal(output).items()}
        classification = super().loss(output, target)
        found = [
            part.share * alignment([part.of(unimodal[name]) for name in part.names])
            for part in parts(output, unimodal)
            if len(part.names) > 1  # one modality has nothing to agree with
        ]
        agreement = torch.stack(found).sum() if found else torch.zeros_like(classification)
        return classification, agreement

    def _weighted(self, classification: Tensor, agreement: Tensor) -> Tensor:
        return (1 - self.weight) * classification + self.weight * agreement

    def _next(self, epoch: int, probe: Probe | None) -> float:
        if self.schedule != "learnt":
            return self._at(epoch)
        step = self.rate * 0.5 ** (epoch // self.halve) * self._curvature(self._probe(probe))
        if not math.isfinite(step):  # float16 may not hold the second derivatives
            return self.weight
        return min(max(self.weight - step, LEAST), MOST)

    def _at(self, epoch: int) -> float:
        at = replayed if self.schedule == "replayed" else heuristic
        return at(epoch * EPOCHS / self.epochs)

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
    """Disables kernels that have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
