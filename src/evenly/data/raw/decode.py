"""Samples of raw files as arrays, decoded by several processes."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from evenly.data.dataset import Padded
from evenly.data.media.error import NoStream
from evenly.data.numbers import native, spelt, unusable
from evenly.data.raw.readers import Reader, Text
from evenly.data.raw.rows import Part, Turn
from evenly.data.raw.source import Sample, Source
from evenly.errors import UserRuntimeError
from evenly.pool import Lost, pool

Decoded = dict[str, "np.ndarray | None"] | str
"""A sample's array by modality, None if missing; or what is wrong with the sample."""


def decoded(source: Source, waiting: Sequence[int], workers: int) -> Iterator[tuple[int, Decoded]]:
    """The arrays of the samples, in order, decoded in advance by other processes."""
    for reader in source.readers.values():
        if isinstance(reader, Text):
            reader.check()
    if not waiting:
        return
    processes = min(workers, len(waiting))
    ahead: deque[tuple[int, Future[Decoded]]] = deque()
    left, turn = iter(waiting), Turn()
    with pool(partial(read_alone, dict(source.readers)), processes, __name__) as submit:
        while True:
            while len(ahead) < 4 * workers and (number := next(left, None)) is not None:
                ahead.append((number, submit(turn(source.samples[number].cells))))
            if not ahead:
                return
            number, future = ahead.popleft()
            try:
                yield number, future.result()
            except Lost as error:
                raise UserRuntimeError(
                    f"{source.name}: the process that decoded '{source.samples[number].name}' "
                    "was killed, perhaps out of memory. Run the same command again to "
                    "continue, with fewer --workers."
                ) from error


def read_alone(readers: Mapping[str, Reader], cells: Mapping[str, Any]) -> Decoded:
    """Like `read`, in a process that has a core to itself."""
    _keep_to_one_thread()
    return read(readers, cells)


@cache
def _keep_to_one_thread() -> None:
    import cv2
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(1)
    threadpool_limits(1)


def read(readers: Mapping[str, Reader], cells: Mapping[str, Any]) -> Decoded:
    """The arrays of one sample, or what is wrong with it."""
    found: dict[str, np.ndarray | None] = dict.fromkeys(readers)
    lacking = []
    for name, reader in readers.items():
        if (cell := cells.get(name)) is None:
            continue
        try:
            found[name] = _stored(reader(cell.read() if isinstance(cell, Part) else cell))
        except NoStream as error:
            lacking.append(f"{name}: {error}")
        except ValueError as error:
            return f"{name}: {error}"
        except Exception as error:  # whatever one file causes, the others are read
            return f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
    if all(value is None for value in found.values()):
        return "; ".join(lacking) or "has no modality"
    return found


def _stored(values: np.ndarray | None) -> np.ndarray | None:
    """Numbers in the form of a store: finite, in native bytes, not in double precision."""
    if values is None:
        return None
    found = native(values)
    bad = unusable(values)
    if bad.any():
        raise ValueError(f"holds {spelt(values[bad][0])}")
    return found.astype(np.float32) if found.dtype == np.float64 else found


def batches(
    source: Source,
    size: int,
    workers: int,
    broken: list[tuple[str, str]],
    wanted: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[tuple[list[Sample], dict[str, Tensor | Padded], dict[str, Tensor]]]:
    """The samples of a data set, decoded on demand; nothing is stored.

    Args:
        source: The data set.
        size: Samples in a batch, except the last.
        workers: Processes that decode.
        broken: Receives the names of samples left out for missing or broken files, and what is
            wrong.
        wanted: Shape of a sample by modality; by default the first sample's. For sequences and
            texts of unequal lengths, the first number is arbitrary.

    Returns:
        The samples, their inputs by modality, and which of them have it. A modality that none of
        them has is included, unless no sample of the data set has it.
    """
    several: list[tuple[Sample, dict[str, np.ndarray | None]]] = []
    blank = cache(partial(_blank, source))
    shapes = {
        name: (_row(source.readers[name], tuple(shape)), None)
        for name, shape in (wanted or {}).items()
    }
    for number, found in decoded(source, range(len(source.samples)), workers):
        sample = source.samples[number]
        wrong = found if isinstance(found, str) else unlike(source.readers, found, shapes)
        if wrong or isinstance(found, str):
            broken.append((sample.name, wrong))
        else:
            several.append((sample, found))
        if len(several) == size or (several and number + 1 == len(source.samples)):
            yield _batch(source.readers, several, blank)
            several = []


def unlike(
    readers: Mapping[str, Reader],
    found: Mapping[str, np.ndarray | None],
    first: dict[str, Any],
) -> str:
    """How a sample differs from earlier ones; empty if it does not.

    Args:
        readers: Readers by modality.
        found: The sample's array by modality.
        first: Shape and type of a row or step by modality, if known; the first sample fills in the
            rest.
    """
    new = {}
    for name, value in found.items():
        if value is None:
            continue
        shape = _row(readers[name], value.shape)
        wanted, dtype = first.get(name, (shape, None))
        if wanted != shape or dtype not in (None, value.dtype):
            each = f"({', '.join(['any', *map(str, wanted)])})" if readers[name].ragged else wanted
            of = f" of {dtype}" if dtype else ""
            hint = ""
            if readers[name].kind == "vector" and dtype in (None, value.dtype):
                hint = "; sequences of unequal lengths are read by array(kind=sequence,ragged=true)"
            return (
                f"{name}: has the shape {value.shape} of {value.dtype}, but all samples must "
                f"have {each}{of}{hint}"
            )
        new[name] = shape, value.dtype
    first |= new
    return ""


def _row(reader: Reader, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The part of a sample's shape that all samples share."""
    if reader.kind == "text":
        return ()
    return shape[1:] if reader.ragged else shape


def _blank(source: Source, name: str) -> np.ndarray | None:
    """The row for samples that lack a modality, shaped like the first sample that has it."""
    reader, turn = source.readers[name], Turn()
    for sample in source.samples:
        found = read({name: reader}, turn({name: sample.cells.get(name)}))
        if not isinstance(found, str) and (value := found[name]) is not None:
            return np.zeros_like(value[:0] if reader.ragged else value)
    return None


def _batch(
    readers: Mapping[str, Reader],
    several: Sequence[tuple[Sample, dict[str, "np.ndarray | None"]]],
    blank_of: Callable[[str], np.ndarray | None],
) -> tuple[list[Sample], dict[str, Tensor | Padded], dict[str, Tensor]]:
    inputs: dict[str, Tensor | Padded] = {}
    present = {}
    for name, reader in readers.items():
        values = [found[name] for _, found in several]
        there = [value for value in values if value is not None]
        blank = blank_of(name) if len(there) < len(values) else None
        if not there and blank is None:
            continue
        filled = [torch.from_numpy(blank if value is None else value) for value in values]
        if reader.ragged:
            length = torch.tensor([len(value) for value in filled])
            inputs[name] = Padded(pad_sequence(filled, batch_first=True), length)
        else:
            inputs[name] = torch.stack(filled)
        if len(there) < len(values):
            present[name] = torch.tensor([value is not None for value in values])
    return [sample for sample, _ in several], inputs, present


def listed(broken: Sequence[tuple[str, str]]) -> str:
    """The first unusable samples, one per line.

    Args:
        broken: Their names, and what is wrong with each.
    """
    lines = [f"  {name}: {reason}" for name, reason in broken]
    more = [f"  and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "\n".join([*lines[:10], *more])
