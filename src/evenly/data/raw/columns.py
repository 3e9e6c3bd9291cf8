"""The columns of a table: texts, numbers, or files."""

import codecs
import csv
import io
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evenly.data.dataset import NUMBERING
from evenly.data.raw.figures import alone, numbers_of
from evenly.data.raw.rows import Files
from evenly.errors import UserError

PLAIN = ("label", "cls")
"""What a table, and a shard, call the label unless the user names another column."""
RESERVED = ("label", "split", "name")
"""Columns that are not modalities."""
LABEL = "label_"
"""Prefix of columns that are each one of several labels."""
PROBED = 100
"""First cells of a column that determine what it holds."""
EMPTY = frozenset([
    "NA", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "<NA>", "NULL", "null",
    "NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN",
])  # fmt: skip
"""Cells of a CSV that count as empty, as for pandas and Arrow."""
_INDEX = re.compile(r"unnamed: \d+(_level_\d+)?|__index_level_\d+__", re.IGNORECASE)
"""Names that pandas gives to an index that has none."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, since it begins with that
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Encodings by the mark at the beginning of a file."""


@dataclass(frozen=True)
class Column:
    """The cells of a column that is a modality, from the first row; None if empty.

    Attributes:
        values: Arrays of numbers; texts; files, each as its bytes or its path; or others, which are
            unusable.
        texts: The cells as written; None if they are not written as texts.
        holds: Which of these they are.
        lists: The texts of each cell, if a cell may hold several; `texts` are these joined by
            blanks.
    """

    values: Sequence[Any]
    texts: Sequence[str | None] | None = None
    holds: Literal["numbers", "texts", "files", "others"] = "numbers"
    lists: Sequence[tuple[str, ...] | None] | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a table, each interpreted when needed.

    Attributes:
        cells: Texts, files, or an Arrow array, by name.
        root: The folder that paths are relative to.
        opened: The files that it was read from.
        aside: Notes on columns that are not modalities unless requested, by column.
        comma: Whether numbers may have a decimal comma, as when semicolons separate cells.
        empty: Texts that count as empty cells of a modality.
        labels: The columns that may be the label, unless another is requested.
        classes: The names of the classes, by column of class numbers.
        refused: Why the names of folders tell no `label` or `split`, although they seem to; for
            whoever needs it and finds no such column.
        notes: Sentences that a user of the data should see.
    """

    cells: Mapping[str, Any]
    root: Path
    opened: Sequence[Path]
    aside: Mapping[str, str] = field(default_factory=dict)
    comma: bool = False
    empty: Collection[str] = ()
    labels: Sequence[str] = ("label",)
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    refused: Mapping[str, UserError] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.cells.values())))

    @property
    def named_labels(self) -> list[str]:
        """The columns that are each named like a label: `label_NAME`."""
        return [name for name in self.cells if name.lower().startswith(LABEL) and name != LABEL]

    @property
    def several(self) -> list[str]:
        """The columns that are each a label by name; none if there is only one."""
        return found if len(found := self.named_labels) > 1 else []

    def texts(self, name: str) -> Sequence[str | None] | None:
        """The cells of a column as written; None if there is no such column."""
        cells = self.cells.get(name)
        if cells is None or isinstance(cells, list):
            return cells
        if isinstance(cells, Files):
            return None
        return [
            None if x is None or x != x else str(x).strip() or None  # NaN is a missing number
            for x in cells.to_pylist()
        ]

    def recurring(self, name: str, most: int) -> Sequence[str | None] | None:
        """The cells of a column as written, if they hold texts or numbers of which few differ.

        Args:
            name: Name of the column.
            most: How many may differ; if more do, or cells hold something else, there is None.
        """
        from pyarrow import types

        cells = self.cells[name]
        if not isinstance(cells, list | Files):
            if not is_single(cells.type):
                return None
            # Sooner than by texts; Arrow does not compare its short decimals.
            if not types.is_decimal(cells.type) and len(cells.unique()) > most:
                return None
        texts = self.texts(name)
        return None if texts is None or len(set(texts)) > most else texts

    def entries(self, name: str) -> Sequence[Any] | None:
        """Labels, as numbers if all are; None if there is no such column.

        Words for an empty cell, such as NA, are one if all others are numbers, in any table.
        """
        cells = self.cells.get(name)
        if cells is None or isinstance(cells, Files):
            return cells
        values = cells if isinstance(cells, list) else cells.to_pylist()
        if not all(isinstance(x, str | None) for x in values):
            return [x.strip() or None if isinstance(x, str) else x for x in values]
        texts = self.texts(name) or []
        for given in (texts, [None if x in EMPTY else x for x in texts]):
            if any(given) and (found := alone(given, comma=self.comma)) is not None:
                return found
        return texts

    def modality(self, name: str) -> Column:
        """The cells of a modality."""
        cells = self.cells[name]
        if isinstance(cells, Files):
            return Column(cells, None, "files")
        if isinstance(cells, list):
            return _of_texts([None if x in self.empty else x for x in cells], self.comma)
        return _of_arrow(cells)

    def kept(self, rows: Sequence[int]) -> "Columns":
        """Some of the rows."""
        found: dict[str, Any] = {}
        for name, cells in self.cells.items():
            if isinstance(cells, Files):
                found[name] = replace(cells, cells=[cells[row] for row in rows])
            else:
                listed = isinstance(cells, list)
                found[name] = [cells[row] for row in rows] if listed else cells.take(rows)
        return replace(self, cells=found)


def columns_of(
    path: Path,
    names: Sequence[str],
    cells: Sequence[Any],
    declared: Collection[str] = (),
    aside: Mapping[str, str] | None = None,
    **more: Any,
) -> Columns:
    """The columns of a table by name, after checking the names.

    Args:
        path: Path of the table.
        names: Names of the columns.
        cells: Cells of each column.
        declared: Names of columns declared to number the rows.
        aside: As in `Columns`, without columns that number the rows.
        more: As in `Columns`.

    Raises:
        ValueError: If two columns share a name, or there are no rows.
    """
    # 'Split' means 'split': read as a modality, it would leave the splits to be drawn at random.
    names = [
        low if (low := name.lower()) in RESERVED and low not in names else name for name in names
    ]
    check_apart(path, names)
    if not cells or not len(cells[0]):
        raise UserError(f"{path}: has no rows. Give one for each sample, below the names.")
    found = dict(zip(names, cells, strict=True))
    indices = [
        name
        for name in names
        if name in declared
        or _INDEX.fullmatch(name)
        or (NUMBERING.fullmatch(name) and _counts(found[name], more["root"]))
    ]
    noted = dict.fromkeys(indices, "numbers the rows, so it is not a modality")
    return Columns(found, aside={**(aside or {}), **noted}, **more)


def of_records(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns, of Arrow or of texts, from rows of named values as in JSON."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            found[name] = pa.chunked_array([pa.array(values)])
        except pa.ArrowException:  # numbers beside texts
            found[name] = [None if value is None else str(value) for value in values]
    return found


def check_apart(path: Path, names: Sequence[str]) -> None:
    """Raises if two columns share a name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: two columns are named '{twice}'. Rename one.")


def named_columns(names: Sequence[str]) -> list[str]:
    """The names of columns, with pandas' names for unnamed ones."""
    free = (name for n in count() if (name := f"Unnamed: {n}") not in names)
    return [name or next(free) for name in names]


def _counts(cells: Any, root: Path) -> bool:
    """Whether a column holds a different whole number, or word, in each row, but no paths."""
    if isinstance(cells, Files):
        return False
    values = cells if isinstance(cells, list) else cells.to_pylist()
    if isinstance(cells, list):
        values = alone(cells) or values
    whole = all(type(value) is int for value in values)
    words = all(isinstance(value, str) and re.fullmatch(r"[\w-]+", value) for value in values)
    if not (whole or words) or not len(set(values)) == len(cells) > 1:
        return False
    probed = (cells if isinstance(cells, list) else values)[:PROBED]
    return 2 * sum(os.path.exists(root / str(x)) for x in probed) < len(probed)


def csv_columns(path: Path) -> Columns:
    """The columns of a CSV, as texts without surrounding blanks.

    Raises:
        ValueError: If it is not a table.
    """
    text = _decoded(path)
    limit = csv.field_size_limit(2**31 - 1)  # cells may be long; the limit is process-wide
    try:
        parted = _delimiter(text)
        reader = _reader(text, parted)
        rows = [[cell.strip() for cell in row] for row in reader if row]
    except csv.Error as error:
        raise UserError(
            f"{path}: cannot be read as a table ({error}, in or before line {reader.line_num}). "
            "Look for a quotation mark that is not closed, or one too many."
        ) from error
    finally:
        csv.field_size_limit(limit)
    # Empty rows, then empty columns, as left by spreadsheets.
    left_out = 0
    while rows and not any(rows[-1]):
        left_out += len(rows.pop()) > 1
    names: list[str] = rows[0] if rows else []
    while names and not any(any(row[len(names) - 1 :]) for row in rows):
        names.pop()
    for number, row in enumerate(rows):
        if len(row) < len(names) or any(row[len(names) :]):
            how = f"Put cells that contain {parted!r} in quotation marks."
            if len(row) < len(names):
                how = "Add the missing cells, also empty ones."
            raise UserError(
                f"{path}: cannot be read as a table: row {number} has {len(row)} cells for "
                f"{len(names)} columns. {how}"
            )
    columns = [[row[n] or None for row in rows[1:]] for n in range(len(names))]
    notes = []
    if left_out:
        some = f"{left_out} row{'s' * (left_out > 1)}"
        notes = [f"{path.name}: {some} empty at the end: left out."]
    return columns_of(
        path,
        named_columns(names),
        columns,
        root=path.parent,
        opened=[path],
        comma=parted == ";",
        empty=EMPTY,
        notes=notes,
    )


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    try:
        text = content[len(mark) :].decode(_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not in UTF-8. Save it so, or convert it, from Latin-1 by: iconv -f "
            f"LATIN1 -t UTF-8 {path.name} > new.csv"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{path}: is no text in UTF-8, as it holds zero bytes. Save it so, or convert it, from "
            f"UTF-16 by: iconv -f UTF-16LE -t UTF-8 {path.name} > new.csv"
        )
    return text


def _reader(text: str, delimiter: str) -> Any:
    # Blanks after a comma are skipped, or a quotation mark after them would not count.
    return csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )


def _delimiter(text: str) -> str:
    """The delimiter: the one that gives a 'label' among the names, and the most names."""

    def sense(delimiter: str) -> tuple[bool, int]:
        try:
            names: list[str] = next((row for row in _reader(text, delimiter) if row), [])
        except csv.Error:
            return False, 0
        return "label" in [name.strip().lower() for name in names], len(names)

    return max(",;\t|", key=sense)


def _of_texts(texts: Sequence[str | None], comma: bool) -> Column:
    """Numbers if all cells are; None among numbers is an empty cell."""
    found = numbers_of([None if text == "None" else text for text in texts], comma=comma)
    return Column(texts, texts, "texts") if found is None else Column(_as_arrays(found), texts)


def _as_arrays(values: Sequence[Any]) -> list[np.ndarray | None]:
    """A column's numbers and arrays as arrays of one type."""
    alone = [x for x in values if x is not None and not isinstance(x, np.ndarray)]
    whole = all(isinstance(x, int) and -(2**63) <= x < 2**63 for x in alone)
    dtype = np.bool_ if all(isinstance(x, bool) for x in alone) else np.int64 if whole else float
    return [
        x if x is None or isinstance(x, np.ndarray) else np.array([x]).astype(dtype) for x in values
    ]


def plain(cells: Any) -> Any:
    """An Arrow column without dictionaries and third-party types."""
    import pyarrow as pa

    if isinstance(cells.type, pa.FixedShapeTensorType):
        return cells
    if isinstance(cells.type, pa.BaseExtensionType):
        storage = [chunk.storage for chunk in cells.chunks]
        return plain(pa.chunked_array(storage, cells.type.storage_type))
    if pa.types.is_dictionary(cells.type):
        return cells.cast(cells.type.value_type)
    return cells


def _of_arrow(cells: Any) -> Column:
    import pyarrow as pa

    kind = cells.type
    if _is_number(kind):
        given = iter(_numbers(cells.drop_null()).reshape(-1, 1))
        return Column([next(given) if here else None for here in cells.is_valid().to_pylist()])
    if isinstance(kind, pa.FixedShapeTensorType) or _is_number(_innermost(kind)):
        with suppress(ValueError):  # lists of unequal lengths in one cell
            return Column([_block(cell) for cell in cells])
    values = cells.to_pylist()
    if all(isinstance(value, str | None) for value in values):
        return _of_texts([None if x is None else x.strip() or None for x in values], comma=False)
    if is_list(kind) and all(_is_texts(value) for value in values):
        stripped = [tuple(text for y in x or [] if y and (text := y.strip())) for x in values]
        lists = [x or None for x in stripped]
        texts = [" ".join(x) or None for x in stripped]
        return Column(texts, texts, "texts", lists if any(len(x) > 1 for x in stripped) else None)
    return Column([None if value == [] else value for value in values], None, "others")


def _is_texts(cell: Any) -> bool:
    """Whether a cell is a list of texts, or empty."""
    return cell is None or (isinstance(cell, list) and all(isinstance(x, str | None) for x in cell))


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    return any(test(kind) for test in tests)


def is_single(kind: Any) -> bool:
    """Whether cells of an Arrow type are each one text or number."""
    return _is_number(kind) or "string" in str(kind).partition("<")[0]


def holds_files(kind: Any) -> bool:
    """Whether cells of an Arrow type are files, or lists or structures of files."""
    within = [kind.field(n).type for n in range(kind.num_fields)]
    return is_file(kind) or any(map(holds_files, within))


def is_file(kind: Any) -> bool:
    """Whether cells of an Arrow type are files: bytes, perhaps with a path."""
    from pyarrow import types

    if types.is_struct(kind):  # as the library `datasets` writes pictures and sound
        return {field.name for field in kind} <= {"bytes", "path"}

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in tests) or str(kind) == "binary_view"


def is_list(kind: Any) -> bool:
    """Whether cells of an Arrow type are lists."""
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(test(kind) for test in tests) or "list_view" in str(kind).partition("<")[0]


def item_of(kind: Any) -> Any:
    """The type of a list's items; any other type itself."""
    return kind.value_type if is_list(kind) else kind


def _innermost(kind: Any) -> Any:
    """The type of the innermost items of lists, lists of lists, and so on."""
    return _innermost(kind.value_type) if is_list(kind) else kind


def _numbers(cells: Any) -> np.ndarray:
    """Arrow's numbers; missing ones are NaN, or None among truth values."""
    import pyarrow as pa

    if pa.types.is_decimal(cells.type):
        cells = cells.cast(pa.float64())
    found: np.ndarray = cells.to_numpy(zero_copy_only=False)
    return found


def _block(cell: Any) -> np.ndarray | None:
    """The array of a cell that is a list, a list of lists, ..., or a tensor; None if it is empty.

    Raises:
        ValueError: If its lists have unequal lengths.
    """
    import pyarrow as pa

    if not cell.is_valid:
        return None
    if isinstance(cell.type, pa.FixedShapeTensorType):
        found: np.ndarray = cell.to_numpy()
    elif is_list(cell.values.type):
        nothing = np.zeros(0)
        blocks = [nothing if (x := _block(part)) is None else x for part in cell.values]
        found = np.stack(blocks or [nothing])
    else:
        found = _numbers(cell.values)
    return found if found.size else None
