"""The head of boosting over modalities: one network for all, and a learnt rate."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.base import Head, Logits, stacked


class BoostedHead(Head):
    """A network of two layers that every modality's features go through in turn.

    The fused logits are a learnt rate times the sum of the modalities' own (ReconBoost, Hua et
    al., ICML 2024). The hidden layer is half as wide as the features; in the paper, 256 for 512.

    Attributes:
        network: The two layers.
        boost_rate: The rate, 1 at the start; a vector of one number, since FSDP2 cannot shard
            scalars.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers.

        Raises:
            ValueError: If the features are not equally wide.
        """
        super().__init__(widths, num_classes)
        width = self.one_width()
        hidden = max(1, width // 2)
        self.network = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )
        self.boost_rate = nn.Parameter(torch.ones(1))

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = rate · Σ_m z_m, with z_m = g(f_m), over the available modalities."""
        unimodal = {name: self.network(value) for name, value in features.items()}
        return self.boost_rate * stacked(unimodal).sum(0), unimodal
