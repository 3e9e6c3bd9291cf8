"""How pictures for papers look, and how they are written."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenly.errors import UserError
from evenly.files import replacing, write_text
from evenly.report.comparison import Comparison
from evenly.report.names import wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, GRID, CARD, BORDER = "#1b2026", "#626b76", "#e9ecf0", "#ffffff", "#d9dde3"
_FONTS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_STYLE: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so no machine lays it out otherwise
    "font.size": 9.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "evenly",
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.parse_math": False,
}


def of_seeds(comparison: Comparison) -> str:
    """What a picture shows of a method's seeds, in words."""
    return f"mean, {'95 % interval, ' if comparison.has_intervals else ''}every seed"


def of_methods(comparison: Comparison, shown: Sequence[str]) -> str:
    """How many methods a picture shows, in words; empty if it shows all."""
    count = len(comparison.methods)
    return f"; {len(shown)} of {count} methods" if len(shown) < count else ""


def check_drawing(path: Path) -> None:
    """Raises if the path ends neither in .svg nor in .png."""
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"{path}: cannot be drawn. Give a name that ends in .svg or .png.")


def write_drawing(path: Path, draw: Callable[[], "Figure"]) -> Path:
    """Writes a picture on a white card; the same drawing gives the same file.

    Args:
        path: Where to write the picture, .svg or .png.
        draw: Draws the figure; the package's style is set while it runs.

    Returns:
        `path`.

    Raises:
        ValueError: If the path ends otherwise.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    check_drawing(path)
    with mpl.rc_context():
        mpl.rcdefaults()  # instead of the user's matplotlibrc
        mpl.rcParams.update(_STYLE)
        figure = draw()
        figure.patch.set_alpha(0)
        _add_card(figure)
        if path.suffix == ".png":
            figure.set_dpi(200)
            with replacing(path) as new:
                FigureCanvasAgg(figure).print_png(new, metadata={"Software": "evenly"})
            return path
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": "evenly"})
    # Text stays text, in the reader's own typeface.
    write_text(path, buffer.getvalue().replace("'DejaVu Sans'", _FONTS))
    return path


def add_heading(figure: "Figure", x: float, title: str, below: str) -> None:
    """A title at `x` inches from the left, and a line of explanation below it."""
    width, height = figure.get_size_inches()
    figure.text(x / width, (height - 0.47) / height, title, fontsize=11.5, fontweight="bold")
    figure.text(x / width, (height - 0.72) / height, below, color=QUIET)


def row_labels(methods: Sequence[str], width: int = 30) -> list[str]:
    """The whole names of the methods, in lines of at most `width` characters."""
    return ["\n".join(wrapped(method, width)) for method in methods]


def labels_end(labels: Sequence[str]) -> float:
    """The distance in inches from the left edge to where rows with these labels can begin."""
    return 0.42 + 0.078 * max(len(line) for label in labels for line in label.split("\n"))


def widened(labels: Sequence[str]) -> float:
    """The inches by which long labels push everything to the right of them."""
    return max(0.0, labels_end(labels) - 2.0)


def row_height(labels: Sequence[str]) -> float:
    """The height in inches of a row that can hold each of these labels."""
    lines = max(label.count("\n") + 1 for label in labels)
    return max(0.42, 0.12 + 0.16 * lines)


def selected(comparison: Comparison) -> str:
    """The end of every picture's title if the epoch was selected on the test split; else empty."""
    return ", selected on test" if comparison.selects_on_test else ""


def _add_card(figure: "Figure") -> None:
    """Adds a white background, so that the picture can be read on a dark page as well."""
    from matplotlib.patches import FancyBboxPatch

    width, height = figure.get_size_inches()
    inset = 0.008
    card = FancyBboxPatch(
        (inset, inset * width / height), 1 - 2 * inset, 1 - 2 * inset * width / height,
        boxstyle="round,pad=0,rounding_size=0.012", mutation_aspect=width / height,
        transform=figure.transFigure, facecolor=CARD, edgecolor=BORDER, linewidth=0.8, zorder=-10,
    )  # fmt: skip
    figure.add_artist(card)
