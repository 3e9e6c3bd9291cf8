"""Rows that arrive batch by batch, kept once: in memory, or beyond a limit in a file."""

import math
import mmap
import tempfile
from typing import IO

import torch
from torch import Tensor

from evenly.errors import UserError

_CHUNK = 2**14  # rows moved at a time


class Collected:
    """Rows that end up in one tensor, without a second copy on the way.

    All batches go to one place. Keeping small tensors one by one, between large ones that a model
    frees, would fragment memory, by as much as those large ones take.

    The file is in the system's temporary folder (`tempfile.gettempdir`, which `TMPDIR` sets). It
    has no name there, so it vanishes with the last tensor on it, even if the process is killed.
    """

    def __init__(self, expected: int | None = None, memory: int | None = None) -> None:
        """Starts empty.

        Args:
            expected: The number of rows, if known.
            memory: Bytes beyond which rows go to a file; by default, they never do.
        """
        self._expected = expected or 0
        self._memory = math.inf if memory is None else memory
        self._rows: Tensor | None = None
        self._count = 0
        self._file: IO[bytes] | None = None

    def add(self, part: Tensor) -> None:
        """Adds the rows of a batch.

        Raises:
            ValueError: If their shape differs from earlier rows'.
        """
        part = part.detach()
        count = self._count + len(part)
        if self._rows is None:
            self._rows = part.new_empty(0, *part.shape[1:])
        if part.shape[1:] != self._rows.shape[1:]:
            raise UserError(
                f"Probe.features: a sample has shape {tuple(part.shape[1:])} in one batch and "
                f"{tuple(self._rows.shape[1:])} in those before. Pool features to one width."
            )
        if self._file is None:
            width = part.element_size() * math.prod(part.shape[1:])
            if max(count, self._expected) * width > self._memory:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 (`close` does it)
                self._write(self._rows[: self._count])
                self._rows = self._rows[:0].cpu()
            else:
                self._make_room(count)
                self._rows[self._count : count] = part
        if self._file is not None:
            self._write(part)
        self._count = count

    def take(self, keep: Tensor | None = None) -> Tensor:
        """The rows, or only marked ones (n); this ends the collection."""
        assert self._rows is not None
        rows = self._rows[: self._count]
        if self._file is not None:
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0)
            rows = torch.frombuffer(mapped, dtype=rows.dtype).view(-1, *rows.shape[1:])
        self.close()
        if keep is None or bool(keep.all()):
            return rows
        keep = keep.to(rows.device)  # encoders may be on several devices
        end = 0
        for part, kept in zip(rows.split(_CHUNK), keep.split(_CHUNK), strict=True):
            moved = part[kept]
            rows[end : end + len(moved)] = moved
            end += len(moved)
        return rows[:end]

    def close(self) -> None:
        """Releases the rows; a tensor that was taken keeps its own."""
        self._rows = None
        if self._file is not None:
            self._file.close()

    def _write(self, rows: Tensor) -> None:
        assert self._file is not None
        self._file.write(rows.cpu().contiguous().numpy().data)

    def _make_room(self, count: int) -> None:
        assert self._rows is not None
        if count > len(self._rows):
            more = self._rows.new_empty(
                max(self._expected, count, 2 * len(self._rows)), *self._rows.shape[1:]
            )
            more[: self._count] = self._rows[: self._count]
            self._rows = more
