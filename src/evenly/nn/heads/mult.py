"""Cross-modal transformers (MulT, Tsai et al., ACL 2019)."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly.nn.heads.concat import ConcatHead
from evenly.nn.heads.meeting import MeetingHead
from evenly.nn.tokens import Tokens, heads_of, layer_of


class CrossModalHead(MeetingHead, ConcatHead):
    """Each modality's tokens attend to every other's, then to themselves; one layer on all.

    For modality m and each other o, layers of cross-attention take queries from m and keys and
    values from o. Their outputs for all o are concatenated and go through a layer of
    self-attention. Its class token becomes the modality's features, (M - 1) times as wide as its
    tokens. A linear layer on the concatenated features gives the logits, and its slices those of
    each modality.

    Attributes:
        across: The cross-attention, by modality and other modality, 'm<o'.
        within: The layer of self-attention, by modality.
    """

    called = "mult"

    def __init__(self, widths: Mapping[str, int], num_classes: int, *, depth: int = 2) -> None:
        """Makes the layers.

        Args:
            widths: Width of the tokens by modality, the same for all.
            num_classes: Number of classes.
            depth: Layers of cross-attention.
        """
        others = max(len(widths) - 1, 1)
        super().__init__({name: others * width for name, width in widths.items()}, num_classes)
        width = self.one_width() // others
        self.across = nn.ModuleDict(
            {
                f"{name}<{other}": nn.ModuleList(_Cross(width) for _ in range(depth))
                for name in widths
                for other in widths
                if other != name
            }
        )
        self.within = nn.ModuleDict({name: layer_of(others * width) for name in widths})

    def met(self, found: dict[str, Tokens]) -> dict[str, Float[Tensor, "n w"]]:
        """See `MeetingHead`."""
        return {name: self._one(name, found) for name in found}

    def _one(self, name: str, found: Mapping[str, Tokens]) -> Float[Tensor, "n w"]:
        own = found[name]
        parts = []
        for other in self.widths:
            if other in found and other != name:
                steps = own.steps
                layers = self.across[f"{name}<{other}"]
                assert isinstance(layers, nn.ModuleList)
                for layer in layers:
                    steps = layer(steps, *found[other])
                parts.append(steps)
            elif other != name:
                parts.append(own.steps)
        together = torch.cat(parts or [own.steps], dim=2)
        blank = ~own.there
        blank[:, 0] = False  # else nothing would be left of a text without tokens
        after: Tensor = self.within[name](together, src_key_padding_mask=blank)
        return after[:, 0]


class _Cross(nn.Module):
    """Attention from one modality's tokens to another's, and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm_other = nn.LayerNorm(width), nn.LayerNorm(width)
        # An extra zero to attend to serves texts without tokens.
        self.attention = nn.MultiheadAttention(
            width, heads_of(width), batch_first=True, add_zero_attn=True
        )
        self.rest = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        own: Float[Tensor, "n t w"],
        other: Float[Tensor, "n u w"],
        there: Bool[Tensor, "n u"],
    ) -> Float[Tensor, "n t w"]:
        keys = self.norm_other(other)
        found, _ = self.attention(
            self.norm(own), keys, keys, key_padding_mask=~there, need_weights=False
        )
        steps: Tensor = own + found
        change: Tensor = self.rest(steps)
        return steps + change
