"""Arrays from a pickle, without running any code in it."""

import pickle
from pathlib import Path
from typing import Any

from evenly.errors import UserError

# Constructors of NumPy's arrays and numbers, under their old and new names.
_SAFE = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
for _core in ("numpy.core", "numpy._core"):
    _SAFE |= {(f"{_core}.multiarray", "_reconstruct"), (f"{_core}.multiarray", "scalar")}
    _SAFE |= {(f"{_core}.numeric", "_frombuffer")}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_pickle(path: Path) -> Any:
    """Containers, numbers, texts and NumPy arrays from a pickle; refuses anything else.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _Arrays(file).load()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: is not a pickle of plain arrays ({error}). Other pickles could run code "
            "and are not read."
        ) from error
