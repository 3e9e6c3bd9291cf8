"""Which samples are for training, validation and testing: by a data set's names of splits."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evenly.data.dataset import SPLITS, SplitName
from evenly.data.raw.columns import RESERVED, Columns
from evenly.errors import UserError

_MEANT: dict[str, SplitName] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_WORDS = ("train", "val", "test", "dev", "eval")
"""Beginnings of these words; those that begin alike are one word."""
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
"""The form of a file name written by `datasets`."""


def meant(name: str) -> SplitName | None:
    """The split that a word in a name means, as in 'validation' or 'test.clean'."""
    words = re.findall(r"[a-z]+", name.lower())
    found = {_MEANT[word] for word in words if word in _MEANT}
    return found.pop() if len(found) == 1 else None


def is_split(name: str) -> bool:
    """Whether a name is just a word for a split."""
    return name.lower() in _MEANT


def check_apart(path: Path, names: Sequence[str]) -> None:
    """Raises if two words, such as 'dev' and 'val', would become one split.

    Args:
        path: Path of the data set.
        names: Its names of splits, each of which means one.

    Raises:
        ValueError: If there are two.
    """
    known: dict[SplitName | None, tuple[str, str]] = {}
    for name in dict.fromkeys(names):
        split = meant(name)
        found = re.findall(r"[a-z]+", name.lower())
        word = next(x for word in found if word in _MEANT for x in _WORDS if word.startswith(x))
        first, other = known.setdefault(split, (word, name))
        if first != word:
            raise UserError(
                f"{path}: the splits '{other}' and '{name}' would both be {split}. Say with "
                f"--splits which are train, val and test; '{other}+{name}' joins the two."
            )


def with_split(
    path: Path, columns: Columns, taken: Collection[str | None], *, picked: bool
) -> tuple[Columns, list[str]]:
    """The columns with the one that names splits as `split`, and notes about it.

    Args:
        path: Path of the table.
        columns: Columns of the table.
        taken: Columns that are something else.
        picked: Whether splits are picked by name, which leaves other rows out.

    Raises:
        ValueError: If several columns could be it, some rows of the only one name no split and are
            not left out, or names of folders seem to tell it.
    """
    free = [name for name in columns.cells if name not in (*RESERVED, *taken)]
    named = {
        name: texts
        for name in free
        if (texts := columns.recurring(name, len(_MEANT))) and _are_splits(texts)
    }
    whole = [name for name, texts in named.items() if None not in map(_meant, texts)]
    if "split" in columns.cells:
        why = dict.fromkeys(whole, "names splits, so it is not a modality")
        return replace(columns, aside={**columns.aside, **why}), []
    found = whole or list(named)
    if len(found) > 1:
        raise UserError(
            f"{path}: the columns {', '.join(found)} all name splits. Name the one to use 'split'."
        )
    if not found and "split" in columns.refused:
        raise columns.refused["split"]
    if not found:
        return columns, []
    if not whole and not picked:
        row, text = next((n, x) for n, x in enumerate(named[found[0]], 1) if _meant(x) is None)
        raise UserError(
            f"{path}: the column '{found[0]}' names splits, but row {row} holds "
            f"{repr(text) if text else 'nothing'}. Name the split of every row; say with --splits "
            "which are train, val and test, to leave the other rows out; or say "
            f"--readers.{found[0]}=text if these are no splits."
        )
    cells = {"split" if name == found[0] else name: x for name, x in columns.cells.items()}
    return replace(columns, cells=cells), [f"{path.name}: '{found[0]}' is the split column."]


def _are_splits(cells: Sequence[str | None]) -> bool:
    """Whether most cells are words for splits, the training split and another."""
    means = [split for text in cells if (split := _meant(text))]
    return 2 * len(means) > len(cells) and "train" in means and len(set(means)) > 1


def _meant(text: str | None) -> SplitName | None:
    """The split that a cell names, if it holds just a word for one."""
    return _MEANT.get(text.lower()) if text else None


def named_splits(path: Path, files: Sequence[Path]) -> list[str] | None:
    """The name of each file's split; None if names do not distinguish the files.

    Args:
        path: Path of the folder.
        files: The files in it.

    Raises:
        ValueError: If one of several that belong together is missing, or some name a split and
            others do not.
    """
    _check_whole(path, files)
    found = [_named(file.relative_to(path)) for file in files]
    known = [name for name in found if name and meant(name)]
    if not known:
        return None
    for file, name in zip(files, found, strict=True):
        if name is None:
            raise UserError(
                f"{file}: names no split, and other files of {path} do, such as "
                f"'{known[0]}'. Move it away, or put train, validation or test into its name."
            )
    return [str(name) for name in found] if len(set(found)) > 1 else None


def check_one_set(path: Path, files: Sequence[Path]) -> None:
    """Raises if folders hold files of the same split each, as several versions of a data set do.

    Args:
        path: Path of the folder.
        files: The files in it.

    Raises:
        ValueError: If there are several versions.
    """
    known: dict[tuple[SplitName, str], Path] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        place = file.relative_to(path)
        parts = [*place.parent.parts, shard["split"] if shard else file.stem]
        while parts and not meant(parts[-1]):
            parts.pop()
        if not parts or (split := meant(parts.pop())) is None:
            continue
        above = "/".join(part for part in parts if not meant(part))
        known.setdefault((split, above), place)
        other = next(folder for name, folder in known if name == split)
        if other != above:
            raise UserError(
                f"{path}: {known[split, other]} and {place} are both of the {split} split, but in "
                "different folders, like two versions of a data set. Give one of the folders, "
                "or move the files into one if they belong together."
            )


def _named(file: Path) -> str | None:
    """The split in the name of a file, or else of its nearest folder."""
    shard = _SHARD.fullmatch(file.stem)
    if shard:
        return shard["split"]
    names = [file.stem, *(folder.name for folder in file.parents)]
    return next((name for name in names if meant(name)), None)


def _check_whole(path: Path, files: Sequence[Path]) -> None:
    shards = [(file, shard) for file in files if (shard := _SHARD.fullmatch(file.stem))]
    there = {str(file.relative_to(path)) for file in files}
    for file, shard in shards:
        for number in range(int(shard["count"])):
            name = f"{shard['split']}-{number:05}-of-{shard['count']}{file.suffix}"
            other = str(file.with_name(name).relative_to(path))
            if other not in there:
                raise UserError(
                    f"{path}: {other} is missing, another part of the set that {file.name} belongs "
                    "to. Download it, too."
                )


def chosen(path: Path, columns: Columns, splits: Mapping[str, str]) -> Columns:
    """The rows of the requested splits, under our names.

    Args:
        path: Path of the data set.
        columns: All its rows.
        splits: For `train`, `val` and `test`, the data set's own name, or several joined by +.

    Raises:
        ValueError: If there is no such split, or one is requested twice.
    """
    marks = columns.texts("split")
    if marks is None:
        raise UserError(
            f"{path}: has no splits to choose from, neither by the names of its files nor in a "
            "column 'split'. Leave --splits out: they are drawn."
        )
    given = list(dict.fromkeys(map(str, marks)))
    ours: dict[str, str] = {}
    for name, asked in splits.items():
        if name not in SPLITS:
            raise UserError(f"--splits: '{name}' is no split of ours. Use {', '.join(SPLITS)}.")
        for one in asked.split("+"):
            if one not in given:
                raise UserError(
                    f"{path}: has no split '{one}', which --splits takes for {name}. There is "
                    f"{', '.join(given)}."
                )
            if one in ours:
                raise UserError(
                    f"--splits: '{one}' cannot be both {ours[one]} and {name}. Give each split of "
                    f"{path} once."
                )
            ours[one] = name
    rows = [row for row, mark in enumerate(marks) if str(mark) in ours]
    kept = columns.kept(rows)
    left = len(marks) - len(rows)
    note = f"{path.name}: {left} samples are in none of the splits asked for: left out."
    cells: dict[str, Any] = {**kept.cells, "split": [ours[str(marks[row])] for row in rows]}
    return replace(kept, cells=cells, notes=[*kept.notes, *([note] * bool(left))])
