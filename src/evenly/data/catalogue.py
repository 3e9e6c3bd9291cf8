"""The built-in data sets by name, and the one way in to any data set."""

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenly.data.arrays import load_npz
from evenly.data.dataset import Data
from evenly.data.digits import digits
from evenly.data.store import is_store, open_store
from evenly.data.synthetic import synthetic
from evenly.data.tasks import Asked
from evenly.errors import UserError
from evenly.spec import made, parse
from evenly.suggest import unknown
from evenly.targets import in_words

PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
"""Endings of archives that must be unpacked before they are tables."""
TABLES = (".csv", ".tsv", ".parquet", ".feather", ".jsonl", ".ndjson", ".tar", *PACKED)
"""Endings of tables, in any case; they become data when prepared."""


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a built-in data set.

    Attributes:
        title: The title, in a few words.
        modalities: Names of the modalities.
        samples: Number of samples, in words if it depends on settings.
        licence: Licence of the data.
        source: Where the data come from.
        settings: What each setting means.
        build: Makes the data set from settings.
    """

    title: str
    modalities: str
    samples: str
    licence: str
    source: str
    settings: Mapping[str, str]
    build: Callable[..., Data]

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of each setting."""
        parameters = inspect.signature(self.build).parameters
        return {name: parameter.default for name, parameter in parameters.items()}


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        title="handwritten digits, a clear upper and a noisy lower half",
        modalities="top, bottom (images, 1×4×8)",
        samples="1,797 (60/20/20 %), 10 classes",
        licence="CC BY 4.0",
        source="Optical Recognition of Handwritten Digits, UCI 1998, as shipped in scikit-learn",
        settings={
            "noise": "standard deviation of the noise on `bottom`; pixels run from 0 to 16",
            "seed": "of the noise and the split",
        },
        build=digits,
    ),
    "synthetic": DatasetInfo(
        title="Gaussian classes with known best accuracies",
        modalities="m1, m2, … (vectors)",
        samples="as set",
        licence="none needed, generated",
        source="generated",
        settings={
            "modalities": "how many",
            "classes": "how many",
            "train": "samples",
            "val": "samples",
            "test": "samples",
            "dim": "width of each modality's vectors",
            "information": "distance of the classes; one number, or a list by modality",
            "speed": "1 is even, smaller learns more slowly; one number, or a list",
            "noise": "standard deviation; one number, or a list",
            "seed": "of all that is drawn",
        },
        build=synthetic,
    ),
}
"""The data sets that `load` knows by name."""


def data_file(spec: str) -> Path | None:
    """The file or folder that `load` reads for a spec; None if it is a name."""
    path = os.path.expanduser(spec)
    if spec not in DATASETS and (spec.lower().endswith((".npz", *TABLES)) or os.path.exists(path)):
        return Path(path)
    return None


def is_raw(spec: str) -> bool:
    """Whether a spec must be prepared first: a table, or a folder that is not a store."""
    if spec.lower().endswith(TABLES):
        return True
    path = data_file(spec)
    return path is not None and path.is_dir() and not is_store(path)


def stem_of(path: Path) -> str:
    """The name of a table's file or folder, without its ending and ranges in braces."""
    if not path.name.lower().endswith(TABLES):
        return path.name
    return re.sub(r"[-_.]?\{[^{}]*\}", "", path.stem) or "shards"


def load(spec: str, task: Asked = "auto") -> Data:
    """Loads a data set by name, with or without settings, or from an `.npz` file or a store.

    Args:
        spec: `digits`, `digits(noise=4)`, `synthetic(modalities=3,speed=[1,1,0.2])`, or the path
            of an `.npz` file or a store.
        task: How to read its labels; only for an `.npz` file.

    Raises:
        FileNotFoundError: If a path leads nowhere.
        ValueError: If the name or a setting is unknown, a setting is invalid, a file does not have
            the form that `load_npz` reads, or it has another task.
    """
    data = _loaded(spec, task)
    if task not in ("auto", data.task.name):
        path = data_file(spec)
        is_store = path is not None and path.is_dir()
        raise UserError(
            f"{data.name} has {in_words([data.task.takes])}, but --task asks for {task}. "
            f"{(f'Prepare it again with --task {task}, or leave' if is_store else 'Leave')} it "
            "out."
        )
    return data


def _loaded(spec: str, task: Asked) -> Data:
    if (path := data_file(spec)) is not None:
        if spec.lower().endswith(TABLES):
            raise UserError(
                f"{path}: prepare a table first: evenly prepare {path} --out STORE; then use "
                "--data STORE."
            )
        return open_store(path) if path.is_dir() else load_npz(path, task=task)
    asked = parse(spec)
    if asked.name.lower().endswith(".npz"):
        raise UserError(
            f"'{asked.name}' is a file and takes no settings; found {sorted(asked.settings)}. "
            "Give only the path."
        )
    if "/" in asked.name:
        return load_npz(Path(spec).expanduser(), task=task)
    info = DATASETS.get(asked.name)
    if info is None:
        raise _unknown(spec, asked.name)
    return made("data set", asked, {asked.name: info.build})


def _unknown(spec: str, name: str) -> UserError:
    """The error for a name that is not a built-in data set's."""
    from evenly.data.raw.sets import SETS

    if name in SETS:
        return UserError(
            f"{name}: prepare its files first: evenly prepare '{spec}' --folder FOLDER --out "
            f"STORE; then use --data STORE. 'evenly datasets {name}' tells you where to get "
            "them."
        )
    known = [*DATASETS, *SETS]
    return unknown(
        "data set", name, known, "or the path of an .npz file, a table, a folder or a store"
    )
