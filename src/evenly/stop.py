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
"""Seconds after which a lost signal is sent again."""


class Stopped(KeyboardInterrupt):
    """The command has to stop; whatever Ctrl-C ends, this ends.

    Attributes:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def status(self) -> int:
        """The command's exit status, as shells count it."""
        return 128 + self.number

    def __str__(self) -> str:
        by = "" if self.number == signal.SIGINT else f" by {signal.Signals(self.number).name}"
        return f"stopped{by}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises `Stopped` within the block when a stop signal arrives.

    Ctrl-C works even if the command was started with SIGINT ignored, as scripts do with `&`. If
    SIGHUP is ignored, it stays ignored: that is what nohup is for.
    """
    if current_thread() is not main_thread():  # none come here
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard: SimpleQueue[int] = SimpleQueue()  # a handler may write to it at any moment
    first = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        _leave_lost_terminal()
        # Schedulers and terminals send several: later ones must not interrupt what the first began.
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
    """Delays signals until the block, which must not be interrupted, ends."""
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
    """Sends a signal again until the command ends, since what it raises may get lost.

    That happens while Python deletes an object, or in code that catches everything.
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
    """Delivers a signal to the main thread; on Windows, `os.kill` would end the process at once."""
    main = main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def _behind(error: BaseException | None) -> Stopped | None:
    """The signal behind an error: C++ code and clean-up raise their own errors."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


def _leave_lost_terminal() -> None:
    """Keeps final messages from failing if their terminal is closed."""
    if not hasattr(select, "poll"):  # Windows
        return
    for stream in (1, 2):
        look = select.poll()
        look.register(stream, select.POLLHUP)
        if any(event & select.POLLHUP for _, event in look.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
