"""The pictures of a comparison, for a README or a paper."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenly.errors import UserError
from evenly.report.comparison import Comparison, Projected, Projection, value_at
from evenly.report.drawing import (
    BORDER,
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
from evenly.report.folder import read_comparison
from evenly.report.marks import MARKERS, marks
from evenly.report.names import shortened
from evenly.report.projection import NAMES, class_style, fitted
from evenly.suggest import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

ROWS = 12  # the most methods that fit beside the curves
CLASS_ROWS = 16  # the most classes that fit in a column beside two panels
HOLLOW = "taken for another"
SOME_WRONG = "not all labels right"


def write_picture(directory: Path, path: Path) -> Path:
    """Draws the main metric on test beside the gap of each modality, on a white card.

    Left: the methods' means, 95 % intervals and seeds. Right: joint training against the first
    method that re-learns, the re-learnings marked. The same folder gives the same file.

    Args:
        directory: The folder that `evenly compare --out` wrote.
        path: Where to write the picture, .svg or .png.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If no method has been tested yet, or the path ends otherwise.
    """
    comparison = read_comparison(directory)
    methods = [m for m in comparison.ranking if comparison.score(m) is not None]
    if not methods:
        raise UserError(
            f"no run of the comparison in '{directory}' has finished, so there is nothing "
            "to draw. The command that wrote it continues it."
        )
    return write_drawing(path, lambda: _draw(comparison, _fitting(comparison, methods)))


def write_projection_picture(
    directory: Path,
    path: Path,
    methods: Sequence[str] | None = None,
    projection: Projected = "tsne",
) -> Path:
    """Draws test samples in the plane as encoders see them: modalities down, methods across.

    After Figure 3 of Wei et al., ECCV 2024. The colour of a sample shows its class, with its shape
    if there are many classes. Hollow samples are misclassified. The same folder gives the same
    file.

    Args:
        directory: The folder that `evenly compare --out` wrote.
        path: Where to write the picture, .svg or .png.
        methods: The methods from left to right, by their names in the comparison; by default joint
            training and the first that re-learns.
        projection: The projection of the features.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If a method is not in it or has no such projection, or the path ends otherwise.
    """
    comparison = read_comparison(directory)
    placed = {
        method: found
        for method in comparison.methods
        if (found := comparison.projection(method, projection)) is not None
    }
    for method in methods or ():
        if method not in comparison.methods:
            raise unknown(f"method of '{directory}'", method, comparison.methods)
    wanted = comparison.pair(list(placed)) if methods is None else methods
    missing = [method for method in wanted if method not in placed]
    if missing or not wanted:
        raise UserError(
            f"'{directory}' holds no {NAMES[projection]} of {', '.join(missing) or 'any method'}. "
            f"'evenly report {directory} --projection {projection}' computes it for runs of seed 0 "
            "that have finished."
        )
    return write_drawing(
        path, lambda: _draw_planes(comparison, {method: placed[method] for method in wanted})
    )


def _fitting(comparison: Comparison, methods: list[str]) -> list[str]:
    """The first `ROWS` methods, always with the reference that differences refer to."""
    first, rest = methods[:ROWS], methods[ROWS:]
    return [*first[:-1], comparison.reference] if comparison.reference in rest else first


def _draw(comparison: Comparison, methods: list[str]) -> "Figure":
    from matplotlib.figure import Figure

    pair = comparison.pair(comparison.methods)
    gaps = [
        name
        for name in comparison.modalities
        if any(comparison.mean_curve(method, f"gap/{name}") for method in pair)
    ]
    columns = 1 if len(gaps) <= 3 else 2
    rows = -(-len(gaps) // columns)
    labels = row_labels(methods)
    height = max(3.4, 1.75 + row_height(labels) * len(methods), 1.75 + 1.05 * rows)
    middle = 4.45 + widened(labels)
    width = middle + (4.95 if gaps else 0.35)
    figure = Figure(figsize=(width, height))

    top, bottom = (height - 1.0) / height, 0.62 / height
    start = labels_end(labels)
    below = f"{of_seeds(comparison)}{of_methods(comparison, methods)}"
    if trials := comparison.config.get("tuned_trials"):
        below += f"; tuned, {trials} trials each"
    add_heading(figure, 0.35, score_title(comparison), below)
    left = figure.add_axes((start / width, bottom, (middle - start) / width, top - bottom))
    draw_scores(left, comparison, methods, labels)
    if gaps:
        add_heading(figure, middle + 0.5, "Purity gap between training and validation", "")
        _label_lines(figure, comparison, pair, middle + 0.5)
        grid = figure.add_gridspec(
            rows, columns, left=(middle + 0.85) / width, right=(width - 0.35) / width, top=top,
            bottom=bottom, hspace=0.22, wspace=0.12,
        ).subplots(sharex=True, sharey=True, squeeze=False)  # fmt: skip
        for axes, modality in zip(grid.flatten(), gaps, strict=False):
            _draw_gap(axes, comparison, modality, pair)
        grid[0, 0].set_ylim(bottom=0)  # shared by all, so only once all of them are drawn
        for axes in grid.flatten()[len(gaps) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("epochs")
    return figure


def score_title(comparison: Comparison) -> str:
    """The title above the main metric of all methods."""
    metric = comparison.metric
    return f"Test {metric.words}{', %' if metric.is_share else ''}{selected(comparison)}"


def draw_scores(
    axes: "Axes", comparison: Comparison, methods: Sequence[str], labels: Sequence[str]
) -> None:
    """Draws the main metric of each method, the first on top: mean, 95 % interval and seeds.

    `axes` must begin at `labels_end` of the labels.
    """
    mark, metric = marks(comparison.methods), comparison.metric
    for place, method in enumerate(methods):
        row, (colour, _, symbol) = len(methods) - 1 - place, mark[method]
        estimate = comparison.estimate(method, comparison.main)
        mean = metric.scale * (estimate.mean or 0.0)
        seeds = comparison.results.get((method, "test", comparison.main), {})
        values = [metric.scale * value for value in seeds.values()]
        axes.plot(values, [row - 0.22] * len(seeds), "o", color=colour, alpha=0.5, markersize=4,
                  markeredgewidth=0)  # fmt: skip
        if estimate.low is not None and estimate.high is not None:
            ends = [metric.scale * estimate.low, metric.scale * estimate.high]
            axes.plot(ends, [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot(mean, row, MARKERS[symbol], color=colour, markersize=8, markeredgecolor=CARD)
        axes.annotate(metric.shown(estimate.mean or 0.0), (mean, row), xytext=(0, 7),
                      textcoords="offset points", ha="center", color=INK, fontsize=8.5,
                      fontweight="bold")  # fmt: skip
    axes.set_yticks(range(len(methods)), list(reversed(labels)), color=INK, ha="left",
                    multialignment="left", linespacing=1.15)  # fmt: skip
    axes.tick_params(axis="y", pad=72 * (labels_end(labels) - 0.35))
    axes.set_ylim(-0.6, len(methods) - 0.35)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=6)
    if metric.is_share:
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, -1), min(right, 101))  # an interval may go far beyond
    axes.grid(visible=False, axis="y")


def _draw_gap(axes: "Axes", comparison: Comparison, modality: str, methods: list[str]) -> None:
    mark = marks(comparison.methods)
    column = f"gap/{modality}"
    for method in methods:
        colour = mark[method].colour
        for run in comparison.runs_of(method):
            points = run.points(column)
            axes.plot(list(points), list(points.values()), color=colour, linewidth=0.7, alpha=0.35)
        mean = comparison.mean_curve(method, column)
        if not mean:
            continue
        draw_gap_band(axes, comparison, method, modality)
        axes.plot(list(mean), list(mean.values()), color=colour, linewidth=2)
        for x in comparison.marked(method, mean):
            axes.axvline(x, color=colour, linewidth=0.9, linestyle=(0, (1.5, 2.5)))
            axes.plot(x, value_at(mean, x), "v", color=colour, markersize=6.5,
                      markeredgecolor=CARD)  # fmt: skip
    axes.text(0.015, 0.95, shortened(comparison.modalities)[modality], transform=axes.transAxes,
              va="top", fontweight="bold", color=INK)  # fmt: skip
    axes.margins(x=0.01)
    axes.set_xlim(left=0)
    axes.locator_params(axis="y", nbins=4)


def draw_gap_band(axes: "Axes", comparison: Comparison, method: str, modality: str) -> None:
    """Draws the band of a modality's gap, which includes the standard errors, if there are any."""
    if not comparison.has_gap_errors:
        return
    band = comparison.band(method, f"gap/{modality}", f"gap_error/{modality}")
    low, high = zip(*band.values(), strict=True)
    colour = marks(comparison.methods)[method].colour
    axes.fill_between(list(band), low, high, color=colour, alpha=0.12, linewidth=0)


def gap_band_handles(comparison: Comparison) -> list["Patch"]:
    """The entry of `draw_gap_band` in a legend, if it draws anything."""
    from matplotlib.patches import Patch

    if not comparison.has_gap_errors:
        return []
    return [Patch(color=QUIET, alpha=0.25, linewidth=0, label="± s.e.")]


def _label_lines(figure: "Figure", comparison: Comparison, methods: list[str], left: float) -> None:
    from matplotlib.lines import Line2D

    mark = marks(comparison.methods)
    short = shortened(comparison.methods)
    handles: list[Any] = [
        Line2D([], [], color=mark[method].colour, linewidth=2, label=short[method])
        for method in methods
    ]
    handles += [
        Line2D([], [], color=mark[method].colour, marker="v", linewidth=0.9, markersize=6,
               linestyle=(0, (1.5, 2.5)), markeredgecolor=CARD, label="re-learning")
        for method in methods
        if comparison.moments(method)
    ]  # fmt: skip
    handles += gap_band_handles(comparison)
    width, height = figure.get_size_inches()
    figure.legend(handles=handles, loc="center left", ncols=len(handles), frameon=False,
                  bbox_to_anchor=(left / width, (height - 0.68) / height), handlelength=1.6,
                  columnspacing=1.4, borderaxespad=0, borderpad=0, labelcolor=QUIET)  # fmt: skip


def _draw_planes(comparison: Comparison, projections: Mapping[str, Projection]) -> "Figure":
    from matplotlib.figure import Figure

    modalities = [
        name
        for name in comparison.modalities
        if any(name in projection.places for projection in projections.values())
    ]
    present = {
        number for found in projections.values() for number in np.unique(found.target).tolist()
    }
    groups = comparison.group_names
    named = shortened(groups, 18)
    classes = {number: named[groups[number]] for number in sorted(present)}
    hollow = SOME_WRONG if comparison.has_labels else HOLLOW
    said = selected(comparison).removeprefix(", ")
    side, gap, left, top = 2.3, 0.12, 0.42, 0.75 if said else 0.5
    columns = -(-(len(classes) + 1) // CLASS_ROWS)
    longest = max(map(len, [hollow, *classes.values()]))
    legend = 0.15 + columns * (0.32 + 0.068 * longest)
    width = left + len(projections) * (side + gap) + legend
    height = top + len(modalities) * (side + gap) + 0.15
    figure = Figure(figsize=(width, height))
    if said:
        figure.text(left / width, (height - 0.3) / height, f"epoch {said}", color=QUIET)
    heads = shortened(comparison.methods, 26)
    sides = shortened(comparison.modalities, 26)
    for column, (method, found) in enumerate(projections.items()):
        x = left + column * (side + gap)
        figure.text((x + side / 2) / width, (height - top + 0.17) / height, heads[method],
                    ha="center", fontsize=10.5, fontweight="bold")  # fmt: skip
        for row, modality in enumerate(modalities):
            y = height - top - (row + 1) * side - row * gap
            axes = figure.add_axes((x / width, y / height, side / width, side / height))
            axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xticks=[], yticks=[])
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set(visible=True, color=BORDER)
            if column == 0:
                axes.set_ylabel(sides[modality], fontsize=10.5, fontweight="bold",
                                color=INK, labelpad=6)  # fmt: skip
            if modality in found.places:
                _draw_plane(axes, found, fitted(found.places[modality]))
            else:
                axes.text(0.5, 0.5, "not in this model", ha="center", color=QUIET)
    _label_classes(figure, classes, hollow, columns, (width - legend) / width, top)
    return figure


def _draw_plane(axes: "Axes", found: Projection, places: np.ndarray) -> None:
    right = found.predicted == found.own
    for number in np.unique(found.target).tolist():
        colour, shape = class_style(number)
        for chosen, face in ((right, colour), (~right, "none")):
            x, y = places[(found.target == number) & chosen].T
            axes.scatter(x, y, s=13, marker=MARKERS[shape], facecolors=face, edgecolors=colour,
                         linewidths=0.9, alpha=0.9)  # fmt: skip


def _label_classes(
    figure: "Figure", classes: Mapping[int, str], hollow: str, columns: int, x: float, top: float
) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for number, name in classes.items():
        colour, shape = class_style(number)
        handles.append(
            Line2D([], [], linestyle="", marker=MARKERS[shape], color=colour, markersize=5.5,
                   label=name)
        )  # fmt: skip
    handles.append(
        Line2D([], [], linestyle="", marker="o", color=QUIET, markerfacecolor="none",
               markersize=5.5, label=hollow)
    )  # fmt: skip
    height = figure.get_size_inches()[1]
    figure.legend(handles=handles, loc="upper left", ncols=columns, frameon=False,
                  bbox_to_anchor=(x, (height - top + 0.06) / height), borderaxespad=0,
                  handlelength=1.2, handletextpad=0.3, columnspacing=0.8, labelspacing=0.45,
                  fontsize=8, labelcolor=QUIET)  # fmt: skip
