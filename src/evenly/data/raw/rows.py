"""Cells in a file of many samples, read when needed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from evenly.data.media.error import File
from evenly.errors import UserError

BATCH = 8 << 20
"""Bytes of a Parquet file read at a time, unless a single row has more."""
_BUFFER = 1 << 20
"""Bytes read from each column at once."""
_END = 64 << 10
"""Bytes at a file's end that distinguish it from others of its size: they locate its columns."""


@runtime_checkable
class Rows(Protocol):
    """A table too large for memory, with rows from 0.

    A frozen dataclass, whose fields identify the table.
    """

    @property
    def path(self) -> Path | None:
        """Path of its file; None if it has none."""
        ...

    @property
    def schema(self) -> Any:
        """Arrow's schema of its columns."""
        ...

    def __len__(self) -> int: ...

    def table(self, columns: Sequence[str]) -> Any:
        """Some columns at once, as an Arrow table."""
        ...

    def batches(self, columns: Sequence[str], start: int) -> Iterator[tuple[int, Any]]:
        """Some columns in Arrow's parts, each with the number of its first row.

        Args:
            columns: Their names.
            start: A row; parts that end before it may be left out.

        Raises:
            ValueError: If the file is broken.
        """
        ...

    def complete(self, column: str) -> bool:
        """Whether a column of files is known to have all their bytes, before reading it."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """A file in a cell of a table: its bytes alone, or with its `path`; or a list of these."""

    rows: Rows
    column: str
    row: int

    @property
    def path(self) -> Path | None:
        """Path of the table."""
        return self.rows.path

    def __repr__(self) -> str:
        return f"row {self.row + 1} of {self.path or 'a data set'}"


@dataclass(frozen=True, slots=True, repr=False)
class Part:
    """A range of bytes within a file."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        """The bytes."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def __repr__(self) -> str:
        return f"{self.size:,} bytes of {self.path}"


@dataclass(frozen=True)
class Files(Sequence[Any]):
    """A column's cells that are files: entries, parts, texts of paths or absolute paths; or None.

    Attributes:
        cells: Cells from the first row.
        kind: What they hold according to the data set, 'image', 'audio' or 'video'; or empty.
        refused: Why they cannot be read, and what to do about it; empty if they can.
        several: Whether a cell may be any number of files: an entry that is a list, or a tuple of
            paths.
    """

    cells: Sequence[Any]
    kind: str = ""
    refused: str = ""
    several: bool = False

    def __getitem__(self, row: Any) -> Any:
        return self.cells[row]

    def __len__(self) -> int:
        return len(self.cells)


class Turn:
    """Reads entries in row order, so that each part of a file is read once."""

    def __init__(self) -> None:
        self._of: tuple[Rows, tuple[str, ...]] | None = None
        self._first, self._batch = 0, None
        self._left: Iterator[tuple[int, Any]] = iter(())

    def __call__(self, cells: Mapping[str, Any]) -> Mapping[str, Any]:
        """The cells of a sample, with each entry replaced by its bytes, its path, or None.

        An entry that is a list becomes a tuple of these.

        Raises:
            ValueError: If a file is broken.
        """
        entries = {name: cell for name, cell in cells.items() if isinstance(cell, Entry)}
        if not entries:
            return cells
        first = next(iter(entries.values()))
        found = self._found(first.rows, [entry.column for entry in entries.values()], first.row)
        read = {name: _file(found[entry.column], entry) for name, entry in entries.items()}
        return {**cells, **read}

    def _found(self, rows: Rows, columns: Sequence[str], row: int) -> dict[str, Any]:
        wanted = rows, tuple(dict.fromkeys(columns))
        if wanted != self._of or row < self._first:
            self._of, self._batch = wanted, None
            self._left = rows.batches(wanted[1], row)
        while self._batch is None or row >= self._first + len(self._batch):
            self._first, self._batch = next(self._left)
        at = row - self._first
        return {name: self._batch.column(name)[at].as_py() for name in wanted[1]}


def _file(value: Any, entry: Entry) -> File | tuple[File, ...] | None:
    if isinstance(value, list):
        return tuple(file for x in value if isinstance(file := _file(x, entry), File)) or None
    if isinstance(value, dict):
        path = value.get("path")
        folder = entry.path.parent if entry.path else Path()
        value = value.get("bytes") or (path and folder / path)
    return value or None


@dataclass(frozen=True)
class ParquetRows:
    """The rows of a Parquet file."""

    path: Path
    mark: str
    schema: Any = field(compare=False, repr=False)
    about: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, path: Path) -> "ParquetRows":
        """The rows of a file that is there."""
        from pyarrow import parquet

        with _reading(path), closing(parquet.ParquetFile(path)) as file:
            return cls(path, mark_of(path), file.schema_arrow, file.metadata)

    def __len__(self) -> int:
        return int(self.about.num_rows)

    def table(self, columns: Sequence[str]) -> Any:
        """As in `Rows`."""
        from pyarrow import parquet

        with _reading(self.path), closing(parquet.ParquetFile(self.path)) as file:
            return file.read(list(columns))

    def batches(self, columns: Sequence[str], start: int) -> Iterator[tuple[int, Any]]:
        """As in `Rows`: needs memory for a page of each column, however large a row group is."""
        import pyarrow as pa
        from pyarrow import parquet

        first = 0
        try:
            # Without the buffer, a column's whole row group is read at once.
            with (
                _reading(self.path),
                closing(parquet.ParquetFile(self.path, buffer_size=_BUFFER)) as file,
            ):
                for number in range(file.num_row_groups):
                    group = self.about.row_group(number)
                    if group.num_rows and first + group.num_rows > start:
                        row, each = first, _bytes(group, columns) // group.num_rows + 1
                        size, groups = max(1, min(1024, BATCH // each)), [number]
                        for batch in file.iter_batches(size, groups, list(columns), False):
                            yield row, batch
                            row += len(batch)
                    first += group.num_rows
        finally:
            pa.default_memory_pool().release_unused()

    def complete(self, column: str) -> bool:
        """As in `Rows`: from the counts in the file."""
        groups = (self.about.row_group(n) for n in range(self.about.num_row_groups))
        chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
        own = [c for c in chunks if c.path_in_schema in (column, f"{column}.bytes")]
        return bool(own) and all(c.statistics and c.statistics.null_count == 0 for c in own)


@dataclass(frozen=True)
class ArrowRows:
    """The rows of a memory-mapped file in one of Arrow's formats.

    These are the stream format, which `datasets` writes, and the file format, which is Feather.
    """

    path: Path
    mark: str
    schema: Any = field(compare=False, repr=False)
    length: int = field(compare=False, repr=False)

    @classmethod
    def of(cls, path: Path) -> "ArrowRows":
        """The rows of a file that is there."""
        from pyarrow import types

        with _arrow(path) as (schema, _):
            # Compressed data are unpacked when read, so the count uses something short.
            short = [field.name for field in schema if types.is_primitive(field.type)]
        with _arrow(path, short[:1] or schema.names[:1]) as (_, batches):
            return cls(path, mark_of(path), schema, sum(map(len, batches)))

    def __len__(self) -> int:
        return self.length

    def table(self, columns: Sequence[str]) -> Any:
        """As in `Rows`."""
        import pyarrow as pa

        wanted = pa.schema([self.schema.field(name) for name in columns])
        with _arrow(self.path, columns) as (_, batches):
            return pa.Table.from_batches([batch.select(list(columns)) for batch in batches], wanted)

    def batches(self, columns: Sequence[str], start: int) -> Iterator[tuple[int, Any]]:
        """As in `Rows`: in the parts written, possibly all rows at once."""
        row = 0
        with _arrow(self.path, columns) as (_, batches):
            for batch in batches:
                if row + len(batch) > start:
                    yield row, batch
                row += len(batch)

    def complete(self, column: str) -> bool:
        """As in `Rows`: unknown."""
        return False


@dataclass(frozen=True)
class DatasetRows:
    """The rows of a `datasets.Dataset`, with files as stored, not decoded."""

    fingerprint: str
    dataset: Any = field(compare=False, repr=False)
    path: None = None

    @classmethod
    def of(cls, dataset: Any) -> "DatasetRows":
        """The rows of a data set."""
        return cls(dataset._fingerprint, dataset.with_format("arrow"))

    @property
    def schema(self) -> Any:
        """As in `Rows`."""
        return self.dataset.features.arrow_schema

    def __len__(self) -> int:
        return len(self.dataset)

    def table(self, columns: Sequence[str]) -> Any:
        """As in `Rows`."""
        return self.dataset.select_columns(list(columns))[:]

    def batches(self, columns: Sequence[str], start: int) -> Iterator[tuple[int, Any]]:
        """As in `Rows`."""
        some = self.dataset.select_columns(list(columns))
        for row in range(start, len(some), 16):
            yield row, some[row : row + 16]

    def complete(self, column: str) -> bool:
        """As in `Rows`: unknown."""
        return False


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns Arrow's errors about a file into a sentence."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as a table ({said}). Download or write the file again."
        ) from error


@contextmanager
def _arrow(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema of a file in one of Arrow's formats, and its parts, with at least some columns."""
    import pyarrow as pa

    with _reading(path), pa.memory_map(str(path)) as file:
        mark = file.read(6)
        file.seek(0)
        if mark.startswith(b"FEA1"):
            raise UserError(
                f"{path}: is Feather of version 1, which is no Arrow file. Write it again, as "
                "pandas' to_feather does now."
            )
        if mark != b"ARROW1":
            with pa.ipc.open_stream(file) as stream:
                yield stream.schema, iter(stream)
            return
        with pa.ipc.open_file(file) as whole:
            schema = whole.schema
        places = [schema.get_field_index(name) for name in columns or schema.names]
        wanted = pa.ipc.IpcReadOptions(included_fields=sorted(places))
        with pa.ipc.open_file(file, options=wanted) as part:
            yield schema, (part.get_batch(n) for n in range(part.num_record_batches))


def _bytes(group: Any, columns: Sequence[str]) -> int:
    """Bytes of some columns of a row group in memory."""
    within = tuple(f"{name}." for name in columns)
    chunks = (group.column(n) for n in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if f"{chunk.path_in_schema}.".startswith(within)
    )


def mark_of(path: Path) -> str:
    """What distinguishes a file from earlier ones at its path: its size and its end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END))
        return f"{size} {sha256(file.read()).hexdigest()}"
