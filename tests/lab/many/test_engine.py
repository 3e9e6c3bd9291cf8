"""Runs that a source gives out, without any training."""

import pytest

from evenly.lab.many.engine import Listed, Pool, Source, carry
from evenly.lab.many.job import Ended, Epoch, Job
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell, Training

CELLS = [Cell(Training(epochs=2), method, seed) for seed in (0, 1) for method in ("joint", "ogm")]


def jobs(folder):
    return [Job(cell, folder / cell.folder) for cell in CELLS]


def finish(job):
    metrics = {"val": {"accuracy": 0.5}}
    Result(job.cell.method, job.cell.seed, 0, 2, 6, 1.0, 1.0, 1, "32", metrics).write(job.folder)


class Two:
    """A pool of two runs at a time, of which the oldest ends at each look; some fail."""

    def __init__(self, failing=(), stopped=False):
        self.running, self.failing, self.stopped = [], failing, stopped
        self.most = self.ended = 0
        self.is_closed = False

    @property
    def room(self):
        return 2 - len(self.running)

    def start(self, job):
        self.running.append(job)
        self.most = max(self.most, len(self.running))

    def news(self, seconds):
        if self.stopped:
            raise KeyboardInterrupt
        if not self.running:
            return []
        job = self.running.pop(0)
        if job.cell.folder in self.failing:
            return [Epoch(job, 0, 0.25), Ended(job, "no such sound")]
        finish(job)
        return [Epoch(job, 0, 0.25), Epoch(job, 1, 0.5), Ended(job)]

    def stop(self, job):
        self.running.remove(job)
        self.ended += 1

    def close(self):
        self.is_closed = True


def test_every_run_that_is_not_finished(tmp_path):
    finish(jobs(tmp_path)[1])
    source = Listed(jobs(tmp_path))
    assert isinstance(source, Source)
    assert (source.finished, source.epochs) == (2, 8)
    taken = [source.take().cell for _ in range(3)]
    assert taken == [CELLS[0], *CELLS[2:]]
    assert source.take() is None
    assert source.is_over()
    assert source.ended(jobs(tmp_path)[0], "no such sound") == "joint-0: no such sound"
    assert source.failures == {"joint-0": "no such sound"}
    assert source.finished == 4


def test_a_failure_is_told_and_tried_again_by_the_same_command(tmp_path, capsys):
    source, pool = Listed(jobs(tmp_path)), Two(failing=("joint-0",))
    assert isinstance(pool, Pool)
    carry(source, pool)
    assert pool.most == 2
    assert pool.is_closed
    assert source.failures == {"joint-0": "no such sound"}
    assert source.finished == source.epochs
    said = capsys.readouterr().err
    assert "joint-0: no such sound" in said
    assert "ogm-1: best epoch 0, validation 0.500, 1.0 s" in said
    again = Listed(jobs(tmp_path))
    carry(again, Two())
    assert again.failures == {}
    assert [Result.read(job.folder) is None for job in jobs(tmp_path)] == [False] * 4


class Taken(Listed):
    """Runs of which another command takes the first that begins."""

    is_stopped = False

    def lost(self):
        found, self.first = self.first, []
        return found

    def take(self):
        job = super().take()
        if job is not None and job.cell == CELLS[0]:
            self.first = [job]
        return job

    def stop(self):
        self.is_stopped = True


class Slow(Two):
    """The same, where the youngest run ends first."""

    def news(self, seconds):
        self.running.reverse()
        return super().news(seconds)


def test_a_run_that_another_command_takes_is_ended(tmp_path, capsys):
    source, pool = Taken(jobs(tmp_path)), Slow()
    carry(source, pool)
    assert pool.ended == 1
    assert "joint-0: taken by another command" in capsys.readouterr().err
    assert [Result.read(job.folder) is None for job in jobs(tmp_path)] == [True, *[False] * 3]


def test_what_is_in_progress_is_left_by_who_is_stopped(tmp_path):
    source, pool = Taken(jobs(tmp_path)), Two(stopped=True)
    with pytest.raises(KeyboardInterrupt):
        carry(source, pool)
    assert pool.is_closed
    assert source.is_stopped
