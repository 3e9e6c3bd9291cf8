"""Processes that work for a command: how they are started and how they behave."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext

Context = ForkServerContext | SpawnContext


def context(preload: str) -> Context:
    """A process that has imported a module once, and forks for each that is started.

    Args:
        preload: The module's name; what was preloaded first in a process of ours stays.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([preload])
    # A terminal sends Ctrl-C to every process of the command, and this one spends its first seconds
    # with imports. It inherits the mask; held back here, the signal still comes afterwards.
    resource_tracker.ensure_running()  # first, as it unblocks the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return found


def cores() -> int:
    """How many cores this process may use: fewer than the machine's, in a container say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def serve() -> None:
    """Leaves Ctrl-C to the process that started this one, and ends when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    """Waits for the end of the process that started this one, then ends it too, without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
