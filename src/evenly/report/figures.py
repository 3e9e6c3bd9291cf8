"""The figures of the page, as plain Plotly descriptions.

They carry no colour of text, grid or background: the page's style sheet gives those, so that
one drawing serves light, dark and paper.
"""

from dataclasses import dataclass
from html import escape
from itertools import accumulate, combinations
from typing import Any

from evenly.report.folder import Comparison, value_at
from evenly.report.marks import NEUTRAL, OUTLINES, Mark, marks
from evenly.report.names import shortened, wrapped

Figure = dict[str, Any]

MODALITY_HUES = ("#4c6fb1", "#c8643c", "#5b9e6f", "#a06fb0", "#b59a3a", "#4aa3b5")
NUMBERED = 12  # classes, up to which confusions are written into their fields
# From nothing, which is the ground in light and dark, to a colour that is read on both.
_SHADES = [[0, "rgba(43,131,198,0)"], [1, "rgba(43,131,198,.78)"]]
# The name on a line of its own; Plotly's box for it would keep a colour of its own.
_HOVER = "%{fullData.name}<extra></extra><br>"


def all_figures(comparison: Comparison) -> dict[str, Figure]:
    """By name, every figure that has something to show.

    `accuracy`, `curve/COLUMN` for validation accuracy and training loss, `contribution`, `only`,
    `without`, `confusion`, by the position of each modality `purity_train/0`, `purity_val/0`,
    `gap/0`, `strength/0`, `noise/0`, …, and by those of two `map/0/1`, ….
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
    figures["only"] = ablation_figure(comparison, "only")
    if len(comparison.modalities) > 2:  # of two, one without the other is the other alone
        figures["without"] = ablation_figure(comparison, "without")
    figures["confusion"] = confusion_figure(comparison)
    return {name: figure for name, figure in figures.items() if figure["data"]}


def accuracy_figure(comparison: Comparison) -> Figure:
    """Test accuracy in per cent, best on top: each seed, the mean and its 95 % interval."""
    mark = marks(comparison.methods)
    shown = [m for m in comparison.ranking if comparison.accuracy(m) is not None]
    data = []
    rows = _Rows.of(shown, 40 if len(shown) <= 12 else 28)
    for method in shown:
        data += _accuracy_traces(comparison, method, rows, mark[method])
    return {
        "data": data,
        "layout": {
            "height": 52 + rows.height,
            # An interval of two seeds may go far beyond what an accuracy can be.
            "xaxis": {"title": {"text": "test accuracy (%)", "standoff": 8}, **_share_axis(100)},
            "yaxis": rows.axis(),
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
    scale = 100 if percent else 1
    mark = marks(comparison.methods)
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    for number, method in enumerate(comparison.methods):
        colour, dash, _ = mark[method]
        runs = [
            (run.seed, curve) for run in comparison.runs_of(method) if (curve := run.points(column))
        ]
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
                **(_axis() if column.endswith("loss") else _share_axis(scale)),
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
        common = {
            "type": "scatter",
            "mode": "markers",
            "name": _plain(method),
            "meta": number,
            "hovertemplate": _HOVER + "%{text}, re-learning after epoch %{x}: %{y}",
            "showlegend": False,
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
    rows = _Rows.of(shown, 28)
    for method in shown:
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
                    "y": [rows.middle[method]],
                    "width": 0.62 * rows.least,
                    "marker": {"color": modality_mark(number)[0]},
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
            "height": 52 + rows.height,
            "barmode": "overlay",  # each bar knows where it begins
            "xaxis": {"title": {"text": "points of accuracy", "standoff": 8}, **_axis()}
            | {"zeroline": True},
            "yaxis": rows.axis(),
            "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        },
    }


def ablation_figure(comparison: Comparison, kind: str) -> Figure:
    """Test accuracy in per cent with one modality alone or without one: a row for each method.

    A grey line in each row is the accuracy with all of them.

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
    spots = [("accuracy", "all modalities", line | {"color": NEUTRAL})]
    for number, (metric, name) in enumerate(metrics):
        text = f"{name} alone" if kind == "only" else f"without {name}"
        colour, symbol = modality_mark(number)
        spots.append((metric, text, {"symbol": symbol, "size": 11, "color": colour}))
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": _plain(method),
            "meta": comparison.methods.index(method),
            "x": [_round(100 * mean)],
            "y": [rows.middle[method]],
            "text": [_plain(text)],
            "marker": marker,
            "hovertemplate": _HOVER + "%{text}: %{x} %",
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
            "xaxis": {"title": {"text": "test accuracy (%)", "standoff": 8}, **_share_axis(100)},
            "yaxis": rows.axis() | {"showgrid": True},
            "margin": {"l": 8, "r": 16, "t": 8, "b": 44},
        },
    }


def map_figure(comparison: Comparison, first: str, second: str) -> Figure:
    """Linear probes of two encoders against each other; large is a high accuracy of both together.

    After Figure 1 of Wei et al., ECCV 2024. Small points are seeds.
    """
    mark = marks(comparison.methods)
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
        colour, _, symbol = mark[method]
        data.append(
            {
                **common,
                "x": [_round(100 * seeds[0][seed]) for seed in both],
                "y": [_round(100 * seeds[1][seed]) for seed in both],
                "text": [f"seed {seed}" for seed in both],
                "marker": {"color": colour, "size": 5, "opacity": 0.5, "symbol": symbol},
            }
        )
        data.append(
            {
                **common,
                "x": [_round(100 * ends[0])],
                "y": [_round(100 * ends[1])],
                "text": [f"together {100 * accuracy:.2f} %"],
                # Where the page's script finds a place for it.
                "customdata": ["\n".join(wrapped(method))],
                "marker": {
                    "color": colour,
                    "symbol": symbol,
                    "size": _size(accuracy, accuracies),
                    "opacity": 0.85,
                },
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 330,
            "xaxis": {
                "title": {"text": f"{_shortened(first)}, %", "standoff": 6},
                "nticks": 6,
                **_share_axis(100),
            },
            "yaxis": {
                "title": {"text": f"{_shortened(second)}, %", "standoff": 6},
                "automargin": True,
                "nticks": 6,
                **_share_axis(100),
            },
            "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        },
    }


def _size(accuracy: float, all_of_them: list[float]) -> float:
    """Of a spot, from 8 for the lowest accuracy to 20 for the highest."""
    low, high = min(all_of_them), max(all_of_them)
    return _round(8 + 12 * (accuracy - low) / (high - low)) if high > low else 14.0


def noise_figure(comparison: Comparison, modality: str) -> Figure:
    """Test accuracy as one modality is given more and more noise, and without it."""
    mark = marks(comparison.methods)
    levels = comparison.noise_levels
    data = []
    for number, method in enumerate(comparison.methods):
        metrics = ["accuracy", *(f"noise_{level:g}/{modality}" for level in levels)]
        values = [comparison.estimate(method, metric).mean for metric in metrics]
        if any(value is None for value in values[1:]) or not levels:
            continue
        values.append(comparison.estimate(method, f"without/{modality}").mean)
        colour, dash, symbol = mark[method]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": _plain(method),
                "meta": number,
                "x": ["none", *(f"{level:g}" for level in levels), "missing"],
                "y": [None if value is None else _round(100 * value) for value in values],
                "line": {"color": colour, "width": 2, "dash": dash},
                "marker": {"color": colour, "size": 7, "symbol": symbol},
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
            "yaxis": {"automargin": True, "nticks": 6, "ticksuffix": " %", **_share_axis(100)},
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


def modality_mark(number: int) -> tuple[str, str]:
    """Colour and symbol of a modality, by its position; of other hues than the methods'."""
    symbols = list(OUTLINES)
    return MODALITY_HUES[number % len(MODALITY_HUES)], symbols[number % len(symbols)]


@dataclass(frozen=True)
class _Rows:
    """A row for each method, from top to bottom, as high as its name needs.

    Attributes:
        least: Height in pixels of one with a short name.
        middle: By method, its middle, in pixels from below.
        height: Of all of them.
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
            "ticktext": ["<br>".join(map(_plain, wrapped(method))) for method in self.middle],
            "range": [0, self.height],
            "ticklabelstandoff": 6,
            "automargin": True,
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        }


def _accuracy_traces(
    comparison: Comparison, method: str, rows: _Rows, mark: Mark
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
                "color": mark.colour,
                "thickness": 2.5,
                "width": 6,
            }
        }
    points = {
        "x": [_round(100 * value) for _, value in seeds],
        "y": [rows.middle[method] - 0.24 * rows.least] * len(seeds),
        "text": [f"seed {seed}: {100 * value:.2f} %" for seed, value in seeds],
        "marker": {"color": mark.colour, "size": 7, "opacity": 0.55},
    }
    centre = {
        "x": [_round(mean)],
        "y": [rows.middle[method]],
        "text": [text],
        "marker": {"color": mark.colour, "size": 11, "symbol": mark.symbol},
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


def _share_axis(scale: int) -> dict[str, Any]:
    """Of a share between 0 and `scale`, and what its marks need beyond."""
    return _axis() | {"autorangeoptions": {"clipmin": -0.02 * scale, "clipmax": 1.02 * scale}}


def _round(value: float) -> float:
    """Five significant digits, which no figure can show more of, keep the page small."""
    return float(f"{value:.5g}")


def _plain(name: str) -> str:
    """A name as Plotly shows it unchanged; it reads a few tags and entities in its texts."""
    return escape(name, quote=False)


def _shortened(name: str, length: int = 22) -> str:
    return _plain(shortened(name, length))
