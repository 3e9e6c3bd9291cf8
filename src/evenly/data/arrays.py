"""Data sets of one's own, as arrays in one `.npz` file."""

import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenly.data.dataset import (
    SPLITS,
    Data,
    Kind,
    Ragged,
    SplitName,
    check_classes,
    check_names,
    described,
    stratified,
)
from evenly.files import replacing

Array = npt.NDArray[Any]

VALIDATION = 0.15
_RESERVED = ("labels", "split", "class_names")


def load_npz(
    path: Path,
    needed: Collection[SplitName] = ("train", "test"),
    *,
    labelled: bool = True,
    kinds: Mapping[str, Kind] | None = None,
) -> Data:
    """Reads a data set from an `.npz` file.

    The file holds

    - `labels` (N): whole numbers or strings, mapped to classes from 0 in ascending order;
    - `split` (N): `train`, `val`, `test` or 0, 1, 2. Without a validation split a stratified
      15 % of train becomes one (seed 0), and a note says so, unless one is needed;
    - every other array whose first axis is N: a modality of that name. One sample of it is a
      vector (1-D), an image of one channel (2-D, 8-bit integers), a sequence (any other 2-D:
      time, features), an image (3-D: c, h, w; or h, w, c where only the last axis is 1, 3
      or 4) or a video (4-D: t, c, h, w; or t, h, w, c likewise). `NAME_kind`, a string, says
      otherwise: `vector`, `sequence`, `image`, `video`, or `text`, which is whole numbers, one
      for each token, and 0 after the last one;
    - `NAME` with `NAME_offset` (N + 1): sequences of unequal lengths, end to end; sample i is
      `NAME[NAME_offset[i]:NAME_offset[i + 1]]`;
    - `class_names` (C), optional: in the order of the classes.

    Args:
        path: Of the file.
        needed: The splits that must be in it. Others are left out, but for `val`.
        labelled: Without, nothing is asked of labels and splits, which need not be there: the
            target of samples without labels is -1, and samples without a split are in test.
        kinds: By modality, as what an array is read where the file says nothing else.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not have that form.
    """
    reader = _Reader(path, needed)
    reader.kinds = kinds or {}
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
        path: Where to; an existing file is replaced.
        labels: (N) class of each sample.
        split: (N) `train`, `val`, `test` or 0, 1, 2.
        modalities: By name; also `NAME_offset` and `NAME_kind` where they apply.
        class_names: In the order of the classes.
    """
    arrays = {"labels": np.asarray(labels), "split": np.asarray(split)}
    arrays |= {name: np.asarray(value) for name, value in modalities.items()}
    if class_names is not None:
        arrays["class_names"] = np.asarray(class_names)
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(
                f"save_npz: '{name}' holds Python objects, which would have to be pickled. Give "
                "numbers, or strings as a fixed-width array."
            )
    # A file object, as NumPy adds a suffix to a path that has another one.
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        # NumPy takes more than arrays by keyword since 2.2, hence the cast.
        np.savez_compressed(file, **cast(Any, arrays))


class _Reader:
    """The arrays of one file, and what is wrong with them."""

    kinds: Mapping[str, Kind] = {}  # of those that the file says nothing of

    def __init__(self, path: Path, needed: Collection[SplitName]) -> None:
        self.path = path
        self.needed = needed
        self.arrays = self._read()

    def data(self) -> Data:
        for name in ("labels", "split"):
            if name not in self.arrays:
                raise self._error(
                    f"has no array '{name}', it holds {', '.join(self.arrays) or 'nothing'}. "
                    f"Add '{name}', one entry per sample."
                )
        self.count = self._count()
        target, class_names = self._target()
        if len(target.unique()) < 2:
            raise self._error(
                f"all labels are '{class_names[target[0]]}'. Classification needs two classes."
            )
        notes: list[str] = []
        rows = self._rows(target, class_names, notes)
        for split, members in rows.items():
            check_classes(self.path, split, target[members], class_names)
        inputs = {name: self._modality(name) for name in self._names()}
        return Data(self.path.stem, inputs, target, rows, class_names, notes)

    def unlabelled(self) -> Data:
        self.count = self._count() if "labels" in self.arrays else self._rows_of_modalities()
        target, class_names = torch.full((self.count,), -1), list[str]()
        if "labels" in self.arrays:
            target, class_names = self._target()
        split = np.full(self.count, SPLITS.index("test"))
        if "split" in self.arrays:
            split = self._split_numbers()
        inputs = {name: self._modality(name) for name in self._names()}
        every = torch.arange(self.count)
        return Data(
            self.path.stem,
            inputs,
            target,
            {name: every[torch.from_numpy(split == n)] for n, name in enumerate(SPLITS)},
            class_names,
            modalities={name: described(name, x, every) for name, x in inputs.items()},
        )

    def _rows_of_modalities(self) -> int:
        """How many samples there are by the arrays alone."""
        others = {name: x for name, x in self.arrays.items() if name not in _RESERVED}
        offsets = [len(x) - 1 for name, x in others.items() if name.endswith("_offset") and x.ndim]
        plain = [len(x) for name, x in others.items() if not self._belongs(name) and x.ndim]
        if not plain:
            raise self._error("holds no modality. Add an array with a row for each sample.")
        return (offsets or plain)[0]

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: {what}")

    def _read(self) -> dict[str, Array]:
        if self.path.is_dir():
            raise self._error("is a folder. Give the path of an .npz file.")
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: there is no such file. Check the path.")
        if not zipfile.is_zipfile(self.path):
            raise self._error("is no .npz file, or part of one. Write it with numpy.savez.")
        with np.load(self.path, allow_pickle=False) as file:
            return {name: self._array(file, name) for name in file.files}

    def _array(self, file: Mapping[str, Any], name: str) -> Array:
        try:
            value = file[name]
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise self._error(f"array '{name}' is damaged ({error}). Write it again.") from error
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise self._error(
                    f"array '{name}' holds pickled Python objects, which could run code and are "
                    "never read. Save numbers, or strings as a fixed-width array."
                ) from None
            raise self._error(f"array '{name}' is damaged ({error}). Write it again.") from error
        if not isinstance(value, np.ndarray):
            raise self._error(f"'{name}' is not an array. Write the file with numpy.savez.")
        return value

    def _count(self) -> int:
        labels = self.arrays["labels"]
        if labels.ndim != 1 or not len(labels):
            raise self._error(
                f"'labels' has the shape {labels.shape}. Give one label per sample: shape (N,)."
            )
        return len(labels)

    def _target(self) -> tuple[Tensor, list[str]]:
        labels = _text(self.arrays["labels"])
        if labels.dtype.kind not in "iuUb":
            raise self._error(
                f"'labels' holds {labels.dtype} values. Give whole numbers or strings."
            )
        found, target = np.unique(labels, return_inverse=True)
        names = [str(value) for value in found]
        if "class_names" in self.arrays:
            target, names = self._named(found, target)
        return torch.from_numpy(target.astype(np.int64)), names

    def _named(self, found: Array, target: Array) -> tuple[Array, list[str]]:
        """Classes in the order of `class_names`, which may name a class that no sample has."""
        names = [str(name) for name in _text(self.arrays["class_names"]).reshape(-1)]
        if len(set(names)) < len(names):
            raise self._error(f"'class_names' holds a name twice: {', '.join(names)}.")
        if found.dtype.kind == "U":
            strange = [str(label) for label in found if label not in names]
            if not strange:
                return np.array([names.index(str(label)) for label in found])[target], names
            raise self._error(
                f"'labels' holds '{strange[0]}', which 'class_names' ({', '.join(names)}) does "
                "not. Add it there, or leave 'class_names' out."
            )
        if found[0] >= 0 and found[-1] < len(names):
            return found.astype(np.int64)[target], names
        if len(found) == len(names):
            return target, names
        raise self._error(
            f"'class_names' has {len(names)} names, but 'labels' holds {len(found)} classes, "
            f"{found[0]} to {found[-1]}. Give one name for each class in ascending order."
        )

    def _rows(
        self, target: Tensor, class_names: list[str], notes: list[str]
    ) -> dict[SplitName, Tensor]:
        split = self._split_numbers()
        rows = {
            name: torch.from_numpy(np.flatnonzero(split == number))
            for number, name in enumerate(SPLITS)
            if name in self.needed or name == "val"
        }
        for name in self.needed:
            if not len(rows[name]):
                raise self._error(
                    f"'split' marks no sample as {name}. Mark some: without it nothing can be "
                    f"{'learnt' if name == 'train' else 'measured'}."
                )
        if not len(rows["val"]):
            train = rows["train"]
            counts = target[train].bincount(minlength=len(class_names))
            for number in torch.nonzero(counts == 1).flatten().tolist():
                raise self._error(
                    f"has no validation split, and class '{class_names[number]}' has a single "
                    "training sample, so none can be drawn. Mark a validation split in 'split'."
                )
            val, rest = stratified(target[train], (VALIDATION,))
            rows["val"], rows["train"] = train[val], train[rest]
            notes.append(
                f"{self.path.name} has no validation split: {len(val)} of the {len(train)} "
                f"training samples ({VALIDATION:.0%}, stratified, seed 0) serve as one."
            )
        return rows

    def _split_numbers(self) -> Array:
        split = _text(self.arrays["split"])
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
        others = [name for name in self.arrays if name not in _RESERVED]
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
                f"of {self.count} samples, these arrays fit nothing: {listed}. Give a modality "
                f"{self.count} rows, or a 'NAME_offset' with {self.count + 1}, or leave it out."
            )
        if not names:
            raise self._error(
                f"holds no modality. Add an array with {self.count} rows, one per sample."
            )
        check_names(self.path, names)
        return names

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
        if values.dtype.kind == "f":
            self._check_finite(name, offset)
        if 0 in values.shape:
            raise self._error(
                f"modality '{name}' is empty, its shape is {values.shape}. Leave it out."
            )
        kind = self._kind(name)
        if offset is not None:
            if kind not in (None, "sequence", "text"):
                raise self._error(
                    f"modality '{name}' has offsets, so it cannot be read as {kind}. Only "
                    f"sequences have unequal lengths: leave out '{name}_offset' or '{name}_kind'."
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
                f"modality '{name}' holds {values.dtype} in the shape {values.shape}, which is no "
                "text. Give whole numbers from 0, (samples, longest), or end to end with offsets."
            )
        return _tensor(values)

    def _offset(self, name: str) -> Array | None:
        offset = self.arrays.get(f"{name}_offset")
        if offset is None:
            return None
        values = self.arrays[name]
        if values.ndim not in (1, 2):
            raise self._error(
                f"modality '{name}' has offsets and the shape {values.shape}. Sequences end to "
                "end have the shape (total,) or (total, features)."
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

    def _check_finite(self, name: str, offset: Array | None) -> None:
        values = self.arrays[name]
        bad = np.argwhere(~np.isfinite(values))
        if not len(bad):
            return
        found = values[tuple(bad[0])]
        row = bad[0][0] if offset is None else np.searchsorted(offset, bad[0][0], "right") - 1
        rows = f"{len(np.unique(bad[:, 0]))} {'samples' if offset is None else 'time steps'} in all"
        raise self._error(
            f"modality '{name}' holds {found} in sample {row} ({rows}). "
            "Replace such values, for example by 0, or leave those samples out."
        )

    def _kind(self, name: str) -> Kind | None:
        if f"{name}_kind" not in self.arrays:
            return self.kinds.get(name)
        kind = " ".join(str(word) for word in _text(self.arrays[f"{name}_kind"]).reshape(-1))
        if kind not in get_args(Kind):
            raise self._error(f"'{name}_kind' is '{kind}'. Use {', '.join(get_args(Kind))}.")
        return cast(Kind, kind)


def _text(array: Array) -> Array:
    """Byte strings as strings; other arrays as they are."""
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _shape(values: Array, kind: Kind | None) -> Array | None:
    """The values as a `Data` takes them: vectors, sequences, images, videos; None if unfit."""
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


def channels_first(values: Array) -> Array:
    """Images (..., c, h, w), turned if they are (..., h, w, c): if only the last is 1, 3 or 4."""
    channels = (1, 3, 4)
    turned = values.shape[-1] in channels and values.shape[-3] not in channels
    return np.moveaxis(values, -1, -3) if turned else values


def native(values: Array) -> Array:
    """Numbers in memory order and native bytes, and of a type that torch can index.

    Raises:
        ValueError: If they are no numbers, or complex ones.
    """
    if values.dtype.kind not in "iufb":
        raise ValueError(f"holds {values.dtype} values, which are no numbers that can be stored")
    wider = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "float128": "float64"}
    dtype = wider.get(values.dtype.name, values.dtype.newbyteorder("="))
    return np.require(values, dtype, "C")  # unlike ascontiguousarray, it adds no axis


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(native(values))
