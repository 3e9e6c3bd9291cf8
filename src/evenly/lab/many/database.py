"""The database that commands share, on any number of machines: how it is named and reached."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SAWarning,
    SQLAlchemyError,
)

from evenly.errors import UserError, UserRuntimeError
from evenly.hidden import hidden_address, is_torn

T = TypeVar("T")

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0)
"""Seconds before a failed statement is tried again, as servers restart and networks have holes."""
RACES = (0.1, 0.2, 0.5, 1.0)
"""The same where tables are made, which fails for whoever is not the first."""
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""By the name under which a driver is imported, what to install, where that is called otherwise."""
UTC = {"postgresql": "SET TIME ZONE 'UTC'", "mysql": "SET time_zone = '+00:00'"}
"""By database, what has its clock tell the same to everybody, and go on when clocks are put."""


def reached(url: str | URL) -> URL:
    """The address of a database that answers.

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
        with unwarned(SAWarning):  # that a setting in the address is ignored
            engine = create_engine(address, **engine_settings(address))
        with engine.connect():
            pass
        engine.dispose()
    except NoSuchModuleError as error:
        raise UserError(
            f"unknown kind of database '{address.drivername}'. Write sqlite:///FILE or "
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
            f"cannot open the database {shown} ({said}). Check the address and the connection."
        ) from error
    return address


@contextmanager
def unwarned(kind: type[Warning]) -> Iterator[None]:
    """Keeps warnings of a kind off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kind)
        yield


def _address(url: str) -> URL:
    try:
        address, torn = make_url(url), is_torn(url)
    except (ArgumentError, ValueError) as error:  # the second of a port that is no number
        plain = "://" in url or not {"@", "="} & set(url)
        shown = hidden_address(url) if plain else "what is given"
        raise UserError(
            f"'{shown}' is not a database address. Write sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/NAME."
        ) from error
    if torn and address.get_backend_name() != "sqlite":
        raise UserError(
            f"the address {hidden_address(url)} has a '@' in its host or database. In names and "
            "passwords, write %40 for '@' and %2F for '/'."
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


def make_exact(engine: Engine) -> None:
    """Gives a database what Optuna takes for granted, and not every one has by itself.

    A trial changes hands by a lock on its row, which SQLite lacks: a transaction there has the
    whole file from its first word on. And heartbeats are written in local time, which jumps.
    """
    kind = engine.dialect.name
    if kind == "sqlite":
        event.listen(engine, "connect", _let_transactions_be)
        event.listen(engine, "begin", _begin)
    elif kind in UTC:
        event.listen(engine, "connect", _in_utc(UTC[kind]))
    engine.dispose()  # of connections made before


def _let_transactions_be(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver begins none


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _in_utc(statement: str) -> Callable[[Any, object], None]:
    def listener(connection: Any, _: object) -> None:
        connection.cursor().execute(statement)
        connection.commit()

    return listener


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
            f"the database failed ({_first_line(error)}). Run the same command again to continue."
        ) from error


def _first_line(error: Exception) -> str:
    said = error.orig if isinstance(error, DBAPIError) else error
    return str(said).strip().partition("\n")[0]
