"""Reads the folder of a comparison, finished or not."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np

from evenly.errors import UserFileNotFoundError
from evenly.files import check_written, read_npz, read_sealed, reading
from evenly.metrics import Metric, know
from evenly.report.comparison import Comparison, Estimate, Projected, Projection, Run
from evenly.spec import Spec, converted, load_yaml, made


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
        summary=read_summary(directory / "summary.csv"),
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
    "task": str | None,
    "loss": str | None,
    "versions": dict[str, str] | None,
    "tuned_trials": int | None,
    "select": str | None,
    "focal": float | None,
    "label_smoothing": float | None,
    "limit_samples": int | None,
    "noise": dict[str, float] | None,
    "missing": dict[str, float] | None,
    "missing_test": dict[str, float] | None,
    "missing_token": bool | None,
    "tuned_seeds": int | None,
    "measures": dict[str, dict[str, Any]] | None,
}
"""The settings that are read from a comparison's config.yaml, and their types."""


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
                for name, shown in (config.get("measures") or {}).items():
                    know(name, made("metric", Spec(name, shown), {name: Metric}))
    if not isinstance(config, dict):
        raise UserFileNotFoundError(
            f"'{directory}' holds no comparison: there is no config.yaml of one in it. "
            "Give the folder that 'evenly compare --out' wrote."
        )
    return config


def _read_run(folder: Path) -> Run:
    finished = (folder / "result.json").is_file()
    result = read_sealed(folder / "result.json") if finished else None
    source = folder / ("result.json" if finished else "config.yaml")
    with reading(source):
        cell = result or load_yaml(source.read_bytes())
        for name, hint in (("method", str), ("seed", int)):
            converted(name, cell[name], hint)
    confusion, numbers = _answers(folder / "predictions.npz", result) if result else (None, None)
    return Run(
        method=cell["method"],
        seed=cell["seed"],
        curves=_curves(folder / "metrics.csv", result or {}),
        result=result,
        error=_error(folder),
        confusion=confusion,
        numbers=numbers,
        projections=_projections(folder / "projection.npz") if finished else {},
    )


def read_curves(folder: Path) -> Run:
    """A run with its curves alone, which are quick to read.

    Raises:
        ValueError: If a file of it is damaged.
    """
    source = folder / "config.yaml"
    with reading(source):
        cell = load_yaml(source.read_bytes())
        for name, hint in (("method", str), ("seed", int)):
            converted(name, cell[name], hint)
    return Run(cell["method"], cell["seed"], _curves(folder / "metrics.csv", {}))


def _error(folder: Path) -> str:
    """Why a run failed, from its first process to fail; the others only report its absence."""
    first = min(folder.glob("error*.txt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    return "" if first is None else first.read_text(encoding="utf-8", errors="replace").strip()


def _curves(path: Path, result: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """By column of metrics.csv, the value after each epoch; empty before the first."""
    check_written(path, result.get("files", {}))
    with reading(path):
        rows = list(_rows(path))
        if [row["epoch"] for row in rows] != [str(epoch) for epoch in range(len(rows))]:
            raise ValueError("its epochs do not follow each other")
        return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else ())}


def _projections(path: Path) -> dict[Projected, Projection]:
    if not path.is_file():
        return {}
    with reading(path, "Remove it, and the report makes it again."):
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
                own=stored.get("own", stored["target"]).reshape(count),
                predicted=stored["predicted"].reshape(count),
                labels=[str(label) for label in labels],
                said=[str(text) for text in stored.get("said", ())],
            )
            for kind in get_args(Projected)
            if f"{kind}_0" in stored
        }
        if len(labels) != count:
            raise ValueError(f"it names {len(labels)} of {count} samples")
    return found


def _answers(path: Path, result: Mapping[str, Any]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The confusion for classes; the true and predicted numbers for one number per sample."""
    check_written(path, result.get("files", {}))
    with reading(path):
        found = read_npz(path)
        target = found["target"]
        if "numbers" in found:
            one = target.shape[1] == 1
            return None, np.hstack([target, found["numbers"]]) if one else None
        probabilities = found["probabilities"]
        if target.ndim > 1:  # of several labels a sample
            return None, None
        classes = probabilities.shape[1]
        pairs = classes * target + probabilities.argmax(1)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes), None


def read_summary(path: Path) -> dict[tuple[str, str, str], Estimate]:
    """The lines of summary.csv, by method, split and metric; none before the file exists.

    Raises:
        ValueError: If it is damaged.
    """
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


_ANEW = "'evenly report' makes it again."


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The lines of a table; none before the file exists.

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
    """An estimate from a line of summary.csv, whose values may be text or numbers."""
    names = [each.name for each in fields(Estimate) if each.name not in ("seeds", "pairs")]
    found = {name: _number(row.get(name)) for name in names}
    return Estimate(**found, seeds=int(row["seeds"]), pairs=int(row["pairs"]))


def _number(text: str | float | None) -> float | None:
    value = float("nan" if text in ("", None) else text)
    return value if math.isfinite(value) else None
