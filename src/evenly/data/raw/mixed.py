"""A table's columns of numbers and categories as one modality."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from evenly.data.dataset import SplitName
from evenly.data.numbers import LARGEST
from evenly.data.raw.columns import RESERVED, Columns
from evenly.data.raw.figures import first_unclear, in_two_ways, numbers_of
from evenly.data.raw.readers import Tabular
from evenly.errors import UserError

VALUES = 1000
"""Most values of a category column with a place; the most frequent ones."""


def mixed_cells(path: Path, columns: Columns, name: str, reader: Tabular) -> list[Any]:
    """The cells of a modality in its reader's form; None if all of a row are empty.

    Args:
        path: Path of the table, for messages.
        columns: Columns of the table.
        name: Name of the modality.
        reader: The reader that names its columns.

    Raises:
        ValueError: If a column is missing, is not a modality, or holds something else.
    """
    if name in columns.cells:
        raise UserError(
            f"{path}: already has a column '{name}'. Choose another name for the modality made of "
            f"{', '.join(reader.columns)}."
        )
    for column in reader.columns:
        if column in RESERVED or column in columns.several:
            raise UserError(
                f"{path}: '{column}' of '{name}' is the label, split or name of a sample, "
                "which a modality must not contain. Leave it out."
            )
        if column not in columns.cells:
            raise UserError(
                f"{path}: has no column '{column}', of which '{name}' is made. It has "
                f"{', '.join(columns.cells)}; add it, with empty cells where it is not known."
            )
    found = [
        *(_numbers(path, columns, column, name) for column in reader.numbers),
        *(_categories(path, columns, column, name) for column in reader.categories),
    ]
    rows = zip(*found, strict=True)
    return [None if all(x is None for x in row) else row for row in rows]


def fitted(
    path: Path, name: str, reader: Tabular, cells: Sequence[Any], split: Sequence[SplitName]
) -> Tabular:
    """The reader, fitted to its columns in the training split.

    Raises:
        ValueError: If nothing can be learnt from a column.
    """
    rows = [row for row, part in zip(cells, split, strict=True) if part == "train" and row]
    count = len(reader.numbers)
    means, deviations, lacking, values = [], [], [], []
    for place, column in enumerate(reader.numbers):
        given = [row[place] for row in rows if row[place] is not None]
        if not given:
            raise UserError(
                f"{path}: no training sample has a number in '{column}' of '{name}'. Leave it out."
            )
        mean, std = float(np.mean(given)), float(np.std(given))
        means.append(mean)
        # What rounding leaves of a constant's deviation is not a deviation.
        deviations.append(std if std > 1e-12 * abs(mean) else 1.0)
        if len(given) < len(rows):
            lacking.append(column)
    for place, column in enumerate(reader.categories, count):
        counts = Counter(row[place] or "" for row in rows)
        known = sorted((v for v in counts if counts[v] > 1), key=lambda v: (-counts[v], v))
        if not known:
            raise UserError(
                f"{path}: no two training samples share a value of '{column}' of '{name}', so "
                "it predicts nothing. Leave it out, or read it as text."
            )
        values.append(tuple(known[:VALUES]))
    return replace(
        reader,
        means=tuple(means),
        deviations=tuple(deviations),
        lacking=tuple(lacking),
        values=tuple(values),
    )


def _numbers(path: Path, columns: Columns, column: str, name: str) -> list[float | None]:
    """The numbers of a column; None if missing."""
    found: list[float | None] = []
    held = columns.modality(column)
    if held.holds == "texts" and (unclear := first_unclear(held.values, comma=columns.comma)):
        row, text = unclear
        raise UserError(
            f"{path}: row {row} holds '{text}' in the column '{column}' of '{name}', "
            f"{in_two_ways(comma=columns.comma)}. Write numbers as 1234.5, with commas between the "
            "cells, or name the column among its categories."
        )
    for row, cell in enumerate(held.values, 1):
        number = None if cell is None else _number(cell, columns.comma)
        if cell is not None and (number is None or math.isinf(number)):
            shown = cell.tolist() if isinstance(cell, np.ndarray) else cell
            shown = shown[0] if isinstance(shown, list) and len(shown) == 1 else shown
            raise UserError(
                f"{path}: row {row} holds {shown!r:.60} in the column '{column}', which '{name}' "
                "takes for a number. Give a number or an empty cell, or name the column among its "
                "categories."
            )
        found.append(None if number is None or math.isnan(number) else number)
    return found


def _number(cell: Any, comma: bool) -> float | None:
    """The number in a cell; None if it is not a number, or none that a model can learn from."""
    if isinstance(cell, str):
        cell = (numbers_of([cell], comma=comma) or [None])[0]
    if isinstance(cell, np.ndarray) and cell.size == 1:
        cell = cell.item()
    if not isinstance(cell, int | float):
        return None
    return float(cell) if abs(cell) <= LARGEST or cell != cell else math.inf


def _categories(path: Path, columns: Columns, column: str, name: str) -> list[str | None]:
    """The values of a column as texts; None if a cell is empty."""
    held, texts = columns.modality(column), columns.texts(column)
    if texts is None or held.holds == "others":
        first = next((x for x in held.values if x is not None), None)
        kinds = {list: "lists", date: "dates", time: "times", timedelta: "times"}
        what = next((word for kind, word in kinds.items() if isinstance(first, kind)), "structures")
        raise UserError(
            f"{path}: '{column}' of '{name}' holds {'files' if texts is None else what}, which "
            "are no categories. Leave it out."
        )
    # pandas turns 1 into 1.0 in a column with empty cells.
    return [
        None if text is None or text in columns.empty else re.sub(r"^(-?\d+)\.0+$", r"\1", text)
        for text in texts
    ]
