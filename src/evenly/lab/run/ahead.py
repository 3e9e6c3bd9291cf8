"""Batches that are read while the one before them is worked on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader

from evenly.data import Batch


class Ahead(DataLoader[Batch]):
    """A loader of data that are streamed: it has the next batch decoded in the meantime.

    The batches, and what is drawn for them, are those of a `DataLoader`.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()  # here, as it draws from the global stream
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = thread.submit(next, batches, None)
                yield batch
