"""Data sets of one's own as a table: a row for each sample, a column for each modality."""

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from evenly.data.arrays import VALIDATION
from evenly.data.dataset import SplitName, check_names, stratified
from evenly.data.media.container import pictures, sounds
from evenly.data.media.error import MediaError, check_file
from evenly.data.media.video import frames_of, is_still
from evenly.data.raw.readers import (
    READERS,
    Array,
    Image,
    Reader,
    Spectrogram,
    Text,
    Video,
    numbers,
    spelled,
    words,
)
from evenly.data.raw.source import Sample, Source
from evenly.spec import made, parse
from evenly.suggest import unknown

TEST = 0.15
VOCABULARY = 20_000
PROBED = 100
"""Cells of a column, from its beginning, that tell what it holds."""
_RESERVED = ("label", "split", "name")
_MEDIA = re.compile(
    r"\.(npy|jpe?g|png|bmp|webp|gif|tiff?|wav|flac|mp3|ogg|opus|m4a|aac"
    r"|mp4|m4v|mov|mkv|webm|avi|flv|mpe?g|wmv|ts|3gp)$",
    re.IGNORECASE,
)
"""Ends of texts by which a text is taken for a path."""


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
    - `name`, optional: of the sample, for messages and predictions;
    - every other one: a modality. A cell holds a number, numbers (in Parquet), a text, or the path
      of a file or folder (relative to the table's folder); an empty one is a modality that the
      sample lacks.

    What a column holds is found out from its first cells. Texts of which any is a file or folder
    are paths, and so are numbers that all are, such as 0001; other texts are text, whose words are
    numbered by the training texts. The first file that is whole tells what the files hold:
    pictures, moving pictures, sound, or an array. One with both pictures and sound is taken for
    sound where the column's name begins like it: audio, sound, speech, voice, music.

    Args:
        path: Of the table, `.csv` or `.parquet`.
        modalities: The columns that are modalities; by default all that are left.
        readers: By modality, how it is read, such as 'spectrogram(front=mel,seconds=5)'; the
            others as found out. `READERS` has the names.
        labelled: Without, a table need not have all labels (-1 where there is none), and its
            splits are not looked at: all samples are in the test split.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If the table does not have that form.
    """
    columns = _columns(path)
    readers = readers or {}
    names = [name if name in columns else name.strip() for name in modalities or []]
    names = names or [name for name in columns if name not in _RESERVED]
    for name in [*names, *readers]:
        if name not in columns or name in _RESERVED:
            raise unknown(f"modality of {path}", name, [n for n in columns if n not in _RESERVED])
    for name in readers:
        if name not in names:
            raise ValueError(
                f"{path}: '{name}' is to be read as {readers[name]}, but is none of the modalities "
                f"{', '.join(names)} that were asked for."
            )
    if not names or (labelled and "label" not in columns):
        raise ValueError(
            f"{path}: needs a column 'label' and one for each modality, it has "
            f"{', '.join(columns)}."
        )
    check_names(path, names)
    count = len(columns[names[0]].values)
    labels = columns["label"].values if "label" in columns else [None] * count
    target, classes = _classes(path, labels, needed=labelled)
    own = {name: made("reader", parse(text), READERS) for name, text in readers.items()}
    cells, found = {}, {}
    for name in names:
        cells[name], found[name] = _modality(path, name, columns[name], own.get(name))
    notes: list[str] = []
    split: list[SplitName] = ["test"] * count
    if labelled:
        marks = columns["split"].values if "split" in columns else None
        split = _split(path, marks, target, classes, notes)
    for name, reader in found.items():
        if isinstance(reader, Text) and not (reader.tokenizer or reader.vocabulary):
            texts = [x for x, part in zip(cells[name], split, strict=True) if part == "train" and x]
            found[name] = replace(reader, vocabulary=_vocabulary(texts))
    called = (
        columns["name"].texts or columns["name"].values if "name" in columns else [None] * count
    )
    samples = [
        Sample(
            f"row {row + 1}" if called[row] is None else str(called[row]),
            int(target[row]),
            split[row],
            {name: cells[name][row] for name in names},
        )
        for row in range(len(target))
    ]
    return Source(path.stem, found, samples, classes, notes, [path])


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns."""
    return list(_columns(path))


@dataclass(frozen=True)
class _Column:
    """The cells of a column, from the first row; None where one is empty.

    Attributes:
        values: Numbers, texts, or whatever else a Parquet file holds.
        texts: The same as they are written; None if they are written as no texts.
    """

    values: list[Any]
    texts: list[str | None] | None

    @property
    def is_text(self) -> bool:
        """Whether its cells are texts, and not numbers written as such."""
        return self.values is self.texts


def _columns(path: Path) -> dict[str, _Column]:
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.")
    try:
        found = parquet.read_table(path) if path.suffix == ".parquet" else _csv(path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            raise ValueError(
                f"{path}: is not in UTF-8. Save it so, or convert it, from Latin-1 by: iconv -f "
                f"LATIN1 -t UTF-8 {path.name} > new.csv"
            ) from error
        raise ValueError(f"{path}: cannot be read as a table ({error}).") from error
    if not found.num_rows:
        raise ValueError(f"{path}: has no rows. Give one for each sample, below the names.")
    if len(set(found.column_names)) < found.num_columns:
        raise ValueError(f"{path}: has two columns of one name: {found.column_names}.")
    read = _parquet_column if path.suffix == ".parquet" else _csv_column
    return {name: read(name, found.column(name)) for name in found.column_names}


def _csv(path: Path) -> Any:
    """A CSV as a table of texts: what they stand for depends on all cells of a column."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    with path.open(newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file), [])
    return arrow.read_csv(
        path,
        parse_options=arrow.ParseOptions(newlines_in_values=True),
        convert_options=arrow.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _csv_column(name: str, texts: Any) -> _Column:
    """Numbers where all cells are numbers; what says NA or the like is empty, but in labels."""
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow.csv import ConvertOptions

    if name not in _RESERVED:
        empty = compute.is_in(texts, pa.array(ConvertOptions().null_values))
        texts = compute.if_else(empty, None, texts)
    written = texts.to_pylist()
    for kind in (pa.int64(), pa.float64(), *([] if name in _RESERVED else [pa.bool_()])):
        try:
            return _Column(compute.utf8_trim_whitespace(texts).cast(kind).to_pylist(), written)
        except pa.ArrowInvalid:
            continue
    return _Column(written, written)


def _parquet_column(name: str, cells: Any) -> _Column:
    values = cells.to_pylist()
    texts = all(isinstance(value, str | None) for value in values)
    return _Column(values, values if texts else None)


def _classes(
    path: Path, labels: Sequence[Any], *, needed: bool
) -> tuple[Int[np.ndarray, " n"], list[str]]:
    """The class of each sample, and the names of the classes; -1 where it need not be known."""
    strange = [
        x is None or isinstance(x, list | dict) or (isinstance(x, float) and not x.is_integer())
        for x in labels
    ]
    if needed and any(strange):
        row = strange.index(True)
        raise ValueError(
            f"{path}: row {row + 1} has the label {labels[row]}. Give every sample a class, as a "
            "whole number or a text."
        )
    known = sorted({label for label, odd in zip(labels, strange, strict=True) if not odd})
    number = {label: n for n, label in enumerate(known)}
    return np.array([number.get(label, -1) for label in labels]), [str(label) for label in known]


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
            if not isinstance(mark, str) or mark not in named:
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


def _modality(
    path: Path, name: str, column: _Column, reader: Reader | None
) -> tuple[list[Any], Reader]:
    """The cells of a modality as its reader takes them, and the reader.

    Args:
        path: Of the table.
        name: Of the column.
        column: Its cells.
        reader: What the user asks for, if anything.
    """
    reads_files = reader is not None and not isinstance(reader, Text | Array)
    if column.texts is None and (reads_files or isinstance(reader, Text)):
        assert reader is not None
        raise ValueError(
            f"{path}: column '{name}' holds numbers such as {column.values[0]}, which "
            f"{spelled(reader).partition('(')[0]} does not read. Leave its reader out."
        )
    texts = column.texts or []
    if isinstance(reader, Text):
        return texts, reader
    if reads_files or (reader is not None and column.is_text) or _holds_paths(path, column):
        cells = _paths(path, name, texts)
        return cells, reader or _sniffed(path, name, cells)
    if column.is_text:
        return texts, Text()
    return _vectors(column.values), reader or _array_of(path, name, column.values)


def _holds_paths(path: Path, column: _Column) -> bool:
    """Whether a column's cells name files or folders.

    Texts do if any of the first is one, even if others are missing: taken for a text, a path would
    be learnt by heart. Numbers do, such as 0001, if all of the first are.
    """
    probed = [text for text in column.texts or [] if text is not None][:PROBED]
    there = [_exists(path, text) for text in probed]
    if not column.is_text:
        return bool(there) and all(there)
    if any(there):
        return True
    return 2 * sum(map(_looks_like_a_path, probed)) > len(probed)


def _exists(path: Path, text: str) -> bool:
    # Unlike Path.exists, this says no of a text that is too long for a path.
    return bool(text.strip(". ")) and os.path.exists(path.parent / text)


def _looks_like_a_path(text: str) -> bool:
    separated = bool(re.search(r"[/\\]", text)) and not re.search(r"\s", text)
    return separated or bool(_MEDIA.search(text))


def _paths(path: Path, name: str, texts: Sequence[str | None]) -> list[Path | None]:
    """Texts as paths from the table's folder, if any of them leads anywhere."""
    given = [text for text in texts if text is not None]
    if given and not any(_exists(path, text) for text in given[:PROBED]):
        raise ValueError(
            f"{path}: column '{name}' holds paths such as '{given[0][:100]}', but there is no such "
            f"file or folder in {path.parent.absolute()}, and nothing of the {len(given[:PROBED])} "
            "looked for. Give paths from there or whole ones; text, if it is that, is read with "
            f"--readers.{name}=text."
        )
    return [None if text is None else path.parent / text for text in texts]


def _vectors(values: Sequence[Any]) -> list[Any]:
    """Numbers as they are, alone ones as vectors."""
    return [[value] if isinstance(value, int | float) else value for value in values]


def _vocabulary(texts: Sequence[str]) -> str:
    """The words of the training texts, the most frequent first."""
    counts = Counter(word for text in texts for word in words(text))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return " ".join(ordered[:VOCABULARY])


def _sniffed(path: Path, name: str, cells: Sequence[Path | None]) -> Reader:
    """What the first file that is whole asks for."""
    given = [cell for cell in cells if cell is not None]
    for cell in given[:PROBED]:
        if found := _reader_of(name, cell):
            return found
    raise ValueError(
        f"{path}: column '{name}' begins with {given[0]}, which holds neither pictures nor sound "
        f"nor an array, nor does any of the first {len(given[:PROBED])}. Leave the column out with "
        "--modalities, or say how it is read with --readers."
    )


def _reader_of(name: str, path: Path) -> Reader | None:
    """How a file or folder is read; None if it is broken or of another kind."""
    try:
        if path.is_dir():
            return Video() if len(frames_of(path).times) else None
        check_file(path)
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                return _array(numbers(path))
    except (MediaError, OSError):
        return None
    if is_still(path):
        return Image()
    heard = name.lower().startswith(("audio", "sound", "speech", "voice", "music"))
    tried = ((pictures, Video()), (sounds, Spectrogram()))
    for frames, reader in reversed(tried) if heard else tried:
        with suppress(MediaError), closing(frames(path, 0)) as decoded:
            if next(decoded, None) is not None:
                return reader
    return None


def _array_of(path: Path, name: str, values: Sequence[Any]) -> Reader:
    """How the numbers of a column are read."""
    first = next((value for value in values if value is not None), None)
    if first is None:
        raise ValueError(f"{path}: column '{name}' is empty. Leave it out with --modalities.")
    try:
        found = _array(np.asarray(first if isinstance(first, list) else [first]))
    except ValueError:  # lists of unequal lengths
        found = None
    if found is None:
        raise ValueError(
            f"{path}: column '{name}' holds {type(first).__name__} values such as {first!r:.60}. "
            "Give numbers, texts or paths, or leave the column out with --modalities."
        )
    return found


def _array(values: np.ndarray) -> Array | None:
    if values.dtype.kind not in "iufb":
        return None
    if values.ndim == 2:
        return Array("sequence", ragged=True)
    if values.ndim == 3:
        return Array("image")
    return Array("video") if values.ndim == 4 else Array()
