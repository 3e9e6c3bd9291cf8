"""The parser of one command: its help, the types of its options, and its errors."""

import re
import shutil
import sys
import textwrap
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from evenly.hidden import hidden, hidden_argument
from evenly.spec import wanted
from evenly.suggest import nearest

GENERAL = ("config", "print_config", "trust", "help")
"""Options shown last in a help text."""
METAVARS = {int: "N", float: "X", bool: "true|false", dict: "MAPPING"}
"""Placeholder for an option's value in a help text, by type."""
PLACES = {
    "out": "PATH",
    "figure": "PATH",
    "projection_figure": "PATH",
    "config": "PATH",
    "folder": "DIR",
    "select": "METRIC",
    "cluster": "ADDRESS",
    "storage": "ADDRESS",
}
"""The same by name, if the type does not tell."""
FEW = 8
"""Most choices listed beside an option; longer lists go into its text."""


class Parser(ArgumentParser):
    """The parser of one command.

    Attributes:
        hints: The type of each option, by its name.
        sections: Names of the options under each heading of the help text; the others are the
            command's own.
        unlisted: Names of options left out of the help text, since nobody types them.
    """

    def __init__(self, description: str = "", **settings: Any) -> None:
        self.hints: dict[str, Any] = {}
        self.sections: Mapping[str, Sequence[str]] = {}
        self.unlisted: set[str] = set()
        super().__init__(description=description, allow_abbrev=False, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """Like argparse's."""
        added = super().add_argument(*names, **settings)
        usual: Any = str | None if settings.get("nargs") == "?" else str
        flag = settings.get("action") == "store_true"
        self.hints[added.dest] = bool if flag else settings.get("type", usual)
        return added

    def listed(self) -> dict[str, list[Action]]:
        """The arguments in the help text, by heading."""
        found: dict[str, list[Action]] = {"arguments": [], "options": []}
        found |= {heading: [] for heading in (*self.sections, "general")}
        places = {name: heading for heading, names in self.sections.items() for name in names}
        places |= dict.fromkeys(GENERAL, "general")
        for action in self._actions:
            usual = "options" if action.option_strings else "arguments"
            if action.help != SUPPRESS and action.dest not in self.unlisted:
                found[places.get(action.dest, usual)].append(action)
        return {heading: actions for heading, actions in found.items() if actions}

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The text that --help prints."""
        width = max(60, min(100, shutil.get_terminal_size().columns))
        found = self.listed()
        places = [_place(action) for action in found.get("arguments", [])]
        usage = " ".join(["usage:", self.prog, *places, "[options]"])
        parts = [usage, self.description or ""]
        for heading, actions in found.items():
            lines = [_entry(action, self.hints.get(action.dest), width) for action in actions]
            parts.append("\n".join([f"{heading}:", *lines]))
        return "\n\n".join(parts) + "\n"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong, and ends the command."""
        key = re.search(r'Parser key "([^"]+)"', message)
        value = re.search(r"(?:Given value|Got value): (.*)", message)
        extra = re.search(r"unrecognized arguments: (\S+)", message)
        if key and value:
            name, dot, modality = key[1].partition(".")
            takes, found = wanted(self.hints[name]), hidden_argument(value[1])
            said = f"{dashed(name)}{dot}{modality} takes {takes}, found {found!r}."
        elif extra:
            said = self._unknown(extra[1].partition("=")[0])
        else:
            said = f"{hidden(message.strip()).rstrip('.')}. See '{self.prog} --help'."
        print(f"evenly: {said}", file=sys.stderr)
        sys.exit(2)

    def _unknown(self, given: str) -> str:
        """The error for an argument that the command does not have."""
        if not given.startswith("-"):
            return f"unexpected argument {hidden_argument(given)!r}. See '{self.prog} --help'."
        given = given.partition(".")[0].replace("_", "-")
        listed = (action for actions in self.listed().values() for action in actions)
        names = [dashed(action.dest) for action in listed if action.option_strings]
        return f"unknown option {given}. {nearest(given, names, 0.75)}See '{self.prog} --help'."


def dashed(name: str) -> str:
    """A setting's option as shown: `batch_size` is `--batch-size`."""
    return f"--{name.replace('_', '-')}"


def choices(action: Action, hint: Any) -> list[str]:
    """The allowed values of an argument; empty if any will do."""
    literals = [option for option in _members(hint) if get_origin(option) is Literal]
    found = [value for literal in literals for value in get_args(literal)] or action.choices or ()
    return [str(value) for value in found]


def helped(action: Action, hint: Any) -> str:
    """An argument's help, with its choices if there are many, and its default."""
    known = choices(action, hint)
    said = " ".join((action.help or "").split()).rstrip(".")
    if re.split(r"\W", said)[0] not in known:  # a value stays as typed
        said = said[:1].upper() + said[1:]
    if len(known) > FEW:
        said += f". One of {', '.join(known)}"
    plain = action.default is False or action.default in (None, "", {}, SUPPRESS)
    if not plain and "default" not in said.lower():
        said += f" (default: {action.default})"
    return f"{said}."


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the single type."""
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


def _place(action: Action) -> str:
    """A positional argument, in square brackets if optional."""
    name = action.dest.upper()
    return {"?": f"[{name}]", "*": f"[{name} ...]"}.get(str(action.nargs), name)


def _entry(action: Action, hint: Any, width: int) -> str:
    """The lines of one argument."""
    head = _place(action)
    if action.option_strings:
        names = [name for name in action.option_strings if not name.startswith("--")]
        head = ", ".join([*names, dashed(action.dest)])
        if action.nargs != 0 and action.dest != "print_config":
            head += f" {_metavar(action, hint)}"
    text = textwrap.wrap(helped(action, hint), width - 26, break_on_hyphens=False)
    if len(head) > 22:
        return "\n".join([f"  {head}", *(f"{'':26}{line}" for line in text)])
    return "\n".join([f"  {head:22}  {text[0]}", *(f"{'':26}{line}" for line in text[1:])])


def _metavar(action: Action, hint: Any) -> str:
    known = choices(action, hint)
    if 0 < len(known) <= FEW:
        return f"{{{','.join(known)}}}"
    kinds = (get_origin(option) or option for option in _members(hint))
    usual = PLACES.get(action.dest, action.dest.upper())
    return next((METAVARS[kind] for kind in kinds if kind in METAVARS), usual)


def add_trust(one: ArgumentParser, place: str) -> None:
    """Adds the option that lets code named in files run."""
    one.add_argument(
        "--trust",
        action="store_true",
        help=f"import what {place} names by import path, such as encoders. Importing runs code, so "
        "trust only your own files and those you have read",
    )
