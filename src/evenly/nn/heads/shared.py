"""One head for all modalities, fused by certainty."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.base import Head, Logits, stacked


class SharedHead(Head):
    """One linear layer that all modalities' features share.

    The fused logits are the modalities' own, weighted for each sample by how certain they are: w =
    softmax over modalities of -H_m, with H_m the entropy of softmax(z_m) (MLA, Zhang et al., CVPR
    2024).

    Attributes:
        linear: The layer.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layer.

        Raises:
            ValueError: If the features are not equally wide.
        """
        super().__init__(widths, num_classes)
        self.linear = nn.Linear(self.one_width(), num_classes)

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = Σ_m w_m z_m, with z_m = W f_m + b."""
        unimodal = {name: self.linear(value) for name, value in features.items()}
        logits = stacked(unimodal)
        log_probability = logits.detach().float().log_softmax(-1)
        entropy = -(log_probability.exp() * log_probability).sum(-1, keepdim=True)
        weight = (-entropy).softmax(0)
        return (weight * logits).sum(0), unimodal
