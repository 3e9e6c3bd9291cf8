"""Programs in processes forked from one that has torch, Lightning and evenly imported.

On its own, a program spends several seconds on that. Annotations are not checked in it.
"""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from weakref import finalize

from evenly import child
from evenly.stop import SIGNALS


class Forked:
    """A process that calls a function, with as much of `subprocess.Popen` as tests need."""

    def __init__(self, function, *arguments, cwd=None, env=None):
        folder = tempfile.mkdtemp()
        finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._said = [Path(folder, name) for name in ("out", "err")]
        for path in self._said:
            path.touch()
        self._process = context().Process(
            target=_enter,
            args=(self._said, cwd, env or dict(os.environ), function),
            kwargs={"arguments": arguments},
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=120):
        self._process.join(timeout)
        assert self.returncode is not None, "it goes on"
        return self.returncode

    def communicate(self, timeout=120):
        self.wait(timeout)
        return tuple(path.read_text() for path in self._said)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()


def context():
    """How processes are started that a test needs; also those of a comparison are forked so."""
    return child.context()


def run(function, *arguments, **options):
    """Waits for the function's process and returns what it gave."""
    process = Forked(function, *arguments, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def evenly(*arguments):
    """The command, as its console script calls it."""
    from evenly.cli import main

    sys.argv[1:] = map(str, arguments)
    sys.exit(main())


def script(path, *arguments):
    """What `python PATH ARGUMENTS` does."""
    sys.argv = [str(path), *map(str, arguments)]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(str(path), run_name="__main__")


def code(text):
    """What `python -c TEXT` does."""
    exec(text, {"__name__": "__main__"})


def _enter(said, cwd, env, function, arguments):
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # What this one starts is forked from the same process; multiprocessing would start another.
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None
    os.environ.clear()
    os.environ.update(env)
    if cwd is not None:
        os.chdir(cwd)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    try:
        function(*arguments)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
