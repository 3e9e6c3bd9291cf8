"""From files to a store: every sample is decoded once, by several processes.

A journal in the store's folder says which samples are in it. It is written after their values, so
that a killed run, started again, goes on where it was; a sample is never decoded twice.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, is_dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from evenly import child
from evenly.data.dataset import SPLITS, Padded, Ragged, check_classes, described
from evenly.data.raw.readers import Reader, spelled
from evenly.data.raw.source import Sample, Source
from evenly.data.store import (
    DESCRIPTION,
    RAGGED,
    Description,
    Field,
    describe,
    is_store,
    mapped,
    open_store,
    write_meta,
)

JOURNAL = "journal.jsonl"


def prepare(
    source: Source, out: Path, *, workers: int, skip_broken: bool = False, made_by: str = ""
) -> Description:
    """Decodes a data set into a store, or goes on where an earlier call stopped.

    Args:
        source: The data set.
        out: The store's folder.
        workers: Processes that decode.
        skip_broken: Leave out samples whose files are missing or broken, and say so in the
            store's notes.
        made_by: The command, to be noted down.

    Raises:
        ValueError: If files are missing or broken, with a list of them and their reasons; if the
            folder holds another store or other files; if what was written does not add up.
    """
    _check_splits(source)
    with _Journal(source, out) as journal:
        waiting = [n for n in range(len(source.samples)) if n not in journal.done]
        if not waiting and is_store(out):
            return describe(out)
        (out / DESCRIPTION).unlink(missing_ok=True)  # no store until it is whole again
        with tqdm(
            total=len(source.samples),
            initial=len(source.samples) - len(waiting),
            unit="sample",
            disable=None,
        ) as bar:
            for number, found in _decoded(source, waiting, workers):
                journal.add(number, found)
                bar.update()
        if journal.broken and not skip_broken:
            raise ValueError(_broken(source, journal.broken))
        return journal.finish(made_by)


def _check_splits(source: Source) -> None:
    for split in SPLITS:
        target = torch.tensor([s.label for s in source.samples if s.split == split])
        if not len(target):
            raise ValueError(
                f"{source.name}: no sample is in the {split} split. Training needs all of "
                f"{', '.join(SPLITS)}."
            )
        check_classes(source.name, split, target, source.classes)


Decoded = dict[str, "np.ndarray | None"] | str
"""By modality, the array of a sample, None where it is missing; or what is wrong with it."""


def _decoded(source: Source, waiting: Sequence[int], workers: int) -> Iterator[tuple[int, Decoded]]:
    """The arrays of the samples, in order, decoded ahead by other processes."""
    context = child.context(__name__)
    pool = ProcessPoolExecutor(workers, context, _begin, (dict(source.readers),))
    ahead: deque[tuple[int, Future[Decoded]]] = deque()
    left = iter(waiting)
    try:
        while True:
            while len(ahead) < 4 * workers and (number := next(left, None)) is not None:
                ahead.append((number, pool.submit(_decode, source.samples[number])))
            if not ahead:
                return
            number, future = ahead.popleft()
            try:
                yield number, future.result()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"{source.name}: a process that decoded was killed, perhaps for want of "
                    f"memory, at or soon after '{source.samples[number].name}'. The same command "
                    "goes on from there; give it fewer --workers."
                ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_readers: dict[str, Reader] = {}


def _begin(readers: dict[str, Reader]) -> None:
    """Makes a process ready to decode."""
    import cv2
    from threadpoolctl import threadpool_limits

    child.serve()
    cv2.setNumThreads(1)  # there is a process for each core
    threadpool_limits(1)
    _readers.update(readers)


def _decode(sample: Sample) -> Decoded:
    found: dict[str, np.ndarray | None] = {}
    for name, reader in _readers.items():
        cell = sample.cells.get(name)
        try:
            found[name] = None if cell is None else reader(cell)
        except ValueError as error:
            return f"{name}: {error}"
    if all(value is None for value in found.values()):
        return "has none of the modalities"
    return found


def batches(
    source: Source, size: int, workers: int
) -> Iterator[tuple[list[Sample], dict[str, Tensor | Padded], dict[str, Tensor]]]:
    """The samples of a data set, decoded as they are asked for; nothing is stored.

    Args:
        source: The data set.
        size: Samples in a batch, but for the last.
        workers: Processes that decode.

    Returns:
        The samples, their inputs by modality, and which of them have it.

    Raises:
        ValueError: If a sample's files are missing or broken.
    """
    several: list[tuple[Sample, dict[str, np.ndarray | None]]] = []
    for number, found in _decoded(source, range(len(source.samples)), workers):
        if isinstance(found, str):
            raise ValueError(f"{source.name}: '{source.samples[number].name}': {found}")
        several.append((source.samples[number], found))
        if len(several) == size or number + 1 == len(source.samples):
            yield _batch(source.readers, several)
            several = []


def _batch(
    readers: Mapping[str, Reader], several: Sequence[tuple[Sample, dict[str, "np.ndarray | None"]]]
) -> tuple[list[Sample], dict[str, Tensor | Padded], dict[str, Tensor]]:
    inputs: dict[str, Tensor | Padded] = {}
    present = {}
    for name, reader in readers.items():
        values = [found[name] for _, found in several]
        there = [value for value in values if value is not None]
        if not there:
            continue
        blank = np.zeros_like(there[0][:0] if reader.ragged else there[0])
        filled = [torch.from_numpy(blank if value is None else value) for value in values]
        if reader.ragged:
            length = torch.tensor([len(value) for value in filled])
            inputs[name] = Padded(pad_sequence(filled, batch_first=True), length)
        else:
            inputs[name] = torch.stack(filled)
        if len(there) < len(values):
            present[name] = torch.tensor([value is not None for value in values])
    return [sample for sample, _ in several], inputs, present


def _broken(source: Source, broken: dict[int, str]) -> str:
    listed = [f"  {source.samples[n].name}: {broken[n]}" for n in sorted(broken)[:10]]
    more = [f"  and {len(broken) - 10} more"] if len(broken) > 10 else []
    lines = "\n".join([*listed, *more])
    return (
        f"{source.name}: {len(broken)} of {len(source.samples)} samples cannot be used:\n{lines}\n"
        "Mend these files and run the same command again, which decodes nothing else anew; or "
        "leave the samples out with --skip-broken."
    )


@dataclass
class _Part:
    """One modality's file while it grows."""

    reader: Reader
    path: Path
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    used: int = 0  # time steps, of sequences of unequal lengths


class _Journal:
    """The store while it is made."""

    def __init__(self, source: Source, out: Path) -> None:
        self.source, self.out = source, out
        self.done: set[int] = set()
        self.broken: dict[int, str] = {}
        self.places: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in source.readers}
        self.parts = {
            name: _Part(reader, out / f"{name}.memmap") for name, reader in source.readers.items()
        }

    def __enter__(self) -> "_Journal":
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _open(self) -> None:
        path = self.out / JOURNAL
        head = {"prepares": _fingerprint(self.source)}
        self.out.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            if not lines or json.loads(lines[0]) != head:
                raise ValueError(
                    f"{self.out}: holds another store, or one of other files or settings, that "
                    "is being made. Choose another --out, or remove the folder."
                )
            for line in lines[1:]:
                if line.endswith("\n"):  # else it was cut off by a kill
                    self._take_up(json.loads(line))
            self._cut(path, lines)
        elif any(self.out.iterdir()):
            raise ValueError(
                f"{self.out}: is not empty, and nothing was begun there that could be continued. "
                "Choose another --out, or remove the folder."
            )
        else:
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")

    def _cut(self, path: Path, lines: Sequence[str]) -> None:
        """Removes a last line that a kill cut off."""
        if lines and not lines[-1].endswith("\n"):
            with path.open("r+b") as file:
                file.truncate(sum(len(line.encode()) for line in lines[:-1]))

    def _take_up(self, line: dict[str, Any]) -> None:
        number = line["sample"]
        if "broken" in line:
            return  # tried again, as the file may have been mended
        for name, place in line["at"].items():
            part = self.parts[name]
            start, length, shape, dtype = place
            part.shape, part.dtype = tuple(shape), np.dtype(dtype)
            part.used = max(part.used, start + length)
            self.places[name][number] = (start, length)
        self.done.add(number)

    def add(self, number: int, found: Decoded) -> None:
        """Writes one sample, then notes that it is written."""
        if not isinstance(found, str):
            found = self._written(number, found)
        if isinstance(found, str):
            self.broken[number] = found
            line: dict[str, Any] = {"sample": number, "broken": found}
        else:
            self.done.add(number)
            line = {"sample": number, "at": found}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.file.flush()

    def _written(self, number: int, found: dict[str, np.ndarray | None]) -> Any:
        """Where each array was put; or what is wrong with one, and then nothing is."""
        values = {name: np.ascontiguousarray(v) for name, v in found.items() if v is not None}
        for name, value in values.items():
            part = self.parts[name]
            shape = value.shape[1:] if part.reader.ragged else value.shape
            if part.shape is None:
                part.shape, part.dtype = shape, value.dtype
            if (shape, value.dtype) != (part.shape, part.dtype):
                return (
                    f"{name}: has the shape {value.shape} of {value.dtype}, where the first sample "
                    f"has {part.shape} of {part.dtype}"
                )
        places = {}
        for name, value in values.items():
            part = self.parts[name]
            length = len(value) if part.reader.ragged else 1
            start = part.used if part.reader.ragged else number
            row = value.nbytes // max(length, 1)
            with part.path.open("r+b" if part.path.exists() else "w+b") as file:
                file.seek(start * row)
                file.write(value.tobytes())
            part.used = max(part.used, start + length)
            self.places[name][number] = (start, length)
            assert part.shape is not None
            assert part.dtype is not None
            places[name] = (start, length, list(part.shape), part.dtype.str)
        return places

    def finish(self, made_by: str) -> Description:
        """Checks the counts, writes the small arrays and, last of all, the description."""
        source, count = self.source, len(self.source.samples)
        if left := count - len(self.done) - len(self.broken):
            raise RuntimeError(
                f"{self.out}: {left} samples are neither written nor broken. Remove the folder "
                "and prepare again."
            )
        # A sample that is left out keeps its empty row, and belongs to no split.
        split = np.full(count, len(SPLITS), np.uint8)
        for number in self.done:
            split[number] = SPLITS.index(source.samples[number].split)
        small: dict[str, np.ndarray] = {"split": split}
        small["label"] = np.array([sample.label for sample in source.samples], np.int64)
        fields, arrays = {}, {}
        train = torch.from_numpy(np.flatnonzero(split == 0))
        for name, part in self.parts.items():
            values = self._closed(name, part)
            arrays[name] = (values.dtype, tuple(values.shape))
            small |= self._places(name, part)
            fields[name] = self._field(name, part, values, train)
        for name, array in small.items():
            (self.out / f"{name}.memmap").write_bytes(array.tobytes())
            arrays[name] = (getattr(torch, array.dtype.name), array.shape)
        write_meta(self.out, arrays)
        notes = list(source.notes)
        if self.broken:
            notes.append(f"{len(self.broken)} of {count} samples were left out as broken.")
        description = Description(
            name=source.name,
            samples=count,
            modalities=fields,
            classes=list(source.classes),
            splits={name: int((split == n).sum()) for n, name in enumerate(SPLITS)},
            sources={str(path): _size(path) for path in source.files()},
            made_by=made_by,
            version=version("evenly"),
            notes=notes,
        )
        description.write(self.out)
        open_store(self.out)  # every file has the size that the description speaks of
        return description

    def _closed(self, name: str, part: _Part) -> Tensor:
        """A modality's file at its final length: samples at the end may be missing or broken."""
        if part.shape is None or part.dtype is None:
            raise ValueError(f"{self.source.name}: no sample has '{name}'. Leave it out.")
        rows = part.used if part.reader.ragged else len(self.source.samples)
        os.truncate(part.path, rows * part.dtype.itemsize * int(np.prod(part.shape)))
        return mapped(part.path, getattr(torch, part.dtype.name), (rows, *part.shape))

    def _here(self, name: str) -> np.ndarray:
        """Which samples have a modality."""
        here = np.zeros(len(self.source.samples), bool)
        here[list(self.places[name])] = True
        return here

    def _places(self, name: str, part: _Part) -> dict[str, np.ndarray]:
        """The small arrays that belong to a modality."""
        found = {}
        here = self._here(name)
        if part.reader.ragged:
            place = np.zeros((len(here), 2), np.int64)
            for number, at in self.places[name].items():
                place[number] = at
            for column, end in enumerate(RAGGED):
                found[f"{name}_{end}"] = np.ascontiguousarray(place[:, column])
        if not here[sorted(self.done)].all():
            found[f"{name}_present"] = here
        return found

    def _field(self, name: str, part: _Part, values: Tensor, train: Tensor) -> Field:
        stored: Tensor | Ragged = values
        if part.reader.ragged:
            places = self._places(name, part)
            stored = Ragged(values, *(torch.from_numpy(places[f"{name}_{end}"]) for end in RAGGED))
        here = self._here(name)
        known = described(name, stored, train[torch.from_numpy(here)[train]])
        return Field(
            kind=part.reader.kind,
            shape=list(known.shape),
            dtype=str(values.dtype).removeprefix("torch."),
            mean=known.mean.tolist(),
            std=known.std.tolist(),
            units=part.reader.units,
            rate=part.reader.rate,
            ragged=part.reader.ragged,
            missing=int(len(self.done) - here.sum()),
            read=spelled(part.reader),
        )


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def _fingerprint(source: Source) -> str:
    """What tells this data set, read in this way, from any other."""
    readers = {
        name: [type(reader).__name__, asdict(reader) if is_dataclass(reader) else {}]
        for name, reader in source.readers.items()
    }
    digest = sha256(json.dumps([source.name, readers, list(source.classes)], default=str).encode())
    for sample in source.samples:
        cells = {name: _identity(cell) for name, cell in sample.cells.items()}
        entry = [sample.name, sample.label, sample.split, cells]
        digest.update(json.dumps(entry, sort_keys=True).encode())
    return digest.hexdigest()


def _identity(cell: Any) -> Any:
    """A cell as text: a file by its path, numbers by their bytes."""
    if isinstance(cell, np.ndarray):
        return sha256(cell.tobytes()).hexdigest()
    return cell if cell is None or isinstance(cell, str | int | float) else str(cell)
