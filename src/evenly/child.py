"""Processes that work for a command: how they start and behave."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext

from evenly.stop import SIGNALS

Context = ForkServerContext | SpawnContext


def context(*preload: str) -> Context:
    """A process that imports modules once, and forks for each process to start.

    Args:
        preload: Names of installed modules: CPython before 3.12.8 skips those that only this
            process's `sys.path` leads to (its issue 117378). The first preload is final.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(preload))
    # Terminals and schedulers send stop signals to all processes of a command, but the command
    # itself handles them and ends the others. The runs' processes inherit the mask, too.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # it unblocks some when it starts
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return found


def cores() -> int:
    """How many cores this process may use: in a container, for example, not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def serve() -> None:
    """Leaves signals to the process that started this one, and ends when that one does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    """Waits until the process that started this one ends, then ends this one silently."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
