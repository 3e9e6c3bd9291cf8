"""Runs on processes that torchrun or srun started, all of them for one run after another."""

import torch.distributed as dist

from evenly.lab.many.job import Ended, Job, News, done
from evenly.lab.run.place import Rank, begin


class Together:
    """A pool of one run at a time, on this process and those that `follow` it.

    Args:
        rank: Of this process, the first.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._news: list[News] = []
        begin(rank)

    @property
    def room(self) -> int:
        """One, as a run is over when it has been started."""
        return int(not self._news)

    def start(self, job: Job) -> None:
        """Does a run, with the others."""
        _send(job)
        error = done(job, self._news.append, self._rank)
        self._news.append(Ended(job, error))

    def news(self, seconds: float) -> list[News]:
        """What was heard of the run."""
        found, self._news = self._news, []
        return found

    def stop(self, job: Job) -> None:
        """Nothing: it is over."""

    def close(self) -> None:
        """Lets the others go."""
        _send(None)


def follow(rank: Rank) -> None:
    """Takes part in the runs of the first process until it lets go."""
    begin(rank)
    while (job := _received()) is not None:
        done(job, lambda _: None, rank)


def _send(job: Job | None) -> None:
    dist.broadcast_object_list([job], 0)


def _received() -> Job | None:
    told: list[Job | None] = [None]
    dist.broadcast_object_list(told, 0)
    return told[0]
