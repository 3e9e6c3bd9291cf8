"""Reads the next batch while the current one is in use."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader

from evenly.data import Batch


class Ahead(DataLoader[Batch]):
    """A loader of streamed data that has the next batch decoded in the meantime.

    The batches and their random draws are those of a `DataLoader`.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()  # here, since it draws from the global stream
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = thread.submit(next, batches, None)
                yield batch
