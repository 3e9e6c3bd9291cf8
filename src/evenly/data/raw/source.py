"""A data set before it is prepared: the files and values of each sample."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenly.data.dataset import SPLITS, SplitName, few
from evenly.data.raw.readers import Reader
from evenly.data.tasks import Task


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        name: Name of the sample, for messages.
        label: Its class; for several labels, 1 or 0 each; or its numbers.
        split: Its split.
        cells: By modality, what its reader takes, or a tuple of several files; None, or no entry,
            if missing.
    """

    name: str
    label: int | tuple[float, ...]
    split: SplitName
    cells: Mapping[str, Any]

    def files(self) -> Iterator[Path]:
        """The files and folders of its cells."""
        for cell in self.cells.values():
            for part in several_of(cell):
                path = getattr(part, "path", part)
                if isinstance(path, Path):
                    yield path


def several_of(cell: Any) -> tuple[Any, ...]:
    """The files of a cell, which may be one or a tuple of several."""
    return cell if isinstance(cell, tuple) else (cell,)


def target_of(samples: Sequence[Sample]) -> Tensor:
    """The target of some samples: (n,) classes, or (n, c) for several labels or numbers."""
    labels = [sample.label for sample in samples]
    is_several = any(isinstance(label, tuple) for label in labels)
    return torch.tensor(labels, dtype=torch.float32 if is_several else torch.int64)


@dataclass(frozen=True)
class Source:
    """All samples of a data set, and how to read them.

    Attributes:
        name: Name of the data set.
        readers: Readers by modality.
        samples: Samples in the order of the store.
        task: What to predict.
        notes: Sentences that a user of the data should see.
        opened: Files that were read to find the samples, such as a table.
        official: The official data set with every setting; empty for the user's own data.
        label_columns: The columns of a table that hold its labels, by its own names; empty for all
            else.
    """

    name: str
    readers: Mapping[str, Reader]
    samples: Sequence[Sample]
    task: Task
    notes: Sequence[str] = field(default=())
    opened: Sequence[Path] = field(default=())
    official: str = ""
    label_columns: Sequence[str] = field(default=())

    @property
    def target(self) -> Tensor:
        """The target of every sample, as in `Data`."""
        return target_of(self.samples)

    @property
    def classes(self) -> list[str]:
        """The names of the classes or labels, or of columns of numbers."""
        return list(self.task.names)

    def limited(self, count: int) -> "Source":
        """At most `count` samples per split, balanced over classes, that have all their files.

        This is for trials: if a data set is incomplete, it takes what is there.
        """
        kept: set[int] = set()
        task = self.task.fitted(self.target)
        for split in SPLITS:
            there = [
                n
                for n, sample in enumerate(self.samples)
                if sample.split == split and all(path.exists() for path in sample.files())
            ]
            if not there:
                continue
            chosen = few(task, target_of([self.samples[n] for n in there]), count)
            kept |= {there[n] for n in chosen.tolist()}
        return replace(self, samples=[self.samples[n] for n in sorted(kept)])

    def files(self) -> Iterator[Path]:
        """Every file and folder to read, once."""
        found = dict.fromkeys(self.opened)
        found |= dict.fromkeys(path for sample in self.samples for path in sample.files())
        return iter(found)
