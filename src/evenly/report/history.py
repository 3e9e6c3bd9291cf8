"""The page of a search: what each trial reached, and the best so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from evenly.files import write_text
from evenly.metrics import METRICS
from evenly.report.marks import marks
from evenly.report.names import in_words


@dataclass(frozen=True)
class Point:
    """A trial of a search.

    Attributes:
        place: Its number among the trials of its method, from 0.
        value: Its value of the metric on the validation split; shares are between 0 and 1.
        settings: The settings that were tried, in words.
    """

    place: int
    value: float
    settings: str


def write_history(
    path: Path, methods: Mapping[str, Sequence[Point]], title: str, metric: str, sign: int
) -> Path:
    """Writes a page with the finished trials of each method, which opens without a network.

    Args:
        path: Where to write the page, .html.
        methods: The finished trials of each method, in the order of their places.
        title: The title of the page.
        metric: The metric that trials are judged by.
        sign: 1 if higher values of the metric are better, else -1.
    """
    from plotly.graph_objects import Figure

    known = METRICS[metric]
    scale, unit = known.scale, known.unit
    figure = Figure()
    for method, (colour, dash, symbol) in marks(list(methods)).items():
        points = methods[method]
        place = [point.place + 1 for point in points]
        reached = [scale * point.value for point in points]
        figure.add_scatter(
            x=place,
            y=list(accumulate(reached, max if sign > 0 else min)),
            name=method,
            legendgroup=method,
            line={"color": colour, "dash": dash, "shape": "hv"},
            mode="lines",
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=place,
            y=reached,
            name=method,
            legendgroup=method,
            showlegend=False,
            marker={"color": colour, "symbol": symbol, "opacity": 0.6},
            mode="markers",
            text=[point.settings for point in points],
            hovertemplate=f"trial %{{x}}: %{{y:.{1 if known.is_share else 3}f}}{unit}"
            "<br>%{text}<extra></extra>",
        )
    figure.update_layout(
        template="plotly_white",
        title=title,
        xaxis={"title": "trial", "rangemode": "tozero"},
        yaxis={"title": f"validation {in_words(metric)}{unit and ', %'}; line: the best so far"},
    )
    write_text(path, str(figure.to_html(config={"displayModeBar": False})))
    return path
