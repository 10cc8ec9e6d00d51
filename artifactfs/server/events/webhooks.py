"""Webhooks: subscriptions, signed deliveries, retries.

A delivery is stored before it is tried, so it survives a restart. The signature follows the
Standard Webhooks scheme: ``webhook-id``, ``webhook-timestamp`` and
``webhook-signature: v1,<base64 of HMAC-SHA256 over "id.timestamp.body">``; the secret is
``whsec_<base64 key>``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import trio

from artifactfs.redact import redact
from artifactfs.server.cluster.standing import Standing
from artifactfs.server.events.events import Notice
from artifactfs.server.events.metrics import Metrics
from artifactfs.server.events.network_guard import Forbidden, Target, Unresolvable, check_url
from artifactfs.server.metadata import tokens
from artifactfs.server.metadata.clock import iso, now_ms
from artifactfs.server.metadata.database import (
    DatabaseError,
    Row,
    Store,
    Transaction,
    insertion,
)

log = logging.getLogger(__name__)

PREFIX = "cf.artifacts.repo."
RETRY_AFTER_S = (2, 30, 120, 600, 3_600, 14_400, 43_200)
"""Waits between attempts; after the last the delivery is dropped."""
_ANSWER_S = 10.0
_AT_ONCE = 8
_POLL_S = 1.0
_MAX_PENDING = 10_000


_DUE = """
    SELECT deliveries.*, url, secret FROM deliveries JOIN webhooks ON webhooks.id = webhook_id
    WHERE next_at <= :now ORDER BY next_at LIMIT 200
"""
_CLAIM = """
    UPDATE deliveries SET owner = :owner FROM webhooks
    WHERE webhooks.id = deliveries.webhook_id AND deliveries.id IN (
        SELECT id FROM deliveries WHERE next_at <= :now AND (owner IS NULL OR owner = :owner)
        ORDER BY next_at LIMIT 200 FOR UPDATE SKIP LOCKED)
    RETURNING deliveries.*, url, secret
"""
"""Each is for one server; when that is gone, another gets it."""


def new_secret() -> str:
    return "whsec_" + b64encode(secrets.token_bytes(32)).decode()


def signature(secret: str, delivery_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    key = b64decode(secret.removeprefix("whsec_"))
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return "v1," + b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def envelope(notice: Notice, subscription_id: str) -> dict[str, Any]:
    """The body of a delivery."""
    return {
        "type": PREFIX + notice.kind,
        "source": {
            "type": "artifacts.repo",
            "namespace": notice.namespace,
            "repoName": notice.repository,
        },
        "payload": notice.payload,
        "metadata": {
            "accountId": notice.account_id,
            "eventSubscriptionId": subscription_id,
            "eventSchemaVersion": 1,
            "eventTimestamp": iso(notice.at),
        },
    }


@dataclass(frozen=True, slots=True)
class Webhook:
    """A subscription. `namespace` None: all of the account. `events`: notice kinds."""

    id: str
    account_id: str
    namespace: str | None
    url: str
    secret: str
    events: tuple[str, ...]
    created_at: int

    @classmethod
    def of(cls, row: Row) -> Webhook:
        return cls(
            row["id"],
            row["account_id"],
            row["namespace"],
            row["url"],
            row["secret"],
            tuple(row["events"].split(",")),
            row["created_at"],
        )

    def wants(self, notice: Notice) -> bool:
        return (
            notice.account_id == self.account_id
            and notice.kind in self.events
            and self.namespace in (None, notice.namespace)
        )


class Webhooks:
    """Queues notices for subscribers and delivers them."""

    def __init__(
        self, store: Store, metrics: Metrics, standing: Standing, *, allow_private: bool
    ) -> None:
        self._standing = standing
        self._store = store
        self._metrics = metrics
        self._allow_private = allow_private
        self._pending: list[Notice] = []
        self._wake = trio.Event()
        self._turns = trio.Semaphore(_AT_ONCE)

    def notify(self, notice: Notice) -> None:
        """Queue a notice. Does not block."""
        if len(self._pending) < _MAX_PENDING:
            self._pending.append(notice)
            self._wake.set()

    async def wanted(self, account_id: str, kind: str) -> bool:
        """True if anybody of the account subscribed to that kind of notice."""
        return any(kind in hook.events for hook in await self.all(account_id))

    async def all(self, account_id: str) -> list[Webhook]:
        rows = await self._store.rows(
            "SELECT * FROM webhooks WHERE account_id = :account ORDER BY created_at",
            {"account": account_id},
        )
        return [Webhook.of(row) for row in rows]

    async def add(
        self, account_id: str, namespace: str | None, url: str, events: tuple[str, ...]
    ) -> Webhook:
        """Subscribe. Raises: Forbidden, Unresolvable."""
        await check_url(url, allow_private=self._allow_private)
        made = Webhook(tokens.new_id(), account_id, namespace, url, new_secret(), events, now_ms())
        row = {**asdict(made), "events": ",".join(events)}
        await self._store.write(lambda tx: tx.run(insertion("webhooks", row), row))
        return made

    async def remove(self, account_id: str, webhook_id: str) -> bool:
        """Unsubscribe; False if there is no such subscription."""

        def delete(tx: Transaction) -> int:
            return tx.run(
                "DELETE FROM webhooks WHERE id = :id AND account_id = :account",
                {"id": webhook_id, "account": account_id},
            )

        return await self._store.write(delete) > 0

    async def run(self) -> None:
        """Store and deliver until cancelled; what came until then is stored, for the next start."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver_due)
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    if not await self._stored():
                        await trio.sleep(_POLL_S)
                        self._wake.set()
        finally:
            with trio.CancelScope(shield=True):
                await self._stored()

    async def _stored(self) -> bool:
        """Store what is pending; False, with a line in the log, where that cannot be done."""
        if not self._pending:
            return True
        try:
            await self._queue()
        except DatabaseError as error:
            log.error("webhook deliveries cannot be stored: %s", error)
            return False
        return True

    async def _queue(self) -> None:
        notices = list(self._pending)
        hooks = [Webhook.of(row) for row in await self._store.rows("SELECT * FROM webhooks")]
        due = [
            {
                "id": tokens.new_id(),
                "webhook_id": hook.id,
                "body": json.dumps(envelope(notice, hook.id)),
                "attempts": 0,
                "next_at": now_ms(),
            }
            for notice in notices
            for hook in hooks
            if hook.wants(notice)
        ]
        if due:
            await self._store.write(lambda tx: tx.run(insertion("deliveries", due[0]), due))
        del self._pending[: len(notices)]

    async def _deliver_due(self) -> None:
        under_way: set[str] = set()
        async with trio.open_nursery() as nursery:
            while True:
                for row in await self._due():
                    if row["id"] not in under_way:
                        under_way.add(row["id"])
                        nursery.start_soon(self._deliver, row, under_way)
                await trio.sleep(_POLL_S)

    async def _due(self) -> list[Row]:
        owner = self._standing.owner
        if self._standing.shared and owner is None:
            return []
        sql = _CLAIM if self._standing.shared else _DUE
        try:
            return await self._store.rows(sql, {"now": now_ms(), "owner": owner})
        except DatabaseError as error:
            log.error("webhook deliveries cannot be read: %s", error)
            return []

    async def _deliver(self, row: Row, under_way: set[str]) -> None:
        try:
            async with self._turns:
                error = await self._post(row)
            self._metrics.delivery(delivered=error is None)
            await self._store.write(lambda tx: _record_outcome(tx, row, error))
        except DatabaseError as failure:
            # It stays as it was, so the subscriber may get it again.
            log.error("a webhook delivery cannot be recorded: %s", failure)
        finally:
            under_way.discard(row["id"])

    async def _post(self, row: Row) -> str | None:
        """One attempt; what went wrong, None if nothing."""
        body = row["body"].encode()
        stamp = now_ms() // 1000
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "artifacts-server",
            "webhook-id": row["id"],
            "webhook-timestamp": str(stamp),
            "webhook-signature": signature(row["secret"], row["id"], stamp, body),
        }
        try:
            with trio.fail_after(2 * _ANSWER_S):
                target = await check_url(row["url"], allow_private=self._allow_private)
                status = await _post_to(target, headers, body)
        except (Forbidden, Unresolvable) as error:
            return str(error)
        except (httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError, ValueError) as error:
            return redact(str(error)) or type(error).__name__
        except Exception as error:
            log.exception("a webhook delivery failed")
            return type(error).__name__
        return None if 200 <= status < 300 else f"the subscriber answered {status}"


async def _post_to(target: Target, headers: dict[str, str], body: bytes) -> int:
    """POST to the address that was checked; redirects are not followed."""
    shown = f"[{target.address}]" if ":" in target.address else target.address
    url = httpx.URL(target.url)
    async with httpx.AsyncClient(timeout=_ANSWER_S, trust_env=False) as client:
        request = client.build_request(
            "POST",
            url.copy_with(host=shown, port=target.port),
            content=body,
            headers={**headers, "Host": url.netloc.decode()},
            extensions={"sni_hostname": target.host},
        )
        answer = await client.send(request, stream=True)
        await answer.aclose()
        return answer.status_code


def _record_outcome(tx: Transaction, row: Row, error: str | None) -> None:
    if error is None:
        tx.run("DELETE FROM deliveries WHERE id = :id", {"id": row["id"]})
        return
    attempts = row["attempts"] + 1
    if attempts > len(RETRY_AFTER_S):
        log.warning("a webhook delivery was given up: %s", error)
        tx.run("DELETE FROM deliveries WHERE id = :id", {"id": row["id"]})
        return
    tx.run(
        "UPDATE deliveries SET attempts = :attempts, next_at = :next_at, last_error = :error,"
        " owner = NULL WHERE id = :id",
        {
            "attempts": attempts,
            "next_at": now_ms() + RETRY_AFTER_S[attempts - 1] * 1000,
            "error": error.replace("\0", "?"),
            "id": row["id"],
        },
    )
