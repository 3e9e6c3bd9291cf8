"""The figures of the page, as plain Plotly descriptions.

They carry no colour of text, grid or background: the page's style sheet gives those, so that
one drawing serves light, dark and paper.
"""

from html import escape
from itertools import combinations
from typing import Any

from evenly.report.folder import REFERENCE, Comparison, value_at

Figure = dict[str, Any]

# Okabe and Ito's colours, without those that vanish on white or on black. Six hues are as many
# as can be told apart without colour vision; further methods repeat them with another dash.
NEUTRAL = "#858c94"
HUES = ("#2b83c6", "#d9601a", "#0a9e76", "#cc74b8", "#dd9410", "#58b6e8")
DASHES = {"solid": "", "dash": "7 4", "dot": "1.5 3", "dashdot": "7 3 1.5 3", "longdash": "11 4"}
MODALITY_HUES = ("#4c6fb1", "#c8643c", "#5b9e6f", "#a06fb0", "#b59a3a", "#4aa3b5")
NUMBERED = 12  # classes, up to which confusions are written into their fields
# From nothing, which is the ground in light and dark, to a colour that is read on both.
_SHADES = [[0, "rgba(43,131,198,0)"], [1, "rgba(43,131,198,.78)"]]
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

    `accuracy`, `curve/COLUMN` for validation accuracy and training loss, `contribution`,
    `confusion`, by the position of each modality `purity_train/0`, `purity_val/0`, `gap/0`,
    `strength/0`, `noise/0`, …, and by those of two `map/0/1`, ….
    """
    figures = {
        "accuracy": accuracy_figure(comparison),
        "curve/val_accuracy": curve_figure(comparison, "val_accuracy", percent=True),
        "curve/train_loss": curve_figure(comparison, "train_loss"),
    }
    for i, modality in enumerate(comparison.modalities):
        for kind in ("purity_train", "purity_val", "gap"):
            figures[f"{kind}/{i}"] = curve_figure(comparison, f"{kind}/{modality}")
        figures[f"strength/{i}"] = strength_figure(comparison, modality)
        figures[f"noise/{i}"] = noise_figure(comparison, modality)
    for i, j in combinations(range(len(comparison.modalities)), 2):
        figures[f"map/{i}/{j}"] = map_figure(
            comparison, comparison.modalities[i], comparison.modalities[j]
        )
    figures["contribution"] = contribution_figure(comparison)
    figures["confusion"] = confusion_figure(comparison)
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
            "yaxis": _rows_axis(shown),
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


def strength_figure(comparison: Comparison, modality: str) -> Figure:
    """How far each re-learning pulls an encoder back: each seed, and their mean on a stem."""
    style = styles(comparison.methods)
    data: list[dict[str, Any]] = []
    for number, method in enumerate(comparison.methods):
        common = {
            "type": "scatter",
            "mode": "markers",
            "name": _plain(method),
            "meta": number,
            "hovertemplate": _HOVER + "%{text}, re-learning after epoch %{x}: %{y}",
            "showlegend": False,
        }
        colour = style[method][0]
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
                    **common,
                    "x": [epoch for _, epoch, _ in seeds],
                    "y": [_round(strength) for _, _, strength in seeds],
                    "text": [f"seed {seed}" for seed, _, _ in seeds],
                    "marker": {"color": colour, "size": 6, "opacity": 0.5},
                }
            )
        if mean:
            values = [_round(strength) for strength in mean.values()]
            stem = {"type": "data", "symmetric": False, "array": [0] * len(values)}
            stem |= {"arrayminus": values, "color": colour, "thickness": 1.2, "width": 0}
            what = "mean of the seeds" if len(runs) > 1 else f"seed {runs[0].seed}"
            data.append(
                {
                    **common,
                    "x": list(mean),
                    "y": values,
                    "text": [what] * len(values),
                    "error_y": stem,
                    "marker": {"color": colour, "size": 11, "symbol": "triangle-down"},
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
                **_axis(),
            },
            "yaxis": {
                "automargin": True,
                "nticks": 6,
                "range": [-0.04 * highest, 1.1 * highest],
                **_axis(),
            },
            "margin": {"l": 8, "r": 12, "t": 8, "b": 40},
        },
    }


def _of_modality(moments: dict[int, dict[str, float]], modality: str) -> dict[int, float]:
    return {epoch: found[modality] for epoch, found in moments.items() if modality in found}


def contribution_figure(comparison: Comparison) -> Figure:
    """What each modality adds to the test accuracy, in points: a bar for each method."""
    shown = [
        method
        for method in comparison.ranking
        if any(
            comparison.estimate(method, f"contribution/{name}").mean is not None
            for name in comparison.modalities
        )
    ]
    data = []
    for place, method in enumerate(shown):
        ends = {1: 0.0, -1: 0.0}  # of the bars so far, to the right of 0 and to the left
        for number, modality in enumerate(comparison.modalities):
            value = 100 * (comparison.estimate(method, f"contribution/{modality}").mean or 0.0)
            side = 1 if value >= 0 else -1
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": _plain(method),
                    "meta": comparison.methods.index(method),
                    "x": [_round(value)],
                    "base": [_round(ends[side])],
                    "y": [len(shown) - 1 - place],
                    "width": 0.62,
                    "marker": {"color": modality_colour(number)},
                    "text": _plain(modality),
                    "textposition": "none",
                    "hovertemplate": _HOVER + "%{text}: %{x:.1f} points",
                    "showlegend": False,
                }
            )
            ends[side] += value
    return {
        "data": data,
        "layout": {
            "height": 76 + 28 * len(shown),
            "barmode": "overlay",  # each bar knows where it begins
            "xaxis": {"title": {"text": "points of accuracy", "standoff": 8}, **_axis()}
            | {"zeroline": True},
            "yaxis": _rows_axis(shown),
            "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        },
    }


def map_figure(comparison: Comparison, first: str, second: str) -> Figure:
    """Linear probes of two encoders against each other; large is a high accuracy of both together.

    After Figure 1 of Wei et al., ECCV 2024. Small points are seeds.
    """
    style = styles(comparison.methods)
    accuracies = [a for m in comparison.methods if (a := comparison.accuracy(m)) is not None]
    data: list[dict[str, Any]] = []
    for number, method in enumerate(comparison.methods):
        accuracy = comparison.accuracy(method)
        ends = [comparison.estimate(method, f"probe/{name}").mean for name in (first, second)]
        if accuracy is None or ends[0] is None or ends[1] is None:
            continue
        seeds = [
            comparison.results.get((method, "test", f"probe/{name}"), {})
            for name in (first, second)
        ]
        both = sorted(seeds[0].keys() & seeds[1].keys())
        common = {
            "type": "scatter",
            "mode": "markers",
            "name": _plain(method),
            "meta": number,
            "hovertemplate": _HOVER
            + f"{_plain(first)} %{{x}} %<br>{_plain(second)} %{{y}} %<br>%{{text}}",
            "showlegend": False,
        }
        colour = style[method][0]
        data.append(
            {
                **common,
                "x": [_round(100 * seeds[0][seed]) for seed in both],
                "y": [_round(100 * seeds[1][seed]) for seed in both],
                "text": [f"seed {seed}" for seed in both],
                "marker": {"color": colour, "size": 5, "opacity": 0.5},
            }
        )
        data.append(
            {
                **common,
                "x": [_round(100 * ends[0])],
                "y": [_round(100 * ends[1])],
                "text": [f"together {100 * accuracy:.2f} %"],
                "marker": {"color": colour, "size": _size(accuracy, accuracies), "opacity": 0.85},
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 330,
            "xaxis": {"title": {"text": f"{_shortened(first)}, %", "standoff": 6}, **_axis()},
            "yaxis": {
                "title": {"text": f"{_shortened(second)}, %", "standoff": 6},
                "automargin": True,
                **_axis(),
            },
            "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        },
    }


def _size(accuracy: float, all_of_them: list[float]) -> float:
    """Of a spot, from 9 for the lowest accuracy to 26 for the highest."""
    low, high = min(all_of_them), max(all_of_them)
    return _round(9 + 17 * (accuracy - low) / (high - low)) if high > low else 16.0


def noise_figure(comparison: Comparison, modality: str) -> Figure:
    """Test accuracy as one modality is given more and more noise, and without it."""
    style = styles(comparison.methods)
    levels = comparison.noise_levels
    data = []
    for number, method in enumerate(comparison.methods):
        metrics = ["accuracy", *(f"noise_{level:g}/{modality}" for level in levels)]
        values = [comparison.estimate(method, metric).mean for metric in metrics]
        if any(value is None for value in values[1:]) or not levels:
            continue
        values.append(comparison.estimate(method, f"without/{modality}").mean)
        colour, dash = style[method]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": _plain(method),
                "meta": number,
                "x": ["none", *(f"{level:g}" for level in levels), "missing"],
                "y": [None if value is None else _round(100 * value) for value in values],
                "line": {"color": colour, "width": 2, "dash": dash},
                "marker": {"color": colour, "size": 6},
                "hovertemplate": _HOVER + "%{x}: %{y} %",
                "showlegend": False,
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 270,
            "xaxis": {"title": {"text": "noise, deviations", "standoff": 6}, "type": "category"}
            | _axis(),
            "yaxis": {"automargin": True, "nticks": 6, "ticksuffix": " %", **_axis()},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        },
    }


def confusion_figure(comparison: Comparison) -> Figure:
    """Of each class, the share that a method takes for each; the page shows one at a time."""
    names = [_shortened(name, 14) for name in comparison.class_names]
    data = []
    for method in comparison.ranking:
        share = comparison.confusion(method)
        if share is None or len(names) != len(share):
            continue
        data.append(
            {
                "type": "heatmap",
                "name": _plain(method),
                "meta": comparison.methods.index(method),
                "z": [[_round(100 * value) for value in row] for row in share],
                "x": list(range(len(names))),
                "y": list(range(len(names))),
                "zmin": 0,
                "zmax": 100,
                "colorscale": _SHADES,
                "showscale": False,
                "xgap": 1,
                "ygap": 1,
                "hovertemplate": _HOVER + "%{y} taken for %{x}: %{z} %",
            }
        )
        if len(names) <= NUMBERED:
            written = [[f"{100 * v:.0f}" if v >= 0.005 else "" for v in row] for row in share]
            data[-1] |= {"text": written, "texttemplate": "%{text}"}
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "showgrid": False}
    upright = sum(map(len, names)) > 60  # more than fit side by side
    return {
        "data": data,
        "layout": {
            "height": 150 + (26 if len(names) <= 20 else 15) * len(names),
            "xaxis": {"title": {"text": "taken for"}, "automargin": True, **ticks, **_axis()}
            | ({"tickangle": -90} if upright else {}),
            "yaxis": {"automargin": True, "autorange": "reversed", **ticks, **_axis()},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        },
    }


def modality_colour(number: int) -> str:
    """Of a modality, by its position; of other hues than the methods'."""
    return MODALITY_HUES[number % len(MODALITY_HUES)]


def _rows_axis(shown: list[str]) -> dict[str, Any]:
    """Methods from top to bottom."""
    return {
        "tickvals": list(range(len(shown))),
        "ticktext": [_shortened(method) for method in reversed(shown)],
        "range": [-0.6, len(shown) - 0.4],
        "ticklabelstandoff": 6,
        "automargin": True,
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
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
