"""Writes that a kill cannot leave half finished."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from evenly.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from sqlalchemy.engine import URL

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of full disks, quotas and `ulimit -f`."""


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Names the file being written in errors that do not, such as that of a full disk.

    Args:
        path: The name that the user knows.
        temporary: The file's name while it is unfinished.
    """
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None and not isinstance(found, OSError):
            found = found.__context__  # torch hides the cause behind its own errors
        if found is None or found.errno is None:
            raise
        # Our own sentence about another error says more than that error.
        if found is not error and found.errno not in FULL:
            raise
        if found.filename is not None and str(temporary) not in (found.filename, found.filename2):
            raise
        raise OSError(found.errno, found.strerror, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, moved to it when the block ends without an error.

    A link stays a link, and its target is replaced. Pipes and devices are written to directly:
    replacing /dev/null, as root can, would take it from the whole machine.

    Raises:
        UserError: If `path` is a folder, before anything is computed for it.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give the name of a file.")
    if path.exists() and not path.is_file():
        with TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            yield made
            with path.open("wb") as file:
                file.write(made.read_bytes())
        return
    real = Path(os.path.realpath(path)) if path.is_symlink() else path
    real.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since writers such as numpy's depend on it. Processes on two machines
    # that share a folder may have the same number.
    temporary = real.with_name(f".{real.stem}.{token_hex(4)}{real.suffix}")
    try:
        with naming(path, temporary):
            yield temporary
        os.replace(temporary, real)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keeps other commands from working in a folder until the block ends, however it ends.

    Args:
        folder: Created if needed, and removed again if nothing is written into it.
        shared: Whether others that also share it may hold it at the same time.

    Raises:
        ValueError: If another command holds it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _folder_locked(folder, shared):
            yield
    finally:
        for place in made:
            with suppress(OSError):  # it is not empty
                place.rmdir()


@contextmanager
def _folder_locked(folder: Path, shared: bool) -> Iterator[None]:
    if sys.platform == "win32":  # which opens no folders
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not locked(handle, shared=shared):
            raise UserError(
                f"{folder}: another command is at work in this folder. Wait for its end, or "
                "choose another folder with --out."
            )
        yield
    finally:
        os.close(handle)


def locked(file: int | IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Keeps other processes from locking an open file or folder until it is closed.

    Windows, and file systems without locks, lock nothing.

    Args:
        file: The open file, or its descriptor.
        shared: Whether others that also share it may lock it at the same time.
        wait: Whether to wait for others.

    Returns:
        Whether no other process has locked it.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with suppress(OSError):  # some file systems have no locks
        try:
            fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that a process left in a folder when it was killed."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}(\.\w+)?", path.name):
            path.unlink()


def sha256(path: Path) -> str:
    """The checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_written(path: Path, known: Mapping[str, str]) -> None:
    """Raises if a file of a run is not as the run wrote it.

    Args:
        path: Path of the file.
        known: Checksums of the folder's files by name, from `sha256`.
    """
    if path.name not in known:
        return
    if not path.is_file():
        raise UserError(f"{path} is missing. {remedy(path)}")
    if sha256(path) != known[path.name]:
        raise UserError(f"{path} is damaged: it is not as the run wrote it. {remedy(path)}")


def remedy(path: Path) -> str:
    """What to do about a damaged file of a run."""
    return f"Bring back the file, or remove {path.parent}, and the run's command makes it again."


@contextmanager
def reading(path: Path, what_to_do: str = "") -> Iterator[None]:
    """Names the file in any error that reading a damaged one causes.

    Args:
        path: Path of the file.
        what_to_do: What the user can do; by default, the advice for files of a run.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # each reader raises its own kinds
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} is damaged ({said[:200]}). {what_to_do or remedy(path)}"
        ) from error


def read_npz(path: Path) -> dict[str, "np.ndarray"]:
    """The arrays of an .npz file that a run wrote, each checked by its checksum.

    Unlike `numpy.load`, it leaves nothing open if the file is damaged.
    """
    import numpy as np

    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                found[name.removesuffix(".npy")] = np.lib.format.read_array(
                    file, allow_pickle=False
                )
                file.read(1)  # reading to the end compares the checksum
    return found


def write_sealed(path: Path, found: Mapping[str, Any]) -> None:
    """Writes JSON values with their checksum, whole or not at all."""
    write_text(path, json.dumps({**found, "sha256": _seal(found)}, indent=2) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        ValueError: If it has changed since.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no mapping")
        # A file written by hand has no checksum.
        if found.pop("sha256", _seal(found)) != _seal(found):
            raise ValueError("it is not as the run wrote it")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). {remedy(path)}") from error
    return found


def _seal(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV whole or not at all; cells that a row lacks stay empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def file_address(path: Path) -> "URL":
    """The address of an SQLite database in a file, whatever characters its path has."""
    from sqlalchemy.engine import URL

    # An SQLite URI with every special character escaped, even the slash: SQLAlchemy 2.0 and 2.1
    # differ in what they unquote, and MLflow creates the folders up to the last slash.
    place = f"file:{quote(bytes(path.absolute()), safe='')}"
    return URL.create("sqlite", database=place, query={"uri": "true"})
