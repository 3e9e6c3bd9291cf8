"""The tables of a comparison: results.csv, summary.csv, and the text that the command prints."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evenly.files import write_csv
from evenly.lab.result import Result
from evenly.lab.statistics import holm, paired_p, summarise
from evenly.report import write_report
from evenly.report.folder import REFERENCE, read_config

RESULTS = ("method", "seed", "split", "metric", "value")
SUMMARY = (
    "method",
    "split",
    "metric",
    "mean",
    "std",
    "low",
    "high",
    "seeds",
    "difference",
    "p_value",
    "p_holm",
)


def write_tables(out: Path) -> Path:
    """Writes results.csv, summary.csv and report.html from the finished runs of a folder.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
    """
    read_config(out)
    results = read_results(out)
    write_csv(out / "results.csv", RESULTS, results)
    write_csv(out / "summary.csv", SUMMARY, summary(results))
    return write_report(out)


def read_results(out: Path) -> list[dict[str, Any]]:
    """The rows of results.csv, from the result.json of each finished run."""
    found = [Result.read(path.parent) for path in sorted((out / "runs").glob("*/result.json"))]
    rows = []
    for result in found:
        assert result is not None
        cost = {"seconds": result.seconds, "peak_memory_mb": result.peak_memory_mb}
        metrics = {**result.metrics, "train": {**cost, "steps": result.steps}}
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


def summary(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of summary.csv: each metric over seeds, and against the reference method.

    The test is paired: both runs of a seed share data, batches and initial weights. p-values are
    corrected by Holm over the methods, for each metric of each split.
    """
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in results:
        by_method = values.setdefault((row["split"], row["metric"]), {})
        by_method.setdefault(row["method"], {})[row["seed"]] = row["value"]
    rows = []
    for (name, metric), by_method in values.items():
        reference = by_method.get(REFERENCE, {})
        of_metric = []
        for method, by_seed in by_method.items():
            found = summarise(list(by_seed.values()))
            line = {"method": method, "split": name, "metric": metric, **asdict(found)}
            both = sorted(by_seed.keys() & reference.keys())
            if method != REFERENCE and both:
                ours, theirs = [by_seed[s] for s in both], [reference[s] for s in both]
                line["difference"] = sum(ours) / len(both) - sum(theirs) / len(both)
                line["p_value"] = paired_p(ours, theirs)
            of_metric.append(line)
        tested = [line for line in of_metric if line.get("p_value") is not None]
        corrected = holm([line["p_value"] for line in tested])
        for line, p_value in zip(tested, corrected, strict=True):
            line["p_holm"] = p_value
        rows += of_metric
    return rows


def table(out: Path) -> str:
    """The test metrics of a comparison as text, best accuracy first."""
    rows = [row for row in summary(read_results(out)) if row["split"] == "test"]
    metrics = [m for m in dict.fromkeys(row["metric"] for row in rows) if m != "loss"]
    cells = {(row["method"], row["metric"]): row for row in rows}
    methods = sorted(
        dict.fromkeys(row["method"] for row in rows),
        key=lambda method: -cells[method, "accuracy"]["mean"],
    )
    head = ["method", *metrics, f"against {REFERENCE}"]
    body = [
        [
            method,
            *(_plus_minus(cells.get((method, metric))) for metric in metrics),
            _difference(cells[method, "accuracy"]),
        ]
        for method in methods
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    )


def _plus_minus(row: Mapping[str, Any] | None) -> str:
    if row is None:  # a model of one modality has no accuracy of the others
        return ""
    spread = "" if row["std"] is None else f" ± {row['std']:.3f}"
    return f"{row['mean']:.3f}{spread}"


def _difference(row: Mapping[str, Any]) -> str:
    if row.get("difference") is None:
        return ""
    p = "" if row.get("p_holm") is None else f" (p = {row['p_holm']:.2f})"
    return f"{row['difference']:+.3f}{p}"
