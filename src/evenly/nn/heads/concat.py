"""The head of joint training."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.base import Head, Logits
from evenly.output import split_linear


class ConcatHead(Head):
    """One linear layer on the concatenated features; a modality's logits are its share in it.

    Attributes:
        linear: The layer.
    """

    sums = True

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layer."""
        super().__init__(widths, num_classes)
        self.linear = nn.Linear(sum(widths.values()), num_classes)

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = W [f_1 .. f_M] + b, and z_m = W_m f_m + b / M."""
        filled = self.filled(features)
        logits = self.linear(torch.cat(list(filled.values()), dim=1))
        shares = split_linear(self.linear, filled)
        return logits, {name: shares[name] for name in filled if name in features}
