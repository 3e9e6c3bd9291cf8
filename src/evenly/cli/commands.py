"""The commands by name: each is the module of that name beside this one."""

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from evenly.errors import UserError
from evenly.suggest import unknown

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from evenly.cli.parser import Parser

ABOUT = """Balanced multimodal learning: find out how well a model learns each of its modalities,
and improve those it neglects."""

EXAMPLES = """Three ways to begin:

  evenly compare                    compare three methods on built-in data, in a few minutes
  evenly checkup --data my.npz      see what each modality of your data is worth
  evenly prepare clips.csv --out store && evenly compare --data store
                                    train on files and labels"""

COMMANDS = {
    "compare": "compare methods over several seeds, and write a report",
    "checkup": "find out what is wrong with each modality, and what to try",
    "tune": "search for the best settings of each method, on equal budgets",
    "study": "repeat an experiment of the paper of D&R, with table and figure",
    "train": "train one model, with checkpoints",
    "prepare": "decode raw files once, into a store that training reads fast",
    "predict": "write the predictions of a trained run as CSV",
    "export": "save a trained run as a program that needs only torch",
    "diagnose": "measure how well the encoders of any model have learnt",
    "report": "rebuild the tables and the report of a comparison",
    "methods": "list the methods, or show one",
    "datasets": "list the data sets, or show one",
    "completion": "print a script that completes commands in the shell",
}
"""What each command does, by name."""


@runtime_checkable
class Command(Protocol):
    """What a command's module provides."""

    def arguments(self) -> "Parser":
        """The command's arguments."""

    def run(self, options: "Namespace") -> None:
        """Does the work, and prints the result."""


def command(name: str) -> Command:
    """The module of a command, loaded when needed.

    Raises:
        ValueError: If there is none of that name.
    """
    if name.startswith("-"):
        raise UserError(f"{name} needs a command before it: evenly COMMAND {name}.")
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return cast(Command, import_module(f"evenly.cli.{name}"))


def parser(name: str) -> "Parser":
    """The parser of a command's arguments."""
    one = command(name).arguments()
    one.prog = f"evenly {name}"  # as typed
    return one


def introduced(given: Sequence[str]) -> str:
    """The text shown without a command; empty if there is one."""
    if not given:
        return f"{ABOUT}\n\n{EXAMPLES}\n\n'evenly --help' lists all commands."
    if given[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:{width}}  {does}" for name, does in COMMANDS.items())
        more = "'evenly COMMAND --help' lists the options of a command."
        usage = "usage: evenly COMMAND [options]"
        return "\n\n".join([usage, ABOUT, EXAMPLES, f"Commands:\n\n{listed}", more])
    return f"evenly {version('evenly')}" if given[0] == "--version" else ""
