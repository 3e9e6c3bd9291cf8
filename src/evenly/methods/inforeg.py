"""Information acquisition regulation (InfoReg).

Huang, Wei, Yang, Hu, "Adaptive Unimodal Regulation for Balanced Multimodal Information
Acquisition", CVPR 2025, https://arxiv.org/abs/2503.18595.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly import distributed
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, as_real, check_dense, kept, scores
from evenly.output import Output
from evenly.presence import having, those
from evenly.probe import Probe
from evenly.ranges import check_range


@torch.no_grad()
def fisher_trace(encoder: nn.Module) -> Float[Tensor, ""]:
    """Tr F of an encoder in one step: Σ mean(g²) over weights of two or more dimensions."""
    weights = [p for p in encoder.parameters() if p.ndim > 1 and p.grad is not None]
    if not weights:
        return distributed.local(next(encoder.parameters())).new_zeros(()).float()
    norms = torch._foreach_norm([as_real(distributed.local(_grad(p))) for p in weights])
    means = torch._foreach_div(norms, [math.sqrt(as_real(p).numel()) for p in weights])
    return distributed.sum_shards_(torch.stack(means).square().sum(), weights[0])


def change(trace: Sequence[float], window: int) -> float:
    """How much a Fisher trace still grows: k = (T - T') / T; 1 before the first epoch.

    T is its sum over the last epochs, T' that over as many before the last one; epochs before
    training began count as 0.

    Args:
        trace: The trace of each epoch so far.
        window: The number of epochs in T.
    """
    if not trace:
        return 1.0
    padded = [0.0] * (window + 1) + list(trace)
    now, before = sum(padded[-window:]), sum(padded[-window - 1 : -1])
    return (now - before) / now if now > 0 else 0.0


def regulation(score: Float[Tensor, " m"], strength: float) -> Float[Tensor, " m"]:
    """How strongly each encoder is held back: β exp(tanh(s_m - s)) where s_m > s, else 0.

    s is the best score of the others, so that only the modality that is ahead is held back.
    """
    if len(score) < 2:
        return torch.zeros_like(score)
    first, second = score.topk(2).values
    gap = score - torch.where(score == first, second, first)
    return torch.where(gap > 0, strength * gap.tanh().exp(), 0.0)


@torch.no_grad()
def pull_(encoder: nn.Module, start: Mapping[str, Tensor], strength: Float[Tensor, ""]) -> None:
    """Adds the gradient of a proximal term: g ← g + β (φ - φ_start).

    Args:
        encoder: Module with gradients; parameters without one are left out.
        start: φ_start by parameter name; parameters missing from it are left out.
        strength: β.
    """
    found = [(p, start[n]) for n, p in encoder.named_parameters() if n in start and _has_grad(p)]
    if not found:
        return
    now = [as_real(distributed.local(p)) for p, _ in found]
    then = [as_real(distributed.shard_like(s, p)) for p, s in found]
    grads = [as_real(distributed.local(_grad(p))) for p, _ in found]
    pull = _pull_in_turn if now[0].device.type == "cpu" else _pull_at_once
    pull(grads, now, then, strength.to(now[0]))


def _pull_in_turn(
    grads: list[Tensor], now: list[Tensor], then: list[Tensor], strength: Tensor
) -> None:
    """Tensor by tensor, for a CPU: the difference is still in the cache when it is added."""
    if strength == 0:  # on a CPU, this test waits for nothing
        return
    for grad, p, s in zip(grads, now, then, strict=True):
        grad.addcmul_(p - s, strength)


def _pull_at_once(
    grads: list[Tensor], now: list[Tensor], then: list[Tensor], strength: Tensor
) -> None:
    """All tensors in a few kernels, for devices on which kernel launches take most of the time."""
    term = torch._foreach_sub(now, then)
    torch._foreach_mul_(term, strength)
    torch._foreach_add_(grads, term)


class InfoReg(Method):
    """Slows down the modality that is ahead while it is still acquiring information fast.

    L = CE(z) + Σ_m CE(z_m). An encoder is in its prime learning window as long as the trace of its
    Fisher information, summed over a window of epochs, grows by more than a threshold from epoch to
    epoch. During this window, if its modality has the best score of the step, s_m = Σ_i
    softmax(z_m,i)[y_i], a proximal term pulls it towards its weights at the start of the epoch.
    Each gradient g becomes g + β exp(tanh(s_m - s)) (φ - φ_start), with s the best score of the
    others.

    Attributes:
        change: By modality, how much the trace still grows; above `threshold` within the window.
        traces: Fisher traces of each epoch so far, by modality.
    """

    info = Info(
        title="Information acquisition regulation (InfoReg)",
        paper="Huang, Wei, Yang, Hu. Adaptive Unimodal Regulation for Balanced Multimodal "
        "Information Acquisition. CVPR 2025",
        year=2025,
        url="https://arxiv.org/abs/2503.18595",
        category="optimisation",
        writes="gradients",
        modalities="each has a window of its own, and a score is compared with the best of the "
        "others, so that only the one ahead is held back, as in the paper; with one, it is "
        "training with the unimodal loss",
        neutral="its unimodal losses have no weight; with strength=0 it is multi_loss on this head",
        epochs=50,
        in_epochs=("window",),
        needs=("unimodal",),
        unimodal="trains",
        cost="M unimodal losses and a copy of the encoders' weights",
        budget=1.05,
        missing=True,
        doubts="The released code's β is 0.95 where sound is ahead and 0.1 where vision is, tuned "
        "for its data; here it is one number. It takes the window of both modalities from the "
        "trace of sound; here each has its own. Scores are sums over the batch, so they "
        "depend on its size. As in that code, the trace uses gradients after the pull, of "
        "batches rather than samples, and of weights of two or more dimensions (in its "
        "encoders, the convolutions). One of its versions uses logits of separate heads and a "
        "threshold of 0.04, and never holds vision back, since its second condition repeats "
        "the first. It needs two GPUs or more; with fewer it multiplies None by None. The "
        "threshold belongs to a window of 10 epochs. For the same course of the trace over a "
        "training, the change of its sum over a window, moved by one epoch, is inversely "
        "proportional to the window: in a shorter training, whose window the lab scales, the "
        "threshold holds encoders back for a larger part of it.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "change", "traces", "running", "start")

    def __init__(
        self,
        encoders: Encoders,
        *,
        strength: float = 0.95,
        threshold: float = 0.05,
        window: int = 10,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the regulation.

        Args:
            encoders: The modules whose gradients are changed, by modality.
            strength: β, not negative; the released code uses 0.95 for sound and 0.1 for vision.
            threshold: Growth of the Fisher trace above which an encoder is in its window; 0.05 in
                the released code.
            window: Epochs that the trace is summed over (the paper: 10 of 50).
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "finite and not negative", strength=strength)
        if math.isnan(threshold):
            raise UserError(f"InfoReg: 'threshold' is a number; found {threshold}.")
        check_range(self, "at least 1", window=window)
        self.strength, self.threshold, self.window = strength, threshold, window
        self.epoch = -1
        self.change: dict[str, float] = dict.fromkeys(self.encoders, 0.0)
        self.traces: dict[str, list[float]] = {name: [] for name in self.encoders}
        self.running: Tensor | None = None  # this epoch's traces, and the number of steps in them
        self.start: dict[str, dict[str, Tensor]] = {}
        self._score = StepSum(self.encoders)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Closes the last epoch's traces, and copies the weights of encoders in their window."""
        self._score.clear()
        if epoch == self.epoch:  # a run resumed mid-epoch has already copied its weights
            return
        self.epoch = epoch
        if self.running is not None:
            *found, steps = self.running.tolist()
            if steps:  # if all steps of an epoch overflowed, nothing is known of it
                pairs = zip(self.encoders, found, strict=True)
                self.traces = {name: [*self.traces[name], trace] for name, trace in pairs}
        self.running = None
        self.change = {name: change(self.traces[name], self.window) for name in self.encoders}
        self.start = {
            name: {
                key: p.detach().clone() for key, p in encoder.named_parameters() if p.requires_grad
            }
            for name, encoder in self.encoders.items()
            if self.is_open(name)
        }

    def is_due(self, epoch: int) -> bool:
        """Whether the settings ever hold an encoder back: in all epochs, or in none.

        A Fisher trace grows by at most its whole value, so it never passes a threshold of 1.
        """
        return self.strength > 0 and self.threshold < 1 and len(self.encoders) > 1

    def is_open(self, modality: str) -> bool:
        """Whether an encoder is in its prime learning window."""
        return self.change[modality] > self.threshold

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(z) + Σ_m CE(z_m); also takes the scores."""
        unimodal = self._unimodal(output)
        with torch.no_grad():
            here = having(output, *self.encoders)
            stacked = torch.stack([those(z, here) for z in unimodal.values()])
            # A batch that lacks a modality offers nothing to compare.
            complete = len(unimodal) == len(self.encoders)
            score = stacked.new_zeros(len(self.encoders))
            if complete:
                score = scores(stacked, those(target, here))
        self._score.add(score.float(), output)
        loss = super().loss(output, target)
        for logits in unimodal.values():
            loss = loss + self.criterion(logits, target)
        return loss

    def before_step(self) -> None:
        """Holds back the encoder that is ahead, and adds to the traces."""
        score = self._score.take(self)
        counts = self._score.counts(score)
        pulls = regulation(score, self.strength)
        self.metrics = {}
        for (name, encoder), strength in zip(self.encoders.items(), pulls, strict=True):
            check_dense(encoder, self)
            if name in self.start:
                pull_(encoder, self.start[name], strength)
                self.metrics[f"regulation/{name}"] = strength
        traces = [fisher_trace(encoder) for encoder in self.encoders.values()]
        traces = [trace.to(traces[0].device) for trace in traces]
        found = torch.stack([*traces, torch.ones_like(traces[0])])
        before = torch.zeros_like(found) if self.running is None else self.running.to(found)
        self.running = kept(counts, before + found, before)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, with copied weights on the encoders' devices."""
        super().load_state_dict(state)
        place = {name: next(encoder.parameters()) for name, encoder in self.encoders.items()}
        self.start = {
            name: {key: value.to(place[name].device) for key, value in start.items()}
            for name, start in self.start.items()
        }


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _has_grad(parameter: Tensor) -> bool:
    return parameter.grad is not None
