"""The head that predicts with the fused logits and the modalities' own together."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from evenly.modulation import full
from evenly.nn.heads.base import Logits, stacked
from evenly.nn.heads.multi import MultiHead


class TotalHead(MultiHead):
    """A linear layer on the concatenated features, and one on each modality's; their sum predicts.

    The sum has at least single precision, so that the fused layer's own logits can be recovered.
    """

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = z + Σ_m z_m with z = W [f_1 .. f_M] + b, and z_m = V_m f_m + b_m."""
        fused, unimodal = super().logits(features)
        return full(fused) + full(stacked(unimodal)).sum(0), unimodal
