"""The commands there are, by name: each is the module of that name beside this one."""

from importlib.metadata import version
from typing import Protocol

from jsonargparse import Namespace

from evenly.cli import (
    checkup,
    compare,
    datasets,
    diagnose,
    export,
    methods,
    predict,
    prepare,
    report,
    study,
    train,
    tune,
)
from evenly.cli.parser import Parser

DESCRIPTION = """Balanced multimodal learning: train, diagnose and compare models that learn from
several modalities.

  evenly compare                       three methods on built-in data, two minutes
  evenly compare --data my.npz --methods joint,relearn,ogm_ge --seeds 5
  evenly compare --methods 'joint,relearn,relearn(gap=shared)'
  evenly compare --methods all --seeds 5
  evenly prepare clips.csv --out clips   files and labels to a store; then compare --data clips
  evenly study figure4 --data my.npz   an experiment of the paper, on any data
  evenly checkup runs/my/runs/joint-0    what is the matter with each modality, what to try
  evenly diagnose features.npz         how well each encoder is learnt, no training
  evenly COMMAND --help                what a command takes
"""


class Command(Protocol):
    """What a module of a command has."""

    HELP: str
    """What it does, in a few words."""

    def arguments(self) -> Parser:
        """What it takes."""

    def run(self, options: Namespace) -> None:
        """Does it, and prints what came of it."""


COMMANDS: dict[str, Command] = {
    "compare": compare,
    "checkup": checkup,
    "tune": tune,
    "study": study,
    "train": train,
    "prepare": prepare,
    "predict": predict,
    "export": export,
    "diagnose": diagnose,
    "report": report,
    "methods": methods,
    "datasets": datasets,
}


def parser() -> Parser:
    """The command line."""
    top = Parser(DESCRIPTION)
    top.add_argument("--version", action="version", version=f"evenly {version('evenly')}")
    subcommands = top.add_subcommands(required=True, dest="command")
    for name, command in COMMANDS.items():
        one = command.arguments()
        subcommands.add_subcommand(name, one, help=command.HELP)
        one.prog = f"evenly {name}"  # as it is typed
        top.commands[name] = one
    return top
