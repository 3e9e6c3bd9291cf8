"""Items that several workers take from one database."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

import forked
import postgres
from evenly.files import file_address
from evenly.lab.many import claims as module
from evenly.lab.many.claims import Claims, connect, has_died, this_worker

pytestmark = pytest.mark.xdist_group("postgres")
ITEMS = [f"item {n}" for n in range(30)]


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
def engine(url):
    engine = connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def job(request):
    """A job of this test's own: the server is one for all."""
    return request.node.name


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.0)
    monkeypatch.setattr(module, "BEAT", 0.0)
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))


def states(claims):
    return {name: row.state for name, row in claims.rows().items()}


def test_each_item_has_one_worker(engine, job):
    one, two = Claims(engine, job, "one"), Claims(engine, job, "two")
    assert one.take(["a", "b"]) == ("a", None)
    assert two.take(["a", "b"]) == ("b", None)
    assert one.take(["a", "b"]) is two.take(["a", "b"]) is None
    assert one.end("a")
    assert states(two) == {"a": "ended", "b": "running"}
    assert two.take(["b", "c"]).name == "c"
    assert Claims(engine, "another job", "one").take(["a"]).name == "a"


def test_what_is_given_back_is_free(engine, job):
    one, two = Claims(engine, job, "one"), Claims(engine, job, "two")
    one.take(["a"])
    one.take(["b"])
    one.end("b")
    one.give_back()
    assert states(two) == {"a": "open", "b": "ended"}
    taken = two.take(["a"])
    assert taken.name == "a"
    assert taken.before.worker == "one"
    assert not one.end("a")  # it is no longer its own
    assert states(one)["a"] == "running"


def test_who_beats_keeps_its_item_and_who_stops_loses_it(engine, job):
    one, two = (Claims(engine, job, name, lease=0.3) for name in ("one", "two"))
    one.take(["a"])
    started = time.monotonic()
    while time.monotonic() - started < 0.9:
        assert one.beat() == set()
        assert two.take(["a"]) is None
        time.sleep(0.05)
    while two.take(["a"]) is None:  # as if it were killed
        assert time.monotonic() - started < 10
        time.sleep(0.05)
    assert one.beat() == {"a"}
    assert one.beat() == set()
    assert not one.end("a", "too late")
    assert two.rows()["a"].failure == ""
    assert two.end("a", "no such sound")
    assert one.rows()["a"].failure == "no such sound"


def test_of_several_that_see_an_item_lost_one_takes_it(engine, job):
    lost, one, two = (Claims(engine, job, name, lease=0.0) for name in ("lost", "one", "two"))
    lost.take(["a"])
    rows = [claims.rows()["a"] for claims in (one, two)]
    assert rows[0] == rows[1]
    taken = [claims._replace(row, "running") for claims, row in zip((one, two), rows, strict=True)]
    assert taken == [True, False]


def test_an_item_that_has_ended_in_vain_is_taken_after_a_lease(engine, job):
    one, two = (Claims(engine, job, name, lease=0.2) for name in ("one", "two"))
    one.take(["a"])
    one.end("a")
    started = time.monotonic()
    while (taken := two.take(["a"])) is None:
        time.sleep(0.02)
    assert 0.2 <= time.monotonic() - started < 10
    assert taken.before.state == "ended"


def test_who_did_not_watch_gives_up_nobody(engine, job):
    """After the database was away for longer than a lease, all had no chance to beat."""
    one, two = (Claims(engine, job, name, lease=0.4) for name in ("one", "two"))
    one.take(["a"])
    assert two.take(["a"]) is None
    time.sleep(0.5)
    assert two.take(["a"]) is None


def test_what_has_failed_is_opened_again(engine, job):
    one, two = Claims(engine, job, "one"), Claims(engine, job, "two")
    one.take(["a"])
    one.end("a", "no such sound")
    before = two.rows()["a"]
    one.reopen(before)
    two.reopen(before)  # which is no longer so
    assert one.rows()["a"][1:3] == ("open", "one")


def work(url, job, number, taken, died):
    """A worker that takes what it can get; the first one dies with an item in its hands."""
    module.LOOK = module.BEAT = 0.0
    assert number == 0 or died.wait(60)
    claims = Claims(connect(url), job)
    while wanted := [n for n in ITEMS if n not in claims.known or states(claims)[n] != "ended"]:
        item = claims.take(wanted)
        if item is None:
            time.sleep(0.02)
            continue
        if number == 0:
            died.set()
            os._exit(9)
        claims.beat()
        if claims.end(item.name):
            taken.put((number, item.name))


def test_many_processes_share_all_and_take_up_what_a_dead_one_had(url, job):
    context = forked.context()
    taken, died = context.Queue(), context.Event()
    processes = [context.Process(target=work, args=(url, job, n, taken, died)) for n in range(4)]
    for process in processes:
        process.start()
    found = [taken.get(timeout=60) for _ in ITEMS]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [9, 0, 0, 0]
    assert taken.empty()
    assert sorted(name for _, name in found) == sorted(ITEMS)  # each once, also the dead one's
    assert len({number for number, _ in found}) > 1


def test_a_process_of_this_machine_is_known_to_have_died():
    code = "from evenly.lab.many.claims import this_worker; print(this_worker())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name = ran.stdout.strip()
    assert not has_died(this_worker())
    if sys.platform == "linux":
        assert has_died(name)
    elsewhere = name.rpartition(" ")[0] + " another"
    assert not has_died(elsewhere)  # nobody can know
    assert not has_died("vm:1")


def test_an_address_is_shown_without_its_password(url):
    engine = connect(url)
    assert isinstance(engine, Engine)
    assert "secret" not in str(engine.url)
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("runs/tune.db", ValueError, "'runs/tune.db' is no address of a database"),
        ("oracul://a/b", ValueError, "there is no kind of database 'oracul'"),
        ("mysql://a:secret@b/c", RuntimeError, r"mysql://a:\*\*\*@b/c needs a driver: pip install"),
        ("sqlite:////no/such/folder/a.db", RuntimeError, "cannot be opened .*unable to open"),
        (
            "postgresql://a:secret@127.0.0.1:1/b",
            RuntimeError,
            r"postgresql://a:\*\*\*@127\.0\.0\.1:1/b cannot be opened \(.*refused",
        ),
    ],
)
def test_addresses_that_cannot_be(url, kind, message):
    with pytest.raises(kind, match=message):
        connect(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://me:aaa@s3cret@127.0.0.1:1/b", r"postgresql://\*\*\* has a '@' .*write %40"),
        ("postgresql://me:a/s3@cret@127.0.0.1:1/b", r"postgresql://\*\*\* has a '@'"),
        ("postgresql://me/x:s3cret@127.0.0.1:1/b", r"postgresql://\*\*\* has a '@'"),
        ("postgresql://me:a@s3:cret@127.0.0.1:1/b", r"'postgresql://\*\*\*' is no address"),
        ("postgresql:me:s3cret@127.0.0.1/b", "'what is given' is no address"),
        (
            "postgresql://127.0.0.1:1/b?password=s3cret",
            r"1:1/b\?\*\*\* cannot be opened \(.*refused",
        ),
        ("postgresql://127.0.0.1:1/b?connect_timeout=s3c", r"cannot be opened \(.*'\*\*\*'\)"),
        ("sqlite:///x.db?timeout=s3cret", r"x\.db\?\*\*\* cannot be opened"),
        ("sqlite://me:s3cret@host/x.db", r"sqlite://me:\*\*\*@host/x\.db cannot be opened"),
        ("postgresql://127.0.0.1:1/b?pasword=s3cret", "cannot be opened .*invalid .*pasword"),
    ],
)
def test_no_error_shows_a_password(url, message):
    with pytest.raises((RuntimeError, ValueError), match=message) as raised:
        connect(url)
    assert "s3" not in str(raised.value)


def test_a_setting_that_a_driver_ignores_is_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        connect(f"sqlite:///{tmp_path / 'x.db'}?password=s3cret").dispose()


@pytest.mark.parametrize(
    "name", ["a%20b", "a b", "lr?", "a#b&c=d", "é", "{x}", "%s", "a:b", "~", "?"]
)
def test_a_file_in_any_folder(name, tmp_path, monkeypatch):
    """The address serves us, Optuna, and after it is written out, those who read it anew."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    path = Path(name) / "x.db"
    for address in (file_address(path), make_url(file_address(path).render_as_string())):
        engine = connect(address)
        Claims(engine, "job").take(["a"])
        engine.dispose()
        assert path.is_file()
        path.unlink()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(RuntimeError, match=r"the database .*/no such/x\.db cannot be opened"):
        connect(file_address(Path("no such/x.db")))


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RuntimeError, match=r"needs a driver: pip install 'psycopg\[binary\]'"):
        connect("postgresql://a:secret@b/c")


def test_a_database_that_is_gone_for_a_moment(engine, job, monkeypatch):
    claims = Claims(engine, job, "one")
    execute, failures = Engine.connect, [1, 1]

    def failing(self):
        if failures:
            failures.pop()
            raise module.OperationalError("SELECT", {}, Exception("server closed the connection"))
        return execute(self)

    monkeypatch.setattr(Engine, "connect", failing)
    assert claims.take(["a"]).name == "a"
    failures += [1] * 9
    with pytest.raises(RuntimeError, match=r"does not do as asked \(server closed the connection"):
        claims.rows()
    failures.clear()
