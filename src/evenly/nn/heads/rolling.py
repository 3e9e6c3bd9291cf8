"""The head of RollingQ: attention of a class token whose query can be rotated."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evenly.nn.heads.ablating import AblatingHead


class RollingHead(AblatingHead):
    """One attention of a class token to itself and to a token for each modality.

    h = Σ_t softmax_t(q · k_t / √w) v_t, with q = R (W_q c + b_q) for the class token c, and two
    linear layers turn h into logits. Nothing bypasses the attention (no residual), so the
    prediction sees of a modality only what the query lets in. R is a rotation, at first the
    identity, that a method may `turn` (RollingQ, Ni et al., ICML 2025). A missing modality has no
    token.

    Attributes:
        tokens: By modality, the layer that makes its token.
        start: The class token.
        to_query: From the class token to its query.
        to_key: From tokens to keys.
        to_value: From tokens to values.
        out: From what is seen to the class token's new value.
        linear: From that to logits.
        rotation: R: a buffer, so that a checkpoint of the model has it.
    """

    rotation: Float[Tensor, "w w"]

    def __init__(self, widths: Mapping[str, int], num_classes: int) -> None:
        """Makes the layers; tokens are as wide as the widest features."""
        super().__init__(widths, num_classes)
        width = max(widths.values())
        self.tokens = nn.ModuleDict({name: nn.Linear(n, width) for name, n in widths.items()})
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.linear = nn.Linear(width, num_classes)
        self.register_buffer("rotation", torch.eye(width))

    def fused(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n c"]:
        """The logits of what the class token sees."""
        start = self.start.expand(self.any_of(features).shape[0], -1)
        tokens = torch.stack([start, *self._tokens(features).values()], dim=1)
        query = self.query()
        weights = (self.to_key(tokens) @ query * len(query) ** -0.5).softmax(1)
        seen = (weights.unsqueeze(1) @ self.to_value(tokens)).squeeze(1)
        logits: Tensor = self.linear(self.out(seen))
        return logits

    def query(self) -> Float[Tensor, " w"]:
        """The class token's query, rotated: the same for all samples."""
        found: Tensor = self.rotation @ self.to_query(self.start)
        return found

    def keys(self, features: Mapping[str, Float[Tensor, "n _"]]) -> dict[str, Float[Tensor, "n w"]]:
        """The key of each modality."""
        return {name: self.to_key(token) for name, token in self._tokens(features).items()}

    @torch.no_grad()
    def turn(self, rotation: Float[Tensor, "w w"]) -> None:
        """Rotates the current query further."""
        self.rotation.copy_(rotation.double() @ self.rotation.double())

    def _tokens(
        self, features: Mapping[str, Float[Tensor, "n _"]]
    ) -> dict[str, Float[Tensor, "n w"]]:
        # Called outside autocast, it gets features of fewer bits than its weights have.
        return {name: self.tokens[name](x.to(self.start.dtype)) for name, x in features.items()}
