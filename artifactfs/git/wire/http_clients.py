"""The HTTP clients of one remote: their connections, proxies and certificates, as git has them."""

from __future__ import annotations

import logging
import os
import ssl
import sys
from dataclasses import dataclass

from artifactfs.errors import RemoteUnreachable
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.wire.protocol import AGENT
from artifactfs.git.wire.url import RemoteURL

# httpx imports its command line (click, rich, pygments) unless this is there: half of its import.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
import httpx  # noqa: E402

__all__ = ["Line", "Lines", "http_config", "httpx"]

# They log a line for every request, and at debug level the headers, credentials included.
for _name in ("httpx", "httpcore", "hpack", "h2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

BACKGROUND_CONNECTIONS = 8
URGENT_CONNECTIONS = 8
_CONNECT_DEADLINE_S = 15.0
# Servers close idle connections after 5 s (hypercorn) to 75 s (nginx); httpcore notices.
_KEEP_ALIVE_S = 60.0
_FALSE = ("false", "no", "off", "0", "")


@dataclass(slots=True, eq=False)
class Line:
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


class Lines:
    """The line of background requests and that of urgent ones.

    Reading the system's certificates takes tens of milliseconds, so http:// does without: its
    context trusts nobody.
    """

    def __init__(self, url: RemoteURL, config: dict[str, str], deadline_s: float) -> None:
        """`config` is what `http_config` says of `url`. Raises: RemoteUnreachable."""
        self._https = url.scheme == "https"
        self._context = _tls(config) if self._https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._config = config
        self._deadline_s = deadline_s
        self.background = self._line(BACKGROUND_CONNECTIONS, http2=False)
        self.urgent = self._line(URGENT_CONNECTIONS, http2=self._https)

    async def replace_urgent(self, line: Line) -> None:
        """Use `line` no longer for urgent requests."""
        if line is self.urgent:
            self.urgent = self._line(URGENT_CONNECTIONS, http2=self._https)
            await line.retire()

    async def retire(self) -> None:
        """Close both when the requests on them are over."""
        await self.background.retire()
        await self.urgent.retire()

    async def aclose(self) -> None:
        """Close both; requests that are on them fail."""
        await self.background.client.aclose()
        await self.urgent.client.aclose()

    def _line(self, connections: int, *, http2: bool) -> Line:
        return Line(
            _client(self._context, self._config, self._deadline_s, connections, http2), http2
        )


def _client(
    context: ssl.SSLContext,
    config: dict[str, str],
    deadline_s: float,
    connections: int,
    http2: bool,
) -> httpx.AsyncClient:
    headers = {"User-Agent": AGENT}
    extra, colon, value = config.get("http.extraheader", "").partition(":")
    if colon:
        headers[extra.strip()] = value.strip()
    proxy = config.get("http.proxy") or None
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"  # as curl takes it
    try:
        return httpx.AsyncClient(
            verify=context,
            http2=http2,
            headers=headers,
            proxy=proxy,
            timeout=httpx.Timeout(deadline_s, connect=min(deadline_s, _CONNECT_DEADLINE_S)),
            limits=httpx.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=_KEEP_ALIVE_S,
            ),
        )
    except (ValueError, ImportError, httpx.InvalidURL):  # these have the proxy's password in them
        raise RemoteUnreachable(
            "the proxy that http.proxy of git or the environment names cannot be used",
            hint="it has to be http://[user:password@]host:port; SOCKS is not supported",
        ) from None


async def http_config(url: RemoteURL) -> dict[str, str]:
    """The user's ``http.*`` settings that apply to `url`: proxy, certificates, extra header."""
    try:
        output = await run_git("config", "--get-urlmatch", "http", url.url, deadline_s=10)
    except GitFailed:
        return {}
    lines = output.decode("utf-8", "replace").splitlines()
    return {name.lower(): value for name, _, value in (line.partition(" ") for line in lines)}


def _tls(config: dict[str, str]) -> ssl.SSLContext:
    """Certificates as git would check them: the system's, or http.sslCAInfo / http.sslVerify."""
    authority = os.environ.get("GIT_SSL_CAINFO") or config.get("http.sslcainfo")
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except OSError as error:
        raise RemoteUnreachable(f"http.sslCAInfo cannot be read: {error.strerror}") from error
    if "GIT_SSL_NO_VERIFY" in os.environ or config.get("http.sslverify") in _FALSE:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
