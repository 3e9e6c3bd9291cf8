"""On-the-fly gradient modulation with generalisation enhancement (OGM-GE).

Peng, Wei, Deng, Wang, Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation",
CVPR 2022, https://arxiv.org/abs/2203.15332.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly import distributed
from evenly.method import Criterion, Encoders, Info, Method
from evenly.output import Output
from evenly.probe import Probe


def scores(unimodal: Float[Tensor, "m n c"], target: Int[Tensor, " n"]) -> Float[Tensor, " m"]:
    """What each modality gives the true class: s_m = Σ_i softmax(z_m,i)[y_i]."""
    probability = unimodal.softmax(-1)
    true = target.expand(len(unimodal), -1).unsqueeze(-1)
    return probability.gather(-1, true).sum((1, 2))


def discrepancy(score: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """How far each modality is ahead: ρ_m = s_m / mean of the other scores."""
    others = (score.sum() - score) / (len(score) - 1)
    return score / others.clamp_min(torch.finfo(score.dtype).tiny)


def modulation(ratio: Float[Tensor, " m"], alpha: float) -> Float[Tensor, " m"]:
    """The factor for each encoder's gradient: 1 - tanh(α ρ) where ρ > 1, else 1."""
    return torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), 1.0)


class OGMGE(Method):
    """Damps the gradient of the modality that is ahead, and adds noise for generalisation.

    In each step the gradient of encoder m is multiplied by k_m = 1 - tanh(α ρ_m) if its share
    in the prediction of the true class is ahead of the others' (ρ_m > 1), else by 1. With
    `noise` (GE) each gradient g, of every modality, then receives N(0, std(g)²), with the
    standard deviation that it had before it was damped.
    """

    info = Info(
        title="On-the-fly Gradient Modulation (OGM-GE)",
        paper="Peng, Wei, Deng, Wang, Hu. Balanced Multimodal Learning via On-the-fly Gradient "
        "Modulation. CVPR 2022",
        year=2022,
        url="https://arxiv.org/abs/2203.15332",
        category="optimisation",
        writes="gradients",
        modalities="the paper has two; with more, a score is compared with the mean of the "
        "others, which for two is the paper's rule; with one, nothing is changed",
        neutral={"alpha": 0.0, "noise": False},
        epochs=100,
        in_epochs=("start", "end"),
        needs_unimodal=True,
        scales_gradients=True,
        doubts="The released code changes tensors of four dimensions only (the convolutions of "
        "its ResNets); here all weights of two or more, so that encoders of linear layers are "
        "not left out.",
    )
    state: ClassVar[tuple[str, ...]] = ("epoch", "steps")

    def __init__(
        self,
        encoders: Encoders,
        *,
        alpha: float = 0.8,
        noise: bool = True,
        start: int = 0,
        end: int = 50,
        seed: int = 0,
        criterion: Criterion | None = None,
    ) -> None:
        """Prepares the modulation.

        Args:
            encoders: By modality, the modules whose gradients are changed.
            alpha: α, strength of the damping; the authors recommend 0.8 for CREMA-D and 0.1
                for VGGSound.
            noise: Whether to add the noise (GE); without it the method is OGM.
            start: First epoch of modulation, from 0.
            end: Last epoch of modulation (the paper: 50 of 100).
            seed: Of the noise, which comes from a stream of its own, equal on all ranks.
            criterion: See `Method`.

        Raises:
            ValueError: If alpha is negative or the epochs end before they start.
        """
        super().__init__(encoders, criterion=criterion)
        if not alpha >= 0:
            raise ValueError(f"OGMGE: 'alpha' is not negative; found {alpha}.")
        if end < start:
            raise ValueError(f"OGMGE: 'end' is not before 'start' = {start}; found {end}.")
        self.alpha, self.noise, self.start, self.end, self.seed = alpha, noise, start, end, seed
        self.epoch, self.steps = -1, 0
        self._score: Tensor | None = None

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Notes the epoch."""
        self.epoch = epoch
        self._score = None

    @property
    def is_active(self) -> bool:
        """Whether this epoch is modulated."""
        return self.start <= self.epoch <= self.end and len(self.encoders) > 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The joint loss; on the way, the scores are taken."""
        # Without gradients it is no training step: a validation that asks for the loss.
        if self.is_active and torch.is_grad_enabled():
            with torch.no_grad():
                score = scores(self._unimodal(output), target)
            # summed, so that several passes before one step (accumulation) count as one batch
            self._score = score if self._score is None else self._score + score
        return super().loss(output, target)

    def before_step(self) -> None:
        """Changes the encoders' gradients."""
        if not self.is_active:
            return
        if self._score is None:
            raise RuntimeError(
                "OGMGE.before_step came without a call of OGMGE.loss since the last step, so it "
                "knows no scores. Compute the loss with method.loss(output, target)."
            )
        score, self._score = distributed.sum_(self._score), None
        coefficients = modulation(discrepancy(score), self.alpha)
        streams: dict[torch.device, torch.Generator] = {}
        for coefficient, encoder in zip(coefficients, self.encoders.values(), strict=True):
            for parameter in encoder.parameters():
                grad = parameter.grad
                if grad is not None and grad.ndim > 1:
                    if grad.device not in streams:
                        streams[grad.device] = self._stream(grad.device)
                    self._modulate_(grad, coefficient.to(grad.device), streams[grad.device])
        self.steps += 1
        self.metrics = {
            f"coefficient/{name}": coefficient
            for name, coefficient in zip(self.encoders, coefficients, strict=True)
        }

    def _modulate_(self, grad: Tensor, coefficient: Tensor, stream: torch.Generator) -> None:
        part = distributed.local(grad)
        if not self.noise or grad.numel() == 1:  # one number has no spread
            part.mul_(coefficient)
            return
        deviation = distributed.std(grad)
        noise = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        noise.normal_(generator=stream)
        part.mul_(coefficient).add_(distributed.shard_like(noise, grad) * deviation)

    def _stream(self, device: torch.device) -> torch.Generator:
        """The noise of this step: a function of seed and step, so a resumed run repeats it."""
        stream = torch.Generator(device)
        stream.manual_seed(self.seed * 1_000_003 + self.steps)
        return stream

    def _unimodal(self, output: Output) -> Float[Tensor, "m n c"]:
        if output.unimodal is None:
            raise ValueError(
                "OGMGE compares modalities and needs `Output.unimodal`; found None. For a linear "
                "head on concatenated features, pass `split_linear(head, features)`."
            )
        if missing := set(self.encoders) - set(output.unimodal):
            raise ValueError(
                f"OGMGE has encoders {sorted(self.encoders)}, but `Output.unimodal` lacks "
                f"{sorted(missing)}. Use the same names in both."
            )
        return torch.stack([output.unimodal[name].float() for name in self.encoders])
