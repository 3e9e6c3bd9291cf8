"""The user's own parts, by import path: `my.module.Name`.

An import runs a module's code. Callers of `imported` get the name from the user, who typed it or
trusts the file it is in (`evenly.lab.run.settings.check_trusted`).
"""

import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
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


def checksums(names: Mapping[str, str]) -> dict[str, str]:
    """The SHA-256 of each file that defines one of the user's own parts, by module.

    Installed modules are left out, since the versions of their `packages` identify them, and so are
    modules without a file. Modules that the file imports are not followed.

    Args:
        names: By import path, the kind of thing, for error messages.
    """
    found = {module: sha256(path) for module, path in _modules(names) if not _is_installed(path)}
    return dict(sorted(found.items()))


def packages(names: Mapping[str, str]) -> list[str]:
    """The installed packages that define some of the user's own parts, by their names for pip.

    Args:
        names: By import path, the kind of thing, for error messages.
    """
    tops = {module.partition(".")[0] for module, path in _modules(names) if _is_installed(path)}
    if not tops:
        return []
    known = _by_module()
    return sorted({package for top in tops for package in known.get(top, ())})


@cache
def _by_module() -> Mapping[str, list[str]]:
    """The installed packages by their modules: reading about all of them takes a while."""
    return packages_distributions()


def _modules(names: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """The modules with a file that define the user's own parts."""
    for name, what in names.items():
        part = imported(what, name)
        module = sys.modules.get(getattr(part, "__module__", None) or name.rpartition(".")[0])
        path = Path(getattr(module, "__file__", None) or os.devnull).resolve()
        if module is not None and path.is_file():
            yield module.__name__, path


def _is_installed(path: Path) -> bool:
    folders = (sysconfig.get_path(key) for key in ("purelib", "platlib", "stdlib"))
    return any(path.is_relative_to(Path(folder).resolve()) for folder in folders)
