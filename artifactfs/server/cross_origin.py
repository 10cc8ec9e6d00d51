"""CORS: which pages of other origins may use the REST and the Git routes from a browser.

Off unless it is set: a browser then keeps what we answer from every page but our own. Tokens travel
in ``Authorization``, which a page has to know itself; cookies are never let in from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_METHODS = b"GET, HEAD, POST, PATCH, PUT, DELETE, OPTIONS"
_REQUEST_HEADERS = b"Authorization, Content-Type, Git-Protocol, If-None-Match, If-Range, Range"
_EXPOSED = b"Allow, Content-Range, ETag, Retry-After, WWW-Authenticate, x-should-retry"
_PREFLIGHT_S = b"7200"

Headers = list[tuple[bytes, bytes]]


class CrossOrigin:
    """The origins that are allowed; ``*`` is all of them."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    def headers(self, path: str, origin: bytes | None) -> Headers:
        """What an answer to a request of `origin` says; nothing where it is not allowed."""
        if not self._origins or path == "/" or path.startswith("/ui/"):
            return []
        if "*" in self._origins:
            allowed: Headers = [(b"access-control-allow-origin", b"*")]
        else:
            allowed = [(b"vary", b"Origin")]
            if origin is None or origin.decode("latin-1").lower() not in self._origins:
                return allowed
            allowed.append((b"access-control-allow-origin", origin))
        return [*allowed, (b"access-control-expose-headers", _EXPOSED)]

    def preflight(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Headers | None:
        """The headers of the answer to the question that a browser asks before a request; None
        where this is another request, or the origin may not ask."""
        if method != "OPTIONS" or b"access-control-request-method" not in headers:
            return None
        allowed = self.headers(path, headers.get(b"origin"))
        if not any(name == b"access-control-allow-origin" for name, _ in allowed):
            return None
        return [
            *allowed,
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _REQUEST_HEADERS),
            (b"access-control-max-age", _PREFLIGHT_S),
        ]
