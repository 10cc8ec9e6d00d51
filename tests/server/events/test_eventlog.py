"""Events on their way to disk: a write under way, a caller who is cancelled, a server that ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import trio
import trio.testing

from artifactfs.server.cluster.standing import Alone
from artifactfs.server.events.eventlog import EventLog
from artifactfs.server.events.events import Event, Notice
from artifactfs.server.events.metrics import Metrics
from artifactfs.server.events.webhooks import Webhooks
from artifactfs.server.metadata.database import (
    Database,
    Engines,
    Store,
    Transaction,
    insertion,
)

T = TypeVar("T")


class Held:
    """A database whose reads of the namespaces, which come before each write, wait for `go`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = threading.Event()
        self.go = threading.Event()

    @property
    def engine(self) -> Engines:
        return self._database.engine

    def read(self, query: Callable[[Transaction], T]) -> T:
        self.asked.set()
        assert self.go.wait(60)
        return self._database.read(query)

    def write(self, change: Callable[[Transaction], T]) -> T:
        return self._database.write(change)

    def snapshot(self, query: Callable[[Transaction], T]) -> T:
        return self._database.snapshot(query)

    def close(self) -> None:
        self._database.close()


def log_of(database: Database, held: Held) -> EventLog:
    metadata, metrics = Store(held, held), Metrics()
    webhooks = Webhooks(metadata, metrics, Alone(), allow_private=False)
    return EventLog(Store(database, database), metadata, metrics, webhooks)


def written(database: Database) -> list[str]:
    rows = database.read(lambda tx: tx.rows("SELECT repository FROM events ORDER BY repository"))
    return [row["repository"] for row in rows]


def test_who_flushes_finds_also_what_another_flush_is_writing(database: Database) -> None:
    held = Held(database)
    found: list[str] = []

    async def main() -> None:
        events = log_of(database, held)
        events.record(Event("acc", "ns", "one", "create", 1.0))

        async def flush_and_look() -> None:
            await events.flush()
            found.extend(written(database))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(events.flush)
            await trio.to_thread.run_sync(held.asked.wait, 60)
            nursery.start_soon(flush_and_look)
            await trio.testing.wait_all_tasks_blocked(0.05)
            held.go.set()

    trio.run(main)
    assert found == ["one"]


def test_a_flush_whose_caller_is_cancelled_loses_nothing(database: Database) -> None:
    held = Held(database)

    async def main() -> None:
        events = log_of(database, held)
        events.record(Event("acc", "ns", "one", "create", 1.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(events.flush)
            await trio.to_thread.run_sync(held.asked.wait, 60)
            nursery.cancel_scope.cancel()
            held.go.set()
        events.record(Event("acc", "ns", "two", "create", 1.0))
        await events.flush()

    trio.run(main)
    assert written(database) == ["one", "two"]


def test_what_is_to_be_told_when_the_server_ends_is_told_after_its_next_start(
    database: Database,
) -> None:
    hook = {"id": "h", "account_id": "acc", "namespace": None, "url": "http://127.0.0.1:9/"}
    hook |= {"secret": "whsec_x", "events": "pushed", "created_at": 1}
    database.write(lambda tx: tx.run(insertion("webhooks", hook), hook))

    async def main() -> None:
        store = Store(database, database)
        webhooks = Webhooks(store, Metrics(), Alone(), allow_private=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(webhooks.run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            webhooks.notify(Notice("acc", "ns", "repo", "pushed", {"ref": "refs/heads/main"}))
            nursery.cancel_scope.cancel()

    trio.run(main)
    rows = database.read(lambda tx: tx.rows("SELECT webhook_id, body FROM deliveries"))
    assert [row["webhook_id"] for row in rows] == ["h"] and "refs/heads/main" in rows[0]["body"]
