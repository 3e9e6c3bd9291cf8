"""Facts and helpers for data sets prepared from their official downloads."""

import csv
import gzip
import inspect
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from evenly.data.dataset import SplitName
from evenly.data.raw.readers import Spectrogram, Text, vocabulary
from evenly.data.raw.source import Source
from evenly.errors import UserError, UserFileNotFoundError
from evenly.spec import Spec, made, parse

Front = Literal["fbank", "mel", "stft"]


@dataclass(frozen=True)
class Official:
    """A data set as its authors distribute it.

    Attributes:
        title: The title, in a few words.
        modalities: Their names and what they become.
        samples: Number of samples by split.
        licence: Licence of the data.
        source: Where to get the data; nothing is ever downloaded.
        layout: What the folder must hold, with an example of each.
        settings: What each setting means.
        build: `build(folder, **settings)` finds the files of each sample.
    """

    title: str
    modalities: str
    samples: str
    licence: str
    source: str
    layout: tuple[str, ...]
    settings: Mapping[str, str]
    build: Callable[..., Source]

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of each setting."""
        parameters = inspect.signature(self.build).parameters
        return {name: parameters[name].default for name in self.settings}

    def open(self, folder: Path, spec: Spec) -> Source:
        """Finds the files of each sample.

        Args:
            folder: The download.
            spec: The name with settings.

        Raises:
            FileNotFoundError: If something that every sample needs is missing.
            ValueError: If a setting is unknown or of another type, or the folder does not hold
                the data set.
        """
        if not folder.is_dir():
            raise UserFileNotFoundError(
                f"{folder}: no such folder. It should hold {'; '.join(self.layout)}, which you "
                f"get from {self.source}."
            )
        found = made("data set", spec, {spec.name: partial(self.build, folder)})
        return replace(found, official=self.whole(spec).text)

    def whole(self, spec: Spec) -> Spec:
        """The name with every setting, as a text gives them."""
        return parse(Spec(spec.name, {**self.defaults, **spec.settings}).text)


@dataclass(frozen=True)
class Found:
    """How much of a data set is in a folder.

    Attributes:
        files: Number of files needed.
        missing: Files that are missing or empty.
        splits: By split, complete samples and all samples.
    """

    files: int
    missing: list[Path]
    splits: dict[str, tuple[int, int]]


def check(source: Source) -> Found:
    """Checks for the files of every sample, without decoding any."""
    paths = list(source.files())
    missing = [path for path in paths if not path.exists() or not path.stat().st_size]
    lost = set(missing)
    splits: dict[str, tuple[int, int]] = {}
    for sample in source.samples:
        whole, count = splits.get(sample.split, (0, 0))
        here = lost.isdisjoint(sample.files())
        splits[sample.split] = (whole + here, count + 1)
    return Found(len(paths), missing, splits)


def listed(name: str) -> list[str]:
    """The lines of a list of names that ships with this package, compressed or not."""
    data = files("evenly.data.raw.sets").joinpath("lists", name).read_bytes()
    text = gzip.decompress(data) if name.endswith(".gz") else data
    return text.decode().splitlines()


def needed(folder: Path, name: str) -> Path:
    """A file in a folder that the data set requires.

    Raises:
        FileNotFoundError: If it is missing; the message says what is there.
    """
    path = folder / name
    if not path.is_file():
        there = some(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise UserFileNotFoundError(
            f"{folder}: holds no {name}, but {there}. Give the folder that does."
        )
    return path


def rows(
    path: Path, delimiter: str = ",", *, quoted: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """The rows of a list in UTF-8, without empty ones, each with the number of its last line.

    Args:
        path: Path of the file.
        delimiter: Delimiter of cells.
        quoted: Whether cells may be quoted.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        found = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
        for row in found:
            if any(cell.strip() for cell in row):
                yield found.line_num, [cell.strip() for cell in row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is not a complete list in UTF-8 ({error}).") from error


def misread(path: Path, line: int, row: Sequence[str], form: str) -> UserError:
    """The error for a row of another form."""
    shown = " | ".join(row)
    return UserError(f"{path}: line {line} holds '{shown:.60}', not {form}. Download it again.")


def text(training: Iterable[str | None], tokenizer: str, length: int) -> Text:
    """The reader of texts: by a tokenizer, or else by the words of the training texts."""
    known = "" if tokenizer else vocabulary(filter(None, training))
    return Text(tokenizer, known, length)


def leaks(what: str, found: Iterable[tuple[str, SplitName]]) -> list[str]:
    """A note on what is in several splits, if anything is.

    Args:
        what: What they are, such as 'videos'.
        found: Each of them with a split that it is in.
    """
    splits: defaultdict[str, set[SplitName]] = defaultdict(set)
    for one, split in found:
        splits[one].add(split)
    several = [f"'{one:.60}'" for one, parts in splits.items() if len(parts) > 1]
    return noted(f"A leak: {what} in more than one split", several)


def sound(front: Front, seconds: float) -> Spectrogram:
    """One of the field's front ends at its published rate.

    The STFT is OGM-GE's, 257 × 188 for three seconds at 22,050 samples per second; the others use
    16,000.
    """
    return Spectrogram(front, seconds, 22_050 if front == "stft" else 16_000)


def some(names: Sequence[object], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


def noted(what: str, names: Sequence[str]) -> list[str]:
    """A note on some samples, if there are any."""
    return [f"{what} ({len(names):,}): {some(names)}."] if names else []


def passed_over(paths: Sequence[Path], called: str) -> list[str]:
    """A note on misnamed files, if there are any.

    Args:
        paths: Paths of these files.
        called: What their names should be.
    """
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    return noted(f"Passed over, as not called {called}", names)
