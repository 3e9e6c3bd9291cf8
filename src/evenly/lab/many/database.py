"""The database that commands on any number of machines share: how to name and reach it."""

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
"""Seconds before a failed statement is retried, since servers restart and networks fail."""
RACES = (0.1, 0.2, 0.5, 1.0)
"""The same for creating tables, which fails for all but the first."""
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""What to install for a driver, by its import name, if that differs."""
UTC = {"postgresql": "SET TIME ZONE 'UTC'", "mysql": "SET time_zone = '+00:00'"}
"""A statement for each database that sets its clock to UTC, the same for all and without jumps."""


def reached(url: str | URL) -> URL:
    """The address of a database that answers.

    Args:
        url: An address as a user writes it, or from `file_address`.

    Raises:
        ValueError: If it is not an address.
        RuntimeError: If its driver is missing, or the database does not answer.
    """
    if isinstance(url, str):
        address, shown = _address(url), hidden_address(url)
    else:
        address, shown = url, unquote(url.database or "").removeprefix("file:")
    try:
        with unwarned(SAWarning):  # warns that a setting in the address is ignored
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
    ) as error:  # drivers raise what they like
        said = _first_line(error)
        for secret in filter(None, (address.password, *address.query.values())):
            said = said.replace(str(secret), "***")
        raise UserRuntimeError(
            f"cannot open the database {shown} ({said}). Check the address and the connection."
        ) from error
    return address


@contextmanager
def unwarned(kind: type[Warning]) -> Iterator[None]:
    """Suppresses warnings of a kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kind)
        yield


def _address(url: str) -> URL:
    try:
        address, torn = make_url(url), is_torn(url)
    except (ArgumentError, ValueError) as error:  # the second for a port that is not a number
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
    """Settings for all our connections.

    SQLite lets one process write at a time and immediately tells others that it is busy, unless
    they say how long to wait. Its faster journal (WAL) stays off, since it does not work on shared
    disks.
    """
    if address.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}
    return {"pool_pre_ping": True}  # a connection may have closed while a run was training


def make_exact(engine: Engine) -> None:
    """Gives a database what Optuna takes for granted, but not every database has.

    A trial changes hands through a lock on its row, which SQLite lacks: there, a transaction must
    lock the whole file from its first statement. And heartbeats are written in local time, which
    jumps.
    """
    kind = engine.dialect.name
    if kind == "sqlite":
        event.listen(engine, "connect", _let_transactions_be)
        event.listen(engine, "begin", _begin)
    elif kind in UTC:
        event.listen(engine, "connect", _in_utc(UTC[kind]))
    engine.dispose()  # drops connections made before


def _let_transactions_be(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _in_utc(statement: str) -> Callable[[Any, object], None]:
    def listener(connection: Any, _: object) -> None:
        connection.cursor().execute(statement)
        connection.commit()

    return listener


def patiently(call: Callable[[], T], pauses: Iterable[float] | None = None) -> T:
    """Calls a function that uses the database, several times if that cannot be reached.

    Args:
        call: The function.
        pauses: Seconds before each retry, here whatever the error.

    Raises:
        RuntimeError: If it keeps failing.
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
