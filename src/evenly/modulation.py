"""What methods that compare modalities in each step have in common."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evenly import distributed


def scores(unimodal: Float[Tensor, "m n c"], target: Int[Tensor, " n"]) -> Float[Tensor, " m"]:
    """What each modality gives the true class: s_m = Σ_i softmax(z_m,i)[y_i]."""
    probability = unimodal.float().softmax(-1)
    true = target.expand(len(unimodal), -1).unsqueeze(-1)
    return probability.gather(-1, true).sum((1, 2))


def discrepancy(score: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """How far each modality is ahead: ρ_m = s_m / mean of the other scores."""
    others = (score.sum() - score) / (len(score) - 1)
    return score / others.clamp_min(torch.finfo(score.dtype).tiny)


def full(x: Tensor) -> Tensor:
    """The tensor in single precision at least, as a loss is asked for outside of autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def scale_(encoder: nn.Module, coefficient: Tensor, *, least: int = 2) -> None:
    """Multiplies the gradients of an encoder's weights, those of `least` or more dimensions."""
    for parameter in encoder.parameters():
        grad = parameter.grad
        if grad is not None and grad.ndim >= least:
            distributed.local(grad).mul_(coefficient.to(grad.device))


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, in the same memory; any other as it is."""
    return torch.view_as_real(x) if x.is_complex() else x


def check_dense(encoder: nn.Module, method: object) -> None:
    """Raises if a gradient is sparse, before a method writes all of its numbers."""
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise ValueError(
                f"{type(method).__name__} writes to every number of a gradient, but that of "
                f"'{name}' is sparse. Build its layer with sparse=False, or leave the encoder out."
            )


class StepSum:
    """Adds up what the passes of one step find, over gradient accumulation and ranks.

    Passes without gradients are no training steps (a validation that asks for the loss) and are
    not counted.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def clear(self) -> None:
        """Forgets what an unfinished step left."""
        self.value = None

    def add(self, x: Tensor) -> None:
        """Adds the finding of one pass."""
        if torch.is_grad_enabled():
            x = x.detach()
            self.value = x.clone() if self.value is None else self.value + x

    def take(self, method: object) -> Tensor:
        """The sum since the last step, over all ranks.

        Raises:
            RuntimeError: If the loss was not asked for in this step.
        """
        name = type(method).__name__
        if self.value is None:
            raise RuntimeError(
                f"{name}.before_step came without a call of {name}.loss since the last step, so "
                "it knows no scores. Compute the loss with method.loss(output, target)."
            )
        found, self.value = distributed.sum_(self.value), None
        return found
