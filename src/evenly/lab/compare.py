"""A comparison: every method over the seeds, in parallel processes, then tables and report."""

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from evenly.lab.jobs import run_cells
from evenly.lab.projection import project
from evenly.lab.settings import (
    Cell,
    Training,
    check_folder,
    check_same,
    read_settings,
    write_settings,
)
from evenly.lab.tables import write_tables
from evenly.spec import Spec, split

if TYPE_CHECKING:
    from evenly.data import Data


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        training: What all methods share.
        methods: Each 'name' or 'name(setting=value)'.
        seeds: How many; they are 0, 1, ...
        out: The folder that receives everything.
    """

    training: Training
    methods: tuple[str, ...]
    seeds: int
    out: Path

    def cells(self) -> list[Cell]:
        """All runs, seed by seed, so that a stopped comparison has whole seeds."""
        return [
            Cell(self.training, method, seed)
            for seed in range(self.seeds)
            for method in self.methods
        ]

    def folder(self, cell: Cell) -> Path:
        """Where a run lives."""
        return self.out / "runs" / cell.folder


class Failed(RuntimeError):
    """Some runs of a comparison failed; the others are finished and reported."""


def compare(methods: str, seeds: int, training: Training, out: Path, jobs: int) -> Path:
    """Trains every method over the seeds and writes tables and report.

    Finished runs are not repeated and unfinished ones are taken up, so the same call continues
    a comparison that was stopped. The figures do not depend on `jobs`.

    Args:
        methods: Names with settings if wanted, separated by commas.
        seeds: How many seeds.
        training: What all methods share.
        out: The folder that receives everything.
        jobs: Runs at the same time.

    Returns:
        The report.

    Raises:
        ValueError: If something is wrong with the data, a method or the folder; before training.
        Failed: If runs failed.
        KeyboardInterrupt: If it was stopped; what is finished is reported.
    """
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise ValueError(f"--{name} is at least 1; found {value}.")
    names, data = _named(split(methods), training)
    plan = Comparison(training, names, seeds, out)
    _prepare(plan, data)
    failures: dict[str, str] = {}
    try:
        failures = run_cells({plan.folder(cell): cell for cell in plan.cells()}, jobs)
        project(out)  # who stops it does not wait for this
    finally:
        report = write_tables(out)
    if failures:
        lines = [f"  {name}: {reason}" for name, reason in failures.items()]
        raise Failed(
            f"{len(failures)} of {len(plan.cells())} runs failed; the others are in {report}.\n"
            + "\n".join(lines)
            + f"\nThe details are in error.txt of each folder under {out / 'runs'}. The same "
            "command tries them again."
        )
    return report


def _named(methods: Sequence[Spec], training: Training) -> tuple[tuple[str, ...], "Data | None"]:
    """The methods meant, and the data where those had to be looked at for it."""
    # loads torch, for which the command's help cannot wait
    from evenly.lab.build import expanded, load_data

    several = any(spec.name in ("all", "unimodal") for spec in methods)
    data = load_data(training) if several else None
    return tuple(expanded(methods, data.modalities if data else ())), data


def _prepare(plan: Comparison, data: "Data | None") -> None:
    """Finds what would fail, says what a user should know, and writes config.yaml."""
    from evenly.lab.prepare import prepare, say

    check_folder(plan.out)
    path = plan.out / "config.yaml"
    found = read_settings(path, "methods")
    shared = plan.training.as_dict()
    check_same(plan.out, found, shared)
    data, notes = prepare(plan.cells()[: len(plan.methods)], data)
    say(notes)
    command = shlex.join(["evenly", *sys.argv[1:]])
    # Tables and report hold every run in the folder, so its settings name them all, too.
    write_settings(
        path,
        {
            **shared,
            "methods": _union(found.get("methods", ()), plan.methods),
            "seeds": max(found.get("seeds", 0), plan.seeds),
            "command": "\n".join(_union(found.get("command", "").splitlines(), [command])),
            "versions": {name: version(name) for name in ("evenly", "torch", "lightning")}
            | {"python": platform.python_version()},
            "hardware": hardware(),
            "notes": _union(found.get("notes", ()), notes),
            "class_names": data.class_names,
            "modalities": list(data.modalities),
        },
    )


def _union(old: Iterable[str], new: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*old, *new]))


def hardware() -> str:
    """The machine, in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.partition(":")[2].strip()
        for line in _read("/proc/cpuinfo").splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
