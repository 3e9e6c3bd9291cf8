"""The runs of a comparison: all of them, or those that this of several workers gets."""

import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from tqdm import tqdm

from evenly.lab.many.claims import LOOK, Claims
from evenly.lab.many.jobs import Job, news
from evenly.lab.run.result import Result


class Alone:
    """Runs that are all done here.

    Attributes:
        failures: The reason of each failure, by the run's name.
    """

    pause = None

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
        return f"{job.cell.folder}: {error or news(job)}"

    def lost(self) -> Collection[Job]:
        """None, as there is nobody else."""
        return ()

    def stop(self) -> None:
        """Nothing: the same command takes up what was in progress."""


class Shared:
    """Runs that several workers do, whose folders all of them see.

    A run is finished where its folder says so; the database says who is at it, and what has
    failed. Runs that had failed before are tried again.
    """

    pause = LOOK

    def __init__(self, jobs: Sequence[Job], claims: Claims) -> None:
        self._jobs = {job.cell.folder: job for job in jobs}
        self._claims = claims
        self._done: set[str] = set()
        for row in claims.rows().values():
            if row.failure and row.name in self._jobs:
                claims.reopen(row)
        claims.rows()
        self.epochs = _epochs(jobs)
        self._wanted()

    @property
    def finished(self) -> int:
        """The epochs of the runs that are finished or have failed, here or elsewhere."""
        ended = self._done | self.failures.keys()
        return _epochs([self._jobs[name] for name in ended])

    @property
    def failures(self) -> dict[str, str]:
        """The reason of each failure, by the run's name."""
        rows = self._claims.known.values()
        found = {row.name: row.failure for row in rows if row.failure and row.name in self._jobs}
        return {name: found[name] for name in found.keys() - self._done}

    def take(self) -> Job | None:
        """The next run that nobody has."""
        taken = self._claims.take(self._wanted())
        if taken is None:
            return None
        if taken.before is not None and taken.before.state == "ended":
            who = taken.before.worker.partition(" ")[0]
            _say(
                f"{taken.name}: {who} has finished it, but {self._jobs[taken.name].folder} has no "
                "result, so it runs again. Do all workers write into the same folder?"
            )
        return self._jobs[taken.name]

    def is_over(self) -> bool:
        """Whether every run is finished or has failed."""
        self._claims.rows()
        return not self._wanted()

    def ended(self, job: Job, error: str) -> str:
        """Takes note of a run that ended."""
        name = job.cell.folder
        self._claims.end(name, error)
        self._claims.rows()
        return f"{name}: {error or news(job)}"

    def lost(self) -> Collection[Job]:
        """The runs that others have taken, as this worker was thought to be gone."""
        return [self._jobs[name] for name in self._claims.beat()]

    def stop(self) -> None:
        """Gives back what is in progress."""
        with suppress(RuntimeError):  # without the database, they are free after a lease
            self._claims.give_back()

    def _wanted(self) -> list[str]:
        """What is neither finished nor failed, in order."""
        self._done |= {
            name
            for name in self._jobs.keys() - self._done
            if Result.read(self._jobs[name].folder) is not None
        }
        return [name for name in self._jobs if name not in self._done | self.failures.keys()]


def _epochs(jobs: Iterable[Job]) -> int:
    return sum(job.cell.training.epochs for job in jobs)


def _say(text: str) -> None:
    tqdm.write(f"note: {text}", file=sys.stderr)
