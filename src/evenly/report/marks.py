"""How methods are told apart, alike in the page and in pictures."""

from typing import NamedTuple

from evenly.report.comparison import REFERENCE

NEUTRAL = "#858c94"
# Okabe and Ito's colours, without those that vanish on white or on black, and five between them.
# Without colour vision no more than six can be told apart, so each method has a symbol, too.
HUES = (
    "#2b83c6", "#d9601a", "#0a9e76", "#cc74b8", "#dd9410", "#58b6e8",
    "#7d5fe6", "#c9184a", "#7f9a12", "#8d5a3b", "#a044b5",
)  # fmt: skip
DASHES = {"solid": "", "dash": "7 4", "dot": "1.5 3", "dashdot": "7 3 1.5 3", "longdash": "11 4"}
OUTLINES = {
    "circle": "M1,5a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "square": "M1.5,1.5h7v7h-7z",
    "triangle-up": "M5,.8L9.6,8.8H.4z",
    "diamond": "M5,0L10,5L5,10L0,5z",
    "cross": "M3.4,.4h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
    "x": "M2.5,.4L5,2.9L7.5,.4L9.6,2.5L7.1,5L9.6,7.5L7.5,9.6L5,7.1L2.5,9.6L.4,7.5L2.9,5L.4,2.5z",
}
"""The outline of each symbol, by Plotly's name, in a square of ten units."""
MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "cross": "P", "x": "X"}
"""Matplotlib's name of each symbol, by Plotly's name."""


class Mark(NamedTuple):
    """The mark of a method in every figure; `dash` and `symbol` by Plotly's names."""

    colour: str
    dash: str
    symbol: str


def marks(methods: list[str]) -> dict[str, Mark]:
    """The mark of each method; joint training is grey.

    Colours repeat after eleven methods, with another dash; colour and symbol together after 66.
    """
    dashes, symbols = list(DASHES), list(OUTLINES)
    others = [method for method in methods if method != REFERENCE]
    found = {
        method: Mark(
            HUES[i % len(HUES)],
            dashes[i // len(HUES) % len(dashes)],
            symbols[(i + 1) % len(symbols)],
        )
        for i, method in enumerate(others)
    }
    return {method: found.get(method, Mark(NEUTRAL, "solid", "circle")) for method in methods}
