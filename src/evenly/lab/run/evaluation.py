"""The metrics of a model on one split."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly import distributed
from evenly.output import Output

BINS = 15
"""Of confidence, for the calibration error."""


@dataclass
class Evaluation:
    """Gathers predictions batch by batch, then computes accuracy, macro-F1 and others.

    Attributes:
        num_classes: Number of classes.
    """

    num_classes: int
    _logits: list[Tensor] = field(default_factory=list)
    _unimodal: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)
    _target: list[Tensor] = field(default_factory=list)
    _index: list[Tensor] = field(default_factory=list)

    def add(self, output: Output, target: Tensor) -> None:
        """Takes one batch."""
        self._logits.append(output.logits.detach().float())
        self._target.append(target)
        if output.index is not None:
            self._index.append(output.index)
        for name, logits in (output.unimodal or {}).items():
            here = (output.present or {}).get(name, torch.ones_like(target, dtype=torch.bool))
            of_batch = logits.detach().float(), target, here
            self._unimodal.setdefault(name, []).append(of_batch)

    def together(self, count: int) -> "Evaluation":
        """That of all processes, of which each has every so-manieth sample, in order.

        Args:
            count: Samples of the split; what the shares hold beyond is there to make them even.
        """
        if distributed.world_size() == 1:
            return self
        whole = Evaluation(self.num_classes)

        def joined(parts: list[Tensor]) -> Tensor:
            shares = distributed.gather(torch.cat(parts))
            return torch.stack(shares, 1).flatten(0, 1)[:count]

        whole._logits, whole._target = [joined(self._logits)], [joined(self._target)]
        whole._index = [joined(self._index)] if self._index else []
        for name, parts in self._unimodal.items():
            logits, target, here = (joined(list(column)) for column in zip(*parts, strict=True))
            whole._unimodal[name] = [(logits, target, here)]
        return whole

    def metrics(self) -> dict[str, float]:
        """Cross-entropy, accuracies, macro-F1, and the accuracy of each modality's own logits.

        The loss is plain cross-entropy, whatever the criterion of the training is.
        """
        logits, target = torch.cat(self._logits), torch.cat(self._target)
        guess = logits.argmax(1)
        found = {
            "loss": float(torch.nn.functional.cross_entropy(logits, target)),
            "accuracy": _accuracy(logits, target),
            "balanced_accuracy": balanced_accuracy(guess, target, self.num_classes),
            "macro_f1": macro_f1(guess, target, self.num_classes),
        }
        for name, parts in self._unimodal.items():
            own, of_those, here = (torch.cat(column) for column in zip(*parts, strict=True))
            if here.any():
                found[f"accuracy/{name}"] = _accuracy(own[here], of_those[here])
        return found

    def details(self, class_names: Sequence[str]) -> dict[str, float]:
        """What is worth knowing of the selected model alone.

        - `recall/CLASS`: the accuracy on the samples of a class.
        - `calibration_error`: how far confidence is from accuracy, on average over `BINS` bins of
          confidence (ECE; Guo et al., ICML 2017), in [0, 1].
        - `brier`: the squared error of the probabilities, summed over classes, in [0, 2].
        """
        logits, target = torch.cat(self._logits), torch.cat(self._target)
        probability, guess = logits.softmax(1), logits.argmax(1)
        truth = torch.nn.functional.one_hot(target, self.num_classes)
        found = {
            "calibration_error": calibration_error(probability, target),
            "brier": float((probability - truth).square().sum(1).mean()),
        }
        for number, name in enumerate(class_names):
            members = target == number
            found[f"recall/{name}"] = int((guess[members] == number).sum()) / int(members.sum())
        return found

    def predictions(self) -> dict[str, Tensor]:
        """Probabilities (samples, classes), target and index, in the order of the split."""
        return {
            "probabilities": torch.cat(self._logits).softmax(1).cpu(),
            "target": torch.cat(self._target).cpu(),
            "index": torch.cat(self._index).cpu(),
        }


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


def calibration_error(probability: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> float:
    """Σ_b n_b / n |accuracy_b - confidence_b| over `BINS` equal bins of confidence.

    Guo et al., "On calibration of modern neural networks", ICML 2017,
    https://arxiv.org/abs/1706.04599, equation 3.

    Args:
        probability: Of each class.
        target: Class of each sample.
    """
    confidence, guess = probability.double().max(1)
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)  # each with its upper end
    excess = (guess == target).double() - confidence
    by_bin = excess.new_zeros(BINS).index_add_(0, bins, excess)
    return float(by_bin.abs().sum() / len(target))


def _accuracy(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> float:
    # Of whole numbers, as a 32-bit quotient would differ from seed to seed by its rounding.
    return int((logits.argmax(1) == target).sum()) / len(target)
