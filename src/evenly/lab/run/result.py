"""The result of a run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_type_hints

from evenly.files import check_written, read_sealed, reading, sha256, write_sealed
from evenly.metrics import MAINS
from evenly.spec import converted

FILES = ("metrics.csv", "best.ckpt", "predictions.npz", "features.npz")
"""Files that a run finishes before its result."""


_HEADLINES = (
    *MAINS,
    "macro_f1",
    "micro_f1",
    "mean_average_precision",
    "pearson",
    "acc_2",
    "acc_7",
    "f1",
)


def is_headline(metric: str) -> bool:
    """Whether a metric is shown on the screen; the files hold all of them."""
    return metric in _HEADLINES or metric.partition("/")[0] in MAINS


@dataclass(frozen=True)
class Result:
    """The result.json of a run, written last: if it exists, the run is finished.

    Attributes:
        method: The method as requested, with its settings.
        seed: Seed of the run.
        best_epoch: The epoch selected on validation, the first of equals, from 0.
        epochs: Trained epochs in all; fewer than requested if `patience` ran out.
        steps: Optimiser steps.
        seconds: Time in training and in the method, without validation and measurements.
        peak_memory_mb: Peak memory of the run: of its first process, or of that one's GPU if there
            is one. None on CPUs if torchrun or srun started the processes: they do one run after
            another, and a process's peak never falls.
        flops: Floating-point operations of all training steps, on all devices together: those on
            the first batch of every epoch times the number of batches. What a method does between
            epochs, or only in some later steps, is left out.
        precision: Precision of the forward pass, 'bf16' or '32'.
        metrics: Values by split (val, test) and metric.
        files: Checksums of the files that the run wrote, by name.
    """

    method: str
    seed: int
    best_epoch: int
    epochs: int
    steps: int
    seconds: float
    peak_memory_mb: float | None
    flops: int
    precision: str
    metrics: dict[str, dict[str, float]]
    files: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> "Result | None":
        """The result in a run's folder; None if the run is not finished.

        Raises:
            ValueError: If the file is damaged.
        """
        path = folder / "result.json"
        if not path.is_file():
            return None
        found, hints = read_sealed(path), get_type_hints(Result)
        with reading(path):
            given = {name: converted(name, value, hints[name]) for name, value in found.items()}
            result = Result(**given)
            for split, metrics in result.metrics.items():
                if not metrics.keys() & {*MAINS}:
                    raise ValueError(f"it has no {' or '.join(MAINS)} for the {split} split")
        return result

    def check(self, path: Path) -> None:
        """Raises if a file in the run's folder has changed since the run wrote it."""
        check_written(path, self.files)

    def write(self, folder: Path) -> None:
        """Writes result.json."""
        write_sealed(folder / "result.json", asdict(self))


def checksums(folder: Path) -> dict[str, str]:
    """Checksums of the files that a run has written into its folder, by name."""
    return {name: sha256(folder / name) for name in FILES if (folder / name).is_file()}
