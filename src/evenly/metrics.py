"""The metrics of predictions: which direction is better, and how to show them."""

import math
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How to read a metric.

    Attributes:
        words: Its name in a sentence.
        sign: 1 if higher is better, else -1.
        scale: 100 for a share, shown in per cent, else 1.
    """

    words: str
    sign: int = 1
    scale: int = 100

    @property
    def is_share(self) -> bool:
        """Whether it ranges from 0 to 1 and is shown in per cent."""
        return self.scale == 100

    @property
    def unit(self) -> str:
        """The unit after its values."""
        return " %" if self.is_share else ""

    @property
    def points(self) -> str:
        """The unit after a difference of two values."""
        return " points" if self.is_share else ""

    def shown(
        self, value: float, form: str = "", places: int = 1, like: float | None = None
    ) -> str:
        """A value without its unit; a dash if it is undefined.

        Args:
            value: The value as measured.
            form: `+` to show a plus sign, too.
            places: Decimal places of a share; other metrics may have any size, which sets theirs.
            like: A value whose number of places to use, such as the mean for a deviation.
        """
        if math.isnan(value):
            return "–"
        if not self.is_share:
            size = abs(value if like is None else like)
            if 0 < size < 0.0005:
                return f"{value:{form}.1e}"
            places = 3 if size < 10 else 1 if size < 1000 else 0
        return f"{self.scale * value:{form}.{places}f}"

    def written(self, value: float, form: str = "", like: float | None = None) -> str:
        """The same, with a share as a fraction."""
        if self.is_share and not math.isnan(value):
            return f"{value:{form}.3f}"
        return self.shown(value, form, like=like)


METRICS: dict[str, Metric] = {
    "loss": Metric("loss", -1, 1),
    "accuracy": Metric("accuracy"),
    "balanced_accuracy": Metric("balanced accuracy"),
    "macro_f1": Metric("macro-F1"),
    "micro_f1": Metric("micro-F1"),
    "mean_average_precision": Metric("mean average precision"),
    "mae": Metric("MAE", -1, 1),
    "rmse": Metric("RMSE", -1, 1),
    "pearson": Metric("Pearson correlation", scale=1),
    "concordance": Metric("concordance correlation", scale=1),
    "acc_2": Metric("Acc-2"),
    "acc_2_nonzero": Metric("Acc-2 without zeros"),
    "acc_5": Metric("Acc-5"),
    "acc_7": Metric("Acc-7"),
    "f1": Metric("weighted F1"),
    "f1_nonzero": Metric("weighted F1 without zeros"),
}
"""All metrics of any task's predictions, by name; `know` adds the user's own."""

MAINS = ("accuracy", "mae")
"""The metrics that rank the methods of a task."""


BUILT_IN = tuple(METRICS)
"""The same without the user's."""

DERIVED = (
    *("calibration_error", "brier", "recall", "error"),
    *("only", "without", "contribution", "imbalance", "probe"),
    *("noise_0.5", "noise_1", "noise_2", "noise_4"),
    *("missing_0.25", "missing_0.5", "missing_0.75"),
)
"""The other metrics of the selected model, by their names up to a `/` and a modality or class."""


def know(name: str, metric: Metric) -> None:
    """Registers a user's metric, shown as it declares."""
    if name not in BUILT_IN:
        METRICS[name] = metric


def metric_of(name: str) -> Metric:
    """How to read a metric, including a modality's own, `NAME/M`; an unknown one is a share."""
    return METRICS.get(name.partition("/")[0], METRICS["accuracy"])


def main_of(names: Collection[str]) -> str:
    """The metric, among these names, that ranks methods."""
    return next((name for name in MAINS if name in names), MAINS[0])
