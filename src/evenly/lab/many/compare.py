"""A comparison: every method over all seeds, in parallel processes, then tables and report."""

import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evenly.errors import UserRuntimeError
from evenly.files import held
from evenly.hidden import hidden_argument
from evenly.lab.many.engine import Listed, Pool, carry
from evenly.lab.many.job import Job
from evenly.lab.many.local import forker
from evenly.lab.many.published import Published
from evenly.lab.many.tuned import Tuning
from evenly.lab.run.logs import Logs
from evenly.lab.run.settings import (
    Cell,
    Training,
    check_apart,
    check_counts,
    check_folder,
    check_same,
    read_settings,
    with_code,
    write_settings,
)
from evenly.lab.run.versions import DECODERS, MIXED, joined, mixed, of_run
from evenly.lab.statistics.projection import project, project_meanwhile
from evenly.lab.statistics.tables import write_tables
from evenly.metrics import METRICS
from evenly.spec import Spec, split

if TYPE_CHECKING:
    from evenly.data import Data


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        training: What all methods share.
        methods: Each 'name' or 'name(setting=value)'.
        seeds: Number of seeds: 0, 1, ...
        out: The folder for all results.
        own: The source of each method's own settings, if not shared: a search, or its authors.
        logs: How the runs are logged, which does not affect results.
    """

    training: Training
    methods: tuple[str, ...]
    seeds: int
    out: Path
    own: Tuning | Published | None = None
    logs: Logs = field(default_factory=Logs)

    def variants(self) -> dict[str, Training]:
        """The training of each method, by its name in runs."""
        if self.own is None:
            return dict.fromkeys(self.methods, self.training)
        own = [self.own.of(method) for method in self.methods]
        return {each.method: each.of(self.training) for each in own}

    def cells(self) -> list[Cell]:
        """All runs, seed by seed, so that a stopped comparison has complete seeds."""
        return [
            Cell(training, method, seed)
            for seed in range(self.seeds)
            for method, training in self.variants().items()
        ]

    def settings(self) -> dict[str, Any]:
        """What all runs share, for config.yaml; runs with other settings must not be mixed in."""
        return with_code(self.training.as_dict() | (self.own.shared if self.own else {}))

    def differing(self) -> dict[str, dict[str, Any]]:
        """Each method's own training settings, by its name in runs; empty if there are none."""
        if self.own is None:
            return {}
        own = [self.own.of(method) for method in self.methods]
        return {each.method: each.changes for each in own}

    def jobs(self, checksum: str | None) -> list[Job]:
        """The runs with their folders.

        Args:
            checksum: That of the data; None if they are no file.
        """
        return [
            Job(
                cell,
                self.out / "runs" / cell.folder,
                self.logs,
                features=self.out / "features",
                began=cell.as_dict(checksum),
            )
            for cell in self.cells()
        ]


class _Compared(Listed):
    """The runs of a comparison; projections are computed while the last runs leave cores free."""

    def __init__(self, out: Path, jobs: Sequence[Job]) -> None:
        super().__init__(jobs)
        self._out, self._left = out, len(self._waiting)
        self._planes: tuple[BaseProcess, Connection] | None = None

    def ended(self, job: Job, error: str) -> str:
        """Records a run that ended."""
        self._left -= 1
        if self._planes is None and self.is_over() and self._left:
            context = forker()
            theirs, ours = context.Pipe(duplex=False)
            process = context.Process(target=project_meanwhile, args=(self._out, theirs))
            process.start()
            theirs.close()
            self._planes = process, ours
        return super().ended(job, error)

    def stop(self) -> None:
        """No run is in progress any more: stops projecting after the current run."""
        if self._planes is not None:
            process, pipe = self._planes
            pipe.close()
            process.join()


class Failed(UserRuntimeError):
    """Some runs of a comparison failed; the others finished and are reported."""


def compare(
    methods: str,
    seeds: int,
    training: Training,
    out: Path,
    pool: Callable[[Training], Pool],
    own: Tuning | Literal["published"] | None = None,
    logs: Logs = Logs(),  # noqa: B008, it is frozen
) -> Path:
    """Trains every method over all seeds and writes tables and report.

    Finished runs are not repeated and unfinished ones are resumed, so the same call continues a
    stopped comparison. Results do not depend on the pool.

    Args:
        methods: Names, optionally with settings, separated by commas.
        seeds: Number of seeds.
        training: What all methods share.
        out: The folder for all results.
        pool: Makes the pool for the runs, once everything is checked.
        own: The search that gives learning rate, weight decay and the methods' own settings, or
            'published' for those of their authors; by default those of `training` and `methods`.
        logs: How the runs are logged.

    Returns:
        The report.

    Raises:
        ValueError: If something is wrong with the data, a method or the folder; before training.
        Failed: If runs failed.
        KeyboardInterrupt: If it was stopped; the report covers what is finished.
    """
    # loads torch, too slow for the command's help
    from evenly.lab.run.build import load_data

    check_counts(seeds=seeds)
    names, data = named(split(methods), training)
    theirs: Tuning | Published | None = None
    if own == "published":
        data = data or load_data(training)
        theirs = Published.of_data(data.name, training)
    elif own is not None:
        theirs = own
    plan = Comparison(training, names, seeds, out, theirs, logs)
    check_folder(out)
    with held(out):
        jobs = _prepare(plan, data)
        source = _Compared(out, jobs)
        try:
            carry(source, pool(training))
            project(out)  # stopping it does not wait for this
        finally:
            report = write_tables(out)
    if source.failures:
        lines = [f"  {name}: {reason}" for name, reason in source.failures.items()]
        details = "error.txt" if training.world == 1 else "error-*.txt"
        raise Failed(
            f"{len(source.failures)} of {len(jobs)} runs failed; the others are in "
            f"{report}.\n"
            + "\n".join(lines)
            + f"\nSee {details} in each folder under {out / 'runs'} for details. Run the same "
            "command again to retry them."
        )
    return report


def named(methods: Sequence[Spec], training: Training) -> tuple[tuple[str, ...], "Data | None"]:
    """The methods meant, and the data if they had to be loaded for it."""
    # loads torch, too slow for the command's help
    from evenly.lab.run.build import expanded, left_out, load_data, unsuited
    from evenly.lab.run.prepare import say
    from evenly.targets import in_words

    several = any(spec.name in ("all", "unimodal") for spec in methods)
    data = load_data(training) if several else None
    if data is None:
        return tuple(expanded(methods, ())), None
    if any(spec.name == "all" for spec in methods):
        if left := left_out(data.task):
            what = in_words([data.task.takes])
            say([f"'all' leaves out the methods that do not take {what}: {', '.join(left)}."])
        for need, left in unsuited(training.fusion).items():
            words = f"{need}, unlike --fusion {training.fusion}"
            say([f"'all' leaves out the methods that need {words}: {', '.join(left)}."])
    return tuple(expanded(methods, data.modalities, data.task, training.fusion)), data


def _prepare(plan: Comparison, data: "Data | None") -> list[Job]:
    """Finds what would fail, prints notes, and writes config.yaml.

    Returns:
        The runs, with one task and one precision for all.
    """
    from evenly.data import data_file
    from evenly.lab.run.measures import measures
    from evenly.lab.run.precision import decided
    from evenly.lab.run.prepare import prepare, say

    path = plan.out / "config.yaml"
    found = read_settings(path, "methods")
    check_apart(plan.variants())
    # Of all modalities, whichever methods are compared and in whatever order.
    first, data, decision = decided(Cell(plan.training, "joint", 0), found, data)
    left_open = {name: getattr(first.training, name) for name in ("task", "select", "precision")}
    plan = replace(plan, training=replace(plan.training, **left_open))
    shared = plan.settings()
    check_same(plan.out, found, shared)
    differing = plan.differing()
    before = {name: each for name, each in found.get("own", {}).items() if name in differing}
    check_same(plan.out, before, differing)
    jobs = plan.jobs(shared.get("data_sha256"))
    runs = _begun(plan.out)
    for job in jobs:
        check_same(job.folder, runs.get(job.folder.name, {}), job.began)
    data, notes = prepare(plan.cells()[: len(plan.variants())], data)
    used = _versions(jobs, runs)
    notes += decision + mixed(used)
    say(notes)
    plan.logs.prepare()
    shown = {name: asdict(METRICS[name]) for name in measures(plan.training.metrics)}
    # Tables and report cover every run in the folder, so its settings name them all, too.
    write_settings(
        path,
        {
            **shared,
            **({"own": {**found.get("own", {}), **differing}} if differing else {}),
            "methods": _union(found.get("methods", ()), plan.variants()),
            "seeds": max(found.get("seeds", 0), plan.seeds),
            **circumstances(found, joined(used.values())),
            "notes": _union(_lasting(found.get("notes", ())), notes),
            "name": plan.training.data if data_file(plan.training.data) is None else data.name,
            "class_names": data.class_names,
            "modalities": list(data.modalities),
            **({"measures": shown} if shown else {}),
        },
    )
    return jobs


def _begun(out: Path) -> dict[str, dict[str, Any]]:
    """The settings of all runs begun in a comparison's folder, by name."""
    paths = sorted((out / "runs").glob("*/config.yaml"))
    return {path.parent.name: read_settings(path, "method") for path in paths}


def _versions(
    jobs: Iterable[Job], runs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """What each run in the folder has used, or is about to use, by name."""
    used = {name: known.get("versions", {}) for name, known in runs.items()}
    for job in jobs:
        name = job.folder.name
        used[name] = of_run(job.folder, runs.get(name, {}), job.began)
    return used


def _lasting(notes: Iterable[str]) -> list[str]:
    """Earlier notes, except those on versions, which `mixed` says anew about all runs."""
    return [note for note in notes if not note.startswith(MIXED)]


def circumstances(found: Mapping[str, Any], used: Mapping[str, str]) -> dict[str, Any]:
    """Commands, versions and hardware, for a file of settings.

    Args:
        found: The file's earlier content, whose commands, machines, Pythons and decoders are kept.
        used: Versions of the packages that all results of the file depend on.
    """
    # Later commands read what an earlier one decoded, and its runs do not record with what.
    kept = ("python", *DECODERS)
    before = {name: x for name, x in found.get("versions", {}).items() if name in kept}
    command = shlex.join(["evenly", *map(hidden_argument, sys.argv[1:])])
    machines = _union(found.get("hardware", "").split("; "), [hardware()])
    return {
        "command": "\n".join(_union(found.get("command", "").splitlines(), [command])),
        "versions": joined([before, used, {"python": platform.python_version()}]),
        "hardware": "; ".join(filter(None, machines)),
    }


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
