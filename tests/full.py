"""A disk without room, as far as a process can tell."""

import resource
from contextlib import contextmanager


@contextmanager
def no_file_above(size):
    """Lets no file grow above so many bytes, as `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
