"""Fusion by a tensor of low rank (LMF, Liu et al., ACL 2018)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.ablating import AblatingHead


class LowRankHead(AblatingHead):
    """All products between modalities, with a weight tensor that is a sum of few outer products.

    Z = Σ_r w_r ⊙_m (W_m,r [f_m, 1]) + b. The 1 adds products of fewer modalities, and each modality
    alone.

    Attributes:
        factors: By modality, the layer of all W_m,r.
        weight: (r) weights of the terms.
        bias: (c) b.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int, *, rank: int = 4) -> None:
        """Makes the factors.

        Args:
            widths: Width of the features by modality.
            num_classes: Number of classes.
            rank: Rank of the weight tensor; 4 as in the released code.
        """
        super().__init__(widths, num_classes)
        self.rank = rank
        self.factors = nn.ModuleDict(
            {name: nn.Linear(width, rank * num_classes) for name, width in widths.items()}
        )
        self.weight = nn.Parameter(torch.full((rank,), rank**-0.5))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def fused(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n c"]:
        """The logits."""
        product: Tensor | None = None
        for name, value in self.filled(features).items():
            factor = self.factors[name](value).unflatten(1, (self.rank, self.num_classes))
            product = factor if product is None else product * factor
        assert product is not None
        return torch.einsum("nrc,r->nc", product, self.weight) + self.bias
