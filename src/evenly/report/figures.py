"""The figures of the page, as plain Plotly descriptions.

They carry no colour of text, grid or background: the page's style sheet gives those, so that
one drawing serves light, dark and paper.
"""

from html import escape
from typing import Any

from evenly.report.folder import REFERENCE, Comparison, value_at

Figure = dict[str, Any]

# Okabe and Ito's colours, without those that vanish on white or on black. Six hues are as many
# as can be told apart without colour vision; further methods repeat them with another dash.
NEUTRAL = "#858c94"
HUES = ("#2b83c6", "#d9601a", "#0a9e76", "#cc74b8", "#dd9410", "#58b6e8")
DASHES = {"solid": "", "dash": "7 4", "dot": "1.5 3", "dashdot": "7 3 1.5 3", "longdash": "11 4"}
# The name on a line of its own; Plotly's box for it would keep a colour of its own.
_HOVER = "%{fullData.name}<extra></extra><br>"


def styles(methods: list[str]) -> dict[str, tuple[str, str]]:
    """By method its colour and dash, the same in every figure; joint training is grey."""
    dashes = list(DASHES)
    others = [method for method in methods if method != REFERENCE]
    found = {
        method: (HUES[i % len(HUES)], dashes[i // len(HUES) % len(dashes)])
        for i, method in enumerate(others)
    }
    return {method: found.get(method, (NEUTRAL, "solid")) for method in methods}


def all_figures(comparison: Comparison) -> dict[str, Figure]:
    """By name, every figure that has something to show.

    `accuracy`, `curve/COLUMN` for validation accuracy and training loss, and by the position
    of each modality `purity_train/0`, `purity_val/0`, `gap/0`, ….
    """
    figures = {
        "accuracy": accuracy_figure(comparison),
        "curve/val_accuracy": curve_figure(comparison, "val_accuracy", percent=True),
        "curve/train_loss": curve_figure(comparison, "train_loss"),
    }
    for i, modality in enumerate(comparison.modalities):
        for kind in ("purity_train", "purity_val", "gap"):
            figures[f"{kind}/{i}"] = curve_figure(comparison, f"{kind}/{modality}")
    return {name: figure for name, figure in figures.items() if figure["data"]}


def accuracy_figure(comparison: Comparison) -> Figure:
    """Test accuracy in per cent, best on top: each seed, the mean and its 95 % interval."""
    style = styles(comparison.methods)
    shown = [m for m in comparison.ranking if comparison.accuracy(m) is not None]
    data = []
    for place, method in enumerate(shown):
        row = len(shown) - 1 - place
        data += _accuracy_traces(comparison, method, row, style[method][0])
    return {
        "data": data,
        "layout": {
            "height": 92 + (40 if len(shown) <= 12 else 28) * len(shown),
            "xaxis": {"title": {"text": "test accuracy (%)", "standoff": 8}, **_axis()},
            "yaxis": {
                "tickvals": list(range(len(shown))),
                "ticktext": [_shortened(method) for method in reversed(shown)],
                "range": [-0.6, len(shown) - 0.4],
                "automargin": True,
                "fixedrange": True,
                "showgrid": False,
                "zeroline": False,
            },
            "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        },
    }


def curve_figure(comparison: Comparison, column: str, *, percent: bool = False) -> Figure:
    """A column of metrics.csv along training: each seed thin, their mean thick.

    Args:
        comparison: What to draw.
        column: Of metrics.csv.
        percent: Whether to show a fraction as per cent.
    """
    style = styles(comparison.methods)
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    for number, method in enumerate(comparison.methods):
        colour, dash = style[method]
        runs = [
            (run.seed, curve) for run in comparison.runs_of(method) if (curve := run.points(column))
        ]
        scale = 100 if percent else 1
        if len(runs) > 1:
            data += [
                _line(method, number, curve, scale, seed, {"color": colour, "width": 1}, 0.45)
                for seed, curve in runs
            ]
        mean = comparison.mean_curve(method, column)
        if mean:
            seed = runs[0][0] if len(runs) == 1 else None
            line = {"color": colour, "width": 2.4, "dash": dash}
            data.append(_line(method, number, mean, scale, seed, line, 1.0))
            moments = comparison.moments(method)
            if moments:
                data.append(_moments_trace(method, number, moments, mean, scale, colour))
                shapes += [_moment_line(number, x, colour) for x in moments]
    return {
        "data": data,
        "layout": {
            "height": 270,
            "xaxis": {"title": {"text": "epochs", "standoff": 6}, "rangemode": "tozero", **_axis()},
            "yaxis": {
                "automargin": True,
                "nticks": 6,
                "ticksuffix": " %" if percent else "",
                **_axis(),
            },
            "shapes": shapes,
            "margin": {"l": 8, "r": 12, "t": 8, "b": 40},
        },
    }


def _accuracy_traces(
    comparison: Comparison, method: str, row: int, colour: str
) -> list[dict[str, Any]]:
    number = comparison.methods.index(method)
    estimate = comparison.estimate(method, "accuracy")
    seeds = sorted(comparison.results.get((method, "test", "accuracy"), {}).items())
    mean = 100 * (estimate.mean or 0.0)
    text = f"mean {mean:.2f} %"
    bars: dict[str, Any] = {}
    if estimate.low is not None and estimate.high is not None:
        low, high = 100 * estimate.low, 100 * estimate.high
        text += f"<br>95 % interval {low:.2f} to {high:.2f} %"
        bars = {
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [_round(high - mean)],
                "arrayminus": [_round(mean - low)],
                "color": colour,
                "thickness": 2.5,
                "width": 6,
            }
        }
    points = {
        "x": [_round(100 * value) for _, value in seeds],
        "y": [row - 0.24] * len(seeds),
        "text": [f"seed {seed}: {100 * value:.2f} %" for seed, value in seeds],
        "marker": {"color": colour, "size": 7, "opacity": 0.55},
    }
    centre = {
        "x": [_round(mean)],
        "y": [row],
        "text": [text],
        "marker": {"color": colour, "size": 11, "symbol": "diamond"},
        **bars,
    }
    common = {
        "type": "scatter",
        "mode": "markers",
        "name": _plain(method),
        "meta": number,
        "hovertemplate": _HOVER + "%{text}",
        "showlegend": False,
    }
    return [{**common, **points}, {**common, **centre}]


def _line(
    method: str, number: int, curve: dict[int, float], scale: int, seed: int | None,
    line: dict[str, Any], opacity: float,
) -> dict[str, Any]:  # fmt: skip
    what = "mean of the seeds" if seed is None else f"seed {seed}"
    return {
        "type": "scatter",
        "mode": "lines" if len(curve) > 1 else "markers",
        "name": _plain(method),
        "meta": number,
        "x": list(curve),
        "y": [_round(scale * value) for value in curve.values()],
        "line": line,
        "marker": {"color": line["color"]},
        "opacity": opacity,
        "hovertemplate": _HOVER + f"{what}, epoch %{{x}}: %{{y}}",
        "showlegend": False,
    }


def _moments_trace(
    method: str, number: int, moments: dict[int, dict[str, float]],
    curve: dict[int, float], scale: int, colour: str,
) -> dict[str, Any]:  # fmt: skip
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _plain(method),
        "meta": number,
        "x": list(moments),
        "y": [_round(scale * value_at(curve, x)) for x in moments],
        "text": [
            f"re-learning after epoch {x}"
            + "".join(f"<br>strength {_plain(name)} {y:.2f}" for name, y in strengths.items())
            for x, strengths in moments.items()
        ],
        "marker": {"symbol": "triangle-down", "size": 11, "color": colour},
        "hovertemplate": _HOVER + "%{text}",
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


def _axis() -> dict[str, Any]:
    return {"zeroline": False, "showline": False, "fixedrange": True}


def _round(value: float) -> float:
    """Five significant digits, which no figure can show more of, keep the page small."""
    return float(f"{value:.5g}")


def _plain(name: str) -> str:
    """A name as Plotly shows it unchanged; it reads a few tags and entities in its texts."""
    return escape(name, quote=False)


def _shortened(name: str, length: int = 22) -> str:
    return _plain(name if len(name) <= length else name[: length - 1] + "…")
