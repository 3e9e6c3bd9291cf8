"""The pictures of the paper's experiments, each drawn from a comparison of its methods."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenly.metrics import METRICS
from evenly.report.comparison import Comparison, value_at
from evenly.report.drawing import (
    CARD,
    INK,
    QUIET,
    add_heading,
    labels_end,
    of_methods,
    of_seeds,
    row_height,
    row_labels,
    selected,
    widened,
    write_drawing,
)
from evenly.report.marks import HUES, MARKERS, marks
from evenly.report.names import wrapped
from evenly.report.picture import (
    draw_gap_band,
    draw_scores,
    gap_band_handles,
    score_title,
    write_projection_picture,
)
from evenly.report.places import Box, Spot, label_boxes, leader, needs_line
from evenly.spec import parse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawing = Callable[[Comparison, Path, Path], Path]
"""Draws a comparison, whose folder is given, to a file, .svg or .png."""


def scores(comparison: Comparison, folder: Path, path: Path) -> Path:
    """The main metric of every method, best on top; a band shows the reference's interval."""
    return write_drawing(path, partial(_scores, comparison))


def figure1(comparison: Comparison, folder: Path, path: Path) -> Path:
    """Accuracy, and a map of the encoders' linear probes for each pair of modalities."""
    return write_drawing(path, partial(_figure1, comparison))


def figure3(comparison: Comparison, folder: Path, path: Path) -> Path:
    """The test samples as each encoder sees them, by t-SNE."""
    return write_projection_picture(folder, path, comparison.methods)


def figure4(comparison: Comparison, folder: Path, path: Path) -> Path:
    """Gap and purity of each modality along training, and the metric on the selecting split.

    The purities are those of the training and validation splits, which the gap is between.
    """
    return write_drawing(path, partial(_figure4, comparison))


def figure5(comparison: Comparison, folder: Path, path: Path) -> Path:
    """The main metric on test by strength and by period, beside joint training."""
    return write_drawing(path, partial(_figure5, comparison))


def _ranked(comparison: Comparison) -> list[str]:
    return [m for m in comparison.ranking if comparison.score(m) is not None]


def _add_scores(
    figure: "Figure", comparison: Comparison, labels: Sequence[str], right: float
) -> None:
    """Adds the main metric, up to `right` inches from the left edge."""
    width, height = figure.get_size_inches()
    ranked = _ranked(comparison)
    below = f"{of_seeds(comparison)}{_band(comparison)}{of_methods(comparison, ranked)}"
    add_heading(figure, 0.35, score_title(comparison), below)
    start = labels_end(labels)
    top, bottom = (height - 1.0) / height, 0.5 / height
    axes = figure.add_axes((start / width, bottom, (right - start) / width, top - bottom))
    _draw_band(axes, comparison, vertical=True)
    draw_scores(axes, comparison, ranked, labels)


def _height(labels: Sequence[str]) -> float:
    return max(3.4, 1.6 + row_height(labels) * len(labels))


def _band(comparison: Comparison) -> str:
    """What `_draw_band` shows, in words; empty if there is no reference."""
    found = comparison.estimate(comparison.reference, comparison.main)
    if found.mean is None:
        return ""
    return f"; {'line' if found.low is None else 'band'}: {comparison.reference}"


def _draw_band(axes: "Axes", comparison: Comparison, *, vertical: bool) -> None:
    """Draws the reference's mean and interval, behind everything else."""
    found = comparison.estimate(comparison.reference, comparison.main)
    scale = comparison.metric.scale
    if found.mean is None:
        return
    line, span = (axes.axvline, axes.axvspan) if vertical else (axes.axhline, axes.axhspan)
    if found.low is not None and found.high is not None:
        span(scale * found.low, scale * found.high, color="#858c94", alpha=0.13, linewidth=0)
    line(scale * found.mean, color="#858c94", linewidth=1)


def _scores(comparison: Comparison) -> "Figure":
    from matplotlib.figure import Figure

    labels = row_labels(_ranked(comparison))
    right = 6.85 + widened(labels)
    figure = Figure(figsize=(right + 0.35, _height(labels)))
    _add_scores(figure, comparison, labels, right)
    return figure


def _figure1(comparison: Comparison) -> "Figure":
    from matplotlib.figure import Figure

    pairs = [
        pair
        for pair in combinations(comparison.modalities, 2)
        if any(_probes(comparison, method, pair) for method in comparison.methods)
    ]
    labels = row_labels(_ranked(comparison))
    height = max(_height(labels), 4.8)
    start = 5.2 + widened(labels)
    width = start + 4.6 * len(pairs)
    figure = Figure(figsize=(width, height))
    _add_scores(figure, comparison, labels, start - 0.35)
    tall = min(height - 1.62, 7.0)
    bottom = (height - 1.0 - tall) / height
    for number, pair in enumerate(pairs):
        left = start + 4.6 * number
        below = f"test {_probed(comparison)}, %; a larger spot is a better model" * (not number)
        add_heading(figure, left, "A new classifier on each encoder", below)
        place = ((left + 0.5) / width, bottom, 3.75 / width, tall / height)
        _draw_map(figure.add_axes(place), comparison, pair)
    return figure


def _probed(comparison: Comparison) -> str:
    """The metric of a linear probe, in words."""
    return METRICS["mean_average_precision" if comparison.has_labels else "accuracy"].words


def _probes(comparison: Comparison, method: str, pair: Sequence[str]) -> tuple[float, float] | None:
    """The scores of two modalities' probes, in per cent; None if the model lacks one of them."""
    found = [comparison.estimate(method, f"probe/{name}").mean for name in pair]
    if any(value is None for value in found):
        return None
    first, second = (100 * (value or 0.0) for value in found)
    return first, second


def _draw_map(axes: "Axes", comparison: Comparison, pair: tuple[str, str]) -> None:
    mark = marks(comparison.methods)
    shown = {m: found for m in _ranked(comparison) if (found := _probes(comparison, m, pair))}
    accuracies = {method: comparison.score(method) or 0.0 for method in shown}
    least, most = min(accuracies.values()), max(accuracies.values())
    sizes = {
        method: 6 + 7 * ((accuracy - least) / (most - least) if most > least else 0.5)
        for method, accuracy in accuracies.items()
    }
    for method, size in sorted(sizes.items(), key=lambda each: -each[1]):  # small ones on top
        colour, _, symbol = mark[method]
        axes.plot(*shown[method], MARKERS[symbol], color=colour, markersize=size, alpha=0.8,
                  markeredgecolor=CARD)  # fmt: skip
    for name, line in zip(pair, (axes.axvline, axes.axhline), strict=True):
        alone = comparison.estimate(f"unimodal(modality={name})", f"probe/{name}").mean
        if alone is not None:
            line(100 * alone, color=QUIET, linewidth=0.9, linestyle=(0, (1.5, 2.5)))
    axes.set_xlabel(f"{pair[0]} (dotted: trained alone)")
    axes.set_ylabel(pair[1])
    axes.margins(x=0.22, y=0.12)
    axes.locator_params(nbins=6)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # what comes now moves no limits
    texts = {
        method: "\n".join(wrapped(method, 24)) + f" {100 * accuracy:.1f}"
        for method, accuracy in accuracies.items()
    }
    _label_spots(axes, shown, sizes, texts, {method: mark[method].colour for method in shown})


def _label_spots(
    axes: "Axes",
    places: Mapping[str, tuple[float, float]],
    sizes: Mapping[str, float],
    texts: Mapping[str, str],
    colours: Mapping[str, str],
) -> None:
    """Writes a text beside each spot (sizes in points), with a line to texts that are far away."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes.figure.get_figure(root=True)
    points = 72 / figure.dpi
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = Box(*(points * np.array(axes.get_window_extent().extents)).tolist())
    spots = []
    for method, place in places.items():
        text = axes.text(0, 0, texts[method], fontsize=7.5, linespacing=1.1)
        extent = text.get_window_extent(renderer)
        text.remove()
        x, y = (axes.transData.transform(place) * points).tolist()
        spots.append(
            Spot(x, y, sizes[method] / 2, extent.width * points + 2, extent.height * points + 3)
        )
    for spot, (method, place), box in zip(
        spots, places.items(), label_boxes(spots, frame), strict=True
    ):
        ends = np.array(leader(spot, box))
        if needs_line(spot, box, spots):
            x, y = axes.transData.inverted().transform(ends / points).T
            axes.plot(x, y, color=colours[method], linewidth=0.8)
        offset = (box.left + 1 - spot.x, box.bottom + 1.5 - spot.y)
        axes.annotate(texts[method], place, xytext=offset, textcoords="offset points",
                      fontsize=7.5, linespacing=1.1, color=INK, va="bottom")  # fmt: skip


def _figure4(comparison: Comparison) -> "Figure":
    from matplotlib.figure import Figure

    modalities = comparison.modalities
    columns = len(modalities) + 1
    width = 0.8 + 2.9 * columns
    figure = Figure(figsize=(width, 5.6))
    grid = figure.add_gridspec(2, columns, left=0.8 / width, right=1 - 0.25 / width, top=0.82,
                               bottom=0.1, hspace=0.32, wspace=0.3)  # fmt: skip
    for column, name in enumerate(modalities):
        above = figure.add_subplot(grid[0, column])
        for method in comparison.methods:
            if comparison.mean_curve(method, f"gap/{name}"):
                draw_gap_band(above, comparison, method, name)
        _draw_curves(above, comparison, f"gap/{name}", name)
        below = figure.add_subplot(grid[1, column])
        _draw_curves(below, comparison, f"purity_train/{name}", "", dotted=True)
        _draw_curves(below, comparison, f"purity_val/{name}", "")
        below.set_xlabel("epochs")
        if not column:
            figure.axes[0].set_ylabel("gap")
            below.set_ylabel("purity: val, dotted train")
    split = "test" if comparison.selects_on_test else "val"
    last = figure.add_subplot(grid[:, columns - 1])
    metric = comparison.metric
    said = f"{split} {metric.words}{', %' if metric.is_share else ''}"
    _draw_curves(last, comparison, f"{split}_{comparison.main}", said, scale=metric.scale)
    last.set_xlabel("epochs")
    title = f"Gap, purity and {metric.words} along training{selected(comparison)}"
    add_heading(figure, 0.35, title, "")
    _add_legend(figure, comparison)
    return figure


def _draw_curves(
    axes: "Axes",
    comparison: Comparison,
    column: str,
    title: str,
    *,
    dotted: bool = False,
    scale: int = 1,
) -> None:
    """Draws a column of metrics.csv: seeds thin, their mean thick, re-learnings marked."""
    mark = marks(comparison.methods)
    for method in comparison.methods:
        colour = mark[method].colour
        mean = comparison.mean_curve(method, column)
        if not mean:
            continue
        if not dotted:
            for run in comparison.runs_of(method):
                points = run.points(column)
                values = [scale * value for value in points.values()]
                axes.plot(list(points), values, color=colour, linewidth=0.6, alpha=0.35)
        axes.plot(list(mean), [scale * value for value in mean.values()], color=colour,
                  linewidth=1.2 if dotted else 2, linestyle=":" if dotted else "-")  # fmt: skip
        for x in () if dotted else comparison.marked(method, mean):
            axes.axvline(x, color=colour, linewidth=0.9, linestyle=(0, (1.5, 2.5)))
            axes.plot(x, scale * value_at(mean, x), "v", color=colour, markersize=6,
                      markeredgecolor=CARD)  # fmt: skip
    if title:
        axes.set_title(title, fontsize=9.5, fontweight="bold", color=INK, loc="left")
    axes.margins(x=0.01)
    axes.set_xlim(left=0)
    axes.locator_params(axis="y", nbins=5)


def _add_legend(figure: "Figure", comparison: Comparison) -> None:
    from matplotlib.lines import Line2D

    mark = marks(comparison.methods)
    handles: list[Any] = [
        Line2D([], [], color=mark[method].colour, linewidth=2, label=method)
        for method in comparison.methods
    ]
    handles.append(
        Line2D([], [], color=QUIET, marker="v", linewidth=0.9, linestyle=(0, (1.5, 2.5)),
               label="re-learning")
    )  # fmt: skip
    handles += gap_band_handles(comparison)
    width, height = figure.get_size_inches()
    figure.legend(handles=handles, loc="center left", ncols=len(handles), frameon=False,
                  bbox_to_anchor=(0.35 / width, (height - 0.68) / height), handlelength=1.6,
                  columnspacing=1.4, borderaxespad=0, borderpad=0, labelcolor=QUIET)  # fmt: skip


def _figure5(comparison: Comparison) -> "Figure":
    from matplotlib.figure import Figure

    strengths: list[tuple[float, str]] = [(0.0, "joint")]
    periods: list[tuple[float, str]] = []
    for method in comparison.methods:
        spec = parse(method)
        if spec.name == "relearn":
            if "every" not in spec.settings:
                strengths.append((float(spec.settings.get("strength", 3.0)), method))
            if "strength" not in spec.settings:
                every = spec.settings.get("every") or _period(comparison, method)
                periods += [(float(every), method)] if every else []
    figure = Figure(figsize=(8.6, 3.7))
    below = f"{of_seeds(comparison)}{_band(comparison)}"
    add_heading(figure, 0.35, score_title(comparison), below)
    grid = figure.add_gridspec(1, 2, left=0.07, right=0.97, top=0.74, bottom=0.16, wspace=0.16)
    for number, (values, label) in enumerate(
        ((strengths, "strength λ (0: joint training)"), (periods, "epochs between re-learnings"))
    ):
        axes = figure.add_subplot(grid[0, number])
        _draw_band(axes, comparison, vertical=False)
        _draw_points(axes, comparison, sorted(values))
        axes.set_xlabel(label)
    left, right = figure.axes
    left.sharey(right)
    left.autoscale(axis="y")
    if comparison.metric.is_share:  # an interval may go far beyond
        left.set_ylim(top=min(left.get_ylim()[1], 101))
    return figure


def _period(comparison: Comparison, method: str) -> int | None:
    """The epochs between re-learnings; for a single one, the epochs before it, less one."""
    first, second = [*comparison.moments(method), None, None][:2]
    if first is None or second is None:
        return None if first is None else first - 1
    return second - first


def _draw_points(axes: "Axes", comparison: Comparison, values: Sequence[tuple[float, str]]) -> None:
    """Draws the values at equal distances, since λ and periods are too uneven for a scale."""
    colour, scale = HUES[0], comparison.metric.scale
    means = []
    for place, (_, method) in enumerate(values):
        found = comparison.estimate(method, comparison.main)
        seeds = comparison.results.get((method, "test", comparison.main), {})
        axes.plot([place + 0.13] * len(seeds), [scale * value for value in seeds.values()], "o",
                  color=colour, alpha=0.45, markersize=3.5, markeredgewidth=0)  # fmt: skip
        if found.low is not None and found.high is not None:
            axes.plot([place, place], [scale * found.low, scale * found.high], color=colour,
                      linewidth=2.2, solid_capstyle="round")  # fmt: skip
        means.append(np.nan if found.mean is None else scale * found.mean)
    axes.plot(range(len(values)), means, "-D", color=colour, linewidth=1.2, markersize=6,
              markeredgecolor=CARD)  # fmt: skip
    axes.set_xticks(range(len(values)), [f"{value:g}" for value, _ in values])
    axes.margins(x=0.06)
    if len(values) == 1:  # otherwise its seeds would be drawn far from it
        axes.set_xlim(-1, 1)
