"""Fusion by feature-wise linear modulation (Perez et al., AAAI 2018)."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.ablating import AblatingHead


class FiLMHead(AblatingHead):
    """The last modality's features, scaled and shifted by each of the others.

    x ← γ_m(f_m) ⊙ x + β_m(f_m) for m = 1 .. M - 1, beginning with x = f_M; for two modalities it is
    the FiLM fusion of OGM-GE's released code, in which sound modulates pictures.

    Attributes:
        last: The modulated modality.
        modulations: The layers of γ and β, for each modality but the last.
        linear: From the modulated features to logits.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers."""
        super().__init__(widths, num_classes)
        *others, self.last = widths
        width = widths[self.last]
        self.modulations = nn.ModuleDict(
            {name: nn.Linear(widths[name], 2 * width) for name in others}
        )
        self.linear = nn.Linear(width, num_classes)

    def fused(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n c"]:
        """The logits of the modulated features."""
        filled = self.filled(features)
        x = filled[self.last]
        for name, layer in self.modulations.items():
            gamma, beta = layer(filled[name]).chunk(2, dim=1)
            x = gamma * x + beta
        logits: Tensor = self.linear(x)
        return logits
