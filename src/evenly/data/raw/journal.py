"""A store in the making.

A journal in its folder lists the samples in it, with checksums of their values. It is written after
the values, so that a killed run continues where it stopped when started again. A sample is decoded
again only if the machine crashed before its values were on disk. For streamed modalities, the
journal records where their samples are, without values.
"""

import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evenly.data.dataset import SPLITS, Ragged, SplitName, Stored, Streamed, described
from evenly.data.raw.decode import Decoded, unlike
from evenly.data.raw.readers import Reader, spelled
from evenly.data.raw.rows import Part
from evenly.data.raw.source import Sample, Source, several_of
from evenly.data.raw.streamed import INDEX, Decoders, InShards
from evenly.data.store import (
    DESCRIPTION,
    FORMAT,
    RAGGED,
    Description,
    Field,
    file_names,
    mapped,
    open_store,
    write_meta,
)
from evenly.data.tasks import Numbers
from evenly.errors import UserError, UserRuntimeError
from evenly.files import locked

JOURNAL = "journal.jsonl"
_CHUNKS = 16
"""Parts of a file, spread evenly, that distinguish it from others of its size."""
_CHUNK = 8 << 10
"""Bytes of each."""


@dataclass
class _Part:
    """One modality's growing file."""

    reader: Reader
    path: Path
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    used: int = 0  # time steps, for sequences of unequal lengths
    rows: int = 0  # of the closed file

    def open(self) -> IO[bytes]:
        self.path.parent.mkdir(exist_ok=True)
        self.file = self.path.open("r+b" if self.path.exists() else "w+b")
        return self.file

    def write(self, start: int, value: np.ndarray) -> None:
        self.file.seek(start * self._row)
        self.file.write(value.tobytes())
        self.file.flush()

    def checksum(self, start: int, length: int) -> int:
        """The checksum of rows in the file."""
        self.file.seek(start * self._row)
        return zlib.crc32(self.file.read(length * self._row))

    def close(self, rows: int) -> None:
        """Gives the file its final length."""
        self.rows = rows
        os.truncate(self.path, rows * self._row)

    def mapped(self) -> Tensor:
        """The whole file, once closed; what is read stays in memory until the map is released."""
        assert self.shape is not None
        assert self.dtype is not None
        return mapped(self.path, getattr(torch, self.dtype.name), (self.rows, *self.shape))

    @property
    def _row(self) -> int:
        """Bytes of a row."""
        assert self.shape is not None
        assert self.dtype is not None
        return self.dtype.itemsize * int(np.prod(self.shape))


class _Place(NamedTuple):
    """Where the values of a sample are.

    Attributes:
        start: The row in the modality's file, or the first of its time steps.
        length: Number of time steps; 1 if all samples have one shape.
        checksum: Checksum of the values, or of the bytes in their shard if they are not in the
            store.
    """

    start: int
    length: int
    checksum: int


class Journal:
    """A store in the making."""

    def __init__(self, source: Source, out: Path, streamed: Collection[str] = ()) -> None:
        """Prepares it.

        Args:
            source: The data set.
            out: The store's folder.
            streamed: The modalities whose samples stay in their shards.
        """
        self.source, self.out, self.streamed = source, out, streamed
        self.done: set[int] = set()
        self.marks: dict[int, list[list[int]]] = {}  # of the files of each sample
        self.changed: list[Path] = []  # files of a finished store that are no longer as they were
        self.broken: dict[int, str] = {}
        self.places: dict[str, dict[int, _Place]] = {name: {} for name in source.readers}
        self.files = file_names(source.readers)
        self.parts = {
            name: _Part(reader, out / "inputs" / f"{self.files[name]}.memmap")
            for name, reader in source.readers.items()
        }

    def __enter__(self) -> "Journal":
        path = self.out / JOURNAL
        head = {"prepares": _fingerprint(self.source), "format": FORMAT}
        if self.streamed:
            head["streamed"] = list(self.streamed)
        self.out.mkdir(parents=True, exist_ok=True)
        begun = path.is_file() and path.stat().st_size
        if not begun and any(file != path for file in self.out.iterdir()):
            raise UserError(
                f"{self.out}: is not empty and holds no unfinished store. Choose another --out, or "
                "empty the folder."
            )
        with ExitStack() as opened:
            self.file = opened.enter_context(path.open("a+b"))
            if not locked(self.file):
                raise UserError(
                    f"{self.out}: another process is preparing this store. Wait for it, or choose "
                    "another --out."
                )
            lines = self._lines(head)
            for name, part in self.parts.items():
                if name not in self.streamed:
                    opened.enter_context(part.open())
            self.finished = is_whole(self.out)
            last = {line["sample"]: line for line in lines}
            for line in last.values():
                if "broken" not in line:  # else it is tried again: the file may have been fixed
                    self._take_up(line["sample"], line["at"], line.get("files", []))
            self.opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def _lines(self, head: dict[str, Any]) -> list[dict[str, Any]]:
        """The entries so far, after the head; removes what a kill truncated."""
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
            raise UserError(
                f"{self.out}: holds a store made from other files or with other settings. Choose "
                "another --out, or remove the folder."
            )
        elif len(whole) < len(lines):
            self.file.truncate(sum(map(len, lines[: len(whole)])))
        return whole[1:]

    def _take_up(self, number: int, places: dict[str, Any], marks: list[list[int]]) -> None:
        """Counts a sample as done if its files are as they were, and its values match the journal.

        They may not if the machine crashed before everything was on disk; those of a finished store
        do.
        """
        # Earlier versions did not note the files.
        pairs = zip(_files(self.source.samples[number]), marks, strict=False)
        changed = [_path(file) for file, mark in pairs if _is_other(file, mark)]
        if self.finished:
            self.changed += changed
        elif changed:
            return
        for name, (start, length, shape, dtype, checksum) in places.items():
            part = self.parts[name]
            part.shape, part.dtype = tuple(shape), np.dtype(dtype)
            if not self.finished and self._checksum(name, number, start, length) != checksum:
                return
        for name, (start, length, _, _, checksum) in places.items():
            self._place(name, number, _Place(start, length, checksum))
        self.done.add(number)
        self.marks[number] = marks

    def _checksum(self, name: str, number: int, start: int, length: int) -> int:
        """The checksum of a sample's values in the store, or of its bytes in their shard."""
        if name in self.streamed:
            return zlib.crc32(self.source.samples[number].cells[name].read())
        return self.parts[name].checksum(start, length)

    def _place(self, name: str, number: int, place: "_Place") -> None:
        part = self.parts[name]
        part.used = max(part.used, place.start + place.length)
        self.places[name][number] = place

    def _note(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self.file.flush()

    def add(self, number: int, found: Decoded) -> None:
        """Writes one sample, then records it."""
        if not isinstance(found, str):
            found = self._written(number, found)
        if isinstance(found, str):
            self.broken[number] = found
            self._note({"sample": number, "broken": found})
        else:
            self.done.add(number)
            self.marks[number] = [_mark(file) for file in _files(self.source.samples[number])]
            self._note({"sample": number, "at": found, "files": self.marks[number]})

    def _written(self, number: int, found: dict[str, np.ndarray | None]) -> Any:
        """Where each array was written; or what is wrong with one, and then none is written."""
        values = {name: np.ascontiguousarray(v) for name, v in found.items() if v is not None}
        known = {
            name: (part.shape, part.dtype)
            for name, part in self.parts.items()
            if part.shape is not None
        }
        if wrong := unlike(self.source.readers, values, known):
            return wrong
        for name in values:
            self.parts[name].shape, self.parts[name].dtype = known[name]
        (self.out / DESCRIPTION).unlink(missing_ok=True)  # not a store until it is complete again
        places = {}
        for name, value in values.items():
            part = self.parts[name]
            length = len(value) if part.reader.ragged else 1
            start = part.used if part.reader.ragged else number
            if name in self.streamed:
                checksum = self._checksum(name, number, start, length)
            else:
                part.write(start, value)
                checksum = zlib.crc32(value.data)
            self._place(name, number, _Place(start, length, checksum))
            assert part.shape is not None
            assert part.dtype is not None
            places[name] = (start, length, list(part.shape), part.dtype.str, checksum)
        return places

    def finish(self, made_by: str, workers: int) -> Description:
        """Checks the counts, writes the small arrays and, last of all, the description.

        Args:
            made_by: The command that makes the store.
            workers: Processes that decode streamed modalities again, for their mean and deviation.
        """
        source, count = self.source, len(self.source.samples)
        if left := count - len(self.done) - len(self.broken):
            raise UserRuntimeError(
                f"{self.out}: {left} samples are neither written nor broken. Remove the folder "
                "and prepare again."
            )
        # A sample that is left out keeps its empty row, and belongs to no split.
        split = np.full(count, len(SPLITS), np.uint8)
        for number in self.done:
            split[number] = SPLITS.index(source.samples[number].split)
        small: dict[str, np.ndarray] = {"split": split}
        small["label"] = source.target.numpy()
        decoders = Decoders(
            {name: source.readers[name] for name in self.streamed}, self.out, workers
        )
        shards = list(dict.fromkeys(self._shards()))
        fields, arrays = {}, {}
        opened: Callable[[], Stored]
        train = torch.from_numpy(np.flatnonzero(split == 0))
        for name, part in self.parts.items():
            self._check_found(name, part)
            own = self._places(name, part, shards)
            if name in self.streamed:
                opened = partial(self._in_shards, name, part, own, shards, decoders)
            else:
                part.close(part.used if part.reader.ragged else count)
                values = part.mapped()
                arrays[f"inputs/{self.files[name]}"] = (values.dtype, tuple(values.shape))
                opened = partial(self._mapped, part, own)
            fields[name] = self._field(name, part, train, opened)
            small |= own
        for name, array in small.items():
            path = self.out / f"{name}.memmap"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(array.tobytes())
            arrays[name] = (getattr(torch, array.dtype.name), array.shape)
        write_meta(self.out, arrays)
        notes = [*source.notes, *self._leaks()]
        if self.broken:
            notes.append(f"{len(self.broken)} of {count} samples were left out as broken.")
        task = source.task.fitted(source.target[train])
        if isinstance(task, Numbers) and (remark := task.remark()):
            notes.append(remark)
        description = Description(
            name=source.name,
            samples=count,
            names=[sample.name for sample in source.samples],
            modalities=fields,
            task=task.stated(),
            splits={name: int((split == n).sum()) for n, name in enumerate(SPLITS)},
            sources={str(path): size_of(path) for path in source.files()},
            checksums={name: zlib.crc32(array.data) for name, array in small.items()},
            shards={path: size_of(Path(path)) for path in shards},
            made_by=made_by,
            official=source.official,
            label_columns=list(source.label_columns),
            version=version("evenly"),
            notes=notes,
        )
        _to_disk([file for file in self.out.rglob("*") if file.is_file()])
        description.write(self.out)
        _to_disk([self.out / DESCRIPTION])
        open_store(self.out)  # checks that every file has the size in the description
        return description

    def _leaks(self) -> Iterator[str]:
        """Notes on files with the same content in several splits, by modality."""
        for name, places in self.places.items():
            splits: defaultdict[Any, set[SplitName]] = defaultdict(set)
            first: dict[Any, Path] = {}
            for number, place in places.items():
                sample = self.source.samples[number]
                # Earlier versions did not note the files.
                marks = dict(zip(_files(sample), self.marks[number], strict=False))
                files = several_of(sample.cells[name])
                if not files or not all(isinstance(x, Path) and x in marks for x in files):
                    continue
                # The checksum of the values, too: one alone may agree by chance.
                key = (place.checksum, *((marks[file][0], marks[file][2]) for file in files))
                splits[key].add(sample.split)
                first.setdefault(key, files[0])
            leaks = [first[key] for key, parts in splits.items() if len(parts) > 1]
            if leaks:
                yield (
                    f"A leak: files of '{name}' with the same content are in more than one split "
                    f"({len(leaks):,}), such as {leaks[0].parent.name}/{leaks[0].name}."
                )

    def _shards(self) -> Iterator[str]:
        """The paths of the files with streamed samples."""
        for name in self.streamed:
            for number in self.places[name]:
                yield os.path.abspath(self.source.samples[number].cells[name].path)

    def _check_found(self, name: str, part: _Part) -> None:
        """Raises if no sample has a modality."""
        if part.shape is None or part.dtype is None:
            raise UserError(
                f"{self.source.name}: no sample has '{name}': its cells are empty, or their files "
                f"hold nothing that {spelled(part.reader).partition('(')[0]} reads. Leave it out, "
                "or read it otherwise."
            )

    def _here(self, name: str) -> np.ndarray:
        """Which samples have a modality."""
        here = np.zeros(len(self.source.samples), bool)
        here[list(self.places[name])] = True
        return here

    def _places(self, name: str, part: _Part, shards: Sequence[str]) -> dict[str, np.ndarray]:
        """The small arrays that belong to a modality."""
        found = {}
        here, file = self._here(name), self.files[name]
        if part.reader.ragged:
            for end in ("length",) if name in self.streamed else RAGGED:
                found[f"{end}/{file}"] = np.zeros(len(here), np.int64)
                for number, place in self.places[name].items():
                    found[f"{end}/{file}"][number] = getattr(place, end)
        if name in self.streamed:
            number_of = {path: number for number, path in enumerate(shards)}
            index = found[f"index/{file}"] = np.full((len(here), len(INDEX)), -1, np.int64)
            for number, place in self.places[name].items():
                cell = self.source.samples[number].cells[name]
                shard = number_of[os.path.abspath(cell.path)]
                index[number] = shard, cell.start, cell.size, place.checksum
        if not here[sorted(self.done)].all():
            found[f"present/{file}"] = here
        return found

    def _mapped(self, part: _Part, own: Mapping[str, np.ndarray]) -> Tensor | Ragged:
        """A modality whose values are in the store."""
        if not part.reader.ragged:
            return part.mapped()
        ends = (torch.from_numpy(own[f"{end}/{part.path.stem}"]) for end in RAGGED)
        return Ragged(part.mapped(), *ends)

    def _in_shards(
        self,
        name: str,
        part: _Part,
        own: Mapping[str, np.ndarray],
        shards: Sequence[str],
        decoders: Decoders,
    ) -> Streamed:
        """A modality whose samples stay in their shards."""
        assert part.shape is not None
        assert part.dtype is not None
        index = torch.from_numpy(own[f"index/{self.files[name]}"])
        length = own.get(f"length/{self.files[name]}")
        return InShards(
            name,
            decoders,
            shards,
            index,
            part.shape,
            getattr(torch, part.dtype.name),
            None if length is None else torch.from_numpy(length),
        )

    def _field(self, name: str, part: _Part, train: Tensor, opened: Callable[[], Stored]) -> Field:
        assert part.dtype is not None
        here = self._here(name)
        known = described(name, opened(), train[torch.from_numpy(here)[train]], opened)
        return Field(
            kind=part.reader.kind,
            shape=list(known.shape),
            dtype=part.dtype.name,
            mean=known.mean.tolist(),
            std=known.std.tolist(),
            units=part.reader.units,
            rate=part.reader.rate,
            sample_rate=getattr(part.reader, "sample_rate", None),
            ragged=part.reader.ragged,
            missing=int(len(self.done) - here.sum()),
            read=spelled(part.reader, whole=True),
            streamed=name in self.streamed,
        )


def _is_vain(journal: Sequence[Any]) -> bool:
    """Whether a journal comes from an attempt that decoded nothing, such as with wrong settings."""
    return (
        all(isinstance(line, dict) for line in journal)
        and "prepares" in journal[0]
        and not any("at" in line for line in journal)
    )


def is_whole(out: Path) -> bool:
    """Whether a folder is a complete store."""
    try:
        open_store(out)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _to_disk(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def _files(sample: Sample) -> list[Path | Part]:
    """The files and folders that a sample is made of; tables identify the files in them."""
    cells = (part for cell in sample.cells.values() for part in several_of(cell))
    return list(dict.fromkeys(part for part in cells if isinstance(part, Path | Part)))


def _path(file: Path | Part) -> Path:
    return file.path if isinstance(file, Part) else file


def _mark(file: Path | Part) -> list[int]:
    """Size, time of the last change, and a checksum, which distinguish a file from later ones."""
    return [*_size_and_time(file), checksum(file)]


def _is_other(file: Path | Part, mark: list[int]) -> bool:
    """Whether a file has changed since; not if it is gone, as the store has its content.

    A copy may have another time, so then the content decides.
    """
    if not _path(file).exists():
        return False
    size, time, content = mark
    here = _size_and_time(file)
    return here != [size, time] and (here[0] != size or checksum(file) != content)


def _size_and_time(file: Path | Part) -> list[int]:
    """In bytes, and in nanoseconds."""
    path = _path(file)
    within = path.iterdir() if path.is_dir() else ()
    time = max(each.stat().st_mtime_ns for each in (path, *within))
    return [file.size if isinstance(file, Part) else size_of(path), time]


def checksum(file: Path | Part) -> int:
    """Of parts of a file; of a folder, of the names and sizes of its files."""
    if isinstance(file, Path) and file.is_dir():
        held = sorted((each.name, each.stat().st_size) for each in file.iterdir())
        return zlib.crc32(repr(held).encode())
    part = Part(file, 0, size_of(file)) if isinstance(file, Path) else file
    found, last = 0, max(0, part.size - _CHUNK)
    with part.path.open("rb") as opened:
        for place in dict.fromkeys(last * n // (_CHUNKS - 1) for n in range(_CHUNKS)):
            opened.seek(part.start + place)
            found = zlib.crc32(opened.read(min(_CHUNK, part.size)), found)
    return found


def _fingerprint(source: Source) -> str:
    """A fingerprint of this data set, read in this way."""
    readers = {
        name: [type(reader).__name__, asdict(reader) if is_dataclass(reader) else {}]
        for name, reader in source.readers.items()
    }
    known = [source.name, readers, source.task.name, list(source.classes)]
    digest = sha256(json.dumps(known, default=str).encode())
    for sample in source.samples:
        cells = {name: _identity(cell) for name, cell in sample.cells.items()}
        entry = [sample.name, sample.label, sample.split, cells]
        digest.update(json.dumps(entry, sort_keys=True).encode())
    return digest.hexdigest()


def _identity(cell: Any) -> Any:
    """A cell as text: files by their paths, numbers by their bytes."""
    if isinstance(cell, Path):
        return os.path.abspath(cell)
    if isinstance(cell, tuple):
        return [_identity(part) for part in cell]
    if isinstance(cell, np.ndarray):
        return [str(cell.dtype), list(cell.shape), sha256(cell.tobytes()).hexdigest()]
    if isinstance(cell, bytes):
        return sha256(cell).hexdigest()
    if is_dataclass(cell):
        return {f.name: _identity(getattr(cell, f.name)) for f in fields(cell) if f.compare}
    return cell if cell is None or isinstance(cell, str | int | float) else str(cell)
