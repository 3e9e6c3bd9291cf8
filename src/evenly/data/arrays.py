"""Your own data sets, as arrays in one `.npz` file."""

import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenly.data.archive import read_archive, wrong
from evenly.data.dataset import (
    CHECKS,
    NUMBERING,
    SPLITS,
    Data,
    Kind,
    Ragged,
    SplitName,
    check_names,
    described,
    drawn,
    if_numbers,
    lacking,
)
from evenly.data.numbers import Array, blurred, channels_first, native, spelt, unusable
from evenly.data.tasks import Asked, Name, Numbers, Scale, Task, task_of
from evenly.errors import UserError
from evenly.files import replacing

VALIDATION = 0.15
WORDS = 10_000_000
"""Limit of token numbers in texts; encoders keep a vector for each."""
_FLOATS = (torch.float16, torch.float32, torch.float64)
"""Types that NumPy has, too."""
_RESERVED = ("labels", "split", "class_names")


def load_npz(
    path: Path,
    needed: Collection[SplitName] = ("train", "test"),
    *,
    labelled: bool = True,
    kinds: Mapping[str, Kind | None] | None = None,
    task: Asked = "auto",
) -> Data:
    """Reads a data set from an `.npz` file.

    The file holds

    - `labels` (N): whole numbers or strings, mapped to classes from 0 in ascending order; or (N, C)
      of booleans or 0 and 1: several labels per sample, one per column, which a note says; or (N)
      or (N, C) other floats: numbers to regress on. The string `labels_kind` overrides this:
      `classes`, `labels`, `number`, or `sentiment`, numbers from -3 to 3 measured as in MMSA;
    - `split` (N): `train`, `val`, `test` or 0, 1, 2. Without a validation split, 15 % of train is
      drawn for one (seed 0; see `evenly.data.dataset.drawn`), from every class, or evenly along
      labels or numbers. A note says so, unless one is needed;
    - every other array whose first axis is N: a modality of that name. One sample of it is a
      vector (1-D), an image of one channel (2-D, 8-bit integers), a sequence (any other 2-D:
      time, features), an image (3-D: c, h, w; or h, w, c if only the last axis is 1, 3 or 4) or a
      video (4-D: t, c, h, w; or t, h, w, c likewise). The string `NAME_kind` overrides this:
      `vector`, `sequence`, `image`, `video`, or `text`, which is whole numbers, one for each token,
      and 0 after the last one;
    - `NAME` with `NAME_offset` (N + 1): concatenated sequences of different lengths. Sample i is
      `NAME[NAME_offset[i]:NAME_offset[i + 1]]`, and lacks the modality if that is empty;
    - `class_names` (C), optional: in the order of the classes or columns, even for one column.

    An array `id` or `index` (N) of distinct whole numbers or words names the samples. It is not a
    modality, unless `id_kind` says what it is. A note says so.

    Args:
        path: Path of the file.
        needed: The splits that must be in it. Others are left out, except `val`.
        labelled: If false, labels and splits are optional: the target of samples without labels is
            -1, and samples without a split are in test. Without labels, no validation split can be
            drawn; a note says so.
        kinds: By modality, the kind of an array if the file does not say; None if its form tells.
            These arrays are modalities whatever they are called.
        task: How to read `labels`, whatever the file says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not have that form.
    """
    reader = _Reader(path, needed)
    reader.kinds, reader.asked = kinds or {}, task
    return reader.data() if labelled else reader.unlabelled()


def save_npz(
    path: Path,
    labels: npt.ArrayLike,
    split: npt.ArrayLike,
    modalities: Mapping[str, npt.ArrayLike],
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes the file that `load_npz` reads: whole, or not at all.

    Args:
        path: Where to write; an existing file is replaced.
        labels: (N) class of each sample; (N, C) of 0 and 1 for several labels; (N) or (N, C)
            floats to regress on.
        split: (N) `train`, `val`, `test` or 0, 1, 2.
        modalities: Arrays by name, with `NAME_offset`, `NAME_kind` and `labels_kind` if they apply.
            Types that NumPy cannot store, such as bfloat16, are widened to float32.
        class_names: In the order of the classes or columns.

    Raises:
        TypeError: If something is not an array of numbers or strings.
        ValueError: If `load_npz` would not read it without `task`. To say what the labels are, give
            `labels_kind`.
    """
    given = {"labels": labels, "split": split, **modalities}
    if class_names is not None:
        given["class_names"] = class_names
    arrays = {name: writable(name, value) for name, value in given.items()}
    _Reader(path, (), arrays).check()
    with (
        replacing(path) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, array in arrays.items():
            # Not with NumPy's savez, which takes some names as its own arguments.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def writable(name: str, value: npt.ArrayLike) -> Array:
    """An array in a form that can be written without pickling."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        unknown = value.is_floating_point() and value.dtype not in _FLOATS
        value = value.float() if unknown else value
    if np.ma.is_masked(value):
        raise TypeError(
            f"save_npz: '{name}' holds masked values. Fill them, or leave out those samples."
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"save_npz: '{name}' is not an array ({error}).") from error
    if array.dtype.kind in "TO" and array.size and all(isinstance(x, str) for x in array.flat):
        return np.array(array.tolist(), np.str_)
    if array.dtype.hasobject:
        raise TypeError(
            f"save_npz: '{name}' holds Python objects, which would have to be pickled. Give "
            "numbers, or strings as a fixed-width array."
        )
    if array.dtype.isbuiltin == 2:  # from another package, such as ml_dtypes
        return array.astype(np.int8 if "int" in array.dtype.name else np.float32)
    return array


class _Reader:
    """The arrays of one file, and what is wrong with them."""

    kinds: Mapping[str, Kind | None] = {}  # of known modalities, where the file does not say
    asked: Asked = "auto"  # how to read labels

    def __init__(
        self, path: Path, needed: Collection[SplitName], arrays: dict[str, Array] | None = None
    ) -> None:
        self.path = path
        self.needed = needed
        self.arrays = read_archive(path) if arrays is None else arrays

    def check(self) -> None:
        """Raises if anything is wrong, except for the sizes of splits and classes."""
        self.count = self._count()
        self._target()
        self._split_numbers()
        self._inputs()

    def data(self) -> Data:
        for name in ("labels", "split"):
            if name not in self.arrays:
                raise self._error(
                    f"has no array '{name}', only {', '.join(self.arrays) or 'nothing'}. Add "
                    f"'{name}', one entry per sample."
                )
        self.count = self._count()
        target, task = self._target()
        if task.name == "classes" and len(target.unique()) < 2:
            raise self._error(
                f"all labels are '{task.names[int(target[0])]}'. Classification needs two classes: "
                "add samples of another."
            )
        labels = self.arrays["labels"].reshape(self.count, -1)
        if task.name == "number" and (wrong := blurred(labels)):
            which = f"column '{task.names[wrong[0]]}' of " if labels.shape[1] > 1 else ""
            raise self._error(f"{which}'labels' {wrong[1]}.")
        notes: list[str] = []
        rows = self._rows(target, task, notes)
        for split, members in rows.items():
            CHECKS[task.name](self.path, split, target[members], task.names)
        inputs, present = self._inputs()
        self._check_blurred(inputs)
        notes += [
            f"{self.path.name}: the array '{name}' numbers the samples, so it is not a "
            f"modality. Add '{name}_kind' if it is one."
            for name in self._indices()
        ]
        notes += [lacking(name, int((~here).sum()), self.count) for name, here in present.items()]
        data = Data(
            self.path.stem,
            inputs,
            target,
            rows,
            task.names,
            notes,
            present=present,
            names=self._sample_names(),
            task=task,
        )
        if isinstance(data.task, Numbers):
            data.notes += filter(None, [self._found(data.task), data.task.remark()])
        elif task.name == "labels" and self.asked == "auto" and "labels_kind" not in self.arrays:
            data.notes.append(self._found_several(task))
        return data

    def _check_blurred(self, inputs: Mapping[str, Tensor | Ragged]) -> None:
        """Raises if float32 cannot distinguish the numbers of a modality."""
        for name, stored in inputs.items():
            values = stored.values if isinstance(stored, Ragged) else stored
            if values.dim() == 1:  # a text
                continue
            features = values.movedim(-3, -1) if values.dim() > 3 else values
            if wrong := blurred(features.numpy()):
                which = f"feature {wrong[0] + 1} of " if features.shape[-1] > 1 else ""
                raise self._error(f"{which}modality '{name}' {wrong[1]}.")

    def unlabelled(self) -> Data:
        self.count = self._count() if "labels" in self.arrays else self._rows_of_modalities()
        target: Tensor = torch.full((self.count,), -1)
        task: Task = task_of(target, ())
        if "labels" in self.arrays:
            target, task = self._target()
        split = np.full(self.count, SPLITS.index("test"))
        if "split" in self.arrays:
            split = self._split_numbers()
        inputs, present = self._inputs()
        every = torch.arange(self.count)
        rows = {name: every[torch.from_numpy(split == n)] for n, name in enumerate(SPLITS)}
        notes: list[str] = []
        if len(rows["train"]) and not len(rows["val"]):
            notes.append(self._drawn_if_possible(rows, target, task))
        return Data(
            self.path.stem,
            inputs,
            target,
            rows,
            task.names,
            notes,
            modalities={name: described(name, x, every) for name, x in inputs.items()},
            present=present,
            names=self._sample_names(),
            task=task,
        )

    def _drawn_if_possible(self, rows: dict[SplitName, Tensor], target: Tensor, task: Task) -> str:
        """Draws a validation split like a training; a note on it, or on why there is none."""
        if "labels" not in self.arrays:
            return (
                f"{self.path.name} has no validation split, and no labels by which a training "
                "would draw one: its training split is whole."
            )
        try:
            return self._draw(rows, target, task)
        except UserError as error:
            return str(error)

    def _sample_names(self) -> list[str] | None:
        """The names of the samples; None if no array names them."""
        first = next(iter(self._indices()), None)
        return None if first is None else [str(value) for value in self._text(first)]

    def _indices(self) -> list[str]:
        """The arrays that number or name the samples."""
        return [name for name in self.arrays if self._is_index(name)]

    def _inputs(self) -> tuple[dict[str, Tensor | Ragged], dict[str, Tensor]]:
        """The modalities, and which samples have the incomplete ones."""
        inputs = {name: self._modality(name) for name in self._names()}
        present = {
            name: stored.length > 0
            for name, stored in inputs.items()
            if isinstance(stored, Ragged) and not stored.length.all()
        }
        if len(present) == len(inputs):
            nothing = torch.nonzero(~torch.stack(list(present.values())).any(0)).flatten().tolist()
            for row in nothing:
                raise self._error(f"sample {row} has no modality. Leave it out.")
        return inputs, present

    def _rows_of_modalities(self) -> int:
        """The number of samples, from the arrays alone."""
        others = {name: x for name, x in self.arrays.items() if name not in _RESERVED}
        offsets = [
            len(x) - 1
            for name, x in others.items()
            if name.endswith("_offset") and self._belongs(name) and x.ndim
        ]
        plain = [len(x) for name, x in others.items() if not self._belongs(name) and x.ndim]
        if not plain:
            raise self._error("has no modality. Add an array with one row per sample.")
        return (offsets or plain)[0]

    def _error(self, what: str) -> UserError:
        return wrong(self.path, what)

    def _count(self) -> int:
        labels = self.arrays["labels"]
        if labels.ndim not in (1, 2) or not labels.size:
            raise self._error(
                f"'labels' has the shape {labels.shape}. Give one label per sample, (N,), or a "
                "column of 0 and 1 for each of several labels, (N, C)."
            )
        return len(labels)

    def _target(self) -> tuple[Tensor, Task]:
        """The targets and their task, from the request, the file or their form."""
        labels, asked = self._text("labels"), str(self.asked)
        scale: Scale = ""
        if "labels_kind" in self.arrays:
            said = " ".join(str(word) for word in self._text("labels_kind").reshape(-1))
            if said not in CHECKS.keys() | {"sentiment"}:
                listed = ", ".join([*CHECKS, "sentiment"])
                raise self._error(f"'labels_kind' is '{said}'. Use {listed}.")
            scale = "sentiment" if said == "sentiment" else ""
            said = "number" if scale else said
            asked = said if asked == "auto" else asked
        if asked == "auto":
            asked = _task_name(labels)
        if asked == "number":
            return self._numbers(labels, scale)
        return self._several(labels) if asked == "labels" else self._classes(labels)

    def _classes(self, labels: Array) -> tuple[Tensor, Task]:
        """One class per sample."""
        whole = labels.dtype.kind in "iuUb" or (
            labels.dtype.kind == "f" and bool((labels == np.round(labels)).all())
        )
        if labels.ndim != 1 or not whole:
            raise self._error(
                f"'labels' holds {labels.dtype} values of shape {labels.shape}, which are not "
                "classes. Give one whole number or string per sample, (N,), or floats to "
                "regress on."
            )
        if labels.dtype.kind == "f":
            labels = labels.astype(np.int64)
        found, number = np.unique(labels, return_inverse=True)
        names = [str(value) for value in found]
        if "class_names" in self.arrays:
            number, names = self._named(found, number)
        target = torch.from_numpy(number.astype(np.int64))
        return target, task_of(target, names)

    def _several(self, labels: Array) -> tuple[Tensor, Task]:
        """Several labels per sample."""
        fits = labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iubf"
        if not fits or not np.isin(labels, (0, 1)).all():
            raise self._error(
                f"'labels' holds {labels.dtype} values of shape {labels.shape}, which are not "
                "sets of labels. Give a column per label, 1 where a sample has it and 0 "
                "elsewhere; one class per sample, (N,); or floats to regress on."
            )
        names = self._columns(labels.shape[1], "label")
        if joined := [name for name in names if ";" in name]:
            raise self._error(
                f"'class_names' contains ';' in '{joined[0]}', which separates labels in "
                "predictions. Rename it."
            )
        target = torch.from_numpy(labels.astype(np.float32))
        return target, task_of(target, names)

    def _numbers(self, labels: Array, scale: Scale) -> tuple[Tensor, Task]:
        """Numbers to regress on, a column for each."""
        if labels.dtype.kind not in "iubf":
            raise self._error(
                f"'labels' holds {labels.dtype} values, which cannot be regressed on. Leave "
                "--task and 'labels_kind' out, or give numbers."
            )
        bad = np.argwhere(unusable(labels))
        if len(bad):
            raise self._error(
                f"'labels' holds {spelt(labels[tuple(bad[0])])} in sample {bad[0][0]}, which "
                "cannot be regressed on. Leave out such samples."
            )
        labels = labels.reshape(len(labels), -1).astype(np.float32)
        if scale and labels.shape[1] > 1:
            raise self._error(
                f"'labels' has {labels.shape[1]} columns, but sentiment is one number per "
                "sample. Leave 'labels_kind' out, or give one column."
            )
        names = self._columns(labels.shape[1], "number")
        return torch.from_numpy(labels), Numbers(tuple(names), scale=scale)

    def _columns(self, count: int, what: str) -> list[str]:
        """Names of the columns of `labels`."""
        if "class_names" not in self.arrays:
            return [what] if count == 1 else [f"{what} {number}" for number in range(count)]
        names = [str(name) for name in self._text("class_names").reshape(-1)]
        if len(set(names)) != count:
            raise self._error(
                f"'class_names' has {len(set(names))} different names for {count} "
                f"column{'' if count == 1 else 's'} of 'labels'. Give one for each."
            )
        return names

    def _found(self, task: Numbers) -> str:
        """A note on how labels were read, if they could also be numbers."""
        of_each = ", ".join(
            f"{name} (mean {mean:.4g}, deviation {std:.4g})"
            for name, mean, std in zip(task.names[:5], task.mean, task.std, strict=False)
        )
        kind = "sentiment, numbers from -3 to 3" if task.scale else "numbers"
        more = f" and {len(task.names) - 5} more" if len(task.names) > 5 else ""
        return (
            f"{self.path.name}: 'labels' look like {kind} to regress on: {of_each}{more}. If "
            "they are classes or labels, save them as whole numbers (or train with --task)."
        )

    def _found_several(self, task: Task) -> str:
        """A note on labels that only their form tells from classes or numbers in columns."""
        more = f" and {len(task.names) - 5} more" if len(task.names) > 5 else ""
        return (
            f"{self.path.name}: 'labels' look like several labels per sample: "
            f"{', '.join(task.names[:5])}{more}. If each sample has one class, store its number in "
            "place of the columns; if the columns are numbers to regress on, use --task number."
        )

    def _named(self, found: Array, target: Array) -> tuple[Array, list[str]]:
        """Classes in the order of `class_names`, which may include classes without samples."""
        names = [str(name) for name in self._text("class_names").reshape(-1)]
        if len(set(names)) < len(names):
            raise self._error(f"'class_names' holds a name twice: {', '.join(names)}.")
        if found.dtype.kind == "U":
            strange = [str(label) for label in found if label not in names]
            if not strange:
                return np.array([names.index(str(label)) for label in found])[target], names
            raise self._error(
                f"'labels' holds '{strange[0]}', which is missing from 'class_names' "
                f"({', '.join(names)}). Add it there, or leave 'class_names' out."
            )
        if found[0] >= 0 and found[-1] < len(names):
            return found.astype(np.int64)[target], names
        if len(found) == len(names):
            return target, names
        raise self._error(
            f"'class_names' has {len(names)} names, but 'labels' holds {len(found)} classes, "
            f"{found[0]} to {found[-1]}. Give one name per class, in ascending order."
        )

    def _rows(self, target: Tensor, task: Task, notes: list[str]) -> dict[SplitName, Tensor]:
        split = self._split_numbers()
        rows = {
            name: torch.from_numpy(np.flatnonzero(split == number))
            for number, name in enumerate(SPLITS)
            if name in self.needed or name == "val"
        }
        for name in self.needed:
            if not len(rows[name]):
                raise self._error(
                    f"'split' marks no sample as {name}. Mark some, or nothing can be "
                    f"{('learnt' if name == 'train' else 'measured')}."
                )
        if not len(rows["val"]):
            notes.append(self._draw(rows, target, task))
        return rows

    def _draw(self, rows: dict[SplitName, Tensor], target: Tensor, task: Task) -> str:
        """Moves training samples to an empty validation split; a note on it."""
        train = rows["train"]
        if task.name == "classes":
            counts = target[train].bincount(minlength=len(task.names))
            for number in torch.nonzero(counts == 1).flatten().tolist():
                raise self._error(
                    f"has no validation split, and class '{task.names[number]}' has a single "
                    "training sample, so none can be drawn. Mark a validation split in 'split'"
                    f"{if_numbers(task.names)}."
                )
        val = drawn(task.fitted(target[train]), target[train], VALIDATION)
        if not len(val):
            raise self._error(
                "has no validation split, and too few similar training samples to draw one "
                "from. Mark a validation split in 'split'."
            )
        is_val = torch.zeros(len(train), dtype=torch.bool)
        is_val[val] = True
        rows["val"], rows["train"] = train[is_val], train[~is_val]
        return (
            f"{self.path.name} has no validation split: {len(val)} of the {len(train)} "
            f"training samples ({len(val) / len(train):.0%}, stratified, seed 0) become "
            "one."
        )

    def _split_numbers(self) -> Array:
        split = self._text("split")
        if split.shape != (self.count,):
            raise self._error(
                f"'split' has the shape {split.shape} for {self.count} labels. "
                f"Give one entry per sample: shape ({self.count},)."
            )
        known: Sequence[object] = SPLITS if split.dtype.kind == "U" else (0, 1, 2)
        strange = [value for value in np.unique(split) if value not in known]
        if strange or split.dtype.kind == "b":
            found = ", ".join(str(value) for value in (strange or np.unique(split))[:5])
            raise self._error(f"'split' holds {found}. Use train, val and test, or 0, 1 and 2.")
        if split.dtype.kind == "U":
            return np.array([SPLITS.index(cast(SplitName, str(value))) for value in split])
        return split

    def _names(self) -> list[str]:
        """The names of the modalities, once every array is accounted for."""
        others = [n for n in self.arrays if n not in _RESERVED and not self._is_index(n)]
        ragged = {name for name in others if f"{name}_offset" in others and not self._belongs(name)}
        names = [
            name
            for name in others
            if not self._belongs(name)
            and (name in ragged or self.arrays[name].shape[:1] == (self.count,))
        ]
        lost = [name for name in others if name not in names and not self._belongs(name)]
        if lost:
            listed = ", ".join(f"'{name}' {self.arrays[name].shape}" for name in lost)
            raise self._error(
                f"these arrays do not match the {self.count} samples: {listed}. Give a modality "
                f"{self.count} rows, or a 'NAME_offset' with {self.count + 1}, or leave it out."
            )
        if not names:
            raise self._error(
                f"has no modality. Add an array with {self.count} rows, one per sample."
            )
        check_names(self.path, names)
        return names

    def _is_index(self, name: str) -> bool:
        x = self.arrays[name]
        if not NUMBERING.fullmatch(name) or x.shape != (self.count,) or x.dtype.kind not in "iuUS":
            return False
        known = name in self.kinds or f"{name}_kind" in self.arrays
        return not known and len(np.unique(x)) == len(x) > 1

    def _belongs(self, name: str) -> bool:
        """Whether the array only describes another one."""
        return any(
            name.endswith(ending) and name.removesuffix(ending) in self.arrays
            for ending in ("_offset", "_kind")
        )

    def _modality(self, name: str) -> Tensor | Ragged:
        values = self.arrays[name]
        if values.dtype.kind not in "iufb":
            raise self._error(
                f"modality '{name}' holds {values.dtype} values. Turn them into numbers, or "
                "leave the array out."
            )
        offset = self._offset(name)
        self._check_numbers(name, offset)
        if 0 in values.shape:
            raise self._error(f"modality '{name}' is empty (shape {values.shape}). Leave it out.")
        kind = self._kind(name)
        if offset is not None:
            if kind not in (None, "sequence", "text"):
                given = f" or '{name}_kind'" if f"{name}_kind" in self.arrays else ""
                raise self._error(
                    f"modality '{name}' has offsets, so it cannot be read as {kind}. Only "
                    f"sequences have unequal lengths: leave out '{name}_offset'{given}."
                )
            start, length = torch.from_numpy(offset[:-1]), torch.from_numpy(np.diff(offset))
            if kind == "text":
                return Ragged(self._tokens(name).flatten(), start, length)
            return Ragged(_tensor(values.reshape(len(values), -1)), start, length)
        if kind == "text":
            tokens = self._tokens(name)
            used = (tokens != 0) * torch.arange(1, tokens.shape[1] + 1)
            return Ragged(
                tokens.flatten(), torch.arange(len(tokens)) * tokens.shape[1], used.amax(1)
            )
        shaped = _shape(values, kind)
        if shaped is None:
            raise self._error(
                f"a sample of modality '{name}' has the shape {values.shape[1:]}, which cannot be "
                f"read as {kind or 'a vector, sequence, image or video'}. Give (d), (time, "
                "features), (channels, height, width) or (time, channels, height, width)."
            )
        return _tensor(shaped)

    def _tokens(self, name: str) -> Tensor:
        values = self.arrays[name]
        axes = 1 if f"{name}_offset" in self.arrays else 2
        if values.dtype.kind not in "iu" or values.ndim != axes or values.min() < 0:
            raise self._error(
                f"modality '{name}' holds {values.dtype} of shape {values.shape}, which is not "
                "text. Give whole numbers from 0, (samples, longest), or concatenated with "
                "offsets."
            )
        if (most := int(values.max())) >= WORDS:
            raise self._error(
                f"modality '{name}' uses word numbers up to {most:,}, and an encoder keeps a "
                f"vector for each. Number words from 1, without gaps, below {WORDS:,}."
            )
        return _tensor(values)

    def _offset(self, name: str) -> Array | None:
        offset = self.arrays.get(f"{name}_offset")
        if offset is None:
            return None
        values = self.arrays[name]
        if values.ndim not in (1, 2):
            raise self._error(
                f"modality '{name}' has offsets and the shape {values.shape}. Concatenated "
                "sequences have the shape (total,) or (total, features)."
            )
        total = len(values)
        if offset.shape != (self.count + 1,) or offset.dtype.kind not in "iu":
            raise self._error(
                f"'{name}_offset' holds {offset.dtype} in the shape {offset.shape}. Give "
                f"{self.count + 1} whole numbers, from 0 to the length of '{name}'."
            )
        offset = offset.astype(np.int64)
        falls = np.flatnonzero(np.diff(offset) < 0)
        if len(falls):
            at = falls[0]
            raise self._error(
                f"'{name}_offset' does not ascend: row {at + 1} holds {offset[at + 1]} after "
                f"{offset[at]}. Sample i must be {name}[offset[i]:offset[i + 1]]."
            )
        if offset[0] != 0 or offset[-1] != total:
            raise self._error(
                f"'{name}_offset' runs from {offset[0]} to {offset[-1]}, but '{name}' has {total} "
                f"rows. It must run from 0 to {total}."
            )
        return offset

    def _check_numbers(self, name: str, offset: Array | None) -> None:
        values = self.arrays[name]
        bad = np.argwhere(unusable(values))
        if not len(bad):
            return
        found = values[tuple(bad[0])]
        row = bad[0][0] if offset is None else np.searchsorted(offset, bad[0][0], "right") - 1
        rows = f"{len(np.unique(bad[:, 0]))} {'samples' if offset is None else 'time steps'} in all"
        raise self._error(
            f"modality '{name}' holds {spelt(found)} in sample {row} ({rows}). Replace such "
            "values, for example by 0, or leave out those samples."
        )

    def _text(self, name: str) -> Array:
        """An array with byte strings as strings, without surrounding blanks."""
        array = self.arrays[name]
        try:
            array = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
        except UnicodeDecodeError as error:
            raise self._error(
                f"'{name}' holds bytes that are not UTF-8. Give strings instead."
            ) from error
        return np.asarray(np.char.strip(array)) if array.dtype.kind == "U" else array

    def _kind(self, name: str) -> Kind | None:
        if f"{name}_kind" not in self.arrays:
            return self.kinds.get(name)
        kind = " ".join(str(word) for word in self._text(f"{name}_kind").reshape(-1))
        if kind not in get_args(Kind):
            raise self._error(f"'{name}_kind' is '{kind}'. Use {', '.join(get_args(Kind))}.")
        return cast(Kind, kind)


def _task_name(labels: Array) -> Name:
    """The task of targets, from their form alone."""
    if labels.dtype.kind != "f" and labels.ndim == 1:
        return "classes"
    columns = labels.ndim == 2 and labels.shape[1] > 1
    if labels.dtype.kind == "f" and not (columns and np.isin(labels, (0, 1)).all()):
        return "number"
    return "labels"


def _shape(values: Array, kind: Kind | None) -> Array | None:
    """The values in the form `Data` takes: vectors, sequences, images, videos; None if unfit."""
    axes = values.ndim - 1
    if kind is None:
        byte = values.dtype.kind in "iu" and values.dtype.itemsize == 1
        plain: dict[int, Kind] = {0: "vector", 1: "vector", 3: "image", 4: "video"}
        kind = plain.get(axes, ("image" if byte else "sequence") if axes == 2 else None)
    if kind == "vector":
        return values.reshape(len(values), -1)
    if kind == "sequence" and axes in (1, 2):
        return values[..., None] if axes == 1 else values
    if kind == "image" and axes == 2:
        return values[:, None]
    if (kind == "image" and axes == 3) or (kind == "video" and axes == 4):
        return channels_first(values)
    return None


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(native(values))
