"""One ASGI request and its answer, for the Git endpoints: streams in both directions."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import trio

from artifactfs.server.events.access_log import AccessLog, RequestRecord
from artifactfs.server.metadata.records import Repo

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = tuple[tuple[bytes, bytes], ...]
Send = Callable[[Message], Awaitable[None]]

_INFLATE_STEP = 256 * 1024
_SLOWEST = 1024
"""Bytes of a request body that must come for each second of waiting, on the average."""
NO_CACHE = (
    (b"cache-control", b"no-cache, max-age=0, must-revalidate"),
    (b"expires", b"Fri, 01 Jan 1980 00:00:00 GMT"),
    (b"pragma", b"no-cache"),
)


class ClientGone(Exception):
    """The client closed its connection."""


class BadBody(Exception):
    """The request body is not what its headers say, or larger than allowed."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Patience:
    """How long to wait for the pieces of one request body.

    Each piece may take `idle_s` seconds, and all of them together that and a second for each KiB:
    neither silence nor a trickle holds a place for Git processes. Time in which the server itself
    does not read does not count.
    """

    def __init__(self, receive: Receive, idle_s: float) -> None:
        self._receive = receive
        self._idle_s = idle_s
        self._left_s = idle_s

    async def receive(self) -> Message:
        """The next message of the client. Raises: BadBody (408)."""
        began = trio.current_time()
        with trio.move_on_after(min(self._idle_s, self._left_s)):
            message = await self._receive()
            self._left_s -= trio.current_time() - began
            self._left_s += len(message.get("body", b"")) / _SLOWEST
            return message
        raise BadBody("the request arrives too slowly", 408)


class Exchange:
    """A request and its answer. Every answer is logged before its end is sent.

    `idle_s`: see `Patience`.
    """

    def __init__(
        self,
        scope: Message,
        receive: Receive,
        send: Send,
        record: RequestRecord,
        log: AccessLog,
        *,
        idle_s: float,
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = {
            bytes(name).lower(): bytes(value) for name, value in scope["headers"]
        }
        self.record = record
        self.started = False
        self.actor: str | None = None
        """Id of the token that the request came with."""
        self.repo: Repo | None = None
        """The repository that it may use."""
        self._scope = scope
        self._body_read = False
        self._patience = Patience(receive, idle_s)
        self._send = send
        self._log = log

    async def body(self, limit: int | None) -> AsyncIterator[bytes]:
        """The request body, decompressed, in pieces of at most 256 KiB.

        Raises: ClientGone; BadBody for broken compression, more than `limit` bytes, or a client
        that does not send.
        """
        encoding = self.headers.get(b"content-encoding", b"identity").lower()
        if encoding not in (b"identity", b"gzip", b"x-gzip"):
            raise BadBody("unsupported Content-Encoding", 415)
        inflate = zlib.decompressobj(31) if encoding != b"identity" else None
        total = 0
        async for raw in self._raw_body():
            for piece in (raw,) if inflate is None else _inflated(inflate, raw):
                total += len(piece)
                if limit is not None and total > limit:
                    raise BadBody("the request body is too large", 413)
                yield piece
        if inflate is not None and total and not inflate.eof:
            raise BadBody("the compressed request body is cut short")

    async def _raw_body(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._patience.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            data = message.get("body", b"")
            self.record.bytes_in += len(data)
            if data:
                yield data
            if not message.get("more_body", False):
                self._body_read = True
                return

    async def start(self, content_type: bytes, headers: Headers = ()) -> None:
        """Begin a 200 answer whose length is not known."""
        await self._start(200, [(b"content-type", content_type), *headers])

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        self.record.status = status
        message = {"type": "http.response.start", "status": status, "headers": headers}
        close_if_unread(message, self._scope, body_read=self._body_read)
        await self._send(message)

    async def write(self, data: bytes) -> None:
        """Send a piece of the answer; waits while the client does not read."""
        self.record.bytes_out += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """End the answer."""
        self._log.write(self.record)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(
        self,
        status: int,
        body: bytes,
        content_type: bytes = b"text/plain; charset=utf-8",
        headers: Headers = (),
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [(b"content-type", content_type), length, *headers])
        self.record.bytes_out += len(body)
        self._log.write(self.record)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def close_if_unread(message: Message, scope: Message, *, body_read: bool) -> None:
    """Tell a client that the connection ends here, if its request was not read to the end.

    HTTP/1.1 cannot go on behind an unread body: without this, a client would use the connection
    again and fail.
    """
    if body_read or not scope["http_version"].startswith("1"):
        return
    names = {bytes(name).lower() for name, _ in scope["headers"]}
    if b"transfer-encoding" in names or dict(scope["headers"]).get(b"content-length", b"0") != b"0":
        message["headers"] = [*message["headers"], (b"connection", b"close")]


def _inflated(inflate: Any, raw: bytes) -> Iterator[bytes]:
    """Decompress bit by bit: a small body may stand for gigabytes."""
    while raw and not inflate.eof:
        try:
            piece = inflate.decompress(raw, _INFLATE_STEP)
        except zlib.error:
            raise BadBody("the request body is not gzip") from None
        raw = inflate.unconsumed_tail
        if piece:
            yield piece
