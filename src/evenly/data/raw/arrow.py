"""Tables in Parquet, Feather, Arrow or JSON lines: one file, or many as on the Hub."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from evenly.data.raw.columns import (
    Columns,
    check_apart,
    columns_of,
    holds_files,
    is_file,
    is_list,
    item_of,
    named_columns,
    plain,
)
from evenly.data.raw.lines import JsonRows
from evenly.data.raw.rows import ArrowRows, Entry, Files, ParquetRows, Rows
from evenly.errors import UserError

_STATE = "state.json"
_SPLITS = "dataset_dict.json"
_MEDIA = {"Image": "image", "Audio": "audio", "Video": "video"}
"""What the files of each feature of `datasets` hold."""
_LISTS = ("Sequence", "List", "LargeList")


_KINDS: dict[str, Callable[[Path], Rows]] = {
    ".parquet": ParquetRows.of,
    ".jsonl": JsonRows.of,
    ".ndjson": JsonRows.of,
}


def saved_files(path: Path) -> tuple[list[Path], list[str] | None] | None:
    """The files that `save_to_disk` of `datasets` wrote, and the split of each.

    Args:
        path: A folder.

    Returns:
        None if the folder was written by something else.

    Raises:
        ValueError: If it is not in the form that the library writes.
    """
    if (path / _STATE).is_file():
        return _saved(path), None
    if not (path / _SPLITS).is_file():
        return None
    names = _json(path / _SPLITS, "splits")
    pairs = [(file, str(name)) for name in names for file in _saved(path / str(name))]
    return [file for file, _ in pairs], [name for _, name in pairs] if len(names) > 1 else None


def _saved(folder: Path) -> list[Path]:
    """The files of a split, in order."""
    parts = [part for part in _json(folder / _STATE, "_data_files") if isinstance(part, dict)]
    found = [folder / str(part.get("filename")) for part in parts]
    if gone := [file for file in found if not file.is_file()]:
        raise UserError(
            f"{folder}: {gone[0].name} is missing, which {_STATE} names. Save the data set again."
        )
    return found


def _json(path: Path, name: str) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[name]
        if not isinstance(found, list) or not found:
            raise TypeError(f"there is no {name}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not as `datasets` wrote it ({error}). Save the data set again."
        ) from error
    return found


def shard_columns(
    path: Path, files: Sequence[Path], splits: Sequence[str] | None = None
) -> Columns:
    """The columns of files whose rows are consecutive.

    Args:
        path: Their common name.
        files: Parquet files, JSON lines, or others in one of Arrow's formats.
        splits: The split of each file.

    Raises:
        ValueError: If a file cannot be read, or its columns differ from the first's.
    """
    shards = [_KINDS.get(file.suffix.lower(), ArrowRows.of)(file) for file in files]
    root = path if path.is_dir() else path.parent
    return rows_columns(path, shards, splits, root=root, opened=files)


def rows_columns(
    path: Path, shards: Sequence[Rows], splits: Sequence[str] | None = None, **more: Any
) -> Columns:
    """The columns of tables whose rows are consecutive.

    Args:
        path: Their common name.
        shards: The tables.
        splits: The split of each table.
        more: See `Columns`.

    Raises:
        ValueError: If a table's columns differ from the first's.
    """
    check_apart(path, shards[0].schema.names)
    schema = _common(shards)
    features = _features(schema.metadata)
    classes = _classes(shards)
    files = [field.name for field in schema if holds_files(field.type)]
    others = [name for name in schema.names if name not in files]
    tables = [shard.table(others) for shard in shards]
    names, cells = [name.strip() for name in schema.names], list[Any]()
    for field in schema:
        if field.name in others:
            parts = [plain(table.column(field.name)) for table in tables]
            if field.name in classes:
                parts = _renumbered(shards, field.name, parts, classes[field.name])
            cells.append(_joined(parts))
        elif not is_file(item_of(field.type)):
            refused = "holds files within lists of lists or structures: make a column of each"
            cells.append(Files([None] * sum(map(len, shards)), refused=refused))
        else:
            found = chain.from_iterable(
                _files(rows, field.name, len(shards) > 1) for rows in shards
            )
            holds = _MEDIA.get(_item(features.get(field.name, {})).get("_type", ""), "")
            cells.append(Files(list(found), holds, several=is_list(field.type)))
    if splits is not None:
        if "split" in names:
            raise UserError(
                f"{path}: gives the splits twice, in a column 'split' and by the names of its "
                f"files, such as '{splits[0]}'. Rename the column or the files."
            )
        names.append("split")
        pairs = zip(shards, splits, strict=True)
        cells.append([split for rows, split in pairs for _ in range(len(rows))])
    notes = [*more.pop("notes", ()), *_twice(path, shards, tables)]
    classes = {name.strip(): called for name, called in classes.items()}
    why = "holds class numbers, too, and is no modality unless --modalities names it"
    return columns_of(
        path,
        named_columns(names),
        cells,
        _indices(schema.metadata),
        dict.fromkeys(classes, why),
        labels=["label"] if "label" in names else list(classes),
        classes=classes,
        notes=notes,
        **more,
    )


def _twice(path: Path, shards: Sequence[Rows], tables: Sequence[Any]) -> list[str]:
    """Notes on tables that hold the same rows.

    Tables are the same if everything but files is equal, and so are the files of their first rows.

    Args:
        path: Their common name.
        shards: The tables.
        tables: Everything but files of each table.
    """
    known: dict[str, list[int]] = {}
    notes = []

    @cache
    def first(number: int) -> Any:
        _, batch = next(shards[number].batches(shards[number].schema.names, 0))
        return batch.slice(0, 1)

    for number, table in enumerate(tables if len(tables) > 1 else ()):
        if not len(shards[number]):
            continue
        ends = [table.slice(n, 1).to_pylist() for n in (0, len(shards[number]) - 1)]
        alike = known.setdefault(repr([len(shards[number]), ends]), [])
        equal = (n for n in alike if tables[n].equals(table) and first(n) == first(number))
        if (same := next(equal, None)) is None:
            alike.append(number)
        else:
            one, two = (_place(shards[n]) for n in (same, number))
            notes.append(f"{path.name}: {one} and {two} hold the same rows.")
    return notes


def _common(shards: Sequence[Rows]) -> Any:
    """The common schema; a column that is empty in some tables takes its type from the others."""
    import pyarrow as pa

    first = shards[0]
    found = {field.name: field for field in first.schema}
    for rows in shards[1:]:
        known, given = set(found), set(rows.schema.names)
        if known != given:
            name = min(known ^ given)
            has, lacks = (first, rows) if name in known else (rows, first)
            raise UserError(
                f"{_place(lacks)}: has no column '{name}', and {_place(has)} has one. All parts of "
                "a data set need the same columns: give one of its folders, or a file."
            )
        for field in rows.schema:
            one, two = _bare(found[field.name].type), _bare(field.type)
            if pa.types.is_null(one):
                found[field.name] = field
            elif one != two and not pa.types.is_null(two):
                raise UserError(
                    f"{_place(rows)}: holds {two} in the column '{field.name}', and "
                    f"{_place(first)} {one}. All parts of a data set need the same columns: give "
                    "one of its folders, or a file."
                )
    return pa.schema(list(found.values()), first.schema.metadata)


def _bare(kind: Any) -> Any:
    """A type without dictionaries, which may differ."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _classes(shards: Sequence[Rows]) -> dict[str, list[str]]:
    """The names of classes in all tables, each once, by column of class numbers."""
    found: dict[str, list[str]] = {}
    for rows in shards:
        for name, feature in _features(rows.schema.metadata).items():
            if called := _class_names(feature):
                found[name] = list(dict.fromkeys([*found.get(name, []), *called]))
    return found


def _renumbered(
    shards: Sequence[Rows], column: str, parts: Sequence[Any], names: Sequence[str]
) -> list[Any]:
    """Renumbers tables' classes by one list, since each may name them in another order.

    Args:
        shards: The tables.
        column: A column of class numbers.
        parts: The column in each table; one without names takes those of the others.
        names: Names of the classes in all tables.

    Raises:
        ValueError: If a table has no names and others disagree, or a number has no name.
    """
    import pyarrow as pa

    called = [_class_names(_features(x.schema.metadata).get(column, {})) for x in shards]
    named = [n for n, own in enumerate(called) if own]
    if all(called[n] == names for n in named):
        return list(parts)
    found = []
    for rows, part, own in zip(shards, parts, called, strict=True):
        if pa.types.is_null(part.type):
            found.append(part)
            continue
        if not own:
            other = next(n for n in named if called[n] != called[named[0]])
            one, two = _place(shards[named[0]]), _place(shards[other])
            raise UserError(
                f"{_place(rows)}: does not say what the class numbers in the column '{column}' "
                f"stand for, on which {one} and {two} disagree. Write it again with "
                "the names of its classes."
            )
        number = {n: names.index(name) for n, name in enumerate(own)} | {-1: -1, None: None}
        try:
            cells = [_by(number, cell) for cell in part.to_pylist()]
        except KeyError as error:
            raise UserError(
                f"{_place(rows)}: holds {error} in the column '{column}', but only the classes "
                f"0 to {len(own) - 1} have names. Correct the row, or the names."
            ) from error
        found.append(pa.chunked_array([pa.array(cells, part.type)]))
    return found


def _by(number: Mapping[Any, Any], cell: Any) -> Any:
    """The new number for one, or for each in a list."""
    return [_by(number, x) for x in cell] if isinstance(cell, list) else number[cell]


def _joined(parts: Sequence[Any]) -> Any:
    """The parts of a column as one; some parts may be empty and untyped."""
    import pyarrow as pa

    kind = next((part.type for part in parts if not pa.types.is_null(part.type)), parts[0].type)
    chunks = [chunk for part in parts for chunk in part.cast(kind).chunks] if len(parts) > 1 else []
    return pa.chunked_array(chunks, kind) if chunks else parts[0]


def _files(rows: Rows, column: str, several: bool) -> list[Any]:
    """The cells of a column of files: entries, paths, or None if there is neither.

    For lists of files: entries, tuples of paths if there are no bytes at all, or None.

    Args:
        rows: The table.
        column: Its column.
        several: Whether there are more tables, perhaps in other folders, so that paths must be
            absolute.
    """
    from pyarrow import compute

    if rows.complete(column):
        return [Entry(rows, column, row) for row in range(len(rows))]
    whole = rows.path.parent.absolute() if several and rows.path else None
    found: list[Any] = []
    for first, batch in rows.batches([column], 0):
        cells = batch.column(column)
        if not is_list(cells.type):
            for row, (here, path) in enumerate(_held(cells, whole), first):
                found.append(Entry(rows, column, row) if here else path or None)
            continue
        held = iter(_held(compute.list_flatten(cells), whole))
        for row, count in enumerate(compute.list_value_length(cells).to_pylist(), first):
            own = list(islice(held, count or 0))
            paths = tuple(path for _, path in own if path)
            found.append(Entry(rows, column, row) if any(x for x, _ in own) else paths or None)
    return found


def _held(cells: Any, whole: Path | None) -> list[tuple[bool, str | None]]:
    """Whether each file has bytes, and its path.

    Args:
        cells: Arrow's cells.
        whole: The folder that paths are relative to, if they are to be absolute.
    """
    import pyarrow as pa
    from pyarrow import compute

    fields = [field.name for field in cells.type] if pa.types.is_struct(cells.type) else []
    has, paths = [False] * len(cells), [None] * len(cells)
    if not fields or "bytes" in fields:
        stored = compute.struct_field(cells, "bytes") if fields else cells
        sizes = compute.binary_length(stored.cast(pa.large_binary()))
        has = [bool(size) for size in sizes.to_pylist()]
    if "path" in fields:
        paths = compute.struct_field(cells, "path").to_pylist()
    if whole:
        paths = [path and str(whole / path) for path in paths]
    return list(zip(has, paths, strict=True))


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What the library `datasets` records in a file about each column; empty if nothing."""
    try:
        found = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in found.items() if isinstance(about, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _class_names(feature: Mapping[str, Any]) -> list[str]:
    """Class names of a column of class numbers, or of lists of them; none for any other."""
    inner = _item(feature)
    if inner is not feature:
        return _class_names(inner)
    is_class = feature.get("_type") == "ClassLabel"
    return list(map(str, feature.get("names") or [])) if is_class else []


def _item(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    """The feature of a list's items; any other feature itself."""
    inner = feature.get("feature")
    return inner if feature.get("_type") in _LISTS and isinstance(inner, dict) else feature


def _indices(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """The columns that pandas marks as an index; a range is stored as its ends, not as a column."""
    try:
        declared = json.loads((metadata or {})[b"pandas"])["index_columns"]
    except (ValueError, KeyError, TypeError):
        return []
    return [name.strip() for name in declared if isinstance(name, str)]


def _place(rows: Rows) -> str:
    return str(rows.path or "a split")
