"""Tables of JSON lines: one object per line, with the columns as fields."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenly.data.raw.rows import mark_of
from evenly.errors import UserError

_CHUNK = 8 << 20
"""Bytes of text parsed at a time."""


@dataclass(frozen=True)
class JsonRows:
    """The rows of a file of JSON lines, as in `Rows`; held in memory in Arrow's form."""

    path: Path
    mark: str
    content: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, path: Path) -> "JsonRows":
        """The rows of an existing file."""
        return cls(path, mark_of(path), _table(path))

    @property
    def schema(self) -> Any:
        """As in `Rows`."""
        return self.content.schema

    def __len__(self) -> int:
        return len(self.content)

    def table(self, columns: Sequence[str]) -> Any:
        """As in `Rows`."""
        return self.content.select(list(columns))

    def batches(self, columns: Sequence[str], start: int) -> Iterator[tuple[int, Any]]:
        """As in `Rows`."""
        row = 0
        for batch in self.table(columns).to_batches():
            yield row, batch
            row += len(batch)

    def complete(self, column: str) -> bool:
        """As in `Rows`: unknown."""
        return False


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in the lines of a file, each with the bytes of its line; skips blank lines.

    Raises:
        ValueError: If a line is not an object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                row = json.loads(text, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}: line {number} is not JSON ({error}). Write one object per line."
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}: line {number} holds no fields. Write an object in each line, such as "
                    '{"text": "so good", "label": "cat"}.'
                )
            yield len(line), row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the field '{twice}' twice")
    return found


def _table(path: Path) -> Any:
    """All rows in Arrow's form, converted a chunk at a time."""
    import pyarrow as pa

    chunks: list[tuple[int, dict[str, Any]]] = []
    rows: list[dict[str, Any]] = []
    size = 0
    for length, row in json_rows(path):
        rows.append(row)
        size += length
        if size >= _CHUNK:
            chunks.append((len(rows), _columns(rows)))
            rows, size = [], 0
    chunks.append((len(rows), _columns(rows)))
    names = dict.fromkeys(name for _, columns in chunks for name in columns)
    return pa.table(
        {
            name: _joined([columns.get(name, pa.nulls(count)) for count, columns in chunks])
            for name in names
        }
    )


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Some rows in Arrow's form, by column; numbers among texts become texts."""
    import pyarrow as pa

    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            found[name] = pa.array(values)
        except (pa.ArrowException, OverflowError):
            found[name] = _texts(values)
    return found


def _joined(parts: Sequence[Any]) -> Any:
    """The parts of a column as one, in a type that fits them all."""
    import pyarrow as pa

    try:
        tables = [pa.table({"": part}) for part in parts]
        return pa.concat_tables(tables, promote_options="permissive").column(0)
    except pa.ArrowException:
        return pa.chunked_array([_texts(part.to_pylist()) for part in parts])


def _texts(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.array([None if x is None else str(x) for x in values], pa.string())
