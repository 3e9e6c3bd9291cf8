"""Columns of a table as one modality: what its vectors hold, told from how it was read."""

from typing import NamedTuple

from evenly.spec import parse

NAME = "tabular"
"""Of the reader."""


class Layout(NamedTuple):
    """What a vector of several columns holds, in this order.

    Attributes:
        numbers: How many numbers, and marks of those that are missing.
        places: By category column, how many places it has, of which one is 1: the first for values
            that the training split did not have, then one for each that it had.
    """

    numbers: int
    places: tuple[int, ...]


def layout_of(read: str) -> Layout | None:
    """The layout of a modality by how it was read; None of any that is not several columns."""
    if not read.startswith(f"{NAME}("):
        return None
    known = parse(read).settings
    places = tuple(len(values) + 1 for values in known["values"])
    return Layout(len(known["numbers"]) + len(known["lacking"]), places)


def columns_of(name: str, read: str) -> list[str]:
    """The columns of a table that make a modality, by how it was read."""
    if not read.startswith(f"{NAME}("):
        return [name]
    known = parse(read).settings
    return [*known["numbers"], *known["categories"]]
