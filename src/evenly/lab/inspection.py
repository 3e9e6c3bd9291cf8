"""What the selected model has learnt of each modality, looked at once training is over."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch

from evenly.data import Batch, Modality
from evenly.data.dataset import with_noise
from evenly.diagnosis.contribution import contributions, imbalance
from evenly.output import Output

K = TypeVar("K", bound=Hashable)
Passed = Callable[[Batch], Output]
Change = Callable[[Batch], Batch]
"""Makes another batch of a batch."""

LEVELS = (0.5, 1.0, 2.0, 4.0)
"""Of the noise that inputs are given, in standard deviations of the training split."""


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        passed: One forward pass of the model, in evaluation mode.
        batches: Of a split, in order; they are read several times.
        modalities: By name, those that the model takes.
        commonest: The class that the training split has most of.
    """

    passed: Passed
    batches: Iterable[Batch]
    modalities: Mapping[str, Modality]
    commonest: int


def inspect(subject: Subject) -> dict[str, float]:
    """The metrics of the modalities: what they are worth, and how much depends on them.

    - `only/M` and `without/M`: accuracy with that modality alone, and with all others.
    - `contribution/M`: what it adds to the accuracy, its Shapley value over the sets of modalities
      (none of them is worth naming the commonest class); `imbalance`: how uneven these are.
    - `noise_LEVEL/M`: accuracy with white noise on that modality; of texts there is none.
    """
    found = _worth(subject) if len(subject.modalities) > 1 else {}
    for name, modality in subject.modalities.items():
        if modality.kind != "text":
            judged = _accuracies(subject, {level: _noise(modality, level) for level in LEVELS})
            found |= {f"noise_{level:g}/{name}": value for level, value in judged.items()}
    return found


def _worth(subject: Subject) -> dict[str, float]:
    known: dict[frozenset[str], float] = {}

    def accuracy(chosen: Sequence[frozenset[str]]) -> dict[frozenset[str], float]:
        new = {keep: _only(keep) for keep in chosen if keep not in known}
        known.update(_accuracies(subject, new))
        return known

    names = list(subject.modalities)
    added = contributions(accuracy, names)
    only = {name: frozenset([name]) for name in names}
    without = {name: frozenset(names) - {name} for name in names}
    accuracy([*only.values(), *without.values()])
    found = {f"only/{name}": known[keep] for name, keep in only.items()}
    found |= {f"without/{name}": known[keep] for name, keep in without.items()}
    found |= {f"contribution/{name}": value for name, value in added.items()}
    uneven = imbalance(added)
    return found if uneven is None else {**found, "imbalance": uneven}


@torch.no_grad()
def _accuracies(subject: Subject, changes: Mapping[K, Change]) -> dict[K, float]:
    """The accuracy on changed batches, for each kind of change."""
    right, count = dict.fromkeys(changes, 0), 0
    for batch in subject.batches:
        count += len(batch["target"])
        for key, change in changes.items():
            changed = change(batch)
            if changed["inputs"]:
                guess = subject.passed(changed).logits.argmax(1)
            else:
                guess = torch.full_like(batch["target"], subject.commonest)
            right[key] += int((guess == batch["target"]).sum())
    return {key: value / count for key, value in right.items()}


def _only(keep: frozenset[str]) -> Change:
    """Leaves all other modalities out."""

    def change(batch: Batch) -> Batch:
        inputs = {name: x for name, x in batch["inputs"].items() if name in keep}
        present = {name: here for name, here in batch["present"].items() if name in keep}
        return cast(Batch, {**batch, "inputs": inputs, "present": present})

    return change


def _noise(modality: Modality, level: float) -> Change:
    """Adds noise to one modality: the same for every method and seed."""
    name, spread, seed = modality.name, level * modality.spread, round(1000 * level)

    def change(batch: Batch) -> Batch:
        made = with_noise(batch["inputs"][name], spread, batch["index"], seed)
        return cast(Batch, {**batch, "inputs": {**batch["inputs"], name: made}})

    return change
