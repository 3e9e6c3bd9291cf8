"""What carries many runs: a source that gives them out, a pool that does them, one progress bar."""

import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from tqdm import tqdm

from evenly.lab.many.job import Ended, Job, News, outcome
from evenly.lab.run.result import Result

LOOK = 1.0
"""Seconds after which a source is asked again, at the latest."""


@runtime_checkable
class Pool(Protocol):
    """Where runs are done: processes of this machine, or of a cluster."""

    @property
    def room(self) -> int:
        """How many runs more it takes now."""

    def start(self, job: Job) -> None:
        """Starts a run."""

    def news(self, seconds: float) -> list[News]:
        """What is heard of the runs; waits so long for the first of it."""

    def stop(self, job: Job) -> None:
        """Ends a run, of which nothing is heard any more."""

    def close(self) -> None:
        """Ends all runs."""


@runtime_checkable
class Source(Protocol):
    """Where runs come from, and where they are reported."""

    @property
    def epochs(self) -> int:
        """Of all runs together."""

    @property
    def finished(self) -> int:
        """The epochs of those runs that are finished."""

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
        """The runs in progress that are not this command's any more, and must end."""

    def stop(self) -> None:
        """Leaves what is in progress, whose runs were ended; at the end that is none."""


def carry(source: Source, pool: Pool) -> None:
    """Does the runs of a source in a pool until it is over.

    Args:
        source: Where they come from.
        pool: Where they are done; it is closed in the end.

    Raises:
        KeyboardInterrupt: If it was stopped; the runs in progress are ended first.
        OSError: If there is no room to write in.
    """
    going: dict[Path, int] = {}  # epochs that are done, by the folder of each run in progress
    done = source.finished
    with tqdm(total=source.epochs, initial=done, unit="epoch", disable=None, smoothing=0.05) as bar:
        try:
            while True:
                while pool.room > 0 and (job := source.take()) is not None:
                    going[job.folder] = 0
                    pool.start(job)
                if not going and source.is_over():
                    break
                for news in pool.news(LOOK):
                    if isinstance(news, Ended):
                        del going[news.job.folder]
                        bar.write(source.ended(news.job, news.error), file=sys.stderr)
                    else:
                        going[news.job.folder] = news.number + 1
                        bar.set_postfix_str(f"{news.job.cell.folder} val {news.value:.3f}")
                for job in source.lost():
                    del going[job.folder]
                    pool.stop(job)
                    bar.write(f"{job.folder}: taken by another command", file=sys.stderr)
                bar.update(source.finished + sum(going.values()) - bar.n)
        finally:
            pool.close()
            source.stop()


class Listed:
    """Runs that are known beforehand; those that are finished are not done again.

    Attributes:
        failures: The reason of each failure, by the run's name.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = deque(job for job in jobs if Result.read(job.folder) is None)
        self.failures: dict[str, str] = {}
        self.epochs = _epochs(jobs)
        self.finished = self.epochs - _epochs(self._waiting)

    def take(self) -> Job | None:
        """The next run."""
        return self._waiting.popleft() if self._waiting else None

    def is_over(self) -> bool:
        """Whether none is left."""
        return not self._waiting

    def ended(self, job: Job, error: str) -> str:
        """Takes note of a run that ended."""
        self.finished += job.cell.training.epochs
        if error:
            self.failures[job.cell.folder] = error
        return f"{job.cell.folder}: {error or outcome(job)}"

    def lost(self) -> Collection[Job]:
        """None."""
        return ()

    def stop(self) -> None:
        """Nothing: the same command takes up what was in progress."""


def _epochs(jobs: Iterable[Job]) -> int:
    return sum(job.cell.training.epochs for job in jobs)
