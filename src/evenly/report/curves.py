"""The page's figures over epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evenly.metrics import METRICS
from evenly.report.comparison import Comparison, value_at
from evenly.report.marks import marks
from evenly.report.parts import HOVER, Figure, axis, plain, rounded, share_axis, veiled

POINTS = 120
"""The most epochs that a curve is drawn from: a panel has about three pixels for each."""


def curve_figure(
    comparison: Comparison, column: str, *, error: str = "", percent: bool = False
) -> Figure:
    """A column of metrics.csv along training: the mean of the seeds, on their band.

    Args:
        comparison: What to draw.
        column: A column of metrics.csv.
        error: The column of its standard errors, if it has any; see `Comparison.band`.
        percent: Whether to show a fraction as per cent.
    """
    scale, unit = (100, " %") if percent else (1, "")
    known = METRICS.get(column.partition("_")[2])
    is_share = known is None or known.is_share  # purity and gap are
    mark = marks(comparison.methods)
    bands: list[dict[str, Any]] = []  # below all lines
    lines: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    for number, method in enumerate(comparison.methods):
        curves = comparison.curves(method, column)
        if not curves:
            continue
        colour, dash, _ = mark[method]
        common = {"type": "scatter", "name": plain(method), "meta": number, "showlegend": False}
        some = _thinned(curves)
        values = [[rounded(scale * value) for value in curves[epoch]] for epoch in some]
        of_seeds = comparison.curves(method, error)
        errors = [[rounded(scale * value) for value in of_seeds.get(epoch, ())] for epoch in some]
        if len(values[0] + errors[0]) > 1 and len(some) > 1:
            ends = comparison.band(method, column, error)
            around = [[rounded(scale * end) for end in ends[epoch]] for epoch in some]
            bands.append(common | _band(some, around, colour))
        lines.append(common | _line(some, values, errors, colour, dash, unit))
        found = comparison.moments(method)
        moments = {epoch: found[epoch] for epoch in comparison.marked(method, curves)}
        if moments:
            mean = {epoch: sum(seeds) / len(seeds) for epoch, seeds in curves.items()}
            lines.append(_moments_trace(method, number, moments, mean, scale, colour))
            shapes += [_moment_line(number, x, colour) for x in moments]
    return {
        "data": bands + lines,
        "layout": {
            "height": 270,
            "xaxis": {"title": {"text": "epochs", "standoff": 6}, "rangemode": "tozero", **axis()},
            "yaxis": {
                "automargin": True,
                "nticks": 6,
                "ticksuffix": unit,
                **(share_axis(scale) if is_share else axis()),
            },
            "shapes": shapes,
            "margin": {"l": 8, "r": 12, "t": 8, "b": 40},
        },
    }


def strength_figure(comparison: Comparison, modality: str) -> Figure:
    """How far each re-learning pulls an encoder back: each seed, and their mean on a stem."""
    mark = marks(comparison.methods)
    data: list[dict[str, Any]] = []
    for number, method in enumerate(comparison.methods):
        common = {"type": "scatter", "name": plain(method), "meta": number, "showlegend": False}
        spots = common | {
            "mode": "markers",
            "hovertemplate": HOVER + "%{text}, re-learning after epoch %{x}: %{y}",
        }
        colour, _, symbol = mark[method]
        mean = _of_modality(comparison.moments(method), modality)
        runs = comparison.runs_of(method)
        seeds = [
            (run.seed, epoch, strength)
            for run in runs
            for epoch, strength in _of_modality(run.moments(), modality).items()
        ]
        if len(runs) > 1 and seeds:
            data.append(
                {
                    **spots,
                    "x": [epoch for _, epoch, _ in seeds],
                    "y": [rounded(strength) for _, _, strength in seeds],
                    "text": [f"seed {seed}" for seed, _, _ in seeds],
                    "marker": {"color": colour, "size": 6, "opacity": 0.5},
                }
            )
        if mean:
            values = [rounded(strength) for strength in mean.values()]
            data.append(common | _stems(list(mean), values, colour))
            data.append(
                {
                    **spots,
                    "x": list(mean),
                    "y": values,
                    "text": [_of_seeds([s for s, x, _ in seeds if x == at]) for at in mean],
                    "marker": {"color": colour, "size": 10, "symbol": symbol},
                }
            )
    lengths = [max(points) for run in comparison.runs if (points := run.points("train_loss"))]
    # One scale for all modalities.
    highest = max(
        (max(found.values()) for run in comparison.runs for found in run.moments().values()),
        default=1.0,
    )
    return {
        "data": data,
        "layout": {
            "height": 270,
            "xaxis": {
                "title": {"text": "epochs", "standoff": 6},
                "range": [0, max(lengths, default=1)],
                **axis(),
            },
            "yaxis": {
                "automargin": True,
                "nticks": 6,
                "range": [-0.04 * highest, 1.1 * highest],
                **axis(),
            },
            "margin": {"l": 8, "r": 12, "t": 8, "b": 40},
        },
    }


def _of_seeds(seeds: Sequence[int]) -> str:
    """The seeds that a value is a mean of; not every seed may have one."""
    return f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"


def _stems(epochs: Sequence[int], values: Sequence[float], colour: str) -> dict[str, Any]:
    """A line from 0 to each value; Plotly would name error bars beside the value."""
    return {
        "mode": "lines",
        "x": [x for epoch in epochs for x in (epoch, epoch, None)],
        "y": [y for value in values for y in (0, value, None)],
        "line": {"color": colour, "width": 1.2},
        "hoverinfo": "skip",
    }


def _of_modality(moments: dict[int, dict[str, float]], modality: str) -> dict[int, float]:
    return {epoch: found[modality] for epoch, found in moments.items() if modality in found}


def _thinned(epochs: Mapping[int, Any]) -> list[int]:
    """The first epoch, the last, and others evenly spaced between them."""
    known = list(epochs)
    places = np.linspace(0, len(known) - 1, min(POINTS, len(known)))
    return [known[place] for place in places.round().astype(int)]


def _band(epochs: Sequence[int], ends: Sequence[Sequence[float]], colour: str) -> dict[str, Any]:
    """A band with these ends, low and high, at each epoch."""
    return {
        "mode": "lines",
        "x": [*epochs, *reversed(epochs)],
        "y": [*(high for _, high in ends), *(low for low, _ in reversed(ends))],
        "fill": "toself",
        "fillcolor": veiled(colour, 0.16),
        "line": {"color": colour, "width": 0},
        "hoverinfo": "skip",
    }


def _line(
    epochs: Sequence[int],
    values: Sequence[Sequence[float]],
    errors: Sequence[Sequence[float]],
    colour: str,
    dash: str,
    unit: str,
) -> dict[str, Any]:
    """A line through the seeds' mean at each epoch; the ticks give its unit to %{y}.

    The pointer shows the lowest and the highest seed, and the mean of the standard errors.
    """
    line: dict[str, Any] = {
        "mode": "lines" if len(epochs) > 1 else "markers",
        "x": epochs,
        "y": [rounded(sum(seeds) / len(seeds)) for seeds in values],
        "line": {"color": colour, "width": 2.2, "dash": dash},
        "marker": {"color": colour},
        "hovertemplate": HOVER + "epoch %{x}: %{y}",
    }
    shown: list[list[float]] = [[] for _ in epochs]
    if len(values[0]) > 1:
        shown = [[min(seeds), max(seeds)] for seeds in values]
        line["hovertemplate"] += f"<br>seeds %{{customdata[0]}} to %{{customdata[1]}}{unit}"
    if errors[0]:
        line["hovertemplate"] += f"<br>standard error %{{customdata[{len(shown[0])}]}}{unit}"
        shown = [
            [*ends, rounded(sum(seeds) / len(seeds))]
            for ends, seeds in zip(shown, errors, strict=True)
        ]
    if shown[0]:
        line["customdata"] = shown
    return line


def _moments_trace(
    method: str, number: int, moments: dict[int, dict[str, float]],
    curve: dict[int, float], scale: int, colour: str,
) -> dict[str, Any]:  # fmt: skip
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(method),
        "meta": number,
        "x": list(moments),
        "y": [rounded(scale * value_at(curve, x)) for x in moments],
        "text": [
            f"re-learning after epoch {x}"
            + "".join(f"<br>strength {plain(name)} {y:.2f}" for name, y in strengths.items())
            for x, strengths in moments.items()
        ],
        "marker": {"symbol": "triangle-down", "size": 11, "color": colour},
        "hovertemplate": HOVER + "%{text}",
        "showlegend": False,
    }


def _moment_line(number: int, x: int, colour: str) -> dict[str, Any]:
    return {
        "type": "line",
        "name": str(number),
        "x0": x,
        "x1": x,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": colour, "width": 1, "dash": "dot"},
        "opacity": 0.7,
    }
