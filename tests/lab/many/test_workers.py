"""Several commands share one database, and one of them is lost in the middle of its work."""

import csv
import signal
import time

import pytest

import forked
import postgres

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workers")]
DATA = "synthetic(train=90,val=60,test=30,classes=3,information=4)"


@pytest.fixture
def start(tmp_path):
    """Starts a command on the training of this file; what is left of them ends with the test."""
    started = []

    def begin(*options, grace=60):
        line = ["tune", "--data", DATA, "--epochs", 3, "--width", 8, "--lr", 0.05]
        line += ["--batch_size", 30, "--precision", 32, "--encoders.m1", "slowly.Slow", "--jobs", 1]
        line += ["--checkpoint_every", 0]
        process = forked.Forked(hastily, grace, *line, *options, cwd=tmp_path)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def hastily(grace, *arguments):
    """The command, which looks every second, and waits so long for those that say nothing."""
    from evenly.lab.many import trials, tune

    trials.BEAT = tune.BEAT = 1
    trials.GRACE = grace
    forked.evenly(*arguments)


def wait_for(pattern, folder, process):
    """Waits for a file that a command writes in the middle of its work."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def ended(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out, err


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def server():
    with postgres.server() as url:
        yield url


@pytest.mark.parametrize(("kind", "survivors"), [("sqlite", 1), ("postgresql", 2)])
def test_a_killed_worker_loses_one_trial_and_the_study_goes_on(
    kind, survivors, start, tmp_path, request
):
    """Whether the others share its folder or not: the numbers are in the database."""
    server = kind == "postgresql" and request.getfixturevalue("server")
    url = server or f"sqlite:///{tmp_path / 'a.db'}"
    options = ("--methods", "joint,ogm_ge", "--trials", 3, "--storage", url, "--out")
    folder, other = (tmp_path / place / "tune" for place in ("one", "two"))
    killed = start(*options, folder)
    wait_for("trials/*/0/last.ckpt", folder, killed)
    others = [start(*options, other) for _ in range(survivors)]
    killed.kill()
    killed.wait()
    texts = [ended(process)[0] for process in others]
    assert len(set(texts)) == 1
    rows = read(other / "tune.csv")
    for method in ("joint", "ogm_ge"):
        finished = [r for r in rows if r["method"] == method and r["state"] == "finished"]
        assert sorted(row["place"] for row in finished) == ["0", "1", "2"]
    (lost,) = [row for row in rows if row["state"] != "finished"]
    assert (lost["state"], lost["reason"]) == ("lost", "its worker was stopped, killed or cut off")
    assert lost["worker"].endswith(f":{killed.pid}")
    again = [r for r in rows if (r["method"], r["place"]) == (lost["method"], lost["place"])]
    assert [row["state"] for row in again] == ["lost", "finished"]
    workers = {row["worker"].rpartition(":")[2] for row in rows if row["state"] == "finished"}
    assert workers == {str(process.pid) for process in others}  # each had a share


def test_a_frozen_worker_that_wakes_spoils_nothing(server, start, tmp_path):
    """Its run goes on meanwhile, in a process of its own, and ends before it wakes."""
    options = ("--methods", "joint", "--trials", 2, "--storage", server, "--out")
    folder, other = (tmp_path / place / "frozen" for place in ("one", "two"))
    frozen = start(*options, folder)
    wait_for("trials/joint-0/0/last.ckpt", folder, frozen)
    frozen.send_signal(signal.SIGSTOP)
    theirs = ended(start(*options, other, grace=3))[0]
    wait_for("trials/joint-0/0/result.json", folder, frozen)
    frozen.send_signal(signal.SIGCONT)
    text, err = ended(frozen)
    assert text.splitlines()[:2] == theirs.splitlines()[:2]
    assert "joint trial 0: taken by another command" in err
    for place in (folder, other):
        found = sorted((row["place"], row["state"]) for row in read(place / "tune.csv"))
        assert found == [("0", "finished"), ("0", "lost"), ("1", "finished")]
