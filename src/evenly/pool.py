"""Processes that call a function, each with a pipe of its own.

A queue that all of them write to, as that of `concurrent.futures` is, is never done with what a
process was sending when it was killed, and whoever reads it waits for ever.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from queue import SimpleQueue
from threading import local
from typing import Any

from evenly import child
from evenly.stop import unstopped


class Lost(Exception):
    """The process that was at a call was killed."""


@contextmanager
def pool(
    function: Callable[[Any], Any], processes: int, preload: str
) -> Iterator[Callable[[Any], "Future[Any]"]]:
    """Starts processes, and ends them with the block, whatever they are at.

    Args:
        function: Of one argument.
        processes: How many.
        preload: The module that they have imported.

    Yields:
        What has a call done, in the order of asking; its future raises `Lost` if its process is
        killed, as do all that come to the same process after it.
    """
    context = child.context(preload)
    started: list[BaseProcess] = []
    pipes: SimpleQueue[Connection] = SimpleQueue()
    own = local()  # a thread attends to each process

    def begin() -> None:
        own.pipe = pipes.get()

    def call(argument: Any) -> Any:
        try:
            own.pipe.send(argument)
            return own.pipe.recv()
        except (EOFError, OSError) as error:
            raise Lost from error

    def end() -> None:
        with unstopped():
            threads.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.kill()
            for process in started:
                process.join()

    threads = ThreadPoolExecutor(processes, initializer=begin)
    # Also when the interpreter ends within the block, as in a generator that somebody still has.
    ending = Finalize(None, end, exitpriority=0)
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            with unstopped():  # a signal could come between the start and the note of it
                process = context.Process(target=_work, args=(theirs, function))
                process.start()
                started.append(process)
            theirs.close()
            pipes.put(ours)
        yield lambda argument: threads.submit(call, argument)
    finally:
        ending()


def _work(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """The body of a process."""
    child.serve()
    with suppress(EOFError):
        while True:
            pipe.send(function(pipe.recv()))
