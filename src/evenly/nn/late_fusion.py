"""The model that balanced multimodal learning is mostly studied on: late fusion."""

from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from evenly.data.dataset import Padded
from evenly.output import Output, split_linear


class LateFusion(nn.Module):
    """One encoder per modality, and one linear layer on their concatenated features.

    Attributes:
        encoders: By modality.
        head: The linear layer; it takes the features in the order of `encoders`.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], num_classes: int) -> None:
        """Puts a head on the encoders.

        Args:
            encoders: By modality; each has `out_features`, the width of the vectors it returns.
            num_classes: How many classes the head tells apart.

        Raises:
            ValueError: If there is no encoder, or one does not say how wide its features are.
        """
        super().__init__()
        if not encoders:
            raise ValueError("LateFusion needs an encoder for each modality; found none.")
        for name, encoder in encoders.items():
            if not isinstance(getattr(encoder, "out_features", None), int):
                raise ValueError(
                    f"encoder '{name}' ({type(encoder).__name__}) has no `out_features`, so the "
                    "head cannot know how wide its features are. Set it to their width: "
                    "encoder.out_features = 512."
                )
        self.encoders = nn.ModuleDict(dict(encoders))
        width = sum(int(getattr(encoder, "out_features")) for encoder in encoders.values())  # noqa: B009
        self.head = nn.Linear(width, num_classes)

    def forward(self, inputs: Mapping[str, Shaped[Tensor, "n ..."] | Padded]) -> Output:
        """Encodes each modality and fuses; the unimodal logits are each one's share."""
        features = {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}
        logits = self.head(torch.cat(list(features.values()), dim=1))
        return Output(logits, features, split_linear(self.head, features))
