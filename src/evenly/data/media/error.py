"""Files of sound and pictures, on the disk or in memory, and what is wrong with one."""

from io import BufferedReader, BytesIO
from pathlib import Path

from evenly.errors import UserError

File = Path | bytes
"""A file by its path, or its bytes. What kind of file it is is found out from what it holds."""


class MediaError(UserError):
    """A media file that cannot be used, with the reason in one sentence.

    Attributes:
        name: Of the file.
        reason: What was found, without the name.
    """

    def __init__(self, file: File | str, reason: str) -> None:
        self.name, self.reason = file if isinstance(file, str) else named(file), reason
        super().__init__(self.name, reason)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class NoStream(MediaError):
    """A media file that is whole, but holds no such sound or pictures."""


def named(file: File) -> str:
    """What messages call a file."""
    return str(file) if isinstance(file, Path) else f"a file in memory of {len(file):,} bytes"


def check_file(file: File) -> None:
    """Raises `MediaError` if there is no file, or nothing in it."""
    if isinstance(file, Path) and not file.exists():
        raise MediaError(file, "file not found")
    if not file if isinstance(file, bytes) else file.is_file() and not file.stat().st_size:
        raise MediaError(file, "the file is empty")


def opened(file: File) -> BytesIO | BufferedReader:
    """A file to read from.

    Raises:
        MediaError: If there is none, or nothing in it.
    """
    check_file(file)
    return BytesIO(file) if isinstance(file, bytes) else file.open("rb")
