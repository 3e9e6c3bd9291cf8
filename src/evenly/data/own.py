"""The user's own data sets: a function, by import path, that returns arrays or a Dataset.

Its result is written beside the runs, so that every run reads the same data, also on other
machines, and a function whose result varies is detected.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evenly.data.archive import read_archive
from evenly.data.arrays import save_npz, writable
from evenly.data.catalogue import data_file
from evenly.errors import UserError
from evenly.imported import imported, is_own
from evenly.spec import parse


def is_function(spec: str) -> bool:
    """Whether data are given by the import path of a function, not by a name or a file."""
    return is_own(spec.partition("(")[0].strip()) and data_file(spec) is None


def given_by(spec: str) -> Any:
    """What a function returns: arrays by name, or a `datasets.Dataset` or `DatasetDict`.

    Args:
        spec: `my.module.function`, with settings if wanted.

    Raises:
        ValueError: If there is no such function, or it fails or returns something else.
    """
    asked = parse(spec)
    function = imported("data set", asked.name)
    if not callable(function):
        raise UserError(
            f"'{asked.name}' is of the type {type(function).__name__}. A data set is a function "
            "that returns arrays by name, or a datasets.Dataset."
        )
    try:
        found = function(**asked.settings)
    except Exception as error:
        raise UserError(
            f"data set '{spec}' cannot be made ({type(error).__name__}: {error}). Check its "
            "settings, and the function."
        ) from error
    if _is_dataset(found) or (isinstance(found, Mapping) and found and not is_arrays(found)):
        return found
    if not isinstance(found, Mapping):
        raise UserError(
            f"data set '{spec}' returns {type(found).__name__}. Return a mapping of arrays, "
            "'labels', 'split' and one for each modality, or a datasets.Dataset."
        )
    lacking = [name for name in ("labels", "split") if name not in found]
    if lacking:
        raise UserError(
            f"data set '{spec}' returns the arrays {', '.join(map(str, found)) or 'none'}, without "
            f"'{lacking[0]}'. Return 'labels', 'split' and one for each modality."
        )
    return found


def is_arrays(found: Any) -> bool:
    """Whether it is arrays by name, and not a Dataset."""
    return isinstance(found, Mapping) and not any(map(_is_dataset, found.values()))


def _is_dataset(found: Any) -> bool:
    return hasattr(found, "select_columns") and hasattr(found, "features")


def written(spec: str, found: Mapping[str, Any], path: Path) -> Path:
    """Writes arrays as an `.npz` file, unless it already holds them.

    Raises:
        ValueError: If they do not have the form that `load_npz` reads, or the file holds others.
    """
    known = {"labels", "split", "class_names"}
    modalities = {name: value for name, value in found.items() if name not in known}
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_npz(path, found["labels"], found["split"], modalities, found.get("class_names"))
        except TypeError as error:
            raise UserError(f"data set '{spec}': {error}") from error
        return path
    before = read_archive(path)
    now = {name: writable(name, value) for name, value in found.items()}
    differ = sorted(before.keys() ^ now.keys())
    differ += [
        name
        for name in before.keys() & now.keys()
        if not (before[name].dtype == now[name].dtype and np.array_equal(before[name], now[name]))
    ]
    if differ:
        raise UserError(
            f"data set '{spec}' now returns other data than {path} holds, in "
            f"'{differ[0]}'. Draw what is random from a seed, or choose another folder with --out."
        )
    return path
