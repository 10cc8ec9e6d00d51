"""Who is logged in to the web page: sessions by the hash of their cookie, bound to an API token.

They are in the database, so that any server of several knows them.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from artifactfs.server.metadata import tokens
from artifactfs.server.metadata.catalog import Catalog, insert
from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.database import Transaction
from artifactfs.server.metadata.records import ApiToken

COOKIE = "artifacts_session"
LIFETIME_S = 12 * 3_600
_MAX_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """A login. `form_key` is in every form, so that no other site can send one."""

    token_id: str
    form_key: str


class Sessions:
    """Logs in, finds and logs out."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def log_in(self, secret: str) -> str | None:
        """Begin a session for an API token; the cookie, None if the token is not good."""
        token = await self._catalog.api_token(secret)
        if token is None or token.revoked_at is not None:
            return None
        cookie = secrets.token_urlsafe(32)

        def begin(tx: Transaction) -> None:
            _forget_expired(tx)
            insert(
                tx,
                "sessions",
                digest=tokens.digest(cookie),
                token_id=token.id,
                form_key=secrets.token_urlsafe(24),
                expires_at=now_ms() + LIFETIME_S * 1000,
            )

        await self._catalog.store.write(begin)
        return cookie

    async def find(self, cookie: str | None) -> tuple[Session, ApiToken] | None:
        """The session of a cookie and its token, if both still hold."""
        if not cookie:
            return None
        row = await self._catalog.store.row(
            "SELECT token_id, form_key FROM sessions WHERE digest = :digest AND expires_at > :now",
            {"digest": tokens.digest(cookie), "now": now_ms()},
        )
        if row is None:
            return None
        token = await self._catalog.api_token_by_id(row["token_id"])
        if token is None or token.revoked_at is not None:
            return None
        return Session(row["token_id"], row["form_key"]), token

    async def log_out(self, cookie: str | None) -> None:
        if cookie:
            wanted = {"digest": tokens.digest(cookie)}
            await self._catalog.store.write(
                lambda tx: tx.run("DELETE FROM sessions WHERE digest = :digest", wanted)
            )


def _forget_expired(tx: Transaction) -> None:
    tx.run("DELETE FROM sessions WHERE expires_at <= :now", {"now": now_ms()})
    tx.run(
        "DELETE FROM sessions WHERE digest IN"
        " (SELECT digest FROM sessions ORDER BY expires_at DESC LIMIT :most OFFSET :kept)",
        {"most": _MAX_SESSIONS, "kept": _MAX_SESSIONS - 1},
    )
