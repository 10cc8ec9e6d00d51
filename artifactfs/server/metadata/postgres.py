"""A database of PostgreSQL, by SQLAlchemy and psycopg: for several servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, TextClause, create_engine, text
from sqlalchemy.engine import URL, CursorResult
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from artifactfs.errors import StateError
from artifactfs.server.metadata.database import (
    CONNECTIONS,
    NOTHING,
    DatabaseAway,
    DatabaseError,
    Engines,
    Params,
    RefusedValue,
    Row,
    T,
    Transaction,
)
from artifactfs.server.metadata.migrations import Migrations

CONNECT_S = 5
_WRITE_KEY = {"key": 0x61727466}
"""The advisory lock that makes transactions that write run one at a time."""
_OPTIONS = {
    "statement_timeout": "60s",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "20s",
    # Who is gone without a word (its machine lost power) loses what it held after 15 s.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
    "client_min_messages": "warning",
}


@lru_cache(maxsize=1_024)
def _statement(sql: str) -> TextClause:
    return text(sql)


@contextmanager
def translated() -> Iterator[None]:
    """Raises: DatabaseError for those of SQLAlchemy."""
    try:
        yield
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()
        first = said[0] if said else type(error).__name__
        if isinstance(error, (OperationalError, InterfaceError, PoolTimeout)):
            raise DatabaseAway(first) from error
        raise (RefusedValue if isinstance(error, DataError) else DatabaseError)(first) from error


class _Statements:
    """See `database.Transaction`."""

    __slots__ = ("_connection",)
    engine: Engines = "postgresql"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _execute(self, sql: str, params: Params | Sequence[Params]) -> CursorResult[Any]:
        return self._connection.execute(_statement(sql), params)

    def rows(self, sql: str, params: Params = NOTHING) -> list[Row]:
        return [row._asdict() for row in self._execute(sql, params)]

    def row(self, sql: str, params: Params = NOTHING) -> Row | None:
        found = self._execute(sql, params).first()
        return None if found is None else found._asdict()

    def batches(self, sql: str, size: int) -> Iterator[list[Row]]:
        result = self._connection.execute(_statement(sql), execution_options={"yield_per": size})
        for rows in result.partitions():
            yield [row._asdict() for row in rows]

    def run(self, sql: str, params: Params | Sequence[Params] = NOTHING) -> int:
        if isinstance(params, Sequence) and not params:
            return 0
        return self._execute(sql, params).rowcount

    @property
    def raw(self) -> Any:
        return self._connection.connection.dbapi_connection


def postgres_engine(url: URL, *, connections: int = CONNECTIONS) -> Engine:
    """Connections to PostgreSQL that notice when its end is gone. Opens none."""
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=10,
        connect_args={
            "connect_timeout": CONNECT_S,
            "application_name": "artifacts-server",
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": 15_000,
            "options": " ".join(f"-c {name}={value}" for name, value in _OPTIONS.items()),
        },
    )


class Postgres:
    """A database of PostgreSQL, on a pool of connections."""

    engine: Engines = "postgresql"

    def __init__(self, url: URL, *migrations: Migrations, migrate: bool = False) -> None:
        """`migrate`: bring the schema up to date. Otherwise one that lacks something is refused;
        one that has more is of a newer version, and made so that this one still works.

        Raises: StateError.
        """
        self._engine = postgres_engine(url)
        self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        shown = url.render_as_string(hide_password=True)
        try:
            if migrate:
                for each in migrations:
                    self.write(each.apply)
            missing = [name for each in migrations for name in self.read(each.missing)]
        except DatabaseError as error:
            self._engine.dispose()
            raise StateError(f"{shown} cannot be used: {error}") from error
        if missing:
            self._engine.dispose()
            raise StateError(
                f"{shown} has not the tables of this version",
                hint="artifacts-server migrate makes them; --help says how to name the database",
            )

    def read(self, query: Callable[[Transaction], T]) -> T:
        with translated():
            try:
                with self._reading.connect() as connection:
                    return query(_Statements(connection))
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            # PostgreSQL was started anew since this connection was made; the others of the pool
            # are dropped now.
            with self._reading.connect() as connection:
                return query(_Statements(connection))

    def write(self, change: Callable[[Transaction], T]) -> T:
        with translated(), self._locked() as connection:
            result = change(_Statements(connection))
            connection.commit()
            return result

    def _locked(self) -> Connection:
        """A connection within a transaction that is the only one that writes."""
        for last in (False, True):
            connection = self._engine.connect()
            try:
                connection.execute(_statement("SELECT pg_advisory_xact_lock(:key)"), _WRITE_KEY)
                return connection
            except DBAPIError as error:
                connection.close()
                if last or not error.connection_invalidated:
                    raise
        raise AssertionError("unreachable")

    def snapshot(self, query: Callable[[Transaction], T]) -> T:
        engine = self._engine.execution_options(isolation_level="REPEATABLE READ")
        with translated(), engine.connect() as connection:
            return query(_Statements(connection))

    def close(self) -> None:
        self._engine.dispose()


class Session:
    """One connection that stays, for locks that end with it. Each statement is by itself."""

    def __init__(self, url: URL) -> None:
        """Raises: DatabaseError."""
        self._engine = postgres_engine(url, connections=1)
        with translated():
            self._connection = self._engine.connect().execution_options(
                isolation_level="AUTOCOMMIT"
            )

    def row(self, sql: str, params: Params = NOTHING) -> Row | None:
        """Raises: DatabaseError."""
        with translated():
            return _Statements(self._connection).row(sql, params)

    def close(self) -> None:
        """However it is: PostgreSQL lets go of its locks."""
        with suppress(SQLAlchemyError):
            self._connection.invalidate()
            self._connection.close()
        self._engine.dispose()
