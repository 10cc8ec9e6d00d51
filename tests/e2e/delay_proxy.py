"""A TCP proxy between a mount and its server: adds delay, breaks things, writes down requests.

Delay does not limit throughput: every chunk is handed on when it is due, in order, while further
chunks are already being read. A new connection costs one round trip more, as a TCP handshake does.
The client's side is parsed as HTTP/1.1, so `requests` is what was really asked for on the wire.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import h11
import trio

CHUNK = 1 << 16
PACKET = 1_448
"""Bytes of a TCP segment on Ethernet."""
QUEUE = 1024
"""Chunks in flight in one direction (64 MiB): far more than a delay line of a second needs."""

_WANT = re.compile(rb"want ([0-9a-f]{40})")
_OID = re.compile(rb"oid ([0-9a-f]{40})")
_COMMAND = re.compile(rb"command=([a-z-]+)")


@dataclass(slots=True)
class Request:
    """One HTTP request that passed. `at` is the monotonic time of its first byte, in seconds."""

    method: str
    path: str
    at: float
    body: bytes = b""
    encoding: str = ""

    @property
    def text(self) -> bytes:
        """The body, decompressed."""
        return gzip.decompress(self.body) if self.encoding == "gzip" and self.body else self.body

    @property
    def command(self) -> str:
        """``fetch``, ``ls-refs``, ``object-info`` of protocol v2, else the end of the path."""
        found = _COMMAND.search(self.text)
        return found[1].decode() if found else self.path.partition("?")[0].rpartition("/")[2]

    @property
    def wants(self) -> list[str]:
        """The object ids a fetch wants, in order."""
        return [oid.decode() for oid in _WANT.findall(self.text)]

    @property
    def sizes_asked(self) -> list[str]:
        """The object ids an object-info request names."""
        return [oid.decode() for oid in _OID.findall(self.text)]


class _RequestParser:
    """Cuts the client's byte stream into requests; the answers are none of its business."""

    def __init__(self, started: Callable[[Request], None]) -> None:
        self._started = started
        self._connection = h11.Connection(h11.SERVER)
        self._request: Request | None = None

    def feed(self, data: bytes) -> None:
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if event in (h11.NEED_DATA, h11.PAUSED):
                    return
                self._take(event)
        except h11.RemoteProtocolError:
            self._connection = h11.Connection(h11.SERVER)

    def _take(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            headers = dict(event.headers)
            self._request = Request(
                event.method.decode(),
                event.target.decode(),
                time.monotonic(),
                encoding=headers.get(b"content-encoding", b"").decode(),
            )
            self._started(self._request)
        elif isinstance(event, h11.Data) and self._request is not None:
            self._request.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            rest = self._connection.trailing_data[0]
            self._connection = h11.Connection(h11.SERVER)
            if rest:
                self._connection.receive_data(rest)


@dataclass(slots=True, eq=False)
class _Connection:
    client: trio.SocketStream
    server: trio.SocketStream
    answered: int = 0
    """Bytes of the answer to the latest request that were passed on."""
    request: Request | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class DelayProxy:
    """Use as a context manager; runs in a thread of its own and listens on the loopback.

    Attributes that may be set at any time: `rtt` (seconds), `bandwidth` (bytes per second of each
    connection's answers, None: no limit; `chunk` bytes are handed on at once), `truncate_after` and
    `corrupt_at` (bytes of each answer, headers included: the connection ends there, or one bit of
    that byte changes), and `loss`: the share of an answer's packets (of 1,448 bytes) that are lost.
    A lost one holds up its connection for the round trip in which it is sent again.
    """

    def __init__(self, target: tuple[str, int], *, rtt: float = 0.0, port: int = 0) -> None:
        self.target = target
        self.rtt = rtt
        self.bandwidth: int | None = None
        self.chunk = CHUNK
        self._flow = trio.Event()
        self._flow.set()
        self._released = trio.Event()
        self.held: Callable[[Request], bool] = lambda _request: False
        self.truncate_after: int | None = None
        self.corrupt_at: int | None = None
        self.loss = 0.0
        self.requests: list[Request] = []
        self.bytes_down = 0
        self.bytes_up = 0
        self.port = port
        self._connections: set[_Connection] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._main), daemon=True)
        self._listener: trio.SocketListener | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(60):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop)
        self._thread.join(60)

    def url(self, url: str) -> str:
        """Return `url`, which leads to the target, as one that leads through the proxy."""
        return re.sub(r"(//(?:[^/@]*@)?)[^/@]+", rf"\g<1>127.0.0.1:{self.port}", url, count=1)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Request]]:
        """Within the block, the requests that begin are appended to the yielded list."""
        first = len(self.requests)
        seen: list[Request] = []
        try:
            yield seen
        finally:
            seen += self.requests[first:]

    def reset_connections(self) -> None:
        """Cut every connection with a TCP reset."""
        self._call(self._reset)

    def refuse(self) -> None:
        """Cut everything and refuse new connections, like a server that was killed."""
        self._call(self._close_listener)
        self._call(self._reset)

    def stall(self) -> None:
        """Keep every connection open and pass no answer on, until `resume`."""
        self._flow = trio.Event()

    def resume(self) -> None:
        """Pass answers on again."""
        self._call(self._flow.set)

    def hold(self, matches: Callable[[Request], bool]) -> None:
        """Pass no answer on to requests that match, until `release`."""
        self._released = trio.Event()
        self.held = matches

    def release(self) -> None:
        """Pass on what was held, and hold nothing any more."""
        self.held = lambda _request: False
        self._call(self._released.set)

    def accept(self) -> None:
        """Listen again, on the same port."""
        trio.from_thread.run(self._open_listener, trio_token=self._token)

    def _call(self, function: Callable[[], None]) -> None:
        trio.from_thread.run_sync(function, trio_token=self._token)

    def _stop(self) -> None:
        self._nursery.cancel_scope.cancel()

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        for connection in self._connections:
            for stream in (connection.client, connection.server):
                with contextlib.suppress(OSError):
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                stream.socket.close()
            connection.scope.cancel()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.socket.close()
            self._listener = None

    async def _open_listener(self) -> None:
        listener = (await trio.open_tcp_listeners(self.port, host="127.0.0.1"))[0]
        self._listener = listener
        self.port = listener.socket.getsockname()[1]
        self._nursery.start_soon(self._accept_on, listener)

    async def _accept_on(self, listener: trio.SocketListener) -> None:
        while True:
            try:
                stream = await listener.accept()
            except (trio.ClosedResourceError, OSError):
                return
            self._nursery.start_soon(self._serve, stream)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            await self._open_listener()
            self._ready.set()
            await trio.sleep_forever()

    async def _serve(self, client: trio.SocketStream) -> None:
        opened = trio.current_time() + self.rtt
        try:
            server = await trio.open_tcp_stream(*self.target)
        except OSError:
            await client.aclose()
            return
        for stream in (client, server):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(client, server)
        self._connections.add(connection)
        parser = _RequestParser(lambda request: self._note(connection, request))
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with client, server:
                with connection.scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump, connection, client, server, opened, parser)
                        nursery.start_soon(self._pump, connection, server, client, opened, None)
        self._connections.discard(connection)

    def _note(self, connection: _Connection, request: Request) -> None:
        connection.answered = 0
        connection.request = request
        self.requests.append(request)

    async def _pump(
        self,
        connection: _Connection,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        opened: float,
        parser: _RequestParser | None,
    ) -> None:
        """Hand on what `source` sends, each chunk when its time has come."""
        send, receive = trio.open_memory_channel[tuple[float, bytes]](QUEUE)

        async def read() -> None:
            async with send:
                while data := await source.receive_some(self.chunk):
                    if parser is not None:
                        parser.feed(data)
                        self.bytes_up += len(data)
                    due = max(trio.current_time(), opened) + self.rtt / 2
                    packets = -(-len(data) // PACKET)
                    if parser is None and random.random() > (1 - self.loss) ** packets:
                        due += self.rtt
                    await send.send((due, data))

        async def write() -> None:
            async with receive:
                async for due, data in receive:
                    await trio.sleep_until(due)
                    if parser is None:
                        data = await self._answer(connection, data)
                    if data:
                        await sink.send_all(data)
            await sink.send_eof()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(write)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            connection.scope.cancel()

    async def _answer(self, connection: _Connection, data: bytes) -> bytes:
        """Apply the faults to a chunk of an answer; return what is left of it."""
        await self._flow.wait()
        if connection.request is not None and self.held(connection.request):
            await self._released.wait()
        if self.bandwidth is not None:
            await trio.sleep(len(data) / self.bandwidth)
        start = connection.answered
        connection.answered += len(data)
        if self.corrupt_at is not None and start <= self.corrupt_at < start + len(data):
            at = self.corrupt_at - start
            data = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        if self.truncate_after is not None and connection.answered > self.truncate_after:
            data = data[: max(0, self.truncate_after - start)]
            if data:
                await connection.client.send_all(data)
            connection.scope.cancel()
            return b""
        self.bytes_down += len(data)
        return data


def main() -> None:
    """Run as a process of its own, for measurements: prints the port, stops at end of input.

    Lines of input are ``stats`` (answered by requests and bytes so far), ``requests`` (by JSON:
    command and wants of each), ``refuse`` and ``accept`` (by themselves, when done).
    """
    parser = argparse.ArgumentParser(description="TCP proxy that adds delay")
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    options = parser.parse_args()
    host, port = options.target.rsplit(":", 1)
    with DelayProxy((host, int(port)), rtt=options.rtt_ms / 1000) as proxy:
        print(proxy.port, flush=True)
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while line := input():
                if line == "stats":
                    print(len(proxy.requests), proxy.bytes_down, flush=True)
                elif line == "requests":
                    known = [(request.command, request.wants) for request in proxy.requests]
                    print(json.dumps(known), flush=True)
                elif line in ("refuse", "accept"):
                    getattr(proxy, line)()
                    print(line, flush=True)


if __name__ == "__main__":
    main()
