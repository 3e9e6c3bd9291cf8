"""Files of sound and pictures, on disk or in memory, and their errors."""

from io import BufferedReader, BytesIO
from pathlib import Path

from evenly.errors import UserError

File = Path | bytes
"""A file by its path, or its bytes. Its content determines its kind."""


class MediaError(UserError):
    """A media file that cannot be used, with the reason in one sentence.

    Attributes:
        name: Name of the file.
        reason: What is wrong, without the name.
    """

    def __init__(self, file: File | str, reason: str) -> None:
        self.name, self.reason = file if isinstance(file, str) else named(file), reason
        super().__init__(self.name, reason)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class NoStream(MediaError):
    """A media file that is intact, but has no such sound or pictures."""


def named(file: File) -> str:
    """The name of a file in messages."""
    return str(file) if isinstance(file, Path) else f"a file in memory of {len(file):,} bytes"


def check_file(file: File) -> None:
    """Raises `MediaError` if the file does not exist or is empty."""
    if isinstance(file, Path) and not file.exists():
        raise MediaError(file, "file not found")
    if not file if isinstance(file, bytes) else file.is_file() and not file.stat().st_size:
        raise MediaError(file, "the file is empty")


def opened(file: File) -> BytesIO | BufferedReader:
    """A file to read from.

    Raises:
        MediaError: If it does not exist or is empty.
    """
    check_file(file)
    return BytesIO(file) if isinstance(file, bytes) else file.open("rb")
