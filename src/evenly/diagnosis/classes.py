"""Targets and predictions as class numbers or labels, whatever form a model gives them."""

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
    """What a target means.

    Attributes:
        count: Number of classes.
        criterion: The training's criterion, which may ignore some samples.
        one_logit: Whether one logit tells two classes apart.
    """

    count: int
    criterion: Criterion | None
    one_logit: bool

    @staticmethod
    def told(output: Output, target: Tensor, criterion: Criterion | None) -> "Classes":
        """Recognises the targets of a batch.

        Raises:
            ValueError: If they are not classes or labels.
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
        """What a reader must know about the figures; empty if nothing."""
        return ""

    def deciding(self, train: Callable[[], tuple[Tensor, Tensor]]) -> "Classes":
        """The same, ready for a model's guesses.

        Args:
            train: Returns the model's logits and the targets on the training split.
        """
        return self

    def of(self, target: Tensor) -> Shaped[Tensor, "n *c"]:
        """Class of each sample; an arbitrary number for samples without a label."""
        return target.flatten().long() if self.one_logit else target.long()

    def labelled(self, target: Tensor) -> Bool[Tensor, " n"]:
        """Which samples have a label."""
        if self.one_logit:
            return torch.ones(len(target), dtype=torch.bool, device=target.device)
        return targets.counted(target, self.count, self.criterion)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, also for one logit."""
        if self.one_logit:
            return binary_cross_entropy_with_logits(logits.flatten(), target.flatten().float())
        return cross_entropy(logits, target)

    def loss_alone(self, logits: Tensor, target: Tensor) -> Tensor:
        """The training's loss, for labelled samples and one logit per class."""
        usual = None if self.one_logit else self.criterion
        return (usual or cross_entropy)(logits, self.of(target))

    def guess(self, logits: Tensor) -> Shaped[Tensor, "n *c"]:
        """The predicted class."""
        return (logits[:, 0] > 0).long() if self.one_logit else logits.argmax(1)

    def right(
        self, guess: Shaped[Tensor, "*g"], target: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, "n *c"]:
        """Whether guesses are right; one guess may stand for all samples."""
        return guess.to(target.device) == target

    def values(
        self, right: Shaped[Tensor, "n *c"], target: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, " n"]:
        """Values for all samples of a split whose mean is the accuracy."""
        return right

    def differ(
        self, one: Shaped[Tensor, "n *c"], other: Shaped[Tensor, "n *c"]
    ) -> Bool[Tensor, " n"]:
        """In which samples two guesses or targets differ."""
        return one != other

    def changed(
        self, one: Shaped[Tensor, "n *c"], other: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, " n"]:
        """How far each guess differs in another, from 0 to 1."""
        return self.differ(one, other)

    def commonest(self, target: Shaped[Tensor, "n *c"]) -> Shaped[Tensor, "*c"]:
        """The one guess that is right most often."""
        found: Tensor = target.mode().values
        return found

    def among(self, split: Features) -> Features:
        """The labelled samples of a split, with their classes as targets."""
        here = self.labelled(split.target)
        split = replace(split, target=self.of(split.target))
        return split if bool(here.all()) else split.where(here)


@dataclass(frozen=True)
class Labels(Classes):
    """The same for several labels per sample, 1 or 0 each, with balanced accuracy.

    Attributes:
        above: (c,) The threshold above which a logit predicts its label; see `cut`.
    """

    above: Tensor | None = None

    def deciding(self, train: Callable[[], tuple[Tensor, Tensor]]) -> Classes:
        """The same, with each label's threshold from the training split."""
        logits, target = train()
        return replace(self, above=cut(logits, target.to(logits.device)))

    @property
    def note(self) -> str:
        """What a share refers to."""
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
        """The training's loss."""
        return (self.criterion or self.loss)(logits, target)

    def guess(self, logits: Tensor) -> Shaped[Tensor, "n *c"]:
        """The predicted labels."""
        assert self.above is not None
        return logits > self.above

    def right(
        self, guess: Shaped[Tensor, "*g"], target: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, "n *c"]:
        """Whether each label is right."""
        return guess.to(target.device) == (target > 0)

    def values(
        self, right: Shaped[Tensor, "n *c"], target: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, " n"]:
        """The values of `balanced` accuracy."""
        return balanced(right, target)

    def differ(
        self, one: Shaped[Tensor, "n *c"], other: Shaped[Tensor, "n *c"]
    ) -> Bool[Tensor, " n"]:
        """In which samples any label differs."""
        return (one != other).any(1)

    def changed(
        self, one: Shaped[Tensor, "n *c"], other: Shaped[Tensor, "n *c"]
    ) -> Shaped[Tensor, " n"]:
        """Of the labels that either has, the share that only one has."""
        one, other = one > 0, other > 0
        both = (one & other).double().sum(1)
        return 1 - jaccard(both, one.double().sum(1) + other.double().sum(1))

    def commonest(self, target: Shaped[Tensor, "n *c"]) -> Shaped[Tensor, "*c"]:
        """No label; any guess that is the same for all samples is equally good."""
        return torch.zeros(target.shape[1], dtype=torch.bool, device=target.device)
