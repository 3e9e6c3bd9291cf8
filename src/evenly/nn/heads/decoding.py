"""The head of multi-loss training with a decoder from prediction to features."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.multi import MultiHead


class DecodingHead(MultiHead):
    """A linear layer on the concatenated features, one on each modality's, and a decoder.

    The decoder makes features from logits. It takes no part in the prediction; a method trains it
    (MCR, Kontras et al., NeurIPS 2025).

    Attributes:
        linear: The layer of the fused logits.
        heads: By modality, the layers of the unimodal logits.
        decoder: Two linear layers without a bias, with a ReLU between them.
    """

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers; the fused one first, so that it starts like `ConcatHead`'s."""
        super().__init__(widths, num_classes)
        hidden = max(widths.values())
        self.decoder = nn.Sequential(
            nn.Linear(num_classes, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, sum(widths.values()), bias=False),
        )

    def decode(self, logits: Float[Tensor, "n c"]) -> dict[str, Float[Tensor, "n _"]]:
        """The features of each modality, decoded from the logits."""
        # Called outside autocast, it gets logits of fewer bits than its weights have.
        logits = logits.to(next(self.decoder.parameters()).dtype)
        parts = self.decoder(logits).split(list(self.widths.values()), dim=1)
        return dict(zip(self.widths, parts, strict=True))
