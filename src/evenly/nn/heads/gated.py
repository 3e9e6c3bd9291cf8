"""Fusion by gates (Arevalo et al., ICLR workshop 2017)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.ablating import AblatingHead


class GatedHead(AblatingHead):
    """Hidden features of each modality, mixed by gates that see all of them.

    h = Σ_m g_m ⊙ tanh(W_m f_m), where g is the softmax over modalities of U_m [f_1 .. f_M], by
    component; for two modalities these are the paper's g and 1 - g.

    Attributes:
        hidden: By modality, the layers W_m.
        gates: By modality, the layers U_m.
        linear: From h to logits.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers; h is as wide as the widest features."""
        super().__init__(widths, num_classes)
        width, total = max(widths.values()), sum(widths.values())
        self.hidden = nn.ModuleDict({name: nn.Linear(n, width) for name, n in widths.items()})
        self.gates = nn.ModuleDict({name: nn.Linear(total, width) for name in widths})
        self.linear = nn.Linear(width, num_classes)

    def fused(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n c"]:
        """The logits of the mixed features."""
        filled = self.filled(features)
        together = torch.cat(list(filled.values()), dim=1)
        hidden = torch.stack([self.hidden[name](x).tanh() for name, x in filled.items()])
        gate = torch.stack([self.gates[name](together) for name in filled]).softmax(0)
        logits: Tensor = self.linear((gate * hidden).sum(0))
        return logits
