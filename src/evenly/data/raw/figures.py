"""Numbers written as texts, as in every cell of a CSV."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_NUMBER = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE
)
_TRUTH = {"true": True, "false": False}
_TOKEN = re.compile(r"[\[\](),;]|[^\s\[\](),;]+")
_SCALAR = re.compile(r"\b(?:np|numpy)\.\w+\(([^()]*)\)")
"""A number as NumPy 2 writes it in a list: np.float64(0.5)."""
_CALL = re.compile(r"(?:\w+\.)?(?:array|tensor)\((.*?)(?:,\s*\w+=.*)?\)", re.DOTALL)
"""An array as Python's repr writes it."""
_BETWEEN = re.compile(r"(?<=[0-9.])[eTZj](?![a-z])|\b(nan|inf|none|null)\b", re.IGNORECASE)
"""Letters in exponents, dates and complex numbers, and words for numbers."""
_FIGURES = re.compile(r"[\s\d!-/:-@\[-`{-~€£¥°−–]*")
"""Digits, and the signs beside them."""
_GROUPED = re.compile(r"[+-]?[0-9]+,[0-9]+|[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
"""Either one number with a decimal comma or thousands separators, or several numbers."""
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")
_COMMA = re.compile(r"[+-]?[0-9]+(,[0-9]+)?(e[+-]?[0-9]+)?", re.IGNORECASE)
_MARKED = re.compile(r"[+-]?[1-9][0-9]{0,2}([.\s])[0-9]{3}(\1[0-9]{3})*(,[0-9]+)?")
"""A number with dots or blanks between thousands, perhaps with a decimal comma."""
_SHORT = re.compile(r"[+-]?[0-9]{1,3}")
_PARTED = re.compile(r"[0-9.]\s*,\s*[-+0-9.]")
"""Numbers with a comma between them."""
_BLANK = re.compile(r"[0-9.]\s+[-+0-9.]")
"""Numbers with only a blank between them."""


def numbers_of(texts: Sequence[str | None], *, comma: bool = False) -> list[Any] | None:
    """The numbers of a column whose cells are all numbers, or all lists or arrays of numbers.

    Args:
        texts: Its cells without surrounding blanks; None if empty.
        comma: Whether commas may be decimal ones, as when semicolons separate cells.

    Returns:
        An int, float, bool or array for each cell; None if it or its list is empty. A single None
        if a cell is not a number, or some could be read in two ways.
    """
    given = [text for text in texts if text is not None]
    if all(text.lower() in _TRUTH for text in given):
        return [None if text is None else _TRUTH[text.lower()] for text in texts]
    if (single := alone(texts, comma=comma)) is not None:
        return single
    if is_unclear(texts, comma=comma):
        return None
    # [0,5, 1,5] has decimal commas.
    if comma and any(re.search(r"\d,\d", text) and re.search(r",\s", text) for text in given):
        return None
    found = []
    for text in texts:
        values = None if text is None else _list(text)
        if text is not None and values is None:
            return None
        found.append(values if values is not None and values.size else None)
    return found


def alone(texts: Sequence[str | None], *, comma: bool = False) -> list[int | float | None] | None:
    """The numbers of a column, if each of its cells is a number or empty.

    Args:
        texts: As for `numbers_of`.
        comma: As for `numbers_of`.

    Returns:
        A single None if a cell is not a number, or some could be read in two ways.
    """
    given = [text for text in texts if text is not None]
    if all(map(_NUMBER.fullmatch, given)):
        unclear = comma and _may_be_thousands(given)
        return None if unclear else [None if text is None else _number(text) for text in texts]
    if not comma or not all(_COMMA.fullmatch(text) or _MARKED.fullmatch(text) for text in given):
        return None
    # A comma before other than three digits is decimal, so dots and blanks are between thousands.
    # Of dots alone, two say as much.
    decimal = ("," in text and not _THOUSANDS.fullmatch(text) for text in given)
    if not any(decimal) and not any(text.count(".") > 1 for text in given):
        return None
    bare = [None if text is None else re.sub(r"[.\s]", "", text) for text in texts]
    return [None if text is None else float(text.replace(",", ".")) for text in bare]


def is_unclear(texts: Sequence[str | None], *, comma: bool = False) -> bool:
    """Whether the cells of a column can all be read as numbers, but in two ways.

    `1,234` may be a number with a decimal comma, a number of thousands, or two numbers.

    Args:
        texts: As for `numbers_of`.
        comma: As for `numbers_of`.
    """
    given = [text for text in texts if text is not None]
    marked = comma or any("," in text for text in given)  # else blanks part the numbers of a list
    numeric = all(
        _NUMBER.fullmatch(text) or _GROUPED.fullmatch(text) or (marked and _MARKED.fullmatch(text))
        for text in given
    )
    return numeric and alone(given, comma=comma) is None


def first_unclear(texts: Sequence[str | None], *, comma: bool = False) -> tuple[int, str] | None:
    """The row, from 1, and text of a cell that makes a column unclear; None if it is clear."""
    if not is_unclear(texts, comma=comma):
        return None
    cells = ((row, text) for row, text in enumerate(texts, 1) if text is not None)
    return next((row, x) for row, x in cells if _GROUPED.fullmatch(x) or _MARKED.fullmatch(x))


def in_two_ways(*, comma: bool) -> str:
    """What is wrong with an unclear cell, for messages."""
    return f"which can be read in two ways{' where semicolons separate the cells' * comma}"


def _may_be_thousands(texts: Sequence[str]) -> bool:
    """Whether dots may be between thousands, as where `999` is beside `1.234`.

    Without numbers below 1000, both readings differ only by a factor.
    """
    short = [bool(_SHORT.fullmatch(text)) for text in texts]
    dotted = all(_MARKED.fullmatch(text) for text, few in zip(texts, short, strict=True) if not few)
    return dotted and any(short) and not all(short)


def is_of_figures(text: str) -> bool:
    """Whether a text has digits and no words: it is a number, numbers, a date, a time, ..."""
    bare = _BETWEEN.sub(" ", _bare(text))
    return bool(re.search(r"\d", bare) and _FIGURES.fullmatch(bare))


def is_cut(text: str) -> bool:
    """Whether a text is an array printed with an ellipsis."""
    return "..." in text and is_of_figures(text.replace("...", " "))


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _bare(text: str) -> str:
    """A text without the additions of Python's and NumPy's repr to an array's numbers."""
    text = _SCALAR.sub(r"\1", text.strip())
    called = _CALL.fullmatch(text)
    return called[1] if called else text


def _list(text: str) -> np.ndarray | None:
    """The array that a text shows with brackets, commas, semicolons and blanks; None if none."""
    outermost: list[Any] = []
    stack = [outermost]
    before = "["  # so that a comma cannot come first
    marks = set()
    for match in _TOKEN.finditer(_bare(text)):
        token = match[0]
        if token in "[(":
            stack[-1].append([])
            stack.append(stack[-1][-1])
        elif token in ")]":
            stack.pop()
            if not stack:
                return None
        elif token in ",;":
            marks.add(token)
            if before in "[(,;":
                return None
        elif _NUMBER.fullmatch(token):
            stack[-1].append(float(token))
        elif token.lower() in ("none", "null"):
            stack[-1].append(np.nan)
        else:
            return None
        before = token
    if len(stack) > 1 or len(marks) > 1:  # "1,2;3,4" is two rows, or two decimal commas
        return None
    # Rows, as MATLAB has them; or decimal commas, if not all numbers have a comma between them.
    if (";" in marks or _PARTED.search(text)) and _BLANK.search(text):
        return None
    nested = len(outermost) == 1 and isinstance(outermost[0], list)
    try:
        return np.array(outermost[0] if nested else outermost, np.float64)
    except ValueError:  # lists of unequal lengths
        return None
