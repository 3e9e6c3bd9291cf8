"""Folders of pictures, sounds or clips: by class, or with a metadata table."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from evenly.data.raw.columns import Columns, columns_of, csv_columns, of_records
from evenly.data.raw.lines import json_rows
from evenly.data.raw.rows import Files
from evenly.data.raw.splits import is_split
from evenly.errors import UserError

_ENDINGS = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"),
    "video": (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
}
MEDIA = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings}
"""What a file holds by its ending: image, audio or video."""
METADATA = ("metadata.csv", "metadata.jsonl")
_NAMES = "file_name"


def media_columns(path: Path, files: Sequence[Path]) -> Columns:
    """The columns of a folder of media files in subfolders by class, and perhaps by split.

    Files of several kinds under one name in one folder are one sample.

    Args:
        path: The folder.
        files: The files in it.

    Raises:
        ValueError: If a file duplicates a name and kind, or no sample has several of the kinds.
    """
    kinds = list(dict.fromkeys(MEDIA[file.suffix.lower()] for file in files))
    samples: dict[str, dict[str, Path]] = {}
    for file in files:
        short = file.relative_to(path)
        name = str(short if len(kinds) == 1 else short.with_suffix(""))
        sample = samples.setdefault(name, {})
        kind = MEDIA[file.suffix.lower()]
        if kind in sample:
            raise UserError(
                f"{path}: {sample[kind].name} and {file.name} have the same name, so they would be "
                f"one sample with two files of the kind {kind}. Rename one."
            )
        sample[kind] = file
    if len(kinds) > 1 and all(len(sample) == 1 for sample in samples.values()):
        columns = ", ".join(f"{kind}_{_NAMES}" for kind in kinds)
        raise UserError(
            f"{path}: holds files of the kinds {' and '.join(kinds)}, but no sample has two of "
            "them. Give the files of a sample the same name in the same folder, such as "
            f"CLASS/1.jpg and CLASS/1.wav, or write {METADATA[0]} with the columns {columns} and "
            "label."
        )
    places = [file.relative_to(path) for file in (next(iter(s.values())) for s in samples.values())]
    told, refused = _told(path, places)
    cells: dict[str, Any] = {"name": list(samples), **told}
    for kind in kinds:
        cells[kind] = Files([sample.get(kind) for sample in samples.values()], kind)
    return _columns(path, cells, refused=refused)


def described_columns(path: Path, tables: Sequence[Path], files: Sequence[Path]) -> Columns:
    """The columns of a folder of media files named in metadata tables.

    Args:
        path: The folder.
        tables: `metadata.csv` or `metadata.jsonl`, one in all or one per folder. Their column
            `file_name`, or several such as `image_file_name`, give paths from there to the files.
        files: The media files in the folder.

    Raises:
        ValueError: If a table cannot be read, names no files, or its columns differ from the
            first's.
    """
    if len({table.suffix for table in tables}) > 1:
        raise UserError(
            f"{path}: holds both {tables[0].name} and {tables[-1].name}. Leave one of them."
        )
    places: list[Path] = []
    rows: list[Mapping[str, Any]] = []
    more: dict[str, Any] = {}
    for table in tables:
        found, more = _records(table)
        if table.suffix == ".csv" and rows and (odd := sorted(set(found[0]) ^ set(rows[0]))):
            raise UserError(
                f"{table}: has other columns than {tables[0]}: only one of them has "
                f"{', '.join(odd)}. Give both the same."
            )
        rows += found
        places += [table.parent] * len(found)
    names = list(dict.fromkeys(name for row in rows for name in row))
    named = [name for name in names if name == _NAMES or name.endswith(f"_{_NAMES}")]
    if not named:
        raise UserError(
            f"{tables[0]}: has no column '{_NAMES}' that names the files, it has "
            f"{', '.join(names)}. Rename the one that does."
        )
    cells: dict[str, Any] = {}
    if tables[0].suffix == ".csv":
        cells = {name: [row[name] for row in rows] for name in names}
    else:
        cells = of_records(rows)
    given: dict[str, list[Path | None]] = {}
    for name in named:
        texts = [row.get(name) for row in rows]
        given[name] = [
            place / str(x) if x else None for place, x in zip(places, texts, strict=True)
        ]
        kinds = {MEDIA.get(file.suffix.lower(), "") for file in given[name] if file}
        kind = kinds.pop() if len(kinds) == 1 else ""
        column = name.removesuffix(_NAMES).rstrip("_") or kind or "file"
        del cells[name]
        if column in cells:
            raise UserError(
                f"{tables[0]}: '{column}' would be both a column and the files of '{name}'. Rename "
                "one."
            )
        cells[column] = Files(given[name], kind)
    first = [
        (file or place / "none").relative_to(path)
        for file, place in zip(given[named[0]], places, strict=True)
    ]
    notes = []
    known = {name.lower() for name in cells}
    told, refused = _told(path, first, tables[0].name, known)
    if "split" in told and "split" in known:
        raise UserError(
            f"{path}: gives the splits twice, in a column 'split' and by the names of its folders, "
            f"such as '{told['split'][0]}'. Rename the column or the folders."
        )
    if "label" in told:
        notes.append(f"{path.name}: the folder that a file is in is its class.")
    there = {file for several in given.values() for file in several}
    if left := sum(file not in there for file in files):
        notes.append(f"{path.name}: {left} files that {tables[0].name} does not name: left out.")
    if "name" not in cells:
        cells["name"] = [str(place) for place in first]
    cells |= told
    return _columns(path, cells, tables, refused=refused, notes=notes, **more)


def _columns(
    path: Path, cells: Mapping[str, Any], opened: Sequence[Path] = (), **more: Any
) -> Columns:
    return columns_of(path, list(cells), list(cells.values()), root=path, opened=opened, **more)


def _records(table: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a metadata table, and how its cells are to be read, see `Columns`."""
    if table.suffix != ".csv":
        return [row for _, row in json_rows(table) if row], {}
    found = csv_columns(table)
    rows = zip(*found.cells.values(), strict=True)
    more = {"comma": found.comma, "empty": found.empty}
    return [dict(zip(found.cells, row, strict=True)) for row in rows], more


def _told(
    path: Path, places: Sequence[Path], table: str = "", known: Collection[str] = ()
) -> tuple[dict[str, list[str]], dict[str, UserError]]:
    """The columns `split` and `label` that names of folders tell, and why they do not tell one.

    Args:
        path: The folder.
        places: Paths of the files from there.
        table: Name of the metadata table that describes them, if there is one.
        known: The columns of the table, in lower case.
    """
    told: dict[str, list[str]] = {}
    try:
        if splits := _splits(path, places):
            told["split"] = splits
        elif "split" not in known:
            _check_splits_outside(path, places, table)
    except UserError as error:
        return {}, {"split": error}
    try:
        if "label" not in known and (labels := _classes(path, places, splits, table)):
            told["label"] = labels
    except UserError as error:
        return told, {"label": error}
    return told, {}


def _splits(path: Path, places: Sequence[Path]) -> list[str] | None:
    """The split of each file, from the name of its outermost folder; None if none is named so."""
    tops = [place.parts[0] if len(place.parts) > 1 else "" for place in places]
    known = [top for top in tops if is_split(top)]
    if not known:
        return None
    if len(known) < len(tops):
        odd = next(place for place, top in zip(places, tops, strict=True) if not is_split(top))
        raise UserError(
            f"{path}: {odd} is in the folder of no split, and others are, such as {known[0]}. Move "
            "it away, or put it into one."
        )
    return tops


def _check_splits_outside(path: Path, places: Sequence[Path], table: str) -> None:
    """Raises if folders name splits, but lie within others."""
    folders = [place.parent.parts for place in places]
    for depth in range(1, min(map(len, folders))):
        names = list(dict.fromkeys(folder[depth] for folder in folders))
        if len(names) < 2 or not all(map(is_split, names)):
            continue
        above = {Path(*folder[:depth]) for folder in folders}
        how = f"write {METADATA[0]} with the columns {_NAMES}, label and split"
        if table:
            how = f"add a column 'split' to {table}"
        elif len(above) == 1:
            how = f"give {path / above.pop()}"
        raise UserError(
            f"{path}: the folders {' and '.join(names)} name splits, but lie within others, such "
            f"as {folders[0][0]}. Put them outermost, as in {names[0]}/CLASS/1.jpg, or {how}."
        )


def _classes(
    path: Path, places: Sequence[Path], splits: list[str] | None, table: str
) -> list[str] | None:
    """The folder of each file; None if a described one is in none, or in that of a split.

    Raises:
        ValueError: If it is unclear which folders are classes.
    """
    least = 3 if splits else 2
    if odd := [place for place in places if len(place.parts) < least]:
        if table:
            return None
        raise UserError(
            f"{path}: {odd[0]} is in no folder of a class. Put the files into a folder for each "
            f"class, or write {METADATA[0]} with the columns {_NAMES} and label."
        )
    _check_apart(path, dict.fromkeys(place.parent for place in places), splits, table)
    return [place.parts[-2] for place in places]


def _check_apart(
    path: Path, folders: Collection[Path], splits: list[str] | None, table: str
) -> None:
    """Raises if two folders of one name, or a folder within another, would be classes."""
    known: dict[str, Path] = {}
    for folder in folders:
        # Splits have the same classes.
        names = [name for name in folder.parts[:-1] if not (splits and is_split(name))]
        own = Path(*names, folder.name)
        wrong = ""
        if (other := known.setdefault(own.name, own)) != own:
            wrong = f"{other} and {own} would be one class, {own.name}"
        elif outer := [x for x in folder.parents if x in folders]:
            wrong = f"{folder} is within {outer[0]}, and both would be classes"
        if wrong:
            how = f"write {METADATA[0]} with the columns {_NAMES} and label"
            if table:
                how = f"add a column 'label' to {table}, or name the one that it has with --label"
            raise UserError(
                f"{path}: the folders {wrong}. Put the files right into a folder for each class, "
                f"or {how}."
            )
