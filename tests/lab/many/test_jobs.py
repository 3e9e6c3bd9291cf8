import os
import sys
import time
from multiprocessing import Pipe

import torch

from evenly.lab.many.jobs import Job, _work, default_jobs, run_jobs
from evenly.lab.run.settings import Cell, Training


def test_as_many_as_this_process_has_cores_for(monkeypatch):
    """In a container the machine has more."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 4, 5, 9}, raising=False)
    assert default_jobs(1) == 5
    assert default_jobs(2) == 2
    assert default_jobs(8) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert default_jobs(2) == 32


def test_one_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_jobs(1) == 1


class Shared:
    """One endless run, which another worker takes as soon as it trains."""

    pause, epochs, finished = 0.05, 100_000, 0

    def __init__(self, folder):
        training = Training(data="synthetic(train=30,val=9,test=9,classes=3)", epochs=self.epochs)
        self.job = Job(Cell(training, "joint", 0), folder)
        self.waiting = [self.job]
        self.stopped = False

    def take(self):
        return self.waiting.pop() if self.waiting else None

    def is_over(self):
        return not self.waiting

    def ended(self, job, error):
        raise AssertionError(error)

    def lost(self):
        return [self.job] if (self.job.folder / "last.ckpt").exists() else []

    def stop(self):
        self.stopped = True


def test_a_run_that_another_worker_takes_is_ended(tmp_path, capsys):
    source = Shared(tmp_path / "run")
    run_jobs(source, jobs=1)
    assert "run: taken by another worker" in capsys.readouterr().err
    assert source.stopped
    written = (tmp_path / "run" / "metrics.csv").stat().st_mtime_ns
    time.sleep(0.3)
    assert (tmp_path / "run" / "metrics.csv").stat().st_mtime_ns == written


def test_what_a_run_writes_down_shows_no_password(tmp_path, monkeypatch):
    """Loggers keep the command that their process is told, and errors what a server was asked."""
    seen = []
    receiving, sending = Pipe(duplex=False)

    def run_cell(*_, **__):
        seen.extend(sys.argv)
        raise ConnectionError("no answer of https://me:s3cret@host/api")

    monkeypatch.setattr(
        "sys.argv", ["evenly", "compare", "--workers", "mysql://me:s3/cret@host/db"]
    )
    monkeypatch.setattr("evenly.lab.run.loop.run_cell", run_cell)
    monkeypatch.setattr("evenly.child.serve", lambda: None)
    _work(Job(Cell(Training(), "joint", 0), tmp_path), sending)
    assert seen == ["evenly", "compare", "--workers", "mysql://me:***@host/db"]
    assert receiving.recv() == "ConnectionError: no answer of https://me:***@host/api"
    assert "s3cret" not in (tmp_path / "error.txt").read_text()
