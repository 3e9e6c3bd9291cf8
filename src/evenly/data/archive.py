"""The arrays in an `.npz` file, each read only if it matches its header."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from evenly.data.numbers import Array
from evenly.errors import UserError, UserFileNotFoundError

_MOST = 1032
"""Most bytes that one byte can stand for under NumPy's compression."""
_NO_NPZ = "is not a complete .npz file. Write it with numpy.savez."
_FOREIGN = {
    ".npy": "is a single array. Write labels, split and modalities to one .npz file with save_npz.",
    ".mat": (
        "is a MATLAB file. Write its arrays to an .npz file in Python: found = "
        "scipy.io.loadmat(FILE), or h5py.File(FILE) for version 7.3, and then evenly.data.save_npz("
        "NEW, found['labels'].ravel(), found['split'].ravel(), {'audio': found['audio']})."
    ),
}


def read_archive(path: Path) -> dict[str, Array]:
    """The arrays by name, without any Python objects.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is another kind of file, or damaged.
    """
    if path.is_dir():
        raise wrong(path, "is a folder. Give the path of an .npz file.")
    if not path.exists():
        raise UserFileNotFoundError(f"{path}: there is no such file. Check the path.")
    if not zipfile.is_zipfile(path):
        raise wrong(path, _FOREIGN.get(path.suffix.lower(), _NO_NPZ))
    with _reading(path, "its directory"):
        archive = zipfile.ZipFile(path)
    with archive:
        members = archive.infolist()
        names = [info.filename.removesuffix(".npy") for info in members]
        if len(set(names)) < len(names):
            raise wrong(path, "holds two arrays with the same name. Write it again.")
        return {
            name: _array(path, archive, info, name)
            for name, info in zip(names, members, strict=True)
        }


def wrong(path: Path, what: str) -> UserError:
    """The error for a file, on one line, whatever names it contains."""
    return UserError(f"{path}: {' '.join(what.split())}")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise wrong(path, f"{what} does not fit into memory.") from error
    except Exception as error:  # damaged bytes can cause any error in readers
        raise wrong(path, f"{what} is damaged ({error}). Write it again.") from error


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Array:
    """One array, if its length matches its header and the directory."""
    if not info.filename.endswith(".npy"):
        raise wrong(path, f"'{name}' is not an array. Write the file with numpy.savez.")
    with _reading(path, f"array '{name}'"), archive.open(info) as file:
        shape, dtype = _header(file)
        length = info.file_size - file.tell()
    if dtype.hasobject:
        raise wrong(
            path,
            f"array '{name}' holds pickled Python objects, which could run code and are "
            "never read. Save numbers, or strings as a fixed-width array.",
        )
    with _reading(path, f"array '{name}'"), archive.open(info) as file:
        if prod(shape) * dtype.itemsize != length or not _fits(info, path):
            raise EOFError(f"{shape} of {dtype} is not what {length:,} bytes can hold")
        found: Array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # reading to the end compares the checksum
    return found


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, from the start of its file."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the format, which plain arrays do not have")
    shape, _, dtype = read[version](file)
    return shape, dtype


def _fits(info: zipfile.ZipInfo, path: Path) -> bool:
    """Whether the bytes that a file has for an array can hold its length."""
    most = 1 if info.compress_type == zipfile.ZIP_STORED else _MOST
    inside = info.compress_size <= path.stat().st_size
    return inside and info.file_size <= most * (info.compress_size + 1)
