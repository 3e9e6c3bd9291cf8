"""Several commands share one database, and one of them is killed in the middle of its work."""

import csv
import re
import time

import pytest

import forked
import postgres
from evenly.lab.many.compare import compare
from evenly.lab.run.settings import Training
from evenly.lab.statistics.tables import table

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workers")]
DATA = "synthetic(train=90,val=60,test=30,classes=3,information=4)"
TRAINING = Training(
    data=DATA,
    epochs=3,
    width=8,
    lr=0.05,
    batch_size=30,
    precision="32",
    encoders={"m1": "slowly.Slow"},
)


@pytest.fixture
def start(tmp_path):
    """Starts a command on the training of this file; what is left of them ends with the test."""
    started = []

    def begin(command, *options):
        line = [command, "--data", DATA, "--epochs", 3, "--width", 8, "--lr", 0.05]
        line += ["--batch_size", 30, "--precision", 32, "--encoders.m1", "slowly.Slow", "--jobs", 1]
        process = forked.Forked(forked.evenly, *line, *options, cwd=tmp_path)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


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
    killed = start("tune", *options, folder)
    wait_for("trials/*/0/last.ckpt", folder, killed)
    others = [start("tune", *options, other) for _ in range(survivors)]
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


def test_a_killed_worker_leaves_its_cell_to_another(server, start, tmp_path):
    out = tmp_path / "shared"
    options = ("--methods", "joint,relearn(every=1)", "--seeds", 2, "--workers", server)
    killed = start("compare", *options, "--out", out)
    wait_for("runs/*/last.ckpt", out, killed)
    other = start("compare", *options, "--out", out)
    killed.kill()
    assert told(killed.communicate()[1]) == []
    text, err = ended(other)
    cells = [f"{method}-{seed}" for seed in (0, 1) for method in ("joint", "relearn_every=1")]
    assert sorted(told(err)) == sorted(cells)  # each once, and the one that was begun

    alone = tmp_path / "alone"
    compare("joint,relearn(every=1)", 2, TRAINING, alone, local(1))
    assert figures(out) == figures(alone)
    assert text.startswith(table(alone))


def told(err):
    """The runs that a command says it has finished."""
    return re.findall(r"^(.+-\d): best epoch", err, re.MULTILINE)


def figures(out):
    rows = read(out / "results.csv")
    return [row for row in rows if row["metric"] not in ("seconds", "peak_memory_mb")]
