"""From files to a store: several processes decode every sample once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evenly.data.dataset import CHECKS, SPLITS, check_names
from evenly.data.raw.decode import decoded, listed, read, unlike
from evenly.data.raw.journal import Journal, is_whole, size_of
from evenly.data.raw.readers import Array
from evenly.data.raw.rows import Part
from evenly.data.raw.source import Source, target_of
from evenly.data.store import Description, describe
from evenly.errors import UserError
from evenly.files import naming


def prepare(
    source: Source,
    out: Path,
    *,
    workers: int,
    skip_broken: bool = False,
    stream: bool = False,
    made_by: str = "",
) -> Description:
    """Decodes a data set into a store, or continues where an earlier call stopped.

    Args:
        source: The data set.
        out: The store's folder.
        workers: Processes that decode.
        skip_broken: Leave out samples whose files are missing or broken, and say so in the
            store's notes.
        stream: Leave samples in their shards, to be decoded whenever they are read: each is decoded
            once as a check, and those of the training split again for statistics.
        made_by: The command, for the record.

    Raises:
        ValueError: If files are missing or broken, with a list and reasons; if samples should stay
            in shards but there are none; if the folder holds another store or other files, or
            another process writes to it; if the result is inconsistent.
    """
    check_names(source.name, source.readers)
    _check_splits(source)
    if not skip_broken and (wrong := _unfit(source)):
        raise UserError(_broken(source, wrong))
    with naming(out), Journal(source, out, _in_shards(source) if stream else ()) as journal:
        waiting = [n for n in range(len(source.samples)) if n not in journal.done]
        if journal.finished:
            _check_unchanged(source, journal.changed, out)
        if journal.finished and not waiting:
            return describe(out)
        with tqdm(
            total=len(source.samples),
            initial=len(source.samples) - len(waiting),
            unit="sample",
            disable=None,
        ) as bar:
            for number, found in decoded(source, waiting, workers):
                journal.add(number, found)
                bar.update()
        if journal.broken and not (skip_broken and journal.done):
            raise UserError(_broken(source, journal.broken))
        # If files are still broken, nothing changes: existing runs continue with the store.
        return describe(out) if is_whole(out) else journal.finish(made_by, workers)


def _in_shards(source: Source) -> list[str]:
    """The modalities whose samples are parts of shared files.

    Raises:
        ValueError: If there are none.
    """
    found = [
        name
        for name in source.readers
        if any(isinstance(sample.cells.get(name), Part) for sample in source.samples)
    ]
    if not found:
        raise UserError(
            f"{source.name}: --stream needs files in .tar shards, and there are none. Leave it out."
        )
    return found


def _unfit(source: Source) -> dict[int, str]:
    """What is wrong with numbers already loaded, before any file is decoded."""
    wrong, first = {}, dict[str, Any]()
    readers = {name: reader for name, reader in source.readers.items() if isinstance(reader, Array)}
    for number, sample in enumerate(source.samples):
        cells = {
            name: cell for name, cell in sample.cells.items() if isinstance(cell, np.ndarray | list)
        }
        found = read(readers, cells) if cells.keys() & readers else {}
        reason = found if isinstance(found, str) else unlike(readers, found, first)
        if reason:
            wrong[number] = reason
    return wrong


def _check_unchanged(source: Source, changed: Sequence[Path], out: Path) -> None:
    """Raises if files of samples have changed since a store was made, or a table its size."""
    known = describe(out).sources
    # Deleted files do not matter: the store has their content.
    opened = [path for path in source.opened if str(path) in known and path.exists()]
    odd = [path for path in opened if size_of(path) != known[str(path)]]
    if changed := list(dict.fromkeys([*odd, *changed])):
        raise UserError(
            f"{out}: {len(changed)} of its files have changed since it was made, such as "
            f"{changed[0]}. Remove the folder and prepare again, or choose another --out."
        )


def _check_splits(source: Source) -> None:
    if source.task.name == "labels" and len(source.classes) < 2:
        raise UserError(
            f"{source.name}: has only the label '{''.join(source.classes)}'. A task with "
            "several labels needs at least two."
        )
    if source.task.name == "classes" and len(source.classes) < 2:
        raise UserError(
            f"{source.name}: all samples are of the class '{''.join(source.classes)}'. "
            "Classification needs two classes: check the column of labels (--label), or add "
            "samples of another class."
        )
    for split in SPLITS:
        target = target_of([sample for sample in source.samples if sample.split == split])
        if not len(target):
            raise UserError(
                f"{source.name}: the {split} split is empty. Training needs all of "
                f"{', '.join(SPLITS)}: mark rows in the column 'split', or choose with --splits."
            )
        CHECKS[source.task.name](source.name, split, target, source.classes)


def _broken(source: Source, broken: dict[int, str]) -> str:
    named = [(source.samples[n].name, broken[n]) for n in sorted(broken)]
    return (
        f"{source.name}: {len(broken)} of {len(source.samples)} samples cannot be "
        f"used:\n{listed(named)}\nRepair these files and run the same command again, which "
        "decodes only them; or leave the samples out with --skip-broken."
    )
