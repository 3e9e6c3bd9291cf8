"""Fusion by attention between modalities."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly.nn.heads.ablating import AblatingHead
from evenly.nn.heads.base import Logits


class AttentionHead(AblatingHead):
    """One transformer layer over a token for each modality and a class token, which is read out.

    A missing modality has no token.

    Attributes:
        tokens: By modality, the layer that makes its token.
        place: By modality, the embedding added to it.
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

    def forward(
        self,
        features: Mapping[str, Float[Tensor, "n _"]],
        here: Mapping[str, Bool[Tensor, " n"]] | None = None,
    ) -> Logits:
        """As for any head; a mask keeps attention away from missing modalities, in one pass."""
        if self.missing is not None:  # then everything has a token
            return super().forward(features, here)
        if here is None or not any(name in here for name in features):
            return self.logits(features)
        alone = {name: self._masked({name: value}, here) for name, value in features.items()}
        return self._masked(features, here), alone

    def fused(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n c"]:
        """The logits of the class token."""
        return self._read(features)

    def _masked(
        self,
        features: Mapping[str, Float[Tensor, "n _"]],
        here: Mapping[str, Bool[Tensor, " n"]],
    ) -> Float[Tensor, "n c"]:
        """The same from the modalities that each sample has; zeros for a sample without any."""
        some = self.any_of(features)
        every = torch.ones(some.shape[0], dtype=torch.bool, device=some.device)
        there = {name: here.get(name, every).to(some.device) for name in features}
        kept = {
            name: value.where(there[name].unsqueeze(1), value.new_zeros(()))
            for name, value in features.items()
        }
        lacking = ~torch.stack([every, *there.values()], dim=1)
        logits = self._read(kept, lacking)
        return logits.masked_fill(lacking[:, 1:].all(1, keepdim=True), 0.0)

    def _read(
        self,
        features: Mapping[str, Float[Tensor, "n _"]],
        lacking: Bool[Tensor, "n t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        start = self.start.expand(self.any_of(features).shape[0], -1)
        # Called outside autocast, it gets features of fewer bits than its weights have.
        own = {name: x.to(self.start.dtype) for name, x in features.items()}
        tokens = [self.tokens[name](x) + self.place[name] for name, x in own.items()]
        seen = self.layer(torch.stack([start, *tokens], dim=1), src_key_padding_mask=lacking)
        logits: Tensor = self.linear(seen[:, 0])
        return logits
