"""Figures of the page with a row for each method."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from evenly.report.comparison import Comparison
from evenly.report.marks import NEUTRAL, Mark, marks
from evenly.report.names import wrapped
from evenly.report.parts import HOVER, Figure, axis, metric_axis, modality_mark, plain, rounded


def main_figure(comparison: Comparison) -> Figure:
    """The main metric on test, in the table's order: seeds, mean and 95 % interval."""
    mark = marks(comparison.methods)
    shown = [m for m in comparison.ranking if comparison.score(m) is not None]
    data = []
    rows = _Rows.of(shown, 40 if len(shown) <= 12 else 28)
    for method in shown:
        data += _main_traces(comparison, method, rows, mark[method])
    return {
        "data": data,
        "layout": {
            "height": 52 + rows.height,
            "xaxis": _metric_axis(comparison),
            "yaxis": rows.axis(),
            "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        },
    }


def _metric_axis(comparison: Comparison) -> dict[str, Any]:
    metric = comparison.metric
    text = f"test {metric.words}{' (%)' if metric.is_share else ''}"
    return {"title": {"text": text, "standoff": 8}, **metric_axis(metric)}


def contribution_figure(comparison: Comparison) -> Figure:
    """How much each modality improves the main metric: a bar for each method."""
    metric = comparison.metric
    unit = metric.points or f" of {metric.words}"
    shown = [
        method
        for method in comparison.ranking
        if any(
            comparison.estimate(method, f"contribution/{name}").mean is not None
            for name in comparison.modalities
        )
    ]
    data = []
    rows = _Rows.of(shown, 28)
    for method in shown:
        ends = {1: 0.0, -1: 0.0}  # of the bars so far, to the right of 0 and to the left
        for number, modality in enumerate(comparison.modalities):
            mean = comparison.estimate(method, f"contribution/{modality}").mean
            if mean is None:
                continue
            value = metric.scale * mean
            side = 1 if value >= 0 else -1
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": plain(method),
                    "meta": comparison.methods.index(method),
                    "x": [rounded(value)],
                    "base": [rounded(ends[side])],
                    "y": [rows.middle[method]],
                    "width": 0.62 * rows.least,
                    "marker": {"color": modality_mark(number)[0]},
                    # To Plotly, the x of a bar that has a base is where it ends.
                    "customdata": [[plain(modality), metric.shown(mean)]],
                    "hovertemplate": f"{HOVER}%{{customdata[0]}}: %{{customdata[1]}}{unit}",
                    "showlegend": False,
                }
            )
            ends[side] += value
    title = f"points of {metric.words}" if metric.is_share else f"less {metric.words}"
    return {
        "data": data,
        "layout": {
            "height": 52 + rows.height,
            "barmode": "overlay",  # each bar knows where it begins
            "xaxis": {"title": {"text": title, "standoff": 8}, **axis()} | {"zeroline": True},
            "yaxis": rows.axis(),
            "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        },
    }


def ablation_figure(comparison: Comparison, kind: str) -> Figure:
    """The main metric on test, given one modality only or without one: a row for each method.

    The grey line in each row shows the metric with all modalities.

    Args:
        comparison: What to draw.
        kind: `only` or `without`.
    """
    metrics = [(f"{kind}/{name}", name) for name in comparison.modalities]
    shown = [
        method
        for method in comparison.ranking
        if any(comparison.estimate(method, metric).mean is not None for metric, _ in metrics)
    ]
    rows = _Rows.of(shown, 28)
    line = {"symbol": "line-ns", "size": 18, "line": {"color": NEUTRAL, "width": 2}}
    spots = [(comparison.main, "all modalities", line | {"color": NEUTRAL})]
    for number, (metric, name) in enumerate(metrics):
        text = f"given {name} only" if kind == "only" else f"without {name}"
        colour, symbol = modality_mark(number)
        spots.append((metric, text, {"symbol": symbol, "size": 11, "color": colour}))
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plain(method),
            "meta": comparison.methods.index(method),
            "x": [rounded(comparison.metric.scale * mean)],
            "y": [rows.middle[method]],
            "text": [plain(text)],
            "marker": marker,
            "hovertemplate": HOVER + "%{text}: %{x}" + comparison.metric.unit,
            "showlegend": False,
        }
        for method in shown
        for metric, text, marker in spots
        if (mean := comparison.estimate(method, metric).mean) is not None
    ]
    return {
        "data": data,
        "layout": {
            "height": 52 + rows.height,
            "xaxis": _metric_axis(comparison),
            "yaxis": rows.axis() | {"showgrid": True},
            "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        },
    }


@dataclass(frozen=True)
class _Rows:
    """A row for each method, from top to bottom, as high as its name needs.

    Attributes:
        least: The height of a row with a short name, in pixels.
        middle: The middle of each method's row, in pixels from the bottom.
        height: The height of all rows together, in pixels.
    """

    least: int
    middle: dict[str, float]
    height: int

    @staticmethod
    def of(methods: list[str], least: int) -> "_Rows":
        heights = [max(least, 8 + 16 * len(wrapped(method))) for method in methods]
        ends = list(accumulate(heights))
        middle = {
            method: ends[-1] - end + height / 2
            for method, end, height in zip(methods, ends, heights, strict=True)
        }
        return _Rows(least, middle, ends[-1] if ends else 0)

    def axis(self) -> dict[str, Any]:
        return {
            "tickvals": list(self.middle.values()),
            "ticktext": ["<br>".join(map(plain, wrapped(method))) for method in self.middle],
            "range": [0, self.height],
            "ticklabelstandoff": 6,
            "automargin": True,
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        }


def _main_traces(
    comparison: Comparison, method: str, rows: _Rows, mark: Mark
) -> list[dict[str, Any]]:
    number, metric = comparison.methods.index(method), comparison.metric
    estimate = comparison.estimate(method, comparison.main)
    seeds = sorted(comparison.results.get((method, "test", comparison.main), {}).items())
    mean = metric.scale * (estimate.mean or 0.0)

    def said(value: float) -> str:
        return metric.shown(value, places=2)

    text = f"mean {said(estimate.mean or 0.0)}{metric.unit}"
    bars: dict[str, Any] = {}
    if estimate.low is not None and estimate.high is not None:
        low, high = metric.scale * estimate.low, metric.scale * estimate.high
        ends = f"{said(estimate.low)} to {said(estimate.high)}"
        text += f"<br>95 % interval {ends}{metric.unit}"
        bars = {
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [rounded(high - mean)],
                "arrayminus": [rounded(mean - low)],
                "color": mark.colour,
                "thickness": 2.5,
                "width": 6,
            }
        }
    points = {
        "x": [rounded(metric.scale * value) for _, value in seeds],
        "y": [rows.middle[method] - 0.24 * rows.least] * len(seeds),
        "text": [f"seed {seed}: {said(value)}{metric.unit}" for seed, value in seeds],
        "marker": {"color": mark.colour, "size": 7, "opacity": 0.55},
    }
    centre = {
        "x": [rounded(mean)],
        "y": [rows.middle[method]],
        "text": [text],
        "marker": {"color": mark.colour, "size": 11, "symbol": mark.symbol},
        **bars,
    }
    common = {
        "type": "scatter",
        "mode": "markers",
        "name": plain(method),
        "meta": number,
        "hovertemplate": HOVER + "%{text}",
        "showlegend": False,
    }
    return [{**common, **points}, {**common, **centre}]
