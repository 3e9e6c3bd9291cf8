"""The head of AMCo: a linear layer on the sum of the modalities' own logits."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.base import Head, Logits, stacked


class AMCoHead(Head):
    """A linear layer on each modality's features, and one on the sum of their outputs.

    The fused logits depend on the unimodal ones alone, so a method can mask these and fuse them
    again with `combined` (AMCo, Zhou et al., ICASSP 2023).

    Attributes:
        heads: By modality, the layers of the unimodal logits.
        fusion: The layer of the fused logits.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers."""
        super().__init__(widths, num_classes)
        self.heads = self.unimodal_heads()
        self.fusion = nn.Linear(num_classes, num_classes)

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = U Σ_m z_m + b, with z_m = V_m f_m + b_m; a missing modality adds nothing."""
        unimodal = {name: self.heads[name](value) for name, value in features.items()}
        return self.combined(unimodal), unimodal

    def combined(self, unimodal: Mapping[str, Float[Tensor, "n c"]]) -> Float[Tensor, "n c"]:
        """The fused logits of these unimodal logits."""
        total = stacked(unimodal).sum(0)
        # Called outside autocast, it gets logits of fewer bits than its weights have.
        logits: Tensor = self.fusion(total.to(self.fusion.weight.dtype))
        return logits
