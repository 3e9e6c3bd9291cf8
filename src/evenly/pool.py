"""Processes that call a function, each with its own pipe.

With a queue that all of them write to, as in `concurrent.futures`, a process killed while sending
leaves its reader waiting forever.
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
    """The process that was running a call was killed."""


@contextmanager
def pool(
    function: Callable[[Any], Any], processes: int, preload: str
) -> Iterator[Callable[[Any], "Future[Any]"]]:
    """Starts processes, and ends them with the block, whatever they are doing.

    Args:
        function: Function of one argument.
        processes: Number of processes.
        preload: The module that they have already imported.

    Yields:
        A function that submits a call, handled in order; its future raises `Lost` if its process is
        killed, and so do all later calls to that process.
    """
    context = child.context(preload)
    started: list[BaseProcess] = []
    pipes: SimpleQueue[Connection] = SimpleQueue()
    own = local()  # one thread serves each process

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
    # Also if the interpreter exits within the block, such as in a generator that is still alive.
    ending = Finalize(None, end, exitpriority=0)
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            with unstopped():  # a signal could come between the start and its record
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
