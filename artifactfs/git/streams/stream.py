"""Stateful connections to ``git-upload-pack``: a local process, ssh, or the git:// daemon.

Unlike over HTTP, a connection begins with the server's advertisement and then takes one request
after another. A connection whose answer was not read to its end is thrown away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from artifactfs.errors import RemoteError, RemoteUnreachable
from artifactfs.git.wire.sideband import remote_error
from artifactfs.git.wire.transport import Advertisement, Exchange, RequestCounters, deadline
from artifactfs.pktline import PacketDecoder

BACKGROUND_CONNECTIONS = 4
_RECEIVE_BYTES = 256 << 10
_ADVERTISEMENT_LIMIT = 64 << 20


class StreamConnection(Protocol):
    """A byte stream to an upload-pack."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, limit: int) -> bytes: ...

    def failure(self) -> RemoteError:
        """Why the stream ended early, from what the other side said."""

    async def close(self, *, gracefully: bool) -> None:
        """`gracefully` when no request is under way. Never cancelled."""


Connector = Callable[[], Awaitable[StreamConnection]]


class StreamExchange:
    """The answer to one request on a connection."""

    def __init__(
        self, connection: StreamConnection, transport: StreamTransport, first: bytes
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._first = first
        self.complete = False

    async def receive(self) -> bytes:
        if self._first:
            chunk, self._first = self._first, b""
            return chunk
        return await self._transport.receive(self._connection)

    async def finish(self) -> None:
        self.complete = True


class StreamTransport:
    """One remote behind connections that `connect` opens.

    Connections are kept for `keep_s` seconds of rest (0: not at all). Background requests share
    four; an urgent one opens another rather than wait.
    """

    alternate: Path | None = None

    def __init__(
        self,
        connect: Connector,
        *,
        name: str,
        keep_s: float,
        deadline_s: float,
        counters: RequestCounters,
    ) -> None:
        self.counters = counters
        self._connect = connect
        self._name = name
        self._keep_s = keep_s
        self._deadline_s = deadline_s
        self._idle: list[tuple[float, StreamConnection]] = []
        self._background = trio.Semaphore(BACKGROUND_CONNECTIONS)

    async def advertisement(self) -> Advertisement:
        """Read what a new connection begins with."""
        self.counters.count("capabilities")
        with deadline(self._deadline_s, self._name):
            connection = await self._connect()
        whole = False
        try:
            greeting, rest = await self._greeting(connection)
            whole = not rest
        finally:
            await self._release(connection, reusable=whole)
        packets = tuple(PacketDecoder().feed(greeting))
        if packets and isinstance(packets[0], bytes) and packets[0].startswith(b"ERR "):
            raise remote_error(packets[0][4:])
        return Advertisement(packets)

    @asynccontextmanager
    async def exchange(
        self, kind: str, request: bytes, *, urgent: bool = False
    ) -> AsyncIterator[Exchange]:
        if not urgent:
            await self._background.acquire()
        try:
            connection, first = await self._start(kind, request)
            exchange = self.make_exchange(connection, first)
            try:
                yield exchange
            finally:
                await self._release(connection, reusable=exchange.complete)
        finally:
            if not urgent:
                self._background.release()

    def make_exchange(self, connection: StreamConnection, first: bytes) -> StreamExchange:
        """What reads the answer to a request that was sent on `connection`."""
        return StreamExchange(connection, self, first)

    async def prepare_refs(self) -> None:
        """Nothing to do: the server knows."""

    async def prepare_objects(self, wants: frozenset[bytes]) -> None:
        """Nothing to do: the server has them."""

    async def aclose(self) -> None:
        idle, self._idle = self._idle, []
        for _, connection in idle:
            await connection.close(gracefully=True)

    async def close_idle(self) -> None:
        """Close connections that rested for too long."""
        now = trio.current_time()
        old = [entry for entry in self._idle if now - entry[0] > self._keep_s]
        self._idle = [entry for entry in self._idle if now - entry[0] <= self._keep_s]
        for _, connection in old:
            await connection.close(gracefully=True)

    async def receive(self, connection: StreamConnection) -> bytes:
        """The next chunk, never empty. Raises: RemoteError."""
        with trio.move_on_after(self._deadline_s):
            try:
                chunk = await connection.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                chunk = b""
            if not chunk:
                raise connection.failure()
            self.counters.bytes_in += len(chunk)
            return chunk
        raise RemoteUnreachable(f"{self._name} sent nothing for {self._deadline_s:g} s")

    async def _start(self, kind: str, request: bytes) -> tuple[StreamConnection, bytes]:
        """A connection on which `request` was sent, and the first bytes of the answer."""
        await self.close_idle()
        while self._idle:
            connection = self._idle.pop()[1]
            try:
                return connection, await self._ask(connection, kind, request)
            except RemoteUnreachable:
                # It was closed while it rested: nothing is lost by asking another.
                await connection.close(gracefully=False)
            except BaseException:
                await connection.close(gracefully=False)
                raise
        with deadline(self._deadline_s, self._name):
            connection = await self._connect()
        try:
            return connection, await self._ask(connection, kind, request, greeted=False)
        except BaseException:
            await connection.close(gracefully=False)
            raise

    async def _ask(
        self, connection: StreamConnection, kind: str, request: bytes, *, greeted: bool = True
    ) -> bytes:
        """Send without waiting for the greeting: one round trip less on a new connection."""
        self.counters.count(kind, len(request))
        with deadline(self._deadline_s, self._name):
            try:
                await connection.send_all(request)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise connection.failure() from error
        if greeted:
            return await self.receive(connection)
        _, rest = await self._greeting(connection)
        return rest or await self.receive(connection)

    async def _greeting(self, connection: StreamConnection) -> tuple[bytes, bytes]:
        """The advertisement, up to and with its flush packet, and what came behind it."""
        data = b""
        while (end := _flush_end(data)) is None:
            data += await self.receive(connection)
            if data[4:8] == b"ERR " and len(data) >= _pkt_length(data):
                raise remote_error(data[8 : _pkt_length(data)])  # no flush packet follows
            if len(data) > _ADVERTISEMENT_LIMIT:
                raise RemoteUnreachable(f"{self._name} does not stop advertising")
        return data[:end], data[end:]

    async def _release(self, connection: StreamConnection, *, reusable: bool) -> None:
        if reusable and self._keep_s > 0:
            self._idle.append((trio.current_time(), connection))
        else:
            await connection.close(gracefully=reusable)


def _pkt_length(data: bytes) -> int:
    """What the first packet's length says. Raises: ProtocolError."""
    try:
        return int(data[:4], 16)
    except ValueError:
        PacketDecoder().feed(data)  # words the error
        raise


def _flush_end(data: bytes) -> int | None:
    """Where the first flush packet ends. Raises: ProtocolError for what is not pkt-lines."""
    offset = 0
    while len(data) - offset >= 4:
        digits = data[offset : offset + 4]
        if digits == b"0000":
            return offset + 4
        try:
            offset += max(4, int(digits, 16))
        except ValueError:
            # The decoder words the error.
            PacketDecoder().feed(data[offset:])
    return None
