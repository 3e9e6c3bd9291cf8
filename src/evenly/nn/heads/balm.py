"""The head of BALM: features calibrated by all modalities, and networks beside it."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.base import Head, Logits


class BALMHead(Head):
    """A linear layer on calibrated features, and a network of two layers on each modality's.

    With x = [f_1 .. f_M], with zeros for missing modalities, features are calibrated by f̂_m =
    (1 + σ(V_m relu(W x + b) + c_m)) ⊙ f_m (BALM, Nguyen et al., CVPR 2026). No gradient flows back
    to the encoders through the factors. None flows back from the networks, which only show how far
    each modality has come. Their hidden layer is as wide as all features together, so that their
    last layer has the shape of the fused one.

    Attributes:
        context: W and b, a quarter as wide as all features together.
        gates: By modality, V_m and c_m.
        linear: The layer of the fused logits.
        hidden: By modality, the first layer of its network.
        heads: By modality, the last layer of its network, which gives the unimodal logits.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers; the fused one first, so that it starts like `ConcatHead`'s."""
        super().__init__(widths, num_classes)
        total = sum(widths.values())
        self.linear = nn.Linear(total, num_classes)
        self.context = nn.Linear(total, max(1, total // 4))
        self.gates = nn.ModuleDict(
            {name: nn.Linear(self.context.out_features, width) for name, width in widths.items()}
        )
        self.hidden = nn.ModuleDict(
            {name: nn.Linear(width, total) for name, width in widths.items()}
        )
        self.heads = nn.ModuleDict({name: nn.Linear(total, num_classes) for name in widths})

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = U [f̂_1 .. f̂_M] + d, and z_m = U_m relu(H_m f̂_m + e_m) + d_m."""
        seen = torch.cat(list(self.filled(features).values()), dim=1).detach()
        context = torch.relu(self.context(seen))
        calibrated = {
            name: (1 + torch.sigmoid(self.gates[name](context))) * value
            for name, value in features.items()
        }
        fused = self.linear(torch.cat(list(self.filled(calibrated).values()), dim=1))
        hidden = {name: self.hidden[name](x.detach()).relu() for name, x in calibrated.items()}
        return fused, {name: self.heads[name](x) for name, x in hidden.items()}

    def last_layers(self) -> tuple[Float[Tensor, "c w"], dict[str, Float[Tensor, "c w"]]]:
        """U, and U_m by modality."""
        own: dict[str, Any] = {name: layer.weight for name, layer in self.heads.items()}
        return self.linear.weight, own
