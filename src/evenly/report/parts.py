"""What the figures of the page share: the look of axes, numbers and names."""

from html import escape
from typing import Any

from evenly.metrics import Metric
from evenly.report.marks import OUTLINES
from evenly.report.names import shortened

Figure = dict[str, Any]

MODALITY_HUES = ("#4c6fb1", "#c8643c", "#5b9e6f", "#a06fb0", "#b59a3a", "#4aa3b5")
# The name on a line of its own; Plotly's box for it would keep a colour of its own.
HOVER = "%{fullData.name}<extra></extra><br>"


def modality_mark(number: int) -> tuple[str, str]:
    """Colour and symbol of a modality, by its position; of other hues than the methods'."""
    symbols = list(OUTLINES)
    return MODALITY_HUES[number % len(MODALITY_HUES)], symbols[number % len(symbols)]


def axis() -> dict[str, Any]:
    """Of any numbers."""
    return {"zeroline": False, "showline": False, "fixedrange": True}


def share_axis(scale: int) -> dict[str, Any]:
    """Of a share between 0 and `scale`, and what its marks need beyond."""
    return axis() | {"autorangeoptions": {"clipmin": -0.02 * scale, "clipmax": 1.02 * scale}}


def metric_axis(metric: Metric) -> dict[str, Any]:
    """Of the values of a metric; intervals of two seeds may go far beyond what a share can be."""
    return share_axis(100) if metric.is_share else axis()


def rounded(value: float) -> float:
    """Five significant digits, which no figure can show more of, keep the page small."""
    return float(f"{value:.5g}")


def plain(name: str) -> str:
    """A name as Plotly shows it unchanged; it reads a few tags and entities in its texts."""
    return escape(name, quote=False)


def brief(name: str, length: int = 22) -> str:
    """The same of a name that is cut where it is long."""
    return plain(shortened(name, length))
