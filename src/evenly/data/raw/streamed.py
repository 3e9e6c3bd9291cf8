"""Modalities that stay in shared files, and are decoded whenever they are read.

The same single-threaded processes decode as for a store, so a sample's values are the same bit for
bit.
"""

import os
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from evenly.child import cores
from evenly.data.dataset import Ragged, Streamed
from evenly.data.raw import decode
from evenly.data.raw.readers import READERS, Reader
from evenly.data.raw.rows import Part
from evenly.errors import UserError, UserRuntimeError
from evenly.pool import Lost, pool
from evenly.spec import made, parse

INDEX = ("shard", "start", "size", "checksum")
"""What is stored for each sample of a modality: the number of its shard (-1 for none), its first
byte there, the number of bytes, and their CRC-32."""


@dataclass(frozen=True, slots=True, repr=False)
class Sealed(Part):
    """Bytes within a file, with a checksum."""

    checksum: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            ValueError: If they are gone or have changed.
        """
        try:
            # Not super(), which fails in dataclasses with slots (Python's issue 90562).
            found = Part.read(self)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from error
        if zlib.crc32(found) != self.checksum:
            raise UserError(f"{self.path}: has changed since it was prepared")
        return found


class Decoders:
    """Processes that decode samples; they start with the first sample.

    The workers of a `DataLoader`, which must not start processes, decode their samples themselves.
    """

    def __init__(
        self, readers: Mapping[str, Reader], where: object, count: int | None = None
    ) -> None:
        """Prepares them.

        Args:
            readers: Readers by modality.
            where: The store, for messages.
            count: Number of processes; by default as many as this process has threads, or with a
                GPU its share of the cores.
        """
        self._readers, self._where, self._count = dict(readers), where, count
        self._submit: Any = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_submit": None}

    def __call__(self, name: str, cells: Sequence[Part]) -> list[np.ndarray]:
        """The arrays of some files of a modality.

        Raises:
            ValueError: If one is gone or has changed.
        """
        if current_process().daemon:
            return [self._array(name, self._read({name: cell})) for cell in cells]
        if self._process != os.getpid():  # not those of the process that forked this one
            self._start()
        futures = [self._submit({name: cell}) for cell in cells]
        return [self._array(name, self._result(name, future)) for future in futures]

    @property
    def _read(self) -> Callable[[Mapping[str, Part]], decode.Decoded]:
        return partial(decode.read_alone, self._readers)

    def _start(self) -> None:
        opened = ExitStack()
        self._submit = opened.enter_context(
            pool(self._read, self._count or _share(), decode.__name__)
        )
        self._process = os.getpid()
        weakref.finalize(self, opened.close).atexit = False  # at exit the pool ends by itself

    def _result(self, name: str, future: "Future[decode.Decoded]") -> decode.Decoded:
        try:
            return future.result()
        except Lost as error:
            raise UserRuntimeError(
                f"{self._where}: a process that decoded '{name}' was killed, perhaps out of "
                "memory. Start again with fewer --threads: 'train' continues with --resume; "
                "'compare', 'tune' and 'study' continue by themselves."
            ) from error

    def _array(self, name: str, found: decode.Decoded) -> np.ndarray:
        if isinstance(found, str):
            raise UserError(
                f"{self._where}: cannot decode a streamed sample: {found}. Restore the shards as "
                "they were and check that you may read them, or remove the folder and prepare "
                "again."
            )
        value = found[name]
        assert value is not None  # otherwise an error would have been returned
        return value


def _share() -> int:
    """Number of processes that decode for this one."""
    if torch.cuda.is_available():
        return max(torch.get_num_threads(), cores() // torch.cuda.device_count())
    return torch.get_num_threads()


class InShards(Streamed):
    """A modality whose samples are parts of files."""

    def __init__(
        self,
        name: str,
        decoders: Decoders,
        shards: Sequence[str],
        index: Int[Tensor, "n 4"],
        row: tuple[int, ...],
        dtype: torch.dtype,
        length: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Stores where samples are.

        Args:
            name: Name of the modality.
            decoders: Decoders that know it.
            shards: The paths of the files.
            index: Index of each sample, see `INDEX`.
            row: The shape of a sample, or of a time step.
            dtype: Type of the values.
            length: Time steps of each sample, if lengths differ.
        """
        self.row, self.dtype, self.length = row, dtype, length
        self._name, self._decoders = name, decoders
        self._shards, self._index = shards, index

    def read(self, rows: Int[Tensor, " k"]) -> Tensor | Ragged:
        """As in `Streamed`."""
        some, place = rows.cpu().unique(return_inverse=True)
        found = self._index[some].tolist()
        there = [n for n, (shard, *_) in enumerate(found) if shard >= 0]
        cells = [
            Sealed(Path(self._shards[shard]), start, size, checksum)
            for shard, start, size, checksum in (found[n] for n in there)
        ]
        arrays = dict(zip(there, self._decoders(self._name, cells), strict=True))
        shape = self.row if self.length is None else (0, *self.row)
        blank = torch.zeros(shape, dtype=self.dtype)
        values = [torch.from_numpy(arrays[n]) if n in arrays else blank for n in range(len(found))]
        if self.length is None:
            return torch.stack(values)[place]
        length = torch.tensor([len(x) for x in values])
        start = length.cumsum(0) - length
        return Ragged(torch.cat(values), start[place], length[place])


def reader_of(text: str) -> Reader:
    """The reader that this text requests."""
    return made("reader", parse(text), READERS)
