"""From files to a store: every sample is decoded once, by several processes.

A journal in the store's folder says which samples are in it, with checksums of their values. It is
written after them, so that a killed run, started again, goes on where it was; a sample is decoded
again only if the machine was lost before its values were on the disk.
"""

import json
import os
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from evenly.data.arrays import native, spelt, unusable
from evenly.data.dataset import (
    SPLITS,
    Padded,
    Ragged,
    check_classes,
    check_names,
    described,
    dtype_name,
)
from evenly.data.media.error import NoStream
from evenly.data.raw.pool import Lost, pool
from evenly.data.raw.readers import Array, Reader, Text, spelled
from evenly.data.raw.source import Sample, Source
from evenly.data.store import (
    DESCRIPTION,
    FORMAT,
    RAGGED,
    Description,
    Field,
    describe,
    file_names,
    mapped,
    open_store,
    write_meta,
)
from evenly.files import naming

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
            folder holds another store or other files, or another process writes to it; if what
            was written does not add up.
    """
    check_names(source.name, source.readers)
    _check_splits(source)
    if not skip_broken and (wrong := _unfit(source)):
        raise ValueError(_broken(source, wrong))
    with naming(out), _Journal(source, out) as journal:
        waiting = [n for n in range(len(source.samples)) if n not in journal.done]
        if journal.finished:
            _check_unchanged(source, journal.done, out)
        if journal.finished and not waiting:
            return describe(out)
        with tqdm(
            total=len(source.samples),
            initial=len(source.samples) - len(waiting),
            unit="sample",
            disable=None,
        ) as bar:
            for number, found in _decoded(source, waiting, workers):
                journal.add(number, found)
                bar.update()
        if journal.broken and not (skip_broken and journal.done):
            raise ValueError(_broken(source, journal.broken))
        # What is still broken changes nothing: runs that were made of the store go on with it.
        return describe(out) if _is_whole(out) else journal.finish(made_by)


def _unfit(source: Source) -> dict[int, str]:
    """What is wrong with numbers that are at hand, before any file is decoded."""
    wrong, first = {}, dict[str, Any]()
    readers = {name: reader for name, reader in source.readers.items() if isinstance(reader, Array)}
    for number, sample in enumerate(source.samples):
        cells = {
            name: cell for name, cell in sample.cells.items() if isinstance(cell, np.ndarray | list)
        }
        found = _read(readers, cells) if cells.keys() & readers else {}
        reason = found if isinstance(found, str) else _unlike(readers, found, first)
        if reason:
            wrong[number] = reason
    return wrong


def _check_unchanged(source: Source, done: Iterable[int], out: Path) -> None:
    """Raises if files of what is in a store have another size than when it was made."""
    known = describe(out).sources
    read = (path for number in done for path in source.samples[number].files())
    files = [path for path in dict.fromkeys([*source.opened, *read]) if str(path) in known]
    # Files that are gone are not missed: the store holds what they said.
    changed = [path for path in files if path.exists() and _size(path) != known[str(path)]]
    if changed:
        raise ValueError(
            f"{out}: was made of files of which {len(changed)} have changed since, such as "
            f"{changed[0]}. Remove the folder and prepare again, or choose another --out."
        )


def _check_splits(source: Source) -> None:
    if len(source.classes) < 2:
        raise ValueError(
            f"{source.name}: all samples are of the class '{''.join(source.classes)}'. "
            "Classification needs two classes."
        )
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
    for reader in source.readers.values():
        if isinstance(reader, Text):
            reader.check()
    if not waiting:
        return
    processes = min(workers, len(waiting))
    ahead: deque[tuple[int, Future[Decoded]]] = deque()
    left = iter(waiting)
    with pool(partial(_read, dict(source.readers)), processes, __name__) as submit:
        while True:
            while len(ahead) < 4 * workers and (number := next(left, None)) is not None:
                ahead.append((number, submit(source.samples[number].cells)))
            if not ahead:
                return
            number, future = ahead.popleft()
            try:
                yield number, future.result()
            except Lost as error:
                raise RuntimeError(
                    f"{source.name}: the process that decoded '{source.samples[number].name}' was "
                    "killed, perhaps for want of memory. The same command goes on from there; "
                    "give it fewer --workers."
                ) from error


def _read(readers: Mapping[str, Reader], cells: Mapping[str, Any]) -> Decoded:
    found: dict[str, np.ndarray | None] = dict.fromkeys(readers)
    lacking = []
    for name, reader in readers.items():
        if (cell := cells.get(name)) is None:
            continue
        try:
            found[name] = _stored(reader(cell))
        except NoStream as error:
            lacking.append(f"{name}: {error}")
        except ValueError as error:
            return f"{name}: {error}"
        except Exception as error:  # whatever one file brings about, the others are read
            return f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
    if all(value is None for value in found.values()):
        return "; ".join(lacking) or "has none of the modalities"
    return found


def _stored(values: np.ndarray | None) -> np.ndarray | None:
    """Numbers as a store holds them: finite, in native bytes, not in double precision."""
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
    """The samples of a data set, decoded as they are asked for; nothing is stored.

    Args:
        source: The data set.
        size: Samples in a batch, but for the last.
        workers: Processes that decode.
        broken: Receives the samples that are left out, as their files are missing or broken:
            their names, and what is wrong.
        wanted: By modality, the shape of a sample; what is not given is as the first sample has
            it. Of sequences and texts of unequal lengths the first number is any.

    Returns:
        The samples, their inputs by modality, and which of them have it. A modality that none of
        them has is there, too, unless no sample of the data set has it.
    """
    several: list[tuple[Sample, dict[str, np.ndarray | None]]] = []
    blank = cache(partial(_blank, source))
    shapes = {
        name: (_row(source.readers[name], tuple(shape)), None)
        for name, shape in (wanted or {}).items()
    }
    for number, found in _decoded(source, range(len(source.samples)), workers):
        sample = source.samples[number]
        wrong = found if isinstance(found, str) else _unlike(source.readers, found, shapes)
        if wrong or isinstance(found, str):
            broken.append((sample.name, wrong))
        else:
            several.append((sample, found))
        if len(several) == size or (several and number + 1 == len(source.samples)):
            yield _batch(source.readers, several, blank)
            several = []


def _unlike(
    readers: Mapping[str, Reader],
    found: Mapping[str, np.ndarray | None],
    first: dict[str, Any],
) -> str:
    """What of a sample is not as those before; empty where nothing is.

    Args:
        readers: By modality.
        found: By modality, the sample's array.
        first: By modality, the shape and type of a row or step, if known; the first sample fills
            in what is not.
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
                f"{name}: has the shape {value.shape} of {value.dtype}, where all must have "
                f"{each}{of}{hint}"
            )
        new[name] = shape, value.dtype
    first |= new
    return ""


def _row(reader: Reader, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What all samples have alike of a sample's shape."""
    if reader.kind == "text":
        return ()
    return shape[1:] if reader.ragged else shape


def _blank(source: Source, name: str) -> np.ndarray | None:
    """The row of samples that lack a modality, shaped as that of the first one that has it."""
    reader = source.readers[name]
    for sample in source.samples:
        try:
            cell = sample.cells.get(name)
            found = None if cell is None else _stored(reader(cell))
        except Exception:
            continue  # it is broken, which is said where its turn comes
        if found is not None:
            return np.zeros_like(found[:0] if reader.ragged else found)
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


def _broken(source: Source, broken: dict[int, str]) -> str:
    named = [(source.samples[n].name, broken[n]) for n in sorted(broken)]
    return (
        f"{source.name}: {len(broken)} of {len(source.samples)} samples cannot be used:\n"
        f"{listed(named)}\n"
        "Mend these files and run the same command again, which decodes nothing else anew; or "
        "leave the samples out with --skip-broken."
    )


def listed(broken: Sequence[tuple[str, str]]) -> str:
    """The first of the samples that cannot be used, a line each.

    Args:
        broken: Their names, and what is wrong with each.
    """
    lines = [f"  {name}: {reason}" for name, reason in broken]
    more = [f"  and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "\n".join([*lines[:10], *more])


@dataclass
class _Part:
    """One modality's file while it grows."""

    reader: Reader
    path: Path
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    used: int = 0  # time steps, of sequences of unequal lengths

    def open(self) -> IO[bytes]:
        self.path.parent.mkdir(exist_ok=True)
        self.file = self.path.open("r+b" if self.path.exists() else "w+b")
        return self.file

    def write(self, start: int, value: np.ndarray) -> None:
        self.file.seek(start * self._row)
        self.file.write(value.tobytes())
        self.file.flush()

    def checksum(self, start: int, length: int) -> int:
        """Of rows as they are in the file."""
        self.file.seek(start * self._row)
        return zlib.crc32(self.file.read(length * self._row))

    @property
    def _row(self) -> int:
        """Bytes."""
        assert self.shape is not None
        assert self.dtype is not None
        return self.dtype.itemsize * int(np.prod(self.shape))


class _Journal:
    """The store while it is made."""

    def __init__(self, source: Source, out: Path) -> None:
        self.source, self.out = source, out
        self.done: set[int] = set()
        self.broken: dict[int, str] = {}
        self.places: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in source.readers}
        self.files = file_names(source.readers)
        self.parts = {
            name: _Part(reader, out / "inputs" / f"{self.files[name]}.memmap")
            for name, reader in source.readers.items()
        }

    def __enter__(self) -> "_Journal":
        path = self.out / JOURNAL
        head = {"prepares": _fingerprint(self.source), "format": FORMAT}
        self.out.mkdir(parents=True, exist_ok=True)
        begun = path.is_file() and path.stat().st_size
        if not begun and any(file != path for file in self.out.iterdir()):
            raise ValueError(
                f"{self.out}: is not empty, and nothing was begun there that could be continued. "
                "Choose another --out, or remove the folder."
            )
        with ExitStack() as opened:
            self.file = opened.enter_context(path.open("a+b"))
            _lock(self.file, self.out)
            lines = self._lines(head)
            for part in self.parts.values():
                opened.enter_context(part.open())
            self.finished = _is_whole(self.out)
            for line in lines:
                if "broken" not in line:  # else it is tried again: the file may have been mended
                    self._take_up(line["sample"], line["at"])
            self.opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def _lines(self, head: dict[str, Any]) -> list[dict[str, Any]]:
        """What was noted down so far, after the head; what a kill cut off is removed."""
        self.file.seek(0)
        lines = self.file.read().splitlines(keepends=True)
        whole: list[dict[str, Any]] = []
        for line in lines:
            try:
                whole.append(json.loads(line if line.endswith(b"\n") else b""))
            except ValueError:
                break
        if not whole and len(lines) < 2:
            self.file.truncate(0)
            self._note(head)
        elif whole[:1] != [head] and whole and _is_vain(whole):
            self.file.truncate(0)
            self._note(head)
            return []
        elif whole[:1] != [head]:
            raise ValueError(
                f"{self.out}: holds another store, or one of other files or settings, that is "
                "being made. Choose another --out, or remove the folder."
            )
        elif len(whole) < len(lines):
            self.file.truncate(sum(map(len, lines[: len(whole)])))
        return whole[1:]

    def _take_up(self, number: int, places: dict[str, Any]) -> None:
        """Counts a sample as done if its values are those that were noted down.

        They may not be where the machine was lost before all was on its disk; those of a finished
        store are.
        """
        for name, (start, length, shape, dtype, checksum) in places.items():
            part = self.parts[name]
            part.shape, part.dtype = tuple(shape), np.dtype(dtype)
            if not self.finished and part.checksum(start, length) != checksum:
                return
        for name, (start, length, *_) in places.items():
            self._place(name, number, start, length)
        self.done.add(number)

    def _place(self, name: str, number: int, start: int, length: int) -> None:
        part = self.parts[name]
        part.used = max(part.used, start + length)
        self.places[name][number] = (start, length)

    def _note(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self.file.flush()

    def add(self, number: int, found: Decoded) -> None:
        """Writes one sample, then notes that it is written."""
        if not isinstance(found, str):
            found = self._written(number, found)
        if isinstance(found, str):
            self.broken[number] = found
            self._note({"sample": number, "broken": found})
        else:
            self.done.add(number)
            self._note({"sample": number, "at": found})

    def _written(self, number: int, found: dict[str, np.ndarray | None]) -> Any:
        """Where each array was put; or what is wrong with one, and then nothing is."""
        values = {name: np.ascontiguousarray(v) for name, v in found.items() if v is not None}
        known = {
            name: (part.shape, part.dtype)
            for name, part in self.parts.items()
            if part.shape is not None
        }
        if wrong := _unlike(self.source.readers, values, known):
            return wrong
        for name in values:
            self.parts[name].shape, self.parts[name].dtype = known[name]
        (self.out / DESCRIPTION).unlink(missing_ok=True)  # no store until it is whole again
        places = {}
        for name, value in values.items():
            part = self.parts[name]
            length = len(value) if part.reader.ragged else 1
            start = part.used if part.reader.ragged else number
            part.write(start, value)
            self._place(name, number, start, length)
            assert part.shape is not None
            assert part.dtype is not None
            checksum = zlib.crc32(value.data)
            places[name] = (start, length, list(part.shape), part.dtype.str, checksum)
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
            arrays[f"inputs/{self.files[name]}"] = (values.dtype, tuple(values.shape))
            small |= self._places(name, part)
            fields[name] = self._field(name, part, values, train)
        for name, array in small.items():
            path = self.out / f"{name}.memmap"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(array.tobytes())
            arrays[name] = (getattr(torch, array.dtype.name), array.shape)
        write_meta(self.out, arrays)
        notes = list(source.notes)
        if self.broken:
            notes.append(f"{len(self.broken)} of {count} samples were left out as broken.")
        description = Description(
            name=source.name,
            samples=count,
            names=[sample.name for sample in source.samples],
            modalities=fields,
            classes=list(source.classes),
            splits={name: int((split == n).sum()) for n, name in enumerate(SPLITS)},
            sources={str(path): _size(path) for path in source.files()},
            checksums={name: zlib.crc32(array.data) for name, array in small.items()},
            made_by=made_by,
            version=version("evenly"),
            notes=notes,
        )
        _to_disk([file for file in self.out.rglob("*") if file.is_file()])
        description.write(self.out)
        _to_disk([self.out / DESCRIPTION])
        open_store(self.out)  # every file has the size that the description speaks of
        return description

    def _closed(self, name: str, part: _Part) -> Tensor:
        """A modality's file at its final length: samples at the end may be missing or broken."""
        if part.shape is None or part.dtype is None:
            raise ValueError(
                f"{self.source.name}: no sample has '{name}': its cells are empty, or their files "
                f"hold nothing that {spelled(part.reader).partition('(')[0]} reads. Leave it out, "
                "or read it otherwise."
            )
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
                found[f"{end}/{self.files[name]}"] = np.ascontiguousarray(place[:, column])
        if not here[sorted(self.done)].all():
            found[f"present/{self.files[name]}"] = here
        return found

    def _field(self, name: str, part: _Part, values: Tensor, train: Tensor) -> Field:
        stored: Tensor | Ragged = values
        if part.reader.ragged:
            places, file = self._places(name, part), self.files[name]
            stored = Ragged(values, *(torch.from_numpy(places[f"{end}/{file}"]) for end in RAGGED))
        here = self._here(name)
        known = described(name, stored, train[torch.from_numpy(here)[train]])
        return Field(
            kind=part.reader.kind,
            shape=list(known.shape),
            dtype=dtype_name(values),
            mean=known.mean.tolist(),
            std=known.std.tolist(),
            units=part.reader.units,
            rate=part.reader.rate,
            sample_rate=getattr(part.reader, "sample_rate", None),
            ragged=part.reader.ragged,
            missing=int(len(self.done) - here.sum()),
            read=spelled(part.reader, whole=True),
        )


def _is_vain(journal: Sequence[Any]) -> bool:
    """Whether a journal is of another attempt that decoded nothing, such as with wrong settings."""
    return (
        all(isinstance(line, dict) for line in journal)
        and "prepares" in journal[0]
        and not any("at" in line for line in journal)
    )


def _is_whole(out: Path) -> bool:
    """Whether a folder is a store that lacks nothing."""
    try:
        open_store(out)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _lock(file: IO[bytes], out: Path) -> None:
    """Keeps other processes from writing to the same store, for as long as the file is open."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{out}: another process is preparing this store. Wait for it, or choose another --out."
        ) from error


def _to_disk(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


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
    """A cell as text: a file by its path, wherever one stands; numbers by their bytes."""
    if isinstance(cell, Path):
        return os.path.abspath(cell)
    if isinstance(cell, np.ndarray):
        return [str(cell.dtype), list(cell.shape), sha256(cell.tobytes()).hexdigest()]
    if isinstance(cell, bytes):
        return sha256(cell).hexdigest()
    if is_dataclass(cell):
        return {field.name: _identity(getattr(cell, field.name)) for field in fields(cell)}
    return cell if cell is None or isinstance(cell, str | int | float) else str(cell)
