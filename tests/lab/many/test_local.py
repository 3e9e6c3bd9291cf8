import os
import sys
import time
from collections import Counter
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from evenly.lab.many import local as module
from evenly.lab.many.job import Ended, Epoch, Job, done
from evenly.lab.many.local import Local, _work, default_jobs
from evenly.lab.run.place import Rank
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell, Training


def test_as_many_as_this_process_has_cores_for(monkeypatch):
    """In a container the machine has more."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 4, 5, 9}, raising=False)
    assert default_jobs(Training()) == 5
    assert default_jobs(Training(threads=2)) == 2
    assert default_jobs(Training(threads=2, devices=2)) == 1
    assert default_jobs(Training(threads=8)) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert default_jobs(Training(threads=2)) == 32


def test_one_or_several_on_each_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert default_jobs(Training()) == 4
    assert default_jobs(Training(), runs_per_device=3) == 12
    assert default_jobs(Training(devices=2), runs_per_device=3) == 6
    assert default_jobs(Training(devices=8)) == 1


@pytest.mark.parametrize(
    ("seen", "taken", "devices", "given"),
    [
        (None, {}, 1, ["0"]),
        (None, {"0": 1}, 2, ["1", "2"]),
        ("5,7,GPU-1f", {"5": 1, "7": 2}, 2, ["GPU-1f", "5"]),
    ],
)
def test_a_run_has_the_gpus_with_fewest_runs(seen, taken, devices, given, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setattr(module, "_TAKEN", Counter(taken))
    assert module._devices(Training(devices=devices)) == given
    assert dict(module._TAKEN) == Counter(taken) + Counter(given)


def test_a_run_that_is_stopped_writes_no_more(tmp_path):
    data = "synthetic(train=30,val=9,test=9,classes=3)"
    training = Training(data=data, epochs=100_000, checkpoint_every=0.0)
    job = Job(Cell(training, "joint", 0), tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.csv"
    pool = Local(1)
    assert pool.room == 1
    pool.start(job)
    assert pool.room == 0
    news = []
    while not metrics.exists():
        news += pool.news(1.0)
    assert all(isinstance(each, Epoch) and each.job == job for each in news)
    pool.stop(job)
    assert pool.room == 1
    written = metrics.stat().st_mtime_ns
    time.sleep(0.3)
    assert metrics.stat().st_mtime_ns == written
    assert pool.news(0.1) == []


def test_a_run_whose_paths_go_from_another_folder(tmp_path):
    """That of the command, as a worker of a cluster has its own."""
    training = Training(data="synthetic(train=24,val=12,test=12)", epochs=1, precision="32")
    job = Job(Cell(training, "joint", 0), Path("out", "run"))
    pool = Local(1)
    pool.start(job, tmp_path)
    while not (found := [news for news in pool.news(1.0) if isinstance(news, Ended)]):
        pass
    assert found == [Ended(job)]
    assert Result.read(tmp_path / "out" / "run") is not None


def test_what_a_run_writes_down_shows_no_password(tmp_path, monkeypatch):
    """Loggers keep the command that their process is told, and errors what a server was asked."""
    seen = []
    receiving, sending = Pipe(duplex=False)

    def run_cell(*_, **__):
        seen.extend(sys.argv)
        raise ConnectionError("no answer of https://me:s3cret@host/api")

    given = ["evenly", "tune", "--storage", "mysql://me:s3/cret@host/db"]
    monkeypatch.setattr("sys.argv", given)
    monkeypatch.setattr("evenly.lab.run.run.run_cell", run_cell)
    monkeypatch.setattr("evenly.child.serve", lambda: None)
    _work(Job(Cell(Training(), "joint", 0), tmp_path), Path(), None, [], sending)
    assert seen == ["evenly", "tune", "--storage", "mysql://me:***@host/db"]
    assert receiving.recv() == "ConnectionError: no answer of https://me:***@host/api"
    assert "s3cret" not in (tmp_path / "error.txt").read_text()


@pytest.mark.parametrize("world", [1, 2])
def test_a_new_try_forgets_why_earlier_ones_failed(tmp_path, monkeypatch, world):
    """On however many devices they were; of the other processes' reasons it leaves what is new."""
    monkeypatch.setattr("evenly.lab.run.run.run_cell", lambda *_, **__: None)
    for name in ("error.txt", "error-0.txt", "error-1.txt", "error-2.txt"):
        (tmp_path / name).touch()
    rank = Rank(0, world, 0) if world > 1 else None
    assert done(Job(Cell(Training(), "joint", 0), tmp_path), print, rank) == ""
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"error-1.txt"} if world > 1 else set())
