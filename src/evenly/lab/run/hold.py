"""Whose a run's folder is, when a process that seemed to be gone wakes up."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from evenly.errors import UserRuntimeError
from evenly.files import remove_leftovers, replacing, write_text


class TakenOver(UserRuntimeError):
    """Another process does this run: this one seemed to be gone."""


class Hold:
    """Of the processes that work in a run's folder, whether this is the last that began.

    One that was frozen, and thought to be gone, must write nothing when it wakes: the run that
    went on without it would end with its older weights.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._mark = folder / "process.txt", token_hex(8)

    def begin(self) -> None:
        """Takes the folder over."""
        write_text(self._path, self._mark)
        remove_leftovers(self._path.parent)

    def check(self) -> None:
        """Raises if another process has taken it over."""
        if not self._path.exists() or self._path.read_text(encoding="utf-8") != self._mark:
            raise TakenOver(f"{self._path.parent}: another process has taken over this run.")

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """As `files.replacing`, if the folder is still this process's."""
        with replacing(path) as temporary:
            yield temporary
            self.check()

    def end(self) -> None:
        """Leaves the folder, whose run is finished."""
        self._path.unlink(missing_ok=True)
