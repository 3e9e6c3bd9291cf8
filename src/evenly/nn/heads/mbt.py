"""Fusion of transformers through a few shared tokens (MBT, Nagrani et al., NeurIPS 2021)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly.nn.heads.late import LateHead
from evenly.nn.presence import by_presence
from evenly.nn.tokens import Tokens, check_tokens, layer_of, tokens_of


class BottleneckHead(LateHead):
    """Transformer layers for each modality, which meet in bottleneck tokens; late logits.

    In each layer every modality's tokens attend to themselves and to the bottlenecks z,

        [x_m, z_m] = layer_m [x_m, z],   z = mean of z_m over the modalities that are there,

    so that what passes between modalities passes through z. A modality's features are its class
    token after the last layer; the logits are the mean of a linear layer's on each.

    Attributes:
        layers: For each depth, a layer by modality.
        bottlenecks: (b, width) z before the first layer.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        num_classes: int,
        *,
        depth: int = 2,
        bottlenecks: int = 4,
    ) -> None:
        """Makes the layers.

        Args:
            widths: By modality, the width of its tokens: one for all.
            num_classes: How many classes to tell apart.
            depth: Layers with fusion; between modalities nothing passes before the second.
            bottlenecks: b; 4 as in the paper.
        """
        super().__init__(widths, num_classes)
        width = self.one_width()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: layer_of(width) for name in widths}) for _ in range(depth)
        )
        self.bottlenecks = nn.Parameter(0.02 * torch.randn(bottlenecks, width))

    @classmethod
    def on(
        cls, encoders: Mapping[str, nn.Module], widths: Mapping[str, int], num_classes: int
    ) -> "BottleneckHead":
        """The head for encoders that give tokens."""
        check_tokens("mbt", encoders)
        return cls(widths, num_classes)

    def encoded(
        self,
        encoders: Mapping[str, Callable[[Any], Tensor]],
        inputs: Mapping[str, Any],
        here: Mapping[str, Bool[Tensor, " n"]],
    ) -> dict[str, Float[Tensor, "n _"]]:
        """The class token of each modality that the batch holds, after the last layer."""
        found = tokens_of(self.widths, encoders, inputs)
        widths = {name: self.widths[name] for name in found}
        return by_presence(self._met, found, here, widths) if found else {}

    def _met(self, found: dict[str, Tokens]) -> dict[str, Float[Tensor, "n w"]]:
        shared = self.bottlenecks.expand(len(next(iter(found.values())).steps), -1, -1)
        count = shared.shape[1]
        for layers in self.layers:
            assert isinstance(layers, nn.ModuleDict)
            updates = []
            for name, (steps, there) in found.items():
                blank = torch.cat([~there, there.new_zeros(len(there), count)], dim=1)
                both = torch.cat([steps, shared.to(steps.dtype)], dim=1)
                after = layers[name](both, src_key_padding_mask=blank)
                found[name] = Tokens(after[:, :-count], there)
                updates.append(after[:, -count:])
            shared = torch.stack(updates).mean(0)
        return {name: steps[:, 0] for name, (steps, _) in found.items()}
