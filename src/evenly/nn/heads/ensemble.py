"""The head of an ensemble of unimodal models."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from evenly.nn.heads.base import stacked
from evenly.nn.heads.late import LateHead


class EnsembleHead(LateHead):
    """A linear layer on each modality's features; the prediction is the mean of theirs."""

    def combined(self, unimodal: Mapping[str, Float[Tensor, "n c"]]) -> Float[Tensor, "n c"]:
        """Z = log of the mean of softmax(z_m)."""
        log_probability = stacked(unimodal).float().log_softmax(-1)
        return log_probability.logsumexp(0) - math.log(len(unimodal))
