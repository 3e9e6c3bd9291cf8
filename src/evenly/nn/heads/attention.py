"""Fusion by attention between modalities."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.ablating import AblatingHead


class AttentionHead(AblatingHead):
    """One transformer layer over a token for each modality and a class token, which is read.

    A modality that is missing has no token.

    Attributes:
        tokens: By modality, the layer that makes its token.
        place: By modality, what is added to it.
        start: The class token.
        layer: The transformer layer.
        linear: From the class token to logits.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers; tokens are as wide as the widest features, in four heads or fewer."""
        super().__init__(widths, num_classes)
        width = max(widths.values())
        heads = next(n for n in (4, 2, 1) if width % n == 0)
        self.tokens = nn.ModuleDict({name: nn.Linear(n, width) for name, n in widths.items()})
        self.place = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(width)) for name in widths}
        )
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.linear = nn.Linear(width, num_classes)

    def fused(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n c"]:
        """The logits of the class token."""
        start = self.start.expand(self.any_of(features).shape[0], -1)
        tokens = [self.tokens[name](x) + self.place[name] for name, x in features.items()]
        seen = self.layer(torch.stack([start, *tokens], dim=1))
        logits: Tensor = self.linear(seen[:, 0])
        return logits
