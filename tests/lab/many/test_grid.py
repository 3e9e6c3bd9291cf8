"""The cells of a comparison as several workers get them, without any training."""

from dataclasses import replace

import pytest

from evenly.lab.many.claims import Claims, connect
from evenly.lab.many.grid import Alone, Shared
from evenly.lab.many.jobs import Job
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Cell, Training

CELLS = [Cell(Training(epochs=2), method, seed) for seed in (0, 1) for method in ("joint", "ogm")]


def jobs(folder):
    return [Job(cell, folder / cell.folder) for cell in CELLS]


def finish(source, job):
    metrics = {"val": {"accuracy": 0.5}}
    Result(job.cell.method, job.cell.seed, 0, 2, 6, 1.0, 1.0, 1, "32", metrics).write(job.folder)
    return source.ended(job, "")


@pytest.fixture
def workers(tmp_path):
    engines = []

    def make(name, folder=tmp_path, lease=60.0):
        engines.append(connect(f"sqlite:///{tmp_path / 'a.db'}"))
        return Shared(jobs(folder), Claims(engines[-1], "a comparison", name, lease))

    yield make
    for engine in engines:
        engine.dispose()


def take(source):
    source._claims._next_look = 0.0
    return source.take()


def test_alone_every_run_that_is_not_finished(tmp_path):
    finish(Alone([]), jobs(tmp_path)[1])
    source = Alone(jobs(tmp_path))
    assert (source.finished, source.epochs) == (2, 8)
    taken = [source.take().cell for _ in range(3)]
    assert taken == [CELLS[0], *CELLS[2:]]
    assert source.take() is None
    assert source.is_over()
    assert source.ended(jobs(tmp_path)[0], "no such sound") == "joint-0: no such sound"
    assert source.failures == {"joint-0": "no such sound"}
    assert source.finished == 4


def test_each_run_goes_to_one_worker_and_is_finished_for_all(workers):
    one, two = workers("one"), workers("two")
    found = [take(source) for source in (one, two, one, two)]
    assert [job.cell for job in found] == CELLS
    assert take(one) is take(two) is None
    assert not one.is_over()
    for source, job in zip((one, two, one, two), found, strict=True):
        assert "best epoch 0, validation 0.500" in finish(source, job)
    assert one.is_over()
    assert two.is_over()
    assert one.finished == two.finished == 8
    assert one.failures == {}
    late = workers("late")
    assert late.is_over()
    assert take(late) is None


def test_a_failure_is_told_by_all_and_tried_again_by_the_same_command(workers):
    one, two = workers("one"), workers("two")
    first, second = take(one), take(two)
    one.ended(first, "no such sound")
    finish(two, second)
    for _ in range(2):
        finish(two, take(two))
    assert take(one) is take(two) is None  # not again by those that were there
    assert one.is_over()
    assert two.is_over()
    assert one.failures == two.failures == {"joint-0": "no such sound"}
    again = workers("again")
    assert not again.is_over()
    assert take(again).cell == first.cell
    finish(again, first)
    assert again.is_over()
    assert again.failures == {}


def test_a_worker_that_was_thought_gone_ends_its_run(workers):
    one, two = workers("one"), workers("two", lease=0.0)
    mine, theirs = take(one), take(two)
    assert mine == theirs
    one._claims._next_beat = 0.0
    assert list(one.lost()) == [mine]
    finish(two, theirs)
    assert one.failures == {}


def test_a_worker_that_is_stopped_leaves_its_runs_at_once(workers):
    one, two = workers("one"), workers("two")
    for _ in CELLS:
        take(one)
    assert take(two) is None
    one.stop()
    assert take(two).cell == CELLS[0]


def test_a_folder_that_workers_do_not_share(workers, tmp_path, capsys):
    """Each of them ends with all results nevertheless."""
    one, two = workers("one", tmp_path / "one"), workers("two", tmp_path / "two", lease=0.0)
    finish(one, take(one))
    job = take(two)
    assert job.cell == CELLS[0]
    assert "joint-0: one has finished it, but" in capsys.readouterr().err
    finish(two, job)
    assert [Result.read(folder / "joint-0") is None for folder in (tmp_path / "one",)] == [False]


def test_other_items_of_the_job_are_let_be(workers):
    """More seeds were asked for before."""
    one = workers("one")
    while (job := take(one)) is not None:
        one.ended(job, "no such sound") if job.cell.seed else finish(one, job)
    fewer = [job for job in jobs(one._jobs["joint-0"].folder.parent) if job.cell.seed == 0]
    engine = connect(str(one._claims._engine.url))
    source = Shared(fewer, Claims(engine, "a comparison", "two"))
    assert source.is_over()
    assert source.failures == {}
    assert {row.state for row in source._claims.rows().values()} == {"ended"}
    engine.dispose()
    assert replace(CELLS[0], seed=1) in CELLS
