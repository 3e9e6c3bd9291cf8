"""What the selected model has learnt from each modality, measured after training."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evenly import chance
from evenly.data import Batch, Modality
from evenly.data.dataset import bare, with_noise
from evenly.data.tasks import Task, mean_average_precision
from evenly.diagnosis.contribution import contributions, imbalance
from evenly.diagnosis.linear_probe import linear_probe, read
from evenly.features import Features
from evenly.files import replacing
from evenly.metrics import METRICS
from evenly.output import Output

K = TypeVar("K", bound=Hashable)
Passed = Callable[[Batch], Output]
Change = Callable[[Batch], Batch]
"""Turns a batch into another one."""

LEVELS = (0.5, 1.0, 2.0, 4.0)
"""Levels of noise on inputs, in standard deviations of the training split."""
RATES = (0.25, 0.5, 0.75)
"""Shares of test samples that lose a modality; other metrics cover none and all."""
SAMPLES = 500
"""Maximum number of samples whose features are kept."""


@dataclass(frozen=True)
class Subject:
    """What to inspect.

    Attributes:
        passed: One forward pass of the model, in evaluation mode.
        batches: Batches of a split, in order; they are read several times.
        modalities: The model's modalities by name.
        task: What it predicts.
        uninformed: (c,) logits without any input.
        noised: By modality and level, the replacement of the split's noisy inputs, if already
            known.
    """

    passed: Passed
    batches: Iterable[Batch]
    modalities: Mapping[str, Modality]
    task: Task
    uninformed: Tensor
    noised: Mapping[str, Mapping[float, Tensor]] = field(default_factory=dict)


def inspect(subject: Subject) -> dict[str, float]:
    """Metrics of the modalities: their value, and how much depends on them.

    - `only/M` and `without/M`: the main metric given that modality only, and given all others.
    - `contribution/M`: how much it improves the main metric, as its Shapley value over sets of
      modalities; `imbalance`: how uneven these contributions are.
    - `missing_RATE/M`: the main metric with that modality taken from a share of all samples, those
      that lack it included; the same samples for every method and seed; larger shares include
      smaller ones.
    - `noise_LEVEL/M`: the main metric with white noise on that modality; not for texts.

    The prediction from no modality at all is what the training split alone tells. It is also that
    of a sample that has none of a set's modalities.
    """
    found = _worth(subject) if len(subject.modalities) > 1 else {}
    for name, modality in subject.modalities.items():
        if modality.kind != "text":
            known = subject.noised.get(name)
            judged = _scores(
                subject,
                {
                    level: _put(name, known[level]) if known else noise(modality, level)
                    for level in LEVELS
                },
            )
            found |= {f"noise_{level:g}/{name}": _mean(each) for level, each in judged.items()}
    return found


def _worth(subject: Subject) -> dict[str, float]:
    scores: dict[frozenset[str], Tensor] = {}

    def score(chosen: Sequence[frozenset[str]]) -> dict[frozenset[str], float]:
        new = {keep: _only(keep) for keep in chosen if keep not in scores}
        scores.update(_scores(subject, new))
        return {keep: _mean(each) for keep, each in scores.items()}

    def worth(chosen: Sequence[frozenset[str]]) -> dict[frozenset[str], float]:
        sign = METRICS[subject.task.main].sign
        return {keep: sign * value for keep, value in score(chosen).items()}

    names = list(subject.modalities)
    added = contributions(worth, names)
    only = {name: frozenset([name]) for name in names}
    without = {name: frozenset(names) - {name} for name in names}
    known = score([*only.values(), *without.values(), frozenset(names)])
    found = {f"only/{name}": known[keep] for name, keep in only.items()}
    found |= {f"without/{name}": known[keep] for name, keep in without.items()}
    for name, keep in without.items():
        found |= _missing(name, scores[frozenset(names)], scores[keep])
    found |= {f"contribution/{name}": value for name, value in added.items()}
    uneven = imbalance(added)
    return found if uneven is None else {**found, "imbalance": uneven}


def _missing(
    name: str, whole: Float[Tensor, " n"], without: Float[Tensor, " n"]
) -> dict[str, float]:
    """The main metric between those with and without a modality, from each sample's score.

    A sample's prediction does not depend on what others lack, so this needs no further pass.
    """
    order = chance.uniform(torch.arange(len(whole)), 0).argsort(stable=True).to(whole.device)
    found = {}
    for rate in RATES:
        gone = torch.zeros(len(whole), dtype=torch.bool, device=whole.device)
        gone[order[: round(rate * len(whole))]] = True
        found[f"missing_{rate:g}/{name}"] = _mean(torch.where(gone, without, whole))
    return found


def _mean(scores: Float[Tensor, " n"]) -> float:
    return float(scores.mean())


@torch.no_grad()
def _scores(subject: Subject, changes: Mapping[K, Change]) -> dict[K, Float[Tensor, " n"]]:
    """Each sample's score by the main metric on changed batches, for each kind of change."""
    found: dict[K, list[Tensor]] = {key: [] for key in changes}
    for batch in subject.batches:
        target = batch["target"].to(subject.uninformed.device)
        for key, change in changes.items():
            changed = change(batch)
            names = changed["inputs"].keys() & subject.modalities.keys()
            logits = subject.uninformed.expand(len(target), -1)
            if names:
                lost = bare(names, changed["present"])
                logits = informed(subject.passed(changed).logits, lost, subject.uninformed)
            found[key].append(subject.task.scores(logits, target).double())
    return {key: torch.cat(parts) for key, parts in found.items() if parts}


def informed(
    logits: Float[Tensor, "n c"], lost: Bool[Tensor, " n"] | None, uninformed: Float[Tensor, " c"]
) -> Float[Tensor, "n c"]:
    """Logits in which samples that have lost every modality get those of no input."""
    if lost is None:
        return logits
    return torch.where(lost.to(logits.device)[:, None], uninformed.to(logits.device), logits)


def _only(keep: frozenset[str]) -> Change:
    """Leaves out all other modalities."""

    def change(batch: Batch) -> Batch:
        inputs = {name: x for name, x in batch["inputs"].items() if name in keep}
        present = {name: here for name, here in batch["present"].items() if name in keep}
        return cast(Batch, {**batch, "inputs": inputs, "present": present})

    return change


def _put(name: str, rows: Tensor) -> Change:
    """Replaces one modality with rows of a split."""

    def change(batch: Batch) -> Batch:
        made = rows.to(batch["inputs"][name].device)[batch["index"]]  # type: ignore[union-attr]
        return cast(Batch, {**batch, "inputs": {**batch["inputs"], name: made}})

    return change


def noise(modality: Modality, level: float) -> Change:
    """Adds noise to one modality: the same for every method and seed."""
    name, spread, seed = modality.name, level * modality.spread, round(1000 * level)

    def change(batch: Batch) -> Batch:
        made = with_noise(name, batch["inputs"][name], spread, batch["index"], seed)
        return cast(Batch, {**batch, "inputs": {**batch["inputs"], name: made}})

    return change


def probed(task: Task, train: Features, test: Features) -> dict[str, float]:
    """`probe/M`: what linear classifiers read from each encoder's features; not for numbers.

    For classes it is the accuracy. For several labels, with a classifier for each, it is the mean
    average precision. Exact matches would ignore a modality that tells only some of the labels, and
    accuracy by label would mostly reward the absence of labels.

    Args:
        task: What is predicted.
        train: Features of all training samples, to fit the classifiers on.
        test: Features of the inspected split.
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
    """Writes the encoders' features of a few samples of a split, the same in every run.

    The file holds `modalities`; by their positions `features_0` (k, width), ... in half precision
    and units of their largest magnitude, and `present_0` (k), ... if samples lack them; and for
    each sample `target`, `predicted`, `row` (its position in the split) and `name`, if it has one.
    For several labels, `target` is the sample's rarest label, or an extra number if it has none;
    `own` and `predicted` say which texts in `said` are its labels and the prediction.

    Args:
        path: Path of the .npz file.
        features: Features of all samples of the split, in order.
        task: What is predicted.
        answers: The probability of each class or label.
        names: Names of all samples of the split.
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
    """Positions of at most `count` samples, in ascending order, always the same.

    They are evenly spaced among the samples sorted by class: each class has its share to within
    one.
    """
    count = min(count, len(target))
    places = torch.linspace(0, len(target) - 1, count, dtype=torch.float64).round().long()
    return target.argsort(stable=True)[places].sort().values
