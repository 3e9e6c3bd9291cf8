"""On-the-fly gradient modulation with generalisation enhancement (OGM-GE).

Peng, Wei, Deng, Wang, Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation",
CVPR 2022, https://arxiv.org/abs/2203.15332.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from evenly import distributed
from evenly.chance import stream
from evenly.method import Criterion, Encoders
from evenly.methods.ogm import OGM
from evenly.modulation import as_real, check_dense


class OGMGE(OGM):
    """Damps the gradient of the modality that is ahead, and adds noise for generalisation.

    In each step the gradient of encoder m is multiplied by k_m = 1 - tanh(α ρ_m) if its share
    in the prediction of the true class is ahead of the others' (ρ_m > 1), else by 1. Each gradient
    g, of every modality, then receives noise N(0, std(g)²), with its standard deviation before
    damping. Without this noise the method is `OGM`.
    """

    info = replace(
        OGM.info,
        title="On-the-fly Gradient Modulation with Generalisation Enhancement (OGM-GE)",
        neutral={"alpha": 0.0, "noise": False},
        multiplies=False,  # it adds noise
        doubts=OGM.info.doubts + " It adds 1e-8 to the deviation of the noise.",
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
            encoders: The modules whose gradients are changed, by modality.
            alpha: α, strength of the damping; the authors recommend 0.8 for CREMA-D and 0.1
                for VGGSound.
            noise: Whether to add the noise.
            start: First epoch of modulation, from 0.
            end: Last epoch of modulation (the paper: 50 of 100).
            seed: Seed of the noise, drawn from a separate stream, the same on all ranks.
            criterion: See `Method`.

        Raises:
            ValueError: If alpha is negative or not finite, or the epochs end before they start.
        """
        super().__init__(encoders, alpha=alpha, start=start, end=end, criterion=criterion)
        self.noise, self.seed = noise, seed
        self.steps = 0

    def _modulate(self, coefficients: Float[Tensor, " m"]) -> None:
        if not self.noise:
            super()._modulate(coefficients)
            return
        streams: dict[torch.device, torch.Generator] = {}
        for coefficient, encoder in zip(coefficients, self.encoders.values(), strict=True):
            check_dense(encoder, self)
            for parameter in encoder.parameters():
                grad = parameter.grad
                if grad is not None and grad.ndim > 1:
                    if grad.device not in streams:
                        streams[grad.device] = stream(grad.device, self.seed, self.steps)
                    _modulate_(grad, coefficient.to(grad.device), streams[grad.device])
        self.steps += 1


def _modulate_(grad: Tensor, coefficient: Tensor, noises: torch.Generator) -> None:
    grad = as_real(grad)
    part = distributed.local(grad)
    if grad.numel() == 1:  # one number has no spread
        part.mul_(coefficient)
        return
    deviation = distributed.std(grad)
    flat = torch.empty(grad.numel(), dtype=grad.dtype, device=grad.device)
    flat.normal_(generator=noises)
    if distributed.is_sharded(grad):
        noise = distributed.shard_like(flat.view(grad.shape), grad)
    else:  # in the gradient's own memory order, or the sum would jump around
        noise = flat.as_strided(grad.shape, torch.empty_like(grad, device="meta").stride())
    part.mul_(coefficient).addcmul_(noise, deviation)
