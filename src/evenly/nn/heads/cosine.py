"""The head of MMCosine: cosines between features and class weights."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.errors import UserError
from evenly.nn.heads.base import Head, Logits, stacked


def cosines(features: Float[Tensor, "n d"], weight: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
    """⟨f / ‖f‖, W^c / ‖W^c‖⟩ of each sample and class."""
    return _unit(features) @ _unit(weight).T


def _unit(x: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # A row of zeros has no direction: it stays zeros, and its gradient does not divide by 0.
    return x / torch.where(norm > 0, norm, 1.0)


class CosineHead(Head):
    """Cosines of features and class weights, modality by modality; the fused logits are their sum.

    Each modality counts only by the angles of its features, not by the norms of features and
    weights, in which the faster modality gets ahead (MMCosine, Xu et al., ICASSP 2023,
    https://arxiv.org/abs/2303.05338).

    Attributes:
        scale: s, which stretches the cosines to logits.
        weights: By modality, W, with a row for each class.
    """

    sums = True

    def __init__(self, widths: Mapping[str, int], num_classes: int, scale: float = 10.0) -> None:
        """Makes the weights, initialised like a linear layer's.

        Args:
            widths: Width of the features by modality.
            num_classes: Number of classes.
            scale: s > 0; 10 by default, while the paper tunes it from 5 to 20.

        Raises:
            ValueError: If the scale is not a positive number.
        """
        super().__init__(widths, num_classes)
        if not 0 < scale < math.inf:
            raise UserError(f"CosineHead: 'scale' is positive and finite; found {scale}.")
        self.scale = scale
        self.weights = nn.ParameterDict(
            {
                name: nn.Linear(width, num_classes, bias=False).weight
                for name, width in widths.items()
            }
        )

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = Σ_m z_m, with z_m^c = s ⟨f_m / ‖f_m‖, W_m^c / ‖W_m^c‖⟩; a missing modality adds 0."""
        unimodal = {
            name: self.scale * cosines(value, self.weights[name])
            for name, value in features.items()
        }
        return stacked(unimodal).sum(0), unimodal
