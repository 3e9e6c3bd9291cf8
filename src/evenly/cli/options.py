"""The options of a command: typed ones, then those from files."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from evenly.cli.commands import parser
from evenly.cli.parser import dashed
from evenly.cli.training import RECIPES, SETTINGS
from evenly.errors import UserError
from evenly.lab.run.settings import check_trusted, own_parts
from evenly.spec import converted, load_yaml, numbers
from evenly.suggest import unknown

PATHS = ("out", "data", "folder", "run", "file", "figure", "projection_figure")
"""Options that are paths, or may be."""
NAMING = {"data", "encoders", "fusion", "method", "methods", "metrics"}
"""Options that may name the user's own parts by import path."""


def parsed(arguments: Sequence[str]) -> Namespace:
    """The options of a command, whose name comes first: typed ones, then those from files.

    Of a command with settings, `given` names those that were typed or come from files.

    `~` means the home folder: shells do not expand it in --out=~/runs, nor do files.
    """
    options = _parsed(arguments[0], _underscored(arguments[1:]))
    for name in PATHS:
        if isinstance(text := options.get(name), str):
            options[name] = os.path.expanduser(text)
    return options


def _parsed(command: str, given: Sequence[str]) -> Namespace:
    for text in given:
        if text != text.encode(errors="replace").decode():
            raise UserError(f"{text!r} is not valid UTF-8. Rename what it refers to.")
    one = parser(command)
    if "config" not in one.hints:
        return one.parse_args(given)
    given, paths = _taken("--config", given)
    files = {path: _settings(Path(path).expanduser(), command, one.hints) for path in paths}
    settings = {name: value for each in files.values() for name, value in each.items()}
    recipes = [*filter(None, [settings.get("recipe")]), *_taken("--recipe", given)[1]]
    if recipes:
        if recipes[-1] not in RECIPES:
            raise unknown("recipe", recipes[-1], sorted(RECIPES))
        settings = _recipe(recipes[-1], command, one.hints) | settings
    one.set_defaults(settings)
    options = one.parse_args(given)
    named = (text[2:].partition("=")[0].partition(".")[0] for text in given if text[:2] == "--")
    options["given"] = frozenset((*settings, *named))
    if files and not options.trust:
        asked = own_parts({name: options.get(name) for name in NAMING})
        _check_files(files, asked.keys(), _typed(given))
    return options


def _underscored(arguments: Sequence[str]) -> list[str]:
    """Options as registered: '--limit-samples' becomes '--limit_samples'."""
    found = []
    for text in arguments:
        name, equals, value = text.partition("=")
        plain = name.startswith("--")
        option, dot, key = name[2:].partition(".")  # a key is a modality, and stays unchanged
        option = option.replace("-", "_").replace("skip_broken", "skip-broken")
        found.append(f"--{option}{dot}{key}{equals}{value}" if plain else text)
    return found


def _taken(option: str, given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without an option, and the option's values."""
    rest, values = [], []
    arguments = iter(given)
    for text in arguments:
        name, equals, value = text.partition("=")
        follows = name == option and not equals
        if name != option or (follows and (value := next(arguments, "")) == ""):
            rest.append(text)  # the parser reports a missing value
        else:
            values.append(value)
    return rest, values


def _recipe(name: str, command: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command in a recipe, which is made for all commands that train."""
    found = _settings(RECIPES[name], command, {**SETTINGS, **hints})
    if unused := [dashed(each) for each in found if each not in hints]:
        print(
            f"note: the recipe {name} also sets {', '.join(unused)}, which evenly {command} does "
            "not have.",
            file=sys.stderr,
        )
    return {each: value for each, value in found.items() if each in hints}


def _settings(path: Path, command: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command in a file."""
    try:
        found = load_yaml(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"cannot read settings from {path}: {error}. Write YAML, 'name: value'."
        ) from error
    if not isinstance(found, dict):
        kind = "a list" if isinstance(found, list) else "nothing" if found is None else "a value"
        raise UserError(f"{path} holds {kind} instead of settings. Write YAML, 'name: value'.")
    known = sorted(hints.keys() - {"help", "config", "print_config"})
    settings = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(f"{path}: {unknown(f'setting of evenly {command}', str(key), known)}")
        if name in settings:
            raise UserError(f"{path} sets '{name}' twice, with a dash and without. Set it once.")
        settings[name] = converted(f"{path}: {name}", numbers(value, hints[name]), hints[name])
    if settings.get("trust"):
        raise UserError(f"{path} sets 'trust', which only the command line may: --trust.")
    return settings


def _typed(given: Sequence[str]) -> set[str]:
    """The import paths named on the command line itself."""
    found: set[str] = set()
    for at, text in enumerate(given):
        option, equals, value = text.partition("=")
        name, dot, key = option.removeprefix("--").partition(".")
        if not option.startswith("--") or name not in NAMING:
            continue
        value = value if equals else "".join(given[at + 1 : at + 2])
        asked = load_yaml(value) if name == "encoders" and not dot else value
        found |= own_parts({name: {key: asked} if dot else asked}).keys()
    return found


def _check_files(files: Mapping[str, Mapping[str, Any]], asked: Set[str], typed: Set[str]) -> None:
    """Raises if third-party code is requested only by a file."""
    for path, settings in files.items():
        for name in NAMING & settings.keys():
            each = settings[name] if name == "encoders" else {"": settings[name]}
            for key, text in each.items():
                one = {name: {key: text} if key else text}
                if own_parts(one).keys() & asked - typed:
                    option = f"--{name}.{key}" if key else f"--{name}"
                    check_trusted(one, path, f"add --trust, or {shlex.join([option, text])}")
