"""The command `evenly`. Torch and the rest load when a command needs them, so help is instant."""

import atexit
import gc
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from evenly.cli.commands import command, introduced
from evenly.errors import UserError
from evenly.files import FULL
from evenly.hidden import hidden
from evenly.stop import Stopped, stoppable

CONTINUED = {
    "compare": " Run the same command again to continue.",
    "tune": " Run the same command again to continue.",
    "study": " Run the same command again to continue.",
    "prepare": " Run the same command again to continue.",
    "train": " Run the same command again with --resume to continue.",
}


SELDOM = (100_000, 50, 100)
"""Thresholds of the garbage collector. A command needs what it imports until it ends; with the
usual thresholds, a third of import time goes into scanning it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    name = given[0] if given else ""
    if arguments is None:  # in a process of its own
        sys.excepthook = _print_traceback
        gc.set_threshold(*SELDOM)
        atexit.register(gc.freeze)
    try:
        with stoppable():
            if said := introduced(given):
                print(said)
                return 0
            one = command(name)
            from evenly.cli.options import parsed  # loads too slowly for help

            one.run(parsed(given))
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)  # a library's
        print(f"\nevenly: {stopped}.{CONTINUED.get(name, '')}", file=sys.stderr)
        return stopped.status
    except BrokenPipeError:
        if not _has_no_reader():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("evenly"):
            raise
        needs = f"this needs {error.name}. Install it with pip install '.[lab]' in evenly's clone."
        print(f"evenly: {needs}", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"evenly: {hidden(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        said = hidden(_sentence(error, CONTINUED.get(name, "")))
        print(f"evenly: {said}", file=sys.stderr)
        return 1
    return 0


def _print_traceback(kind: Any, error: BaseException, frames: Any) -> None:
    """Prints it like Python, but without passwords, since people share tracebacks."""
    print(hidden("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _has_no_reader() -> bool:
    """Whether the reader of our output, such as head, has stopped reading."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    # If nothing is left to flush, ask the pipe itself.
    watched = select.poll()
    watched.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in watched.poll(0))


def _sentence(error: OSError, continued: str) -> str:
    """What is wrong with a file, in the words of the system or a library."""
    if error.errno is None:
        return str(error)
    path = error.filename2 or error.filename  # the second is the target of a move
    place = f" ({path})" if path else ""
    if error.errno in FULL:
        return f"{error.strerror}{place}. Free some space.{continued}"
    if not path:  # of no file: memory, connections, open files
        return f"{error.strerror}."
    return f"{error.strerror}{place}. Check the path and your permissions there."
