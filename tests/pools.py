"""Where the runs of a test are done."""

from evenly.lab.many.local import Local


def local(jobs):
    """Makes a pool of processes of this machine, as `compare` and `tune` take it."""
    return lambda training: Local(jobs)
