"""The first round trip with a remote: what it can do and, hoping for version 2, what a clone needs.

A server says what it can do only when it is asked, and what its refs are only when it is asked
again; then the tip can be fetched. Over HTTP these are three round trips for nothing: all three
requests are sent at once, each on a connection of its own, which stays for what follows. The tip is
wanted by the name of its ref (``ref-in-want``), which a server may not understand, and says so at
once; then it is fetched in the usual way.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal

import trio

from artifactfs.errors import (
    ArtifactFSError,
    ProtocolError,
    RemoteBusy,
    RemoteError,
    RemoteUnreachable,
)
from artifactfs.git.wire import protocol
from artifactfs.git.wire.protocol import RefAdvertisement
from artifactfs.git.wire.sideband import SideBands, side_band_data
from artifactfs.git.wire.transport import Advertisement, Exchange, PacketReader, Transport, deadline
from artifactfs.pktline import FLUSH, Packet

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
    """The tip of `ref` (a full name, or HEAD), to be asked for before the server is known."""

    ref: str
    filter: str
    depth: int


class TipPack:
    """The pack of a `TipWish`, which arrived as a whole. Read it once, as a `PackStream`."""

    def __init__(self, wish: TipWish, stream: PackStream, file: IO[bytes]) -> None:
        self.wish = wish
        self.oid = stream.named[wish.ref]
        self.shallow = stream.shallow
        self.unshallow = stream.unshallow
        self._file = file

    def __aiter__(self) -> TipPack:
        return self

    async def __anext__(self) -> bytes:
        if piece := self._file.read(_PIECE):
            return piece
        raise StopAsyncIteration

    def close(self) -> None:
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
) -> Greeting:
    """Ask what the remote can do and, at the same time, for `refs` and the `tip`.

    What is hoped for and does not come leaves None. Raises: RemoteError.
    """
    advertisement: Advertisement | None = None
    error: ArtifactFSError | None = None
    found_refs: list[RefAdvertisement] = []
    found_tip: list[TipPack] = []

    async def hope_for_refs() -> None:
        request = protocol.command("ls-refs", protocol.ls_refs_arguments(CLONE_PREFIXES, None))
        with hoping, _unfulfilled():
            packets = await ask(transport, "ls-refs", request, name, deadline_s, False)
            found = protocol.parse_refs(packets)
            if "HEAD" in found.refs:  # else only `unborn` tells what it is, if the server knows it
                found_refs.append(found)

    async def hope_for_tip(wish: TipWish) -> None:
        with hoping_for_tip, _unfulfilled():
            found_tip.append(await _fetch_tip(transport, wish, name, deadline_s))

    async with trio.open_nursery() as nursery:
        hoping, hoping_for_tip = trio.CancelScope(), trio.CancelScope()
        if refs:
            nursery.start_soon(hope_for_refs)
        if tip is not None:
            nursery.start_soon(hope_for_tip, tip)
        try:
            with deadline(deadline_s, name):
                advertisement = await transport.advertisement()
        except ArtifactFSError as failed:
            error = failed
        if advertisement is None or advertised_version(advertisement) != 2:
            hoping.cancel()
            hoping_for_tip.cancel()
    if error is not None:
        for pack in found_tip:
            pack.close()
        raise error
    assert advertisement is not None
    return Greeting(
        advertisement,
        advertised_version(advertisement),
        found_refs[0] if found_refs else None,
        found_tip[0] if found_tip else None,
    )


@contextmanager
def _unfulfilled() -> Iterator[None]:
    """A hope that fails says nothing: the advertisement tells why, else it is asked for again."""
    try:
        yield
    except RemoteError:
        return


async def _fetch_tip(transport: Transport, wish: TipWish, name: str, deadline_s: float) -> TipPack:
    """Raises: RemoteError."""
    arguments = protocol.fetch_arguments(
        (), names=(wish.ref,), filter_spec=wish.filter, depth=wish.depth
    )
    request = protocol.command("fetch", arguments)
    file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
    try:
        async with transport.exchange("fetch", request) as exchange:
            stream = PackStream(exchange, PacketReader(exchange))
            with deadline(deadline_s, name):
                await stream.read_sections()
            if wish.ref not in stream.named:
                raise ProtocolError("the remote does not say what the ref is")
            async for chunk in stream:
                file.write(chunk)
        file.seek(0)
        return TipPack(wish, stream, file)
    except BaseException:
        file.close()
        raise


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
