"""Processes that work for a command: how they are started and how they behave."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext

from evenly.stop import SIGNALS

Context = ForkServerContext | SpawnContext


def context(*preload: str) -> Context:
    """A process that has imported modules once, and forks for each that is started.

    Args:
        preload: Names of modules that are installed: CPython before 3.12.8 passes over what only
            this process's `sys.path` leads to (its issue 117378). What was preloaded first stays.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(preload))
    # What stops the command is sent to every process of it by terminals and schedulers, and is the
    # command's own affair: it ends the others. The mask is inherited, by the runs' processes, too.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # it unblocks some when it starts
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
    """Leaves signals to the process that started this one, and ends when that one does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    """Waits for the end of the process that started this one, then ends it too, without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
