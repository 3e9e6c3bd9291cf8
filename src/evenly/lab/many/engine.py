"""Carries out many runs: a source that provides them, a pool that does them, one progress bar."""

import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, runtime_checkable

from tqdm import tqdm

from evenly.lab.many.job import Ended, Job, News, outcome
from evenly.lab.run.result import Result

LOOK = 1.0
"""Maximum seconds before a source is asked again."""


@runtime_checkable
class Pool(Protocol):
    """Where runs are done: processes of this machine, or of a cluster."""

    @property
    def room(self) -> int:
        """How many more runs it can take now."""

    def start(self, job: Job) -> None:
        """Starts a run."""

    def news(self, seconds: float) -> list[News]:
        """News of the runs; waits this long for the first."""

    def stop(self, job: Job) -> None:
        """Ends a run and drops its news."""

    def close(self) -> None:
        """Ends all runs."""


@runtime_checkable
class Source(Protocol):
    """Where runs come from and where their ends are reported."""

    @property
    def epochs(self) -> int:
        """The epochs of all runs together."""

    @property
    def finished(self) -> int:
        """The epochs of finished runs."""

    def take(self) -> Job | None:
        """The next run; None if there is none right now."""

    def is_over(self) -> bool:
        """Whether there will be no more runs."""

    def ended(self, job: Job, error: str) -> str:
        """Records a run that ended.

        Args:
            job: The run.
            error: The reason of a failure; empty if it is finished.

        Returns:
            A message about it.
        """

    def meanwhile(self) -> AbstractContextManager[None]:
        """Keeps what is in progress within the block, in which a pool may do a whole run."""

    def lost(self) -> Collection[Job]:
        """The runs in progress that no longer belong to this command and must end."""

    def stop(self) -> None:
        """Gives up what is in progress, whose runs were ended; nothing at a normal end."""


def carry(source: Source, pool: Pool) -> None:
    """Does the runs of a source in a pool until it is over.

    Args:
        source: Where they come from.
        pool: Where they are done; it is closed at the end.

    Raises:
        KeyboardInterrupt: If it was stopped; runs in progress are ended first.
        OSError: If there is no space left to write.
    """
    going: dict[Path, int] = {}  # epochs done, by the folder of each run in progress
    done = source.finished
    with tqdm(total=source.epochs, initial=done, unit="epoch", disable=None, smoothing=0.05) as bar:
        try:
            while True:
                while pool.room > 0 and (job := source.take()) is not None:
                    going[job.folder] = 0
                    with source.meanwhile():
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
    """Runs known in advance; finished ones are not repeated.

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
        """Records a run that ended."""
        self.finished += job.cell.training.epochs
        if error:
            self.failures[job.cell.folder] = error
        return f"{job.cell.folder}: {error or outcome(job)}"

    def meanwhile(self) -> AbstractContextManager[None]:
        """Nothing: nobody else takes its runs."""
        return nullcontext()

    def lost(self) -> Collection[Job]:
        """None."""
        return ()

    def stop(self) -> None:
        """Does nothing: the same command resumes what was in progress."""


def _epochs(jobs: Iterable[Job]) -> int:
    return sum(job.cell.training.epochs for job in jobs)
