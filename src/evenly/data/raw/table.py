"""Your own data sets as a table: a row for each sample, a column for each modality."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenly.data.arrays import VALIDATION
from evenly.data.catalogue import stem_of
from evenly.data.dataset import SplitName, check_names, drawn, if_numbers
from evenly.data.media.container import pictures, sounds
from evenly.data.media.error import File, MediaError, check_file, named
from evenly.data.media.video import frames_of, is_still
from evenly.data.numbers import Blur, blurred, unusable
from evenly.data.raw.columns import PROBED, RESERVED, Column, Columns
from evenly.data.raw.figures import first_unclear, in_two_ways, is_cut, is_of_figures, numbers_of
from evenly.data.raw.forms import read_columns
from evenly.data.raw.labels import MARKS, Target, target_of, tells_class
from evenly.data.raw.labels import labelled as with_label
from evenly.data.raw.mixed import fitted, mixed_cells
from evenly.data.raw.readers import (
    READERS,
    Array,
    Image,
    Reader,
    Spectrogram,
    Tabular,
    Text,
    Video,
    dtype_of,
    numbers,
    spelled,
    vocabulary,
)
from evenly.data.raw.rows import Entry, Files, Part, Turn
from evenly.data.raw.source import Sample, Source, several_of
from evenly.data.raw.splits import check_apart, chosen, meant, with_split
from evenly.data.tasks import Asked
from evenly.errors import UserError
from evenly.spec import made, parse
from evenly.suggest import unknown

TEST = 0.15
_MEDIA = re.compile(
    r"\.(npy|jpe?g|png|bmp|webp|gif|tiff?|wav|flac|mp3|ogg|opus|m4a|aac"
    r"|mp4|m4v|mov|mkv|webm|avi|flv|mpe?g|wmv|ts|3gp)$",
    re.IGNORECASE,
)
"""Endings that mark a text as a path."""
_PATH = re.compile(r"(~|\.{1,2}|[A-Za-z]:)?[/\\]\S*[A-Za-z]\S*$")
"""Beginnings of paths from a root or a folder."""
_PLAIN = re.compile(r"-?(0|[1-9]\d*)")
"""Numbers without leading zeros."""
_MARKED = re.compile(r"[/\\.]")
"""What words lack and most paths have."""
_DECLARED: dict[str, Callable[[], Reader]] = {
    "image": Image,
    "audio": Spectrogram,
    "video": Video,
}
"""Readers of files whose content the data set declares."""
_FORMS = {
    "a date": re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([T ].*)?"),
    "a percentage": re.compile(r"[-+]?[\d.,]+\s*%"),
}
"""Names for what is not a number."""


def table(
    path: Path,
    modalities: Sequence[str] | None = None,
    readers: Mapping[str, str] | None = None,
    *,
    label: str | None = None,
    splits: Mapping[str, str] | None = None,
    labelled: bool = True,
    task: Asked = "auto",
    columns: Columns | None = None,
) -> Source:
    """Reads a table and detects what its columns hold.

    The table has a row for each sample and the columns

    - `label`: numbers or texts, mapped to classes from 0 in ascending order. If there is none, the
      only column of class numbers with names from the library `datasets`. Lists, or texts of which
      a tenth contain ; or |, name several labels of a sample; numbers that are not all whole, or
      lists of them, are regressed on;
    - `label_NAME`, several instead of `label`: 1 if a sample has the label NAME and 0 if not, or
      other numbers to regress on;
    - `split`, optional: `train`, `val` (or `validation`), `test`. File names in a folder tell it,
      too, and so does the only other column of such words, which needs one in each row. If it, or
      its validation or test split, is missing, 15 % of the rest is drawn for each (seed 0; see
      `evenly.data.dataset.drawn`), from every class, or evenly along labels or numbers. A note says
      so;
    - `name`, optional: name of the sample, for messages and predictions;
    - every other one: a modality. A cell holds a number, numbers (a list in Parquet; in a text as
      printed by Python, NumPy or PyTorch, or separated by commas, semicolons or blanks), a text,
      the path of a file or folder (relative to the table's folder), or in Parquet the bytes of a
      file, also as a pair of `bytes` and `path` as written by `datasets`. An empty cell or list is
      a missing modality.

    Columns of numbers and categories form one modality, under any other name, if its reader names
    them: `tabular(numbers=[age,fare],categories=[port])`, see `Tabular`.

    Columns that number the rows are not modalities unless requested: an index written by pandas,
    and distinct whole numbers or words under the name index or id, or under one that ends in _id.
    Neither are other columns of class numbers, nor any that is named `label_NAME` beside the label,
    nor one that has a value of its own for each class. A note says so.

    Blanks around names and cells do not count. A CSV is in UTF-8, or in UTF-16 with its mark. Its
    cells are separated by commas, semicolons, tabs or bars; commas that do not separate cells may
    be decimal ones.

    The first cells determine what a column holds. Texts are paths if any of them is a file or
    folder; words that recur and are also names of files or folders are refused. Numbers, such as
    0001, are paths if all of them are; without leading zeros, only if none recurs. Other texts are
    text, with words numbered by the training texts, unless most have no words: figures that are not
    numbers, such as dates, are refused. The first intact file tells what the files hold: pictures,
    videos, sound, or an array. A file with both pictures and sound counts as sound if the column's
    name begins with audio, sound, speech, voice or music.

    Args:
        path: Path of the table, `.csv`, `.tsv`, `.parquet`, `.feather` or `.jsonl`; of a `.tar` in
            WebDataset's form, or several as a range in braces; or of a folder of any but the first
            two, one written by `save_to_disk`, or one of pictures, sounds and clips by class or
            with metadata.
        modalities: The columns that are modalities; by default all the rest.
        readers: By modality, how to read it, such as 'spectrogram(front=mel,seconds=5)'; the others
            are detected. `READERS` has the names.
        label: The column of the labels, if it has another name.
        splits: For `train`, `val` and `test`, the table's own name of the split, or several joined
            by +; other rows are left out. By default the splits with these names.
        labelled: If false, labels may be missing (-1), and splits are ignored: all samples are in
            the test split.
        task: What its labels are; by default, this is detected.
        columns: Columns of the table, if already read.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If the table does not have that form.
    """
    columns = columns or read_columns(path)
    readers = readers or {}
    notes: list[str] = []
    if labelled:
        taken = {*(modalities or ()), *readers, label}
        columns, notes = with_split(path, columns, taken, picked=bool(splits))
    if splits:
        columns = chosen(path, columns, splits)
    columns, label_columns, found_label = with_label(path, columns, label, needed=labelled)
    notes += found_label
    several = [] if "label" in columns.cells else columns.several
    others = [name for name in columns.cells if name not in (*RESERVED, *several)]
    own = {name: made("reader", parse(text), READERS) for name, text in readers.items()}
    mixed = {name: reader for name, reader in own.items() if isinstance(reader, Tabular)}
    names = [name if name in others else name.strip() for name in modalities or []]
    for name in [*names, *readers]:
        if name not in others and name not in mixed:
            raise unknown(f"modality of {path}", name, [*others, *mixed])
    used = {column for reader in mixed.values() for column in reader.columns}
    names = names or [
        *(x for x in others if x in readers or (x not in columns.aside and x not in used)),
        *(x for x in mixed if x not in others),
    ]
    for name in readers:
        if name not in names:
            raise UserError(
                f"{path}: --readers names '{name}', but --modalities names only "
                f"{', '.join(names)}. Add '{name}' there, or leave its reader out."
            )
    if not names or (labelled and not several and "label" not in columns.cells):
        if dotted := [name for name in columns.cells if name.endswith("_cls")]:
            raise UserError(
                f"{path}: has no .cls, but '{dotted[0]}', as a WebDataset's key ends at the first "
                "dot of a file's name. Leave dots out of the keys, or name the labels by --label."
            )
        raise UserError(
            f"{path}: needs a column 'label' and one for each modality; found "
            f"{', '.join(columns.cells)}. If another column holds the labels, name it with --label."
        )
    check_names(path, names)

    nothing = [None] * columns.rows
    target = target_of(path, columns, task, needed=labelled)
    if labelled and not modalities:
        free = [name for name in names if name in others and name not in readers]
        told = [name for name in free if tells_class(columns, name, target)]
        if len(told) < len(names):
            why = "has one value for each class, so it is not a modality"
            columns = replace(columns, aside={**columns.aside, **dict.fromkeys(told, why)})
            names = [name for name in names if name not in told]
    cells: dict[str, Sequence[Any]] = {}
    found: dict[str, Reader] = {}
    for name in names:
        if name in mixed:
            cells[name], found[name] = mixed_cells(path, columns, name, mixed[name]), mixed[name]
        else:
            cells[name], found[name] = _modality(path, columns, name, own.get(name), notes)
    if labelled:
        for name, reader in found.items():
            if isinstance(reader, Array):
                _check_blurred(path, name, cells[name])
                _check_files_blurred(path, name, cells[name], reader)
    if not modalities:
        notes += [
            f"{path.name}: the column '{name}' {why}."
            for name, why in columns.aside.items()
            if name in others and name not in (*names, *used)
        ]
    notes += [*(target.notes if labelled else ()), *columns.notes]
    split: list[SplitName] = ["test"] * columns.rows
    if labelled:
        split = _split(path, columns.texts("split"), target, notes)
    for name, reader in found.items():
        if isinstance(reader, Text) and not (reader.tokenizer or reader.vocabulary):
            texts = [x for x, part in zip(cells[name], split, strict=True) if part == "train" and x]
            found[name] = reader = replace(reader, vocabulary=vocabulary(texts))
            new = [x for x, part in zip(cells[name], split, strict=True) if part != "train"]
            notes += _unread(path, name, reader, new) if labelled else []
        if isinstance(reader, Tabular) and not reader.is_fitted:
            found[name] = fitted(path, name, reader, cells[name], split)
    called = columns.texts("name") or nothing
    labels = [tuple(x) if isinstance(x, list) else x for x in target.values.tolist()]
    samples = [
        Sample(
            called[row] or f"row {row + 1}",
            labels[row],
            split[row],
            {name: cells[name][row] for name in names},
        )
        for row in range(columns.rows)
    ]
    return Source(
        stem_of(path), found, samples, target.task, notes, columns.opened, "", label_columns
    )


def _unread(path: Path, name: str, reader: Text, texts: Sequence[str | None]) -> list[str]:
    """A note if most tokens of validation and test texts are in no training text."""
    tokens = [token for text in texts if text for token in reader(text).tolist()]
    if 2 * tokens.count(1) <= len(tokens):
        return []
    return [
        f"{path.name}: {tokens.count(1) / len(tokens):.0%} of the tokens of '{name}' in validation "
        "and test are in no training text, so they are all alike to the model. A tokenizer knows "
        f"more: --readers.{name} 'text(tokenizer=FOLDER)'."
    ]


def _split(
    path: Path,
    marks: Sequence[str | None] | None,
    target: Target,
    notes: list[str],
) -> list[SplitName]:
    if marks is None:
        split: list[SplitName] = ["train"] * len(target.values)
    else:
        split = []
        for row, mark in enumerate(marks, 1):
            name = meant(mark) if mark else None
            if name is None:
                raise UserError(
                    f"{path}: row {row} has the split {mark!r}. Use train, val and test, or say "
                    "what is which: --splits.train NAME."
                )
            split.append(name)
        check_apart(path, [mark for mark in marks if mark])
    values = torch.from_numpy(target.values)
    shares: tuple[tuple[SplitName, float], ...] = (("test", TEST), ("val", VALIDATION))
    for name, share in shares:
        if name in split:
            continue
        rest = torch.tensor([row for row, mark in enumerate(split) if mark == "train"]).long()
        if target.task.name == "classes":
            names = target.task.names
            counts = values[rest].bincount(minlength=len(names))
            if scarce := (counts < 2).nonzero().flatten().tolist():
                raise UserError(
                    f"{path}: has no {name} split, and class '{names[scarce[0]]}' has too few "
                    "samples to draw one from. Add a column 'split', or leave the class out"
                    f"{if_numbers(names)}."
                )
        part = drawn(target.task, values[rest], share)
        if not len(part):
            raise UserError(
                f"{path}: has no {name} split, and too few samples that are alike to draw one "
                "from. Add a column 'split'."
            )
        for row in rest[part].tolist():
            split[row] = name
        notes.append(
            f"{path.name} has no {name} split: {len(part)} of {len(rest)} samples "
            f"({len(part) / len(rest):.0%}, stratified, seed 0) serve as one."
        )
    return split


def _modality(
    path: Path, columns: Columns, name: str, reader: Reader | None, notes: list[str]
) -> tuple[Sequence[Any], Reader]:
    """The cells of a modality in its reader's form, or tuples of several files, and the reader.

    Args:
        path: Path of the table.
        columns: Columns of the table.
        name: Name of the column.
        reader: The user's choice, if any.
        notes: Receives notes for the user.
    """
    column, root = columns.modality(name), columns.root
    if isinstance(column.values, Files) and column.values.refused:
        raise UserError(
            f"{path}: column '{name}' {column.values.refused}, or leave it out with --modalities."
        )
    first = next((value for value in column.values if value is not None), None)
    if first is None:
        raise UserError(f"{path}: column '{name}' is empty. Leave it out with --modalities.")
    if column.holds == "files" and not isinstance(reader, Text):
        cells = _files(path, root, name, column.values)
        files = column.values if isinstance(column.values, Files) else Files(cells)
        known = reader or (_DECLARED[files.kind]() if files.kind else _sniffed(path, name, cells))
        return cells, _of_several(path, name, known, reader) if files.several else known
    reads_files = reader is not None and not isinstance(reader, Text | Array)
    if column.texts is None and (reads_files or isinstance(reader, Text)):
        assert reader is not None
        shown = first.tolist() if isinstance(first, np.ndarray) else first
        shown = shown[0] if isinstance(shown, list) and len(shown) == 1 else shown
        raise UserError(
            f"{path}: column '{name}' holds {column.holds} such as {shown!r:.60}, which "
            f"{spelled(reader).partition('(')[0]} does not read. Leave its reader out."
        )
    if isinstance(reader, Text):
        return column.texts or [], reader
    paths = reads_files or _holds_paths(path, name, root, column, notes)
    lists = column.lists if paths else None
    if column.lists is None and (mark := _mark(root, column)):
        lists = [None if x is None else _parts(x, mark) for x in column.texts or []]
        notes.append(f"{path.name}: '{mark}' joins several files in a cell of '{name}'.")
    if lists is not None:
        cells = _files(path, root, name, lists)
        known = reader or _sniffed(path, name, cells)
        return cells, _of_several(path, name, known, reader)
    if column.lists is not None:
        notes.append(f"{path.name}: the texts in a cell of '{name}' are one, with blanks between.")
    if column.holds == "texts" and not paths:
        _check_words(path, name, column.values, columns.comma)
        if reader is None:
            return column.values, Text()
    if paths or column.holds == "texts":
        cells = _files(path, root, name, column.texts or [])
        return cells, reader or _sniffed(path, name, cells)
    found = _array(first) if isinstance(first, np.ndarray) else None
    if found is None:
        raise UserError(
            f"{path}: column '{name}' holds {type(first).__name__} values such as {first!r:.60}. "
            "Give numbers, texts or paths, or leave the column out with --modalities."
        )
    return _shaped(column.values, reader or found), reader or found


def _of_several(path: Path, name: str, reader: Reader, asked: Reader | None) -> Reader:
    """The reader of a column, for several files in a cell.

    Args:
        path: Path of the table.
        name: Name of the column.
        reader: Reader of one file.
        asked: The user's choice, if any.

    Raises:
        ValueError: If it reads one file only.
    """
    if isinstance(reader, Image | Spectrogram) and (asked is None or reader.several):
        return replace(reader, several=True)
    raise UserError(
        f"{path}: column '{name}' has several files in a cell, but "
        f"{spelled(reader).partition('(')[0]} reads only one. Use image(several=true) for pictures "
        "or spectrogram(several=true) for sounds. Put other files into columns of their own, or "
        "leave the column out with --modalities."
    )


def _mark(root: Path, column: Column) -> str:
    """The mark that joins several files' paths in any cell of a column; or empty."""
    if column.holds != "texts":
        return ""
    for mark in MARKS:
        joined = [text for text in column.texts or [] if text and mark in text][:PROBED]
        for text in joined:
            parts = _parts(text, mark)
            there = [_exists(root, part) for part in parts]
            paths = all(map(_MEDIA.search, parts)) or all(there)
            if len(parts) > 1 and paths and any(there) and not _exists(root, text):
                return mark
    return ""


def _parts(text: str, mark: str) -> tuple[str, ...]:
    return tuple(part for x in text.split(mark) if (part := x.strip()))


def _shaped(values: Sequence[np.ndarray | None], reader: Reader) -> Sequence[np.ndarray | None]:
    """Numbers in a reader's form: a single number at each step is a sequence, too."""
    if reader.kind != "sequence":
        return values
    return [x[:, None] if x is not None and x.ndim == 1 else x for x in values]


def _check_blurred(path: Path, name: str, cells: Sequence[Any]) -> None:
    """Raises if float32 cannot distinguish the numbers in a column's own cells."""
    given = [x for x in cells if isinstance(x, np.ndarray) and 1 <= x.ndim <= 2 and x.size]
    given = [x for x in given if x.dtype.kind in "iuf"]
    if len({x.shape[-1] for x in given}) != 1:
        return
    rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in given])
    rows = rows[~unusable(rows).any(1)]
    if not len(rows) or not (wrong := blurred(rows)):
        return
    several = rows.shape[1] > 1
    which = f"number {wrong[0] + 1} of the column '{name}'" if several else f"the column '{name}'"
    if not several and given[0].ndim == 1:
        raise UserError(
            f"{path}: {which} {wrong[1]}, or have it standardised in 64 bits: "
            f"--readers.{name}_standard 'tabular(numbers=[{name}])'."
        )
    raise UserError(f"{path}: {which} {wrong[1]}.")


def _check_files_blurred(path: Path, name: str, cells: Sequence[Any], reader: Array) -> None:
    """Raises if float32 cannot distinguish the numbers in a column's `.npy` files.

    It reads only files whose type loses precision, which most do not. Broken files are reported
    later, with all others.
    """
    blur, turn, width = Blur(), Turn(), None
    for cell in cells:
        if not isinstance(cell, Path | Part | bytes | Entry):
            continue
        with suppress(MediaError, OSError, ValueError):
            file = turn({name: cell})[name] if isinstance(cell, Entry) else cell
            if np.can_cast(dtype_of(file), np.float32):
                if isinstance(cell, Entry):
                    return  # all are the same type, and reading them twice would take long
                continue
            values = reader(file.read() if isinstance(file, Part) else file)
            if reader.kind in ("image", "video"):
                values = np.moveaxis(values, -3, -1)
            if width in (None, values.shape[-1]) and not unusable(values).any():
                width = values.shape[-1]
                blur.add(values)
    if wrong := blur.found():
        which = f"number {wrong[0] + 1} of the column" if width != 1 else "the column"
        raise UserError(f"{path}: {which} '{name}' {wrong[1]}.")


def _check_words(path: Path, name: str, texts: Sequence[str | None], comma: bool) -> None:
    """Raises if most of a column's texts have no words: as words, numbers would mean nothing."""
    given = [(row, text) for row, text in enumerate(texts, 1) if text is not None]
    figures = [is_of_figures(text) for _, text in given[:PROBED]]
    if 2 * sum(figures) <= len(figures):
        return
    cut = [(row, text) for row, text in given if is_cut(text)]
    odd = [(row, text) for row, text in given if numbers_of([text]) is None]
    unclear = first_unclear(texts, comma=comma)
    row, text = unclear or [*cut, *odd, *given][0]
    why, how = "neither a number nor a list of numbers", "0.5"
    if cut:
        why = "from which NumPy left numbers out"
    if unclear:
        why, how = in_two_ways(comma=comma), "1234.5, with commas between the cells,"
    what = next((f"{what}, " for what, form in _FORMS.items() if form.fullmatch(text)), "")
    raise UserError(
        f"{path}: column '{name}' holds '{text:.60}' in row {row}, {what}{why}. Write numbers as "
        f"{how} and lists as [0.5, 1], and leave the cell empty where they are missing. If this is "
        f"text, add --readers.{name}=text."
    )


def _holds_paths(path: Path, name: str, root: Path, column: Column, notes: list[str]) -> bool:
    """Whether a column's cells name files or folders.

    Texts do if any of the first is one, even if others are missing: as text, a path would be
    memorised. Numbers, such as 0001, do if all of the first are. Values may have the names of
    folders that hold the files of a class each, so 0 and 1 do not if they recur.

    Args:
        path: Path of the table.
        name: Name of the column.
        root: The folder that paths are relative to.
        column: The column.
        notes: Receives notes for the user.

    Raises:
        ValueError: If they are words that recur, and names of files or folders.
    """
    cells = (
        column.texts if column.lists is None else chain.from_iterable(filter(None, column.lists))
    )
    probed = list(islice((text for text in cells or [] if text is not None), PROBED))
    there = [text for text in probed if _exists(root, text)]
    if column.holds != "texts":
        found = bool(there) and len(there) == len(probed)
        if found and len(set(there)) < len(there) and all(map(_PLAIN.fullmatch, there)):
            notes.append(
                f"{path.name}: '{name}' holds numbers that recur, although files or folders are "
                f"named so, too. --readers.{name}=video reads those."
            )
            return False
        return found
    if there and 2 * len(set(there)) <= len(there) and not any(map(_MARKED.search, there)):
        raise UserError(
            f"{path}: column '{name}' holds words that recur, such as '{there[0]}', and files or "
            f"folders have such names, too. If they are words, say --readers.{name}=text; if they "
            f"are paths, name their reader, such as --readers.{name}=video."
        )
    if there:
        return True
    sure = [text for text in probed if _PATH.match(text) or _MEDIA.search(text)]
    slashed = [text for text in probed if text not in sure and _is_slashed(text)]
    # A word such as and/or recurs often, a path rarely.
    several = slashed if 2 * len(set(slashed)) > len(slashed) else []
    return 2 * len([*sure, *several]) > len(probed)


def _exists(root: Path, text: str) -> bool:
    # Unlike Path.exists, this returns False for a text too long for a path.
    return bool(text.strip(". ")) and os.path.exists(root / text)


def _is_slashed(text: str) -> bool:
    return bool(re.fullmatch(r"\S*[/\\]\S*", text)) and not is_of_figures(text)


def _files(path: Path, root: Path, name: str, cells: Sequence[Any]) -> list[Any]:
    """The cells, with texts, also in tuples, as paths from a folder, if any exists."""
    given = [text for cell in cells for text in several_of(cell) if isinstance(text, str)]
    if given and not any(_exists(root, text) for text in given[:PROBED]):
        raise UserError(
            f"{path}: none of the first {len(given[:PROBED])} paths in column '{name}' exists, "
            f"such as '{given[0][:100]}'. They are looked up in {root.absolute()}: give paths "
            f"relative to it, or absolute ones. If this is text, add --readers.{name}=text."
        )
    return [
        tuple(root / text for text in cell)
        if isinstance(cell, tuple)
        else root / cell
        if isinstance(cell, str)
        else cell
        for cell in cells
    ]


def _sniffed(path: Path, name: str, cells: Sequence[Any]) -> Reader:
    """The reader that suits the first intact file."""
    given = [cell for cell in cells if cell is not None][:PROBED]
    turn, first = Turn(), None
    for cell in given:
        held = cell.read() if isinstance(cell, Part) else turn({name: cell})[name]
        for file in several_of(held):
            if file is not None and (found := _reader_of(name, file)):
                return found
            first = first or file
    if first is None:
        raise UserError(f"{path}: column '{name}' is empty. Leave it out with --modalities.")
    raise UserError(
        f"{path}: column '{name}' begins with {named(first)}, which holds neither pictures nor "
        f"sound nor an array, nor does any of the first {len(given)}. Leave the column out with "
        "--modalities, or say how it is read with --readers."
    )


def _reader_of(name: str, file: File) -> Reader | None:
    """The reader of a file or folder; None if it is broken or of another kind."""
    try:
        if isinstance(file, Path) and file.is_dir():
            return Video() if len(frames_of(file)) else None
        check_file(file)
        if _begins(file, b"\x93NUMPY"):
            return _array(numbers(file))
    except (MediaError, OSError):
        return None
    if is_still(file):
        return Image()
    heard = name.lower().startswith(("audio", "sound", "speech", "voice", "music"))
    tried = ((pictures, Video()), (sounds, Spectrogram()))
    for frames, reader in reversed(tried) if heard else tried:
        with suppress(MediaError), closing(frames(file, 0)) as decoded:
            if next(decoded, None) is not None:
                return reader
    return None


def _begins(file: File, mark: bytes) -> bool:
    if isinstance(file, bytes):
        return file.startswith(mark)
    with file.open("rb") as opened:
        return opened.read(len(mark)) == mark


def _array(values: np.ndarray) -> Array | None:
    if values.dtype.kind not in "iufb":
        return None
    if values.ndim == 3 or (values.ndim == 2 and values.dtype.name in ("uint8", "int8")):
        return Array("image")
    if values.ndim == 2:
        return Array("sequence", ragged=True)
    return Array("video") if values.ndim == 4 else Array()
