"""Runs on processes that torchrun or srun started: all of them do one run after another."""

from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from evenly.errors import UserRuntimeError
from evenly.lab.many.job import Ended, Epoch, Job, News, done
from evenly.lab.run.place import PAUSE, Rank, begin

PATIENCE = timedelta(minutes=1)
"""Time within which all processes fail if one does, or else the others wait for it in the run."""


class Together:
    """A pool of one run at a time, on this process and those that `follow` it.

    Args:
        rank: Rank of this process, the first.
    """

    def __init__(self, rank: Rank) -> None:
        self._member = _Member(rank)
        self._news: list[News] = []
        self._are_apart = False

    @property
    def room(self) -> int:
        """One, since `start` returns when the run is over."""
        return int(not self._news)

    def start(self, job: Job) -> None:
        """Does a run together with the others.

        Raises:
            UserRuntimeError: If it failed only on this process.
        """
        self._member.send(job)
        self._are_apart = True  # they do not listen until it is over
        error = self._member.done(job, self._news.append)
        self._are_apart = False
        self._news.append(Ended(job, error))

    def news(self, seconds: float) -> list[News]:
        """News of the run."""
        found, self._news = self._news, []
        return found

    def stop(self, job: Job) -> None:
        """Nothing: it is over."""

    def close(self) -> None:
        """Releases the others; those within a run end like this process."""
        if not self._are_apart:
            self._member.send(None)


def follow(rank: Rank) -> None:
    """Joins the runs of the first process until released.

    Raises:
        UserRuntimeError: If a run failed only on this process.
    """
    member = _Member(rank)
    while (job := member.received()) is not None:
        member.done(job, lambda _: None)


class _Member:
    """One of the processes."""

    def __init__(self, rank: Rank) -> None:
        begin(rank)
        self._rank = rank
        # Its own group: in the other one, processes that have not failed may be in the middle of a
        # sum.
        self._failed = dist.new_group(timeout=PATIENCE, backend="gloo")
        # The next run may depend on other commands.
        self._jobs = dist.new_group(timeout=PAUSE, backend="gloo")

    def send(self, job: Job | None) -> None:
        """Hands the others the next run, as the first process."""
        dist.broadcast_object_list([job], 0, self._jobs)

    def received(self) -> Job | None:
        """The next run, as one of the others; None if there are no more."""
        told: list[Job | None] = [None]
        dist.broadcast_object_list(told, 0, self._jobs)
        return told[0]

    def done(self, job: Job, tell: Callable[[Epoch], None]) -> str:
        """Does a run; returns the reason if it failed on all processes, empty if it is finished."""
        error = done(job, tell, self._rank)
        if error:
            try:
                dist.barrier(self._failed)
            except RuntimeError as alone:
                raise UserRuntimeError(
                    f"{job.cell.folder}, process {self._rank.number}: {error}. Other processes "
                    "did not fail, so the command stops. Run it again to continue."
                ) from alone
        return error
