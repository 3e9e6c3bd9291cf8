"""The forms in which a table may lie on the disk."""

from pathlib import Path

from evenly.data.raw.arrow import shard_columns
from evenly.data.raw.columns import Columns, csv_columns
from evenly.data.raw.splits import named_splits
from evenly.errors import UserError, UserFileNotFoundError


def read_columns(path: Path) -> Columns:
    """The columns of a table: a CSV, a Parquet file, or a folder of Parquet files.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no table.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"{path}: there is no such file. Check the path.")
    return shard_columns(path, [path]) if path.suffix.lower() == ".parquet" else csv_columns(path)


def _folder(path: Path) -> Columns:
    """The columns of the files in a folder, and in the folders within."""
    for ending in (".parquet", ".arrow"):
        if files := seen(path, (ending,)):
            return shard_columns(path, files, named_splits(path, files))
    raise UserError(f"{path}: holds no Parquet files. Give the folder that they are in.")


def seen(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files in a folder, and in those within, of some endings; no hidden ones, in order."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in endings)
    shown = (f for f in found if not any(p.startswith(".") for p in f.relative_to(folder).parts))
    return sorted(file for file in shown if file.is_file())
