"""The forms in which a table may lie on the disk."""

from pathlib import Path

from evenly.data.catalogue import PACKED
from evenly.data.raw.arrow import shard_columns
from evenly.data.raw.columns import Columns, csv_columns
from evenly.data.raw.splits import named_splits
from evenly.data.raw.webdataset import shard_paths, tar_columns
from evenly.errors import UserError, UserFileNotFoundError


def read_columns(path: Path) -> Columns:
    """The columns of a table: a CSV, a Parquet file, WebDataset's archives, or a folder of such.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no table.
    """
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() == ".tar":
        return tar_columns(path, shard_paths(path))
    if path.name.lower().endswith(PACKED):
        raise UserError(
            f"{path}: is compressed, so that no place in it can be read alone. Unpack it to a .tar "
            f"file: gunzip {path.name}"
        )
    if not path.is_file():
        raise UserFileNotFoundError(f"{path}: there is no such file. Check the path.")
    return shard_columns(path, [path]) if path.suffix.lower() == ".parquet" else csv_columns(path)


def _folder(path: Path) -> Columns:
    """The columns of the files in a folder, and in the folders within."""
    for ending in (".parquet", ".arrow"):
        if files := seen(path, (ending,)):
            return shard_columns(path, files, named_splits(path, files))
    if files := seen(path, (".tar",)):
        return tar_columns(path, files)
    raise UserError(
        f"{path}: holds no .parquet, .arrow or .tar files, and is no finished store. Give the "
        "folder that they are in."
    )


def seen(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files in a folder, and in those within, of some endings; no hidden ones, in order."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in endings)
    shown = (f for f in found if not any(p.startswith(".") for p in f.relative_to(folder).parts))
    return sorted(file for file in shown if file.is_file())
