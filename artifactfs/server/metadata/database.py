"""The metadata database as everybody sees it: transactions, and how the event loop waits for them.

The statements are the same for both engines (`sqlite`, `postgres`): SQL that both know, with named
parameters. SQLite, the default, is a file: reads are indexed point queries on a connection of their
own and are made right in the event loop (tens of microseconds); each write is one transaction in a
worker thread. PostgreSQL is across a network and shared by several servers, so everything is asked
of it in threads. On either, one transaction that writes runs at a time, and it is on the disk
before it returns: what a client was told survives a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import trio

T = TypeVar("T")
Row = dict[str, Any]
Params = Mapping[str, Any]
Engines = Literal["sqlite", "postgresql"]

NOTHING: Params = {}
CONNECTIONS = 12
"""Of one process to PostgreSQL; its default is 100 for all."""


class DatabaseError(Exception):
    """The engine refuses, or cannot. The text is its own first line, without any values."""


class DatabaseAway(DatabaseError):
    """It cannot be reached, or has no time: later it can be tried again."""


class RefusedValue(DatabaseError):
    """A value cannot be stored, such as text with a NUL."""


def insertion(table: str, columns: Iterable[str]) -> str:
    """The statement that adds a row. The names are ours, never a client's."""
    names = tuple(columns)
    values = ", ".join(f":{name}" for name in names)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})"


class Transaction(Protocol):
    """Statements on one connection. Parameters are named: ``:name``. Raises: DatabaseError."""

    @property
    def engine(self) -> Engines: ...

    def rows(self, sql: str, params: Params = NOTHING) -> list[Row]:
        """All rows of a query as dicts."""

    def row(self, sql: str, params: Params = NOTHING) -> Row | None:
        """The first row of a query, None without one."""

    def batches(self, sql: str, size: int) -> Iterator[list[Row]]:
        """The rows of a large query, `size` at a time."""

    def run(self, sql: str, params: Params | Sequence[Params] = NOTHING) -> int:
        """Change something, with several `params` once for each; how many rows it concerned."""

    @property
    def raw(self) -> Any:
        """The connection of the driver, for what only one engine has."""


class Database(Protocol):
    """One database. It blocks: servers use it through a `Store`, commands as it is."""

    @property
    def engine(self) -> Engines: ...

    def read(self, query: Callable[[Transaction], T]) -> T:
        """Run a query. Raises: DatabaseError."""

    def write(self, change: Callable[[Transaction], T]) -> T:
        """Run `change` as one transaction: whole, or on an exception absent.

        Raises: DatabaseError. Of DatabaseAway it is not known whether it was done.
        """

    def snapshot(self, query: Callable[[Transaction], T]) -> T:
        """Run queries that all see the same state. Raises: DatabaseError."""

    def close(self) -> None: ...


class Store:
    """A database as the event loop uses it."""

    def __init__(self, reader: Database, writer: Database) -> None:
        """`reader` and `writer`: two connections to a file, or twice the same pool."""
        self._reader = reader
        self._writer = writer
        self._at_once = reader.engine == "sqlite"
        self._turns = trio.CapacityLimiter(1 if self._at_once else CONNECTIONS - 2)

    @property
    def engine(self) -> Engines:
        return self._reader.engine

    async def rows(self, sql: str, params: Params = NOTHING) -> list[Row]:
        """All rows of a query as dicts. It is short: with SQLite the loop waits for it.

        Raises: DatabaseError.
        """
        if self._at_once:
            return self._reader.read(lambda tx: tx.rows(sql, params))
        return await self.read(lambda tx: tx.rows(sql, params))

    async def row(self, sql: str, params: Params = NOTHING) -> Row | None:
        """The first row of a short query, None without one. Raises: DatabaseError."""
        if self._at_once:
            return self._reader.read(lambda tx: tx.row(sql, params))
        return await self.read(lambda tx: tx.row(sql, params))

    async def write(self, change: Callable[[Transaction], T]) -> T:
        """Run `change` as one transaction in a thread; it is on disk when this returns.

        Not cancellable once it began: the transaction is then either whole or, on an exception
        of `change`, absent. Raises: DatabaseError.
        """
        return await trio.to_thread.run_sync(self._writer.write, change, limiter=self._turns)

    async def read(self, query: Callable[[Transaction], T]) -> T:
        """Run a query that may take long without holding up the event loop.

        Raises: DatabaseError.
        """
        return await trio.to_thread.run_sync(self._writer.read, query, limiter=self._turns)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
