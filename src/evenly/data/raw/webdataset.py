"""WebDataset's shards: tar archives in which a sample's files share a key as their name.

Archives are read in place. Nothing is unpacked, and no member's name is used as a path.
"""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

from evenly.data.raw.columns import Columns, columns_of, of_records
from evenly.data.raw.folders import MEDIA
from evenly.data.raw.rows import Files, Part
from evenly.data.raw.splits import named_splits
from evenly.errors import UserError, UserFileNotFoundError

_KINDS = {
    "array": ("npy",),
    "text": ("txt", "text", "transcript"),
    "class": ("cls",),
    "fields": ("json",),
    "pickle": ("pth", "pt", "pyd", "pickle", "pkl"),
}
_KIND = {f".{ending}": kind for kind, endings in _KINDS.items() for ending in endings} | MEDIA
"""What members hold, by the end of their extension."""
_REFUSED = {
    "pickle": "holds pickles, which could run code of their own and are never opened: write .npy "
    "for numbers and .json for the rest",
    "": "holds files that no reader knows by their extension: rename them",
}
_BLOCK = 512
"""Block size of an archive in bytes."""


@dataclass
class _Sample:
    """The members of one key, by extension."""

    name: str
    key: str
    parts: dict[str, Part] = field(default_factory=dict)


def shard_paths(path: Path) -> list[Path]:
    """The archives that a path names: itself, or those of its ranges in braces.

    Args:
        path: Such as `a.tar`, or `a-{000000..000009}.tar`, or `{train,test}.tar`.

    Raises:
        FileNotFoundError: If one of them is missing.
    """
    parts = re.split(r"\{([^{}]*)\}", str(path))
    choices = [[part] if n % 2 == 0 else _within(path, part) for n, part in enumerate(parts)]
    found = [Path("".join(chosen)) for chosen in product(*choices)]
    if gone := [file for file in found if not file.is_file()]:
        raise UserFileNotFoundError(
            f"{gone[0]}: there is no such file, of {len(found)} that {path} names. Check the path."
        )
    return found


def _within(path: Path, text: str) -> list[str]:
    """The items of a range in braces, such as 08..11, or of a list."""
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if not ends:
        return text.split(",")
    first, last = ends.groups()
    if int(last) < int(first):
        raise UserError(f"{path}: the range {{{text}}} ends before it begins. Swap its ends.")
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]


def tar_columns(path: Path, shards: Sequence[Path]) -> Columns:
    """The columns of consecutive archives, one for each extension.

    `.cls` is the label; so is the field `label` of `.json`, whose other fields are modalities only
    if requested.

    Args:
        path: Their common name.
        shards: The archives.

    Raises:
        ValueError: If an archive is broken, or its content makes no sense.
    """
    several = len(shards) > 1
    by_shard = [_samples(shard, several=several) for shard in shards]
    samples = [sample for found in by_shard for sample in found]
    named = named_splits(_root(shards), shards) if several else None
    notes = _repeated(path, samples)
    cells: dict[str, Any] = {"name": [sample.name for sample in samples]}
    fields: dict[str, Any] = {}
    for column, endings in _columns(path, samples, notes).items():
        kind = _kind(endings[0])
        parts = [next((s.parts[e] for e in endings if e in s.parts), None) for s in samples]
        if kind == "fields":
            found = _fields(path, samples, parts)
            if twice := next((name for name in found if name in fields), None):
                raise UserError(
                    f"{path}: '{twice}' is a field of .json of several extensions, such as "
                    f".{endings[0]}, as a key ends at its first dot. Leave dots out of the keys, "
                    "or rename the field."
                )
            fields |= found
        elif kind in ("text", "class"):
            pairs = zip(samples, parts, strict=True)
            cells[column] = [part and (_text(path, s, part).strip() or None) for s, part in pairs]
        else:
            media = "" if kind == "array" else kind
            cells[column] = Files(parts, media, _REFUSED.get(kind, ""))
    fields.pop("name", None)  # the key is the name
    if named:
        shares = zip(named, by_shard, strict=True)
        cells["split"] = [split for split, found in shares for _ in found]
    if twice := next((name for name in fields if name in cells), None):
        raise UserError(
            f"{path}: '{twice}' is a field of .json, and is said by the names of the files, too. "
            "Rename one."
        )
    cells |= fields
    why = "is a field of .json, and no modality unless --modalities names it"
    return columns_of(
        path,
        list(cells),
        list(cells.values()),
        aside=dict.fromkeys(fields, why),
        labels=[name for name in ("cls", "label") if name in cells],
        root=path,  # no folder: texts are never paths
        opened=shards,
        notes=notes,
    )


def _root(shards: Sequence[Path]) -> Path:
    """The folder that all archives are in."""
    return Path(os.path.commonpath([shard.parent for shard in shards]))


def _kind(ending: str) -> str:
    return _KIND.get(Path(f"x.{ending}").suffix, "")


def _samples(shard: Path, *, several: bool) -> list[_Sample]:
    """The samples of an archive, in its order."""
    found: dict[str, _Sample] = {}
    for name, part in _members(shard):
        folder, slash, base = name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if not (stem and dot and ending):
            continue  # such as .DS_Store, or a README
        key, ending = f"{folder}{slash}{stem}", ending.lower()
        ending = re.sub(r"jpeg$", "jpg", re.sub(r"tiff$", "tif", ending))
        sample = found.setdefault(key, _Sample(f"{shard.stem}/{key}" if several else key, key))
        if ending in sample.parts:
            raise UserError(
                f"{shard}: holds two files '{key}.{ending}'. Give each sample a key of its own."
            )
        sample.parts[ending] = part
    if not found:
        raise UserError(
            f"{shard}: holds no samples. They are files such as 0001.jpg and 0001.cls, one key for "
            "each sample."
        )
    return list(found.values())


def _members(shard: Path) -> Iterator[tuple[str, Part]]:
    """The files in an archive: their names and positions."""
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                if not member.isreg() or member.issparse():
                    raise UserError(
                        f"{shard}: holds '{name}', which is a link or another special file. Pack "
                        "the files that it leads to: tar --dereference."
                    )
                if member.offset_data + member.size > size:
                    raise UserError(f"{shard}: ends within '{name}'. Download it again.")
                yield name, Part(shard, member.offset_data, member.size)
            end = archive.offset
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{shard}: is no whole tar archive ({error}). Download it again."
        ) from error
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(
                f"{shard}: is damaged or cut off after {end:,} bytes. Download it again."
            )
        while rest := file.read(1 << 20):
            if rest.strip(b"\0"):
                raise UserError(
                    f"{shard}: goes on after its end, perhaps as several archives in one. Join "
                    "archives by: tar --concatenate."
                )


def _repeated(path: Path, samples: Sequence[_Sample]) -> list[str]:
    """Notes on duplicate samples, and on keys with several samples."""
    groups = [list(samples)]
    for look in (_sizes, _beginnings, _contents):  # few bytes of all but those still alike
        groups = [alike for group in groups for alike in _grouped(group, look) if len(alike) > 1]
    notes = []
    if spare := [sample.name for group in groups for sample in group[1:]]:
        first, second = (sample.name for sample in groups[0][:2])
        notes.append(
            f"{path.name}: {len(spare):,} of {len(samples):,} samples have the very files of "
            f"another, such as '{second}' those of '{first}'. Of two that are alike, one may be in "
            "the training split and one in the test split: leave one out."
        )
    left = Counter(sample.key for sample in samples) - Counter(
        sample.key for group in groups for sample in group[1:]
    )
    if shared := [key for key, count in left.items() if count > 1]:
        notes.append(
            f"{path.name}: {len(shared):,} keys are in more than one shard, such as '{shared[0]}', "
            "with other files. They are taken for different samples."
        )
    return notes


def _grouped(samples: Sequence[_Sample], look: Callable[[Part], object]) -> Iterable[list[_Sample]]:
    """Groups of samples whose files look the same."""
    found: dict[object, list[_Sample]] = {}
    for sample in samples:
        seen = frozenset((ending, look(part)) for ending, part in sample.parts.items())
        found.setdefault(seen, []).append(sample)
    return found.values()


def _sizes(part: Part) -> int:
    return part.size


def _beginnings(part: Part) -> bytes:
    return _contents(replace(part, size=min(part.size, 4096)))


def _contents(part: Part) -> bytes:
    return blake2b(part.read()).digest()


def _columns(
    path: Path, samples: Sequence[_Sample], notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """The extensions of each column: several if, say, each sample's picture is in one of them."""
    endings = dict.fromkeys(ending for sample in samples for ending in sample.parts)
    alike: dict[tuple[str, str], list[str]] = {}
    for ending in endings:
        kind = _kind(ending)
        what = kind if kind in MEDIA.values() else ending
        alike.setdefault((ending.rpartition(".")[0], what), []).append(ending)
    found: dict[str, tuple[str, ...]] = {}
    for group in alike.values():
        together = any(sum(ending in sample.parts for ending in group) > 1 for sample in samples)
        for several in [[ending] for ending in group] if together else [group]:
            found[several[0].replace(".", "_")] = tuple(several)
            if len(several) > 1:
                notes.append(
                    f"{path.name}: .{' and .'.join(several)} are one modality, as no sample has "
                    "more than one of them."
                )
    return found


def _text(path: Path, sample: _Sample, part: Part) -> str:
    try:
        return part.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: a text of '{sample.name}' is not in UTF-8. Write it so."
        ) from error


def _fields(path: Path, samples: Sequence[_Sample], parts: Sequence[Part | None]) -> dict[str, Any]:
    """The fields of `.json` members, as columns of Arrow or of texts."""
    rows: list[Mapping[str, Any]] = []
    for sample, part in zip(samples, parts, strict=True):
        try:
            row = {} if part is None else json.loads(_text(path, sample, part))
        except ValueError as error:
            raise UserError(
                f"{path}: the .json of '{sample.name}' cannot be read ({error}). Correct it."
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: the .json of '{sample.name}' holds no fields. Write an object, such as "
                '{"label": "cat"}.'
            )
        rows.append(row)
    return of_records(rows)
