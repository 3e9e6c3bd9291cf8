"""The prepared store: a folder of memory maps that a data set is read from, batch by batch.

It holds

- a raw file for each array, `label.memmap`, `split.memmap`, and by modality `inputs/NAME.memmap`
  and, where they apply, `start/`, `length/` and `present/NAME.memmap`, where `file_names` gives the
  NAME; with tensordict's `meta.json`, so that `TensorDict.load_memmap(folder)` opens them, too;
- for a streamed modality, `index/NAME.memmap` instead of its inputs: where each sample is in which
  shard, see `evenly.data.raw.streamed`;
- `dataset.json`, which describes the arrays and is written last: a folder without it is not a
  store, or one in the making. It has checksums of itself and of all arrays except the inputs, whose
  size shows that they are complete.
"""

import json
import re
import unicodedata
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evenly.data.dataset import (
    CHECKS,
    SPLITS,
    Data,
    Modality,
    Ragged,
    SplitName,
    Stored,
    Streamed,
    check_names,
    lacking,
)
from evenly.data.tasks import restated
from evenly.errors import UserError, UserFileNotFoundError
from evenly.files import write_text

DESCRIPTION = "dataset.json"
FORMAT = 4


@dataclass(frozen=True)
class Field:
    """Facts about one modality of a store.

    Attributes:
        kind: As in `Modality`.
        shape: As in `Modality`.
        dtype: Type of its values, torch's name without the prefix.
        mean: Mean over the training split, as in `Modality`.
        std: Standard deviation likewise.
        units: Units of its values, in words.
        rate: Samples, frames or time steps per second; None if their spacing varies, as for frames
            picked by the length of each clip.
        sample_rate: Samples per second of the sound it was made from; None for all else.
        ragged: Whether its sequences have unequal lengths.
        missing: Number of samples that lack it.
        read: How its files were read, with every setting.
        streamed: Whether its samples stay in their shards, and are decoded when they are read.
    """

    kind: str
    shape: list[int]
    dtype: str
    mean: list[float]
    std: list[float]
    units: str = ""
    rate: float | None = None
    sample_rate: int | None = None
    ragged: bool = False
    missing: int = 0
    read: str = ""
    streamed: bool = False


@dataclass(frozen=True)
class Description:
    """The content of `dataset.json`.

    Attributes:
        name: Name of the data set.
        samples: Rows of every array; rows in no split were left out.
        names: Names of the samples.
        modalities: Modalities by name.
        task: What to predict, as from `Task.stated`.
        splits: Number of samples by split.
        sources: Size of each source file in bytes.
        checksums: Checksum of each array's file; inputs have none.
        shards: Size in bytes of each file with streamed samples, by path.
        made_by: The command that made the store.
        official: The official data set that it holds, with every setting; empty for others.
        label_columns: The columns of its table that held the labels; empty if it had no table.
        version: Version of evenly.
        notes: Sentences that a user of the data should see.
        format: Format of this file.
    """

    name: str
    samples: int
    names: list[str]
    modalities: dict[str, Field]
    task: dict[str, Any]
    splits: dict[str, int]
    sources: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    made_by: str = ""
    official: str = ""
    label_columns: list[str] = field(default_factory=list)
    version: str = ""
    notes: list[str] = field(default_factory=list)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Turns a folder with all its arrays into a store."""
        known = asdict(self)
        whole = known | {"checksum": _checksum(known)}
        text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / DESCRIPTION, text + "\n")


def _checksum(description: Mapping[str, Any]) -> int:
    """The checksum of a description's content, however it is formatted."""
    return zlib.crc32(json.dumps(description, sort_keys=True).encode())


def is_store(folder: Path) -> bool:
    """Whether a folder is a finished store."""
    return (folder / DESCRIPTION).is_file()


def describe(folder: Path) -> Description:
    """A store's description.

    Raises:
        FileNotFoundError: If the folder is not a store.
        ValueError: If its description is damaged or of another format.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserFileNotFoundError(
            f"{folder}: is not a prepared store: it holds no {DESCRIPTION}. Make one with 'evenly "
            "prepare'."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = found["format"]
        if known == FORMAT:
            if found.pop("checksum", None) != _checksum(found):
                raise ValueError("it is not as evenly wrote it")
            fields = {name: Field(**values) for name, values in found["modalities"].items()}
            restated(found["task"])
            return Description(**{**found, "modalities": fields})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        said = "it is not as evenly wrote it" if isinstance(error, AttributeError) else error
        raise UserError(f"{path}: is damaged ({said}). Prepare the store again.") from error
    raise UserError(
        f"{path}: has the format {known}, this version reads {FORMAT}. Prepare the store again, "
        "or update evenly."
    )


def open_store(folder: Path) -> Data:
    """A data set from its store; only what is read is loaded, and the rest stays on disk.

    Raises:
        FileNotFoundError: If the folder is not a store.
        ValueError: If one of its files, or a shard that it reads, is missing or has another size,
            or a split lacks a class.
    """
    about = describe(folder)
    check_names(folder, about.modalities)
    _check_shards(folder, about.shards)
    files = file_names(about.modalities)
    arrays = _Arrays(folder, about)
    inputs: dict[str, Stored] = {}
    streamed = _streamed(folder, about, arrays)
    for name, known in about.modalities.items():
        dtype = getattr(torch, known.dtype)
        if known.streamed:
            inputs[name] = streamed[name]
        elif known.ragged:
            start, length = (arrays.rows(f"{end}/{files[name]}", torch.int64) for end in RAGGED)
            width = () if known.kind == "text" else known.shape[1:]
            total = int((start + length).max())
            values = arrays.read(f"inputs/{files[name]}", dtype, (total, *width))
            inputs[name] = Ragged(values, start, length)
        else:
            inputs[name] = arrays.rows(f"inputs/{files[name]}", dtype, *known.shape)
    split = arrays.rows("split", torch.uint8)
    rows: dict[SplitName, Tensor] = {
        name: torch.nonzero(split == number).flatten() for number, name in enumerate(SPLITS)
    }
    task = restated(about.task)
    if task.name == "classes":
        target = arrays.rows("label", torch.int64)
    else:
        target = arrays.rows("label", torch.float32, len(task.names))
    for name, members in rows.items():
        CHECKS[task.name](folder, name, target[members], task.names)
    missing = {name: known.missing for name, known in about.modalities.items() if known.missing}
    count = sum(about.splits.values())
    notes = [lacking(name, few, count) for name, few in missing.items()]
    if streamed:
        notes.append(
            f"{folder}: holds where {', '.join(streamed)} of its samples are, not their values. "
            f"They are decoded in every epoch, from {_in_shards(about.shards)}."
        )
    return Data(
        about.name,
        inputs,
        target,
        rows,
        task.names,
        [*about.notes, *notes],
        modalities={name: _modality(name, known) for name, known in about.modalities.items()},
        present={name: arrays.rows(f"present/{files[name]}", torch.bool) for name in missing},
        read={name: known.read for name, known in about.modalities.items()},
        names=about.names,
        task=task,
        label_columns=about.label_columns,
    )


def _streamed(folder: Path, about: Description, arrays: "_Arrays") -> dict[str, Streamed]:
    """The modalities that stay in their shards, by name."""
    names = [name for name, known in about.modalities.items() if known.streamed]
    if not names:
        return {}
    # Its media readers take seconds to import.
    from evenly.data.raw.streamed import INDEX, Decoders, InShards, reader_of

    files = file_names(about.modalities)
    decoders = Decoders({name: reader_of(about.modalities[name].read) for name in names}, folder)
    found: dict[str, Streamed] = {}
    for name in names:
        known = about.modalities[name]
        index = arrays.rows(f"index/{files[name]}", torch.int64, len(INDEX))
        length = arrays.rows(f"length/{files[name]}", torch.int64) if known.ragged else None
        row, dtype = tuple(known.shape[known.ragged :]), getattr(torch, known.dtype)
        found[name] = InShards(name, decoders, list(about.shards), index, row, dtype, length)
    return found


def _in_shards(shards: Collection[str]) -> str:
    """Which files, in words."""
    first = next(iter(shards))
    return first if len(shards) == 1 else f"{len(shards)} shards such as {first}"


def _check_shards(folder: Path, shards: Mapping[str, int]) -> None:
    """Raises if a file that a store reads is gone or has another size.

    Args:
        folder: The store's folder, for the message.
        shards: The original size of each shard, by path.
    """
    for name, size in shards.items():
        path = Path(name)
        if not path.is_file():
            raise UserFileNotFoundError(
                f"{name}: there is no such file, of which {folder} decodes samples. Bring it back, "
                "or remove the folder and prepare again."
            )
        if (found := path.stat().st_size) != size:
            raise UserError(
                f"{name}: has {found:,} bytes, and had {size:,} when {folder} was made of it. "
                "Bring back what was there, or remove the folder and prepare again."
            )


def file_names(modalities: Iterable[str]) -> dict[str, str]:
    """The file name of each modality, valid on every system: other characters as ~ and numbers.

    A number distinguishes names that some systems treat as equal, such as 'A' and 'a'.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in modalities:
        plain = re.sub(r"[^\w-]", lambda match: f"~{ord(match[0]):x}", name)
        alike, number = plain, 1
        while (key := unicodedata.normalize("NFKC", alike).casefold()) in taken:
            number += 1
            alike = f"{plain}~~{number}"
        taken.add(key)
        found[name] = alike
    return found


RAGGED = ("start", "length")
"""What is stored for a modality of unequal lengths, besides its values."""


class _Arrays:
    """The raw files of a store, checked and mapped."""

    def __init__(self, folder: Path, about: Description) -> None:
        self.folder, self.count, self.checksums = folder, about.samples, about.checksums

    def rows(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """An array with a row for each sample."""
        return self.read(name, dtype, (self.count, *shape))

    def read(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        path = self.folder / f"{name}.memmap"
        expected = dtype.itemsize * int(np.prod(shape))
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise UserError(
                f"{path}: has {found:,} bytes, but {DESCRIPTION} speaks of {expected:,}. The "
                "store is damaged: prepare it again."
            )
        known = self.checksums.get(name)
        if known is not None and zlib.crc32(path.read_bytes()) != known:
            raise UserError(
                f"{path}: is not as evenly wrote it. The store is damaged: prepare it again."
            )
        return mapped(path, dtype, shape)


def mapped(path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A file's bytes as a tensor that loads only what is read."""
    from tensordict import MemoryMappedTensor  # takes a second to import

    found: Tensor = MemoryMappedTensor.from_filename(path, dtype, torch.Size(shape))
    # Indexing a plain tensor avoids a detour through Python for each call.
    return found.as_subclass(Tensor)


def write_meta(folder: Path, arrays: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """Writes tensordict's own description beside the arrays, which stay unchanged."""
    from tensordict import MemoryMappedTensor, TensorDict

    found = TensorDict({}, batch_size=[])
    for name, (dtype, shape) in arrays.items():
        path = folder / f"{name}.memmap"
        found[tuple(name.split("/"))] = MemoryMappedTensor.from_filename(
            path, dtype, torch.Size(shape)
        )
    found.memmap_(folder, copy_existing=False)


def _modality(name: str, known: Field) -> Modality:
    mean, std = torch.tensor(known.mean), torch.tensor(known.std)
    kind: Any = known.kind
    return Modality(name, kind, tuple(known.shape), mean, std)
