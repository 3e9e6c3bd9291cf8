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
    if (single := alone(texts)) is not None:
        return single
    if comma and all(map(_COMMA.fullmatch, given)):
        if all(_THOUSANDS.fullmatch(text) for text in given if "," in text):
            return None
        return [None if text is None else float(text.replace(",", ".")) for text in texts]
    if all(_NUMBER.fullmatch(text) or _GROUPED.fullmatch(text) for text in given):
        return None
    found = []
    for text in texts:
        values = None if text is None else _list(text)
        if text is not None and values is None:
            return None
        found.append(values if values is not None and values.size else None)
    return found


def alone(texts: Sequence[str | None]) -> list[int | float | None] | None:
    """The numbers of a column, if each of its cells is a number or empty."""
    if not all(text is None or _NUMBER.fullmatch(text) for text in texts):
        return None
    return [None if text is None else _number(text) for text in texts]


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
    if ";" in marks and re.search(r"[0-9.]\s+[-+0-9.]", text):  # rows, as MATLAB has them
        return None
    nested = len(outermost) == 1 and isinstance(outermost[0], list)
    try:
        return np.array(outermost[0] if nested else outermost, np.float64)
    except ValueError:  # lists of unequal lengths
        return None
