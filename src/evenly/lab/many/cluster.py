"""Runs on the workers of a Dask cluster, on any number of machines.

Each thread of a worker has room for a run, which has its own processes, as on this machine. A run's
folder holds all its progress: if a worker is lost, another one restarts its run from the last
checkpoint. If the lost worker wakes up again, its writes are refused (`evenly.lab.run.hold`).
"""

import logging
import multiprocessing
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from evenly.errors import UserRuntimeError
from evenly.hidden import hidden_address
from evenly.lab.many.job import Ended, Epoch, Job, News, is_full
from evenly.lab.many.local import Local
from evenly.lab.run.prepare import say
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Refused
from evenly.lab.run.versions import version_of, versions

if TYPE_CHECKING:
    from distributed import Client, Future

ANSWER = 10.0
"""Seconds that a scheduler has to answer."""
PATIENCE = 600.0
"""Seconds to wait for a lost scheduler."""
PAUSE = 2.0
"""Seconds between two attempts to reach it."""
APART = 0.5
"""Seconds between two reported epochs of a run."""
SIGHT = 10.0
"""Seconds until a shared folder shows what another machine has written."""


@dataclass(frozen=True)
class Order:
    """The task of a worker.

    Attributes:
        job: The run.
        place: The command's folder, which relative paths start from.
        topic: Where epochs are reported.
        versions: Versions of the packages that results depend on.
    """

    job: Job
    place: Path
    topic: str
    versions: dict[str, str]


class Cluster:
    """A pool of a cluster's workers.

    Args:
        address: Address of its scheduler.
        jobs: Simultaneous runs; by default as many as its workers have threads.
        runs_per_device: Simultaneous runs per GPU, on workers that declare their GPUs.

    Raises:
        UserRuntimeError: If no scheduler answers, or its workers have other packages.
    """

    def __init__(self, address: str, jobs: int | None = None, runs_per_device: int = 1) -> None:
        self._address, self._jobs, self._share = address, jobs, runs_per_device
        self._orders: dict[Path, tuple[Order, Future[Any]]] = {}
        self._heard: SimpleQueue[News | Exception | Future[Any]] = SimpleQueue()
        self._topic = f"evenly-{os.getpid()}-{time.time_ns()}"
        self._is_told = False  # whether the user knows that there is no worker
        self._client = self._connected()

    @property
    def room(self) -> int:
        """How many more runs it can take now."""
        try:
            threads = sum(self._client.nthreads().values())
        except Exception:  # a client without a scheduler can raise anything
            self._return()
            return 0
        if not threads and not self._is_told:
            say([f"the cluster has no workers. Start one with 'dask worker {self._address}'."])
            self._is_told = True
        return (self._jobs or threads) - len(self._orders)

    def start(self, job: Job) -> None:
        """Hands a run to the scheduler."""
        order = Order(job, Path.cwd(), self._topic, versions(job.began))
        self._orders[job.folder] = order, self._submitted(order)

    def news(self, seconds: float) -> list[News]:
        """News of the runs; waits this long for the first.

        Raises:
            OSError: If there is no space left to write.
            UserRuntimeError: If the scheduler is gone and does not return.
        """
        found: list[News] = []
        with suppress(Empty):
            heard = self._heard.get(timeout=seconds)
            while True:
                found += self._understood(heard)
                heard = self._heard.get_nowait()
        return found

    def stop(self, job: Job) -> None:
        """Ends a run and drops its news."""
        _, future = self._orders.pop(job.folder)
        future.cancel(force=True)

    def close(self) -> None:
        """Ends all runs, and leaves the cluster."""
        for _, future in self._orders.values():
            with suppress(Exception):  # the cluster may be gone
                future.cancel(force=True)
        self._orders = {}
        with suppress(Exception):
            self._client.close(timeout=PAUSE)

    def _connected(self) -> "Client":
        from distributed import Client

        for name in ("distributed", "distributed.client"):  # they print by themselves
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            client = Client(self._address, timeout=ANSWER, set_as_default=False, name="evenly")
        except (OSError, ValueError, TimeoutError) as error:
            raise UserRuntimeError(
                f"no Dask scheduler answers at {hidden_address(self._address)} ({error}). Check "
                "the address, or start 'dask scheduler' and 'dask worker ADDRESS'."
            ) from error
        client.subscribe_topic(self._topic, self._told)
        return client

    def _submitted(self, order: Order) -> "Future[Any]":
        training = order.job.cell.training
        gpus = any(
            "GPU" in worker["resources"]
            for worker in self._client.scheduler_info(n_workers=-1)["workers"].values()
        )
        future = self._client.submit(
            carried,
            order,
            key=f"{order.job.cell.folder}-{time.time_ns()}",
            pure=False,
            resources={"GPU": training.devices / self._share} if gpus else None,
        )
        future.add_done_callback(self._heard.put)
        return future

    def _told(self, event: Any) -> None:
        """Receives a worker's report of an epoch, in a thread of the client."""
        _, (folder, number, value) = event
        if (known := self._orders.get(Path(folder))) is not None:
            self._heard.put(Epoch(known[0].job, number, value))

    def _understood(self, heard: "News | Exception | Future[Any]") -> list[News]:
        if isinstance(heard, Ended | Epoch):
            return [heard] if heard.job.folder in self._orders else []
        if isinstance(heard, Exception):
            raise heard
        job = next((o.job for o, future in self._orders.values() if future is heard), None)
        if job is None:  # it was stopped or restarted
            return []
        if heard.cancelled():
            self._return()
            return []
        if (error := heard.exception()) is not None and is_full(error):
            raise error
        del self._orders[job.folder]
        return [Ended(job, self._outcome(job, heard, error))]

    def _outcome(self, job: Job, future: "Future[Any]", error: BaseException | None) -> str:
        if type(error).__name__ == "KilledWorker":
            return "every worker that started it was lost, perhaps out of memory"
        if error is not None:
            return f"{type(error).__name__}: {error}"
        said: tuple[str, str] = future.result()
        failure, host = said
        if failure:
            return failure
        end = time.monotonic() + SIGHT
        while Result.read(job.folder) is None:
            if time.monotonic() > end:
                return (
                    f"{host} has finished it, but {job.folder} holds no result here. Check that "
                    "all workers see the same folder."
                )
            time.sleep(0.2)
        return ""

    def _return(self) -> None:
        """Waits for a lost scheduler, and hands it all runs again."""
        with suppress(Exception):
            self._client.close(timeout=PAUSE)
        minutes = f"{PATIENCE / 60:g} minutes"
        where = hidden_address(self._address)
        say([f"lost the scheduler at {where}; waiting {minutes} for it to come back."])
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self._client = self._connected()
                break
            except UserRuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(PAUSE)
        for folder, (order, _) in self._orders.items():
            self._orders[folder] = order, self._submitted(order)


def carried(order: Order) -> tuple[str, str]:
    """Does a run on a worker, in processes that end with the worker or the order.

    Returns:
        The reason of a failure, empty if the run is finished; and the worker's machine.

    Raises:
        OSError: If there is no space left to write.
    """
    import socket

    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    host = socket.gethostname()
    ours = {name: version_of(name) or "no version" for name in order.versions}
    if ours != order.versions:
        said = f"{host} has {ours}, not {order.versions}. Install the same versions."
        return f"{Refused.__name__}: {said}", host
    # A nanny's worker is a daemon, which multiprocessing forbids children; these end with it.
    multiprocessing.process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    pool = Local(1)
    told = 0.0
    try:
        pool.start(order.job, order.place)
        while True:
            for news in pool.news(1.0):
                if isinstance(news, Ended):
                    return news.error, host
                if time.monotonic() - told > APART:
                    told = time.monotonic()
                    epoch = str(order.job.folder), news.number, news.value
                    worker.log_event(order.topic, epoch)
            task = worker.state.tasks.get(key)
            if (
                task is None
                or task.state != "executing"  # nobody is waiting for it any more
                or worker.status.name not in ("running", "paused")  # the scheduler is gone
            ):
                return "it was given up", host
    finally:
        pool.close()
