"""What a server may do at this moment, alone on its data or as one of several."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Protocol

import trio

from artifactfs.server.metadata.database import Transaction


class Lost(Exception):
    """The connection that said that we are here is gone: others may have taken over."""


class Standing(Protocol):
    """See `Alone` and `membership.Member`."""

    @property
    def owner(self) -> str | None:
        """The id that is stored with work of ours. None: we are alone, or lost."""

    async def is_here(self) -> bool:
        """Whether requests can be served, as of now."""

    @property
    def shared(self) -> bool:
        """Whether there may be others."""

    def working(self) -> AbstractContextManager[str | None]:
        """While this lasts, something is done that others would take over: it is cancelled when
        they may. Yields the id. Raises: Lost."""

    def only_one(self, name: str) -> AbstractAsyncContextManager[None]:
        """Wait until nobody else, here or on another server, is in a block of that name.

        Raises: Lost.
        """

    def check(self, tx: Transaction, owner: str | None) -> None:
        """Within a transaction that publishes what `owner` did. Raises: Lost."""

    async def may_publish(self, owner: str | None) -> bool:
        """Whether what `owner` did may be published in the next seconds."""


class LocalLocks:
    """Locks by name within this process."""

    def __init__(self) -> None:
        self._locks: dict[str, trio.Lock] = {}

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(name, trio.Lock())
        async with lock:
            try:
                yield
            finally:
                if lock.statistics().tasks_waiting == 0:
                    self._locks.pop(name, None)


class Alone:
    """The only server of a data folder, which it has locked."""

    owner: str | None = None
    shared = False

    def __init__(self) -> None:
        self._locks = LocalLocks()

    async def is_here(self) -> bool:
        return True

    @contextmanager
    def working(self) -> Iterator[str | None]:
        yield None

    def only_one(self, name: str) -> AbstractAsyncContextManager[None]:
        return self._locks.hold(name)

    def check(self, tx: Transaction, owner: str | None) -> None:
        pass

    async def may_publish(self, owner: str | None) -> bool:
        return True
