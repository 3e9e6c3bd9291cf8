"""The head of late fusion by averaging logits."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from evenly.nn.heads.base import Head, Logits, stacked


class LateHead(Head):
    """A linear layer on each modality's features; the fused logits are the mean of theirs.

    Attributes:
        heads: By modality, the layers.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers."""
        super().__init__(widths, num_classes)
        self.heads = self.unimodal_heads()

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = mean of z_m over the available modalities."""
        unimodal = {name: self.heads[name](features[name]) for name in features}
        return self.combined(unimodal), unimodal

    def combined(self, unimodal: Mapping[str, Float[Tensor, "n c"]]) -> Float[Tensor, "n c"]:
        """The fused logits."""
        return stacked(unimodal).mean(0)
