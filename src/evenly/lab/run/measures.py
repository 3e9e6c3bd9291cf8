"""The user's own metrics: functions by import path."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from evenly.data.tasks import Task
from evenly.errors import UserError
from evenly.imported import imported
from evenly.metrics import BUILT_IN, DERIVED, Metric, know
from evenly.spec import split

Measure = Callable[[Tensor, Tensor], Any]
"""Takes a model's probabilities (n, c), or numbers, for a split, and the targets."""


def measures(text: str) -> dict[str, Measure]:
    """The user's own metrics, by the names of their functions.

    Args:
        text: Import paths, optionally with settings, separated by commas; empty for none.

    Raises:
        ValueError: If one cannot be imported or is not a function, or its name is taken.
    """
    found: dict[str, Measure] = {}
    for spec in split(text) if text else ():
        name = spec.name.rpartition(".")[2]
        function = imported("metric", spec.name)
        if not callable(function):
            raise UserError(
                f"'{spec.name}' is of the type {type(function).__name__}. A metric is a function "
                "of what is predicted and of the targets, which returns a number."
            )
        if name in (*found, *BUILT_IN, *DERIVED):
            raise UserError(
                f"there is a metric '{name}' already. Give the function of '{spec.name}' another "
                "name."
            )
        known = getattr(function, "metric", None) or Metric(name.replace("_", " "), scale=1)
        if not isinstance(known, Metric):
            raise UserError(
                f"'{spec.name}' has a `metric` of the type {type(known).__name__}. It is an "
                "evenly.metrics.Metric, or left out."
            )
        know(name, known)
        found[name] = partial(function, **spec.settings)
    return found


def measured(own: Mapping[str, Measure], answers: Tensor, target: Tensor) -> dict[str, float]:
    """The value of each of the user's own metrics.

    One may be NaN where it is undefined, such as the correlation of a constant.

    Raises:
        ValueError: If one fails, or is infinite.
    """
    found = {}
    for name, measure in own.items():
        try:
            found[name] = float(measure(answers, target))
        except Exception as error:
            raise UserError(
                f"the metric '{name}' fails ({type(error).__name__}: {error}). It takes what is "
                f"predicted, {tuple(answers.shape)}, and the targets, {tuple(target.shape)}, and "
                "returns a number."
            ) from error
        if math.isinf(found[name]):
            raise UserError(
                f"the metric '{name}' is infinite, so it has no mean over runs. Bound it, for "
                "example by clamping probabilities from below, or return NaN where it is undefined."
            )
    return found


def check_measures(own: Mapping[str, Measure], task: Task, target: Tensor) -> None:
    """Raises if a metric fails on some targets, with predictions made without any input."""
    logits = task.uninformed(target).expand(len(target), -1)
    measured(own, task.answers(logits), target)
