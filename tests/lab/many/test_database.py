"""How the database that commands share is named and reached."""

import sys
import warnings
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

import postgres
from evenly.files import file_address
from evenly.lab.many import database as module
from evenly.lab.many.database import make_exact, patiently, reached

pytestmark = pytest.mark.xdist_group("postgres")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    return request.getfixturevalue("server")


@pytest.fixture(scope="module")
def server():
    with postgres.server() as url:
        yield url


def test_an_address_is_shown_without_its_password(url):
    assert "secret" not in str(reached(url))


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("runs/tune.db", ValueError, "'runs/tune.db' is not a database address"),
        ("oracul://a/b", ValueError, "unknown kind of database 'oracul'"),
        ("mysql://a:secret@b/c", RuntimeError, r"mysql://a:\*\*\*@b/c needs a driver: pip install"),
        (
            "sqlite:////no/such/folder/a.db",
            RuntimeError,
            "cannot open the database .*unable to open",
        ),
        (
            "postgresql://a:secret@127.0.0.1:1/b",
            RuntimeError,
            r"cannot open the database postgresql://a:\*\*\*@127\.0\.0\.1:1/b \(.*refused",
        ),
    ],
)
def test_addresses_that_cannot_be(url, kind, message):
    with pytest.raises(kind, match=message):
        reached(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://me:aaa@s3cret@127.0.0.1:1/b", r"postgresql://\*\*\* has a '@' .*write %40"),
        ("postgresql://me:a/s3@cret@127.0.0.1:1/b", r"postgresql://\*\*\* has a '@'"),
        ("postgresql://me/x:s3cret@127.0.0.1:1/b", r"postgresql://\*\*\* has a '@'"),
        (
            "postgresql://me:a@s3:cret@127.0.0.1:1/b",
            r"'postgresql://\*\*\*' is not a database address",
        ),
        ("postgresql:me:s3cret@127.0.0.1/b", "'what is given' is not a database address"),
        (
            "postgresql://127.0.0.1:1/b?password=s3cret",
            r"cannot open .*1:1/b\?\*\*\* \(.*refused",
        ),
        (
            "postgresql://127.0.0.1:1/b?connect_timeout=s3c",
            r"cannot open the database .*\(.*'\*\*\*'\)",
        ),
        ("sqlite:///x.db?timeout=s3cret", r"cannot open .*x\.db\?\*\*\*"),
        ("sqlite://me:s3cret@host/x.db", r"cannot open .*sqlite://me:\*\*\*@host/x\.db"),
        (
            "postgresql://127.0.0.1:1/b?pasword=s3cret",
            "cannot open the database .*invalid .*pasword",
        ),
    ],
)
def test_no_error_shows_a_password(url, message):
    with pytest.raises((RuntimeError, ValueError), match=message) as raised:
        reached(url)
    assert "s3" not in str(raised.value)


def test_a_setting_that_a_driver_ignores_is_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reached(f"sqlite:///{tmp_path / 'x.db'}?password=s3cret")


@pytest.mark.parametrize(
    "name", ["a%20b", "a b", "lr?", "a#b&c=d", "é", "{x}", "%s", "a:b", "~", "?"]
)
def test_a_file_in_any_folder(name, tmp_path, monkeypatch):
    """The address serves us, Optuna, and after it is written out, those who read it anew."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    path = Path(name) / "x.db"
    for address in (file_address(path), make_url(file_address(path).render_as_string())):
        engine = create_engine(reached(address))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE a (b INTEGER)"))
        engine.dispose()
        assert path.is_file()
        path.unlink()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(RuntimeError, match=r"cannot open the database .*/no such/x\.db"):
        reached(file_address(Path("no such/x.db")))


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(RuntimeError, match=r"needs a driver: pip install 'psycopg\[binary\]'"):
        reached("postgresql://a:secret@b/c")


def test_a_database_that_is_gone_for_a_moment(monkeypatch):
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    failures = [1, 1]

    def answer():
        if failures:
            failures.pop()
            raise OperationalError("SELECT", {}, Exception("server closed the connection"))
        return 5

    assert patiently(answer) == 5
    failures += [1] * 9
    with pytest.raises(RuntimeError, match=r"the database failed \(server closed the connection"):
        patiently(answer)


def test_a_transaction_has_a_file_from_its_first_word(tmp_path):
    """Else two could read that a trial waits, and both take it."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    engines = [create_engine(url, connect_args={"timeout": 0}) for _ in range(2)]
    for engine in engines:
        make_exact(engine)
    with engines[0].begin(), pytest.raises(OperationalError, match="locked"):
        engines[1].connect().execute(text("SELECT 1"))
    with engines[1].begin() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
