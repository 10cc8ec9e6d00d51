"""Events and usage on disk: recorded in memory, written in batches, kept for 31 days.

Usage is two figures a day, account and namespace: how many operations, and the peak of the bytes
stored. They are kept for good.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import trio

from artifactfs.server.events.events import Event, Notice
from artifactfs.server.events.metrics import Metrics
from artifactfs.server.events.webhooks import Webhooks
from artifactfs.server.metadata.clock import day_of, now_ms
from artifactfs.server.metadata.database import DatabaseError, Store, Transaction, insertion

log = logging.getLogger(__name__)

KEPT_DAYS = 31
DAY_MS = 86_400_000
_FLUSH_S = 0.5
_STORAGE_S = 10.0
_PRUNE_S = 3_600.0
_MAX_PENDING = 100_000
_MESSAGE_CHARS = 500

_EVENT = (
    *("at", "account_id", "namespace", "repository"),
    *("kind", "type", "error_message", "duration_ms"),
)
_STORED = """
    SELECT namespaces.account_id, namespaces.name AS namespace,
        coalesce((SELECT sum(own_bytes) FROM repos WHERE repos.namespace = namespaces.name), 0)
        + coalesce((SELECT sum(bytes) FROM pools WHERE id IN (
            SELECT pool_id FROM repo_pools JOIN repos ON repos.id = repo_id
            WHERE repos.namespace = namespaces.name)), 0) AS stored
    FROM namespaces
"""


@dataclass(frozen=True, slots=True)
class _Stored:
    account_id: str
    namespace: str
    bytes: int


class EventLog:
    """Where operations are reported, and what writes them down."""

    def __init__(self, store: Store, metadata: Store, metrics: Metrics, webhooks: Webhooks) -> None:
        self.store = store
        self._metadata = metadata
        self._metrics = metrics
        self._webhooks = webhooks
        self._pending: list[Event] = []
        self._flushing = trio.Lock()
        self._measured = -_STORAGE_S
        self._failing = False

    def record(self, event: Event) -> None:
        """Note an operation; it is on disk within a second."""
        self._metrics.operation(event)
        if len(self._pending) < _MAX_PENDING:
            self._pending.append(event)

    def notify(self, notice: Notice) -> None:
        """Tell subscribers."""
        self._webhooks.notify(notice)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write events down until cancelled; what is pending then is still written."""
        task_status.started()
        pruned = -_PRUNE_S
        try:
            while True:
                await trio.sleep(_FLUSH_S)
                await self.flush()
                if trio.current_time() - pruned > _PRUNE_S:
                    pruned = trio.current_time()
                    await self._prune_or_log()
        finally:
            with trio.CancelScope(shield=True):
                await self.flush()
            self.store.close()

    async def flush(self) -> None:
        """Write what is pending, also what another call has taken up before this one.

        If the disk is full, it stays pending.
        """
        async with self._flushing:
            with trio.CancelScope(shield=True):  # what is taken here is nowhere else
                await self._write_pending()

    async def _write_pending(self) -> None:
        events, self._pending = self._pending, []
        try:
            stored = await self._stored()
            if events or stored:
                await self.store.write(lambda tx: _write(tx, events, stored))
        except DatabaseError as error:
            self._pending = [*events, *self._pending][:_MAX_PENDING]
            if not self._failing:
                log.error("events cannot be written: %s", error)
            self._failing = True
        except Exception:
            # They would fail again; better without them than without a server.
            log.exception("%d events are lost", len(events))
        else:
            self._failing = False

    async def _stored(self) -> list[_Stored]:
        """Bytes stored by namespace, looked up every ten seconds."""
        if trio.current_time() - self._measured < _STORAGE_S:
            return []
        self._measured = trio.current_time()
        rows = await self._metadata.read(lambda tx: tx.rows(_STORED))
        return [_Stored(row["account_id"], row["namespace"], int(row["stored"])) for row in rows]

    async def _prune_or_log(self) -> None:
        try:
            await self.prune(now_ms() - KEPT_DAYS * DAY_MS)
        except DatabaseError as error:
            log.error("old events cannot be removed: %s", error)

    async def prune(self, before: int) -> None:
        """Forget events older than this time."""
        await self.store.write(
            lambda tx: tx.run("DELETE FROM events WHERE at < :before", {"before": before})
        )


def _storable(text: str) -> str:
    """What git says may name a ref in any bytes, and at any length."""
    return text[:_MESSAGE_CHARS].replace("\0", "?").encode("utf-8", "replace").decode()


def _write(tx: Transaction, events: list[Event], stored: list[_Stored]) -> None:
    tx.run(
        insertion("events", _EVENT),
        [
            {
                "at": event.at,
                "account_id": event.account_id,
                "namespace": _storable(event.namespace),
                "repository": _storable(event.repository),
                "kind": event.kind,
                "type": event.event_type,
                "error_message": _storable(event.error_message),
                "duration_ms": event.duration_ms,
            }
            for event in events
        ],
    )
    operations = Counter(
        (day_of(event.at), event.account_id, event.namespace)
        for event in events
        if event.kind == "action"
    )
    tx.run(
        insertion("usage", ("day", "account_id", "namespace", "operations"))
        + " ON CONFLICT (day, account_id, namespace)"
        " DO UPDATE SET operations = usage.operations + excluded.operations",
        [
            {"day": day, "account_id": account, "namespace": namespace, "operations": count}
            for (day, account, namespace), count in sorted(operations.items())
        ],
    )
    today = day_of(now_ms())
    tx.run(
        insertion("usage", ("day", "account_id", "namespace", "peak_bytes"))
        + " ON CONFLICT (day, account_id, namespace) DO UPDATE SET peak_bytes ="
        " CASE WHEN excluded.peak_bytes > usage.peak_bytes"
        " THEN excluded.peak_bytes ELSE usage.peak_bytes END",
        [
            {
                "day": today,
                "account_id": each.account_id,
                "namespace": each.namespace,
                "peak_bytes": each.bytes,
            }
            for each in stored
        ],
    )
