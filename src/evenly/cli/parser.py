"""The parser of one command: its options have types, and what is wrong is said in a sentence."""

import re
import sys
from argparse import RawDescriptionHelpFormatter
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from evenly.hidden import hidden, hidden_argument
from evenly.spec import wanted


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the line breaks of a description."""


class Parser(ArgumentParser):
    """One command: it knows the type of each option, and says in a sentence what is wrong.

    Attributes:
        hints: The type of each option, by its name.
        commands: By name, the parsers of the commands, if this is the one of all.
    """

    def __init__(self, description: str = "", **settings: Any) -> None:
        self.hints: dict[str, Any] = {}
        self.commands: dict[str, Parser] = {}
        super().__init__(
            prog="evenly",
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
            **settings,
        )

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """As argparse has it."""
        added = super().add_argument(*names, **settings)
        usual: Any = str | None if settings.get("nargs") == "?" else str
        flag = settings.get("action") == "store_true"
        self.hints[added.dest] = bool if flag else settings.get("type", usual)
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong, and ends the command."""
        one = getattr(ex, "subcommand_parser", None) or self
        key = re.search(r'Parser key "([^"]+)"', message)
        value = re.search(r"(?:Given value|Got value): (.*)", message)
        if key and value:
            takes = wanted(one.hints[key[1].partition(".")[0]])
            said = f"--{key[1]} takes {takes}, found {hidden_argument(value[1])!r}."
        else:
            names = "|".join(self.commands) or "(?!)"  # a command has none of its own
            said = re.sub(rf"\b({names})\.(?=\w)", "", hidden(message.strip()))
            said = f"{said.rstrip('.')}. 'evenly COMMAND --help' tells what it takes."
        print(f"evenly: {said}", file=sys.stderr)
        sys.exit(2)


def add_trust(one: ArgumentParser, place: str) -> None:
    """Whether code that is named in files may run."""
    one.add_argument(
        "--trust",
        action="store_true",
        help=f"import what {place} names by import path, such as encoders, which runs its code; "
        "say so only of what is your own, or what you have looked at",
    )
