"""What a table says to predict: a class for each sample, several labels, or numbers."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenly.data.numbers import blurred, spelt, unusable
from evenly.data.raw.columns import LABEL, Columns
from evenly.data.raw.figures import alone, first_unclear, in_two_ways
from evenly.data.tasks import Asked, Classes, Labels, Numbers, Task
from evenly.errors import UserError
from evenly.suggest import unknown

MARKS = (";", "|")
"""Separators of labels in one text."""
_TRUTH = {"true": 1, "false": 0}
_PLAIN = re.compile(r"-?(0|[1-9][0-9]*)([.,]0*)?")
"""Whole numbers without leading zeros or exponents."""


@dataclass(frozen=True)
class Target:
    """What to predict for every row.

    Attributes:
        values: (n,) whole numbers, the class of each; (n, c) floats, 1 or 0 for each of several
            labels, or numbers. Unknown targets that are not needed are -1, or NaN for numbers.
        task: Task of the whole table.
        notes: Sentences that a user of the data should see.
    """

    values: np.ndarray
    task: Task
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Fits the task."""
        known = torch.from_numpy(self.values)
        object.__setattr__(self, "task", self.task.fitted(known))


def labelled(
    path: Path, columns: Columns, asked: str | None, *, needed: bool
) -> tuple[Columns, tuple[str, ...], list[str]]:
    """The columns with the label column named `label`, what the table calls it, and notes about it.

    Labels in several columns keep their names.

    Args:
        path: Path of the table.
        columns: Columns of the table.
        asked: The label column, if requested.
        needed: Whether the choice must be unambiguous.

    Raises:
        ValueError: If there is no such column, several could be it, or names of folders seem to
            tell it.
    """
    if asked is not None and asked not in columns.cells:
        raise unknown(f"column of {path}", asked, columns.cells)
    known = columns.labels
    if asked is None and len(known) > 1 and needed:
        raise UserError(
            f"{path}: has classes in {', '.join(known)}. Say with --label which of them is to be "
            "predicted."
        )
    name = asked or (known[0] if len(known) == 1 else "label")
    several = columns.several
    if several and asked is None and name in columns.cells and needed:
        raise UserError(
            f"{path}: has labels in the column '{name}' and in {', '.join(several)}. Say with "
            f"--label {name} that it is this one, or leave it out."
        )
    if needed and not several and name not in columns.cells and "label" in columns.refused:
        raise columns.refused["label"]
    others = dict.fromkeys(columns.named_labels, "is named like a label, so it is not a modality")
    columns = replace(columns, aside={**columns.aside, **others})
    if name == "label":
        called = ("label",) if "label" in columns.cells else tuple(several)
        return columns, called, []
    cells = {"label": columns.cells[name]}
    cells |= {other: x for other, x in columns.cells.items() if other not in (name, "label")}
    classes = {other: x for other, x in columns.classes.items() if other not in (name, "label")}
    if name in columns.classes:
        classes["label"] = columns.classes[name]
    note = f"{path.name}: '{name}' is the label column."
    return replace(columns, cells=cells, classes=classes), (name,), [note]


def target_of(path: Path, columns: Columns, asked: Asked = "auto", *, needed: bool) -> Target:
    """What to predict, from the column `label` or several that begin with it.

    Args:
        path: Path of the table, for messages.
        columns: Columns of the table.
        asked: The task; by default it is detected.
        needed: Whether every row must have a target.

    Raises:
        ValueError: If a row lacks it, or has something else.
    """
    if "label" not in columns.cells and columns.several:
        return _of_columns(path, columns, asked, needed=needed)
    if needed:
        _check_clear(path, columns, "label", asked)
    cells = columns.entries("label") or [None] * columns.rows
    names = columns.classes.get("label")
    given = [cell for cell in cells if cell is not None]
    if any(isinstance(cell, list) for cell in given):
        return _of_lists(path, cells, names, asked, needed=needed)
    if names is not None and asked in ("auto", "classes"):
        return _numbered(path, cells, names, needed=needed)
    if asked == "number" or (asked == "auto" and _are_numbers(given)):
        found = _numbers(path, columns, "label", needed=needed)
        return _to_regress(path, found[:, None], ["number"], asked, needed=needed)
    if asked != "classes" and (mark := _mark(path, cells, asked)):
        return _joined(path, cells, mark)
    if needed and asked == "auto":
        _check_mostly_numbers(path, columns, cells)
    return _classes(path, columns, cells, asked, needed=needed)


def tells_class(columns: Columns, name: str, target: Target) -> bool:
    """Whether a column has a value of its own for each class, as the label under another name has.

    If a class has one sample only, this may be chance.
    """
    if target.task.name != "classes":
        return False
    _, count = np.unique(target.values, return_counts=True)
    if (cells := columns.recurring(name, len(count))) is None:
        return False
    classes: dict[str, int] = {}
    for text, label in zip(cells, target.values.tolist(), strict=True):
        if text is None or classes.setdefault(text, label) != label:
            return False
    return len(classes) == len(count) and bool(count.min() > 1)


def _are_numbers(cells: Sequence[Any]) -> bool:
    """Whether all are numbers, and some are not whole."""
    if not all(isinstance(x, int | float | Decimal) for x in cells):
        return False
    return any(math.isfinite(x) and x % 1 != 0 for x in cells)


# One class


def _classes(
    path: Path, columns: Columns, cells: Sequence[Any], asked: Asked, *, needed: bool
) -> Target:
    labels = [int(x) if isinstance(x, float | Decimal) and x % 1 == 0 else x for x in cells]
    texts = columns.texts("label") or [None] * columns.rows
    strange = [not isinstance(x, str | int) for x in labels]
    called = [_called(label, text) for label, text in zip(labels, texts, strict=True)]
    notes: list[str] = []
    if asked == "classes" and any(strange) and not any(isinstance(x, str) for x in labels):
        labels, strange = _as_written(labels, texts, needed=needed)
        called = [text or "" for text in texts]
        there = zip(labels, called, strange, strict=True)
        words = Counter(text for place, text, odd in there if place == math.inf and not odd)
        notes = [f"{path.name}: '{x}' is a class, of {n} samples." for x, n in words.items()]
    if needed and any(strange):
        row = strange.index(True)
        how = ", or say --task classes if it is one" if asked == "auto" and texts[row] else ""
        raise UserError(
            f"{path}: row {row + 1} has the label {texts[row] or cells[row]}. Give every sample "
            f"a class, as a whole number or a text{how}."
        )
    classes = list(zip(labels, called, strict=True))
    known = sorted({one for one, odd in zip(classes, strange, strict=True) if not odd})
    number = {one: n for n, one in enumerate(known)}
    target = [-1 if odd else number[one] for one, odd in zip(classes, strange, strict=True)]
    return Target(np.array(target), Classes([name for _, name in known]), notes)


def _as_written(
    labels: Sequence[Any], texts: Sequence[str | None], *, needed: bool
) -> tuple[list[Any], list[bool]]:
    """Numbers that are names, such as 1.1 and 1.10, and words among them, such as NA.

    Returns:
        Where each sorts, words after all numbers, and whether it is no class. Words are one only
        where labels are needed.
    """
    places, strange = [], []
    for label, text in zip(labels, texts, strict=True):
        is_number = isinstance(label, int | float | Decimal) and -math.inf < label < math.inf
        is_word = not is_number and isinstance(label, float | None)
        places.append(label if is_number else math.inf)
        strange.append(text is None or not (is_number or (is_word and needed)))
    return places, strange


def _called(label: Any, text: str | None) -> str:
    """The name of a class: 007 and 1e5 as written, but 1 for 1.0."""
    return str(label) if text is None or _PLAIN.fullmatch(text) else text


def _check_mostly_numbers(path: Path, columns: Columns, cells: Sequence[Any]) -> None:
    """Raises if most labels are numbers, not all whole, but some are words."""
    count = Counter(x for x in cells if isinstance(x, str))
    found = {text: alone([text], comma=columns.comma) for text in count}
    numbers = {text: x[0] for text, x in found.items() if x and x[0] is not None}
    if 2 * sum(count[text] for text in numbers) <= count.total():
        return
    if not _are_numbers([*numbers.values()]):
        return
    why = "and most others are numbers. Give every sample a number, leave the row out"
    rows = [n for n, x in enumerate(cells) if isinstance(x, str) and x not in numbers]
    if not rows:  # 1,5e3 beside 2.5
        why = "a number that is not written like the others. Write all as 1234.5"
        rows = [n for n, x in enumerate(cells) if isinstance(x, str) and alone([x]) is None]
    raise UserError(
        f"{path}: row {rows[0] + 1} has the label '{cells[rows[0]]:.60}', {why}, or say --task "
        "classes if they are names."
    )


def _numbered(path: Path, labels: Sequence[Any], names: Sequence[str], *, needed: bool) -> Target:
    """Class numbers with known names; -1 means none, as on the Hub."""
    for row, label in enumerate(labels, 1):
        if label in (None, -1) and needed:
            raise UserError(
                f"{path}: row {row} has no label. Take other splits with --splits, if all of its "
                "split have none, or give it one."
            )
        if label not in (None, -1):
            _check_number(path, row, label, names)
    known = sorted({label for label in labels if label not in (None, -1)})
    number = {label: n for n, label in enumerate(known)}
    target = np.array([number.get(label, -1) for label in labels])
    return Target(target, Classes([names[n] for n in known]))


def _check_number(path: Path, row: int, label: Any, names: Sequence[str]) -> None:
    if label not in range(len(names)):
        raise UserError(
            f"{path}: row {row} has the label {label}, but only the classes 0 to "
            f"{len(names) - 1} have names. Correct the row, or the names."
        )


# Numbers


def _check_clear(path: Path, columns: Columns, name: str, asked: Asked) -> None:
    """Raises if the labels of a column are numbers that can be read in two ways."""
    cells = columns.entries(name) or []
    if asked not in ("auto", "number") or not all(isinstance(x, str | None) for x in cells):
        return
    if unclear := first_unclear(cells, comma=columns.comma):
        row, text = unclear
        raise UserError(
            f"{path}: row {row} has the label '{text}', {in_two_ways(comma=columns.comma)}. Write "
            "numbers as 1234.5, with commas between the cells, and several labels as a;b, or say "
            "--task classes if it is a name."
        )


def _numbers(path: Path, columns: Columns, name: str, *, needed: bool) -> np.ndarray:
    """The numbers of a column; NaN if unknown."""
    cells = columns.entries(name) or [None] * columns.rows
    found = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        value = cell
        if isinstance(cell, str):  # a column in which some cells are not numbers
            value = _TRUTH.get(cell.lower(), (alone([cell], comma=columns.comma) or [None])[0])
        if isinstance(value, int | float | Decimal):
            found[row] = float(value)
            bad = bool(unusable(found[row : row + 1])[0])
        else:
            bad = True
        if bad and needed:
            text = (columns.texts(name) or cells)[row]
            what = "nothing" if text is None else f"'{text!s:.60}'"
            raise UserError(
                f"{path}: row {row + 1} holds {what} in the column '{name}', whose numbers are to "
                "be predicted. Give every sample a number, or leave the row out."
            )
    return found


def _to_regress(
    path: Path, values: np.ndarray, names: Sequence[str], asked: Asked, *, needed: bool
) -> Target:
    if needed and (wrong := blurred(values)):
        which = "the label" if len(names) == 1 else f"'{names[wrong[0]]}' of the labels"
        raise UserError(f"{path}: {which} {wrong[1]}.")
    task = Numbers(tuple(names))
    how = "" if asked == "number" else "; use --task if they are not"
    listed = ", ".join(map(repr, names))
    note = f"{path.name}: the labels look like numbers to regress on, {listed}{how}."
    return Target(values.astype(np.float32), task, [note])


# Several labels


def _of_columns(path: Path, columns: Columns, asked: Asked, *, needed: bool) -> Target:
    """The target from one column for each label, of 0 and 1, or for each number."""
    if asked == "classes":
        raise UserError(
            f"{path}: has labels in {', '.join(columns.several)}, which are not classes. Name one "
            "of them with --label, or leave --task out."
        )
    names = [name[len(LABEL) :] for name in columns.several]
    listed = ", ".join(map(repr, columns.several))
    if needed:
        for name in columns.several:
            _check_clear(path, columns, name, asked)
    found = np.stack(
        [_numbers(path, columns, name, needed=needed) for name in columns.several], axis=1
    )
    odd = ~np.isin(found, (0, 1)) & ~np.isnan(found)
    if asked == "number" or (asked == "auto" and odd.any()):
        return _to_regress(path, found, names, asked, needed=needed)
    if needed and odd.any():
        row, column = np.argwhere(odd)[0]
        raise UserError(
            f"{path}: row {row + 1} holds {found[row, column]:g} in the column "
            f"'{columns.several[column]}'. Give 1 where a sample has the label and 0 where not."
        )
    target = np.where(np.isnan(found) | odd, -1, found).astype(np.float32)
    note = f"{path.name}: the columns {listed} are labels of 0 and 1."
    return Target(target, Labels(names), [note])


def _of_lists(
    path: Path, cells: Sequence[Any], names: Sequence[str] | None, asked: Asked, *, needed: bool
) -> Target:
    """The target from lists of labels, of 0 and 1 for each, or of numbers."""
    if asked == "classes":
        raise UserError(
            f"{path}: its labels are lists, which are not classes. Give each sample one, or leave "
            "--task out."
        )
    for row, cell in enumerate(cells, 1):
        if not isinstance(cell, list) and (needed or cell is not None):
            raise UserError(
                f"{path}: row {row} has no list of labels. Give an empty one if it has none of "
                "them, or leave the row out."
            )
    floats = any(isinstance(x, float) for cell in cells for x in cell or [])
    marks = floats and _width(cells) > 1  # as binary cross-entropy takes them
    if asked == "number" or (asked == "auto" and floats and not marks):
        return _lists_of_numbers(path, cells, asked, needed=needed)
    given = [
        None if cell is None else _checked(path, row, [*map(int, cell)] if marks else cell, names)
        for row, cell in enumerate(cells, 1)
    ]
    twice = [row for row, x in enumerate(given, 1) if x is not None and len(set(x)) < len(x)]
    if (twice or marks) and names is None and (width := _width(given)):
        found = np.array([[-1] * width if x is None else x for x in given], np.float32)
        note = f"{path.name}: a label is a list of {width} times 0 or 1, one for each label."
        return Target(found, Labels(list(map(str, range(width)))), [note])
    if twice:
        raise UserError(
            f"{path}: row {twice[0]} has a label twice, {given[twice[0] - 1]}. Name each once, or "
            "give as many 0 and 1 in every row as there are labels."
        )
    target = _several(given, names)
    none = sum(labels == [] for labels in given)
    note = (
        f"{path.name}: a label is a list of the labels of a sample, of which there are "
        f"{len(target.task.names)}; {none} samples have none."
    )
    return replace(target, notes=[note])


def _checked(path: Path, row: int, cell: list[Any], names: Sequence[str] | None) -> list[Any]:
    """The labels of a row; raises if one is empty."""
    labels = [x.strip() if isinstance(x, str) else x for x in cell]
    if odd := [x for x in labels if not isinstance(x, str | int) or x == ""]:
        raise UserError(
            f"{path}: row {row} has {odd[0]!r} in its list of labels. Give texts or whole numbers."
        )
    if names is not None:
        for label in labels:
            _check_number(path, row, label, names)
    return labels


def _width(given: Sequence[list[Any] | None]) -> int:
    """How many 0 and 1 each list holds; 0 if lists hold something else, or differ in length."""
    lists = [labels for labels in given if labels is not None]
    only_marks = {x for labels in lists for x in labels} <= {0, 1}
    lengths = {len(labels) for labels in lists}
    return lengths.pop() if only_marks and len(lengths) == 1 else 0


def _lists_of_numbers(path: Path, cells: Sequence[Any], asked: Asked, *, needed: bool) -> Target:
    """The target from equally many numbers in every list."""
    width = next(len(cell) for cell in cells if cell is not None)
    found = np.full((len(cells), width), np.nan)
    for row, cell in enumerate(cells):
        numbers = [x for x in cell or [] if isinstance(x, int | float)]
        if cell is not None and not len(numbers) == len(cell) == width:
            raise UserError(
                f"{path}: row {row + 1} has the label {cell!r:.60}, and others are {width} numbers "
                "to regress on. Give as many in every row."
            )
        if cell is not None:
            found[row] = numbers
            if (bad := unusable(found[row])).any():
                raise UserError(
                    f"{path}: row {row + 1} has {spelt(found[row][bad][0])} among its numbers to "
                    "regress on. Leave such rows out."
                )
    names = ["number"] if width == 1 else [f"number {n}" for n in range(width)]
    return _to_regress(path, found, names, asked, needed=needed)


def _mark(path: Path, cells: Sequence[Any], asked: Asked) -> str:
    """The mark that joins several labels in a tenth of the cells, or in any if asked; or empty."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    if listed := [text for text in texts if re.fullmatch(r"\[.*,.*\]", text, re.DOTALL)]:
        raise UserError(
            f"{path}: row {cells.index(listed[0]) + 1} has the label {listed[0]:.60}, a list "
            "that is written as a text. Join the labels of a sample with ;, or say --task classes."
        )
    least = 1 if asked == "labels" else max(1, math.ceil(len(texts) / 10))
    used = [mark for mark in MARKS if sum(mark in text for text in texts) >= least]
    if len(used) > 1:
        raise UserError(
            f"{path}: its labels hold both ; and |. Join several labels of a sample with one of "
            "them, or say --task classes."
        )
    return used[0] if used else MARKS[0] * (asked == "labels")


def _joined(path: Path, cells: Sequence[Any], mark: str) -> Target:
    """The target from texts that name several labels."""
    given = [
        list(dict.fromkeys(part for x in text.split(mark) if (part := x.strip())))
        for text in ("" if cell is None else str(cell) for cell in cells)
    ]
    found = _several(given, None)
    none = sum(not labels for labels in given)
    note = (
        f"{path.name}: '{mark}' joins several labels of a sample, of which there are "
        f"{len(found.task.names)}; {none} samples have none. --task classes takes each text whole."
    )
    return replace(found, notes=[note])


def _several(given: Sequence[list[Any] | None], names: Sequence[str] | None) -> Target:
    """The target from the labels of each row; None if unknown."""
    known = sorted({x for labels in given for x in labels or []}, key=_order)
    number = {label: n for n, label in enumerate(known)}
    found = np.zeros((len(given), len(known)), np.float32)
    for row, labels in enumerate(given):
        found[row, [number[label] for label in labels or []]] = 1
        if labels is None:
            found[row] = -1
    return Target(found, Labels([names[x] if names else str(x) for x in known]))


def _order(label: Any) -> tuple[bool, int, str]:
    """Sorts whole numbers by value, before texts."""
    text = str(label)
    is_whole = bool(re.fullmatch(r"-?\d{1,18}", text))
    return not is_whole, int(text) if is_whole else 0, text
