"""What a comparison found, in the form that tables, page and pictures need."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, TypeGuard

import numpy as np

from evenly.metrics import METRICS, Metric
from evenly.report.names import in_words

REFERENCE = "joint"
"""The method that every other one is compared with."""
PAPER = (
    "Protocol: paper. The epoch is selected on the test split, so these test results are too "
    "high: compare them only with published tables that do the same."
)
"""What every output of `--protocol paper` says."""
SIGNIFICANT = 0.05
"""The level below which a corrected p-value counts."""
ENOUGH = 3
"""Seeds from which on there are intervals and tests: with two, t has one degree of freedom."""
NAMED = 3
"""Most methods that a sentence names; it counts the others."""
TOO_FEW = "too few seeds"
"""What replaces an interval if there are fewer."""
OF_MEANS = (
    "The 95 % interval of a mean (Student's t over seeds) covers other seeds on this test split, "
    "not other test samples."
)
"""What the interval of a mean covers."""
OWN_LOGITS = (
    "“Own logits” scores what one modality adds to the fused logits, or its own head where a "
    "method has one, in the model of that row."
)
"""What the columns of the modalities hold."""
NONE = "no label"
"""The name of the group of samples that have none of several labels."""
Projected = Literal["tsne", "umap"]
"""The projections of features to the plane."""


def conditions(config: Mapping[str, Any]) -> str:
    """Sentences on what is unusual about a comparison's data, training and selection."""
    parts = [_task, _limited, _noise, _missing, _loss, _selection, _tuning]
    said = [part(config) for part in parts]
    return " ".join(filter(None, said))


def _main(config: Mapping[str, Any]) -> str:
    """The metric by which methods are ranked."""
    return "mae" if config.get("task") == "number" else "accuracy"


def _task(config: Mapping[str, Any]) -> str:
    if config.get("task") == "number":
        return (
            "Methods are ranked by the mean absolute error (MAE), in the data's units; lower "
            "is better."
        )
    if config.get("task") != "labels":
        return ""
    return "Samples have several labels: accuracy is the share of samples with all labels right."


def _limited(config: Mapping[str, Any]) -> str:
    count, task = config.get("limit_samples"), config.get("task")
    if count is None:
        return ""
    least = ""  # what may be more
    if task == "labels":
        least = ", but at least one with and one without each label"
    elif task == "number":
        least = ", but at least one in each tenth of the values"
    elif count < len(config.get("class_names") or ()):
        least = ", but at least one of each class"
    return f"At most {count:,} samples of each split are used{least}."


def _noise(config: Mapping[str, Any]) -> str:
    levels = [
        f"{name} ({level:g} standard deviations)"
        for name, level in (config.get("noise") or {}).items()
    ]
    return f"White noise is added to {' and '.join(levels)} in all splits." if levels else ""


def _missing(config: Mapping[str, Any]) -> str:
    taken = config.get("missing") or {}
    test = {**taken, **(config.get("missing_test") or {})}
    taken, test = ({name: x for name, x in rates.items() if x} for rates in (taken, test))
    if test == taken:
        parts = {"all": taken}
    else:
        parts = {"the training and validation": taken, "the test": test}
    said = [f"{_from(rates)} of {which} samples" for which, rates in parts.items() if rates]
    if not said:
        return ""
    token = (
        ", with learnt vectors in their place if a method has any"
        if config.get("missing_token")
        else ""
    )
    return f"Modalities are missing: {'; '.join(said)}{token}."


def _from(rates: Mapping[str, Any]) -> str:
    return " and ".join(f"{name} from {100 * rate:g} %" for name, rate in rates.items())


def _loss(config: Mapping[str, Any]) -> str:
    parts = []
    if config.get("loss") == "mse":
        parts.append("the mean squared error")
    if gamma := config.get("focal"):
        parts.append(f"the focal loss (gamma = {gamma:g})")
    if config.get("class_weights") == "balanced":
        parts.append("balanced class weights")
    if smoothing := config.get("label_smoothing"):
        parts.append(f"label smoothing of {smoothing:g}")
    return f"All methods train with {' and '.join(parts)}." if parts else ""


def _selection(config: Mapping[str, Any]) -> str:
    select = config.get("select") or _main(config)
    if select == _main(config):
        return ""
    return (
        f"The epoch is selected by {in_words(select)}; methods are still ranked and tested by "
        f"{in_words(_main(config))}."
    )


def _tuning(config: Mapping[str, Any]) -> str:
    if config.get("settings"):
        return (
            f"Each method uses the settings that its authors {config['settings']}; what they do "
            "not publish is common to all."
        )
    trials, seeds = config.get("tuned_trials"), config.get("tuned_seeds")
    if trials is None:
        return ""
    counted = "seed 0" if seeds == 1 else f"the mean of seeds 0 to {int(str(seeds)) - 1}"
    return (
        "Learning rate, weight decay and each method's own settings were tuned, with "
        f"{trials} trial{'' if trials == 1 else 's'} for each method, by validation "
        f"{in_words(config.get('select') or _main(config))} ({counted})."
    )


@dataclass(frozen=True)
class Estimate:
    """A line of summary.csv; None stands for an empty field.

    `pairs` counts the seeds that the method shares with the reference, from which differences and
    tests come; `seeds` counts its own.
    """

    mean: float | None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    pairs: int = 0
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Projection:
    """Where samples lie in the plane, as the encoders of a run see them.

    Attributes:
        places: The places of the samples by modality, (k, 2); NaN if a sample lacks the modality.
        target: (k,) The class of each sample, or the rarest of its labels; decides the colour.
        own: (k,) The class of each sample, or the number of its set of labels in `said`.
        predicted: (k,) The predicted class, or the number of the predicted set of labels in `said`.
        labels: The name of each sample.
        said: The sets of labels, as text; empty for classes.
    """

    places: Mapping[str, np.ndarray]
    target: np.ndarray
    own: np.ndarray
    predicted: np.ndarray
    labels: Sequence[str]
    said: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """One cell of the comparison: a method with a seed.

    Attributes:
        method: The method as it was asked for, with its settings.
        seed: The seed of the run.
        curves: By column of metrics.csv, the value after each epoch; None if it was not measured.
        result: The content of result.json; None until the run has finished.
        error: The reason why the run failed; empty otherwise.
        confusion: The number of test samples by true class (rows) and predicted class; None until
            the run has finished, and for other tasks.
        numbers: (n, 2) The true and the predicted number of each test sample; None likewise.
        projections: The projections of its features that were computed, by kind.
    """

    method: str
    seed: int
    curves: Mapping[str, Sequence[float | None]]
    result: Mapping[str, Any] | None = None
    error: str = ""
    confusion: np.ndarray | None = None
    numbers: np.ndarray | None = None
    projections: Mapping[Projected, Projection] = field(default_factory=dict)

    def points(self, column: str) -> dict[int, float]:
        """The measured values of a column, by the number of epochs completed."""
        if column not in self.curves:
            return {}
        values = zip(self.curves["epoch"], self.curves[column], strict=True)
        return {int(x) + 1: y for x, y in values if x is not None and y is not None}

    def moments(self) -> dict[int, dict[str, float]]:
        """The strengths of each re-learning by modality, by the epochs completed before it."""
        found: dict[int, dict[str, float]] = {}
        for column in self.curves:
            kind, _, modality = column.partition("/")
            if kind == "relearn_strength":
                # It happens before the epoch of its row, so one epoch less is complete.
                for epoch, strength in self.points(column).items():
                    found.setdefault(epoch - 1, {})[modality] = strength
        return dict(sorted(found.items()))

    @property
    def is_doubtful(self) -> bool:
        """Whether an encoder re-learnt by a gap that is no larger than its standard error."""
        for column in self.curves:
            kind, _, modality = column.partition("/")
            if kind != "relearn_strength":
                continue
            gaps, errors = (
                self.points(f"{of}/{modality}") for of in ("relearn_gap", "relearn_gap_error")
            )
            pulled = [epoch for epoch, strength in self.points(column).items() if strength > 0]
            if any(gaps[epoch] <= errors[epoch] for epoch in pulled if epoch in gaps):
                return True
        return False


@dataclass(frozen=True)
class Comparison:
    """What the folder of a comparison holds so far.

    Attributes:
        config: The comparison's settings, notes, versions and hardware.
        runs: The runs that have begun, in the order of method and seed.
        summary: The lines of summary.csv, by method, split and metric.
        results: The value of each seed, by method, split and metric.
        changed: The time when a result was last written.
        reference: The method that `summary` compares every other one with.
    """

    config: Mapping[str, Any]
    runs: Sequence[Run]
    summary: Mapping[tuple[str, str, str], Estimate]
    results: Mapping[tuple[str, str, str], Mapping[int, float]]
    changed: datetime
    reference: str = REFERENCE

    @cached_property
    def methods(self) -> list[str]:
        """Every method, in the order in which they were asked for."""
        asked = map(str, self.config.get("methods") or [])
        return _unique([*asked, *(key[0] for key in self.summary), *(r.method for r in self.runs)])

    @cached_property
    def seeds(self) -> list[int]:
        """Every seed, in order."""
        asked = self.config.get("seeds")
        seeds = range(asked) if isinstance(asked, int) else map(int, asked or [])
        return sorted({*seeds, *(run.seed for run in self.runs)})

    @cached_property
    def modalities(self) -> list[str]:
        """Every modality, in the order of the data set."""
        return [str(name) for name in self.config.get("modalities") or []]

    @property
    def data(self) -> str:
        """The name of the data set, without the folder of a file."""
        return str(self.config.get("name") or self.config.get("data") or "comparison")

    @property
    def conditions(self) -> str:
        """What is unusual about the data, the training and the selection, in words."""
        return conditions(self.config)

    @property
    def differing(self) -> list[str]:
        """The training settings that differ between methods: tuned ones, or their authors'."""
        settings = {name: x for name, x in self.config.items() if name not in ("data", "name")}
        return [name for name, value in settings.items() if value in ("tuned", "published")]

    @property
    def selects_on_test(self) -> bool:
        """Whether it repeats the published habit (`--protocol paper`)."""
        return self.config.get("protocol") == "paper"

    @property
    def main(self) -> str:
        """The metric by which methods are ranked."""
        return _main(self.config)

    @property
    def metric(self) -> Metric:
        """The main metric, with its scale, sign and unit."""
        return METRICS[self.main]

    @cached_property
    def others(self) -> list[str]:
        """The other metrics of a ranking, among them the one that selects the epoch."""
        usual = ["macro_f1"]
        if self.main != "accuracy":
            found = {metric for _, _, metric in self.summary}
            usual = ["pearson", *(name for name in ("acc_2", "acc_7") if name in found)]
        selects = self.config.get("select") or self.main
        names = _unique([*usual, str(selects), *(self.config.get("measures") or ())])
        return [name for name in names if name != self.main]

    @cached_property
    def is_ranked(self) -> bool:
        """Whether any method differs from the reference in the main metric, after correction."""
        return any(is_significant(self.estimate(m, self.main).p_holm) for m in self.methods)

    @cached_property
    def ranking(self) -> list[str]:
        """The methods as tables and figures list them.

        If any method differs, the best mean on the test split comes first, and methods without a
        mean come last. Otherwise an order by means would show chance, so the methods keep the order
        in which they were asked for.
        """
        if not self.is_ranked:
            return list(self.methods)
        score = {method: self.score(method) for method in self.methods}
        ranked = [method for method in self.methods if score[method] is not None]
        ranked.sort(key=lambda method: self.metric.sign * (score[method] or 0.0), reverse=True)
        return ranked + [method for method in self.methods if score[method] is None]

    def estimate(self, method: str, metric: str) -> Estimate:
        """The line of summary.csv for a metric on the test split."""
        return self.summary.get((method, "test", metric), Estimate(None))

    @property
    def unequal_seeds(self) -> str:
        """What to say if methods finished different seeds; empty otherwise."""
        return unequal_seeds(
            {method: vars(self.estimate(method, self.main)) for method in self.methods},
            self.reference,
        )

    @property
    def without_result(self) -> str:
        """What to say if a method has no result; empty otherwise."""
        finished = {m: int(self.score(m) is not None) for m in self.methods}
        return without_result(self.methods, finished, len(self.seeds))

    def score(self, method: str) -> float | None:
        """The mean of the main metric on the test split."""
        return self.estimate(method, self.main).mean

    @cached_property
    def has_intervals(self) -> bool:
        """Whether any method has enough seeds for an interval."""
        return any(self.estimate(m, self.main).low is not None for m in self.methods)

    @cached_property
    def has_gap_errors(self) -> bool:
        """Whether any run has the standard errors of its gaps."""
        return any(name.startswith("gap_error/") for run in self.runs for name in run.curves)

    def runs_of(self, method: str) -> list[Run]:
        """The runs of a method that have begun, in the order of their seeds."""
        return [run for run in self.runs if run.method == method]

    def confusion(self, method: str) -> np.ndarray | None:
        """The share of each true class (rows) by predicted class, over all finished seeds."""
        found = [run.confusion for run in self.runs_of(method) if run.confusion is not None]
        if not found:
            return None
        counts: np.ndarray = np.sum(found, axis=0)
        share: np.ndarray = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        return share

    def numbers(self, method: str) -> tuple[int, np.ndarray] | None:
        """The first seed that has the numbers of `Run.numbers`, and these numbers."""
        found = ((run.seed, run.numbers) for run in self.runs_of(method))
        return next(((seed, pairs) for seed, pairs in found if pairs is not None), None)

    def projection(self, method: str, kind: Projected) -> Projection | None:
        """The projection of the first of its runs that has one; None if none has."""
        found = (run.projections.get(kind) for run in self.runs_of(method))
        return next((projection for projection in found if projection is not None), None)

    def pair(self, among: Sequence[str]) -> list[str]:
        """Joint training and the first method that re-learns, as far as they are among these.

        If none re-learns, the first other method takes its place.
        """
        others = [method for method in among if method != REFERENCE]
        relearning = [method for method in others if self.moments(method)]
        return [m for m in among if m == REFERENCE] + (relearning or others)[:1]

    @cached_property
    def class_names(self) -> list[str]:
        """The name of each class, by its number."""
        return [str(name) for name in self.config.get("class_names") or []]

    @property
    def has_labels(self) -> bool:
        """Whether samples have several labels."""
        return self.config.get("task") == "labels"

    @cached_property
    def group_names(self) -> list[str]:
        """What each colour in the plane stands for: the classes or labels, and `NONE` if needed."""
        planes = [plane for run in self.runs for plane in run.projections.values()]
        have_none = any((plane.target == len(self.class_names)).any() for plane in planes)
        return [*self.class_names, NONE] if have_none else self.class_names

    @cached_property
    def noise_levels(self) -> list[float]:
        """The levels of noise at which the models were tested, ascending."""
        return self._numbers("noise")

    @cached_property
    def missing_rates(self) -> list[float]:
        """The shares of test samples from which a modality was taken, ascending."""
        return self._numbers("missing")

    def _numbers(self, kind: str) -> list[float]:
        """The numbers in the names of the metrics `KIND_NUMBER/MODALITY`, ascending."""
        found = (re.match(rf"{kind}_([\d.]+)/", metric) for _, _, metric in self.summary)
        return sorted({float(match[1]) for match in found if match})

    def moments(self, method: str) -> dict[int, dict[str, float]]:
        """The mean strength of each re-learning, by epochs completed and modality."""
        found: dict[int, dict[str, list[float]]] = {}
        for run in self.runs_of(method):
            for epoch, strengths in run.moments().items():
                for modality, strength in strengths.items():
                    found.setdefault(epoch, {}).setdefault(modality, []).append(strength)
        return {
            epoch: {name: sum(values) / len(values) for name, values in strengths.items()}
            for epoch, strengths in sorted(found.items())
        }

    def curves(self, method: str, column: str) -> dict[int, list[float]]:
        """By epoch, the values of the finished seeds (of all seeds until one has finished).

        Epochs that only some of these seeds have reached are left out, because the mean would jump
        there.
        """
        runs = self.runs_of(method)
        runs = [run for run in runs if run.result] or runs
        curves = [points for run in runs if (points := run.points(column))]
        if not curves:
            return {}
        shared = sorted(set.intersection(*(set(points) for points in curves)))
        return {x: [points[x] for points in curves] for x in shared}

    def mean_curve(self, method: str, column: str) -> dict[int, float]:
        """The mean of `curves`."""
        return {x: sum(seeds) / len(seeds) for x, seeds in self.curves(method, column).items()}

    def band(self, method: str, column: str, error: str = "") -> dict[int, tuple[float, float]]:
        """By epoch, the ends of the band around `curves`.

        Args:
            method: The method.
            column: A column of metrics.csv.
            error: The column of its standard errors. With it, the band begins one error below the
                lowest seed, though not below 0, and ends one error above the highest.
        """
        errors = self.curves(method, error)
        found: dict[int, tuple[float, float]] = {}
        for epoch, seeds in self.curves(method, column).items():
            found[epoch] = min(seeds), max(seeds)
            if epoch in errors:
                pairs = list(zip(seeds, errors[epoch], strict=True))
                found[epoch] = (
                    max(min(value - spread for value, spread in pairs), 0.0),
                    max(value + spread for value, spread in pairs),
                )
        return found

    def marked(self, method: str, curve: Mapping[int, Any]) -> list[int]:
        """The epochs of the method's re-learnings that its curve reaches, where they are marked."""
        return [epoch for epoch in self.moments(method) if epoch <= max(curve)] if curve else []

    def open_cells(self) -> list[tuple[str, int, str]]:
        """The runs without a result: method, seed and reason."""
        begun = {(run.method, run.seed): run for run in self.runs}
        cells = []
        for method in self.methods:
            for seed in self.seeds:
                run = begun.get((method, seed))
                if run is None:
                    cells.append((method, seed, "not started"))
                elif run.result is None:
                    cells.append((method, seed, _state(run)))
        return cells


def is_significant(p_holm: float | None) -> TypeGuard[float]:
    """Whether a corrected p-value may be set in bold."""
    return p_holm is not None and p_holm < SIGNIFICANT


def as_rows(summary: Mapping[tuple[str, str, str], Estimate]) -> list[dict[str, Any]]:
    """The lines of summary.csv."""
    return [
        {"method": method, "split": split, "metric": metric, **vars(estimate)}
        for (method, split, metric), estimate in summary.items()
    ]


def unequal_seeds(lines: Mapping[str, Mapping[str, Any]], reference: str = REFERENCE) -> str:
    """What to say if a difference is over fewer seeds than one of its means; empty otherwise.

    Args:
        lines: By method, the line of summary.csv for one metric.
        reference: The method that they are compared with.
    """
    theirs = lines.get(reference, {}).get("seeds", 0)
    compared = [line for line in lines.values() if line.get("difference") is not None]
    if all(line["pairs"] == line["seeds"] == theirs for line in compared):
        return ""
    return (
        "Methods finished different seeds: a mean is over a method's own seeds, a difference and "
        f"its test over those that it shares with {reference}."
    )


def without_result(methods: Iterable[str], finished: Mapping[str, int], seeds: int) -> str:
    """What to say about methods that no table of results lists; empty if each has a result.

    Args:
        methods: All methods that were asked for.
        finished: By method, the number of seeds with a value of the main metric.
        seeds: The number of seeds that were asked for.
    """
    of_seeds = f"0 of {seeds} seed{'' if seeds == 1 else 's'}"
    missing = [f"{method} ({of_seeds})" for method in methods if not finished.get(method)]
    return f"Without a result: {', '.join(missing)}." if missing else ""


def doubtful(runs: Iterable[Run]) -> str:
    """What to say if encoders re-learnt by gaps no larger than their errors; empty otherwise."""
    found: dict[str, list[bool]] = {}
    for run in runs:
        if run.moments():
            found.setdefault(run.method, []).append(run.is_doubtful)
    named = [
        f"{method} ({sum(doubts)} of {len(doubts)} runs)" if len(doubts) > 1 else method
        for method, doubts in found.items()
        if any(doubts)
    ]
    if not named:
        return ""
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (
        "Re-learnt by a gap no larger than its standard error, so perhaps by chance: "
        f"{', '.join(named[:NAMED])}{more}. Set gap=stable, or take more validation samples."
    )


def value_at(curve: Mapping[int, float], epoch: int) -> float:
    """The value of a curve at an epoch; interpolated if it was not measured there."""
    return float(np.interp(epoch, list(curve), list(curve.values())))


_NAME = re.compile(r"^evenly\.errors\.\w+: ")
"""The name in front of an error that is a sentence for the user."""


def _state(run: Run) -> str:
    if run.error:
        last = run.error.splitlines()[-1]  # of a traceback
        return f"failed: {_NAME.sub('', last)}"
    done = len(run.curves.get("epoch", ()))
    return f"unfinished, {done} epoch{'' if done == 1 else 's'} so far"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def shown_p(p: float) -> str:
    """A p-value to three places; never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compared_p(p: float) -> str:
    """The same with its relation: "= 0.012" or "< 0.001"."""
    return shown_p(p) if p < 0.001 else f"= {p:.3f}"
