"""The one picture of a comparison, for a README or a paper."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenly.report.drawing import CARD, INK, QUIET, add_heading, shortened, write_drawing
from evenly.report.figures import styles
from evenly.report.folder import REFERENCE, Comparison, read_comparison, value_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 12  # methods that fit beside the curves


def write_picture(directory: Path, path: Path) -> Path:
    """Draws test accuracy beside the gap of each modality, on a white card.

    Left: the methods' means, 95 % intervals and seeds. Right: joint training against the first
    method that re-learns, the re-learnings marked. The same folder gives the same file.

    Args:
        directory: The folder that `evenly compare --out` wrote.
        path: Of the picture to write, .svg or .png.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If no method has a test accuracy yet, or the picture is of another kind.
    """
    comparison = read_comparison(directory)
    methods = [m for m in comparison.ranking if comparison.accuracy(m) is not None]
    if not methods:
        raise ValueError(
            f"no run of the comparison in '{directory}' has finished, so there is no test "
            "accuracy to draw. The command that wrote it continues it."
        )
    return write_drawing(path, lambda: _draw(comparison, methods[:ROWS]))


def _draw(comparison: Comparison, methods: list[str]) -> "Figure":
    from matplotlib.figure import Figure

    pair = _pair(comparison)
    gaps = [
        name
        for name in comparison.modalities
        if any(comparison.mean_curve(method, f"gap/{name}") for method in pair)
    ]
    columns = 1 if len(gaps) <= 3 else 2
    rows = -(-len(gaps) // columns)
    height = max(3.4, 1.75 + 0.42 * len(methods), 1.75 + 1.05 * rows)
    width = 9.4 if gaps else 4.8
    figure = Figure(figsize=(width, height))
    top, bottom = (height - 1.0) / height, 0.62 / height
    labels = max(len(shortened(method)) for method in methods)
    start = 0.42 + 0.078 * labels
    chosen = ", selected on test" if comparison.selects_on_test else ""
    add_heading(figure, 0.35, f"Test accuracy, %{chosen}", "mean, 95 % interval, every seed")
    left = figure.add_axes((start / width, bottom, (4.45 - start) / width, top - bottom))
    draw_accuracy(left, comparison, methods)
    left.tick_params(axis="y", pad=72 * (start - 0.35))
    if gaps:
        add_heading(figure, 4.95, "Purity gap between training and validation", "")
        _label_lines(figure, comparison, pair)
        grid = figure.add_gridspec(
            rows, columns, left=5.3 / width, right=(width - 0.35) / width, top=top, bottom=bottom,
            hspace=0.22, wspace=0.12,
        ).subplots(sharex=True, sharey=True, squeeze=False)  # fmt: skip
        for axes, modality in zip(grid.flatten(), gaps, strict=False):
            _draw_gap(axes, comparison, modality, pair)
        grid[0, 0].set_ylim(bottom=0)  # shared by all, so only once all of them are drawn
        for axes in grid.flatten()[len(gaps) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("epochs")
    return figure


def draw_accuracy(axes: "Axes", comparison: Comparison, methods: list[str]) -> None:
    """Test accuracy of each method, the first on top: mean, 95 % interval and seeds."""
    style = styles(comparison.methods)
    for place, method in enumerate(methods):
        row, colour = len(methods) - 1 - place, style[method][0]
        estimate = comparison.estimate(method, "accuracy")
        mean = 100 * (estimate.mean or 0.0)
        seeds = comparison.results.get((method, "test", "accuracy"), {})
        axes.plot([100 * value for value in seeds.values()], [row - 0.22] * len(seeds), "o",
                  color=colour, alpha=0.5, markersize=4, markeredgewidth=0)  # fmt: skip
        if estimate.low is not None and estimate.high is not None:
            axes.plot([100 * estimate.low, 100 * estimate.high], [row, row], color=colour,
                      linewidth=2.4, solid_capstyle="round")  # fmt: skip
        axes.plot(mean, row, "D", color=colour, markersize=7, markeredgecolor=CARD)
        axes.annotate(f"{mean:.1f}", (mean, row), xytext=(0, 7), textcoords="offset points",
                      ha="center", color=colour, fontsize=9, fontweight="bold")  # fmt: skip
    names = [shortened(method) for method in reversed(methods)]
    axes.set_yticks(range(len(methods)), names, color=INK, ha="left")
    axes.set_ylim(-0.6, len(methods) - 0.35)
    axes.margins(x=0.08)
    axes.grid(visible=False, axis="y")


def _draw_gap(axes: "Axes", comparison: Comparison, modality: str, methods: list[str]) -> None:
    style = styles(comparison.methods)
    column = f"gap/{modality}"
    for method in methods:
        colour = style[method][0]
        for run in comparison.runs_of(method):
            points = run.points(column)
            axes.plot(list(points), list(points.values()), color=colour, linewidth=0.7, alpha=0.35)
        mean = comparison.mean_curve(method, column)
        if not mean:
            continue
        axes.plot(list(mean), list(mean.values()), color=colour, linewidth=2)
        for x in comparison.moments(method):
            axes.axvline(x, color=colour, linewidth=0.9, linestyle=(0, (1.5, 2.5)))
            axes.plot(x, value_at(mean, x), "v", color=colour, markersize=6.5,
                      markeredgecolor=CARD)  # fmt: skip
    axes.text(0.015, 0.95, shortened(modality), transform=axes.transAxes, va="top",
              fontweight="bold", color=INK)  # fmt: skip
    axes.margins(x=0.01)
    axes.set_xlim(left=0)
    axes.locator_params(axis="y", nbins=4)


def _label_lines(figure: "Figure", comparison: Comparison, methods: list[str]) -> None:
    from matplotlib.lines import Line2D

    style = styles(comparison.methods)
    handles: list[Any] = [
        Line2D([], [], color=style[method][0], linewidth=2, label=shortened(method))
        for method in methods
    ]
    handles += [
        Line2D([], [], color=style[method][0], marker="v", linewidth=0.9, markersize=6,
               linestyle=(0, (1.5, 2.5)), markeredgecolor=CARD, label="re-learning")
        for method in methods
        if comparison.moments(method)
    ]  # fmt: skip
    width, height = figure.get_size_inches()
    figure.legend(handles=handles, loc="center left", ncols=len(handles), frameon=False,
                  bbox_to_anchor=(4.95 / width, (height - 0.68) / height), handlelength=1.6,
                  columnspacing=1.4, borderaxespad=0, borderpad=0, labelcolor=QUIET)  # fmt: skip


def _pair(comparison: Comparison) -> list[str]:
    """Joint training and the first method that re-learns, as far as they are there."""
    others = [method for method in comparison.methods if method != REFERENCE]
    relearning = [method for method in others if comparison.moments(method)]
    return [m for m in comparison.methods if m == REFERENCE] + (relearning or others)[:1]
