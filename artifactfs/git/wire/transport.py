"""What the transports have in common: one request, one streamed answer, deadlines, counters.

A transport carries protocol version 2 requests to ``git-upload-pack`` and carries the answers back
as chunks. It knows about connections and credentials, and nothing about objects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from artifactfs.errors import ProtocolError, RemoteBusy, RemoteError, RemoteUnreachable
from artifactfs.git.wire.sideband import check_error
from artifactfs.pktline import DELIM, FLUSH, Packet, PacketDecoder, Special

Oid = bytes

UNREACHABLE_HINT = "check the URL and the network; the remote may be down"


@dataclass(slots=True)
class RequestCounters:
    """What went over the wire since the remote was opened. `by_kind` counts requests by their
    kind: ``capabilities``, ``ls-refs``, ``fetch``, ``object-info``."""

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str, sent: int = 0) -> None:
        self.requests += 1
        self.bytes_out += sent
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1


class NeedsGit(RemoteError):
    """Only git itself can reach this remote as it is configured; `message` says why."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """What is configured for one URL, of the keys that our own transport knows.

    `authority` is a file of certificates in place of the system's, `user_agent` None for our own.
    """

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    user_agent: str | None = None
    verify: bool = True
    authority: str | None = None

    @property
    def authorizes(self) -> bool:
        """Whether an extra header says who we are: then nothing else does, as in curl."""
        return any(name.lower() == "authorization" for name, _ in self.headers)


class Exchange(Protocol):
    """One request that was sent, and its answer."""

    async def receive(self) -> bytes:
        """The next chunk; ``b""`` at the end. Raises: RemoteUnreachable, also on a deadline."""

    async def finish(self) -> None:
        """The answer was read completely: let the connection be used again."""


class Transport(Protocol):
    """How one remote is reached. Safe for concurrent use."""

    alternate: Path | None
    """A local object directory that has objects of the remote already (fallback only)."""

    async def advertisement(self) -> Advertisement:
        """Ask what the server can do. Raises: RemoteError."""

    def exchange(
        self, kind: str, request: bytes, *, urgent: bool = False
    ) -> AbstractAsyncContextManager[Exchange]:
        """Send a request. Leaving the context early gives the answer up. Raises: RemoteError."""

    async def prepare_refs(self) -> None:
        """Called before refs are listed."""

    async def prepare_objects(self, wants: frozenset[Oid]) -> None:
        """Called before objects are asked for."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What a server says of itself: its packets, or none for a dumb HTTP server."""

    packets: tuple[Packet, ...]
    dumb: bool = False


class PacketReader:
    """Reads packets off an exchange."""

    __slots__ = ("_decoder", "_exchange", "_note", "_ready")

    def __init__(
        self, exchange: Exchange, note: Callable[[bytes], None] = lambda chunk: None
    ) -> None:
        """`note` is told of each chunk that comes."""
        self._exchange = exchange
        self._note = note
        self._decoder = PacketDecoder()
        self._ready: Iterator[Packet] = iter(())

    async def next(self) -> Packet:
        """The next packet. Raises: RemoteUnreachable when the answer ends before it,
        ProtocolError, and ObjectsMissing for what an ``ERR`` packet says."""
        while True:
            for packet in self._ready:
                return check_error(packet)
            await self._receive()

    async def _receive(self) -> None:
        chunk = await self._exchange.receive()
        if not chunk:
            raise RemoteBusy("the remote's answer was cut short")
        self._note(chunk)
        self._ready = iter(self._decoder.feed(chunk))

    def rest(self) -> tuple[list[Packet], bytes]:
        """The packets that came and were not taken, and the part of one behind them. The end."""
        ready, self._ready = list(self._ready), iter(())
        return ready, self._decoder.pending

    async def section(self) -> tuple[list[Packet], Special]:
        """The data packets up to the next flush or delim packet, and which of them it was."""
        packets: list[Packet] = []
        while True:
            for packet in self._ready:
                if isinstance(packet, bytes):
                    packets.append(check_error(packet))
                elif packet is FLUSH or packet is DELIM:
                    return packets, packet
                else:
                    raise ProtocolError("the remote ends an answer in the middle of a section")
            await self._receive()


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raises: RemoteUnreachable when the body takes longer than `seconds`."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise RemoteUnreachable(f"{what} did not answer within {seconds:g} s")


async def drain(exchange: Exchange) -> AsyncIterator[bytes]:
    """The chunks of an answer that is not in packets."""
    while chunk := await exchange.receive():
        yield chunk
