"""A name for this process among all that share a search, and whether such a process is alive."""

import os
import socket
from functools import cache
from pathlib import Path
from uuid import uuid4


@cache
def this_worker() -> str:
    """A unique name for this process on any machine: HOST:NUMBER and what makes it unique."""
    number = os.getpid()
    return f"{socket.gethostname()[:64]}:{number} {_started(number)} {_place()}"


def has_died(worker: str) -> bool:
    """Whether a worker is a process of this machine that has ended; False if unknown."""
    name, _, life = worker.partition(" ")
    started, _, place = life.partition(" ")
    number = name.rpartition(":")[2]
    return place == _place() and number.isdecimal() and _started(int(number)) != started


@cache
def _place() -> str:
    """What processes that see each other share: a boot of a machine or container, and a user."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except OSError:  # not Linux: no way to look
        return uuid4().hex


def _started(number: int) -> str:
    """When a process started, in ticks since boot; empty if there is none, or it has ended."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
