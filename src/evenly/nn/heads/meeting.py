"""What heads share in which transformers meet before their features are taken."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from evenly.nn.heads.base import Head
from evenly.nn.presence import by_presence
from evenly.nn.tokens import Tokens, check_tokens, tokens_of


class MeetingHead(Head):
    """A head for encoders that return tokens; a modality's features are its class token.

    Attributes:
        called: The head's name in `HEADS`.
    """

    called: ClassVar[str]
    meets = True

    @classmethod
    def on(
        cls, encoders: Mapping[str, nn.Module], widths: Mapping[str, int], num_classes: int
    ) -> "Head":
        """The head for encoders that return tokens."""
        check_tokens(cls.called, encoders)
        return cls(widths, num_classes)

    def encoded(
        self,
        encoders: Mapping[str, Callable[[Any], Tensor]],
        inputs: Mapping[str, Any],
        here: Mapping[str, Bool[Tensor, " n"]],
    ) -> dict[str, Float[Tensor, "n _"]]:
        """The class token of each modality in the batch, after the last layer."""
        found = tokens_of(self.widths, encoders, inputs)
        widths = {name: self.widths[name] for name in found}
        return by_presence(self.met, found, here, widths) if found else {}

    @abstractmethod
    def met(self, found: dict[str, Tokens]) -> dict[str, Float[Tensor, "n w"]]:
        """The class token of each modality after the meeting; all samples have all of these."""
