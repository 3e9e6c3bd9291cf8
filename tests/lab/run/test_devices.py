"""A run on several processes ends as on one, and goes on where a killed one was."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.utils._pytree import tree_leaves

from evenly.data import load, save_npz
from evenly.errors import UserRuntimeError
from evenly.lab.many import together
from evenly.lab.many.engine import Listed, carry
from evenly.lab.many.job import Ended, Job
from evenly.lab.many.local import Local
from evenly.lab.run.hold import Hold
from evenly.lab.run.logs import Logs, RunLog
from evenly.lab.run.parts import Parts
from evenly.lab.run.place import Place, Rank, told_rank
from evenly.lab.run.prepare import prepare
from evenly.lab.run.record import Record
from evenly.lab.run.result import Result
from evenly.lab.run.run import run_cell
from evenly.lab.run.settings import Cell, Training
from many_ranks import on_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("devices")]  # runs are shared
DATA = "synthetic(train=96,val=62,test=61,classes=3,information=2)"
TRAINING = Training(
    data=DATA, epochs=3, diagnose_every=2, width=8, lr=0.05, batch_size=32, precision="32"
)
# That every method is the same on ranks is told in tests/contract; here, what the lab does for each
# kind: for one that does nothing, writes weights, writes gradients, reduces them, orders samples.
METHODS = ("joint", "relearn(every=1)", "ogm_ge", "mmpareto", "smv")


@pytest.mark.parametrize(
    ("method", "partial"), [("mcr", False), ("mcr(bottleneck=0)", True), ("finetune+mlb", False)]
)
def test_ddp_is_told_what_the_settings_of_a_method_leave_out(method, partial, monkeypatch):
    told = []

    def shared(self, model, *, partial):
        told.append(partial)
        return model

    monkeypatch.setattr(Place, "shared", shared)
    cell = Cell(replace(TRAINING, lr=0.1), method, 0)
    Parts.of(cell, load(DATA), Place(torch.device("cpu"), "32"))
    assert told == [partial]


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def assert_alike(one, several):
    """Up to the rounding of sums in another order."""
    ours, theirs = weights(one), weights(several)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name
    alone, together = Result.read(one), Result.read(several)
    assert (alone.best_epoch, alone.steps) == (together.best_epoch, together.steps)
    assert alone.flops == pytest.approx(together.flops, rel=0.1)  # each has some of its own
    for split, metrics in alone.metrics.items():
        for name, value in metrics.items():
            assert together.metrics[split][name] == pytest.approx(value, abs=1e-4), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By method, devices and strategy, the folder of a run."""
    out = tmp_path_factory.mktemp("devices")
    asked = [(method, 1, "auto") for method in METHODS]
    asked += [(method, 2, "ddp") for method in METHODS]
    asked += [(method, 2, "fsdp") for method in METHODS[:4]]
    asked += [("relearn(every=1)", 4, "auto")]  # which trains as joint does, too
    jobs = {}
    for number, (method, devices, strategy) in enumerate(asked):
        training = replace(TRAINING, devices=devices, strategy=strategy)
        jobs[method, devices, strategy] = Job(Cell(training, method, 0), out / str(number))
    source = Listed(list(jobs.values()))
    carry(source, Local(2))
    assert source.failures == {}
    return {key: job.folder for key, job in jobs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes(method, runs):
    assert_alike(runs[method, 1, "auto"], runs[method, 2, "ddp"])


@pytest.mark.slow
def test_classes_may_have_weights(tmp_path):
    """Processes hold unequal weights, and so shares of a step that are not those of samples."""
    stream = np.random.default_rng(0)
    target = np.tile(stream.permutation(np.repeat([0, 1, 2], [25, 10, 5])), 3)
    arrays = {name: stream.normal(size=(120, 4)).astype("f4") for name in ("m1", "m2")}
    save_npz(tmp_path / "a.npz", target, np.repeat([0, 1, 2], 40), arrays)
    training = replace(TRAINING, data=str(tmp_path / "a.npz"), class_weights="balanced")
    options = ({}, {"devices": 2}, {"devices": 2, "batch_size": 8, "accumulate": 4})
    cells = [Cell(replace(training, **each), "joint", 0) for each in options]
    jobs = [Job(cell, tmp_path / str(number)) for number, cell in enumerate(cells)]
    source = Listed(jobs)
    carry(source, Local(2))
    assert source.failures == {}
    for job in jobs[1:]:
        assert_alike(jobs[0].folder, job.folder)


@pytest.mark.parametrize("method", METHODS[:4])
def test_sharded(method, runs):
    assert_alike(runs[method, 1, "auto"], runs[method, 2, "fsdp"])


def kept(rank, world):
    """The number of sharded tensors in what a process has to write after a step."""
    cell = Cell(replace(TRAINING, devices=2, strategy="fsdp", ema=0.9), "joint", 0)
    parts = Parts.of(cell, load(DATA), Place(torch.device("cpu"), "32", rank, world, "fsdp"))
    (step, *_) = parts.steps(0)
    for _, batch in step:
        output, target = parts.forward(parts.shared, batch)
        parts.method.backward(parts.method.loss(output, target))
    parts.optimizer.step()
    found = parts.state_dict()
    assert found["optimizer"]["state"]
    return [
        sum(hasattr(x, "full_tensor") for x in tree_leaves(part))
        for part in (found["state_dict"], found["optimizer"], found["average"], parts.judged())
    ]


def test_only_the_process_that_writes_has_whole_weights(tmp_path):
    first, second = on_ranks(kept, tmp_path)
    assert first == [0, 0, 0, 0]
    assert min(second) > 0


def test_four_processes(runs):
    assert_alike(*(runs["relearn(every=1)", devices, "auto"] for devices in (1, 4)))


def test_one_of_them_writes(runs):
    folder = runs["joint", 2, "ddp"]
    assert len(list(folder.glob("*tfevents*"))) == 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["devices"] == 2
    assert {path.name for path in folder.iterdir()} >= {"predictions.npz", "features.npz"}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_lost_process_ends_the_run_which_is_taken_up(strategy, tmp_path):
    """The others would wait for it; what they had is continued, bit for bit."""
    training = replace(TRAINING, epochs=20, diagnose_every=0, checkpoint_every=0.05)
    cell = Cell(replace(training, devices=2, strategy=strategy), "relearn(every=2,times=9)", 0)
    killed, whole = (Job(cell, tmp_path / name) for name in ("killed", "whole"))
    pool = Local(1)
    pool.start(killed)
    while not (killed.folder / "last.ckpt").exists():
        assert not any(hasattr(news, "error") for news in pool.news(0.01))
    os.kill(pool._running[0].processes[1].pid, signal.SIGKILL)
    started = time.monotonic()
    while not (said := [news for news in pool.news(0.1) if hasattr(news, "error")]):
        assert time.monotonic() - started < 60
    assert said[0].error == "its process ended with code -9 (killed, perhaps out of memory)"
    source = Listed([killed, whole])
    carry(source, pool)
    assert source.failures == {}
    ours, theirs = weights(killed.folder), weights(whole.folder)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


class Failing(nn.Linear):
    """An encoder that fails on the second process alone."""

    def __init__(self):
        super().__init__(32, 4)

    def forward(self, x):
        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            raise RuntimeError("the reason")
        return super().forward(x)


@pytest.mark.slow
def test_why_a_run_ended_is_what_the_first_to_fail_says(tmp_path):
    """And not what the others say then, that it left."""
    training = replace(TRAINING, devices=2, encoders={"m1": "test_devices.Failing"})
    job = Job(Cell(training, "joint", 0), tmp_path / "run")
    pool = Local(1)
    pool.start(job)
    while not (job.folder / "error-1.txt").exists():
        time.sleep(0.1)
    time.sleep(1)  # while this process is at something else
    assert pool.news(5.0) == [Ended(job, "RuntimeError: the reason")]
    assert pool.room == 1


def fails(rank, world, said):
    """What a process tells whose run fails, where others say what is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "PATIENCE", timedelta(seconds=3))
        patch.setattr(together, "done", lambda job, tell, rank: said[rank.number])
        member = together._Member(Rank(rank, world, rank))
        try:
            return member.done(Job(Cell(TRAINING, "joint", 0), Path("run")), print)
        except UserRuntimeError as error:
            return str(error)


def test_processes_of_torchrun_go_on_after_a_failure_of_all(tmp_path):
    assert on_ranks(fails, tmp_path, ("no", "no")) == ["no", "no"]


def test_processes_of_torchrun_end_after_a_failure_of_one(tmp_path):
    """The others may wait for it within the run, for half an hour."""
    first, second = on_ranks(fails, tmp_path, ("no", ""))
    assert first.startswith("joint-0, process 0: no. Other processes did not fail")
    assert second == ""


@contextmanager
def hurried():
    """Within the block, processes wait a second for each other, as if in the middle of a run."""
    change = dist.distributed_c10d._set_pg_timeout
    change(timedelta(seconds=1))
    yield
    change(timedelta(minutes=1))


def waits(rank, world):
    """The next run comes later than processes wait for each other within a run."""
    with hurried():
        if rank > 0:
            together.follow(Rank(rank, world, rank))
            return
        pool = together.Together(Rank(rank, world, rank))
        time.sleep(3)
        pool.close()


def test_processes_of_torchrun_wait_for_the_next_run(tmp_path):
    on_ranks(waits, tmp_path)


def waits_for_features(rank, world, folder):
    with hurried(), Place(torch.device("cpu"), "32", rank, world).awaited():
        if rank == 0:
            time.sleep(3)
            (folder / "features").touch()
    return (folder / "features").exists()


def test_work_of_one_process_may_take_longer_than_the_others_wait_in_a_run(tmp_path):
    assert on_ranks(waits_for_features, tmp_path, tmp_path) == [True, True]


@pytest.mark.slow
def test_torchrun_starts_the_processes(tmp_path):
    """Comparisons, too: all processes do one run after another."""
    options = ["--data", DATA, "--epochs", 1, "--width", 8, "--batch_size", 32, "--precision", 32]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2]
    command += ["-m", "evenly.cli", "compare"]
    out = tmp_path / "out"
    command += ["--methods", "joint,ogm_ge", "--seeds", 1, "--devices", 2, "--out", out, *options]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    for name in ("joint-0", "ogm_ge-0"):
        result = Result.read(out / "runs" / name)
        assert (result.peak_memory_mb is None) == (not torch.cuda.is_available())


def test_what_the_starters_say(monkeypatch):
    training = replace(TRAINING, devices=2)
    assert told_rank(training) is None
    slurm = {
        "PROCID": "1",
        "STEP_NUM_TASKS": "2",
        "LOCALID": "1",
        "JOB_ID": "7",
        "JOB_NODELIST": "n[03-4]",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert told_rank(training) == Rank(1, 2, 1, "tcp://n03:20007")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[04]")
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert told_rank(training) == Rank(1, 2, 1, "tcp://n04:27926")
    assert told_rank(TRAINING) is None  # a run is one process, whatever a cluster says
    with pytest.raises(ValueError, match="2 processes were started, but --devices 4 --nodes 1"):
        told_rank(replace(training, devices=4))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert told_rank(training) == Rank(0, 2, 0)
    with pytest.raises(ValueError, match="2 processes were started, but --devices 1 --nodes 1"):
        told_rank(TRAINING)  # each would begin the same run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 3}, "3 devices cannot share 32 evenly. Use a multiple of 3."),
        ({"strategy": "ddp"}, "--strategy ddp needs several devices. Give --devices."),
        ({"nodes": 0}, "--nodes must be at least 1; found 0"),
    ],
)
def test_what_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(TRAINING, **settings)


def test_a_run_is_one_process_unless_it_asks_for_more(tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    run_cell(Cell(replace(TRAINING, epochs=1), "joint", 0), tmp_path)
    assert list(tmp_path.glob("*tfevents*"))


def test_what_is_another_training_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    several = replace(TRAINING, devices=2, encoders={"m1": "test_devices.Normed"})
    _, notes = prepare([Cell(several, "qmf", 0)])
    assert "BatchNorm uses the statistics of each process's share of a batch." in notes
    assert any(note.startswith("qmf: compares samples within a batch") for note in notes)
    _, notes = prepare([Cell(TRAINING, "qmf", 0)])
    assert not any("share" in note for note in notes)
    with pytest.raises(ValueError, match=r"lfm\(.* does not work on sharded parameters"):
        prepare([Cell(replace(TRAINING, devices=2, strategy="fsdp"), "lfm(schedule=learnt)", 0)])


class Normed(nn.Module):
    """An encoder with BatchNorm."""

    out_features = 4

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return self.layers(x)


def test_a_process_that_does_not_write_knows_when_it_was_written(tmp_path):
    """Else it would say after each epoch that it is time for a checkpoint."""
    cell = Cell(TRAINING, "joint", 0)
    place = Place(torch.device("cpu"), "32")
    parts = replace(Parts.of(cell, load(DATA), place), place=replace(place, rank=1))
    record = Record(parts, RunLog(Logs(()), cell, tmp_path, {}), Hold(tmp_path), print, {})
    record._weights, record._written = parts.weights(), 0.0
    record._write()
    assert record._written > 0
    assert record._weights == {}
    assert not list(tmp_path.iterdir())
