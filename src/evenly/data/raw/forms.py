"""The forms that a table may have on disk."""

from pathlib import Path

from evenly.data.catalogue import PACKED
from evenly.data.raw.arrow import saved_files, shard_columns
from evenly.data.raw.columns import Columns, csv_columns
from evenly.data.raw.folders import MEDIA, METADATA, described_columns, media_columns
from evenly.data.raw.splits import check_one_set, named_splits
from evenly.data.raw.webdataset import shard_paths, tar_columns
from evenly.errors import UserError, UserFileNotFoundError

_ROWS = (".parquet", ".arrow", ".feather", ".tar")
"""Endings of files that hold many rows each."""
_LINES = (".jsonl", ".ndjson")


def read_columns(path: Path) -> Columns:
    """The columns of a table in any supported form.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a table.
    """
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() == ".tar":
        return tar_columns(path, shard_paths(path))
    if path.name.lower().endswith(PACKED):
        raise UserError(
            f"{path}: is compressed, so that no place in it can be read alone. Unpack it to a .tar "
            "file first, as gunzip does."
        )
    if not path.is_file():
        raise UserFileNotFoundError(f"{path}: there is no such file. Check the path.")
    is_csv = path.suffix.lower() not in (*_ROWS, *_LINES)
    return csv_columns(path) if is_csv else shard_columns(path, [path])


def _folder(path: Path) -> Columns:
    """The columns of the files in a folder and its subfolders."""
    if saved := saved_files(path):
        return shard_columns(path, *saved)
    files = [file for file in sorted(path.rglob("*")) if _is_shown(file.relative_to(path))]
    lines = [file for file in files if file.suffix.lower() in _LINES]
    files = [file for file in files if file.suffix.lower() in (*_ROWS, *MEDIA) or _is_about(file)]
    rows = {end: found for end in _ROWS if (found := [f for f in files if f.suffix.lower() == end])}
    if len(rows) > 1:
        raise UserError(
            f"{path}: holds both {' and '.join(rows)} files. Give a folder with one kind, or one "
            "of the files."
        )
    for found in rows.values():
        check_one_set(path, found)
    if ".tar" in rows:
        return tar_columns(path, rows[".tar"])
    for found in rows.values():
        return shard_columns(path, found, named_splits(path, found))
    media = [file for file in files if file.suffix.lower() in MEDIA]
    if about := [file for file in files if _is_about(file)]:
        return described_columns(path, about, media)
    if media:
        return media_columns(path, media)
    if lines:
        check_one_set(path, lines)
        return shard_columns(path, lines, named_splits(path, lines))
    raise UserError(
        f"{path}: holds no .parquet, .arrow, .feather, .jsonl or .tar files, nor pictures, sounds "
        "or clips, and is no finished store. Give the folder that they are in, or a table."
    )


def _is_shown(file: Path) -> bool:
    return not any(part.startswith(".") for part in file.parts)


def _is_about(file: Path) -> bool:
    return file.name.lower() in METADATA
