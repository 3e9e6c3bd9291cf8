"""Runs in processes of their own, several at a time, with one progress bar.

A process each: a run that is killed for memory takes no other with it, its peak memory is its own,
and Ctrl-C leaves a folder in which every file is whole.
"""

import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from evenly import child
from evenly.files import FULL, write_text
from evenly.hidden import hidden, hidden_argument
from evenly.lab.run.logs import Logs
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell


@dataclass(frozen=True)
class Job:
    """A run to do.

    Attributes:
        cell: What to run.
        folder: Of this run alone.
        logs: How it is logged.
        tests: Whether it reads the test split once it has selected; a trial of a search never does.
    """

    cell: Cell
    folder: Path
    logs: Logs = field(default_factory=Logs)
    tests: bool = True


@runtime_checkable
class Source(Protocol):
    """Where runs come from, and where they are reported."""

    @property
    def epochs(self) -> int:
        """Of all runs together."""

    @property
    def finished(self) -> int:
        """The epochs of those runs that are finished, here or elsewhere."""

    @property
    def pause(self) -> float | None:
        """Seconds after which to look again, where others work on the same runs."""

    def take(self) -> Job | None:
        """The next run; None if there is none now."""

    def is_over(self) -> bool:
        """Whether there will be none, either."""

    def ended(self, job: Job, error: str) -> str:
        """Takes note of a run that ended.

        Args:
            job: The run.
            error: Why it failed; empty if it is finished.

        Returns:
            What to tell of it.
        """

    def lost(self) -> Collection[Job]:
        """The runs in progress that others have taken, so that they must end here."""

    def stop(self) -> None:
        """Leaves to others what is in progress, whose runs were ended; at the end that is none."""


def default_jobs(threads: int) -> int:
    """Runs at the same time: as many as this process has cores for, but one on a GPU.

    Every run trains on the first GPU.
    """
    import torch

    if torch.cuda.is_available():
        return 1
    return max(1, child.cores() // threads)


def forker() -> child.Context:
    """The process that runs are forked from; asked for early, it imports while others work."""
    return child.context("evenly.lab.run.run")


def run_jobs(source: Source, jobs: int) -> None:
    """Does the runs of a source until it is over.

    Args:
        source: Where they come from.
        jobs: How many at the same time.

    Raises:
        KeyboardInterrupt: If it was stopped; the runs in progress are ended first.
        OSError: If there is no room to write in; here, too.
    """
    running: list[_Worker] = []
    context = forker()
    done = source.finished
    with tqdm(total=source.epochs, initial=done, unit="epoch", disable=None, smoothing=0.05) as bar:
        try:
            while True:
                while len(running) < jobs and (job := source.take()) is not None:
                    running.append(_start(context, job))
                if not running and source.is_over():
                    break
                for worker in _listen(running, bar, source.pause):
                    running.remove(worker)
                    bar.write(source.ended(worker.job, worker.error), file=sys.stderr)
                lost = source.lost()
                for worker in [worker for worker in running if worker.job in lost]:
                    running.remove(worker)
                    worker.end()
                    bar.write(f"{worker.job.folder}: taken by another worker", file=sys.stderr)
                now = source.finished + sum(worker.epochs for worker in running)
                bar.update(now - bar.n)
        finally:
            for worker in running:
                worker.end()
            source.stop()


CALLED = {"val": "validation", "test": "test"}


def news(job: Job) -> str:
    """How a run ended that is finished."""
    result = Result.read(job.folder)
    assert result is not None
    split = job.cell.training.selects_on
    return (
        f"best epoch {result.best_epoch}, {CALLED[split]} "
        f"{result.metrics[split]['accuracy']:.3f}, {result.seconds:.1f} s"
    )


@dataclass
class _Worker:
    """A run in progress."""

    job: Job
    process: ForkServerProcess | SpawnProcess
    messages: Connection
    epochs: int = 0
    error: str = ""

    def end(self) -> None:
        """Kills the process; every write is atomic, so nothing is left half done."""
        self.process.kill()
        self.process.join()


def _start(context: child.Context, job: Job) -> _Worker:
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sending))
    process.start()
    sending.close()
    return _Worker(job, process, receiving)


def _work(job: Job, messages: Connection) -> None:
    """The body of a run's process."""
    child.serve()
    sys.argv[1:] = map(hidden_argument, sys.argv[1:])  # which loggers write down
    from evenly.lab.run.hold import TakenOver
    from evenly.lab.run.run import run_cell

    def tell(news: tuple[int, float] | str | Exception) -> None:
        with suppress(BrokenPipeError):  # the command is gone, and in a moment this process is
            messages.send(news)

    def progress(epoch: int, accuracy: float) -> None:
        tell((epoch, accuracy))

    failure = job.folder / "error.txt"
    try:
        run_cell(job.cell, job.folder, progress, tests=job.tests, logs=job.logs)
    except Exception as error:
        tell(error if _is_full(error) else hidden(f"{type(error).__name__}: {error}"))
        if not isinstance(error, TakenOver):
            with suppress(OSError):  # the disk may be full, which is what was told
                write_text(failure, hidden(traceback.format_exc()))
    else:
        failure.unlink(missing_ok=True)


def _is_full(error: Exception) -> bool:
    """Whether there is no room to write in, of which the run is innocent and others would fail."""
    return isinstance(error, OSError) and error.errno in FULL


def _listen(running: Sequence[_Worker], bar: "tqdm[Any]", pause: float | None) -> list[_Worker]:
    """Waits for news, or for so many seconds; returns the workers that ended.

    Raises:
        OSError: If there is no room to write in.
    """
    wait([worker.messages for worker in running], pause)
    ended = []
    for worker in running:
        try:
            while worker.messages.poll():
                message = worker.messages.recv()
                if isinstance(message, OSError):
                    raise message
                if isinstance(message, str):
                    worker.error = message
                    continue
                epoch, accuracy = message
                bar.set_postfix_str(f"{worker.job.cell.folder} val {accuracy:.3f}")
                worker.epochs = epoch + 1
        except EOFError:
            worker.process.join()
            code = worker.process.exitcode or 0
            if not worker.error and (code or Result.read(worker.job.folder) is None):
                worker.error = (
                    f"its process ended with code {code}"
                    f"{' (killed, perhaps for want of memory)' if code < 0 else ''}"
                )
            ended.append(worker)
    return ended
