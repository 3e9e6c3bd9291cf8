"""Adaptive gradient modulation (AGM).

Li, Li, Hu, Lei, Li, Zhou, "Boosting Multi-modal Model Performance with Adaptive Gradient
Modulation", ICCV 2023, https://arxiv.org/abs/2308.07686.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly import distributed
from evenly.diagnosis.contribution import shapley, subsets
from evenly.errors import UserError
from evenly.method import Criterion, Encoders, Info, Method
from evenly.modulation import StepSum, full, kept
from evenly.output import Output
from evenly.probe import Probe
from evenly.ranges import check_range

MOST = 6
"""Most modalities accepted; with more, 2^M passes would take too long."""


def responses(
    value: Mapping[frozenset[str], Float[Tensor, "n c"]], names: Sequence[str]
) -> Float[Tensor, "m n c"]:
    """The Shapley value of each modality: what it adds to the logits.

    The logits without any input count as zero, so the values add up to the logits of all inputs.

    Args:
        value: The logits with all other inputs zeroed, for each subset but the empty one.
        names: The modalities, in the order of the result.
    """
    nothing = torch.zeros_like(value[frozenset(names)])
    return torch.stack(list(shapley({frozenset(): nothing, **value}, names).values()))


def surprisals(response: Float[Tensor, "m n c"], target: Int[Tensor, " n"]) -> Float[Tensor, "m n"]:
    """How badly each modality's own response predicts the class: -log softmax(φ_m)[y]."""
    true = target.expand(len(response), -1).unsqueeze(-1)
    return -response.softmax(-1).gather(-1, true).squeeze(-1).clamp_min(1e-8).log()


def shares(score: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """How far each modality is ahead: r_m = exp((mean s - s_m) M / (M - 1))."""
    count = len(score)
    return torch.exp((score.mean() - score) * count / (count - 1))


def coefficients(
    score: Float[Tensor, " m"], running: Float[Tensor, " m"], alpha: float, cap: float
) -> Float[Tensor, " m"]:
    """The factor for each gradient: k_m = exp(α min(τ_m - r_m, cap)), τ from the running means."""
    return torch.exp(alpha * (shares(running) - shares(score)).clamp_max(cap))


def scaled(response: Float[Tensor, "m n c"], k: Float[Tensor, " m"]) -> Float[Tensor, "m n c"]:
    """The same values, with the gradients through them multiplied by k_m."""
    value = response.detach()
    return value + k[:, None, None] * (response - value)


def clip_factor(peak: Float[Tensor, ""], norm: Float[Tensor, ""], most: float) -> Float[Tensor, ""]:
    """The factor that clips the norm of all gradients to `most` if the head's peak exceeds it."""
    return torch.where(peak > most, (most / norm).clamp_max(1), 1.0)


class AGM(Method):
    """Scales the gradients that flow through each modality's own response.

    The response φ_m of a modality is its Shapley value: what it adds to the logits, over passes
    in which the inputs of the others are zeroed. Its score s_m is the mean of -log softmax(φ_m)[y],
    its share r_m = exp((mean s - s_m) M / (M - 1)), and τ_m the same share computed from the
    scores' running means. The loss is CE(Σ_m φ_m), and the gradient through φ_m, which reaches all
    encoders, is multiplied by k_m = exp(alpha · min(τ_m - r_m, cap)): a modality that does better
    than usual is held back. The scores come from the same batch that is scaled. The zeroed passes
    run in evaluation mode, with gradients. As k_m can be huge, all gradients are clipped to the
    norm `clip` if any number in the head's gradient exceeds it.

    Attributes:
        running: Mean of the scores of all steps so far.
        coefficient: k_m of the last pass.
    """

    info = Info(
        title="Adaptive Gradient Modulation (AGM)",
        paper="Li, Li, Hu, Lei, Li, Zhou. Boosting Multi-modal Model Performance with Adaptive "
        "Gradient Modulation. ICCV 2023",
        year=2023,
        url="https://arxiv.org/abs/2308.07686",
        category="optimisation",
        writes="gradients",
        modalities="2 to 6, by the Shapley value over all subsets of them; with one, nothing is "
        "changed",
        neutral={"alpha": 0.0},
        epochs=100,
        needs=("ablate",),
        cost="a second pass through each encoder, forward and backward, in evaluation mode, and "
        "one of zeros; where encoders see each other, 2^M - 2 passes through all",
        budget=2.4,
        scales_gradients=True,
        by_pass=True,
        doubts="As in the released code, the running means exclude the step that is compared "
        "with them, start at 0, and f of no input counts as zeros. That code clips if a "
        "weight of its last layer has a gradient above 1; here it is any parameter of "
        "the head. For URFunny it clips at 5, for AVE not at all. Its cap is 10 for "
        "CREMA-D, 7 for three modalities and none for AVE and AV-MNIST; its author "
        "gives α = 1.5 for CREMA-D. With BatchNorm, the zeroed passes use running "
        "statistics but the full pass uses its batch's, so their gradients do not quite "
        "form a non-negative sum over modalities: a model can become worse in "
        "evaluation mode than in training mode, the more so at high learning rates.",
    )
    state: ClassVar[tuple[str, ...]] = ("steps", "running")

    def __init__(
        self,
        encoders: Encoders,
        *,
        head: nn.Module,
        alpha: float = 1.0,
        cap: float = 10.0,
        clip: float = 1.0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the modulation.

        Args:
            encoders: By modality; their names say which inputs are zeroed. A modality without an
                encoder here is never zeroed.
            head: The module that turns features into logits; its gradients decide when to clip.
            alpha: α, not negative: strength of the modulation (the scripts: 1 and 2.5; the author
                for CREMA-D: 1.5).
            cap: Upper limit of τ_m - r_m, not negative; `inf` for none (the scripts: 10 for
                CREMA-D).
            clip: Norm to which gradients are clipped, above 0; `inf` for none (the scripts: 1,
                for URFunny 5, for AVE none).
            criterion: See `Method`.

        Raises:
            ValueError: If a setting is out of range or there are too many modalities.
        """
        super().__init__(encoders, criterion=criterion)
        check_range(self, "not negative", alpha=alpha, cap=cap)
        check_range(self, "above 0", clip=clip)
        if len(self.encoders) > MOST:
            raise UserError(
                f"AGM needs a pass for each subset of modalities, and {len(self.encoders)} "
                f"encoders make {2 ** len(self.encoders)} passes a step. Pass at most {MOST} "
                "encoders."
            )
        self.head = head
        self.alpha, self.cap, self.clip = alpha, cap, clip
        self.steps = torch.zeros((), dtype=torch.int64)  # that count in the running means
        self.running: Tensor | None = None
        self.coefficient: Tensor | None = None
        self._score = StepSum(self.encoders)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Discards an unfinished step."""
        self._score.clear()

    @property
    def is_active(self) -> bool:
        """Whether there is anything to modulate."""
        return self.alpha > 0 and len(self.encoders) > 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """CE(Σ_m φ_m), which is CE(z), with the gradients of each φ_m scaled."""
        if not self.is_active or not torch.is_grad_enabled():
            return super().loss(output, target)
        response = responses(self._values(output), list(self.encoders))
        with torch.no_grad():
            found = surprisals(response, target).sum(1)
            found = distributed.sum_(torch.cat([found, found.new_full((1,), len(target))]))
            score = found[:-1] / found[-1]
            k = coefficients(score, self._mean(score), self.alpha, self.cap)
            self.coefficient = torch.where(k.isfinite().all(), k, 1.0)
        self._score.add(found, output)
        return self.criterion(scaled(response, self.coefficient).sum(0), target)

    def before_step(self) -> None:
        """Clips, and updates the running means."""
        if not self.is_active:
            return
        self._clip()
        found = self._score.take(self, sharded=False)
        counts = self._score.counts(found)
        score = found[:-1] / found[-1]
        running = self._mean(score)
        self.steps = self.steps.to(score.device) + counts
        self.running = kept(counts, running + (score - running) / self.steps, running)
        assert self.coefficient is not None
        self.metrics = self._per_modality(coefficient=self.coefficient, score=score)

    def _mean(self, like: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The running means, initially 0."""
        return torch.zeros_like(like) if self.running is None else self.running.to(like)

    @torch.no_grad()
    def _clip(self) -> None:
        if self.clip == math.inf:
            return
        head = _gradients(self.head)
        grads = [*head, *(g for encoder in self.encoders.values() for g in _gradients(encoder))]
        if not head:
            return
        device = head[0].device
        parts = [part for part in map(distributed.local, head) if part.numel()]
        peaks = [part.abs().max().to(device).float() for part in parts]
        peak = torch.stack(peaks or [torch.zeros((), device=device)]).max()
        norm = distributed.square_sums([grads], device)[0].sqrt()
        factor = clip_factor(distributed.max_(peak), norm, self.clip)
        for grad in grads:
            distributed.local(grad).mul_(factor.to(grad.device))

    def _values(self, output: Output) -> dict[frozenset[str], Tensor]:
        """The logits by subset of modalities; those of all modalities are already known."""
        ablate = self._need(output, "ablate")
        always = set(output.features) - set(self.encoders)
        _, *parts, whole = subsets(list(self.encoders))
        value = {subset: ablate(subset | always) for subset in parts}
        value[whole] = output.logits
        # Shapley values are small differences between logits, too small for half precision.
        return {subset: full(logits) for subset, logits in value.items()}


def _gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]
