"""Targets and predictions as class numbers, in whatever form a model has them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from evenly import targets
from evenly.errors import UserError
from evenly.features import Features
from evenly.method import Criterion
from evenly.output import Output


@dataclass(frozen=True)
class Classes:
    """What a target says.

    Attributes:
        count: Of the classes.
        criterion: Of the training, which may ignore some samples.
        one_logit: Whether one logit tells two classes apart.
    """

    count: int
    criterion: Criterion | None
    one_logit: bool

    @staticmethod
    def told(output: Output, target: Tensor, criterion: Criterion | None) -> "Classes":
        """What the targets of a batch are.

        Raises:
            ValueError: If they are no classes.
        """
        found = targets.kinds(output.logits, target, criterion)
        if not {"classes", "ignored", "logit"} & set(found):
            raise UserError(
                targets.refusal(
                    "checkup", ("classes", "ignored", "logit"), found, output.logits, target
                ).partition(" Joint training")[0]
            )
        width = output.logits.shape[1]
        return Classes(max(width, 2), criterion, width == 1)

    def of(self, target: Tensor) -> Int[Tensor, " n"]:
        """Class of each sample; of one without a label, some number."""
        return target.flatten().long() if self.one_logit else target.long()

    def labelled(self, target: Tensor) -> Bool[Tensor, " n"]:
        """Which samples have a label."""
        if self.one_logit:
            return torch.ones(len(target), dtype=torch.bool, device=target.device)
        return targets.counted(target, self.count, self.criterion)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, also of one logit."""
        if self.one_logit:
            return binary_cross_entropy_with_logits(logits.flatten(), target.flatten().float())
        return cross_entropy(logits, target)

    def loss_alone(self, logits: Tensor, target: Tensor) -> Tensor:
        """That of the training, of logits for each class and labelled samples."""
        usual = None if self.one_logit else self.criterion
        return (usual or cross_entropy)(logits, self.of(target))

    def guess(self, logits: Tensor) -> Int[Tensor, " n"]:
        """The class that logits name."""
        return (logits[:, 0] > 0).long() if self.one_logit else logits.argmax(1)

    def among(self, split: Features) -> Features:
        """The samples of a split that have a label, with their classes for targets."""
        here = self.labelled(split.target)
        split = replace(split, target=self.of(split.target))
        return split if bool(here.all()) else split.where(here)
