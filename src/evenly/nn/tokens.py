"""Encoders that return tokens, which transformers fuse before pooling."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from evenly.errors import UserError


class Tokens(NamedTuple):
    """An encoder's output for each step of its input.

    Attributes:
        steps: (n, t, width), the class token first.
        there: (n, t) which of them are not padding.
    """

    steps: Tensor
    there: Tensor


class Tokened(nn.Module):
    """An encoder whose features are one of its tokens, or their mean.

    Attributes:
        out_features: Width of tokens and features.
        asked_pool: How tokens were asked to become features; None by default.
    """

    out_features: int
    asked_pool: str | None = None

    def extra_repr(self) -> str:
        """The settings that `repr` shows."""
        return f"out_features={self.out_features}"

    @abstractmethod
    def tokens(self, x: Any) -> Tokens:
        """All tokens."""


def check_tokens(head: str, encoders: Mapping[str, nn.Module]) -> None:
    """Raises if an encoder returns no tokens, or was asked to pool otherwise than the head does."""
    for name, encoder in encoders.items():
        if not isinstance(encoder, Tokened):
            raise UserError(
                f"'{head}' fuses tokens, but encoder '{name}' ({type(encoder).__name__}) has "
                "none. Use one that has: transformer, vit, ast, bert, wav2vec or auto."
            )
        if encoder.asked_pool not in (None, "cls"):
            raise UserError(
                f"'{head}' takes the first token of each modality, so pool={encoder.asked_pool} of "
                f"encoder '{name}' would have no effect. Leave it out."
            )


def tokens_of(
    names: Iterable[str], encoders: Mapping[str, Any], inputs: Mapping[str, Any]
) -> dict[str, Tokens]:
    """The tokens of each modality in a batch."""
    return {name: encoders[name].tokens(inputs[name]) for name in names if name in inputs}


def heads_of(width: int) -> int:
    """Number of attention heads: four, or as many as divide the width."""
    return next(n for n in (4, 2, 1) if width % n == 0)


def layer_of(width: int) -> nn.TransformerEncoderLayer:
    """A transformer layer in the variant that trains without warm-up."""
    return nn.TransformerEncoderLayer(
        width, heads_of(width), 4 * width, activation="gelu", batch_first=True, norm_first=True
    )
