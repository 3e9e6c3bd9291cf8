"""What a run ends with."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from evenly.files import write_text


def is_headline(metric: str) -> bool:
    """Whether a metric is shown on the screen; the files hold all of them."""
    return metric in ("accuracy", "macro_f1") or metric.startswith("accuracy/")


@dataclass(frozen=True)
class Result:
    """The result.json of a run, which is written last: where it is, the run is finished.

    Attributes:
        method: As it was asked for, with its settings.
        seed: Of the run.
        best_epoch: Chosen by validation accuracy, the first of equals, from 0.
        epochs: Trained in all.
        steps: Of the optimiser.
        seconds: Spent in training and in the method, without validation and measurements.
        peak_memory_mb: Of the run's process, or of the GPU where there is one.
        flops: Floating-point operations of all training steps, from the first step of every epoch;
            what a method does between epochs is not in them.
        precision: In Lightning's words.
        metrics: By split (val, test) and metric.
    """

    method: str
    seed: int
    best_epoch: int
    epochs: int
    steps: int
    seconds: float
    peak_memory_mb: float
    flops: int
    precision: str
    metrics: dict[str, dict[str, float]]

    @staticmethod
    def read(folder: Path) -> "Result | None":
        """The result in a run's folder; None if the run is not finished.

        Raises:
            ValueError: If the file is damaged.
        """
        path = folder / "result.json"
        if not path.is_file():
            return None
        try:
            return Result(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}). Remove it, and the run's command makes it anew."
            ) from error

    def write(self, folder: Path) -> None:
        """Writes result.json."""
        write_text(folder / "result.json", json.dumps(asdict(self), indent=2) + "\n")
