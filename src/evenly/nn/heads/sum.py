"""Fusion by adding logits."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from evenly.nn.heads.base import stacked
from evenly.nn.heads.late import LateHead


class SumHead(LateHead):
    """A linear layer on each modality's features; the fused logits are the sum of theirs."""

    sums = True

    def combined(self, unimodal: Mapping[str, Float[Tensor, "n c"]]) -> Float[Tensor, "n c"]:
        """Z = Σ_m z_m over the available modalities."""
        return stacked(unimodal).sum(0)
