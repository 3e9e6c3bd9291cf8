"""Readers of vectors for processes that are killed; apart, as each process imports them."""

import os
import signal
import time
from multiprocessing.connection import Connection

import numpy as np


class Slow:
    """Takes its time over a vector, and notes that it read it."""

    kind, units, rate, ragged = "vector", "", None, False

    def __init__(self, log):
        self.log = log

    def __call__(self, cell):
        with open(self.log, "a") as file:
            file.write(f"{cell[0]} {os.getpid()}\n")
        time.sleep(0.3)
        return np.asarray(cell, np.float32)


class Killed:
    """Reads vectors; the process that reads the one of 7 is killed, as for want of memory."""

    kind, units, rate, ragged = "vector", "", None, False

    def __init__(self, moment):
        self.moment = moment

    def __call__(self, cell):
        if cell[0] == 7 and self.moment == "reading":
            os.kill(os.getpid(), signal.SIGKILL)
        if cell[0] == 7 and self.moment == "sending":
            Connection._send = half_sent
        return np.full(100_000, cell[0], np.float32)


def half_sent(connection, message):
    os.write(connection.fileno(), message[: len(message) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
