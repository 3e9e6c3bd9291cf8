"""The diagnoses that runs plan, and whether enough samples have each modality for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from evenly.data import Data, SplitName
from evenly.diagnosis.gap import Gap, in_classes, rows_needed
from evenly.errors import UserError
from evenly.features import Features
from evenly.lab.run.build import settings_of
from evenly.lab.run.settings import CALLED, Cell
from evenly.method import Method
from evenly.methods.composed import parts
from evenly.methods.relearn import Relearn
from evenly.nn import LateFusion
from evenly.spec import together


def check_diagnoses(runs: Sequence[tuple[Cell, LateFusion, Method]], data: Data) -> None:
    """Checks, before any training is spent, that no planned diagnosis lacks samples.

    Args:
        runs: The runs of a comparison, one for each method, as built.
        data: The data as they see them.

    Raises:
        ValueError: If the targets cannot be clustered, or too few samples have a modality.
    """
    planned = dict.fromkeys(each for run in runs for each in _planned(*run))
    lacking = [(each, *lack) for each in planned for lack in _lacks(each, data)]
    if not lacking:
        return
    first, name, split, need, k = lacking[0]
    reason = f"fewer than the {k} clusters of a diagnosis"
    if need < k:
        reason = f"but {first.method} takes at least {need}"
    training = runs[0][0].training
    same = [each for each, other, where, *_ in lacking if (other, where) == (name, split)]
    steps = [_without(same, name, data)]
    if rate := training.lacking[split].get(name):
        option = "missing-test" if split == "test" and name in training.missing_test else "missing"
        steps = [f"lower --{option}.{name} {rate:g}", *steps]
    step = ", or ".join(steps)
    raise UserError(
        f"'{name}' is in {_having(data, split, name)} of {len(data.split(split))} samples of the "
        f"{CALLED[split]} split, {reason}. {step[0].upper()}{step[1:]}."
    )


@dataclass(frozen=True)
class _Planned:
    """A diagnosis of the training split and another.

    Attributes:
        modalities: Those whose encoders it looks at.
        judged: The other split.
        gap: The estimator.
        method: The method that needs it; empty if it is measured for the figures.
        has_choice: Whether that method has a setting for the estimator.
    """

    modalities: tuple[str, ...]
    judged: SplitName
    gap: Gap = "paper"
    method: str = ""
    has_choice: bool = False

    @property
    def splits(self) -> tuple[SplitName, SplitName]:
        """Both splits, in the order of `rows_needed`."""
        return "train", self.judged


def _planned(cell: Cell, model: LateFusion, method: Method) -> Iterator[_Planned]:
    """What a run measures for the figures, and what its methods look at by themselves."""
    if cell.training.measure_every:
        for split in dict.fromkeys(("val", cell.training.selects_on)):
            yield _Planned(tuple(model.encoders), split)
    for spec, part in zip(together(cell.method), parts(method), strict=True):
        if isinstance(part, Relearn) and part.times:
            has_choice = "gap" in settings_of(type(part))
            yield _Planned(tuple(part.encoders), "val", part.gap, spec.name, has_choice)


def _lacks(planned: _Planned, data: Data) -> Iterator[tuple[str, SplitName, int, int]]:
    """Modalities that too few samples of a split have, the number needed and that of clusters."""
    columns = in_classes(*(_targets(data, split) for split in planned.splits))
    k = max(column.k for column in columns)
    for split, need in zip(planned.splits, rows_needed(planned.gap, k), strict=True):
        for name in planned.modalities:
            if _having(data, split, name) < need:
                yield name, split, need, k


def _without(planned: Sequence[_Planned], name: str, data: Data) -> str:
    """How to do without these diagnoses of a modality."""
    least = rows_needed("stable", 0)
    settings: list[str] = []
    left_out: list[str] = []
    for each in planned:
        is_enough = all(
            _having(data, split, name) >= need
            for split, need in zip(each.splits, least, strict=True)
        )
        if not each.method:
            settings.append("--diagnose-every 0")
        elif each.has_choice and each.gap != "stable" and is_enough:
            settings.append(f"gap=stable in {each.method}")
        else:
            left_out.append(each.method)
    steps = [f"set {' and '.join(dict.fromkeys(settings))}"] if settings else []
    if left_out:
        steps.append(f"leave out {' and '.join(dict.fromkeys(left_out))}")
    return " and ".join(steps)


def _having(data: Data, split: SplitName, name: str) -> int:
    """How many samples of a split have a modality."""
    return len(data.split(split)) - data.lacks(split).get(name, 0)


def _targets(data: Data, split: SplitName) -> Features:
    """The targets of a split as a diagnosis sees them."""
    target = data.split(split).target
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    return Features({"": torch.zeros(len(target), 1)}, target)
