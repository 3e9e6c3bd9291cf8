"""What is wrong with a file of sound or pictures."""

from pathlib import Path


class MediaError(ValueError):
    """A media file that cannot be used, with the reason in one sentence.

    Attributes:
        path: Of the file.
        reason: What was found, without the path.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class NoStream(MediaError):
    """A media file that is whole, but holds no such sound or pictures."""


def check_file(path: Path) -> None:
    """Raises `MediaError` if there is no file, or nothing in it."""
    if not path.exists():
        raise MediaError(path, "there is no such file")
    if path.is_file() and not path.stat().st_size:
        raise MediaError(path, "the file is empty")
