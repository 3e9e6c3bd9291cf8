"""The head of unimodal models that are trained separately and predict together."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.base import Head, Logits, stacked


class CertaintyHead(Head):
    """A linear layer on each modality's features and one on all, combined by certainty.

    The layer on all features sends no gradient to the encoders. The prediction weighs the logits
    of all layers for each sample by how certain they are: w = softmax over the layers of
    max softmax(z_k) (DI-MML, Fan et al., MM 2024). Another layer, shared by all modalities'
    features, takes no part in the prediction: it gives them a common space.

    Attributes:
        heads: By modality, the layers of the unimodal logits.
        linear: The layer on all features.
        shared: The shared layer.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers.

        Raises:
            ValueError: If the features are not equally wide.
        """
        super().__init__(widths, num_classes)
        self.heads = self.unimodal_heads()
        self.linear = nn.Linear(sum(widths.values()), num_classes)
        self.shared = nn.Linear(self.one_width(), num_classes)

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = Σ_k w_k z_k over the available modalities and the layer on all features."""
        unimodal = {name: self.heads[name](value) for name, value in features.items()}
        logits = torch.stack([*stacked(unimodal), self.joined(features)])
        certainty = logits.detach().float().softmax(-1).amax(-1, keepdim=True)
        return (certainty.softmax(0) * logits).sum(0), unimodal

    def joined(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n c"]:
        """The logits of the layer on all features."""
        detached = {name: value.detach() for name, value in features.items()}
        joined = torch.cat(list(self.filled(detached).values()), dim=1)
        # Called outside autocast, it gets features of fewer bits than its weights have.
        logits: Tensor = self.linear(joined.to(self.linear.weight.dtype))
        return logits

    def aligned(
        self, features: Mapping[str, Float[Tensor, "n _"]]
    ) -> dict[str, Float[Tensor, "n c"]]:
        """The logits of the shared layer, by modality."""
        dtype = self.shared.weight.dtype  # as in `joined`
        return {name: self.shared(value.to(dtype)) for name, value in features.items()}
