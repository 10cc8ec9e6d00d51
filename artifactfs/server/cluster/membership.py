"""One of several servers: its row, its lock, and what happens when the connection breaks.

The times fit together: a server notices within `_BEAT_S` + `_ANSWER_S` that it is lost, and ends
its git processes within four seconds more. PostgreSQL notices a machine that is gone after 15 s,
a process at once; only `GRACE_S` after that do others take over.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

import artifactfs
from artifactfs.errors import StateError
from artifactfs.server.cluster.standing import LocalLocks, Lost
from artifactfs.server.metadata import tokens
from artifactfs.server.metadata.catalog import insert
from artifactfs.server.metadata.clock import now_ms, ticks
from artifactfs.server.metadata.database import DatabaseError, Store, Transaction
from artifactfs.server.storage.open_marks import OpenMarks
from artifactfs.server.storage.settings import DataLayout

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from artifactfs.server.metadata.postgres import Session

log = logging.getLogger(__name__)

GRACE_S = 10.0
_BEAT_S = 1.0
_ANSWER_S = 5.0
_AGAIN_S = 1.0
_SEEN_S = 0.1
_LOCK_POLL_S = 0.05

T = TypeVar("T")


def lock_key(name: str) -> int:
    """The number of an advisory lock."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def server_lock(server_id: str) -> int:
    """The lock that a server has for as long as it is there."""
    return lock_key(f"server {server_id}")


class Member:
    """This server among others. While it is lost, it joins again under a new id."""

    shared = True

    def __init__(self, url: URL, store: Store, marks: OpenMarks, folder: Path) -> None:
        """`folder`: where each server has the folder of its marks."""
        self._url = url
        self._store = store
        self._marks = marks
        self._folder = folder
        self._session: Session | None = None
        self._turn = trio.CapacityLimiter(1)
        self._owner: str | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._locks = LocalLocks()
        self._looking = trio.Lock()
        self._seen = -_SEEN_S

    @property
    def owner(self) -> str | None:
        return self._owner

    @contextmanager
    def working(self) -> Iterator[str | None]:
        if self._owner is None:
            raise Lost("this server has lost its database")
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield self._owner
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise Lost("this server has lost its database")

    @asynccontextmanager
    async def only_one(self, name: str) -> AsyncIterator[None]:
        key = lock_key(name)
        async with self._locks.hold(name):
            mine = self._session
            if not await self.try_lock(key):
                async for _ in ticks(_LOCK_POLL_S):
                    if await self.try_lock(key):
                        break
            try:
                yield
            finally:
                if self._session is mine:
                    with trio.CancelScope(shield=True):
                        await self.unlock(key)

    async def try_lock(self, key: int) -> bool:
        """Take an advisory lock unless another server has it. Raises: Lost."""
        return bool(await self._ask("SELECT pg_try_advisory_lock(:key) AS done", key=key))

    async def unlock(self, key: int) -> None:
        """Let go of it; if the connection is gone, so is the lock."""
        try:
            await self._ask("SELECT pg_advisory_unlock(:key) AS done", key=key)
        except Lost:
            log.info("a lock ended with its connection")

    async def _ask(self, sql: str, **params: int | str) -> object:
        """The column ``done`` of one row, on the connection that has our locks. Raises: Lost."""
        session = self._session
        if session is None:
            raise Lost("this server has lost its database")
        try:
            row = await self._in_thread(lambda: session.row(sql, params))
        except (DatabaseError, trio.TooSlowError) as error:
            self._lose(session, str(error) or "it does not answer")
            raise Lost("this server has lost its database") from None
        return None if row is None else row["done"]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Raises: trio.TooSlowError; then the thread ends when the network says so."""
        with trio.fail_after(_ANSWER_S):
            return await trio.to_thread.run_sync(work, limiter=self._turn, abandon_on_cancel=True)

    def check(self, tx: Transaction, owner: str | None) -> None:
        sql = "SELECT 1 AS one FROM servers WHERE id = :id FOR KEY SHARE"
        if owner is None or tx.row(sql, {"id": owner}) is None:
            raise Lost("another server has taken over")

    async def may_publish(self, owner: str | None) -> bool:
        if owner is None or owner != self._owner:
            return False
        try:
            await self._store.read(lambda tx: self.check(tx, owner))
        except (DatabaseError, Lost) as error:
            log.warning("a push is not taken: %s", error)
            return False
        return owner == self._owner

    async def join(self) -> None:
        """Begin to be there. Raises: StateError."""
        try:
            await self._join()
        except (DatabaseError, OSError) as error:
            raise StateError(f"this server cannot join the others: {error}") from error

    async def run(self) -> None:
        """Stay, and come back when the connection was lost, until cancelled."""
        while True:
            try:
                if self._session is None:
                    await self._join()
                async for _ in ticks(_BEAT_S):
                    if not await self._still_here():
                        break
            except (DatabaseError, OSError):
                await trio.sleep(_AGAIN_S)
            finally:
                if self._session is not None:
                    await self._leave(self._session)

    async def is_here(self) -> bool:
        """What the last beat saw may be a second old. Anybody may ask, so not each is a query."""
        async with self._looking:
            if trio.current_time() > self._seen + _SEEN_S:
                return await self._still_here()
        return self._owner is not None

    async def _still_here(self) -> bool:
        session, owner = self._session, self._owner
        began = trio.current_time()
        try:
            done = await self._ask("SELECT 1 AS done FROM servers WHERE id = :id", id=owner or "")
        except Lost:
            return False
        if done is None and session is not None:
            self._lose(session, "another server has taken over")
            return False
        self._seen = began
        return True

    async def _join(self) -> None:
        from artifactfs.server.metadata.postgres import Session

        owner = tokens.new_id()
        folder = self._folder / owner

        def join() -> Session:
            session = Session(self._url)
            try:
                session.row("SELECT pg_advisory_lock(:key) AS done", {"key": server_lock(owner)})
                self._folder.mkdir(mode=0o700, exist_ok=True)
                folder.mkdir(mode=0o700)
            except BaseException:
                session.close()
                raise
            return session

        def add(tx: Transaction) -> None:
            insert(
                tx,
                "servers",
                id=owner,
                host=socket.gethostname(),
                process=str(os.getpid()),
                version=artifactfs.__version__,
                started_at=now_ms(),
            )

        self._turn = trio.CapacityLimiter(1)  # a thread of before may still wait
        session = await trio.to_thread.run_sync(join)
        try:
            await self._store.write(add)
        except BaseException:
            session.close()
            raise
        self._marks.begin(folder)
        self._session, self._owner = session, owner
        log.info("this server is %s", owner)

    def _lose(self, session: Session, reason: str) -> None:
        """End what others may take over. They find the marks of what was under way."""
        if self._session is not session:
            return
        log.error("this server has lost its database: %s", reason)
        self._session, self._owner = None, None
        for scope in list(self._scopes):
            scope.cancel()
        trio.lowlevel.spawn_system_task(_close, session)

    async def _leave(self, session: Session) -> None:
        """Go in order: what left no mark needs nobody to look at it."""
        owner = self._owner
        with trio.CancelScope(shield=True):
            try:
                await self._marks.sync()
                (self._folder / str(owner)).rmdir()
                await self._store.write(partial(_sign_off, owner=owner))
            except (OSError, DatabaseError) as error:
                log.info("another server looks at what is left: %s", error)
            self._session, self._owner = None, None
            await _close(session)


def _sign_off(tx: Transaction, *, owner: str | None) -> None:
    """What was not done is for the others."""
    mine = {"owner": owner}
    tx.run("UPDATE deliveries SET owner = NULL WHERE owner = :owner", mine)
    tx.run("UPDATE repos SET owner = NULL WHERE owner = :owner", mine)
    tx.run("DELETE FROM servers WHERE id = :owner", mine)


async def _close(session: Session) -> None:
    await trio.to_thread.run_sync(session.close, abandon_on_cancel=True)


@contextmanager
def only_command(layout: DataLayout, url: URL | None, name: str) -> Iterator[Path]:
    """For a command beside the servers: where its marks are. With several servers only one such
    command runs, and if it is killed, they look after what it left. Raises: StateError."""
    if url is None:
        yield layout.open
        return
    from artifactfs.server.metadata.postgres import Session

    session = Session(url)
    mine = f"{name}-{tokens.new_id()}"
    folder = layout.open / mine
    try:
        for key in (lock_key(name), server_lock(mine)):
            row = session.row("SELECT pg_try_advisory_lock(:key) AS done", {"key": key})
            if row is None or not row["done"]:
                raise StateError(f"another {name} is running")
        layout.open.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        yield folder
        with suppress(OSError):  # it is not empty: a server looks at it
            folder.rmdir()
    finally:
        session.close()
