"""What the converters share: their command line and the reading of their source."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / "shared" / "data"


def parser(description: str, folder: str) -> argparse.ArgumentParser:
    """`[SOURCE] OUT`, with the folder beside the repository as the default source."""
    command = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument(
        "source",
        nargs="?",
        type=Path,
        default=DATA / folder,
        help=f"folder of the data (default: ../shared/data/{folder} beside the repository)",
    )
    command.add_argument("out", type=Path, help="the .npz file to write")
    return command


def read(
    command: argparse.ArgumentParser, argv: Sequence[str] | None, file: str
) -> tuple[argparse.Namespace, dict[str, np.ndarray]]:
    """The arguments, and the arrays of the source's file."""
    arguments = command.parse_args(argv)
    path = arguments.source / file
    if not path.is_file():
        command.error(f"{path} is not there. Give the folder that holds {file}.")
    if not arguments.out.parent.is_dir():
        command.error(f"{arguments.out.parent} is no folder. Make it first.")
    if arguments.out.is_dir():
        command.error(f"{arguments.out} is a folder. Give the name of a .npz file.")
    with np.load(path, allow_pickle=False) as arrays:
        return arguments, {name: arrays[name] for name in arrays.files}
