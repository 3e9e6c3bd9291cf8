"""What is measured of predictions: when it is better, and how it is shown."""

import math
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is read.

    Attributes:
        words: What it is called in a sentence.
        sign: 1 if more of it is better, else -1.
        scale: 100 for a share, which is shown in per cent, else 1.
    """

    words: str
    sign: int = 1
    scale: int = 100

    @property
    def is_share(self) -> bool:
        """Whether it is from 0 to 1, and shown in per cent."""
        return self.scale == 100

    @property
    def unit(self) -> str:
        """What stands behind its values."""
        return " %" if self.is_share else ""

    @property
    def points(self) -> str:
        """What stands behind a difference of two."""
        return " points" if self.is_share else ""

    def shown(
        self, value: float, form: str = "", places: int = 1, like: float | None = None
    ) -> str:
        """A value without its unit; a dash where it is not defined.

        Args:
            value: As it is measured.
            form: `+` if a plus is to be shown, too.
            places: Of a share; other metrics may be of any size, and have theirs by that.
            like: A value that has the same number of places, such as the mean of a deviation.
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
        """The same where a share is a fraction."""
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
"""By name, all that is measured of the predictions of any task; `know` adds the user's own."""

MAINS = ("accuracy", "mae")
"""Those by which the methods of a task are ranked."""


BUILT_IN = tuple(METRICS)


def know(name: str, metric: Metric) -> None:
    """Has a metric of the user's own shown by what it declares."""
    if name not in BUILT_IN:
        METRICS[name] = metric


def metric_of(name: str) -> Metric:
    """How a metric is read, also a modality's own, `NAME/M`; one that is not known is a share."""
    return METRICS.get(name.partition("/")[0], METRICS["accuracy"])


def main_of(names: Collection[str]) -> str:
    """Of the names of metrics the one by which methods are ranked."""
    return next((name for name in MAINS if name in names), MAINS[0])
