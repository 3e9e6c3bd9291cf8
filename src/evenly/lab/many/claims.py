"""Work that many processes, on any number of machines, take from one database.

A table has a row for each item that was ever begun. Whoever writes an item's row first has the
item, and while it works on it, counts up the row's beats. An item whose beats stand still is lost:
its worker was killed, or cut off. Whoever sees that may take it, by writing over exactly the row
that it has read; of several that try, the database lets one. No clock is compared with another
machine's, and nothing is locked for longer than a statement.
"""

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import unquote
from uuid import uuid4

from sqlalchemy import (
    Column,
    ColumnElement,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    insert,
    select,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SAWarning,
    SQLAlchemyError,
)

from evenly.errors import UserError, UserRuntimeError
from evenly.hidden import hidden_address, is_torn

T = TypeVar("T")

LEASE = 60.0
"""Seconds for which another worker sees beats stand still before it takes the item."""
BEAT = 5.0
"""Seconds between two beats."""
LOOK = 2.0
"""Seconds between two looks at items of which none was free."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0)
"""Seconds before a failed statement is tried again, as servers restart and networks have holes."""
RACES = (0.1, 0.2, 0.5, 1.0)
"""The same where tables are made, which fails for whoever is not the first."""
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""By the name under which a driver is imported, what to install, where that is called otherwise."""

_CLAIMS = Table(
    "evenly_claims",
    MetaData(),
    Column("job", String(64), primary_key=True),
    Column("item", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("worker", String(255), nullable=False),
    Column("beats", Integer, nullable=False),
    Column("failure", Text, nullable=False),
)


class Row(NamedTuple):
    """An item that was begun.

    Attributes:
        name: Of the item.
        state: Being worked on, given back, or ended.
        worker: Who wrote the row last.
        beats: Grows with whatever is written.
        failure: Why it failed, where it has ended so.
    """

    name: str
    state: Literal["running", "open", "ended"]
    worker: str
    beats: int
    failure: str


class Taken(NamedTuple):
    """An item that was claimed.

    Attributes:
        name: Of the item.
        before: Its row before, where it was begun already.
    """

    name: str
    before: Row | None


class Claims:
    """The items of one job, as one worker sees them.

    Attributes:
        worker: Name of this worker.
        known: The rows as they were last read, by item.

    Args:
        engine: The database; `connect` makes it.
        job: What tells the job from others in the database. Workers that name it alike share it.
        worker: Name of this worker; any two differ.
        lease: Seconds after which an item whose beats stand still is lost.
    """

    def __init__(
        self, engine: Engine, job: str, worker: str | None = None, lease: float = LEASE
    ) -> None:
        self._engine, self._job, self._lease = engine, _key(job), lease
        self.worker = worker or this_worker()
        self._mine: set[str] = set()
        # Of each row as it was last read, what it held and since when.
        self._seen: dict[str, tuple[tuple[str, int], float]] = {}
        self._looked = self._next_beat = self._next_look = 0.0
        self.known: dict[str, Row] = {}
        patiently(lambda: _CLAIMS.metadata.create_all(engine), RACES)

    def rows(self) -> dict[str, Row]:
        """All items that were ever begun, by name."""
        columns = [_CLAIMS.c[name] for name in Row._fields]
        query = select(*columns).where(_CLAIMS.c.job == self._job)

        def read() -> list[Row]:
            with self._engine.connect() as connection:
                return [Row(*row) for row in connection.execute(query)]

        found = {row.name: row for row in patiently(read)}
        now = time.monotonic()
        if now - self._looked > self._lease / 2:
            self._seen.clear()  # a database that was away had nobody's beats
        self._looked = now
        for row in found.values():
            held = (row.worker, row.beats)
            if self._seen.get(row.name, (None,))[0] != held:
                self._seen[row.name] = held, now
        self.known = found
        return found

    def take(self, wanted: Iterable[str]) -> Taken | None:
        """Claims the first of some items that nobody has; looks at most every `LOOK` seconds.

        Args:
            wanted: Items that are still to be done. One whose row says that it has ended is
                taken, too, if that stays so for a lease: what it left must be gone.

        Returns:
            The item, which is now this worker's; None if others have them all.
        """
        if time.monotonic() < self._next_look:
            return None
        rows = self.rows()
        for name in wanted:
            if name in self._mine:
                continue
            row = rows.get(name)
            if row is None:
                taken = self._begin(name)
            else:
                taken = self._is_free(row) and self._replace(row, "running")
            if taken:
                self._mine.add(name)
                return Taken(name, row)
        self._next_look = time.monotonic() + LOOK
        return None

    def beat(self) -> set[str]:
        """Says that this worker is alive, at most every `BEAT` seconds.

        Returns:
            The items that it has lost to others since, and must leave alone.
        """
        if time.monotonic() < self._next_beat:
            return set()
        self._next_beat = time.monotonic() + BEAT
        self.rows()  # which keeps an eye on the others
        lost = {name for name in self._mine if not self._write_mine(name, "running")}
        self._mine -= lost
        return lost

    def end(self, name: str, failure: str = "") -> bool:
        """Marks an item as done, or as failed; False if it was lost to another worker."""
        return self._leave(name, "ended", failure)

    def give_back(self, *names: str) -> None:
        """Leaves items to others, by default all that this worker has."""
        for name in names or list(self._mine):
            self._leave(name, "open")

    def reopen(self, row: Row) -> None:
        """Opens an item that has ended, if its row is still as it was read."""
        self._replace(row, "open")

    def _begin(self, name: str) -> bool:
        """Writes the first row of an item; False if another was faster."""
        first = Row(name, "running", self.worker, 1, "")
        statement = insert(_CLAIMS).values(job=self._job, item=_key(name), **first._asdict())

        def write() -> bool:
            try:
                with self._engine.begin() as connection:
                    connection.execute(statement)
            except IntegrityError:
                return False
            return True

        return patiently(write)

    def _is_free(self, row: Row) -> bool:
        if row.state == "open":
            return True
        still = time.monotonic() - self._seen[row.name][1]
        return still >= self._lease or (row.state == "running" and has_died(row.worker))

    def _leave(self, name: str, state: str, failure: str = "") -> bool:
        self._mine.discard(name)
        return self._write_mine(name, state, failure)

    def _write_mine(self, name: str, state: str, failure: str = "") -> bool:
        """Writes the row of an item that this worker has; False if it has lost it."""
        ours = (_CLAIMS.c.worker == self.worker) & (_CLAIMS.c.state == "running")
        return self._update(name, ours, state=state, failure=failure)

    def _replace(self, row: Row, state: str) -> bool:
        """Takes over a row, if it is still as it was read."""
        same = (_CLAIMS.c.worker == row.worker) & (_CLAIMS.c.beats == row.beats)
        return self._update(row.name, same, state=state, worker=self.worker, failure="")

    def _update(self, name: str, condition: ColumnElement[bool], **values: str) -> bool:
        statement = (
            update(_CLAIMS)
            .where(_CLAIMS.c.job == self._job, _CLAIMS.c.item == _key(name), condition)
            .values(beats=_CLAIMS.c.beats + 1, **values)
        )

        def write() -> bool:
            with self._engine.begin() as connection:
                return connection.execute(statement).rowcount == 1

        return patiently(write)


def connect(url: str | URL) -> Engine:
    """The database at an address.

    Args:
        url: As a user writes it, or as `file_address` makes it.

    Raises:
        ValueError: If the address is none.
        RuntimeError: If its driver is missing, or the database does not answer.
    """
    if isinstance(url, str):
        address, shown = _address(url), hidden_address(url)
    else:
        address, shown = url, unquote(url.database or "").removeprefix("file:")
    try:
        with unwarned():
            engine = create_engine(address, **engine_settings(address))
        with engine.connect():
            pass
    except NoSuchModuleError as error:
        raise UserError(
            f"there is no kind of database '{address.drivername}'. Write sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/NAME."
        ) from error
    except ImportError as error:
        module = error.name or address.get_driver_name()
        needed = DRIVERS.get(module, module)
        raise UserRuntimeError(f"{shown} needs a driver: pip install '{needed}'") from error
    except (
        SQLAlchemyError,
        TypeError,
        ValueError,
    ) as error:  # as drivers like
        said = _first_line(error)
        for secret in filter(None, (address.password, *address.query.values())):
            said = said.replace(str(secret), "***")
        raise UserRuntimeError(
            f"the database {shown} cannot be opened ({said}). Check the address, and that it can "
            "be reached from here."
        ) from error
    return engine


@contextmanager
def unwarned() -> Iterator[None]:
    """Keeps off the screen that a database ignores settings in its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)
        yield


@contextmanager
def connected(url: str | URL) -> Iterator[Engine]:
    """The database at an address, as `connect` gives it, until the block ends."""
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _address(url: str) -> URL:
    try:
        address, torn = make_url(url), is_torn(url)
    except (ArgumentError, ValueError) as error:  # the second of a port that is no number
        plain = "://" in url or not {"@", "="} & set(url)
        shown = hidden_address(url) if plain else "what is given"
        raise UserError(
            f"'{shown}' is no address of a database. Write sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/NAME."
        ) from error
    if torn and address.get_backend_name() != "sqlite":
        raise UserError(
            f"the address {hidden_address(url)} has a '@' in its host or database. Within a name "
            "or a password, write %40 for '@' and %2F for '/'."
        )
    if address.drivername in ("postgres", "postgresql"):
        return address.set(drivername="postgresql+psycopg")
    return address


def engine_settings(address: URL) -> dict[str, Any]:
    """How any connection of ours is made.

    SQLite lets one process write at a time and tells others at once that it is busy, unless they
    say how long they would wait. Its faster journal (WAL) is left off, as it does not work on
    shared disks.
    """
    if address.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}
    return {"pool_pre_ping": True}  # a connection may have been closed while a run was training


def patiently(call: Callable[[], T], pauses: Iterable[float] | None = None) -> T:
    """Calls what speaks with the database, several times if it cannot be reached.

    Args:
        call: What to call.
        pauses: Seconds before it is called again, here whatever the error.

    Raises:
        RuntimeError: If it goes on failing.
    """
    passing = (OperationalError, InterfaceError) if pauses is None else DBAPIError
    for pause in PAUSES if pauses is None else pauses:
        try:
            return call()
        except passing:
            time.sleep(pause)
    try:
        return call()
    except DBAPIError as error:
        raise UserRuntimeError(
            f"the database does not do as asked ({_first_line(error)}). The same command goes on "
            "where this one was."
        ) from error


def _first_line(error: Exception) -> str:
    said = error.orig if isinstance(error, DBAPIError) else error
    return str(said).strip().partition("\n")[0]


def _key(text: str) -> str:
    """Of any length; database keys are short."""
    return sha256(text.encode()).hexdigest()


@cache
def this_worker() -> str:
    """A name for this process that no other has, on any machine: HOST:NUMBER and what it needs."""
    number = os.getpid()
    return f"{socket.gethostname()[:64]}:{number} {_started(number)} {_place()}"


def has_died(worker: str) -> bool:
    """Whether a worker is a process of this machine that has ended; False if nobody can know."""
    name, _, life = worker.partition(" ")
    started, _, place = life.partition(" ")
    number = name.rpartition(":")[2]
    return place == _place() and number.isdecimal() and _started(int(number)) != started


@cache
def _place() -> str:
    """What processes share that see each other: a boot of a machine or container, and a user."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except OSError:  # no Linux: nobody can look
        return uuid4().hex


def _started(number: int) -> str:
    """When a process began, in ticks since the boot; empty if there is none, or it has ended."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
