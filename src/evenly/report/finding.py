"""What a comparison found, in a few plain sentences at the top of the table and the report."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evenly.errors import UserError
from evenly.metrics import Metric, main_of, metric_of
from evenly.report.comparison import ENOUGH, NAMED, REFERENCE, is_significant
from evenly.spec import parse

CARRIES = 2 / 3
"""Share of all contributions above which a modality carries the prediction."""
CLEAR = 0.07
"""Least size of a contribution that counts if there are too few seeds for an interval: in accuracy,
or as a share of the error of a guess without any input. A checkup's `verdict.THERE` is the same."""
_WORDS = re.compile(r"^(?=joint training|no m)\w")
"""The first letter of a sentence that does not begin with a name."""


def what_was_found(rows: Iterable[Mapping[str, Any]], reference: str = REFERENCE) -> list[str]:
    """What a comparison found on its test split, in words.

    The best method, whether any differs from the reference, which modality carries the prediction
    or harms it, and whether one modality alone is better. Methods differ where the p-value,
    corrected for the number of methods, is below 0.05.

    Args:
        rows: The rows of summary.csv, from `summary`; other splits are ignored.
        reference: The method that they are compared with.

    Returns:
        A few sentences, the first about the best method; none if nothing has finished.
    """
    seen = _Table([row for row in rows if row["split"] == "test"], reference)
    if not seen.lines:
        return []
    said = [_best(seen), *_worse(seen), *_carrying(seen), *_alone(seen)]
    # A name stays as typed.
    return [_WORDS.sub(lambda start: start[0].upper(), text) for text in said]


@dataclass(frozen=True)
class _Table:
    """The test rows of a comparison."""

    rows: Sequence[Mapping[str, Any]]
    reference: str

    @cached_property
    def metrics(self) -> set[str]:
        return {row["metric"] for row in self.rows}

    @cached_property
    def metric(self) -> Metric:
        return metric_of(main_of(self.metrics))

    @cached_property
    def lines(self) -> dict[str, Mapping[str, Any]]:
        """The row of the main metric by method, best first."""
        main = main_of(self.metrics)
        known = [row for row in self.rows if row["metric"] == main and row["mean"] is not None]
        known.sort(key=lambda row: -self.metric.sign * row["mean"])
        return {row["method"]: row for row in known}

    @cached_property
    def alone(self) -> dict[str, Mapping[str, Any]]:
        """The row of each modality's unimodal model, best first."""
        modalities = {name: _only_modality(name) for name in self.lines}
        return {taken: self.lines[name] for name, taken in modalities.items() if taken}

    @cached_property
    def fused(self) -> dict[str, Mapping[str, Any]]:
        """The rows of methods that take all modalities; of all methods if none does."""
        single = {row["method"] for row in self.alone.values()}
        fused = {name: row for name, row in self.lines.items() if name not in single}
        return fused or self.lines

    @cached_property
    def few(self) -> int | None:
        """The most seeds that a method shares with the reference, if too few; else None."""
        pairs = [row["pairs"] for name, row in self.fused.items() if name != self.reference]
        count = max(pairs, default=0)
        return count if count < ENOUGH else None

    @property
    def shared(self) -> str:
        """The number of shared seeds, with its verb."""
        equal = all(row["pairs"] == row["seeds"] for row in self.lines.values())
        which = "" if equal else "shared "
        return f"{self.few} {which}seed{' is' if self.few == 1 else 's are'}"

    def differs(self, row: Mapping[str, Any]) -> int:
        """1 if a method is better than the reference, -1 if it is worse, 0 if unclear."""
        difference = row.get("difference")
        if difference is None or not is_significant(row.get("p_holm")):
            return 0
        return 1 if self.metric.sign * difference > 0 else -1

    def contributions(self, method: str) -> dict[str, float]:
        """The Shapley value of each modality in a method's main metric, the largest first."""
        found = {name: row["mean"] for name, row in self._worth(method).items()}
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    def is_clear(self, method: str, modality: str) -> bool:
        """Whether a contribution is not 0: by its interval, or by its size if seeds are too few."""
        row = self._worth(method)[modality]
        low, high = row.get("low"), row.get("high")
        if low is not None and high is not None:  # there are enough seeds
            return bool(low > 0 or high < 0)
        most = 1.0
        if self.metric.sign < 0:
            most = self.lines[method]["mean"] + sum(self.contributions(method).values())
        return bool(abs(row["mean"]) >= CLEAR * most)

    def _worth(self, method: str) -> dict[str, Mapping[str, Any]]:
        """The row of each modality's contribution."""
        return {
            row["metric"].removeprefix("contribution/"): row
            for row in self.rows
            if row["method"] == method
            and row["metric"].startswith("contribution/")
            and row["mean"] is not None
        }

    def cost(self, modality: str, size: float) -> str:
        """What a modality with a negative contribution does, in words."""
        if self.metric.is_share:
            return f"{modality} costs {self.metric.shown(size)} points"
        return f"{modality} raises {self.metric.words} by {self.metric.shown(size)}"

    @property
    def unit(self) -> str:
        """The unit after the first of several contributions."""
        return self.metric.points or f" of {self.metric.words}"

    def value(self, row: Mapping[str, Any]) -> str:
        return f"{self.metric.shown(row['mean'])}{self.metric.unit}"

    @property
    def called(self) -> str:
        """The main metric by name."""
        several = "mean_average_precision" in self.metrics or "micro_f1" in self.metrics
        which = " on whole label sets" if several and self.metric.is_share else ""
        return f"{self.metric.words}{which}"

    def measured(self, row: Mapping[str, Any]) -> str:
        """The main metric of a method by name and value."""
        lower = ", lower is better" if self.metric.sign < 0 else ""
        return f"{self.called} {self.value(row)}{lower}"


def _only_modality(method: str) -> str:
    """The modality that a unimodal method takes; empty for any other method."""
    try:
        spec = parse(method)
    except UserError:
        return ""
    return str(spec.settings.get("modality", "")) if spec.name == "unimodal" else ""


def _called(method: str) -> str:
    return "joint training" if method == "joint" else method


def _best(seen: _Table) -> str:
    """The best method, and whether it or any other is better than the reference."""
    best, row = next(iter(seen.fused.items()))
    if seen.reference not in seen.lines:
        more = f"; {_called(seen.reference)}, the reference, is not among the methods"
        return f"{_called(best)} has the best mean: {seen.measured(row)}{more}."
    theirs = seen.lines[seen.reference]
    usual = _called(seen.reference)
    if len(seen.fused) == 1:
        return f"{usual} reaches {seen.measured(row)}."
    if seen.few is not None:
        against = "" if best == seen.reference else f", {usual} {seen.value(theirs)}"
        tell = f"{seen.shared} too few to tell whether methods differ"
        return f"{_called(best)} has the best mean ({seen.measured(row)}{against}), but {tell}."
    better = [name for name, each in seen.fused.items() if seen.differs(each) > 0]
    if better:
        first = seen.fused[better[0]]
        said = f"{better[0]} is better than {usual}: {seen.measured(first)}, {usual} "
        said += seen.value(theirs)
        said += f". {_several(better[1:])} also better" if better[1:] else ""
        unsure = f". {best} has the best mean, {seen.value(row)}, but does not differ "
        unsure += f"significantly from {usual}"
        return said + (unsure if best not in better else "") + "."
    differ = any(seen.differs(each) for each in seen.fused.values())
    none = f"no method {'is better than' if differ else 'differs significantly from'} {usual}"
    if best == seen.reference:
        return f"{none}, which has the best mean ({seen.measured(row)})."
    return f"{none} ({seen.measured(theirs)}); {best} has the best mean, {seen.value(row)}."


def _worse(seen: _Table) -> list[str]:
    """The methods that are worse than the reference."""
    if seen.reference not in seen.lines:
        return []
    worse = [name for name, row in seen.fused.items() if seen.differs(row) < 0]
    return [f"{_several(worse)} worse than {_called(seen.reference)}."] if worse else []


def _several(names: Sequence[str]) -> str:
    """The names of methods, with their verb."""
    if len(names) == 1:
        return f"{names[0]} is"
    shown = list(names) if len(names) <= NAMED + 1 else list(names[:NAMED])
    if len(names) > len(shown):
        return f"{', '.join(shown)} and {len(names) - len(shown)} others are"
    return f"{', '.join(shown[:-1])} and {shown[-1]} are"


def _carrying(seen: _Table) -> list[str]:
    """Which modality carries the reference's prediction and which harms it, by Shapley values."""
    method = seen.reference if seen.reference in seen.lines else next(iter(seen.fused))
    usual, worth = _called(method), seen.contributions(method)
    if len(worth) < 2:
        return []
    total, gains = sum(worth.values()), sum(max(value, 0.0) for value in worth.values())
    clear = {name for name in worth if seen.is_clear(method, name)}
    costs = [name for name in worth if worth[name] < 0 and name in clear]
    kept = [name for name in worth if name not in costs]
    harm = " and ".join(seen.cost(name, -worth[name]) for name in reversed(costs))
    shown = [f"{name} {seen.metric.shown(worth[name])}" for name in kept]
    shown[:1] = [f"{text}{seen.unit}" for text in shown[:1]]
    listed = "; ".join(shown)
    if total <= 0:
        end = f": {harm}" * bool(harm) + f" ({listed})" * bool(listed)
        return [f"{usual} is no better in {seen.called} than a guess without any input{end}."]
    first, end = kept[0], f"; {harm}" * bool(harm)
    if first not in clear:
        return [f"no modality clearly contributes to the prediction of {usual} ({listed}){end}."]
    carries = worth[first] >= CARRIES * gains
    does = "carries the prediction of" if carries else "contributes most to"
    return [f"{first} {does} {usual} ({listed.removeprefix(f'{first} ')}){end}."]


def _alone(seen: _Table) -> list[str]:
    """Whether a unimodal model is better than the reference."""
    if not seen.alone or seen.reference not in seen.lines:
        return []
    name, row = next(iter(seen.alone.items()))
    theirs, usual = seen.lines[seen.reference], _called(seen.reference)
    value, verdict = seen.value(row), seen.differs(row)
    if verdict > 0:
        return [f"{name} alone is better than {usual}: {value}, {usual} {seen.value(theirs)}."]
    if seen.metric.sign * (row["mean"] - theirs["mean"]) > 0:
        few = row["pairs"] < ENOUGH
        sure = "too few seeds to tell" if few else "the difference is not significant"
        return [f"{name} alone has a better mean than {usual}, {value}, but {sure}."]
    return [f"no modality alone is better: the best, {name}, reaches {value}."]
