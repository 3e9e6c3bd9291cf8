"""Runs in processes of this machine, one or several for each.

Each run has its own process: if one is killed for memory, the others survive, its peak memory is
its own, and Ctrl-C leaves only complete files in its folder.
"""

import os
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from secrets import token_hex
from threading import Event, Lock

from evenly import child
from evenly.lab.many.job import Ended, Epoch, Job, News, done
from evenly.lab.run.place import Rank
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Training

MOMENT = 1.0
"""Seconds until a killed process is noticed, after others have reported it."""


def default_jobs(training: Training, runs_per_device: int = 1) -> int:
    """Simultaneous runs: as many as this process has GPUs for, or else cores."""
    import torch

    if torch.cuda.is_available():
        return max(1, torch.cuda.device_count() // training.devices * runs_per_device)
    return max(1, child.cores() // (training.threads * training.devices))


def forker() -> child.Context:
    """The process that runs are forked from; if started early, it imports while others work."""
    return child.context("evenly.lab.many.preloaded")


class Local:
    """A pool of processes of this machine.

    Args:
        jobs: Simultaneous runs.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs, self._context = jobs, forker()
        self._running: list[_Running] = []

    @property
    def room(self) -> int:
        """How many more runs it can take now."""
        return self._jobs - len(self._running)

    def start(self, job: Job, place: Path = Path()) -> None:
        """Starts a run.

        Args:
            job: The run.
            place: The folder that relative paths start from; by default that of this process.
        """
        self._running.append(_started(self._context, job, place))

    def news(self, seconds: float) -> list[News]:
        """News of the runs; waits this long for the first.

        Raises:
            OSError: If there is no space left to write.
        """
        wait([pipe for running in self._running for pipe in running.messages], seconds)
        found: list[News] = []
        for running in list(self._running):
            found += running.heard()
            if (error := running.ended()) is not None:
                self._running.remove(running)
                running.close()
                found.append(Ended(running.job, error))
        return found

    def stop(self, job: Job) -> None:
        """Ends a run and drops its news."""
        for running in [running for running in self._running if running.job == job]:
            self._running.remove(running)
            running.close()

    def close(self) -> None:
        """Ends all runs; every write is atomic, so nothing stays half written."""
        for running in self._running:
            running.close()
        self._running = []


@dataclass
class _Running:
    """A run in progress: its processes, and a pipe from each."""

    job: Job
    place: Path
    devices: list[str]
    processes: list[ForkServerProcess | SpawnProcess]
    messages: list[Connection]
    meeting: Path | None
    _error: str = ""

    def heard(self) -> list[News]:
        found: list[News] = []
        for pipe in list(self.messages):
            try:
                while pipe.poll():
                    message = pipe.recv()
                    if isinstance(message, OSError):
                        raise message
                    if isinstance(message, Epoch):
                        found.append(message)
                    else:  # of several processes, the first that fails
                        self._error = self._error or message
            except EOFError:
                pipe.close()
                self.messages.remove(pipe)
        return found

    def ended(self) -> str | None:
        """The reason of a failure, or empty, once it has ended; None while it is running."""
        if not self.messages:  # a pipe closes a moment before its process ends
            for process in self.processes:
                process.join()
        elif self._error:  # others report at once that one is gone, perhaps before its end is known
            wait([process.sentinel for process in self.processes], MOMENT)
        for process in self.processes:
            if process.exitcode:
                killed = " (killed, perhaps out of memory)" if process.exitcode < 0 else ""
                return f"its process ended with code {process.exitcode}{killed}"
        if self._error:
            return self._error
        if self.messages:
            return None
        folder = self.place / self.job.folder
        return "" if Result.read(folder) else "its process ended without a result"

    def close(self) -> None:
        _TAKEN.subtract(self.devices)
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.messages:
            pipe.close()
        if self.meeting is not None:
            self.meeting.unlink(missing_ok=True)


_TAKEN: Counter[str] = Counter()
"""Runs on each GPU, over all pools in this process; a worker has several pools."""
_LOCK = Lock()


def _devices(training: Training) -> list[str]:
    """Assigns GPUs to a starting run, those with the fewest runs; none if there are none."""
    import torch

    if not torch.cuda.is_available():
        return []
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = seen.split(",") if seen else [str(n) for n in range(torch.cuda.device_count())]
    with _LOCK:
        found = sorted(known, key=lambda device: _TAKEN[device])[: training.devices]
        _TAKEN.update(found)
    return found


def _started(context: child.Context, job: Job, place: Path) -> _Running:
    world = job.cell.training.devices
    meeting = None
    ranks: list[Rank | None] = [None]
    if world > 1:
        meeting = Path(tempfile.gettempdir(), f"evenly-{token_hex(16)}")  # torch makes the file
        ranks = [Rank(number, world, number, f"file://{meeting}") for number in range(world)]
    running = _Running(job, place, _devices(job.cell.training), [], [], meeting)
    for rank in ranks:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(job, place, rank, running.devices, sending))
        process.start()
        sending.close()
        running.processes.append(process)
        running.messages.append(receiving)
    return running


def _work(
    job: Job, place: Path, rank: Rank | None, devices: list[str], messages: Connection
) -> None:
    """The body of a process."""
    child.serve()
    os.chdir(place)
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)  # CUDA has not started yet

    def tell(news: Epoch | str | OSError) -> None:
        with suppress(BrokenPipeError):  # the command is gone, and soon this process will be
            messages.send(news)

    error: str | OSError
    try:
        error = done(job, tell, rank)
    except OSError as full:
        error = full
    if error:
        tell(error)
        if rank is not None:  # else the others would report that it left before its reason arrives
            Event().wait()  # until all have ended
