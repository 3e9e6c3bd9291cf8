"""Decides which process owns a run's folder when one that seemed gone wakes up."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from evenly.errors import UserRuntimeError
from evenly.files import remove_leftovers, replacing, write_text


class TakenOver(UserRuntimeError):
    """Another process does this run now, since this one seemed gone."""


class Hold:
    """Whether this process is the last that began to work in a run's folder.

    A process that was suspended and seemed gone must not write when it wakes: its older weights
    would overwrite those of the run that continued without it.
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
        """Like `files.replacing`, if this process still owns the folder."""
        with replacing(path) as temporary:
            yield temporary
            self.check()

    def end(self) -> None:
        """Leaves the folder, whose run is finished."""
        self._path.unlink(missing_ok=True)
