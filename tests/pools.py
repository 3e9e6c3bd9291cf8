"""Where the runs of a test are done."""

from evenly.lab.many.job import Ended, done
from evenly.lab.many.local import Local


def local(jobs):
    """Makes a pool of processes of this machine, as `compare` and `tune` take it."""
    return lambda training: Local(jobs)


class Here:
    """A pool that does each run at once, in this process."""

    def __init__(self):
        self._news = []

    @property
    def room(self):
        return 0 if self._news else 1

    def start(self, job):
        error = done(job, self._news.append)
        self._news.append(Ended(job, error))

    def news(self, seconds):
        found, self._news = self._news, []
        return found

    def stop(self, job):
        self._news = []

    def close(self):
        self._news = []
