"""The command `evenly`. Torch and all else load when a command needs them, so help is instant."""

import atexit
import gc
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

try:
    from evenly.cli.commands import COMMANDS
    from evenly.cli.options import parsed
    from evenly.errors import UserError
    from evenly.files import FULL
    from evenly.hidden import hidden
    from evenly.stop import Stopped, stoppable
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.startswith("evenly"):
        raise
    sys.exit(f"evenly: the command needs {missing.name}: pip install 'evenly[lab]'")

CONTINUED = {
    "compare": " The same command continues where this one was.",
    "tune": " The same command continues where this one was.",
    "study": " The same command continues where this one was.",
    "prepare": " The same command continues where this one was.",
    "train": " The same command with --resume continues where this one was.",
}


SELDOM = (100_000, 50, 100)
"""How often Python looks for objects that nothing needs: what a command imports is needed to its
end, and to go through it takes a third of the time of imports, and again at the end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    command = ""
    if arguments is None:  # in a process of its own
        sys.excepthook = _print_traceback
        gc.set_threshold(*SELDOM)
        atexit.register(gc.freeze)
    try:
        with stoppable():
            options = parsed(sys.argv[1:] if arguments is None else arguments)
            command = options.command
            COMMANDS[command].run(options[command])
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)  # a library's
        print(f"\nevenly: {stopped}.{CONTINUED.get(command, '')}", file=sys.stderr)
        return stopped.status
    except BrokenPipeError:
        if not _has_no_reader():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("evenly"):
            raise
        print(f"evenly: this needs {error.name}: pip install 'evenly[lab]'", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"evenly: {hidden(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        said = hidden(_sentence(error, CONTINUED.get(command, "")))
        print(f"evenly: {said}", file=sys.stderr)
        return 1
    return 0


def _print_traceback(kind: Any, error: BaseException, frames: Any) -> None:
    """As Python prints it, without passwords: it is what people send around."""
    print(hidden("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _has_no_reader() -> bool:
    """Whether the reader of our output, such as head, has enough of it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    # Where nothing is left to flush, the pipe itself tells.
    watched = select.poll()
    watched.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in watched.poll(0))


def _sentence(error: OSError, continued: str) -> str:
    """What is wrong with a file, in the words of the system or a library."""
    if error.errno is None:
        return str(error)
    path = error.filename2 or error.filename  # the second is where a file was to be moved to
    place = f" ({path})" if path else ""
    if error.errno in FULL:
        return f"{error.strerror}{place}. Make room for what is to be written.{continued}"
    return f"{error.strerror}{place}. Check the path, and that you may read and write there."
