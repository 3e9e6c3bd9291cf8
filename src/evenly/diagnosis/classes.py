"""Targets and predictions as class numbers or labels, in whatever form a model has them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from evenly import targets
from evenly.diagnosis.linear_probe import balanced, cut
from evenly.diagnosis.purity import are_labels, jaccard
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
            ValueError: If they are no classes or labels.
        """
        found = targets.kinds(output.logits, target, criterion)
        width = output.logits.shape[1]
        if "labels" in found and are_labels(target):
            return Labels(width, criterion, False)
        if not {"classes", "ignored", "logit"} & set(found):
            takes: tuple[targets.Kind, ...] = ("classes", "ignored", "labels", "logit")
            raise UserError(
                targets.refusal("checkup", takes, found, output.logits, target).partition(
                    " Joint training"
                )[0]
            )
        return Classes(max(width, 2), criterion, width == 1)

    @property
    def note(self) -> str:
        """What a reader must know of the figures; empty where there is nothing."""
        return ""

    def deciding(self, train: Callable[[], tuple[Tensor, Tensor]]) -> "Classes":
        """The same, for guesses of a model.

        Args:
            train: Gives its logits and the targets of the training split.
        """
        return self

    def of(self, target: Tensor) -> Shaped[Tensor, "n *c"]:
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

    def guess(self, logits: Tensor) -> Shaped[Tensor, "n *c"]:
        """The class that logits name."""
        return (logits[:, 0] > 0).long() if self.one_logit else logits.argmax(1)

    def right(
        self, guess: Shaped[Tensor, "*g"], target: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, "n *c"]:
        """Whether guesses, or one for all samples, are right."""
        return guess.to(target.device) == target

    def values(
        self, right: Shaped[Tensor, "n *c"], target: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, " n"]:
        """Of all samples of a split, values whose mean is the accuracy."""
        return right

    def differ(
        self, one: Shaped[Tensor, "n *c"], other: Shaped[Tensor, "n *c"]
    ) -> Bool[Tensor, " n"]:
        """Of which samples two guesses or targets are not the same."""
        return one != other

    def changed(
        self, one: Shaped[Tensor, "n *c"], other: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, " n"]:
        """How much of each guess another one changes, from 0 to 1."""
        return self.differ(one, other)

    def commonest(self, target: Shaped[Tensor, "n *c"]) -> Shaped[Tensor, "*c"]:
        """The one guess that is right most often."""
        found: Tensor = target.mode().values
        return found

    def among(self, split: Features) -> Features:
        """The samples of a split that have a label, with their classes for targets."""
        here = self.labelled(split.target)
        split = replace(split, target=self.of(split.target))
        return split if bool(here.all()) else split.where(here)


@dataclass(frozen=True)
class Labels(Classes):
    """The same of several labels a sample, 1 or 0 each, of which accuracy is balanced.

    Attributes:
        above: (c,) What logits are above where a label is said to be there, see `cut`.
    """

    above: Tensor | None = None

    def deciding(self, train: Callable[[], tuple[Tensor, Tensor]]) -> Classes:
        """With each label cut where the training split tells."""
        logits, target = train()
        return replace(self, above=cut(logits, target.to(logits.device)))

    @property
    def note(self) -> str:
        """What a share is of."""
        return (
            "Samples have several labels: accuracy is balanced, and the mean over labels, so that "
            "0.5 is chance. Each label is decided halfway between the logits of training samples "
            "with it and without, as rare ones would hardly ever be said at a probability of ½."
        )

    def of(self, target: Tensor) -> Shaped[Tensor, "n *c"]:
        """The labels."""
        return target

    def labelled(self, target: Tensor) -> Bool[Tensor, " n"]:
        """All samples."""
        return torch.ones(len(target), dtype=torch.bool, device=target.device)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return binary_cross_entropy_with_logits(logits, target.to(logits))

    def loss_alone(self, logits: Tensor, target: Tensor) -> Tensor:
        """That of the training."""
        return (self.criterion or self.loss)(logits, target)

    def guess(self, logits: Tensor) -> Shaped[Tensor, "n *c"]:
        """The labels that are said."""
        assert self.above is not None
        return logits > self.above

    def right(
        self, guess: Shaped[Tensor, "*g"], target: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, "n *c"]:
        """Whether each label is."""
        return guess.to(target.device) == (target > 0)

    def values(
        self, right: Shaped[Tensor, "n *c"], target: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, " n"]:
        """Those of `balanced` accuracy."""
        return balanced(right, target)

    def differ(
        self, one: Shaped[Tensor, "n *c"], other: Shaped[Tensor, "n *c"]
    ) -> Bool[Tensor, " n"]:
        """Of which samples any label is not the same."""
        return (one != other).any(1)

    def changed(
        self, one: Shaped[Tensor, "n *c"], other: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, " n"]:
        """The share of labels that the two have not in common, of those that either has."""
        one, other = one > 0, other > 0
        both = (one & other).double().sum(1)
        return 1 - jaccard(both, one.double().sum(1) + other.double().sum(1))

    def commonest(self, target: Shaped[Tensor, "n *c"]) -> Shaped[Tensor, "*c"]:
        """None of them; all guesses that are the same for all samples are equally good."""
        return torch.zeros(target.shape[1], dtype=torch.bool, device=target.device)
