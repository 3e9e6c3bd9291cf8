"""Runs on a real Dask cluster of processes of this machine, some of which are killed or frozen."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import forked
from evenly.lab.many import cluster
from evenly.lab.many.cluster import Cluster, Order, carried
from evenly.lab.many.compare import compare
from evenly.lab.many.engine import Listed, carry
from evenly.lab.many.job import Job, refusal
from evenly.lab.many.local import Local
from evenly.lab.run.settings import Cell, Training
from evenly.lab.statistics.tables import table

pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.xdist_group("cluster")]
DATA = "synthetic(train=90,val=60,test=30,classes=3,information=4)"
TRAINING = Training(
    data=DATA,
    epochs=3,
    width=8,
    lr=0.05,
    batch_size=30,
    precision="32",
    encoders={"m1": "slowly.Slow"},
    checkpoint_every=0.0,
)
METHODS = "joint,relearn(every=1)"


class Dask:
    """A scheduler and workers, each a process of its own; all are ended with the block."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.started = []

    def head(self):
        options = ["--host", "127.0.0.1", "--port", self.port, "--no-dashboard"]
        return self._start("scheduler", *options)

    def worker(self, *options):
        options = [self.address, "--nthreads", 1, "--no-dashboard", *options]
        return self._start("worker", *options, "--local-directory", self.folder)

    def _start(self, *command):
        config = {
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s",
            "DASK_DISTRIBUTED__WORKER__HEARTBEAT": "500ms",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        with (self.folder / f"{len(self.started)}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, command)],
                env=os.environ | config,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self.started.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def dask(tmp_path):
    folder = tmp_path / "dask"
    folder.mkdir()
    with Dask(folder) as cluster:
        yield cluster


def until(found, seconds=120):
    started = time.monotonic()
    while not (value := found()):
        assert time.monotonic() - started < seconds
        time.sleep(0.02)
    return value


def begin(dask, out, *options):
    """The command, in the background."""
    line = ["compare", "--data", DATA, "--epochs", 3, "--width", 8, "--lr", 0.05]
    line += ["--batch_size", 30, "--precision", 32, "--encoders.m1", "slowly.Slow"]
    line += ["--checkpoint_every", 0, "--methods", METHODS, "--seeds", 2, "--out", out]
    return forked.Forked(forked.evenly, *line, "--cluster", dask.address, *options)


def figures(out):
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["metric"] not in ("seconds", "peak_memory_mb")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    compare(METHODS, 2, TRAINING, out, lambda _: Local(2))
    return out


def ended(process, out, alone):
    """Each run ended once, and with the figures that it has without a cluster."""
    text, err = process.communicate(200)
    assert process.returncode == 0, err
    told = [line.partition(":")[0] for line in err.splitlines() if ": best epoch" in line]
    assert sorted(told) == sorted(f"{m}-{s}" for m in ("joint", "relearn_every=1") for s in (0, 1))
    assert figures(out) == figures(alone)
    assert text.startswith(table(alone))
    return err


def test_a_killed_worker_and_a_frozen_one(dask, alone, tmp_path):
    dask.head()
    killed, frozen, _ = dask.worker(), dask.worker("--no-nanny"), dask.worker()
    out = tmp_path / "out"
    process = begin(dask, out)
    until(lambda: len(list(out.glob("runs/*/last.ckpt"))) > 1)
    killed.kill()
    os.kill(frozen.pid, signal.SIGSTOP)
    ended(process, out, alone)
    os.kill(frozen.pid, signal.SIGCONT)
    time.sleep(1)
    assert figures(out) == figures(alone)


def test_the_head_is_lost_and_comes_back(dask, alone, tmp_path):
    head = dask.head()
    dask.worker()
    out = tmp_path / "out"
    process = begin(dask, out)
    until(lambda: list(out.glob("runs/*/last.ckpt")))
    head.kill()
    head.wait()
    time.sleep(1)
    dask.head()
    dask.worker()  # as a batch system would, where workers end with their head
    said = ended(process, out, alone)
    assert f"note: lost the scheduler at {dask.address}; waiting 10 minutes for" in said
    assert "Traceback" not in said


def test_a_stopped_command_leaves_nothing_running(dask, tmp_path, capsys):
    dask.head()
    folder = tmp_path / "run"
    training = Training(data=DATA, epochs=100_000, width=8, checkpoint_every=0.0, precision="32")
    pool = Cluster(dask.address)
    assert pool.room == 0
    dask.worker()
    until(lambda: pool.room == 1)
    said = capsys.readouterr().err
    assert (
        said.count(f"note: the cluster has no workers. Start one with 'dask worker {dask.address}'")
        == 1
    )
    job = Job(Cell(training, "joint", 0), folder)
    pool.start(job)
    assert pool.room == 0
    heard = until(lambda: pool.news(1.0))
    assert heard[0].job is job
    pool.close()
    until(lambda: time.time() - (folder / "metrics.csv").stat().st_mtime > 3)


def test_a_full_disk_ends_the_command(dask, tmp_path):
    dask.head()
    dask.worker()
    out = tmp_path / "out"
    wide = replace(TRAINING, width=64, encoders={})
    source = Listed([Job(Cell(wide, "joint", 0), out)])

    class Full(Cluster):
        """Whose worker may write small files alone."""

        def start(self, job):
            self._client.run(_limit)
            super().start(job)

    with pytest.raises(OSError, match=r"too large: '.*\.ckpt'"):
        carry(source, Full(dask.address))


def _limit():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def test_a_cluster_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 1.0)
    with pytest.raises(RuntimeError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 "):
        Cluster("tcp://127.0.0.1:1")


def test_a_worker_with_other_packages_refuses(monkeypatch):
    worker = SimpleNamespace(get_current_task=lambda: "")
    monkeypatch.setattr("distributed.get_worker", lambda: worker)
    order = Order(Job(Cell(TRAINING, "joint", 0), Path("run")), Path(), "", {"nowhere": "1.0"})
    failure, host = carried(order)
    said = f"{host} has {{'nowhere': 'no version'}}, not {{'nowhere': '1.0'}}. Install the same"
    assert refusal(failure).startswith(said)
