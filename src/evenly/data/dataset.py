"""A data set, in memory or memory-mapped, and how to read batches from it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, NamedTuple, TypedDict, get_args
from zlib import crc32

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import Dataset

from evenly.data.missing import lost
from evenly.data.noise import noisy
from evenly.data.numbers import pooled
from evenly.data.tasks import Task, task_of
from evenly.errors import UserError, UserRuntimeError
from evenly.suggest import unknown

Kind = Literal["vector", "sequence", "image", "video", "text"]
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
LONGEST_NAME = 80
"""Maximum bytes of a modality's name; a file's may have three times as many."""
NUMBERING = re.compile(
    r"(?i:index|idx|u?u?id|row|(row|sample)_?(id|idx|index|number)|level_\d+|.+_id)|.*[a-z]I[dD]"
)
"""Names of columns that number the samples, if their whole numbers or words all differ."""


class Padded(NamedTuple):
    """Sequences of unequal lengths in one tensor.

    Attributes:
        values: (n, t, d), or (n, t) for tokens, or (n, t, c, h, w) for pictures; zero beyond each
            sequence's length.
        length: (n,) time steps of each sequence.
    """

    values: Tensor
    length: Tensor


class Ragged(NamedTuple):
    """Sequences of unequal lengths as stored: one after another, in any order.

    Attributes:
        values: (total, d) time steps of all samples; (total,) whole numbers for text; (total, c, h,
            w) pictures, of which samples have different numbers.
        start: (n,) where each sample begins.
        length: (n,) time steps of each sample; sample i is `values[start[i]:start[i] + length[i]]`.
    """

    values: Tensor
    start: Tensor
    length: Tensor


class Streamed(ABC):
    """A modality that is not stored: its samples are decoded whenever they are read.

    Attributes:
        row: The shape of a sample, or of a time step if lengths differ.
        dtype: Type of the values.
        length: (n,) time steps of each sample; None if all have one shape.
    """

    row: tuple[int, ...]
    dtype: torch.dtype
    length: Int[Tensor, " n"] | None

    @abstractmethod
    def read(self, rows: Int[Tensor, " k"]) -> Tensor | Ragged:
        """These samples, in this order, as they would be stored.

        Raises:
            ValueError: If a file is gone or has changed.
        """


Stored = Tensor | Ragged | Streamed
"""All samples of a modality."""


class Batch(TypedDict):
    """One batch.

    Attributes:
        inputs: Inputs by modality, in the stored dtype; the encoder converts and standardises.
        present: By modality, (n,) which samples have it; modalities not named are complete. The
            input of a missing modality is zeros. On the CPU.
        target: (n,) class of each sample; (n, c) of several labels, 1 or 0, or of numbers.
        index: (n,) position of each sample in its split.
    """

    inputs: dict[str, Tensor | Padded]
    present: dict[str, Tensor]
    target: Tensor
    index: Tensor


@dataclass(frozen=True)
class Modality:
    """What an encoder must know about its input.

    Attributes:
        name: Its name in the data set.
        kind: The layout of a sample.
        shape: Shape of one sample: (d,) for a vector, (t, d) with t the longest for a sequence, (c,
            h, w) for an image, (t, c, h, w) with t the most for a video or several pictures, (t, v)
            with v the number of tokens for a text; a spectrogram is an image with c = 1.
        mean: Mean over the training split, per feature (vector, sequence) or channel (image,
            video); empty for a text.
        std: Standard deviation likewise; 0 if the feature is constant.
        read: How its files were read, in the form that requests a reader; empty if unknown.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    read: str = ""

    @property
    def spread(self) -> Float[Tensor, "..."]:
        """The standard deviation in a shape to multiply samples by: channels come first."""
        return self.std.reshape((-1, 1, 1) if self.kind in ("image", "video") else (-1,))


class Data:
    """A whole data set; its arrays may be memory maps, which load only what is read.

    Attributes:
        name: Name of the data set.
        modalities: Modalities by name.
        task: What to predict.
        class_names: Names by class number, or of labels, or of columns of numbers.
        notes: Sentences that a user of the data should see.
        bayes: The best accuracy that any model can have, by modality and for "all" together, if
            known because the data are generated.
        read: By modality, how its files were read, if the data came from files.
        names: Names of all samples, if they have any; those of a split are at its `rows`.
        label_columns: The columns that held the labels, if the data came from a table.
    """

    def __init__(
        self,
        name: str,
        inputs: Mapping[str, Stored],
        target: Shaped[Tensor, "n *c"],
        rows: Mapping[SplitName, Int[Tensor, " _"]],
        class_names: Sequence[str],
        notes: Sequence[str] = (),
        bayes: Mapping[str, float] | None = None,
        modalities: Mapping[str, Modality] | None = None,
        present: Mapping[str, Bool[Tensor, " n"]] | None = None,
        read: Mapping[str, str] | None = None,
        names: Sequence[str] | None = None,
        task: Task | None = None,
        label_columns: Sequence[str] = (),
    ) -> None:
        """Takes the arrays as they are.

        Args:
            name: Name of the data set.
            inputs: By modality, all samples: (n, d) for vectors, (n, t, d) or `Ragged` for
                sequences, (n, c, h, w) for images, (n, t, c, h, w) or `Ragged` for videos; or
                `Streamed`.
            target: Class of each sample, from 0; (n, c) floats, 1 or 0, for several labels; (n, c)
                floats in any unit for numbers.
            rows: The samples of each split.
            class_names: Names by class number.
            notes: Sentences that a user of the data should see.
            bayes: Known best accuracies.
            modalities: Facts about the inputs; by default measured on the training split.
            present: By modality, which samples have it; modalities not named are complete.
            read: By modality, how its files were read.
            names: Names of all samples.
            task: What to predict; by default classes, or labels if a target is a row.
            label_columns: The columns of a table that held the labels.
        """
        self.name = name
        self.label_columns = tuple(label_columns)
        self.names = names
        self.class_names = list(class_names)
        self.notes = list(notes)
        self.bayes = None if bayes is None else dict(bayes)
        self._inputs = dict(inputs)
        self.read = dict(read or {})
        self._present = dict(present or {})
        self._target = target
        self._rows = dict(rows)
        task = task_of(target, class_names) if task is None else task
        self.task = task.fitted(target[rows["train"]]) if "train" in rows else task
        if modalities is None:
            modalities = {
                key: described(key, stored, self._rows["train"]) for key, stored in inputs.items()
            }
        self.modalities = {
            key: replace(known, read=self.read.get(key, "")) for key, known in modalities.items()
        }
        self._noise: dict[str, Tensor] = {}
        self._taken: dict[str, Tensor] = {}

    def limited(self, count: int) -> "Data":
        """The same data, with at most `count` samples per split, balanced over classes.

        There may be a few more: each class keeps a sample, and each of several labels keeps one
        that has it and one that lacks it. Means and deviations stay those of all samples.
        """
        rows = {
            name: members[few(self.task, self._target[members], count)]
            for name, members in self._rows.items()
        }
        return self._with(_rows=rows)

    def noisy(self, levels: Mapping[str, float]) -> "Data":
        """The same data with white noise on some modalities, the same each time a sample is read.

        Means and deviations stay those without noise.

        Args:
            levels: Noise by modality, in standard deviations of its training split.

        Raises:
            ValueError: If there is no such modality, or it is a text.
        """
        for name in levels:
            if name not in self.modalities:
                raise unknown("modality", name, self.modalities)
            if self.modalities[name].kind == "text":
                raise UserError(f"'{name}' is text; noise cannot be added to it.")
        spread = {name: level * self.modalities[name].spread for name, level in levels.items()}
        return self._with(_noise=spread, bayes=None if levels else self.bayes)

    def missing(self, rates: Mapping[SplitName, Mapping[str, float]], seed: int) -> "Data":
        """The same data, with modalities removed from some samples, besides those already missing.

        Removed inputs are zeros. Means and deviations stay those of all samples.

        Args:
            rates: By split and modality, the share of its samples, see `lost`; 0 if not named.
            seed: Seed of the draw.

        Raises:
            ValueError: If there is no such modality, or samples would have none.
        """
        names = list(self.modalities)
        for name in {name for of_split in rates.values() for name in of_split}:
            if name not in self.modalities:
                raise unknown("modality", name, names)
        if not any(rate for of_split in rates.values() for rate in of_split.values()):
            return self
        whole = torch.ones(len(self._target), dtype=torch.bool)
        here = torch.stack([self._present.get(name, whole) for name in names])
        gone = torch.zeros_like(here)
        for split, of_split in rates.items():
            if sum(of_split.values()) > len(names) - 1 + 1e-9:
                raise UserError(
                    f"the rates of missing modalities add up to {sum(of_split.values()):g} in "
                    f"the {split} split; with {len(names)} modalities at most {len(names) - 1} "
                    "is possible, since every sample keeps one. Lower them."
                )
            if split in self._rows:
                rows = self._rows[split].cpu()
                each = [of_split.get(name, 0.0) for name in names]
                gone[:, rows] = lost(each, here[:, rows], rows, seed)
        taken = {name: x for name, x in zip(names, gone, strict=True) if x.any()}
        left = dict(zip(names, here & ~gone, strict=True))
        return self._with(
            _taken=taken,
            _present={**self._present, **{name: left[name] for name in taken}},
            bayes=None if taken else self.bayes,
        )

    def without(self, name: SplitName) -> "Data":
        """The same data without a split, which then cannot be read."""
        rows = {split: members for split, members in self._rows.items() if split != name}
        return self._with(_rows=rows)

    def lacks(self, name: SplitName) -> dict[str, int]:
        """The number of samples of a split that lack each modality, without complete modalities."""
        rows = self._rows[name].cpu()
        counts = {key: int((~here[rows]).sum()) for key, here in self._present.items()}
        return {key: count for key, count in counts.items() if count}

    def bare(self, name: SplitName, modalities: Collection[str]) -> Int[Tensor, " k"]:
        """Positions of the samples of a split that have none of these modalities."""
        rows = self._rows[name].cpu()
        lost = bare(modalities, {key: here[rows] for key, here in self._present.items()})
        return rows.new_zeros(0) if lost is None else lost.nonzero().flatten()

    def has(self, name: SplitName) -> bool:
        """Whether there is such a split; `without` removes one."""
        return name in self._rows

    def is_ragged(self, name: str) -> bool:
        """Whether the sequences of a modality have unequal lengths."""
        return _length(self._inputs[name]) is not None

    @property
    def is_streamed(self) -> bool:
        """Whether any modality is decoded whenever it is read."""
        return any(isinstance(stored, Streamed) for stored in self._inputs.values())

    def encoded(self, name: str, features: Mapping[SplitName, Float[Tensor, "n d"]]) -> "Data":
        """The same data with vectors instead of a modality's inputs, without noise.

        Args:
            name: Name of the modality.
            features: Vectors by split.
        """
        width = features["train"].shape[1]
        whole = features["train"].new_zeros(len(self._target), width)
        for split, found in features.items():
            whole[self._rows[split]] = found
        vector = Modality(name, "vector", (width,), torch.zeros(width), torch.ones(width))
        return self._with(
            _inputs={**self._inputs, name: whole},
            modalities={**self.modalities, name: vector},
            _noise={key: level for key, level in self._noise.items() if key != name},
        )

    @property
    def nbytes(self) -> int:
        """Size of all stored inputs."""
        return sum(x.nbytes for stored in self._inputs.values() for x in _tensors(stored))

    def to(self, device: torch.device) -> "Data":
        """The same data on a device, so that reading batches needs no transfer.

        The masks of present modalities stay on the CPU, where a model reads them.

        Raises:
            RuntimeError: If a modality is streamed, since it is decoded on the CPU.
        """
        if self.is_streamed:
            raise UserRuntimeError(f"{self.name}: is streamed, so it cannot be put on a device.")

        def moved(stored: Stored) -> Stored:
            parts = [x.to(device) for x in _tensors(stored)]
            return Ragged(*parts) if isinstance(stored, Ragged) else parts[0]

        return self._with(
            _inputs={name: moved(stored) for name, stored in self._inputs.items()},
            _target=self._target.to(device),
            _rows={name: rows.to(device) for name, rows in self._rows.items()},
        )

    def _with(self, **parts: Any) -> "Data":
        """The same data, except for these parts."""
        other = copy(self)
        for name, part in parts.items():
            setattr(other, name, part)
        return other

    def split(self, name: SplitName) -> "Split":
        """One of the three splits; it shares the arrays of the whole."""
        return Split(
            self._inputs, self._target, self._rows[name], self._present, self._noise, self._taken
        )


class Split(Dataset[Batch]):
    """One split of a data set, read a whole batch at a time.

    Use it in a `DataLoader` with `collate_fn=evenly.data.collate`.

    Attributes:
        rows: (n,) position of each sample in the whole data set.
        target: (n,) class of each sample; (n, c) of several labels, 1 or 0, or of numbers.
    """

    def __init__(
        self,
        inputs: Mapping[str, Stored],
        target: Tensor,
        rows: Int[Tensor, " n"],
        present: Mapping[str, Tensor],
        noise: Mapping[str, Tensor],
        taken: Mapping[str, Tensor],
    ) -> None:
        self._inputs, self._present = inputs, present
        self._noise, self._taken = noise, taken
        self.rows = rows
        self.target = target[rows]
        # Whatever decides shapes is looked up on the CPU, without waiting for a GPU.
        self._seats = rows.cpu()
        lengths = {name: _length(stored) for name, stored in inputs.items()}
        self._lengths = {name: x.cpu() for name, x in lengths.items() if x is not None}
        for name in taken.keys() & self._lengths.keys():
            self._lengths[name] = self._lengths[name].masked_fill(taken[name], 0)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, name: str) -> "Split":
        """The same split, but reading only one modality."""
        other = copy(self)
        other._inputs = {name: self._inputs[name]}
        other._noise = {key: level for key, level in self._noise.items() if key == name}
        other._taken = {key: gone for key, gone in self._taken.items() if key == name}
        return other

    def __getitem__(self, index: int) -> Batch:
        """A batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these positions, with one indexing operation per modality."""
        asked = torch.tensor(indices)
        seats = self._seats[asked]
        index = asked.to(self.rows.device, non_blocking=True)
        rows = self.rows[index]
        inputs: dict[str, Tensor | Padded] = {}
        for name, stored in self._inputs.items():
            held, places = _held(stored, rows)
            if isinstance(held, Ragged):
                inputs[name] = _padded(held, places, int(self._lengths[name][seats].max()))
            else:
                # For bytes, six times as fast as held[places].
                inputs[name] = held.index_select(0, places)
        for name, spread in self._noise.items():
            inputs[name] = with_noise(name, inputs[name], spread, seats)
        for name, gone in self._taken.items():
            inputs[name] = _emptied(inputs[name], gone[seats])
        present = {name: here[seats] for name, here in self._present.items()}
        target = self.target[index]
        return Batch(inputs=inputs, present=present, target=target, index=index)


def with_noise(
    name: str,
    x: Tensor | Padded,
    spread: Float[Tensor, "..."],
    row: Int[Tensor, " n"],
    seed: int = 0,
) -> Tensor | Padded:
    """A modality of a batch with `noisy` values, independent of other modalities' noise."""
    seed = crc32(f"{seed} {name}".encode())
    if isinstance(x, Padded):
        return Padded(noisy(x.values, spread, row, seed=seed, length=x.length), x.length)
    return noisy(x, spread, row, seed=seed)


def collate(batch: Any) -> Batch:
    """Passes on the batch that `Split` has already read."""
    whole: Batch = batch
    return whole


def stratified(
    target: Int[Tensor, " n"], fractions: Sequence[float], seed: int = 0
) -> list[Int[Tensor, " _"]]:
    """Splits samples into parts in which every class has the same share.

    Args:
        target: Class of each sample.
        fractions: Fraction of each class for each part but the last, which takes the rest. A part
            gets at least one sample of each class while there are any.
        seed: Seed of the draw.

    Returns:
        The positions of each part in ascending order, with one more part than fractions.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in range(len(fractions) + 1)]
    for number in target.unique():
        members = torch.nonzero(target == number).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        start = 0
        for part, fraction in zip(parts, fractions, strict=False):
            end = start + max(1, round(fraction * len(members)))
            part.append(members[start:end])
            start = end
        parts[-1].append(members[start:])
    return [torch.cat(part).sort().values for part in parts]


def drawn(task: Task, target: Tensor, share: float) -> Int[Tensor, " k"]:
    """Draws a share of samples, with seed 0, whose targets resemble those of all samples.

    Each class is drawn from separately, and gives at least one sample. Numbers and labels may have
    too many groups for that: the share is taken from all samples, evenly along the groups. If a
    label, or having none, is the rarest of only one sample, that sample is not drawn.

    Args:
        task: Task of the samples.
        target: Target of each sample.
        share: Share in (0, 1).

    Returns:
        Positions in ascending order; at least one, unless there are fewer than two samples.
    """
    group = task.groups(target)
    if task.name == "classes":
        return stratified(group, (share,))[0]
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(0))
    if task.name == "labels":
        order = order[group.bincount()[group[order]] > 1]
    if len(order) < 2:
        return order[:0]
    order = order[group[order].argsort(stable=True)]
    count = max(1, round(share * len(order)))
    # The middles of equally long parts, in whole numbers.
    return order[(2 * torch.arange(count) + 1) * len(order) // (2 * count)].sort().values


def _tensors(stored: Stored) -> tuple[Tensor, ...]:
    """The stored tensors of a modality."""
    if isinstance(stored, Streamed):
        return ()
    return tuple(stored) if isinstance(stored, Ragged) else (stored,)


def _length(stored: Stored) -> Int[Tensor, " n"] | None:
    """Time steps of each sample of a modality; None if all have one shape."""
    return None if isinstance(stored, Tensor) else stored.length


def _held(stored: Stored, rows: Int[Tensor, " k"]) -> tuple[Tensor | Ragged, Int[Tensor, " k"]]:
    """Values that include those of these samples, and where they are."""
    if isinstance(stored, Streamed):
        return stored.read(rows), torch.arange(len(rows))
    return stored, rows


def few(task: Task, target: Tensor, count: int) -> Int[Tensor, " k"]:
    """Positions of about `count` samples, spread over the groups of a task.

    A label that is not the rarest of any sample has no group; its first sample is added. So is the
    first sample that lacks a label which all chosen samples have.
    """
    found = spread(task.groups(target), count)
    if task.name != "labels":
        return found
    states = torch.cat([target > 0, target <= 0], 1)
    lost = states.any(0) & ~states[found].any(0)
    whole: Tensor = torch.cat([found, states.int().argmax(0)[lost]]).unique()
    return whole


def spread(target: Int[Tensor, " n"], count: int) -> Int[Tensor, " k"]:
    """Positions of at most `count` samples: the first of each class, the second of each, ...

    Every class has one, even if there are more than `count` classes.
    """
    count = max(count, len(target.unique()))
    turn = torch.zeros_like(target)
    for number in target.unique():
        members = target == number
        turn[members] = torch.arange(int(members.sum()), device=target.device)
    return turn.argsort(stable=True)[:count].sort().values


def check_names(where: object, names: Iterable[str]) -> None:
    """Raises if a modality has an unusable name.

    Args:
        where: The file or data set, for the message.
        names: Names of the modalities.
    """
    for name in names:
        # ModuleDict, which holds the encoders, refuses its own attributes' names.
        if not name or "." in name or "/" in name or hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"{where}: rename the modality '{name}': torch cannot store an encoder under "
                "that name, which has dots or slashes or belongs to ModuleDict itself."
            )
        if not name.isprintable():
            raise UserError(f"{where}: rename the modality {name!r}, without line breaks and tabs.")
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(
                f"{where}: the modality name '{name[:30]}...' is too long for a file name. Use "
                f"at most {LONGEST_NAME} bytes."
            )


def bare(
    names: Collection[str], present: Mapping[str, Bool[Tensor, " n"]]
) -> Bool[Tensor, " n"] | None:
    """Which samples have none of some modalities; None if one of these is complete.

    Args:
        names: The modalities.
        present: By modality, which samples have it; modalities not named are complete.
    """
    masks = [present[name] for name in names if name in present]
    if not masks or len(masks) < len(names):
        return None
    return ~torch.stack(masks).any(0)


def lacking(name: str, missing: int, samples: int) -> str:
    """What a user should know about a modality that some samples lack."""
    return (
        f"{missing} of {samples} samples lack '{name}': its encoder skips them, and their "
        "features are zeros."
    )


def dtype_name(x: Tensor) -> str:
    """The type of a tensor's numbers by torch's name, without the prefix."""
    return str(x.dtype).removeprefix("torch.")


def if_numbers(names: Sequence[str]) -> str:
    """What the refusal of classes adds if they could be numbers; otherwise empty."""
    whole = all(re.fullmatch(r"-?\d+", name) for name in names)
    return ", or use --task number to regress on them" if whole else ""


def check_classes(
    where: object, split: SplitName, target: Int[Tensor, " n"], class_names: Sequence[str]
) -> None:
    """Raises if a split lacks a class, or samples.

    Args:
        where: The file or data set, for the message.
        split: Name of the split.
        target: Class of each of its samples.
        class_names: Names by class number.
    """
    if len(target) < len(class_names):
        raise UserError(
            f"{where}: the {split} split has {len(target)} samples for {len(class_names)} "
            "classes; it needs at least one of each. Move some to it, or merge "
            f"classes{if_numbers(class_names)}."
        )
    counts = target.bincount(minlength=len(class_names))
    missing = [class_names[number] for number in torch.nonzero(counts == 0).flatten()]
    if missing:
        listed = ", ".join(f"'{label}'" for label in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{where}: the {split} split has no sample of class {listed}{more}. Split again so "
            "that every split has every class, or leave the class "
            f"out{if_numbers(class_names)}."
        )


def check_labels(
    where: object, split: SplitName, target: Float[Tensor, "n c"], names: Sequence[str]
) -> None:
    """Raises if a split lacks samples, or the training split a label or samples without it.

    Args:
        where: The file or data set, for the message.
        split: Name of the split.
        target: 1 or 0 for each label of each of its samples.
        names: Names of the labels.
    """
    if not len(target):
        raise UserError(f"{where}: the {split} split has no sample. Move some to it.")
    one_sided = target.min(0).values == target.max(0).values
    if split == "train" and one_sided.any():
        name = names[int(one_sided.nonzero()[0])]
        raise UserError(
            f"{where}: in the training split, all samples or none have the label '{name}', so "
            "it cannot be learnt. Split again, or leave it out."
        )


def check_numbers(
    where: object, split: SplitName, target: Float[Tensor, "n c"], names: Sequence[str]
) -> None:
    """Raises if a split lacks samples, or all numbers of the training split are equal.

    Args:
        where: The file or data set, for the message.
        split: Name of the split.
        target: The numbers of each of its samples.
        names: Names of the columns.
    """
    if not len(target):
        raise UserError(f"{where}: the {split} split has no sample. Move some to it.")
    alike = target.min(0).values == target.max(0).values
    if split == "train" and alike.any():
        number = int(alike.nonzero()[0])
        raise UserError(
            f"{where}: in the training split '{names[number]}' is {float(target[0, number]):g} in "
            "all samples, so there is nothing to learn. Split again, or leave it out."
        )


CHECKS = {"classes": check_classes, "labels": check_labels, "number": check_numbers}
"""By task, a check that raises if a split cannot be learnt or measured."""


def _padded(stored: Ragged, rows: Int[Tensor, " n"], longest: int) -> Padded:
    start, length = stored.start[rows], stored.length[rows]
    step = torch.arange(longest, device=length.device)
    beyond = step >= length[:, None]
    # Steps beyond a sequence's end refer to the first row and are zeroed: no loop over samples.
    place = (start[:, None] + step).masked_fill_(beyond, 0)
    values = stored.values[place]
    values.masked_fill_(beyond.reshape(*beyond.shape, *[1] * (values.dim() - 2)), 0)
    return Padded(values, length)


def _emptied(x: Tensor | Padded, gone: Bool[Tensor, " n"]) -> Tensor | Padded:
    """Inputs with zeros for samples that have lost the modality."""
    if isinstance(x, Padded):
        gone = gone.to(x.length.device, non_blocking=True)
        return Padded(_zeroed(x.values, gone), x.length.masked_fill(gone, 0))
    return _zeroed(x, gone.to(x.device, non_blocking=True))


def _zeroed(x: Tensor, gone: Bool[Tensor, " n"]) -> Tensor:
    return x.masked_fill_(gone.reshape(-1, *[1] * (x.dim() - 1)), 0)


def described(
    name: str,
    stored: Stored,
    train: Int[Tensor, " n"],
    again: Callable[[], Stored] | None = None,
) -> Modality:
    """What an encoder must know about a modality, measured on the training split.

    Args:
        name: Name of the modality.
        stored: Its values.
        train: Rows of the training split.
        again: Reopens a memory map of `stored`. It is called every few samples, since pages read
            from a map count as this process's memory while the map is open.
    """
    row, length = _row(stored), _length(stored)
    if isinstance(stored, Ragged) and not row:
        longest, tokens = int(stored.length.max()), int(stored.values.max()) + 1
        return Modality(name, "text", (longest, tokens), torch.zeros(0), torch.zeros(0))
    shape = row if length is None else (int(length.max()), *row)
    kinds: dict[int, Kind] = {1: "vector", 2: "sequence", 3: "image", 4: "video"}
    kind = kinds[len(shape)]
    feature = -3 if kind in ("image", "video") else -1
    mean, std = _moments(again or (lambda: stored), train, feature)
    return Modality(name, kind, shape, mean, std)


def _row(stored: Stored) -> tuple[int, ...]:
    """The shape of a sample, or of a time step if lengths differ."""
    if isinstance(stored, Streamed):
        return stored.row
    return tuple((stored.values if isinstance(stored, Ragged) else stored).shape[1:])


def _moments(
    opened: Callable[[], Stored], rows: Int[Tensor, " n"], feature: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and standard deviation along all axes but `feature`, in one pass of chunks.

    Without any row they are 0.
    """
    none = torch.zeros(_row(opened())[feature], dtype=torch.float64)
    found = (0, none, none)
    for chunk in filter(len, _chunks(opened, rows, feature)):
        mean = chunk.mean(0)
        found = pooled(found, (len(chunk), mean, (chunk - mean).square_().sum(0)))
    count, mean, squares = found
    std = (squares / max(count, 1)).sqrt()
    # What rounding leaves of a constant's deviation is not a deviation.
    std = torch.where(std > 1e-12 * mean.abs(), std, 0.0)
    return mean.float(), std.float()


def _chunks(
    opened: Callable[[], Stored], rows: Int[Tensor, " n"], feature: int
) -> Iterator[Float[Tensor, "n d"]]:
    """The values of these samples in float64, with the feature last, a few samples at a time."""
    stored = opened()
    length = _length(stored)
    longest = 1 if length is None else int(length.max())
    values = longest * prod(_row(stored))
    for part in rows.split(max(1, min(1024, 2**20 // max(values, 1)))):
        stored, places = _held(opened(), part)
        if isinstance(stored, Ragged):
            chunk = stored.values[_steps(stored.start[places], stored.length[places])]
        else:
            chunk = stored.index_select(0, places)
        yield chunk.movedim(feature, -1).flatten(0, -2).double()


def _steps(start: Int[Tensor, " n"], length: Int[Tensor, " n"]) -> Shaped[Tensor, " t"]:
    """The time steps that belong to these samples."""
    begins = torch.repeat_interleave(start - (length.cumsum(0) - length), length)
    return begins + torch.arange(len(begins))
