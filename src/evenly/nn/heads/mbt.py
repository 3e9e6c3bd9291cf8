"""Fusion of transformers through a few shared tokens (MBT, Nagrani et al., NeurIPS 2021)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.late import LateHead
from evenly.nn.heads.meeting import MeetingHead
from evenly.nn.tokens import Tokens, layer_of


class BottleneckHead(MeetingHead, LateHead):
    """Transformer layers for each modality, which meet in bottleneck tokens; late logits.

    In each layer, every modality's tokens attend to themselves and to the bottlenecks z,

        [x_m, z_m] = layer_m [x_m, z],   z = mean of z_m over the available modalities,

    so that modalities exchange information only through z. A modality's features are its class
    token after the last layer; the logits are the mean of a linear layer's on each.

    Attributes:
        layers: For each depth, a layer by modality.
        bottlenecks: (b, width) z before the first layer.
    """

    called = "mbt"

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
            widths: Width of the tokens by modality, the same for all.
            num_classes: Number of classes.
            depth: Layers with fusion; modalities exchange nothing before the second.
            bottlenecks: b; 4 as in the paper.
        """
        super().__init__(widths, num_classes)
        width = self.one_width()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: layer_of(width) for name in widths}) for _ in range(depth)
        )
        self.bottlenecks = nn.Parameter(0.02 * torch.randn(bottlenecks, width))

    def met(self, found: dict[str, Tokens]) -> dict[str, Float[Tensor, "n w"]]:
        """See `MeetingHead`."""
        shared = self.bottlenecks.expand(next(iter(found.values())).steps.shape[0], -1, -1)
        count = shared.shape[1]
        for layers in self.layers:
            assert isinstance(layers, nn.ModuleDict)
            updates = []
            for name, (steps, there) in found.items():
                blank = torch.cat([~there, there.new_zeros(there.shape[0], count)], dim=1)
                both = torch.cat([steps, shared.to(steps.dtype)], dim=1)
                after = layers[name](both, src_key_padding_mask=blank)
                found[name] = Tokens(after[:, :-count], there)
                updates.append(after[:, -count:])
            shared = torch.stack(updates).mean(0)
        return {name: steps[:, 0] for name, (steps, _) in found.items()}
