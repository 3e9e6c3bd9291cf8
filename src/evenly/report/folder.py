"""Reads the folder of a comparison, finished or not."""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from evenly.errors import UserFileNotFoundError
from evenly.files import check_written, read_npz, read_sealed, reading
from evenly.spec import converted, load_yaml

REFERENCE = "joint"
"""The method that every other one is compared with."""
PAPER = (
    "Protocol: paper. The epoch is selected on the test split, so these test figures are too high: "
    "compare them with published tables that do the same, and with nothing else."
)
"""What every output of `--protocol paper` says."""
Projected = Literal["tsne", "umap"]
"""How features are laid out in the plane."""


def tuning(config: Mapping[str, Any]) -> str:
    """What every output of a comparison says whose methods train differently; else empty."""
    if config.get("settings"):
        return (
            f"Each method has the settings that its authors {config['settings']}; what they do not "
            "publish is common to all."
        )
    trials, seeds = config.get("tuned_trials"), config.get("tuned_seeds")
    if trials is None:
        return ""
    counted = "seed 0" if seeds == 1 else f"the mean of seeds 0 to {int(str(seeds)) - 1}"
    return (
        "Learning rate, weight decay and each method's own settings were tuned, with "
        f"{trials} trial{'' if trials == 1 else 's'} for each method, by validation accuracy "
        f"({counted})."
    )


@dataclass(frozen=True)
class Estimate:
    """A line of summary.csv; None stands for an empty field."""

    mean: float | None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Projection:
    """Where samples lie in the plane, as the encoders of a run see them.

    Attributes:
        places: By modality, (k, 2); nan where a sample lacks it.
        target: (k,) class of each sample.
        predicted: (k,) the class that it is taken for.
        labels: What each sample is called.
    """

    places: Mapping[str, np.ndarray]
    target: np.ndarray
    predicted: np.ndarray
    labels: Sequence[str]


@dataclass(frozen=True)
class Run:
    """One cell of the comparison: a method with a seed.

    Attributes:
        method: As it was asked for, with its settings.
        seed: Of the run.
        curves: By column of metrics.csv, the value after each epoch; None where not measured.
        result: What result.json holds; None while the run has not finished.
        error: Why the run failed; empty otherwise.
        confusion: Test samples by class (rows) and the class they were taken for; None while the
            run has not finished.
        projections: Of its features, by kind, as far as they were computed.
    """

    method: str
    seed: int
    curves: Mapping[str, Sequence[float | None]]
    result: Mapping[str, Any] | None = None
    error: str = ""
    confusion: np.ndarray | None = None
    projections: Mapping[Projected, Projection] = field(default_factory=dict)

    def points(self, column: str) -> dict[int, float]:
        """The measured values of a column, by the number of epochs completed."""
        if column not in self.curves:
            return {}
        values = zip(self.curves["epoch"], self.curves[column], strict=True)
        return {int(x) + 1: y for x, y in values if x is not None and y is not None}

    def moments(self) -> dict[int, dict[str, float]]:
        """By epochs completed before it, each re-learning's strengths by modality."""
        found: dict[int, dict[str, float]] = {}
        for column in self.curves:
            kind, _, modality = column.partition("/")
            if kind == "relearn_strength":
                # It happens before the epoch of its row, so one epoch less is complete.
                for epoch, strength in self.points(column).items():
                    found.setdefault(epoch - 1, {})[modality] = strength
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class Comparison:
    """What the folder of a comparison holds so far.

    Attributes:
        config: The comparison's settings, notes, versions and hardware.
        runs: The cells that were begun, by method and seed.
        summary: By method, split and metric.
        results: By method, split and metric: seed to value.
        changed: When a result was last written.
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
    def tuning(self) -> str:
        """How the settings were tuned, in words; empty if they were not."""
        return tuning(self.config)

    @property
    def selects_on_test(self) -> bool:
        """Whether it repeats the published habit (`--protocol paper`)."""
        return self.config.get("protocol") == "paper"

    @cached_property
    def ranking(self) -> list[str]:
        """The methods, best mean test accuracy first; those without one come last."""
        accuracy = {method: self.accuracy(method) for method in self.methods}
        ranked = [method for method in self.methods if accuracy[method] is not None]
        ranked.sort(key=lambda method: accuracy[method] or 0.0, reverse=True)
        return ranked + [method for method in self.methods if accuracy[method] is None]

    def estimate(self, method: str, metric: str) -> Estimate:
        """What summary.csv says of a metric on the test split."""
        return self.summary.get((method, "test", metric), Estimate(None))

    def accuracy(self, method: str) -> float | None:
        """Mean test accuracy, between 0 and 1."""
        return self.estimate(method, "accuracy").mean

    def runs_of(self, method: str) -> list[Run]:
        """The cells of a method that were begun, by seed."""
        return [run for run in self.runs if run.method == method]

    def confusion(self, method: str) -> np.ndarray | None:
        """The share of each class (rows) that was taken for each, over all finished seeds."""
        found = [run.confusion for run in self.runs_of(method) if run.confusion is not None]
        if not found:
            return None
        counts: np.ndarray = np.sum(found, axis=0)
        share: np.ndarray = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        return share

    def projection(self, method: str, kind: Projected) -> Projection | None:
        """Where samples lie, by the first of its runs that has it; None if none has."""
        found = (run.projections.get(kind) for run in self.runs_of(method))
        return next((projection for projection in found if projection is not None), None)

    def pair(self, among: Sequence[str]) -> list[str]:
        """Of these methods joint training and the first that re-learns, as far as they are there.

        Where none re-learns, the first other one stands for it.
        """
        others = [method for method in among if method != REFERENCE]
        relearning = [method for method in others if self.moments(method)]
        return [m for m in among if m == REFERENCE] + (relearning or others)[:1]

    @cached_property
    def class_names(self) -> list[str]:
        """By class number."""
        return [str(name) for name in self.config.get("class_names") or []]

    @cached_property
    def noise_levels(self) -> list[float]:
        """The levels of noise under which the models were looked at, ascending."""
        found = {metric.partition("/")[0] for _, _, metric in self.summary}
        return sorted(float(name.removeprefix("noise_")) for name in found if "noise_" in name)

    def moments(self, method: str) -> dict[int, dict[str, float]]:
        """By epochs completed, the mean strength of each modality over the seeds."""
        found: dict[int, dict[str, list[float]]] = {}
        for run in self.runs_of(method):
            for epoch, strengths in run.moments().items():
                for modality, strength in strengths.items():
                    found.setdefault(epoch, {}).setdefault(modality, []).append(strength)
        return {
            epoch: {name: sum(values) / len(values) for name, values in strengths.items()}
            for epoch, strengths in sorted(found.items())
        }

    def mean_curve(self, method: str, column: str) -> dict[int, float]:
        """The mean over the finished seeds (all, before one has), where each has a value.

        At an epoch that only some seeds have reached the mean would jump.
        """
        runs = self.runs_of(method)
        runs = [run for run in runs if run.result] or runs
        curves = [points for run in runs if (points := run.points(column))]
        if not curves:
            return {}
        shared = sorted(set.intersection(*(set(points) for points in curves)))
        return {x: sum(points[x] for points in curves) / len(curves) for x in shared}

    def open_cells(self) -> list[tuple[str, int, str]]:
        """The cells without a result: method, seed and why."""
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


def read_comparison(directory: Path) -> Comparison:
    """Reads the folder of a comparison; cells may be missing, unfinished or failed.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If a file of it is damaged, or not as a finished run wrote it.
    """
    config = read_config(directory)
    folders = sorted(folder for folder in (directory / "runs").glob("*") if folder.is_dir())
    begun = ("config.yaml", "result.json")
    runs = [_read_run(folder) for folder in folders if any((folder / f).is_file() for f in begun)]
    written = [*(directory / "runs").glob("*/result.json"), *directory.glob("summary.csv")]
    newest = max(file.stat().st_mtime for file in written or [directory / "config.yaml"])
    return Comparison(
        config=config,
        runs=sorted(runs, key=lambda run: (run.method, run.seed)),
        summary=_read_summary(directory / "summary.csv"),
        results=_read_results(directory / "results.csv"),
        changed=datetime.fromtimestamp(newest, UTC),
    )


_CONFIG = {
    "methods": list[str] | None,
    "seeds": int | list[int] | None,
    "modalities": list[str] | None,
    "class_names": list[str] | None,
    "notes": list[str] | None,
    "name": str | None,
    "data": str | None,
    "command": str | None,
    "hardware": str | None,
    "protocol": str | None,
    "versions": dict[str, str] | None,
    "tuned_trials": int | None,
    "tuned_seeds": int | None,
}
"""What is read of a comparison's config.yaml, and its types."""


def read_config(directory: Path) -> dict[str, Any]:
    """The config.yaml of a comparison.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If a setting is of another type.
    """
    path = directory / "config.yaml"
    config: Any = None
    if path.is_file():
        with reading(path, "Bring it back, or run the comparison in another folder."):
            config = load_yaml(path.read_bytes())
            if isinstance(config, dict):
                for name, hint in _CONFIG.items():
                    converted(name, config.get(name), hint)
    if not isinstance(config, dict):
        raise UserFileNotFoundError(
            f"'{directory}' holds no comparison: there is no config.yaml of one in it. "
            "Give the folder that 'evenly compare --out' wrote."
        )
    return config


def value_at(curve: Mapping[int, float], epoch: int) -> float:
    """The value of a curve at an epoch, between its neighbours where it was not measured."""
    return float(np.interp(epoch, list(curve), list(curve.values())))


def _read_run(folder: Path) -> Run:
    error = folder / "error.txt"
    finished = (folder / "result.json").is_file()
    result = read_sealed(folder / "result.json") if finished else None
    source = folder / ("result.json" if finished else "config.yaml")
    with reading(source):
        cell = result or load_yaml(source.read_bytes())
        for name, hint in (("method", str), ("seed", int)):
            converted(name, cell[name], hint)
    return Run(
        method=cell["method"],
        seed=cell["seed"],
        curves=_curves(folder / "metrics.csv", result or {}),
        result=result,
        error=error.read_text(encoding="utf-8", errors="replace").strip()
        if error.is_file()
        else "",
        confusion=_confusion(folder / "predictions.npz", result) if result else None,
        projections=_projections(folder / "projection.npz") if finished else {},
    )


def _curves(path: Path, result: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """By column of metrics.csv, the value after each epoch; nothing before the first."""
    check_written(path, result.get("files", {}))
    with reading(path):
        rows = list(_rows(path))
        if [row["epoch"] for row in rows] != [str(epoch) for epoch in range(len(rows))]:
            raise ValueError("its epochs do not follow each other")
        return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else ())}


def _projections(path: Path) -> dict[Projected, Projection]:
    if not path.is_file():
        return {}
    with reading(path, "Remove it, and the report makes it anew."):
        stored = read_npz(path)
        count = len(stored["target"])
        labels = stored["name"] if "name" in stored else [f"sample {row}" for row in stored["row"]]
        found = {
            kind: Projection(
                places={
                    str(name): stored[f"{kind}_{place}"].reshape(count, 2)
                    for place, name in enumerate(stored["modalities"])
                },
                target=stored["target"],
                predicted=stored["predicted"].reshape(count),
                labels=[str(label) for label in labels],
            )
            for kind in get_args(Projected)
            if f"{kind}_0" in stored
        }
        if len(labels) != count:
            raise ValueError(f"it names {len(labels)} of {count} samples")
    return found


def _confusion(path: Path, result: Mapping[str, Any]) -> np.ndarray:
    check_written(path, result.get("files", {}))
    with reading(path):
        found = read_npz(path)
        probabilities, target = found["probabilities"], found["target"]
        classes = probabilities.shape[1]
        pairs = classes * target + probabilities.argmax(1)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _read_summary(path: Path) -> dict[tuple[str, str, str], Estimate]:
    with reading(path, _ANEW):
        return {
            (row["method"], row["split"], row["metric"]): estimate_of(row) for row in _rows(path)
        }


def _read_results(path: Path) -> dict[tuple[str, str, str], dict[int, float]]:
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    with reading(path, _ANEW):
        for row in _rows(path):
            value = _number(row["value"])
            if value is not None:
                key = (row["method"], row["split"], row["metric"])
                found.setdefault(key, {})[int(row["seed"])] = value
    return found


_ANEW = "'evenly report' makes it anew."


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The lines of a table; none where there is no such file yet.

    Raises:
        ValueError: If it is cut off. Tables are written whole or not at all.
    """
    if not path.is_file():
        return
    text = path.read_bytes().decode()
    rows = csv.DictReader(text.splitlines(keepends=True), strict=True)
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"line {rows.line_num} has other cells than the first")
        yield row
    if not text.endswith("\n"):
        raise ValueError("its last line is cut off")


def estimate_of(row: Mapping[str, Any]) -> Estimate:
    """A line of summary.csv, as text or as it was made."""
    names = [each.name for each in fields(Estimate) if each.name != "seeds"]
    return Estimate(**{name: _number(row.get(name)) for name in names}, seeds=int(row["seeds"]))


def _number(text: str | float | None) -> float | None:
    value = float("nan" if text in ("", None) else text)
    return value if math.isfinite(value) else None


_NAME = re.compile(r"^evenly\.errors\.\w+: ")
"""Of an error that is a sentence for the user."""


def _state(run: Run) -> str:
    if run.error:
        last = run.error.splitlines()[-1]  # of a traceback
        return f"failed: {_NAME.sub('', last)}"
    done = len(run.curves.get("epoch", ()))
    return f"unfinished, {done} epoch{'' if done == 1 else 's'} so far"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def shown_p(p: float) -> str:
    """A p-value to three places, not as 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compared_p(p: float) -> str:
    """The same with its sign."""
    return shown_p(p) if p < 0.001 else f"= {p:.3f}"
