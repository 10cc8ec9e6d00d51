"""The HTTP clients of one remote: their connections, certificates and headers, as git has them."""

from __future__ import annotations

import logging
import ssl
import sys
from dataclasses import dataclass

from artifactfs.errors import RemoteUnreachable
from artifactfs.git.wire.protocol import AGENT
from artifactfs.git.wire.transport import HttpSettings
from artifactfs.git.wire.url import RemoteURL

# httpx imports its command line (click, rich, pygments) unless this is there: half of its import.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
import httpx  # noqa: E402

__all__ = ["ClientPair", "SharedClient", "httpx"]

# They log a line for every request, and at debug level the headers, credentials included.
for _name in ("httpx", "httpcore", "hpack", "h2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

BACKGROUND_CONNECTIONS = 8
URGENT_CONNECTIONS = 8
_CONNECT_DEADLINE_S = 15.0
# Servers close idle connections after 5 s (hypercorn) to 75 s (nginx); httpcore notices.
_KEEP_ALIVE_S = 60.0


@dataclass(slots=True, eq=False)
class SharedClient:
    """A client and the number of requests that are on it. A `retired` one takes no more, and is
    closed with the last of them."""

    client: httpx.AsyncClient
    http2: bool
    requests: int = 0
    retired: bool = False

    async def retire(self) -> None:
        self.retired = True
        if not self.requests:
            await self.client.aclose()

    async def ended(self) -> None:
        """One of its requests is over."""
        self.requests -= 1
        if self.retired and not self.requests:
            await self.client.aclose()


class ClientPair:
    """The line of background requests and that of urgent ones.

    Reading the system's certificates takes tens of milliseconds, so http:// does without: its
    context trusts nobody.
    """

    def __init__(self, url: RemoteURL, settings: HttpSettings, deadline_s: float) -> None:
        """Raises: RemoteUnreachable."""
        self._https = url.scheme == "https"
        self._context = _tls(settings) if self._https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._settings = settings
        self._deadline_s = deadline_s
        self.background = self._shared_client(BACKGROUND_CONNECTIONS, http2=False)
        self.urgent = self._shared_client(URGENT_CONNECTIONS, http2=self._https)

    async def replace_urgent(self, line: SharedClient) -> None:
        """Use `line` no longer for urgent requests."""
        if line is self.urgent:
            self.urgent = self._shared_client(URGENT_CONNECTIONS, http2=self._https)
            await line.retire()

    async def retire(self) -> None:
        """Close both when the requests on them are over."""
        await self.background.retire()
        await self.urgent.retire()

    async def aclose(self) -> None:
        """Close both; requests that are on them fail."""
        await self.background.client.aclose()
        await self.urgent.client.aclose()

    def _shared_client(self, connections: int, *, http2: bool) -> SharedClient:
        return SharedClient(
            _client(self._context, self._settings, self._deadline_s, connections, http2), http2
        )


def _client(
    context: ssl.SSLContext,
    settings: HttpSettings,
    deadline_s: float,
    connections: int,
    http2: bool,
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=context,
        http2=http2,
        headers=[("User-Agent", settings.user_agent or AGENT), *settings.headers],
        # Proxies and .netrc are git's to deal with: see `artifactfs.git.configuration.choice`.
        trust_env=False,
        timeout=httpx.Timeout(deadline_s, connect=min(deadline_s, _CONNECT_DEADLINE_S)),
        limits=httpx.Limits(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEEP_ALIVE_S,
        ),
    )


def _tls(settings: HttpSettings) -> ssl.SSLContext:
    """Certificates as git would check them."""
    try:
        context = ssl.create_default_context(cafile=settings.authority)
    except OSError as error:
        raise RemoteUnreachable(f"http.sslCAInfo cannot be read: {error.strerror}") from error
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
