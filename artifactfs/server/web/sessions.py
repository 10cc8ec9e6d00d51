"""Who is logged in to the web page: sessions in memory, bound to an API token."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from artifactfs.server.metadata import tokens
from artifactfs.server.metadata.catalog import Catalog
from artifactfs.server.metadata.records import ApiToken

COOKIE = "artifacts_session"
LIFETIME_S = 12 * 3_600
_MAX_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """A login. `form_key` is in every form, so that no other site can send one."""

    token_id: str
    expires: float
    form_key: str = field(default_factory=lambda: secrets.token_urlsafe(24))


class Sessions:
    """Sessions by the hash of their cookie. They end with the server."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._sessions: dict[str, Session] = {}

    def log_in(self, secret: str) -> str | None:
        """Begin a session for an API token; the cookie, None if the token is not good."""
        token = self._catalog.api_token(secret)
        if token is None or token.revoked_at is not None:
            return None
        self._forget_expired()
        cookie = secrets.token_urlsafe(32)
        session = Session(token.id, time.monotonic() + LIFETIME_S)
        self._sessions[tokens.digest(cookie)] = session
        return cookie

    def find(self, cookie: str | None) -> tuple[Session, ApiToken] | None:
        """The session of a cookie and its token, if both still hold."""
        session = self._sessions.get(tokens.digest(cookie)) if cookie else None
        if session is None or session.expires < time.monotonic():
            return None
        token = self._catalog.api_token_by_id(session.token_id)
        if token is None or token.revoked_at is not None:
            return None
        return session, token

    def log_out(self, cookie: str | None) -> None:
        if cookie:
            self._sessions.pop(tokens.digest(cookie), None)

    def _forget_expired(self) -> None:
        now = time.monotonic()
        alive = {key: each for key, each in self._sessions.items() if each.expires > now}
        if len(alive) >= _MAX_SESSIONS:
            del alive[min(alive, key=lambda key: alive[key].expires)]
        self._sessions = alive
