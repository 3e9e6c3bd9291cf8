"""What a target is: one class of several, or several labels; all that differs by it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from evenly import targets

Name = Literal["classes", "labels"]
BINS = 15
"""Of confidence, for the calibration error."""


@dataclass(frozen=True)
class Task(ABC):
    """What a model is to say of each sample, with a logit for each of its names.

    Attributes:
        names: Of the classes or labels.
        name: Of the task.
        takes: The kind of target that a method must take.
        metrics: What is measured of predictions, beside the modalities' own accuracies.
    """

    names: Sequence[str]
    name: ClassVar[Name]
    takes: ClassVar[targets.Kind]
    metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def right(self, logits: Float[Tensor, "n c"], target: Tensor) -> Bool[Tensor, " n"]:
        """Which samples are predicted rightly, the mean of which is the accuracy."""

    @abstractmethod
    def measured(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """The metrics of the predictions of a split."""

    @abstractmethod
    def details(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """What is worth knowing of the selected model alone, see each task."""

    @abstractmethod
    def probabilities(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Of each class or label."""

    @abstractmethod
    def uninformed(self, target: Tensor) -> Float[Tensor, " c"]:
        """Logits of who knows the targets of the training split and no input."""

    @abstractmethod
    def groups(self, target: Tensor) -> Int[Tensor, " n"]:
        """A number for each sample, of which every part of a split is to have its share."""

    @abstractmethod
    def predicted(self, probabilities: Sequence[float]) -> str:
        """What is said of a sample, in words."""

    @abstractmethod
    def called(self, target: Tensor) -> str:
        """The target of a sample, in words; empty where it has none."""

    def accuracy(self, logits: Float[Tensor, "n c"], target: Tensor) -> float:
        """The share of samples that are predicted rightly."""
        # Of whole numbers, as a 32-bit quotient would differ from seed to seed by its rounding.
        return int(self.right(logits, target).sum()) / len(target)


class Classes(Task):
    """One class for each sample; a target is its number."""

    name = "classes"
    takes = "classes"
    metrics = ("loss", "accuracy", "balanced_accuracy", "macro_f1")

    def right(self, logits: Float[Tensor, "n c"], target: Tensor) -> Bool[Tensor, " n"]:
        """Whether the class of the highest logit is the sample's."""
        found: Tensor = logits.argmax(1) == target
        return found

    def measured(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """Cross-entropy, accuracy, balanced accuracy and macro-F1."""
        guess, count = logits.argmax(1), len(self.names)
        return {
            "loss": float(cross_entropy(logits, target)),
            "accuracy": self.accuracy(logits, target),
            "balanced_accuracy": balanced_accuracy(guess, target, count),
            "macro_f1": macro_f1(guess, target, count),
        }

    def details(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """By class and of all.

        - `recall/CLASS`: the accuracy on the samples of a class.
        - `calibration_error`: how far confidence is from accuracy, on average over `BINS` bins of
          confidence (ECE; Guo et al., ICML 2017), in [0, 1].
        - `brier`: the squared error of the probabilities, summed over classes, in [0, 2].
        """
        probability, guess = logits.softmax(1), logits.argmax(1)
        truth = one_hot(target, len(self.names))
        confidence, surest = probability.double().max(1)
        found = {
            "calibration_error": calibration_error(confidence, surest == target),
            "brier": float((probability - truth).square().sum(1).mean()),
        }
        for number, name in enumerate(self.names):
            members = target == number
            found[f"recall/{name}"] = int((guess[members] == number).sum()) / int(members.sum())
        return found

    def probabilities(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The softmax."""
        return logits.softmax(1)

    def uninformed(self, target: Tensor) -> Float[Tensor, " c"]:
        """The commonest class is certain."""
        return one_hot(target.mode().values, len(self.names)).float()

    def groups(self, target: Tensor) -> Int[Tensor, " n"]:
        """The classes."""
        return target

    def predicted(self, probabilities: Sequence[float]) -> str:
        """The likeliest class."""
        return self.names[max(range(len(self.names)), key=probabilities.__getitem__)]

    def called(self, target: Tensor) -> str:
        """The class."""
        return self.names[int(target)] if target >= 0 else ""


class Labels(Task):
    """Any number of labels for each sample; a target is 0 or 1 for each label."""

    name = "labels"
    takes = "labels"
    metrics = ("loss", "accuracy", "macro_f1", "micro_f1", "mean_average_precision")

    def right(self, logits: Float[Tensor, "n c"], target: Tensor) -> Bool[Tensor, " n"]:
        """Whether all labels of a sample are decided rightly, each at a probability of ½."""
        found: Tensor = ((logits > 0) == (target > 0)).all(1)
        return found

    def measured(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """Binary cross-entropy, accuracy of whole samples, both F1, mean average precision."""
        guess, truth = logits > 0, target > 0
        return {
            "loss": float(binary_cross_entropy_with_logits(logits, target.to(logits))),
            "accuracy": self.accuracy(logits, target),
            "macro_f1": label_f1(guess, truth, "macro"),
            "micro_f1": label_f1(guess, truth, "micro"),
            "mean_average_precision": mean_average_precision(logits, truth),
        }

    def details(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """By label and of all.

        - `recall/LABEL`: the share of the samples with a label of which it is said; of labels that
          occur.
        - `calibration_error`: how far the probability of a label is from how often it is there, on
          average over `BINS` bins, over all labels of all samples, in [0, 1].
        - `brier`: the squared error of the probabilities, the mean over labels, in [0, 1].
        """
        probability, truth = logits.sigmoid(), target > 0
        found = {
            "calibration_error": calibration_error(probability.double().flatten(), truth.flatten()),
            "brier": float((probability - target.to(probability)).square().mean()),
        }
        for number, name in enumerate(self.names):
            members = truth[:, number]
            if members.any():
                said = (logits[members, number] > 0).sum()
                found[f"recall/{name}"] = int(said) / int(members.sum())
        return found

    def probabilities(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The sigmoid."""
        return logits.sigmoid()

    def uninformed(self, target: Tensor) -> Float[Tensor, " c"]:
        """The log-odds of each label."""
        return target.float().mean(0).logit(eps=1e-6)

    def groups(self, target: Tensor) -> Int[Tensor, " n"]:
        """The rarest of a sample's labels; one number more for those without any."""
        count = target.sum(0)
        rank = count.masked_fill(count == 0, len(target) + 1).argsort(stable=True)
        sorted_by = target[:, rank] > 0
        found = rank[sorted_by.int().argmax(1)]
        return found.where(sorted_by.any(1), len(self.names))

    def predicted(self, probabilities: Sequence[float]) -> str:
        """The labels that are as likely as not, or more."""
        pairs = zip(self.names, probabilities, strict=True)
        return ";".join(name for name, probability in pairs if probability > 0.5)

    def called(self, target: Tensor) -> str:
        """The labels."""
        return ";".join(
            name for name, here in zip(self.names, target.tolist(), strict=True) if here > 0
        )


TASKS: dict[Name, type[Task]] = {"classes": Classes, "labels": Labels}


def task_of(target: Tensor, names: Sequence[str]) -> Task:
    """The task of some targets: a class number for each sample, or a row of 0 and 1."""
    return Labels(tuple(names)) if target.ndim == 2 else Classes(tuple(names))


def criterion_of_labels(target: Float[Tensor, "n c"], *, balanced: bool) -> nn.BCEWithLogitsLoss:
    """The loss of several labels; balanced, the samples with a label count as those without it.

    Args:
        target: Of the training split, in which each label is there in some samples.
        balanced: Whether samples with label c count (n - n_c) / n_c times as much for it.
    """
    count = target.sum(0)
    return nn.BCEWithLogitsLoss(pos_weight=(len(target) - count) / count if balanced else None)


def balanced_accuracy(guess: Int[Tensor, " n"], target: Int[Tensor, " n"], classes: int) -> float:
    """The mean accuracy on the samples of a class, of the classes that occur.

    Args:
        guess: Class that each sample is taken for.
        target: Class that it has.
        classes: How many there are.
    """
    right = target[guess == target].bincount(minlength=classes).double()
    count = target.bincount(minlength=classes).double()
    return float((right / count)[count > 0].mean())


def macro_f1(guess: Int[Tensor, " n"], target: Int[Tensor, " n"], classes: int) -> float:
    """The mean of the classes' F1, 2 TP / (2 TP + FP + FN), of those that occur in either.

    Args:
        guess: Class that each sample is taken for.
        target: Class that it has.
        classes: How many there are.
    """
    right = target[guess == target].bincount(minlength=classes).double()
    both = (guess.bincount(minlength=classes) + target.bincount(minlength=classes)).double()
    occurs = both > 0
    return float((2 * right[occurs] / both[occurs]).mean())


def label_f1(
    guess: Bool[Tensor, "n c"], truth: Bool[Tensor, "n c"], average: Literal["macro", "micro"]
) -> float:
    """F1, 2 TP / (2 TP + FP + FN): the mean over labels that occur in either, or of all decisions.

    Where nothing occurs, all is right, and it is 1.
    """
    right = 2 * (guess & truth).sum(0).double()
    both = (guess.sum(0) + truth.sum(0)).double()
    if average == "micro":
        right, both = right.sum(0, True), both.sum(0, True)
    occurs = both > 0
    return float((right[occurs] / both[occurs]).mean()) if occurs.any() else 1.0


def mean_average_precision(score: Float[Tensor, "n c"], truth: Bool[Tensor, "n c"]) -> float:
    """The mean over labels that occur of Σ_t (R_t - R_t-1) P_t, over all thresholds t.

    Precision P and recall R are those of the samples with scores from a threshold on; samples of
    one score share it. It is scikit-learn's `average_precision_score`. NaN where no label occurs.
    """
    found = []
    for own, here in zip(score.T, truth.T, strict=True):
        if not here.any():
            continue
        order = own.argsort(descending=True)
        hits, ranked = here[order].double().cumsum(0), own[order]
        is_last = torch.ones_like(here)  # of the samples of one score
        is_last[:-1] = ranked[:-1] != ranked[1:]
        hits, seen = hits[is_last], (is_last.nonzero().flatten() + 1).double()
        gain = hits.diff(prepend=hits.new_zeros(1)) / hits[-1]
        found.append((gain * hits / seen).sum())
    return float(torch.stack(found).mean()) if found else float("nan")


def calibration_error(confidence: Float[Tensor, " n"], right: Bool[Tensor, " n"]) -> float:
    """Σ_b n_b / n |accuracy_b - confidence_b| over `BINS` equal bins of confidence.

    Guo et al., "On calibration of modern neural networks", ICML 2017,
    https://arxiv.org/abs/1706.04599, equation 3.

    Args:
        confidence: In each decision, from 0 to 1.
        right: Whether it is right.
    """
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)  # each with its upper end
    excess = right.double() - confidence
    by_bin = excess.new_zeros(BINS).index_add_(0, bins, excess)
    return float(by_bin.abs().sum() / len(right))
