"""Runs in processes of their own, several at a time, with one progress bar.

A process each: a run that is killed for memory takes no other with it, its peak memory is its own,
and Ctrl-C leaves a folder in which every file is whole.
"""

import sys
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evenly import child
from evenly.files import write_text
from evenly.lab.result import Result
from evenly.lab.settings import Cell


def default_jobs(threads: int) -> int:
    """Runs at the same time: as many as this process has cores for, but one on a GPU.

    Every run trains on the first GPU.
    """
    import torch

    if torch.cuda.is_available():
        return 1
    return max(1, child.cores() // threads)


def run_cells(cells: Mapping[Path, Cell], jobs: int) -> dict[str, str]:
    """Runs cells that are not finished, each in its folder.

    Args:
        cells: By folder.
        jobs: How many at the same time.

    Returns:
        The reason of each failure, by the run's name.

    Raises:
        KeyboardInterrupt: If it was stopped; the runs in progress are ended first.
    """
    waiting = deque((f, cell) for f, cell in cells.items() if Result.read(f) is None)
    running: list[_Worker] = []
    failures: dict[str, str] = {}
    context = child.context("evenly.lab.run")
    total = sum(cell.training.epochs for cell in cells.values())
    done = total - sum(cell.training.epochs for _, cell in waiting)
    with tqdm(total=total, initial=done, unit="epoch", disable=None, smoothing=0.05) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(context, *waiting.popleft()))
                for worker in _listen(running, bar):
                    running.remove(worker)
                    if worker.error:
                        failures[worker.cell.folder] = worker.error
                    bar.update(worker.cell.training.epochs - worker.epochs)
                    bar.write(f"{worker.cell.folder}: {worker.news()}", file=sys.stderr)
        finally:
            for worker in running:
                worker.process.kill()  # every write is atomic, so nothing is left half done
                worker.process.join()
    return failures


CALLED = {"val": "validation", "test": "test"}


@dataclass
class _Worker:
    """A run in progress."""

    cell: Cell
    folder: Path
    process: ForkServerProcess | SpawnProcess
    messages: Connection
    epochs: int = 0
    error: str = ""

    def news(self) -> str:
        """How it ended."""
        result = Result.read(self.folder)
        if self.error or result is None:
            return self.error
        split = self.cell.training.selects_on
        return (
            f"best epoch {result.best_epoch}, {CALLED[split]} "
            f"{result.metrics[split]['accuracy']:.3f}, {result.seconds:.1f} s"
        )


def _start(context: child.Context, folder: Path, cell: Cell) -> _Worker:
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(cell, folder, sending))
    process.start()
    sending.close()
    return _Worker(cell, folder, process, receiving)


def _work(cell: Cell, folder: Path, messages: Connection) -> None:
    """The body of a run's process."""
    child.serve()
    from evenly.lab.run import run_cell

    def tell(news: tuple[int, float] | str) -> None:
        with suppress(BrokenPipeError):  # the command is gone, and in a moment this process is
            messages.send(news)

    failure = folder / "error.txt"
    try:
        run_cell(cell, folder, lambda epoch, accuracy: tell((epoch, accuracy)))
    except Exception as error:
        write_text(failure, traceback.format_exc())
        tell(f"{type(error).__name__}: {error}")
    else:
        failure.unlink(missing_ok=True)


def _listen(running: Sequence[_Worker], bar: "tqdm[Any]") -> list[_Worker]:
    """Waits for news; returns the workers that ended."""
    wait([worker.messages for worker in running])
    ended = []
    for worker in running:
        try:
            while worker.messages.poll():
                message = worker.messages.recv()
                if isinstance(message, str):
                    worker.error = message
                    continue
                epoch, accuracy = message
                bar.update(epoch + 1 - worker.epochs)
                bar.set_postfix_str(f"{worker.cell.folder} val {accuracy:.3f}")
                worker.epochs = epoch + 1
        except EOFError:
            worker.process.join()
            if worker.process.exitcode and not worker.error:
                worker.error = (
                    f"its process ended with code {worker.process.exitcode}"
                    " (killed, perhaps for want of memory)" * (worker.process.exitcode < 0)
                )
            ended.append(worker)
    return ended
