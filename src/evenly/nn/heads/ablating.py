"""What fusions share whose logits are not a sum over modalities."""

from abc import abstractmethod
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from evenly.nn.heads.base import Head, Logits


class AblatingHead(Head):
    """A modality's logits are the fused logits when all others are missing."""

    @abstractmethod
    def fused(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n c"]:
        """The fused logits of the available modalities."""

    def logits(self, features: Mapping[str, Float[Tensor, "n _"]]) -> Logits:
        """Z = F(f_1 .. f_M), and z_m = F(0 .. f_m .. 0)."""
        alone = {name: self.fused({name: value}) for name, value in features.items()}
        return self.fused(features), alone
