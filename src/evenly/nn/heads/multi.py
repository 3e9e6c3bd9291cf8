"""The head of multi-loss training."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.base import Head, Logits


class MultiHead(Head):
    """A linear layer on the concatenated features, and one on each modality's.

    Attributes:
        linear: The layer of the fused logits.
        heads: By modality, the layers of the unimodal logits.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers; the fused one first, so that it starts like `ConcatHead`'s."""
        super().__init__(widths, num_classes)
        self.linear = nn.Linear(sum(widths.values()), num_classes)
        self.heads = self.unimodal_heads()

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = W [f_1 .. f_M] + b, and z_m = V_m f_m + b_m."""
        logits = self.linear(torch.cat(list(self.filled(features).values()), dim=1))
        return logits, {name: self.heads[name](features[name]) for name in features}
