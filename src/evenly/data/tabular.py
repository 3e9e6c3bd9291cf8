"""Columns of a table as one modality: the layout of its vectors, from how it was read."""

from typing import NamedTuple

from evenly.spec import parse

NAME = "tabular"
"""Name of the reader."""


class Layout(NamedTuple):
    """What a vector of several columns holds, in this order.

    Attributes:
        numbers: How many numbers, including marks of missing ones.
        places: Number of places of each category column, one of which is 1: the first for values
            not in the training split, then one for each that is.
    """

    numbers: int
    places: tuple[int, ...]


def layout_of(read: str) -> Layout | None:
    """The layout of a modality, from how it was read; None if it is not several columns."""
    if not read.startswith(f"{NAME}("):
        return None
    known = parse(read).settings
    places = tuple(len(values) + 1 for values in known["values"])
    return Layout(len(known["numbers"]) + len(known["lacking"]), places)


def columns_of(name: str, read: str) -> list[str]:
    """The columns of a table that make a modality, from how it was read."""
    if not read.startswith(f"{NAME}("):
        return [name]
    known = parse(read).settings
    return [*known["numbers"], *known["categories"]]
