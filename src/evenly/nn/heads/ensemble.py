"""The head of an ensemble of unimodal models."""

import math
from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from evenly.modulation import full
from evenly.nn.heads.base import stacked
from evenly.nn.heads.late import LateHead
from evenly.ranges import check_choice


class EnsembleHead(LateHead):
    """A linear layer on each modality's features; the prediction is the mean of theirs.

    Attributes:
        task: What the logits stand for: `classes`, several `labels` (or one logit for two classes),
            or a `number` in each column.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        num_classes: int,
        task: Literal["classes", "labels", "number"] = "classes",
    ) -> None:
        """Makes the layers.

        Args:
            widths: Width of the features by modality.
            num_classes: Number of classes, labels or columns of numbers.
            task: What the logits stand for.

        Raises:
            ValueError: If there is no such task.
        """
        super().__init__(widths, num_classes)
        check_choice(self, ("classes", "labels", "number"), task=task)
        self.task = task

    def combined(self, unimodal: Mapping[str, Float[Tensor, "n c"]]) -> Float[Tensor, "n c"]:
        """Z, from the modalities' z_m.

        For classes, it is the log of the mean of softmax(z_m); for labels, the log-odds of the mean
        of sigmoid(z_m); for numbers, the mean of z_m.
        """
        logits = stacked(unimodal)
        if self.task == "number":
            return logits.mean(0)
        if self.task == "labels":
            has, lacks = (logsigmoid(x).logsumexp(0) for x in (full(logits), -full(logits)))
            return has - lacks
        log_probability = logits.float().log_softmax(-1)
        return log_probability.logsumexp(0) - math.log(len(unimodal))
