"""The tables of a comparison: results.csv, summary.csv, and the text that the command prints."""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from evenly.files import read_npz, reading, write_csv
from evenly.lab.run.result import Result, is_headline
from evenly.lab.statistics import bootstrap
from evenly.lab.statistics.paired import holm, paired_p, permutation_p, summarise
from evenly.metrics import METRICS, main_of, metric_of
from evenly.report import Projected, write_report
from evenly.report.comparison import (
    ENOUGH,
    PAPER,
    REFERENCE,
    as_rows,
    compared_p,
    conditions,
    unequal_seeds,
    without_result,
)
from evenly.report.finding import what_was_found
from evenly.report.folder import read_config, read_summary

RESULTS = ("method", "seed", "split", "metric", "value", "protocol", "tuned_trials")
SUMMARY = (
    "method",
    "split",
    "metric",
    "mean",
    "std",
    "low",
    "high",
    "seeds",
    "pairs",
    "difference",
    "difference_low",
    "difference_high",
    "test",
    "p_value",
    "p_holm",
    "p_permutation",
    "protocol",
    "tuned_trials",
)
RESAMPLED = "paired t over seeds, bootstrap over seeds and samples"
OVER_SEEDS = "paired t over seeds"


@dataclass(frozen=True)
class Answers:
    """The predictions of a comparison's finished runs on its test split.

    Attributes:
        target: Class of each sample; (n, c) whether it has each of several labels, or its numbers.
        guess: The predicted classes, labels or numbers, by method and seed.
    """

    target: Shaped[np.ndarray, "n *c"]
    guess: Mapping[str, Mapping[int, Shaped[np.ndarray, "n *c"]]]


def write_tables(out: Path, projection: Projected = "tsne") -> Path:
    """Writes results.csv, summary.csv and report.html from the finished runs of a folder.

    Args:
        out: The folder of a comparison.
        projection: The projection of test samples that the report shows.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
    """
    config = read_config(out)
    protocol = {name: config.get(name, "") for name in ("protocol", "tuned_trials")}
    results = read_results(out)
    lines = summary(results, read_answers(out))
    write_csv(out / "results.csv", RESULTS, [row | protocol for row in results])
    write_csv(out / "summary.csv", SUMMARY, [row | protocol for row in lines])
    return write_report(out, projection)


def read_results(out: Path) -> list[dict[str, Any]]:
    """The rows of results.csv, from the result.json of each finished run."""
    rows = []
    cost = ["seconds", "peak_memory_mb", "steps", "flops"]
    if read_config(out).get("patience") is not None:
        cost.append("epochs")  # these differ from run to run
    for _, result in _finished(out):
        known = {name: getattr(result, name) for name in cost}
        known = {name: value for name, value in known.items() if value is not None}
        metrics = {**result.metrics, "train": known}
        rows += [
            {
                "method": result.method,
                "seed": result.seed,
                "split": name,
                "metric": metric,
                "value": float(value),
            }
            for name, values in metrics.items()
            for metric, value in values.items()
        ]
    return rows


def read_answers(out: Path) -> Answers | None:
    """The predictions of each finished run; None before there is one."""
    guess: dict[str, dict[int, np.ndarray]] = {}
    target = None
    for folder, result in _finished(out):
        path = folder / "predictions.npz"
        result.check(path)
        with reading(path):
            file = read_npz(path)
            target = file["target"]
            if "numbers" in file:
                found = file["numbers"]
            else:
                probabilities = file["probabilities"]
                found = probabilities.argmax(1) if target.ndim == 1 else probabilities > 0.5
        guess.setdefault(result.method, {})[result.seed] = found
    return None if target is None else Answers(target, guess)


def _finished(out: Path) -> Iterable[tuple[Path, Result]]:
    for path in sorted((out / "runs").glob("*/result.json")):
        if (result := Result.read(path.parent)) is not None:
            yield path.parent, result


def summary(
    results: Iterable[Mapping[str, Any]],
    answers: Answers | None = None,
    reference: str = REFERENCE,
) -> list[dict[str, Any]]:
    """The rows of summary.csv: each metric over seeds, and against the reference method.

    Seeds for which a metric is undefined, such as the correlation of a constant, do not count.
    Tests are paired: both runs of a seed share data, batches and initial weights. `pairs` counts
    the seeds that a method shares with the reference, over which its difference is. Below `ENOUGH`
    seeds a mean has no interval, and below `ENOUGH` pairs a difference has neither an interval nor
    a test: these fields stay empty. Accuracies, F1, errors and correlations on the test split are
    also bootstrapped over seeds and samples (see `bootstrap`); everything else, such as the loss,
    is tested over seeds alone. p-values have Holm's correction over methods, for each metric of
    each split. The permutation test beside them flips the signs of the seeds' differences.

    Args:
        results: The rows of results.csv.
        answers: The predictions behind them; without these, every test is over seeds.
        reference: The method that all others are compared with.
    """
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in results:
        by_method = values.setdefault((row["split"], row["metric"]), {})
        by_seed = by_method.setdefault(row["method"], {})
        if not math.isnan(row["value"]):
            by_seed[row["seed"]] = row["value"]
    rows = []
    for (name, metric), by_method in values.items():
        baseline = by_method.get(reference, {})
        again = None
        if answers is not None and name == "test" and metric in _ANEW:
            again = _Resampled(answers, metric, reference)
        of_metric = []
        for method, by_seed in by_method.items():
            found = summarise(list(by_seed.values()))
            both = sorted(by_seed.keys() & baseline.keys())
            line = {"method": method, "split": name, "metric": metric, **asdict(found)}
            line["pairs"] = len(both)
            if found.seeds < ENOUGH:
                line |= {"low": None, "high": None}
            if method != reference and both:
                ours, theirs = [by_seed[s] for s in both], [baseline[s] for s in both]
                line["difference"] = float(np.subtract(ours, theirs).mean())
                if len(both) >= ENOUGH:
                    line |= _over_seeds(ours, theirs)
                    if again is not None:
                        line |= again.against(method, tuple(both), (ours, theirs))
            of_metric.append(line)
        tested = [line for line in of_metric if line.get("p_value") is not None]
        corrected = holm([line["p_value"] for line in tested])
        for line, p_value in zip(tested, corrected, strict=True):
            line["p_holm"] = p_value
        rows += of_metric
    return rows


def _over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The interval and tests of a difference."""
    found = summarise(np.subtract(ours, theirs).tolist())
    return {
        "difference_low": found.low,
        "difference_high": found.high,
        "test": OVER_SEEDS,
        "p_value": paired_p(ours, theirs),
        "p_permutation": permutation_p(ours, theirs),
    }


class _Resampled:
    """A metric of every method against the reference's, over draws of seeds and samples."""

    def __init__(self, answers: Answers, metric: str, reference: str) -> None:
        self._answers, self._metric, self._reference = answers, metric, reference
        self._of_reference: dict[Sequence[int], np.ndarray] = {}  # by seeds: alike for all methods

    def against(
        self, method: str, seeds: Sequence[int], by_seed: tuple[Sequence[float], Sequence[float]]
    ) -> dict[str, Any]:
        """The interval and p of a method, given both metrics of each seed."""
        drawn = bootstrap.weights(len(seeds), len(self._answers.target))
        if seeds not in self._of_reference:
            self._of_reference[seeds] = self._scores(drawn.samples, self._reference, seeds)
        ours = self._scores(drawn.samples, method, seeds)
        found = bootstrap.difference(drawn, ours, self._of_reference[seeds], by_seed)
        return {
            "difference_low": found.low,
            "difference_high": found.high,
            "test": RESAMPLED,
            "p_value": found.p_value,
        }

    def _scores(
        self, samples: Float[np.ndarray, "b n"], method: str, seeds: Sequence[int]
    ) -> Float[np.ndarray, "b s"]:
        guess = np.stack([self._answers.guess[method][seed] for seed in seeds])
        return _ANEW[self._metric](samples, guess, self._answers)


def _accuracy(
    samples: Float[np.ndarray, "b n"], guess: Shaped[np.ndarray, "s n *c"], answers: Answers
) -> Float[np.ndarray, "b s"]:
    right = guess == answers.target
    return bootstrap.mean(samples, right if right.ndim == 2 else right.all(2))


def _balanced_accuracy(
    samples: Float[np.ndarray, "b n"], guess: Int[np.ndarray, "s n"], answers: Answers
) -> Float[np.ndarray, "b s"]:
    return bootstrap.balanced_accuracy(samples, guess, answers.target)


def _macro_f1(
    samples: Float[np.ndarray, "b n"], guess: Shaped[np.ndarray, "s n *c"], answers: Answers
) -> Float[np.ndarray, "b s"]:
    if answers.target.ndim == 2:
        return bootstrap.label_f1(samples, guess, answers.target > 0, "macro")
    return bootstrap.macro_f1(samples, guess, answers.target)


def _micro_f1(
    samples: Float[np.ndarray, "b n"], guess: Bool[np.ndarray, "s n c"], answers: Answers
) -> Float[np.ndarray, "b s"]:
    return bootstrap.label_f1(samples, guess, answers.target > 0, "micro")


def _mae(
    samples: Float[np.ndarray, "b n"], guess: Float[np.ndarray, "s n c"], answers: Answers
) -> Float[np.ndarray, "b s"]:
    return bootstrap.mean(samples, np.abs(guess - answers.target).mean(2))


def _rmse(
    samples: Float[np.ndarray, "b n"], guess: Float[np.ndarray, "s n c"], answers: Answers
) -> Float[np.ndarray, "b s"]:
    error = np.square(guess - answers.target)
    columns = [np.sqrt(bootstrap.mean(samples, error[..., c])) for c in range(error.shape[2])]
    found: Float[np.ndarray, "b s"] = np.stack(columns).mean(0)
    return found


def _correlation(
    samples: Float[np.ndarray, "b n"],
    guess: Float[np.ndarray, "s n c"],
    answers: Answers,
    *,
    kind: Literal["pearson", "concordance"],
) -> Float[np.ndarray, "b s"]:
    return bootstrap.correlation(samples, guess, answers.target, kind)


def _rounded(
    samples: Float[np.ndarray, "b n"],
    guess: Float[np.ndarray, "s n 1"],
    answers: Answers,
    *,
    most: int,
) -> Float[np.ndarray, "b s"]:
    """Acc-5 and Acc-7: see `evenly.data.tasks.sentiment`."""
    one, other = (np.round(np.clip(x[..., 0], -most, most)) for x in (guess, answers.target))
    return bootstrap.mean(samples, one == other)


def _signs(
    samples: Float[np.ndarray, "b n"],
    guess: Float[np.ndarray, "s n 1"],
    answers: Answers,
    *,
    kind: Literal["accuracy", "f1"],
    zeros: bool,
) -> Float[np.ndarray, "b s"]:
    """Acc-2 and F1, with and without samples that are 0: see `evenly.data.tasks.sentiment`."""
    said, true = guess[..., 0], answers.target[:, 0]
    if zeros:
        one, other = said >= 0, true >= 0
    else:
        some = true != 0
        samples, one, other = bootstrap.among(samples, some), said[:, some] > 0, true[some] > 0
    if kind == "f1":
        return bootstrap.weighted_f1(samples, one, other)
    return bootstrap.mean(samples, one == other)


_ANEW: Mapping[str, Callable[[np.ndarray, np.ndarray, Answers], np.ndarray]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "mae": _mae,
    "rmse": _rmse,
    "pearson": partial(_correlation, kind="pearson"),
    "concordance": partial(_correlation, kind="concordance"),
    "acc_2": partial(_signs, kind="accuracy", zeros=True),
    "acc_2_nonzero": partial(_signs, kind="accuracy", zeros=False),
    "acc_5": partial(_rounded, most=2),
    "acc_7": partial(_rounded, most=3),
    "f1": partial(_signs, kind="f1", zeros=True),
    "f1_nonzero": partial(_signs, kind="f1", zeros=False),
}
"""The metrics that follow from the predicted classes, labels or numbers."""


def table(out: Path) -> str:
    """What a comparison found, in words, and its test metrics, best main metric first.

    Args:
        out: The folder of a comparison, after `write_tables`.
    """
    config = read_config(out)
    found = as_rows(read_summary(out / "summary.csv"))
    rows = [row for row in found if row["split"] == "test"]
    known = dict.fromkeys(row["metric"] for row in rows)
    asked = (config.get("select"), *(config.get("measures") or ()))
    metrics = [name for name in known if is_headline(name) or name in asked]
    cells = {(row["method"], row["metric"]): row for row in rows}
    main = main_of(known)
    sign = METRICS[main].sign
    methods = sorted(
        dict.fromkeys(row["method"] for row in rows),
        key=lambda method: -sign * _mean(cells[method, main]),
    )
    head = ["method", *metrics, f"against {REFERENCE}"]
    body = [
        [
            method,
            *(_plus_minus(cells.get((method, metric))) for metric in metrics),
            _difference(cells[method, main]),
        ]
        for method in methods
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    ]
    said = [PAPER] if config.get("protocol") == "paper" else []
    begin = textwrap.fill(" ".join(what_was_found(found)), 100, break_on_hyphens=False)
    of_main = {method: cells[method, main] for method in methods}
    finished = {
        method: 0 if row["mean"] is None else row["seeds"] for method, row in of_main.items()
    }
    asked, seeds = config.get("methods") or (), config.get("seeds") or 0
    said += [conditions(config), without_result(asked, finished, seeds), unequal_seeds(of_main)]
    after = [f"\n{text}" for text in said if text]
    return "\n".join([begin, "", *lines, *after])


def _plus_minus(row: Mapping[str, Any] | None) -> str:
    if row is None:  # a unimodal model has no values for the others
        return ""
    metric, mean = metric_of(row["metric"]), _mean(row)
    spread = "" if row["std"] is None else f" ± {metric.written(row['std'], like=mean)}"
    return f"{metric.written(mean)}{spread}"


def _mean(row: Mapping[str, Any]) -> float:
    """NaN where no seed has a value."""
    return math.nan if row["mean"] is None else row["mean"]


def _difference(row: Mapping[str, Any]) -> str:
    if row.get("difference") is None:
        return ""
    p = "" if row.get("p_holm") is None else f" (p {compared_p(row['p_holm'])})"
    return f"{metric_of(row['metric']).written(row['difference'], '+')}{p}"
