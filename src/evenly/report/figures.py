"""The figures of the page, as plain Plotly descriptions.

They carry no colour of text, grid or background: the page's style sheet gives those, so that
one drawing serves light, dark and paper.
"""

from itertools import combinations
from typing import Any

import numpy as np

from evenly.report.comparison import Comparison
from evenly.report.curves import curve_figure, strength_figure
from evenly.report.marks import NEUTRAL, marks
from evenly.report.names import shortened, wrapped
from evenly.report.parts import (
    HOVER,
    Figure,
    axis,
    metric_axis,
    plain,
    rounded,
    share_axis,
    share_scale,
)
from evenly.report.rows import ablation_figure, contribution_figure, main_figure

SPOTS = 1000
"""The most samples whose numbers are drawn."""
NUMBERED = 12  # the most classes for which each field shows its number
# From transparent to a colour that can be read on a light and on a dark page.
_SHADES = [[0, "rgba(43,131,198,0)"], [1, "rgba(43,131,198,.78)"]]


def all_figures(comparison: Comparison) -> dict[str, Figure]:
    """Every figure that has something to show, by name.

    - The main metric by its own name, such as `accuracy`.
    - `curve/COLUMN` for the main metric on the validation split and for the training loss.
    - `contribution`, `only`, `without`, `confusion`, and for numbers `agreement`.
    - For each modality, by its position: `purity_train/0`, `purity_val/0`, `gap/0`, `strength/0`,
      `noise/0`, `missing/0`, ...
    - For each pair of modalities, by their positions: `map/0/1`, ...
    """
    figures = {
        comparison.main: main_figure(comparison),
        f"curve/val_{comparison.main}": curve_figure(
            comparison, f"val_{comparison.main}", percent=comparison.metric.is_share
        ),
        "curve/train_loss": curve_figure(comparison, "train_loss"),
    }
    for i, modality in enumerate(comparison.modalities):
        for kind in ("purity_train", "purity_val"):
            figures[f"{kind}/{i}"] = curve_figure(comparison, f"{kind}/{modality}")
        figures[f"gap/{i}"] = curve_figure(
            comparison, f"gap/{modality}", error=f"gap_error/{modality}"
        )
        figures[f"strength/{i}"] = strength_figure(comparison, modality)
        figures[f"noise/{i}"] = noise_figure(comparison, modality)
        figures[f"missing/{i}"] = missing_figure(comparison, modality)
    for i, j in combinations(range(len(comparison.modalities)), 2):
        figures[f"map/{i}/{j}"] = map_figure(
            comparison, comparison.modalities[i], comparison.modalities[j]
        )
    figures["contribution"] = contribution_figure(comparison)
    figures["only"] = ablation_figure(comparison, "only")
    if len(comparison.modalities) > 2:  # of two, one without the other is the other alone
        figures["without"] = ablation_figure(comparison, "without")
    for kinds in (("purity_train", "purity_val"), ("gap",), ("noise",), ("missing",)):
        share_scale([figure for name, figure in figures.items() if name.startswith(kinds)])
    share_scale([figure for name, figure in figures.items() if name in ("only", "without")], "x")
    figures["confusion"] = confusion_figure(comparison)
    figures["agreement"] = agreement_figure(comparison)
    return {name: figure for name, figure in figures.items() if figure["data"]}


def map_figure(comparison: Comparison, first: str, second: str) -> Figure:
    """Linear probes of two encoders, plotted against each other.

    After Figure 1 of Wei et al., ECCV 2024. A larger spot means a better main metric of the whole
    model; small points are seeds.
    """
    mark = marks(comparison.methods)
    scores = [a for m in comparison.methods if (a := comparison.score(m)) is not None]
    metric = comparison.metric
    data: list[dict[str, Any]] = []
    across, up = map(plain, shortened([first, second]).values())
    for number, method in enumerate(comparison.methods):
        score = comparison.score(method)
        ends = [comparison.estimate(method, f"probe/{name}").mean for name in (first, second)]
        if score is None or ends[0] is None or ends[1] is None:
            continue
        seeds = [
            comparison.results.get((method, "test", f"probe/{name}"), {})
            for name in (first, second)
        ]
        both = sorted(seeds[0].keys() & seeds[1].keys())
        common = {
            "type": "scatter",
            "mode": "markers",
            "name": plain(method),
            "meta": number,
            "hovertemplate": HOVER
            + f"{plain(first)} %{{x}} %<br>{plain(second)} %{{y}} %<br>%{{text}}",
            "showlegend": False,
        }
        colour, _, symbol = mark[method]
        data.append(
            {
                **common,
                "x": [rounded(100 * seeds[0][seed]) for seed in both],
                "y": [rounded(100 * seeds[1][seed]) for seed in both],
                "text": [f"seed {seed}" for seed in both],
                "marker": {"color": colour, "size": 5, "opacity": 0.5, "symbol": symbol},
            }
        )
        data.append(
            {
                **common,
                "x": [rounded(100 * ends[0])],
                "y": [rounded(100 * ends[1])],
                "text": [f"together {metric.shown(score, places=2)}{metric.unit}"],
                # Where the page's script finds a place for it.
                "customdata": ["\n".join(wrapped(method))],
                "marker": {
                    "color": colour,
                    "symbol": symbol,
                    "size": _size(metric.sign * score, [metric.sign * each for each in scores]),
                    "opacity": 0.85,
                },
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 330,
            "xaxis": {
                "title": {"text": f"{across}, %", "standoff": 6},
                "nticks": 6,
                **share_axis(100),
            },
            "yaxis": {
                "title": {"text": f"{up}, %", "standoff": 6},
                "automargin": True,
                "nticks": 6,
                **share_axis(100),
            },
            "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        },
    }


def _size(worth: float, all_of_them: list[float]) -> float:
    """The size of a spot, from 8 for the worst method to 20 for the best."""
    low, high = min(all_of_them), max(all_of_them)
    return rounded(8 + 12 * (worth - low) / (high - low)) if high > low else 14.0


def noise_figure(comparison: Comparison, modality: str) -> Figure:
    """The main metric on test with more and more noise on one modality, and without it."""
    metric = comparison.metric
    levels = comparison.noise_levels
    data = []
    for number, method in enumerate(comparison.methods):
        columns = [comparison.main, *(f"noise_{level:g}/{modality}" for level in levels)]
        values = [comparison.estimate(method, column).mean for column in columns]
        if any(value is None for value in values[1:]) or not levels:
            continue
        values.append(comparison.estimate(method, f"without/{modality}").mean)
        data.append(
            {
                **_line(comparison, number),
                "x": ["none", *(f"{level:g}" for level in levels), "missing"],
                "y": [None if value is None else rounded(metric.scale * value) for value in values],
                "hovertemplate": HOVER + "%{x}: %{y}",  # the ticks have the unit
            }
        )
    title = {"text": "added noise, deviations", "standoff": 6}
    return _small(comparison, data, {"title": title, "type": "category"})


def missing_figure(comparison: Comparison, modality: str) -> Figure:
    """The main metric on test with one modality missing from more and more samples.

    With 95 % intervals.
    """
    metric = comparison.metric
    rates = comparison.missing_rates
    at = [100 * rate for rate in (0, *rates, 1)]
    apart = min(1.5, 8 / max(len(comparison.methods), 1))  # so that all intervals are seen
    between = [f"missing_{rate:g}/{modality}" for rate in rates]
    data = []
    for number, method in enumerate(comparison.methods):
        columns = [comparison.main, *between, f"without/{modality}"]
        found = [comparison.estimate(method, column) for column in columns]
        if not rates or any(each.mean is None for each in found):
            continue
        means = [metric.scale * (each.mean or 0.0) for each in found]
        said = [metric.shown(each.mean or 0.0, places=2) for each in found]
        ends = [
            mean if end is None else metric.scale * end
            for each, mean in zip(found, means, strict=True)
            for end in (each.low, each.high)
        ]
        line = _line(comparison, number)
        interval = {
            "type": "data",
            "symmetric": False,
            "array": [rounded(high - y) for high, y in zip(ends[1::2], means, strict=True)],
            "arrayminus": [rounded(y - low) for low, y in zip(ends[::2], means, strict=True)],
            "color": line["line"]["color"],
            "thickness": 1,
            "width": 3,
        }
        data.append(
            {
                **line,
                "x": [x + apart * (number - (len(comparison.methods) - 1) / 2) for x in at],
                "y": [rounded(mean) for mean in means],
                "text": [
                    f"taken from {x:g} %: {mean}{metric.unit}"
                    for x, mean in zip(at, said, strict=True)
                ],
                "error_y": interval,
                "hovertemplate": HOVER + "%{text}",  # Plotly's %{y} would end in the error bar
            }
        )
    title = {"text": "taken from, % of all test samples", "standoff": 6}
    return _small(comparison, data, {"title": title, "tickvals": at})


def _line(comparison: Comparison, number: int) -> dict[str, Any]:
    """The style of a method's line and marks."""
    method = comparison.methods[number]
    colour, dash, symbol = marks(comparison.methods)[method]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(method),
        "meta": number,
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"color": colour, "size": 7, "symbol": symbol},
        "showlegend": False,
    }


def _small(comparison: Comparison, data: list[Figure], across: Figure) -> Figure:
    """A small figure of the main metric; `across` describes the horizontal axis."""
    metric = comparison.metric
    return {
        "data": data,
        "layout": {
            "height": 270,
            "xaxis": across | axis(),
            "yaxis": {"automargin": True, "nticks": 6, "ticksuffix": metric.unit}
            | metric_axis(metric),
            "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        },
    }


def confusion_figure(comparison: Comparison) -> Figure:
    """The share of each true class by predicted class; the page shows one method at a time."""
    names, short = comparison.class_names, shortened(comparison.class_names, 14)
    ticked = [plain(short[name]) for name in names]
    data = []
    for method in comparison.ranking:
        share = comparison.confusion(method)
        if share is None or len(names) != len(share):
            continue
        data.append(
            {
                "type": "heatmap",
                "name": plain(method),
                "meta": comparison.methods.index(method),
                "z": [[rounded(100 * value) for value in row] for row in share],
                "x": list(range(len(names))),
                "y": list(range(len(names))),
                "zmin": 0,
                "zmax": 100,
                "colorscale": _SHADES,
                "showscale": False,
                "xgap": 1,
                "ygap": 1,
                "hovertemplate": HOVER + "%{customdata[0]} taken for %{customdata[1]}: %{z} %",
            }
        )
        if len(names) <= NUMBERED:
            written = [[f"{100 * v:.0f}" if v >= 0.005 else "" for v in row] for row in share]
            data[-1] |= {"text": written, "texttemplate": "%{text}"}
    ticks = {"tickvals": list(range(len(names))), "ticktext": ticked, "showgrid": False}
    upright = sum(map(len, ticked)) > 60  # more than fit side by side
    return {
        "data": data,
        "layout": {
            "meta": list(map(plain, names)),  # of which the page's script makes the customdata
            "height": 150 + (26 if len(names) <= 20 else 15) * len(names),
            "xaxis": {"title": {"text": "taken for"}, "automargin": True, **ticks, **axis()}
            | ({"tickangle": -90} if upright else {}),
            "yaxis": {"automargin": True, "autorange": "reversed", **ticks, **axis()},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        },
    }


def agreement_figure(comparison: Comparison) -> Figure:
    """Predicted against true numbers of test samples, with the line on which both are equal.

    They come from the method's first finished seed, and are at most `SPOTS`. The page shows one
    method at a time.
    """
    mark = marks(comparison.methods)
    data: list[dict[str, Any]] = []
    for method in comparison.ranking:
        found = comparison.numbers(method)
        if found is None:
            continue
        seed, pairs = found
        some = pairs[np.linspace(0, len(pairs) - 1, min(SPOTS, len(pairs))).astype(int)]
        ends = [rounded(float(some.min())), rounded(float(some.max()))]
        common = {
            "type": "scatter",
            "name": plain(method),
            "meta": comparison.methods.index(method),
            "showlegend": False,
        }
        data.append(
            {
                **common,
                "mode": "lines",
                "x": ends,
                "y": ends,
                "line": {"color": NEUTRAL, "width": 1.5},
                "hoverinfo": "skip",
            }
        )
        data.append(
            {
                **common,
                "mode": "markers",
                "x": [rounded(value) for value in some[:, 0].tolist()],
                "y": [rounded(value) for value in some[:, 1].tolist()],
                "marker": {"color": mark[method].colour, "size": 6, "opacity": 0.55},
                "hovertemplate": f"{HOVER}seed {seed}: true %{{x}}, said %{{y}}",
            }
        )
    return {
        "data": data,
        "layout": {
            "height": 420,
            "xaxis": {"title": {"text": "true", "standoff": 8}, **axis()},
            "yaxis": {"title": {"text": "said", "standoff": 8}, "automargin": True, **axis()},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 44},
        },
    }
