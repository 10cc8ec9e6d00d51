"""hypercorn's TCP server on our own listeners, with an eye on each client's socket.

hypercorn stops reading a connection while a request is being answered, so it would notice a
client that went away only at the next write, and a client that stops reading blocks that write
for ever. Here a request can reach its own socket: to see a hang-up at once, and to cut a
connection whose time is over.
"""

from __future__ import annotations

import logging
import resource
import select
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from artifactfs.errors import StateError

log = logging.getLogger(__name__)

_PEEK_S = 0.2
_FEWEST_CONNECTIONS = 16
_MANY_DESCRIPTORS = 1 << 20
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR

_connection: ContextVar[trio.socket.SocketType | None] = ContextVar("connection", default=None)


async def client_gone() -> None:
    """Return when the client of this request has closed its connection."""
    connection = _connection.get()
    if connection is None:
        await trio.sleep_forever()
        return
    while connection.fileno() >= 0:
        poll = select.poll()
        poll.register(connection.fileno(), _GONE)
        if poll.poll(0):
            return
        await trio.sleep(_PEEK_S)


def cut_connection() -> None:
    """End the connection of this request at once; a blocked write to it fails."""
    connection = _connection.get()
    if connection is not None:
        _shut_down(connection)


def _shut_down(connection: trio.socket.SocketType) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for an address. Raises: OSError."""
    addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=1)
    sockets = []
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
        sockets.append(sock)
    return sockets


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer, HTTP/2 and HTTP/1.1. Raises: StateError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError too
        reason = error.strerror or error
        raise StateError(f"{certificate} and {key} cannot be used: {reason}") from error
    return context


def http_config(idle_s: float) -> Config:
    """Bounds of the HTTP layer. A connection without a request ends a bit after `idle_s`."""
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")  # through our redacting handler
    config.include_server_header = False
    config.keep_alive_timeout = 1.25 * idle_s
    config.keep_alive_max_requests = 100_000
    config.h11_max_incomplete_size = 32 * 1024
    config.h2_max_header_list_size = 32 * 1024
    return config


async def serve_connections(
    app: Callable[..., Any],
    sockets: Sequence[socket.socket],
    *,
    tls: ssl.SSLContext | None,
    shutdown: trio.Event,
    grace_s: float,
    idle_s: float,
    reserved: int = 0,
) -> bool:
    """Serve `app` on `sockets` until `shutdown`; then let open requests end for `grace_s`.

    There are never so many connections that fewer than `reserved` descriptors would be left: more
    wait in the kernel's queue. A connection ends when its client takes nothing of an answer for
    `idle_s`. True if every request ended by itself.
    """
    config = http_config(idle_s)
    context = WorkerContext(None)
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    room = trio.Semaphore(max(_FEWEST_CONNECTIONS, _descriptors() - reserved))
    listeners = [_Bounded(_listener(sock, tls), room) for sock in sockets]
    live = _Live()
    handler = partial(_handle, wrapped, config, context, idle_s, room, live)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(
                partial(trio.serve_listeners, handler, listeners, handler_nursery=connections)
            )
            await shutdown.wait()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        with trio.move_on_after(grace_s):
            await live.until_none()
        ended = not live.sockets
        # hypercorn shields what it sends from cancellation: who takes nothing is cut off.
        for connection in live.sockets:
            _shut_down(connection)
        connections.cancel_scope.cancel()
    return ended


class _Live:
    """The sockets of all connections of a server."""

    def __init__(self) -> None:
        self.sockets: set[trio.socket.SocketType] = set()
        self._fewer = trio.Event()

    @contextmanager
    def holding(self, connection: trio.socket.SocketType) -> Iterator[None]:
        self.sockets.add(connection)
        try:
            yield
        finally:
            self.sockets.discard(connection)
            self._fewer.set()
            self._fewer = trio.Event()

    async def until_none(self) -> None:
        while self.sockets:
            await self._fewer.wait()


def _listener(sock: socket.socket, tls: ssl.SSLContext | None) -> Any:
    plain = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    return plain if tls is None else trio.SSLListener(plain, tls, https_compatible=True)


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else _MANY_DESCRIPTORS


class _Bounded(trio.abc.Listener[Any]):
    """Accepts a connection when there is room for it; `_handle` gives the room back."""

    def __init__(self, listener: Any, room: trio.Semaphore) -> None:
        self._listener = listener
        self._room = room

    async def accept(self) -> Any:
        await self._room.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._room.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


class _Server(TCPServer):
    """hypercorn's connection, without two of its faults."""

    async def protocol_send(self, event: Event) -> None:
        try:
            await super().protocol_send(event)
        except trio.BusyResourceError:
            # It closes a stream from one task while another still writes to it.
            await self.protocol.handle(Closed())
        if isinstance(event, RawData) and _waits_for_http2(self.protocol):
            # It would wait without end for a request behind the preface of HTTP/2.
            await self.idle_task.restart(self._task_group, self._idle_timeout)


def _waits_for_http2(protocol: ProtocolWrapper) -> bool:
    inner = getattr(protocol, "protocol", None)
    return isinstance(inner, H2Protocol) and inner.idle


async def _handle(
    app: Any,
    config: Config,
    context: WorkerContext,
    idle_s: float,
    room: trio.Semaphore,
    live: _Live,
    stream: Any,
) -> None:
    transport = getattr(stream, "transport_stream", stream)
    try:
        with live.holding(transport.socket):
            await _serve_one(app, config, context, idle_s, stream, transport)
    finally:
        room.release()


async def _serve_one(
    app: Any,
    config: Config,
    context: WorkerContext,
    idle_s: float,
    stream: Any,
    transport: trio.SocketStream,
) -> None:
    try:
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # hypercorn's writes have no deadline of their own; with this the kernel fails them.
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(idle_s * 1000))
        # Requests are tasks started from this one, so they inherit the variable.
        _connection.set(transport.socket)
        await _Server(app, config, context, ConnectionState({}), stream)
    except* Exception as failed:
        # Whatever one client does to the HTTP layer ends its own connection and no other.
        log.warning("a connection failed: %r", failed, exc_info=failed)
