"""The picture of a checkup, for a README or a paper."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from evenly.report.checkup import (
    Axis,
    Modality,
    Shown,
    axis,
    headline,
    measure,
    percent,
    plain,
    read_modalities,
    standing,
)
from evenly.report.drawing import CARD, INK, QUIET, write_drawing
from evenly.report.marks import MARKERS, NEUTRAL
from evenly.report.names import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "learnt": "#1b7a48",
    "suppressed": "#a4500f",
    "unused": "#6a4cc0",
    "scarce": QUIET,
    "over-trained": "#b02a3f",
    "unclear": "#1f6fb2",
}
"""The colours of the verdicts."""

_WIDTH, _RIGHT, _ROW = 10.2, 0.35, 0.82  # inches
_COLUMNS = ((2.45, 3.55), (7.0, 0.9), (8.6, 0.8))  # where each begins, and its width


def write_checkup_picture(found: Mapping[str, Any], path: Path) -> Path:
    """Draws a checkup on a white card: verdicts, what is there, learnt, used and over-trained.

    The same checkup gives the same file.

    Args:
        found: `Checkup.as_dict()`, or what JSON made of it.
        path: Where to write the picture, .svg or .png.

    Returns:
        `path`.

    Raises:
        ValueError: If the path ends otherwise.
    """
    return write_drawing(path, lambda: checkup_figure(found))


def checkup_figure(found: Mapping[str, Any]) -> "Figure":
    """The same picture as a Matplotlib figure."""
    from matplotlib.figure import Figure

    modalities, accuracy = read_modalities(found), percent(found["accuracy"])
    said = headline(found)
    lines = wrap(said, 100 if len(said) <= 100 else len(said) // 2 + 12)
    top, bottom = 0.98 + 0.22 * len(lines), 0.42
    height = top + _ROW * len(modalities) + bottom
    figure = Figure(figsize=(_WIDTH, height))
    figure.text(_RIGHT / _WIDTH, (height - 0.28) / height, "\n".join(lines), fontsize=11.5,
                fontweight="bold", va="top", linespacing=1.35,
                color=COLOURS["suppressed"] if standing(found) == "worse" else INK)  # fmt: skip
    panels: list[Axes] = []
    titles = (f"{measure(found)}, %", "Used, points", "Over-trained, gap")
    for title, (left, width) in zip(titles, _COLUMNS, strict=True):
        axes = figure.add_axes(
            (left / _WIDTH, bottom / height, width / _WIDTH, (height - top - bottom) / height)
        )
        axes.set_ylim(len(modalities) - 0.5, -0.5)
        axes.set_yticks([])
        axes.text(0, 1 + 0.38 / (height - top - bottom), title, transform=axes.transAxes,
                  color=INK, fontweight="bold")  # fmt: skip
        panels.append(axes)
    short = shortened((one.name for one in modalities), 24)
    for row, one in enumerate(modalities):
        y = 1 - (top + _ROW * (row + 0.5)) / height
        figure.text(_RIGHT / _WIDTH, y, short[one.name], va="bottom", fontweight="bold")
        figure.text(_RIGHT / _WIDTH, y - 0.05 / height, one.verdict, va="top", fontsize=10.5,
                    color=COLOURS[one.verdict], fontweight="bold")  # fmt: skip
    _draw_accuracy(panels[0], modalities, accuracy)
    _draw(panels[1], modalities, "contribution")
    _draw(panels[2], modalities, "gap")
    return figure


def _draw_accuracy(axes: "Axes", modalities: Sequence[Modality], accuracy: Shown) -> None:
    """Draws, for each modality, chance, what is there and what is learnt."""
    names = ("chance", "there", "learnt")
    _scale(
        axes, axis([*(one.figures[name] for one in modalities for name in names), accuracy], 100)
    )
    axes.axvspan(accuracy.low, accuracy.high, color=NEUTRAL, alpha=0.16, linewidth=0)
    axes.axvline(accuracy.value, color=INK, linewidth=1.1)
    said = "the model" if len(modalities) == 1 else "all together"
    axes.annotate(f"{said} {accuracy.text}", (accuracy.value, 1), xytext=(0, 5), ha="center",
                  xycoords=("data", "axes fraction"), textcoords="offset points", color=QUIET,
                  fontsize=8.5)  # fmt: skip
    for row, one in enumerate(modalities):
        for name, shift in (("there", -0.19), ("learnt", 0.19)):
            _mark(axes, one.figures[name], row + shift, one, f"{name} ", hollow=name == "there")
        if (found := one.figures["chance"]) is not None:
            axes.plot([found.value] * 2, [row - 0.32, row + 0.32], color=NEUTRAL, linewidth=1.6)
            if row == 0:
                axes.annotate("chance", (found.value, -0.32), xytext=(0, 2), ha="center",
                              textcoords="offset points", fontsize=8, color=QUIET)  # fmt: skip


def _draw(axes: "Axes", modalities: Sequence[Modality], name: str) -> None:
    """Draws one figure of each modality, beside zero."""
    zero = plain({"value": 0.0, "low": 0.0, "high": 0.0})
    _scale(axes, axis([zero, *(one.figures[name] for one in modalities)], 1))
    axes.set_xticks([0], ["0"])
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    for row, one in enumerate(modalities):
        _mark(axes, one.figures[name], float(row), one)


def _mark(
    axes: "Axes",
    found: Shown | None,
    y: float,
    one: Modality,
    called: str = "",
    *,
    hollow: bool = False,
) -> None:
    """Draws a dot in its interval, with the number on the right."""
    if found is None:
        return
    axes.plot([found.low, found.high], [y, y], color=one.colour, linewidth=2.2,
              solid_capstyle="round", clip_on=False)  # fmt: skip
    axes.plot(found.value, y, MARKERS[one.symbol], color=one.colour, markersize=7, clip_on=False,
              markerfacecolor=CARD if hollow else one.colour,
              markeredgecolor=one.colour if hollow else CARD,
              markeredgewidth=1.6 if hollow else 1)  # fmt: skip
    axes.annotate(f"{called}{found.text}", (1, y), xytext=(8, 0), va="center", color=INK,
                  xycoords=("axes fraction", "data"), textcoords="offset points",
                  fontsize=8.5)  # fmt: skip


def _scale(axes: "Axes", found: Axis) -> None:
    axes.set_xlim(found.ticks[0], found.ticks[-1])
    axes.set_xticks(list(found.ticks), list(found.labels))
