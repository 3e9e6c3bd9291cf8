"""What the figures of the page share: the look of axes, numbers and names."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from evenly.metrics import Metric
from evenly.report.marks import OUTLINES

Figure = dict[str, Any]

MODALITY_HUES = ("#4c6fb1", "#c8643c", "#5b9e6f", "#a06fb0", "#b59a3a", "#4aa3b5")
# The name on a line of its own; Plotly's box for it would keep a colour of its own.
HOVER = "%{fullData.name}<extra></extra><br>"


def modality_mark(number: int) -> tuple[str, str]:
    """Colour and symbol of a modality, by its position; of other hues than the methods'."""
    symbols = list(OUTLINES)
    return MODALITY_HUES[number % len(MODALITY_HUES)], symbols[number % len(symbols)]


def axis() -> dict[str, Any]:
    """An axis for any numbers."""
    return {"zeroline": False, "showline": False, "fixedrange": True}


def share_axis(scale: int) -> dict[str, Any]:
    """An axis for a share between 0 and `scale`, with room for marks at its ends."""
    return axis() | {"autorangeoptions": {"clipmin": -0.02 * scale, "clipmax": 1.02 * scale}}


def metric_axis(metric: Metric) -> dict[str, Any]:
    """An axis for a metric; bounded for a share, because intervals may go far beyond 0 and 1."""
    return share_axis(100) if metric.is_share else axis()


def veiled(colour: str, opacity: float) -> str:
    """The colour `#rrggbb` with an opacity from 0 to 1."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def share_scale(figures: Sequence[Figure], side: str = "y") -> None:
    """Gives figures that are compared with each other one scale, from the least value to the most.

    Args:
        figures: Figures with numbers on that axis, and with the same bounds.
        side: The axis, `x` or `y`.
    """
    ends = [end for figure in figures for trace in figure["data"] for end in _ends(trace, side)]
    if not ends:
        return
    low, high = min(ends), max(ends)
    space = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - space, high + space
    for figure in figures:
        bounds = figure["layout"][f"{side}axis"].pop("autorangeoptions", {})
        bounded = [max(low, bounds.get("clipmin", low)), min(high, bounds.get("clipmax", high))]
        figure["layout"][f"{side}axis"]["range"] = [rounded(end) for end in bounded]


def _ends(trace: Mapping[str, Any], side: str) -> Iterator[float]:
    """The values of a trace, or the ends of their intervals."""
    bars = trace.get(f"error_{side}", {})
    nothing = [0.0] * len(trace[side])
    above, below = bars.get("array", nothing), bars.get("arrayminus", nothing)
    for value, more, less in zip(trace[side], above, below, strict=True):
        if value is not None:
            yield from (value - less, value + more)


def rounded(value: float) -> float:
    """A value to five significant digits: no figure shows more, and the page stays small."""
    return float(f"{value:.5g}")


def plain(name: str) -> str:
    """A name escaped so that Plotly shows it unchanged; its texts may hold tags and entities."""
    return escape(name, quote=False)
