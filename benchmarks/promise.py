"""A benchmark's promises and results, one line each, and a file for `make bench`."""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

AMX = {
    "here": torch.cpu._is_amx_tile_supported(),
    "why": "promised with AMX, which this processor lacks",
}
"""Reason for promises that depend on fast bf16 products."""
FILE = "EVENLY_PROMISES"
"""Environment variable with the file that `report` appends to, a line of JSON for each promise."""


@dataclass(frozen=True)
class Promise:
    """A figure against its promise.

    Attributes:
        what: The promise in words, for the table.
        found: The figure, usually a ratio.
        target: The promised value.
        at_least: Whether the target is a minimum; otherwise a maximum.
        here: Whether the promise covers this machine; if not, a missed target shows the reason.
        why: The reason.
    """

    what: str
    found: float
    target: float
    at_least: bool = True
    here: bool = True
    why: str = ""

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.found >= self.target if self.at_least else self.found <= self.target

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Promise, figure, target, and whether it is met, for a table."""
        sign = "≥" if self.at_least else "≤"
        missed = "NOT met" if self.here else f"({self.why})"
        verdict = "met" if self.met else missed
        return self.what, f"{self.found:.4g}", f"{sign} {self.target:.4g}", verdict


def ratio(theirs: Callable[[], object], ours: Callable[[], object], pairs: int = 7) -> float:
    """How many times as long the first takes: the median over pairs of alternating runs.

    Pairs let other work on the machine affect both sides; each runs once beforehand.
    """
    theirs()
    ours()
    return statistics.median(seconds(theirs) / seconds(ours) for _ in range(pairs))


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call; the caller waits for work on a GPU."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak() -> int:
    """Peak bytes of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def report(promises: list[Promise]) -> None:
    """Prints the promises and ends the program: with 1 if one of this machine's is not met."""
    print(table(promises))
    if FILE in os.environ:
        with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(promise)) + "\n" for promise in promises)
    sys.exit(any(promise.here and not promise.met for promise in promises))


def table(promises: list[Promise]) -> str:
    """The promises in columns."""
    rows = [("promise", "found", "target", ""), *(promise.cells for promise in promises)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows
    )
