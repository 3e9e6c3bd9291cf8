"""The head of quality-aware fusion: each modality weighted, for each sample, by its energy."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from evenly.modulation import full
from evenly.nn.heads.base import stacked
from evenly.nn.heads.late import LateHead


class EnergyHead(LateHead):
    """A linear layer on each modality's features, fused by their confidence.

    The confidence of a modality in a sample is its negative free energy, w_m = log Σ_c exp(z_mc)
    / 10: it is small for out-of-distribution and noisy inputs (QMF, Zhang et al., ICML 2023).
    Gradients flow through it.
    """

    def combined(self, unimodal: Mapping[str, Float[Tensor, "n c"]]) -> Float[Tensor, "n c"]:
        """Z = Σ_m w_m z_m."""
        logits = stacked(unimodal)
        weight = 0.1 * full(logits).logsumexp(-1, keepdim=True)
        return (weight * logits).sum(0)
