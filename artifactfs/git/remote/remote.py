"""One Git remote: its refs, packs and object sizes, over whatever transport reaches it.

Everything here speaks protocol version 2. Servers that do not are mirrored by git itself
(`artifactfs.git.remote.mirror`), and the mirror speaks it for them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import trio

from artifactfs.errors import ProtocolError
from artifactfs.git.wire import protocol
from artifactfs.git.wire.greeting import PackStream, TipPack, TipWish, ask
from artifactfs.git.wire.protocol import RefAdvertisement, ServerCapabilities
from artifactfs.git.wire.transport import PacketReader, RequestCounters, Transport
from artifactfs.pktline import Packet

log = logging.getLogger(__name__)

Oid = bytes

SIZES_PER_REQUEST = 10_000
_CLOSE_S = 3.0
BEGIN_S = 0.5
PATIENCE_S = 0.05
"""From the first bytes of a tip on: its trees are all here by then, if there are a few thousand. Of
a server, or something before it, that holds first bytes back, they are not waited for longer than
`BEGIN_S`."""

LIMIT_FILTER = (
    "the remote offers no partial clone (uploadpack.allowFilter): the first mount downloads every "
    "file of the tip, and history comes with the contents of all files"
)
LIMIT_OBJECT_INFO = (
    "the remote offers no object-info (transfer.advertiseObjectInfo): sizes become known by "
    "downloading a directory's files"
)
LIMIT_REFUSED = (
    "the remote offers object-info and refuses it: sizes become known by downloading a directory's "
    "files"
)
_REFUSALS = 2
"""In a row: one may be a proxy that had a bad moment."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the remote can do.

    `protocol` is what the server itself speaks. `limits` says in whole sentences what is slower
    because of it. `any_oid`: it sends any object that it has, not only those that refs point at.
    `git_because` says why git reaches it for us; None: our own transport does.
    """

    protocol: Literal[2, 1, 0, "dumb", "bundle"]
    filter: bool
    object_info: bool
    any_oid: bool
    limits: tuple[str, ...]
    git_because: str | None = None


class Remote:
    """One remote of one mount. Safe for concurrent use; made by `opening.open_remote`.

    Every wait on the network ends after `deadline_s` without a byte, and answers other than packs
    must be complete by then. Cancelling any call leaves the object usable. All calls raise the
    RemoteError family.
    """

    def __init__(
        self,
        transport: Transport,
        server: ServerCapabilities,
        capabilities: Capabilities,
        *,
        name: str,
        deadline_s: float,
        counters: RequestCounters,
    ) -> None:
        self.capabilities = capabilities
        self.name = name
        self.requests = counters
        self._transport = transport
        self._server = server
        self._deadline_s = deadline_s
        self._expected: tuple[tuple[str, ...], RefAdvertisement] | None = None
        self._expected_tip: TipPack | None = None
        self._refusals = 0

    @property
    def alternate(self) -> Path | None:
        """An object directory on this machine that has the remote's objects already; None for
        everything but a mirrored remote."""
        return self._transport.alternate

    async def ls_refs(self, prefixes: Sequence[str] = ()) -> RefAdvertisement:
        """The refs that start with one of `prefixes` (none: all), with ``HEAD`` if asked for."""
        if self._expected is not None:
            (expected, refs), self._expected = self._expected, None
            if expected == tuple(prefixes):
                return refs
        await self._transport.prepare_refs()
        arguments = protocol.ls_refs_arguments(prefixes, self._server)
        return protocol.parse_refs(await self._simple("ls-refs", arguments))

    def expect_refs(self, prefixes: Sequence[str], refs: RefAdvertisement) -> None:
        """Let the next `ls_refs` with these prefixes answer `refs`: they were just received."""
        self._expected = (tuple(prefixes), refs)

    def expect_tip(self, pack: TipPack) -> None:
        """Let the next `fetch_pack` of just this be answered by it."""
        self._expected_tip = pack

    async def is_slow(self, tip: Oid, wish: TipWish, arriving: trio.Nursery) -> bool:
        """Begin to fetch `tip` in `arriving`, unless it was asked for when the remote was opened;
        the next `fetch_pack` of that is answered by it. Returns whether it takes long, as soon as
        that is known.
        """
        pack = self._expected_tip
        if pack is not None and pack.has_failed:
            pack.close()  # the remote does not know refs as wants
            pack = None
        if pack is None:
            self._expected_tip = pack = TipPack(wish, tip)
            request = self._fetch_request([tip], filter=wish.filter, depth=wish.depth)
            fetch = (self._transport, request, self.name, self._deadline_s)
            arriving.start_soon(pack.fetch, *fetch)
        with trio.move_on_after(BEGIN_S):
            await pack.begun.wait()
        if pack.oid not in (None, tip):
            return False
        with trio.move_on_after(PATIENCE_S):
            await pack.arrived.wait()
        return not pack.arrived.is_set()

    async def until_here(self) -> None:
        """Return when nothing more comes of the pack that `is_slow` is about."""
        if self._expected_tip is not None:
            await self._expected_tip.arrived.wait()

    @property
    def expects_tip(self) -> bool:
        """Whether a pack that was asked for ahead was not read yet."""
        return self._expected_tip is not None

    async def _take_tip(
        self, wants: list[Oid], filter: str | None, depth: int | None
    ) -> TipPack | None:
        """The expected pack, where it is what is asked for; one that is not is given up. What is
        asked for with another filter is something else, and leaves it alone."""
        pack = self._expected_tip
        if pack is None or filter != pack.wish.filter:
            return None
        self._expected_tip = None
        await pack.begun.wait()
        if wants != [pack.oid] or depth != pack.wish.depth:
            pack.close()
            return None
        return pack

    async def prepare(self, wants: Iterable[Oid]) -> None:
        """Return when a request for `wants` can be answered at once. `fetch_pack` does the same,
        but where git fetches into a mirror first, no byte says for how long."""
        await self._transport.prepare_objects(frozenset(wants))

    @asynccontextmanager
    async def fetch_pack(
        self,
        wants: Iterable[Oid],
        *,
        filter: str | None = None,
        depth: int | None = None,
        haves: Collection[Oid] = (),
        shallow: Collection[Oid] = (),
        urgent: bool = False,
    ) -> AsyncIterator[PackStream | TipPack]:
        """Ask for a pack of `wants` (commits, trees or blobs, in that order) and what they need.

        `filter` is a filter spec (git-rev-list(1)); it and `depth` are ignored where the remote has
        none. `haves`
        and `shallow` are commits that are here, and those of them without parents. The pack is
        not thin. Raises ObjectsMissing with the oids that the server named.
        """
        wants = list(wants)
        if not haves and (tip := await self._take_tip(wants, filter, depth)) is not None:
            with closing(tip):
                yield tip
            return
        await self._transport.prepare_objects(frozenset(wants))
        request = self._fetch_request(
            wants, filter=filter, depth=depth, haves=haves, shallow=shallow
        )
        async with self._transport.exchange("fetch", request, urgent=urgent) as exchange:
            stream = PackStream(exchange, PacketReader(exchange))
            await stream.read_sections()
            yield stream

    def _fetch_request(
        self,
        wants: list[Oid],
        *,
        filter: str | None,
        depth: int | None,
        haves: Collection[Oid] = (),
        shallow: Collection[Oid] = (),
    ) -> bytes:
        if not self.capabilities.filter:
            filter = None
        if not self._server.supports("fetch", "shallow"):
            depth, shallow = None, ()
        arguments = protocol.fetch_arguments(
            wants, haves=haves, filter_spec=filter, depth=depth, shallow=shallow
        )
        return protocol.command("fetch", arguments, self._server)

    async def object_sizes(self, oids: Collection[Oid], *, urgent: bool = False) -> dict[Oid, int]:
        """Sizes in bytes by ``object-info``; absent where the remote does not know them.

        A remote that refuses it again and again is taken for one that does not offer it.
        """
        sizes: dict[Oid, int] = {}
        if not self.capabilities.object_info:
            return sizes
        ordered = list(oids)
        await self._transport.prepare_objects(frozenset(ordered))
        for start in range(0, len(ordered), SIZES_PER_REQUEST):
            chunk = ordered[start : start + SIZES_PER_REQUEST]
            arguments = protocol.object_info_arguments(chunk)
            refused_before = self._refusals
            try:
                packets = await self._simple("object-info", arguments, urgent=urgent)
                sizes |= protocol.parse_sizes(packets)
            except ProtocolError as error:
                self._note_refusal(error, refused_before)
                break
            self._refusals = 0
        return sizes

    def _note_refusal(self, error: ProtocolError, before: int) -> None:
        """`before`: how many there were when it was asked, so that those that come at the same time
        are one. Raises: `error`, where asking again may help."""
        self._refusals = max(self._refusals, before + 1)
        if self._refusals < _REFUSALS:
            raise error
        if self.capabilities.object_info:
            log.warning("%s: %s (%s)", self.name, LIMIT_REFUSED, error.message)
            limits = (*self.capabilities.limits, LIMIT_REFUSED)
            self.capabilities = replace(self.capabilities, object_info=False, limits=limits)

    async def aclose(self) -> None:
        """Close every connection."""
        tip, self._expected_tip = self._expected_tip, None
        if tip is not None:
            tip.close()
            await tip.ended.wait()
        await self._transport.aclose()

    async def _simple(
        self, name: str, arguments: Iterable[str], *, urgent: bool = False
    ) -> list[Packet]:
        """A request whose answer is one section."""
        request = protocol.command(name, arguments, self._server)
        return await ask(self._transport, name, request, self.name, self._deadline_s, urgent)


def version_2_capabilities(server: ServerCapabilities) -> Capabilities:
    """What a version 2 server can do, and what is slower for want of the rest."""
    filters = server.supports("fetch", "filter")
    sizes = "object-info" in server
    limits = [] if filters else [LIMIT_FILTER]
    if not sizes:
        limits.append(LIMIT_OBJECT_INFO)
    return Capabilities(2, filters, sizes, True, tuple(limits))
