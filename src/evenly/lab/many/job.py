"""A run to do, and news of it, wherever it is done."""

import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenly.files import FULL, write_text
from evenly.hidden import hidden, hidden_argument
from evenly.lab.run.logs import Logs
from evenly.lab.run.place import Rank
from evenly.lab.run.result import Result
from evenly.lab.run.settings import CALLED, Cell, Refused
from evenly.metrics import METRICS


@dataclass(frozen=True)
class Job:
    """A run to do.

    Attributes:
        cell: What to run.
        folder: The run's own folder.
        logs: How it is logged.
        tests: Whether it reads the test split after selection; a trial of a search never does.
        features: Where the command's runs keep features of frozen encoders; by default each in its
            own folder.
        began: The run's settings when its command began, with the checksums of its files: a
            process that finds others refuses the run.
    """

    cell: Cell
    folder: Path
    logs: Logs = field(default_factory=Logs)
    tests: bool = True
    features: Path | None = None
    began: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Epoch:
    """News of a run in progress: an epoch is done.

    Attributes:
        job: The run.
        number: Number of the epoch, from 0.
        value: Value of the selecting metric on the selecting split.
    """

    job: Job
    number: int
    value: float


@dataclass(frozen=True)
class Ended:
    """News of a run that ended.

    Attributes:
        job: The run.
        error: The reason of a failure; empty if it is finished.
    """

    job: Job
    error: str = ""


News = Epoch | Ended


def done(job: Job, tell: Callable[[Epoch], None], rank: Rank | None = None) -> str:
    """Does a run in this process.

    Args:
        job: The run.
        tell: Called after each epoch.
        rank: The rank of this process, if several train the run.

    Returns:
        The reason of a failure, given in full in its error.txt, or error-RANK.txt if several
        processes train it; empty if it is finished.

    Raises:
        OSError: If there is no space left to write: not the run's fault, and others would fail,
            too.
    """
    from evenly.lab.run.hold import TakenOver
    from evenly.lab.run.run import run_cell

    sys.argv[1:] = map(hidden_argument, sys.argv[1:])  # loggers record it

    def progress(epoch: int, value: float) -> None:
        tell(Epoch(job, epoch, value))

    failure = job.folder / ("error.txt" if rank is None else f"error-{rank.number}.txt")
    try:
        _forget(job.folder, failure, rank)
        run_cell(
            job.cell,
            job.folder,
            progress,
            tests=job.tests,
            logs=job.logs,
            rank=rank,
            features=job.features,
            began=job.began,
        )
    except Exception as error:
        if is_full(error):
            raise
        if not isinstance(error, TakenOver):
            with suppress(OSError):
                write_text(failure, hidden(traceback.format_exc()))
        return hidden(f"{type(error).__name__}: {error}")
    return ""


def _forget(folder: Path, failure: Path, rank: Rank | None) -> None:
    """Removes what an earlier try left of its failure, perhaps on another number of devices."""
    failure.unlink(missing_ok=True)
    if rank is None or rank.number == 0:
        others = {f"error-{number}.txt" for number in range(1, rank.world if rank else 1)}
        for path in folder.glob("error*.txt"):
            if path.name not in others:  # these do so themselves
                path.unlink(missing_ok=True)


def refusal(error: str) -> str:
    """Why a run was refused, from the reason of its failure; empty if it failed by itself."""
    mark = f"{Refused.__name__}: "
    return error.removeprefix(mark) if error.startswith(mark) else ""


def is_full(error: BaseException) -> bool:
    """Whether there is no space left to write."""
    return isinstance(error, OSError) and error.errno in FULL


def outcome(job: Job) -> str:
    """How a finished run ended, in words."""
    result = Result.read(job.folder)
    assert result is not None
    training = job.cell.training
    metric, _ = training.selected_by
    split, asked = training.selects_on, training.epochs
    ended = f", ended after {result.epochs} of {asked}" if result.epochs < asked else ""
    return (
        f"best epoch {result.best_epoch}{ended}, {CALLED[split]} "
        f"{METRICS[metric].written(result.metrics[split][metric])}, {result.seconds:.1f} s"
    )
