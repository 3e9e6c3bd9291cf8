"""The trials of a search as several commands get them, without any training."""

import hashlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

import forked
import postgres
from evenly.files import file_address
from evenly.lab.many import tune
from evenly.lab.many.database import PAUSES, reached
from evenly.lab.many.space import Space
from evenly.lab.many.trials import BEAT, GRACE, Search, Studies
from evenly.lab.many.tune import Trials
from evenly.lab.many.worker import has_died, this_worker
from evenly.lab.run.result import Result
from evenly.lab.run.settings import Training

pytestmark = pytest.mark.xdist_group("postgres")
DATA = "synthetic(train=90,val=60,test=30,classes=3,information=4)"
TRAINING = Training(data=DATA, epochs=2, width=8, lr=0.05, batch_size=10, precision="32")
SEARCH = Search(TRAINING, ("joint", "ogm_ge"), 3, 1, 0, Path())
ONE = {"methods": ("joint",), "trials": 1}


@pytest.fixture(scope="module")
def server():
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    return request.getfixturevalue("server")


@pytest.fixture
def search(tmp_path):
    """A search of this test's own: the server is one for all."""
    return replace(SEARCH, out=tmp_path)


class Command:
    """A command that shares a search, whose runs need no training."""

    def __init__(self, search, url):
        self.studies = Studies(search, reached(url))
        self.source = Trials(self.studies, search.training)

    def take(self):
        self.source._next_take = 0.0
        return self.source.take()

    def finish(self, job, accuracy=0.5):
        metrics = {"val": {"accuracy": accuracy}}
        Result(job.cell.method, job.cell.seed, 0, 2, 6, 1.0, 1.0, 1, "32", metrics).write(
            job.folder
        )
        return self.source.ended(job, "")

    def look(self):
        """What happens every few seconds: beats, and a look at those of others."""
        self.source._next_beat = 0.0
        return list(self.source.lost())

    def states(self, method="joint"):
        return [trial.state for trial in self.studies.trials(method)]

    def sleep(self):
        """As if nobody had recorded a heartbeat for years."""
        with self.studies._storage.engine.begin() as connection:
            connection.execute(
                text("UPDATE trial_heartbeats SET heartbeat = '2001-02-03 04:05:06'")
            )


@pytest.fixture
def command(search, url):
    made = []

    def make(**changes):
        made.append(Command(replace(search, **changes), url))
        return made[-1]

    yield make
    for each in made:
        each.studies.close()


def test_the_first_place_of_every_method_comes_first_and_seeds_of_a_trial_together(command):
    one = command(trials=2, seeds=2)
    found = []
    while (job := one.take()) is not None:
        found.append((job.folder.parent.name, job.cell.seed))
        one.finish(job, 0.25 + 0.5 * job.cell.seed)
    trials = ("joint-0", "ogm_ge-0", "joint-1", "ogm_ge-1")
    assert found == [(trial, seed) for trial in trials for seed in (0, 1)]
    assert one.source.is_over()
    assert one.source.finished == one.source.epochs == 2 * 2 * 2 * 2
    assert [trial.value for trial in one.studies.trials("joint")] == [0.5, 0.5]
    assert one.studies.trials("joint")[0].values == (0.25, 0.75)


def test_a_refused_run_uses_up_no_place(command):
    one = command(**ONE)
    with pytest.raises(ValueError, match=r"^my\.npz changed$"):
        one.source.ended(one.take(), "Refused: my.npz changed")
    one.source.stop()
    assert one.states() == ["lost"]
    again = command(**ONE)
    again.finish(again.take())
    assert again.source.is_over()


def test_all_trials_of_a_command_are_of_the_files_that_it_began_with(command, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"one")
    one = command(**ONE | {"trials": 2, "training": replace(TRAINING, data=str(path))})
    first = one.take()
    path.write_bytes(b"two")
    assert one.take().began["data_sha256"] == first.began["data_sha256"] == sha256(b"one")
    assert first.cell.as_dict()["data_sha256"] == sha256(b"two")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_each_place_goes_to_one_command(command):
    one, two = command(trials=2), command(trials=2)
    found = [each.take() for each in (one, two, two, one)]
    assert [job.folder.parent.name for job in found] == [
        "joint-0",
        "ogm_ge-0",
        "joint-1",
        "ogm_ge-1",
    ]
    assert one.take() is two.take() is None
    for each, job in zip((one, two, two, one), found, strict=True):
        assert not one.source.is_over()
        each.finish(job)
    assert one.source.is_over()
    assert two.source.is_over()
    assert two.source.finished == 8
    late = command(trials=2)
    assert late.source.is_over()
    assert late.take() is None


def test_of_several_trials_that_were_put_into_a_place_one_has_it(command, monkeypatch):
    """Two commands find none in it at the same moment."""
    one, two = command(**ONE), command(**ONE)
    two.studies._studies["joint"].enqueue_trial({}, {"place": 0})
    holders, empty = Studies._holders, [{}]
    monkeypatch.setattr(Studies, "_holders", lambda *a: empty.pop() if empty else holders(*a))
    mine, _ = one.studies.begin("joint", 0)
    assert mine.number == 0
    assert two.studies.begin("joint", 0) is None
    assert two.studies.held("joint") == {0}
    assert one.studies.tell("joint", 0)  # it is given up, and the other has it
    assert two.studies.begin("joint", 0)[0].number == 1


@pytest.mark.filterwarnings("error")
def test_the_first_trial_is_as_given_also_outside_the_ranges(command):
    """The sampler draws on as usual, also once it learns from what was tried."""
    training = replace(SEARCH.training, lr=0.54321, weight_decay=0.0)
    one = command(training=training, methods=("ogm",), trials=14, seeds=1)
    while (job := one.take()) is not None:
        one.finish(job)
    first, *others = (trial.tuned for trial in one.studies.trials("ogm"))
    assert (first.lr, first.weight_decay) == (0.54321, 0.0)
    assert all(1e-4 <= tuned.lr <= 0.1 for tuned in others)
    assert all(1e-6 <= tuned.weight_decay <= 1e-2 for tuned in others)


def test_who_reads_that_a_trial_waits_may_come_too_late(command):
    one, two = command(**ONE), command(**ONE)
    mine, _ = one.studies.begin("joint", 0)
    assert not two.studies._seize(mine._trial_id)
    one.studies.tell("joint", 0, 0.5)
    assert not two.studies._seize(mine._trial_id)
    assert two.states() == ["finished"]


def test_a_trial_is_kept_while_a_pool_does_its_whole_run(command, monkeypatch):
    one, two = command(**ONE), command(**ONE)
    mine = one.take()
    monkeypatch.setattr(tune, "BEAT", 0.05)
    two.sleep()
    with one.source.meanwhile():
        time.sleep(1)
        two.look()
    assert two.take() is None
    assert one.finish(mine).startswith("joint trial 0: validation 0.5")
    two.sleep()
    time.sleep(0.2)  # no beats any more
    assert two.source.is_over()


def test_a_command_that_was_thought_gone_ends_its_run_and_spoils_nothing(command):
    one, two = command(**ONE), command(**ONE)
    mine = one.take()
    assert one.look() == two.look() == []
    assert two.take() is None
    two.sleep()
    assert two.look() == []
    theirs = two.take()
    assert theirs.folder != mine.folder
    assert theirs.cell == mine.cell  # the same place is tried with the same settings
    assert one.states() == ["lost", "running"]
    assert one.look() == [mine]
    assert one.look() == []
    assert "validation 0.700" in two.finish(theirs, 0.7)
    assert one.take() is None
    assert one.source.is_over()
    assert [t.value for t in one.studies.trials("joint")] == [None, 0.7]


def test_a_run_that_ends_after_its_place_was_taken_does_not_count(command):
    one, two = command(**ONE), command(**ONE)
    mine = one.take()
    two.sleep()
    two.look()
    theirs = two.take()
    assert one.finish(mine, 0.9) == "joint trial 0: taken by another command"
    assert one.look() == []
    two.finish(theirs, 0.7)
    assert two.states() == ["lost", "finished"]


def test_a_command_that_was_frozen_alone_goes_on(command):
    """A computer that slept, say: nobody had its place meanwhile."""
    one = command(**ONE)
    mine = one.take()
    one.sleep()
    assert one.look() == []
    one.finish(mine)
    assert one.states() == ["finished"]


def test_a_command_that_is_frozen_while_it_begins_a_trial_leaves_it(command, monkeypatch):
    one, two = command(**ONE), command(**ONE)
    usual = Space.distributions

    def slowly(space):
        monkeypatch.undo()
        two.sleep()
        two.look()
        return usual(space)

    monkeypatch.setattr(Space, "distributions", slowly)
    assert one.take() is None
    assert one.states() == []  # of a trial of which nothing is known, there is nothing to show
    assert two.take() is not None


def test_a_command_that_is_stopped_leaves_its_place_at_once(command):
    one, two = command(**ONE), command(**ONE)
    one.take()
    assert two.take() is None
    one.source.stop()
    assert two.take() is not None
    assert two.states() == ["lost", "running"]


def test_the_first_decides_on_the_precision_of_all(command):
    one, two = command(), command(methods=("joint",))
    assert one.studies.precision(lambda: "bf16") == "bf16"
    assert two.studies.precision(lambda: "32") == "bf16"
    found = []

    def late():  # another decides while this one does
        found.append(two.studies.precision(lambda: "32"))
        return "bf16"

    assert command(seeds=2).studies.precision(late) == "bf16"
    assert found == ["bf16"]


@pytest.mark.slow
def test_what_is_tried_is_a_function_of_place_and_finished_trials(command):
    """Also once Optuna goes by what it has seen, and by other objects than those that saw it."""
    found = []
    for name, stops in (("joint", ()), ("ensemble", (3, 11, 13))):
        values = []
        one = command(methods=(name,), trials=15)
        for place in range(15):
            if place in stops:
                one = command(methods=(name,), trials=15)
            trial, _ = one.studies.begin(name, place)
            values.append(dict(trial.params))
            one.studies.tell(name, trial.number, 1 - abs(np.log10(values[-1]["lr"]) + 3))
        found.append(values)
    assert found[0] == found[1]
    assert len({values["lr"] for values in found[0]}) == 15


def work(search, url, number, taken, died, both):
    """A command that takes what it can get; the first one dies with a trial in its hands."""
    one = Command(search, url)
    assert number == 0 or died.wait(60)
    first = True
    while not one.source.is_over():
        job = one.take()
        if job is None:
            time.sleep(0.05)
            one.look()
            continue
        if number == 0:
            died.set()
            os._exit(9)
        if first:
            both.wait(60)
            first = False
        place = one.source._running[-1].place
        if "validation" in one.finish(job):
            taken.put((number, job.cell.method.partition("(")[0], place))


@pytest.mark.slow
def test_many_processes_share_all_and_take_up_what_a_dead_one_had(search, url):
    search = replace(search, trials=4)
    context = forked.context()
    taken, died, both = context.Queue(), context.Event(), context.Barrier(2)
    arguments = [(search, url, number, taken, died, both) for number in range(3)]
    processes = [context.Process(target=work, args=each) for each in arguments]
    for process in processes:
        process.start()
    places = [(method, place) for method in search.methods for place in range(search.trials)]
    found = [taken.get(timeout=60) for _ in places]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [9, 0, 0]
    assert taken.empty()
    assert sorted(place for _, *place in found) == sorted(map(list, places))  # each once
    assert {number for number, *_ in found} == {1, 2}
    studies = Studies(search, reached(url))
    states = [t.state for method in search.methods for t in studies.trials(method)]
    assert (states.count("finished"), states.count("lost")) == (8, 1)
    studies.close()


def test_a_process_of_this_machine_is_known_to_have_died():
    code = "from evenly.lab.many.worker import this_worker; print(this_worker())"
    name = forked.run(forked.code, code).stdout.strip()
    assert not has_died(this_worker())
    if sys.platform == "linux":
        assert has_died(name)
    elsewhere = name.rpartition(" ")[0] + " another"
    assert not has_died(elsewhere)  # nobody can know
    assert not has_died("vm:1")


@pytest.mark.parametrize("name", ["My%20Drive", "{SCHEMA_VERSION}", "a?b#c&d=é"])
def test_a_search_in_any_folder(name, tmp_path):
    """Optuna reads the address anew, and fills in what stands in braces."""
    search = replace(SEARCH, out=tmp_path / name)
    search.out.mkdir()
    studies = Studies(search, reached(file_address(search.out / "tune.db")))
    studies.begin("joint", 0)
    studies.close()
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*.db")] == [Path(name, "tune.db")]


def test_a_heartbeat_is_one_of_utc(server, search, monkeypatch):
    """Also where the server, or whoever asks it, has another time: hours apart would be death."""
    monkeypatch.setenv("PGTZ", "Pacific/Pago_Pago")
    one = Command(search, server)
    one.take()
    monkeypatch.setenv("PGTZ", "Pacific/Kiritimati")
    two = Command(search, server)
    two.look()
    assert two.states() == ["running"]
    for each in (one, two):
        each.studies.close()


def test_who_waits_for_a_database_is_not_lost():
    assert BEAT + sum(PAUSES) < GRACE
