"""A comparison: every method over the seeds, in parallel processes, then tables and report."""

import multiprocessing
import os
import platform
import shlex
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evenly.files import write_csv, write_text
from evenly.lab.result import Result
from evenly.lab.settings import Cell, Training, check_same, write_settings
from evenly.lab.statistics import holm, paired_p, summarise
from evenly.report import write_report
from evenly.spec import split

REFERENCE = "joint"
"""The method that the others are tested against."""


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


class Failed(Exception):
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
    names = tuple(dict.fromkeys(spec.text for spec in split(methods)))
    plan = Comparison(training, names, seeds, out)
    _prepare(plan)
    failures = {}
    try:
        failures = _run(plan, jobs)
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


def write_tables(out: Path) -> Path:
    """Writes results.csv, summary.csv and report.html from the finished runs of a folder.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
    """
    if not (out / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{out} holds no comparison (no config.yaml). Give the folder that 'evenly compare "
            "--out' wrote."
        )
    results = read_results(out)
    write_csv(out / "results.csv", RESULTS, results)
    write_csv(out / "summary.csv", SUMMARY, summary(results))
    return write_report(out)


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
            *(_plus_minus(cells[method, metric]) for metric in metrics),
            _difference(cells[method, "accuracy"]),
        ]
        for method in methods
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    )


def _plus_minus(row: Mapping[str, Any]) -> str:
    spread = "" if row["std"] is None else f" ± {row['std']:.3f}"
    return f"{row['mean']:.3f}{spread}"


def _difference(row: Mapping[str, Any]) -> str:
    if row.get("difference") is None:
        return ""
    p = "" if row.get("p_holm") is None else f" (p = {row['p_holm']:.2f})"
    return f"{row['difference']:+.3f}{p}"


def _prepare(plan: Comparison) -> None:
    """Finds what would fail, says what a user should know, and writes config.yaml."""
    from evenly.data import load
    from evenly.lab.build import build_method, build_model, build_optimizer
    from evenly.lab.run import has_fast_bf16
    from evenly.methods import METHODS

    shared = asdict(plan.training)
    check_same(plan.out / "config.yaml", shared)
    data = load(plan.training.data)
    notes = list(data.notes)
    model = build_model(data, plan.training, seed=0)
    optimizer = build_optimizer(model, plan.training)
    for cell in plan.cells()[: len(plan.methods)]:
        build_method(cell, model, optimizer)
        notes += _method_notes(cell, METHODS[split(cell.method)[0].name])
    if plan.training.precision == "auto" and not has_fast_bf16():
        notes.append(
            "Trained in 32-bit floats: this machine has no units for bf16 matrix products."
        )
    for note in notes:
        tqdm.write(f"note: {note}", file=sys.stderr)
    write_settings(
        plan.out / "config.yaml",
        {
            **shared,
            "methods": list(plan.methods),
            "seeds": plan.seeds,
            "command": shlex.join(["evenly", *sys.argv[1:]]),
            "versions": {name: version(name) for name in ("evenly", "torch", "lightning")}
            | {"python": platform.python_version()},
            "hardware": hardware(),
            "notes": notes,
            "class_names": data.class_names,
            "modalities": list(data.modalities),
        },
    )


def _method_notes(cell: Cell, kind: type[Any]) -> list[str]:
    from evenly.lab.build import method_settings

    notes = []
    given = split(cell.method)[0].settings
    settings = method_settings(cell)
    scaled = [name for name in kind.info.in_epochs if name not in given and settings[name]]
    if scaled:
        values = ", ".join(f"{name}={settings[name]}" for name in scaled)
        notes.append(
            f"{cell.method}: {values}, the paper's schedule of {kind.info.epochs} epochs scaled "
            f"to {cell.training.epochs}."
        )
    if kind.info.scales_gradients and cell.training.optimizer == "adamw":
        notes.append(
            f"{cell.method} acts by the size of gradients, which AdamW divides out again: use "
            "--optimizer sgd to compare it."
        )
    return notes


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


# --- running cells in processes of their own -------------------------------------------------


@dataclass
class _Worker:
    """A run in progress, in a process of its own.

    A process each: a run that is killed for memory takes no other with it, its peak memory is
    its own, and Ctrl-C leaves a folder in which every file is whole.
    """

    cell: Cell
    process: ForkServerProcess | SpawnProcess
    messages: Connection
    epochs: int = 0
    error: str = ""


def _run(plan: Comparison, jobs: int) -> dict[str, str]:
    """Runs what is not finished; returns the reason of each failure by the run's name."""
    unfinished = [c for c in plan.cells() if not (plan.folder(c) / "result.json").is_file()]
    waiting, running = deque(unfinished), list[_Worker]()
    failures: dict[str, str] = {}
    context = _context()
    total = len(plan.cells()) * plan.training.epochs
    done = (len(plan.cells()) - len(unfinished)) * plan.training.epochs
    with tqdm(total=total, initial=done, unit="epoch", disable=None, smoothing=0.05) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(context, plan, waiting.popleft()))
                for worker in _listen(running, bar):
                    running.remove(worker)
                    if worker.error:
                        failures[worker.cell.folder] = worker.error
                        bar.write(f"{worker.cell.folder}: {worker.error}", file=sys.stderr)
                    else:
                        bar.update(plan.training.epochs - worker.epochs)
                        bar.write(_line(plan, worker.cell), file=sys.stderr)
        finally:
            for worker in running:
                worker.process.kill()  # every write is atomic, so nothing is left half done
                worker.process.join()
    return failures


def _context() -> ForkServerContext | SpawnContext:
    """A process that has imported torch and Lightning once, and forks for each run."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evenly.lab.run"])
    return context


def _start(context: ForkServerContext | SpawnContext, plan: Comparison, cell: Cell) -> _Worker:
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(cell, plan.folder(cell), sending))
    process.start()
    sending.close()
    return _Worker(cell, process, receiving)


def _work(cell: Cell, folder: Path, messages: Connection) -> None:
    """The body of a run's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    from evenly.lab.run import run_cell

    tell: Callable[[int, float], None] = lambda epoch, accuracy: messages.send((epoch, accuracy))  # noqa: E731
    failure = folder / "error.txt"
    try:
        run_cell(cell, folder, tell)
    except Exception as error:
        write_text(failure, traceback.format_exc())
        messages.send(f"{type(error).__name__}: {error}")
    else:
        failure.unlink(missing_ok=True)


def _listen(running: Sequence[_Worker], bar: "tqdm[Any]") -> list[_Worker]:
    """Waits for news; returns the workers that ended."""
    wait([worker.messages for worker in running])
    ended = []
    for worker in running:
        try:
            while worker.messages.poll():
                message = worker.messages.recv()
                if isinstance(message, str):
                    worker.error = message
                    continue
                epoch, accuracy = message
                bar.update(epoch + 1 - worker.epochs)
                bar.set_postfix_str(f"{worker.cell.folder} val {accuracy:.3f}")
                worker.epochs = epoch + 1
        except EOFError:
            worker.process.join()
            if worker.process.exitcode and not worker.error:
                worker.error = (
                    f"its process ended with code {worker.process.exitcode}"
                    " (killed, perhaps for want of memory)" * (worker.process.exitcode < 0)
                )
            ended.append(worker)
    return ended


def _line(plan: Comparison, cell: Cell) -> str:
    result = Result.read(plan.folder(cell))
    assert result is not None
    return (
        f"{cell.folder}: best epoch {result.best_epoch}, validation "
        f"{result.metrics['val']['accuracy']:.3f}, {result.seconds:.1f} s"
    )
