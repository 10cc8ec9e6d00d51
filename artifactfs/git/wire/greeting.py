"""The first round trip with a remote: what it can do and, hoping for version 2, what a clone needs.

A server says what it can do only when it is asked, and what its refs are only when it is asked
again; then the tip can be fetched. Over HTTP these are three round trips for nothing: all three
requests are sent at once, each on a connection of its own, which stays for what follows. The tip is
wanted by the name of its ref (``ref-in-want``), which a server may not understand, and says so at
once; then it is fetched in the usual way.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import trio

from artifactfs.errors import (
    ArtifactFSError,
    ProtocolError,
    RemoteBusy,
    RemoteError,
    RemoteUnreachable,
    StateError,
)
from artifactfs.git.wire import protocol
from artifactfs.git.wire.protocol import RefAdvertisement
from artifactfs.git.wire.sideband import SideBands, side_band_data
from artifactfs.git.wire.transport import Advertisement, Exchange, PacketReader, Transport, deadline
from artifactfs.pktline import FLUSH, Packet

log = logging.getLogger(__name__)

Oid = bytes

CLONE_PREFIXES = ("HEAD", "refs/heads/", "refs/tags/")
_IN_MEMORY = 8 << 20
_PIECE = 1 << 18
_ANSWER_BYTES = 512 << 20
"""Of refs or sizes: some million refs are 100 MB."""

Version = Literal[2, 1, 0, "dumb"]


class PackStream:
    """The bytes of one pack, as they arrive, also those of a packet that is not complete; none at
    all (``b""``) are a sign of life of a server that is still looking for deltas.

    `shallow` and `unshallow` are commits whose parents were left out, or are no longer; `named` has
    the objects of refs that were wanted by name. All are complete before the first chunk.
    """

    def __init__(self, exchange: Exchange, reader: PacketReader) -> None:
        self._exchange = exchange
        self._reader = reader
        self._bands = SideBands()
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self.shallow: frozenset[Oid] = frozenset()
        self.unshallow: frozenset[Oid] = frozenset()
        self.named: dict[str, Oid] = {}

    def __aiter__(self) -> PackStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._ended:
                raise StopAsyncIteration
            chunk = await self._exchange.receive()
            if not chunk:
                raise RemoteBusy("the remote's answer was cut short")
            await self._take(chunk)
        return self._pieces.popleft()

    async def _take(self, chunk: bytes) -> None:
        pieces, end = self._bands.feed(chunk)
        self._pieces += pieces
        if end is not None:
            await self._end(end)

    async def _end(self, packet: Packet) -> None:
        if packet is not FLUSH:
            raise ProtocolError("the remote's pack has a section in its middle")
        self._ended = True
        await self._exchange.finish()

    async def read_sections(self) -> None:
        """Read up to the pack. Raises: RemoteError."""
        while True:
            header = await self._reader.next()
            if header in (b"packfile\n", b"packfile"):
                packets, part = self._reader.rest()
                for packet in packets:
                    if isinstance(packet, bytes):
                        self._pieces.append(side_band_data(packet))
                    else:
                        return await self._end(packet)
                return await self._take(part)
            if not isinstance(header, bytes):
                raise ProtocolError("the remote answered a fetch without a pack")
            lines, _ = await self._reader.section()
            if header.strip() == b"shallow-info":
                self._read_shallow(lines)
            elif header.strip() == b"wanted-refs":
                self.named |= {name: protocol.parse_oid(oid) for oid, name in _pairs(lines)}

    def _read_shallow(self, lines: Iterable[Packet]) -> None:
        found: dict[str, set[Oid]] = {"shallow": set(), "unshallow": set()}
        for kind, oid in _pairs(lines):
            if kind in found:
                found[kind].add(protocol.parse_oid(oid))
        self.shallow = frozenset(found["shallow"])
        self.unshallow = frozenset(found["unshallow"])


def _pairs(lines: Iterable[Packet]) -> Iterator[tuple[str, str]]:
    for line in lines:
        assert isinstance(line, bytes)
        first, _, second = line.decode("utf-8", "surrogateescape").strip().partition(" ")
        yield first, second


@dataclass(frozen=True, slots=True)
class TipWish:
    """A tip without its parents; of `ref` (a full name, or HEAD), it can be asked for before the
    server is known."""

    ref: str
    filter: str
    depth: int


class TipPack:
    """The pack of a tip, kept while it arrives. Read it once, as a `PackStream`; it may be read
    before all of it is here."""

    def __init__(self, wish: TipWish, oid: Oid | None = None) -> None:
        """`oid`: the tip, where it is known already."""
        self.wish = wish
        self.oid = oid
        """None: it is not known yet, or does not come."""
        self.shallow: frozenset[Oid] = frozenset()
        self.unshallow: frozenset[Oid] = frozenset()
        self.begun = trio.Event()
        """What precedes the pack is here, or it failed."""
        self.arrived = trio.Event()
        """Nothing more comes: all of it is here, or it failed."""
        self.ended = trio.Event()
        """Its request is over as well."""
        self.is_whole = False
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._at = 0
        self._news = trio.Event()
        self._error: ArtifactFSError | None = None
        self._receiving = trio.CancelScope()
        self._is_closed = False

    async def fetch(
        self, transport: Transport, request: bytes, name: str, deadline_s: float
    ) -> None:
        """Send `request` and keep what comes, until all of it is here. Raises nothing but
        cancellation: what goes wrong is raised where the pack is read."""
        try:
            with self._receiving:
                async with transport.exchange("fetch", request) as exchange:
                    await self._receive(exchange, name, deadline_s)
        except ArtifactFSError as error:
            self._error = error
            log.debug("a tip does not come: %s", error)
        except OSError as error:
            self._error = StateError(f"a pack that arrives cannot be kept: {error.strerror}")
        finally:
            self.begun.set()
            self.arrived.set()
            self.ended.set()
            self._tell()
            if self._is_closed:
                self._file.close()

    async def _receive(self, exchange: Exchange, name: str, deadline_s: float) -> None:
        stream = PackStream(exchange, PacketReader(exchange))
        with deadline(deadline_s, name):
            await stream.read_sections()
        if self.oid is None and self.wish.ref not in stream.named:
            raise ProtocolError("the remote does not say what the ref is")
        self.oid = stream.named.get(self.wish.ref, self.oid)
        self.shallow, self.unshallow = stream.shallow, stream.unshallow
        self.begun.set()
        async for chunk in stream:
            self._file.seek(0, os.SEEK_END)
            self._file.write(chunk)
            self._tell()
        self.is_whole = True
        self.arrived.set()

    @property
    def has_failed(self) -> bool:
        """Whether nothing more comes though it is not whole."""
        return self.arrived.is_set() and not self.is_whole

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def __aiter__(self) -> TipPack:
        return self

    async def __anext__(self) -> bytes:
        while True:
            self._file.seek(self._at)
            if piece := self._file.read(_PIECE):
                self._at += len(piece)
                return piece
            if self._error is not None:
                raise self._error
            if self.is_whole:
                raise StopAsyncIteration
            if self.arrived.is_set():
                raise RemoteBusy("the remote's answer was cut short")
            await self._news.wait()

    def close(self) -> None:
        """Give it up, also what has not come yet."""
        self._is_closed = True
        self._receiving.cancel()
        if self.ended.is_set():
            self._file.close()


@dataclass(slots=True)
class Greeting:
    """What the first round trip fetched; `refs` are those of a clone (`CLONE_PREFIXES`)."""

    advertisement: Advertisement
    version: Version
    refs: RefAdvertisement | None = None
    tip: TipPack | None = None


async def greet(
    transport: Transport,
    name: str,
    deadline_s: float,
    *,
    refs: bool = False,
    tip: TipWish | None = None,
    arriving: trio.Nursery | None = None,
) -> Greeting:
    """Ask what the remote can do and, at the same time, for `refs` and the `tip`.

    What is hoped for and does not come leaves None. The tip goes on to come in `arriving`; without
    that it is waited for. Raises: RemoteError.
    """
    advertisement: Advertisement | None = None
    error: ArtifactFSError | None = None
    found_refs: list[RefAdvertisement] = []
    pack: TipPack | None = None

    async def hope_for_refs() -> None:
        request = protocol.command("ls-refs", protocol.ls_refs_arguments(CLONE_PREFIXES, None))
        with hoping, _unfulfilled():
            packets = await ask(transport, "ls-refs", request, name, deadline_s, False)
            found = protocol.parse_refs(packets)
            if "HEAD" in found.refs:  # else only `unborn` tells what it is, if the server knows it
                found_refs.append(found)

    async with trio.open_nursery() as nursery:
        hoping = trio.CancelScope()
        if refs:
            nursery.start_soon(hope_for_refs)
        if tip is not None:
            pack = TipPack(tip)
            arguments = protocol.fetch_arguments(
                (), names=(tip.ref,), filter_spec=tip.filter, depth=tip.depth
            )
            request = protocol.command("fetch", arguments)
            (arriving or nursery).start_soon(pack.fetch, transport, request, name, deadline_s)
        try:
            with deadline(deadline_s, name):
                advertisement = await transport.advertisement()
        except ArtifactFSError as failed:
            error = failed
        if advertisement is None or advertised_version(advertisement) != 2:
            hoping.cancel()
            await _give_up(pack)
            pack = None
    if error is not None:
        raise error
    assert advertisement is not None
    if pack is not None and pack.has_failed:
        await _give_up(pack)
        pack = None
    return Greeting(
        advertisement,
        advertised_version(advertisement),
        found_refs[0] if found_refs else None,
        pack,
    )


async def _give_up(pack: TipPack | None) -> None:
    """Return when nothing uses the transport for it any more."""
    if pack is not None:
        pack.close()
        await pack.ended.wait()


@contextmanager
def _unfulfilled() -> Iterator[None]:
    """A hope that fails says nothing: the advertisement tells why, else it is asked for again."""
    try:
        yield
    except RemoteError as error:
        log.debug("asked for too early: %s", error)


async def ask(
    transport: Transport, kind: str, request: bytes, name: str, deadline_s: float, urgent: bool
) -> list[Packet]:
    """A request whose answer is one section, of at most `_ANSWER_BYTES`.

    Ends when nothing has come for `deadline_s`: many refs over a slow line take their time.
    Raises: RemoteError.
    """
    received = 0
    with trio.CancelScope(deadline=trio.current_time() + deadline_s) as scope:

        def note(chunk: bytes) -> None:
            nonlocal received
            received += len(chunk)
            if received > _ANSWER_BYTES:
                raise ProtocolError(f"{name} does not stop answering")
            scope.deadline = trio.current_time() + deadline_s

        async with transport.exchange(kind, request, urgent=urgent) as exchange:
            packets, _ = await PacketReader(exchange, note).section()
            await exchange.finish()
            return packets
    raise RemoteUnreachable(f"{name} sent nothing for {deadline_s:g} s")


def advertised_version(advertisement: Advertisement) -> Version:
    """Raises: ProtocolError where it advertises nothing."""
    if advertisement.dumb:
        return "dumb"
    if not advertisement.packets:
        raise ProtocolError("the remote advertises nothing")
    version = protocol.advertised_version(advertisement.packets[0])
    return 2 if version == 2 else 1 if version == 1 else 0
