"""How a command is stopped from outside: Ctrl-C, a scheduler's SIGTERM, a terminal that closes."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Thread, current_thread, main_thread
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SIGNALS = {getattr(signal, name) for name in NAMES if hasattr(signal, name)}  # Windows has two
PAUSE = 1.0
"""Seconds after which a signal that went under comes again."""


class Stopped(KeyboardInterrupt):
    """The command is to stop; whatever ends at Ctrl-C ends at this.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def status(self) -> int:
        """What the command ends with, as shells count."""
        return 128 + self.number

    def __str__(self) -> str:
        by = "" if self.number == signal.SIGINT else f" by {signal.Signals(self.number).name}"
        return f"stopped{by}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises `Stopped` within the block when a signal says so.

    Ctrl-C counts even where the command was started with SIGINT ignored, as scripts do with `&`.
    Where SIGHUP is ignored it stays so: that is what nohup is for.
    """
    if current_thread() is not main_thread():  # none come here
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard: SimpleQueue[int] = SimpleQueue()  # which a handler may write to at any moment
    first = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        _leave_lost_terminal()
        # Schedulers and terminals send several: they must not cut short what the first one began.
        if number != signal.SIGINT and _behind(sys.exception()):
            return
        first = first or number
        heard.put(first)
        raise Stopped(first)

    for number, handler in before.items():
        if number == signal.SIGINT or handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    insisting = Thread(target=_insist, args=(heard,), daemon=True)
    insisting.start()
    unheard = sys.unraisablehook
    sys.unraisablehook = lambda what: None if isinstance(what.exc_value, Stopped) else unheard(what)
    try:
        yield
    except BaseException as error:
        if (found := _behind(error)) is None:
            raise
        raise found from None
    finally:
        heard.put(END)
        insisting.join()
        sys.unraisablehook = unheard
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def unstopped() -> Iterator[None]:
    """Has signals wait until the block ends, which must not be cut short."""
    if current_thread() is not main_thread():  # none come here
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for number in came[:1]:
            signal.raise_signal(number)


END = 0


def _insist(heard: "SimpleQueue[int]") -> None:
    """Sends a signal again until the command is at its end: what it raises may go under.

    It does where it meets Python clearing an object away, or code that catches whatever comes.
    """
    pause = None
    while True:
        try:
            if heard.get(timeout=pause) == END:
                return
            pause = PAUSE
        except Empty:
            _send(signal.SIGTERM)


def _send(number: int) -> None:
    """Has the main thread hear a signal; on Windows, `os.kill` would end the process at once."""
    main = main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def _behind(error: BaseException | None) -> Stopped | None:
    """The signal that an error comes of: code in C++ and clean-up raise their own."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


def _leave_lost_terminal() -> None:
    """Keeps last words from failing where the terminal that they went to is closed."""
    if not hasattr(select, "poll"):  # Windows
        return
    for stream in (1, 2):
        look = select.poll()
        look.register(stream, select.POLLHUP)
        if any(event & select.POLLHUP for _, event in look.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
