"""The metrics of a model on one split."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_f1_score,
)

from evenly.output import Output


@dataclass
class Evaluation:
    """Gathers predictions batch by batch, then computes accuracy and macro-F1.

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

    def metrics(self) -> dict[str, float]:
        """Loss, accuracy, macro-F1, and the accuracy of each modality's own logits."""
        logits, target = torch.cat(self._logits), torch.cat(self._target)
        guess = logits.argmax(1)
        found = {
            "loss": float(torch.nn.functional.cross_entropy(logits, target)),
            "accuracy": _accuracy(logits, target),
            "macro_f1": float(multiclass_f1_score(guess, target, self.num_classes, "macro")),
        }
        for name, parts in self._unimodal.items():
            own, of_those, here = (torch.cat(column) for column in zip(*parts, strict=True))
            if here.any():
                found[f"accuracy/{name}"] = _accuracy(own[here], of_those[here])
        return found

    def details(self, class_names: Sequence[str]) -> dict[str, float]:
        """What is worth knowing of the selected model alone.

        - `recall/CLASS`: the accuracy on the samples of a class.
        - `calibration_error`: how far confidence is from accuracy, on average over 15 bins of
          confidence (ECE; Guo et al., ICML 2017), in [0, 1].
        - `brier`: the squared error of the probabilities, summed over classes, in [0, 2].
        """
        logits, target = torch.cat(self._logits), torch.cat(self._target)
        probability, guess = logits.softmax(1), logits.argmax(1)
        error = multiclass_calibration_error(probability, target, self.num_classes, n_bins=15)
        truth = torch.nn.functional.one_hot(target, self.num_classes)
        found = {
            "calibration_error": float(error),
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


def _accuracy(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> float:
    # Of whole numbers, as a 32-bit quotient would differ from seed to seed by its rounding.
    return int((logits.argmax(1) == target).sum()) / len(target)
