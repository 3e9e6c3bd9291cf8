"""What the selected model has learnt of each modality, looked at once training is over."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evenly.data import Batch, Modality
from evenly.data.dataset import with_noise
from evenly.data.tasks import Task, mean_average_precision
from evenly.diagnosis.contribution import contributions, imbalance
from evenly.diagnosis.linear_probe import linear_probe, read
from evenly.features import Features
from evenly.files import replacing
from evenly.output import Output

K = TypeVar("K", bound=Hashable)
Passed = Callable[[Batch], Output]
Change = Callable[[Batch], Batch]
"""Makes another batch of a batch."""

LEVELS = (0.5, 1.0, 2.0, 4.0)
"""Of the noise that inputs are given, in standard deviations of the training split."""
SAMPLES = 500
"""Of which features are kept, at most."""


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        passed: One forward pass of the model, in evaluation mode.
        batches: Of a split, in order; they are read several times.
        modalities: By name, those that the model takes.
        task: What it predicts.
        uninformed: (c,) logits of who has seen no input.
        noised: By modality and level, what stands for noisy inputs of the split, where that is
            known already.
    """

    passed: Passed
    batches: Iterable[Batch]
    modalities: Mapping[str, Modality]
    task: Task
    uninformed: Tensor
    noised: Mapping[str, Mapping[float, Tensor]] = field(default_factory=dict)


def inspect(subject: Subject) -> dict[str, float]:
    """The metrics of the modalities: what they are worth, and how much depends on them.

    - `only/M` and `without/M`: accuracy with that modality alone, and with all others.
    - `contribution/M`: what it adds to the accuracy, its Shapley value over the sets of modalities
      (none of them is worth what the training split tells); `imbalance`: how uneven these are.
    - `noise_LEVEL/M`: accuracy with white noise on that modality; of texts there is none.
    """
    found = _worth(subject) if len(subject.modalities) > 1 else {}
    for name, modality in subject.modalities.items():
        if modality.kind != "text":
            known = subject.noised.get(name)
            judged = _accuracies(
                subject,
                {
                    level: _put(name, known[level]) if known else noise(modality, level)
                    for level in LEVELS
                },
            )
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
                logits = subject.passed(changed).logits
            else:
                logits = subject.uninformed.expand(len(batch["target"]), -1)
            right[key] += int(subject.task.right(logits, batch["target"]).sum())
    return {key: value / count for key, value in right.items()}


def _only(keep: frozenset[str]) -> Change:
    """Leaves all other modalities out."""

    def change(batch: Batch) -> Batch:
        inputs = {name: x for name, x in batch["inputs"].items() if name in keep}
        present = {name: here for name, here in batch["present"].items() if name in keep}
        return cast(Batch, {**batch, "inputs": inputs, "present": present})

    return change


def _put(name: str, rows: Tensor) -> Change:
    """Puts rows of a split in place of one modality."""

    def change(batch: Batch) -> Batch:
        made = rows.to(batch["inputs"][name].device)[batch["index"]]  # type: ignore[union-attr]
        return cast(Batch, {**batch, "inputs": {**batch["inputs"], name: made}})

    return change


def noise(modality: Modality, level: float) -> Change:
    """Adds noise to one modality: the same for every method and seed."""
    name, spread, seed = modality.name, level * modality.spread, round(1000 * level)

    def change(batch: Batch) -> Batch:
        made = with_noise(batch["inputs"][name], spread, batch["index"], seed)
        return cast(Batch, {**batch, "inputs": {**batch["inputs"], name: made}})

    return change


def probed(task: Task, train: Features, test: Features) -> dict[str, float]:
    """`probe/M`: what linear classifiers on the features of each encoder read.

    Of classes it is the accuracy. Of several labels, with a classifier for each, it is the mean
    average precision: whether all labels of a sample are right says nothing of a modality that
    tells some of them only, and that few of many labels are there is right for most of them.

    Args:
        task: What is predicted.
        train: Of all samples of the training split, on which the classifiers are fitted.
        test: Of those of the split that is looked at.
    """
    if task.name == "labels":
        found = {
            name: mean_average_precision(one.log, test.target[one.rows] > 0)
            for name, one in read(train, test).items()
        }
    elif task.name == "classes":
        found = linear_probe(train, test)
    else:
        found = {}
    return {f"probe/{name}": value for name, value in found.items()}


def write_features(
    path: Path,
    features: Features,
    task: Task,
    answers: Float[Tensor, "n c"],
    names: Sequence[str] | None = None,
) -> None:
    """Writes what the encoders make of a few samples of a split, the same in every run.

    The file holds `modalities`; by their positions `features_0` (k, width), ... in half precision
    and units of their largest magnitude, and `present_0` (k), ... where samples lack them; and of
    each sample `target`, `predicted`, `row` (its position in the split) and `name`, if it has one.
    Of several labels a sample `target` is the rarest that it has, one number more where it has
    none; `own` and `predicted` say which of the texts in `said` are its labels and the prediction.

    Args:
        path: Of the file, .npz.
        features: Of all samples of the split, in order.
        task: What is predicted.
        answers: The probability of each class or label.
        names: Of all samples of the split.
    """
    target, answers = features.target.cpu(), answers.cpu()
    groups = task.groups(target)
    keep = share_of_each(groups, SAMPLES)
    arrays = {
        "modalities": np.array(list(features.features)),
        "target": groups[keep].numpy(),
        "row": keep.numpy(),
    }
    if task.name == "labels":
        own = [task.called(row) for row in target[keep]]
        said = [task.predicted(row) for row in answers[keep].tolist()]
        arrays["said"], numbers = np.unique([*own, *said], return_inverse=True)
        arrays["own"], arrays["predicted"] = np.split(numbers, 2)
    else:
        arrays["predicted"] = answers.argmax(1)[keep].numpy()
    if names is not None:
        arrays["name"] = np.array([names[row] for row in keep.tolist()])
    for place, (name, x) in enumerate(features.features.items()):
        few = x.cpu()[keep].double()
        largest = float(few.abs().max()) or 1.0  # half precision ends at 65504
        arrays[f"features_{place}"] = (few / largest).numpy().astype(np.float16)
        if name in features.present:
            arrays[f"present_{place}"] = features.present[name].cpu()[keep].numpy()
    with replacing(path) as new:
        np.savez_compressed(new, allow_pickle=False, **arrays)


def share_of_each(target: Int[Tensor, " n"], count: int) -> Int[Tensor, " k"]:
    """Positions of `count` samples at most, in ascending order, always the same.

    They stand at even distances among the samples sorted by class: each class has its share of
    them to within one.
    """
    count = min(count, len(target))
    places = torch.linspace(0, len(target) - 1, count, dtype=torch.float64).round().long()
    return target.argsort(stable=True)[places].sort().values
