"""What a target is: one of several classes, several labels, or numbers; and what depends on it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    one_hot,
)

from evenly import targets
from evenly.data.numbers import shown
from evenly.modulation import full
from evenly.spec import converted

Name = Literal["classes", "labels", "number"]
Asked = Literal["auto", "classes", "labels", "number"]
Scale = Literal["", "sentiment"]
BINS = 15
"""Bins of confidence, for the calibration error."""
UNLIKE = 3
"""Ratio of two deviations from which on a note calls a mean over both uneven."""
GROUPS = 10
"""Groups of numbers, with equally many samples each."""


@dataclass(frozen=True)
class Task(ABC):
    """What a model predicts for each sample, with a logit for each of its names.

    Attributes:
        names: Names of the classes or labels, or of the columns of numbers.
        name: Name of the task.
        takes: The kind of target that a method must accept.
        main: The metric that ranks methods and, by default, selects epochs.
        said: What a model predicts for a sample, `probabilities` or `numbers`.
    """

    names: Sequence[str]
    name: ClassVar[Name]
    takes: ClassVar[targets.Kind]
    main: ClassVar[str]
    said: ClassVar[str] = "probabilities"

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The metrics of predictions, besides each modality's own main metric."""

    @abstractmethod
    def scores(self, logits: Float[Tensor, "n c"], target: Tensor) -> Shaped[Tensor, " n"]:
        """The value of each sample whose mean is the main metric."""

    @abstractmethod
    def measured(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """The metrics of the predictions of a split."""

    @abstractmethod
    def details(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """Further metrics, only for the selected model; see each task."""

    @abstractmethod
    def answers(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The probability of each class or label, or the numbers."""

    @abstractmethod
    def uninformed(self, target: Tensor) -> Float[Tensor, " c"]:
        """The logits without any input: how common each target is in the training split."""

    @abstractmethod
    def groups(self, target: Tensor) -> Int[Tensor, " n"]:
        """The group of each sample, of which every part of a split should have its share."""

    @abstractmethod
    def predicted(self, answers: Sequence[float]) -> str:
        """The prediction for a sample, in words."""

    @abstractmethod
    def called(self, target: Tensor) -> str:
        """The target of a sample, in words; empty if it has none."""

    def mean_score(self, logits: Float[Tensor, "n c"], target: Tensor) -> float:
        """The main metric."""
        # In 64 bits, since rounding would make a 32-bit quotient vary from seed to seed.
        return float(self.scores(logits, target).double().sum()) / len(target)

    def fitted(self, target: Tensor) -> "Task":
        """The task, fitted to the targets of its training split."""
        return self

    def encoded(self, target: Tensor) -> Tensor:
        """The targets of a batch in the form that a criterion compares with logits."""
        return target

    def stated(self) -> dict[str, Any]:
        """A form in plain words and numbers, from which `restated` recreates it."""
        return {"name": self.name, "names": list(self.names)}


class Classes(Task):
    """One class for each sample; a target is its number."""

    name = "classes"
    takes = "classes"
    main = "accuracy"
    metrics = ("loss", "accuracy", "balanced_accuracy", "macro_f1")

    def scores(self, logits: Float[Tensor, "n c"], target: Tensor) -> Bool[Tensor, " n"]:
        """Whether the highest logit is that of the sample's class."""
        found: Tensor = logits.argmax(1) == target
        return found

    def measured(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """Cross-entropy, accuracy, balanced accuracy and macro-F1."""
        guess, count = logits.argmax(1), len(self.names)
        return {
            "loss": float(cross_entropy(logits, target)),
            "accuracy": self.mean_score(logits, target),
            "balanced_accuracy": balanced_accuracy(guess, target, count),
            "macro_f1": macro_f1(guess, target, count),
        }

    def details(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """Metrics by class and overall.

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

    def answers(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The softmax."""
        return logits.softmax(1)

    def uninformed(self, target: Tensor) -> Float[Tensor, " c"]:
        """The log of each class's share; the first of the commonest classes is predicted."""
        share = target.bincount(minlength=len(self.names)).float() / len(target)
        return share.clamp_min(1e-6).log()

    def groups(self, target: Tensor) -> Int[Tensor, " n"]:
        """The classes."""
        return target

    def predicted(self, answers: Sequence[float]) -> str:
        """The likeliest class."""
        return self.names[max(range(len(self.names)), key=answers.__getitem__)]

    def called(self, target: Tensor) -> str:
        """The class."""
        return self.names[int(target)] if target >= 0 else ""


class Labels(Task):
    """Any number of labels for each sample; a target is 0 or 1 for each label."""

    name = "labels"
    takes = "labels"
    main = "accuracy"
    metrics = ("loss", "accuracy", "macro_f1", "micro_f1", "mean_average_precision")

    def scores(self, logits: Float[Tensor, "n c"], target: Tensor) -> Bool[Tensor, " n"]:
        """Whether all labels of a sample are decided correctly, each at a probability of ½."""
        found: Tensor = ((logits > 0) == (target > 0)).all(1)
        return found

    def measured(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """Binary cross-entropy, accuracy of whole samples, both F1, mean average precision."""
        guess, truth = logits > 0, target > 0
        return {
            "loss": float(binary_cross_entropy_with_logits(logits, target.to(logits))),
            "accuracy": self.mean_score(logits, target),
            "macro_f1": label_f1(guess, truth, "macro"),
            "micro_f1": label_f1(guess, truth, "micro"),
            "mean_average_precision": mean_average_precision(logits, truth),
        }

    def details(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """Metrics by label and overall.

        - `recall/LABEL`: the share of the samples with a label for which it is predicted; for
          labels that occur.
        - `calibration_error`: how far the probability of a label is from its frequency, on average
          over `BINS` bins, over all labels of all samples, in [0, 1].
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

    def answers(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The sigmoid."""
        return logits.sigmoid()

    def uninformed(self, target: Tensor) -> Float[Tensor, " c"]:
        """The log-odds of each label."""
        return target.float().mean(0).logit(eps=1e-6)

    def groups(self, target: Tensor) -> Int[Tensor, " n"]:
        """The rarest of a sample's labels; an extra number for samples without any."""
        count = target.sum(0)
        rank = count.masked_fill(count == 0, len(target) + 1).argsort(stable=True)
        sorted_by = target[:, rank] > 0
        found = rank[sorted_by.int().argmax(1)]
        return found.where(sorted_by.any(1), len(self.names))

    def predicted(self, answers: Sequence[float]) -> str:
        """The labels with a probability of at least ½."""
        pairs = zip(self.names, answers, strict=True)
        return ";".join(name for name, probability in pairs if probability > 0.5)

    def called(self, target: Tensor) -> str:
        """The labels."""
        return ";".join(
            name for name, here in zip(self.names, target.tolist(), strict=True) if here > 0
        )


@dataclass(frozen=True)
class Numbers(Task):
    """One or several numbers for each sample, in any unit; a target is (n, c) floats.

    Logits are in standard deviations of the training split, from its mean.

    Attributes:
        mean: Mean of each column over the training split.
        std: Standard deviation likewise; 1 without a training split.
        scale: `sentiment` for one column from -3 to 3, also measured as classes.
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    scale: Scale = ""
    name = "number"
    takes = "number"
    main = "mae"
    said = "numbers"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of numbers, and of sentiment."""
        own = ("acc_2", "acc_2_nonzero", "acc_5", "acc_7", "f1", "f1_nonzero")
        return ("loss", "mae", "rmse", "pearson", "concordance", *(own if self.scale else ()))

    def scores(self, logits: Float[Tensor, "n c"], target: Tensor) -> Float[Tensor, " n"]:
        """The absolute error, averaged over columns, in the data's units."""
        return (self.answers(logits) - target).abs().mean(1)

    def measured(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """Errors, correlations, and the metrics of sentiment; means over columns.

        - `loss`: the mean absolute error in standard deviations of the training split.
        - `mae`, `rmse`: mean absolute and root mean squared error, in the data's units.
        - `pearson`: ρ, the correlation of predictions and targets; NaN if either is constant.
        - `concordance`: Lin's 2 cov / (var + var + (difference of means)²), which is 1 only if
          predictions are right, not just proportional; NaN if the targets are constant.
        """
        answers = self.answers(logits)
        found = {
            "loss": float(l1_loss(logits, self.encoded(target))),
            "mae": self.mean_score(logits, target),
            "rmse": float((answers - target).double().square().mean(0).sqrt().mean()),
            "pearson": pearson(answers, target),
            "concordance": concordance(answers, target),
        }
        return found | (sentiment(answers[:, 0], target[:, 0]) if self.scale else {})

    def details(self, logits: Float[Tensor, "n c"], target: Tensor) -> dict[str, float]:
        """`error/COLUMN`: the mean absolute error of each column, if there are several."""
        error = (self.answers(logits) - target).abs().double().mean(0).tolist()
        pairs = zip(self.names, error, strict=True)
        return {f"error/{name}": value for name, value in pairs} if len(error) > 1 else {}

    def answers(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The numbers, in the data's units."""
        logits = full(logits)  # half precision cannot tell 300.5 from 300
        return logits * logits.new_tensor(self.std) + logits.new_tensor(self.mean)

    def encoded(self, target: Tensor) -> Tensor:
        """The standardised numbers."""
        return (target - target.new_tensor(self.mean)) / target.new_tensor(self.std)

    def fitted(self, target: Tensor) -> "Numbers":
        """The task with mean and deviation of the targets; unchanged without targets."""
        if not len(target):
            return self
        mean, std = target.double().mean(0), target.double().std(0, correction=0)
        return replace(self, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def remark(self) -> str:
        """What a user should know about means over columns of unlike size; otherwise empty.

        Columns are unlike if the deviation of one over the training split is `UNLIKE` times that of
        another.
        """
        pairs = sorted(zip(self.std, self.names, strict=True))
        (least, small), (most, large) = pairs[0], pairs[-1]
        if most < UNLIKE * least:
            return ""
        return (
            f"MAE and RMSE are means over columns in their own units: '{large}' (deviation "
            f"{most:.3g}) counts for more than '{small}' ({least:.3g}). --select loss counts all "
            "alike, and results.csv has the error of each."
        )

    def stated(self) -> dict[str, Any]:
        """The plain form, with mean, deviation and scale."""
        own = {"mean": list(self.mean), "std": list(self.std), "scale": self.scale}
        return {**super().stated(), **own}

    def uninformed(self, target: Tensor) -> Float[Tensor, " c"]:
        """The median, which has the least absolute error."""
        return self.encoded(target.median(0).values)

    def groups(self, target: Tensor) -> Int[Tensor, " n"]:
        """The tenth of the samples that a number is in; for several, by standardised mean."""
        place = self.encoded(target).mean(1).double()
        edges = torch.linspace(0, 1, GROUPS + 1, dtype=place.dtype, device=place.device)[1:-1]
        return torch.bucketize(place, place.quantile(edges).unique())

    def predicted(self, answers: Sequence[float]) -> str:
        """The numbers."""
        return ";".join(map(shown, answers))

    def called(self, target: Tensor) -> str:
        """The numbers."""
        return "" if target.isnan().any() else self.predicted(target.tolist())


def task_of(target: Tensor, names: Sequence[str]) -> Task:
    """The task of some targets: a class number for each sample, or a row of 0 and 1."""
    return Labels(tuple(names)) if target.ndim == 2 else Classes(tuple(names))


def restated(known: object) -> Task:
    """The task from the result of `Task.stated`.

    Raises:
        ValueError: If it is something else.
        KeyError: If something is missing.
    """
    if not isinstance(known, Mapping):
        raise ValueError(f"its task is {known!r}")
    name, names = converted("name", known["name"], Name), known["names"]
    names = tuple(converted("names", names, list[str]))
    if name != "number":
        return Labels(names) if name == "labels" else Classes(names)
    mean, std = (tuple(converted(key, known[key], list[float])) for key in ("mean", "std"))
    if not len(mean) == len(std) == len(names):
        raise ValueError(f"mean and std are of {len(mean)} and {len(std)} of {len(names)} columns")
    return Numbers(names, mean, std, converted("scale", known["scale"], Scale))


def criterion_of_labels(target: Float[Tensor, "n c"], *, balanced: bool) -> nn.BCEWithLogitsLoss:
    """The loss for several labels; if balanced, having a label counts as much as not having it.

    Args:
        target: Target of the training split, in which some samples have each label.
        balanced: Whether samples with label c count (n - n_c) / n_c times as much for it.
    """
    count = target.sum(0)
    return nn.BCEWithLogitsLoss(pos_weight=(len(target) - count) / count if balanced else None)


def balanced_accuracy(guess: Int[Tensor, " n"], target: Int[Tensor, " n"], classes: int) -> float:
    """The accuracy on the samples of each class, averaged over the classes that occur.

    Args:
        guess: Predicted class of each sample.
        target: Its true class.
        classes: Number of classes.
    """
    right = target[guess == target].bincount(minlength=classes).double()
    count = target.bincount(minlength=classes).double()
    return float((right / count)[count > 0].mean())


def macro_f1(guess: Int[Tensor, " n"], target: Int[Tensor, " n"], classes: int) -> float:
    """The mean F1, 2 TP / (2 TP + FP + FN), over the classes that occur in either.

    Args:
        guess: Predicted class of each sample.
        target: Its true class.
        classes: Number of classes.
    """
    right = target[guess == target].bincount(minlength=classes).double()
    both = (guess.bincount(minlength=classes) + target.bincount(minlength=classes)).double()
    occurs = both > 0
    return float((2 * right[occurs] / both[occurs]).mean())


def label_f1(
    guess: Bool[Tensor, "n c"], truth: Bool[Tensor, "n c"], average: Literal["macro", "micro"]
) -> float:
    """F1, 2 TP / (2 TP + FP + FN): the mean over labels that occur in either, or of all decisions.

    If no label occurs, everything is right, and it is 1.
    """
    right = 2 * (guess & truth).sum(0).double()
    both = (guess.sum(0) + truth.sum(0)).double()
    if average == "micro":
        right, both = right.sum(0, True), both.sum(0, True)
    occurs = both > 0
    return float((right[occurs] / both[occurs]).mean()) if occurs.any() else 1.0


def mean_average_precision(score: Float[Tensor, "n c"], truth: Bool[Tensor, "n c"]) -> float:
    """The mean over labels that occur of Σ_t (R_t - R_t-1) P_t, over all thresholds t.

    Precision P and recall R are those of the samples with scores from a threshold on; samples with
    equal scores share it. It equals scikit-learn's `average_precision_score`. NaN if no label
    occurs.
    """
    found = []
    for own, here in zip(score.T, truth.T, strict=True):
        if not here.any():
            continue
        order = own.argsort(descending=True)
        hits, ranked = here[order].double().cumsum(0), own[order]
        is_last = torch.ones_like(here)  # of the samples with equal scores
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
        confidence: Confidence in each decision, from 0 to 1.
        right: Whether the decision is right.
    """
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)  # with their upper ends
    excess = right.double() - confidence
    by_bin = excess.new_zeros(BINS).index_add_(0, bins, excess)
    return float(by_bin.abs().sum() / len(right))


def pearson(answers: Float[Tensor, "n c"], target: Float[Tensor, "n c"]) -> float:
    """The correlation of predictions and targets: the mean over columns in which both vary.

    NaN if there is no such column.
    """
    one, other, both = _moments(answers, target)
    varies = (one > _rounding(answers)) & (other > _rounding(target))
    return float((both / (one * other).sqrt())[varies].mean())


def concordance(answers: Float[Tensor, "n c"], target: Float[Tensor, "n c"]) -> float:
    """Lin's concordance correlation coefficient: the mean over the columns whose targets vary.

    Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 1989:
    2 cov / (var + var + (difference of means)²), over all samples (not n - 1). It is 0 if the
    predictions are constant, and NaN if all targets are, whatever is predicted.
    """
    one, other, both = _moments(answers, target)
    apart = (answers.double().mean(0) - target.double().mean(0)).square()
    varies = other > _rounding(target)
    return float((2 * both / (one + other + apart))[varies].mean())


def _moments(x: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> tuple[Tensor, Tensor, Tensor]:
    """Both variances and the covariance, by column."""
    x, y = (each.double() - each.double().mean(0) for each in (x, y))
    return (x * x).mean(0), (y * y).mean(0), (x * y).mean(0)


def _rounding(x: Float[Tensor, "n c"]) -> Tensor:
    """The variance that 32-bit rounding gives a constant, by column."""
    return (1e-7 * x.double()).square().mean(0)


def sentiment(answers: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> dict[str, float]:
    """The metrics of sentiment from -3 to 3, as computed by MMSA.

    Mao et al., "M-SENA", ACL 2022, https://github.com/thuiar/MMSA.

    - `acc_2`, `f1`: negative against the rest (from 0 on); `_nonzero`: negative or 0 against
      positive, for samples that are not 0. F1 is the mean over both classes, weighted by how often
      each occurs.
    - `acc_5`, `acc_7`: for numbers clipped to ±2 and ±3 and rounded, halves to even.
    """
    found = {}
    some = target != 0
    for ending, guess, truth in (
        ("", answers >= 0, target >= 0),
        ("_nonzero", answers[some] > 0, target[some] > 0),
    ):
        found[f"acc_2{ending}"] = _share(guess == truth)
        found[f"f1{ending}"] = _weighted_f1(guess, truth)
    for most in (2, 3):
        same = answers.clamp(-most, most).round() == target.clamp(-most, most).round()
        found[f"acc_{2 * most + 1}"] = _share(same)
    return found


def _share(right: Bool[Tensor, " n"]) -> float:
    return int(right.sum()) / len(right) if len(right) else float("nan")


def _weighted_f1(guess: Bool[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    """The mean F1 of both classes, weighted by how often each occurs; NaN without samples."""
    found = 0.0
    for one, other in ((guess, truth), (~guess, ~truth)):
        both = int(one.sum()) + int(other.sum())
        found += int(other.sum()) * 2 * int((one & other).sum()) / both if both else 0.0
    return found / len(truth) if len(truth) else float("nan")
