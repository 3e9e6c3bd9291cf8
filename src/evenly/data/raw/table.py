"""Data sets of one's own as a table: a row for each sample, a column for each modality."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from evenly.data.arrays import VALIDATION
from evenly.data.dataset import SplitName, stratified
from evenly.data.media.error import check_file
from evenly.data.raw.readers import (
    READERS,
    Array,
    Image,
    Reader,
    Spectrogram,
    Text,
    Video,
    words,
)
from evenly.data.raw.source import Sample, Source
from evenly.spec import made, parse
from evenly.suggest import unknown

TEST = 0.15
VOCABULARY = 20_000
_RESERVED = ("label", "split", "name")


def table(
    path: Path,
    modalities: Sequence[str] | None = None,
    readers: Mapping[str, str] | None = None,
    *,
    labelled: bool = True,
) -> Source:
    """Reads a table and finds out what its columns hold.

    The table has a row for each sample and the columns

    - `label`: numbers or texts, mapped to classes from 0 in ascending order;
    - `split`, optional: `train`, `val`, `test`. Without it, or without a validation or test
      split, stratified 15 % each are drawn from the rest (seed 0), and a note says so;
    - `name`, optional: of the sample, for messages;
    - every other one: a modality. A cell holds numbers, or the path of a file or folder (relative
      to the table's folder); an empty one is a modality that the sample lacks.

    A column of texts that are no files is text; its words are numbered by the training texts. What
    the files of a column hold is found out from the first of them: pictures, moving pictures,
    sound, or an array. A file with both pictures and sound is taken for sound where the column's
    name begins like it: audio, sound, speech, voice, music.

    Args:
        path: Of the table, `.csv` or `.parquet`.
        modalities: The columns that are modalities; by default all that are left.
        readers: By modality, how it is read, such as 'spectrogram(front=mel,seconds=5)'; the
            others as found out. `READERS` has the names.
        labelled: Without, a table need not have labels, and its splits are not looked at: all
            samples are in the test split.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If the table does not have that form.
    """
    columns = _columns(path)
    readers = readers or {}
    names = list(modalities or [name for name in columns if name not in _RESERVED])
    for name in [*names, *readers]:
        if name not in columns or name in _RESERVED:
            raise unknown(f"modality of {path}", name, [n for n in columns if n not in _RESERVED])
    if not names or (labelled and "label" not in columns):
        raise ValueError(
            f"{path}: needs a column 'label' and one for each modality, it has "
            f"{', '.join(columns)}."
        )
    if "label" in columns:
        target, classes = _classes(path, columns["label"])
    else:
        target, classes = np.full(len(columns[names[0]]), -1), []
    own = {name: made("reader", parse(text), READERS) for name, text in readers.items()}
    cells, found = {}, {}
    for name in names:
        text = isinstance(own[name], Text) if name in own else _is_text(path, columns[name])
        cells[name] = columns[name] if text else _cells(path, columns[name])
        found[name] = own.get(name) or (Text() if text else _reader(path, name, cells[name]))
    notes: list[str] = []
    split: list[SplitName] = ["test"] * len(target)
    if labelled:
        split = _split(path, columns.get("split"), target, classes, notes)
    for name, reader in found.items():
        if isinstance(reader, Text) and not (reader.tokenizer or reader.vocabulary):
            texts = [x for x, part in zip(cells[name], split, strict=True) if part == "train" and x]
            found[name] = replace(reader, vocabulary=_vocabulary(texts))
    samples = [
        Sample(
            str(columns["name"][row]) if "name" in columns else f"row {row + 1}",
            int(target[row]),
            split[row],
            {name: cells[name][row] for name in names},
        )
        for row in range(len(target))
    ]
    return Source(path.stem, found, samples, classes, notes)


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns."""
    return list(_columns(path))


def _columns(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.")
    try:
        if path.suffix == ".parquet":
            found = parquet.read_table(path)
        else:
            options = csv.ConvertOptions(strings_can_be_null=True)
            found = csv.read_csv(path, convert_options=options)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: cannot be read as a table ({error}).") from error
    if not found.num_rows:
        raise ValueError(f"{path}: has no rows. Give one for each sample, below the names.")
    if len(set(found.column_names)) < found.num_columns:
        raise ValueError(f"{path}: has two columns of one name: {found.column_names}.")
    return {name: found.column(name).to_pylist() for name in found.column_names}


def _classes(path: Path, labels: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    for row, label in enumerate(labels):
        if label is None or (isinstance(label, float) and not label.is_integer()):
            raise ValueError(
                f"{path}: row {row + 1} has the label {label}. Give every sample a class, as a "
                "whole number or a text."
            )
    known = sorted(set(labels))
    number = {label: n for n, label in enumerate(known)}
    return np.array([number[label] for label in labels]), [str(label) for label in known]


def _split(
    path: Path,
    marks: Sequence[Any] | None,
    target: np.ndarray,
    classes: Sequence[str],
    notes: list[str],
) -> list[SplitName]:
    named: dict[str, SplitName] = {"train": "train", "val": "val", "test": "test"}
    if marks is None:
        split: list[SplitName] = ["train"] * len(target)
    else:
        for row, mark in enumerate(marks):
            if mark not in named:
                raise ValueError(
                    f"{path}: row {row + 1} has the split {mark!r}. Use train, val and test."
                )
        split = [named[mark] for mark in marks]
    drawn: tuple[tuple[SplitName, float], ...] = (("test", TEST), ("val", VALIDATION))
    for name, share in drawn:
        if name in split:
            continue
        rest = np.array([row for row, mark in enumerate(split) if mark == "train"], np.int64)
        scarce = np.flatnonzero(np.bincount(target[rest], minlength=len(classes)) < 2)
        if len(scarce):
            raise ValueError(
                f"{path}: has no {name} split, and class '{classes[scarce[0]]}' has too few "
                "samples to draw one from. Add a column 'split', or leave the class out."
            )
        part, _ = stratified(torch.from_numpy(target[rest]), (share,))
        for row in rest[part.numpy()]:
            split[row] = name
        notes.append(
            f"{path.name} has no {name} split: {len(part)} of {len(rest)} samples ({share:.0%}, "
            "stratified, seed 0) serve as one."
        )
    return split


def _cells(path: Path, column: Sequence[Any]) -> list[Any]:
    """Texts as paths from the table's folder; numbers as they are, alone ones as vectors."""
    found: list[Any] = []
    for cell in column:
        if isinstance(cell, str):
            found.append(path.parent / cell)
        elif isinstance(cell, int | float):
            found.append([cell])
        else:
            found.append(cell)
    return found


def _is_text(path: Path, column: Sequence[Any]) -> bool:
    """Whether a column's first cell is a text with blanks, or looks like no file."""
    first = next((cell for cell in column if cell is not None), None)
    if not isinstance(first, str) or (path.parent / first).exists():
        return False
    return " " in first.strip() or not Path(first).suffix


def _vocabulary(texts: Sequence[str]) -> str:
    """The words of the training texts, the most frequent first."""
    counts = Counter(word for text in texts for word in words(text))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return " ".join(ordered[:VOCABULARY])


def _reader(path: Path, name: str, cells: Sequence[Any]) -> Reader:
    """What the first cell that is not empty asks for."""
    first = next((cell for cell in cells if cell is not None), None)
    if first is None:
        raise ValueError(f"{path}: column '{name}' is empty. Leave it out with --modalities.")
    if not isinstance(first, Path):
        return _array(first)
    check_file(first)
    if first.is_dir():
        return Video()
    if first.suffix == ".npy":
        return _array(np.load(first, allow_pickle=False))
    try:
        with Picture.open(first):
            return Image()
    except (UnidentifiedImageError, OSError):
        pass
    try:
        with av.open(str(first)) as container:
            pictures, sound = container.streams.video, container.streams.audio
            heard = name.lower().startswith(("audio", "sound", "speech", "voice", "music"))
            if sound and (heard or not pictures):
                return Spectrogram()
            if pictures:
                return Video()
    except av.FFmpegError:
        pass
    raise ValueError(
        f"{path}: column '{name}' begins with {first}, which holds neither pictures nor sound nor "
        "an array. Leave the column out with --modalities, or say how it is read with --readers."
    )


def _array(values: Any) -> Array:
    if np.ndim(values) == 2:
        return Array("sequence", ragged=True)
    return Array()
