"""git:// (gitprotocol-pack(5)), to the host itself or through ``core.gitProxy``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import trio

from artifactfs.errors import RemoteError, RemoteUnreachable
from artifactfs.git.streams.process import connected_process
from artifactfs.git.streams.stream import StreamConnection, StreamTransport
from artifactfs.git.surroundings import variable
from artifactfs.git.wire.transport import RequestCounters
from artifactfs.git.wire.url import DEFAULT_PORTS, RemoteURL
from artifactfs.redact import redact

_KEEP_S = 60.0


class SocketConnection:
    """A connection to git-daemon(1)."""

    def __init__(self, stream: trio.SocketStream, name: str) -> None:
        self._stream = stream
        self._name = name

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, limit: int) -> bytes:
        return bytes(await self._stream.receive_some(limit))

    def failure(self) -> RemoteError:
        return RemoteUnreachable(f"{self._name} closed the connection")

    async def close(self, *, gracefully: bool) -> None:
        with trio.CancelScope(shield=True), contextlib.suppress(trio.BrokenResourceError):
            await self._stream.aclose()


def git_proxy(host: str, configured: Iterable[str]) -> str | None:
    """The command that connects to `host` (with its port, if it was given): GIT_PROXY_COMMAND, else
    the first of ``core.gitProxy`` that is for this host; None: nothing does."""
    if (command := variable("GIT_PROXY_COMMAND")) is not None:
        return command or None
    for value in configured:
        command, is_for, domain = value.partition(" for ")
        if is_for and host != domain and not host.endswith(f".{domain}"):
            continue
        return None if command == "none" else command or None
    return None


def daemon_transport(
    url: RemoteURL,
    proxies: Iterable[str],
    *,
    deadline_s: float,
    counters: RequestCounters,
    program: str = "git-upload-pack",
) -> StreamTransport:
    """`proxies` are the values of ``core.gitProxy``."""
    port = url.port or DEFAULT_PORTS["git"]
    host = f"[{url.host}]" if ":" in url.host else url.host
    with_port = f"{host}:{url.port}" if url.port else host
    virtual = variable("GIT_OVERRIDE_VIRTUAL_HOST") or with_port
    hello = f"{program} {url.path}\0host={virtual}\0\0version=2\0".encode()
    proxy = git_proxy(with_port, proxies)

    async def connect() -> StreamConnection:
        connection: StreamConnection
        if proxy is not None:
            connection = await connected_process([proxy, url.host, str(port)], url.url)
        else:
            connection = SocketConnection(await _socket(url, port), url.url)
        try:
            await connection.send_all(b"%04x" % (len(hello) + 4) + hello)
        except trio.BrokenResourceError as error:
            await connection.close(gracefully=False)
            raise connection.failure() from error
        except BaseException:
            await connection.close(gracefully=False)
            raise
        return connection

    return StreamTransport(
        connect, name=url.url, keep_s=_KEEP_S, deadline_s=deadline_s, counters=counters
    )


async def _socket(url: RemoteURL, port: int) -> trio.SocketStream:
    """Raises: RemoteUnreachable."""
    try:
        return await trio.open_tcp_stream(url.host, port)
    except OSError as error:
        raise RemoteUnreachable(f"no connection to {url.origin}: {redact(str(error))}") from error
