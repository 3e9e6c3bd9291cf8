"""The user's own parts, by import path: `my.module.Name`.

An import runs a module's code. Callers of `imported` get the name from the user, who typed it or
trusts the file it is in (`evenly.lab.run.settings.check_trusted`).
"""

import os
import sys
import sysconfig
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evenly.errors import UserError
from evenly.files import sha256
from evenly.suggest import nearest


def is_own(name: str) -> bool:
    """Whether a name is an import path, `module.Name`, and not one of evenly's own or a file's."""
    first, *others = name.split(".")
    return bool(others) and all(part.isidentifier() for part in (first, *others))


def imported(what: str, name: str) -> Any:
    """What an import path leads to. The current folder is searched last.

    Args:
        what: Kind of thing, for error messages.
        name: `module.Name` or `package.module.Name`.

    Raises:
        ValueError: If there is no such module, its code fails, or it has nothing of that name.
    """
    place, _, last = name.rpartition(".")
    top = place.partition(".")[0]
    try:
        if top not in sys.modules and find_spec(top) is None and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # like `python -m`: the module may be beside the data
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _broken(what, name, place, error) from error
        raise UserError(
            f"'{name}' cannot be imported as the {what}, because there is no module "
            f"'{error.name}'. Check the name, start the command in its folder, or set PYTHONPATH."
        ) from error
    except (Exception, SystemExit) as error:
        raise _broken(what, name, place, error) from error
    try:
        return getattr(module, last)
    except AttributeError as error:
        guess = nearest(last, vars(module)).strip() or "Check the name."
        raise UserError(f"the module {place} has no '{last}' to be the {what}. {guess}") from error


def _broken(what: str, name: str, place: str, error: BaseException) -> UserError:
    said = str(error).partition("\n")[0]
    return UserError(
        f"'{name}' cannot be imported as the {what}, because the module {place} fails "
        f"({type(error).__name__}: {said}). Run 'python -c \"import {place}\"' to see where."
    )


def checksums(names: dict[str, str]) -> dict[str, str]:
    """The SHA-256 of each file that defines one of the user's own parts, by module.

    Installed modules are left out, since their version identifies them, and so are modules without
    a file. Modules that the file imports are not followed.

    Args:
        names: By import path, the kind of thing, for error messages.
    """
    installed = [
        Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib", "stdlib")
    ]
    found = {}
    for name, what in names.items():
        part = imported(what, name)
        module = sys.modules.get(getattr(part, "__module__", None) or name.rpartition(".")[0])
        path = Path(getattr(module, "__file__", None) or os.devnull).resolve()
        if module is None or not path.is_file():
            continue
        if not any(path.is_relative_to(folder) for folder in installed):
            found[module.__name__] = sha256(path)
    return dict(sorted(found.items()))
