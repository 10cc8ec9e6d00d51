"""Flights: requests for blobs on the wire, their retries, and where what they fetch goes.

A flight ends when all it was to fetch is here, or when trying again is of no use. Readers whose
want fails in an urgent flight get the error; a want that a background flight could not fetch, and
that has readers by then, is queued again as explicit.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from artifactfs.errors import (
    ArtifactFSError,
    CorruptData,
    MoreThanExpected,
    ObjectsMissing,
    RemoteBusy,
    RemoteError,
    RemoteUnreachable,
)
from artifactfs.git.pack.format import compressed_bound
from artifactfs.git.pack.parser import MAX_OBJECT, PackedObject, PackLimits
from artifactfs.git.pack.store import PackStore, PackSummary
from artifactfs.hydration.demand.queue import WantQueue
from artifactfs.hydration.demand.want import Flight, Reason, Want
from artifactfs.hydration.errors import HydrationFailed, disk_failure
from artifactfs.hydration.link.connection import RemoteLink
from artifactfs.hydration.link.trace import FetchRecord, FetchTrace
from artifactfs.hydration.local import memory_only
from artifactfs.hydration.local.cache import LARGE_BLOB
from artifactfs.hydration.local.lookup import LocalBlobs
from artifactfs.hydration.order.priority import Priority
from artifactfs.redact import redact

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
BACKGROUND_ATTEMPTS = 3
REFETCHES = 3
"""Attempts for a pack that is damaged, or an answer that is not the protocol."""
MAX_STALL_S = 15.0
"""An urgent request that fetches nothing for that long is given up and tried again."""
WHOLE_WANTS = 50
"""From so many objects on, git reads what a background request fetches: its process costs 5 ms."""
GIVE_WAY_S = 1.0
"""The sweep stops reading for at most that long at a time while a reader's request is on."""

ABANDONED_S = 5.0
"""What a reader has asked for is given up so long after nobody waits for it any more: the next
reader who comes in that time finds it nearly here."""

MAX_WHOLE = 16 << 30
"""Bytes of a request of the background whose objects' sizes are not all known."""

EXTRA_OBJECTS = 1_000
"""A remote may send more objects than were asked for, within reason."""

_NOTED_AT_ONCE = 500
"""Objects between two checkpoints: about 1 ms."""

LIST_AFTER_S = 5.0
"""So long what is noted afterwards waits for requests that are on."""

MIN_ROOM = 4 << 20
"""Bytes that are evicted at least where the disk is full: room for some requests."""

STAYS_FULL_S = 5.0
"""A disk that was full is tried again after that; until then, readers are served from memory."""


class _Abandoned(ArtifactFSError):
    """We gave it up ourselves."""


@dataclass(slots=True)
class FlightCounters:
    """Since the mount began. `bytes` are those of packs, as they came."""

    requests: int = 0
    failures: int = 0
    blobs: int = 0
    bytes: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)


class FlightControl:
    """Runs flights. Its state is touched from one event loop only; see `hydrator` for the tasks."""

    def __init__(
        self,
        *,
        queue: WantQueue,
        link: RemoteLink,
        store: PackStore,
        local: LocalBlobs,
        arrived: Callable[[bytes, int], None],
        arrived_many: Callable[[Sequence[tuple[bytes, int]]], list[tuple[bytes, int, int]]],
        make_room: Callable[[int], Awaitable[int]],
        trace: FetchTrace,
        deadline_s: float,
    ) -> None:
        self.counters = FlightCounters()
        self.active: set[Flight] = set()
        self.lacking: set[bytes] = set()
        """Objects that the remote said it does not have: nothing asks for them unasked again."""
        self.trees_refused = False
        self._queue = queue
        self._link = link
        self._health = link.health
        self._store = store
        self._local = local
        self._arrived = arrived
        self._arrived_many = arrived_many
        self._make_room = make_room
        self._trace = trace
        self._deadline_s = deadline_s
        self._full_until = float("-inf")
        self._unlisted: deque[str] = deque()
        self._listing = trio.Event()
        self.first_bytes = trio.Event()
        """The remote sends the first bytes of some request; each time another event."""
        self._urgent = 0
        self._no_urgent = trio.Event()
        self._no_urgent.set()

    @property
    def disk_full(self) -> bool:
        """Whether the disk of the cache was full a moment ago, and nothing could be evicted."""
        return trio.current_time() < self._full_until

    def moved(self, oid: bytes) -> float:
        """When bytes came last of a request that fetches `oid`; long ago where none have."""
        want = self._queue.get(oid)
        flights = [*want.carriers] if want is not None else []
        if (flight := self.flight_with(oid)) is not None:
            flights.append(flight)
        return max((flight.moved for flight in flights if flight.received), default=-math.inf)

    def flight_with(self, oid: bytes) -> Flight | None:
        """The flight that fetched `oid` already, but whose pack is not in place yet."""
        return next((flight for flight in self.active if oid in flight.arrived), None)

    async def give_way(self, seconds: float) -> None:
        """Wait, at most so long, while requests are on that somebody asked for."""
        with trio.move_on_after(seconds):
            while asked := next((f for f in self.active if f.reason is not Reason.SWEEP), None):
                await asked.landed.wait()

    async def fly(self, flight: Flight) -> None:
        """Carry `flight` to its end. Waits for the network; raises nothing but cancellation."""
        self.active.add(flight)
        for want in flight.wants.values():
            want.carriers.append(flight)
        if flight.urgent:
            self._urgent += 1
            self._no_urgent = trio.Event() if self._no_urgent.is_set() else self._no_urgent
        try:
            await self._carry(flight)
        finally:
            self._land(flight)

    def _land(self, flight: Flight) -> None:
        self.active.discard(flight)
        if flight.urgent:
            self._urgent -= 1
            if not self._urgent:
                self._no_urgent.set()
        for want in flight.wants.values():
            want.carriers.remove(flight)
            if want.finished:
                continue
            if want.readers and not want.carriers:
                want.priority = Priority.EXPLICIT
                self._queue.push(want)
            else:
                self._queue.drop_idle(want)
        self._tell_corrected(flight)
        flight.landed.set()
        self._queue.wake()

    def _tell_corrected(self, flight: Flight) -> None:
        """One line for a request, however many sizes were wrong."""
        if not flight.corrected:
            return
        oid, told, size = flight.corrected[0]
        others = (
            f"; so it was with {len(flight.corrected) - 1} more" if flight.corrected[1:] else ""
        )
        log.warning(
            "the remote told a wrong size of object %s: %d bytes, and it has %d%s",
            *(oid.hex(), told, size, others),
        )

    async def _carry(self, flight: Flight) -> None:
        attempt = 0
        refetches = 0
        flight.in_memory = flight.urgent and self.disk_full
        while oids := self._missing(flight):
            flight.whole = self._comes_whole(flight, oids)
            if flight.in_memory:
                oids = self._fitting(oids)
            epoch = self._health.epoch
            error = await self._attempt(flight, oids)
            flight.error = error
            if isinstance(error, _Abandoned):
                continue  # which says nothing of the remote; a reader may have come since
            if error is None:
                self._health.note_success()
                self._fail_unsent(flight, oids)
                return
            self.counters.failures += 1
            self._note_trouble(flight, error)
            if isinstance(error, ObjectsMissing):
                self._health.note_success()
                self._drop_missing(flight, oids, error)
                continue
            if isinstance(error, MoreThanExpected) and self._distrusted(flight, oids):
                continue
            attempt += 1
            if isinstance(error, HydrationFailed):
                if flight.urgent and error.disk_full and await self._without_space(flight):
                    continue
                self._fail(flight, error)
                return
            if isinstance(error, RemoteError):
                self._link.note_failure(error, epoch)
                if not self._health.up:
                    return  # the outage told the readers
            if not isinstance(error, RemoteUnreachable):
                refetches += 1
            if refetches >= REFETCHES:
                self._fail(flight, error)
                return
            if attempt >= BACKGROUND_ATTEMPTS and not flight.urgent:
                return
            asked_s = error.retry_after_s if isinstance(error, RemoteBusy) else None
            await trio.sleep(max(_backoff_s(attempt), min(asked_s or 0.0, self._deadline_s / 2)))

    def _distrusted(self, flight: Flight, oids: list[bytes]) -> bool:
        """After an answer that is larger than it may be: whether another attempt is of use.

        The sizes may be wrong by which it was bounded: once more with the general bound. What is
        too large for that ends the attempts for one object alone, not for all of the request.
        """
        if flight.trusts_sizes and self._told_sizes(flight, oids) is not None:
            flight.trusts_sizes = False
            return True
        if len(oids) > 1 and not flight.trees and flight.urgent:
            self._alone(flight)
            return True
        return False

    async def _without_space(self, flight: Flight) -> bool:
        """After a full disk: whether there is another way to serve the readers of `flight`."""
        if not flight.made_room:
            flight.made_room = True
            need = sum(self._local.size_of(want.oid) or 0 for want in flight.wants.values())
            freed = await self._make_room(max(2 * need, MIN_ROOM))
            if freed:
                log.warning("the disk of the cache is full: %d bytes were evicted", freed)
                return True
        if not flight.in_memory:
            flight.in_memory = True
            self._full_until = trio.current_time() + STAYS_FULL_S
            log.warning("the disk of the cache is full: what is read is kept in memory only")
            return True
        return False

    def _fitting(self, oids: list[bytes]) -> list[bytes]:
        """As many of `oids` as may be in memory at once; those left out get a flight of theirs."""
        fitting: list[bytes] = []
        budget = memory_only.MAX_BYTES
        for oid in oids:
            budget -= self._local.size_of(oid) or 0
            if fitting and budget < 0:
                break
            fitting.append(oid)
        return fitting

    def _missing(self, flight: Flight) -> list[bytes]:
        """What to ask for in the next attempt: the urgent first, whole trees last."""
        candidates: list[bytes] = []
        retried = flight.error is not None or flight.in_memory
        for want in flight.wants.values():
            if flight.single is not None and want.oid not in flight.single:
                continue
            if flight.reason is Reason.READ and (want.finished or (retried and not want.readers)):
                continue  # readers come first when something is wrong: leave the siblings out
            if want.oid not in self.lacking or (want.readers and not want.finished):
                candidates.append(want.oid)
        oids = self._local.missing(candidates)
        absent = set(oids)
        for oid in candidates:
            if oid not in absent:
                self._queue.finish(flight.wants[oid], error=None)
        if not flight.wants or any(not want.finished for want in flight.wants.values()):
            oids += flight.trees
        return oids

    async def _attempt(self, flight: Flight, oids: list[bytes]) -> ArtifactFSError | None:
        """One request. Returns what went wrong."""
        stall_s = self._deadline_s
        if flight.urgent:
            stall_s = min(MAX_STALL_S, self._deadline_s / 3)
        self.counters.requests += 1
        reason = flight.reason.value
        self.counters.by_reason[reason] = self.counters.by_reason.get(reason, 0) + 1
        whole: PackSummary | None = None
        silent = RemoteUnreachable(f"the remote sent nothing for {round(stall_s, 1):g} s")
        scope = trio.CancelScope()
        try:
            with trio.CancelScope(deadline=trio.current_time() + stall_s) as opening:
                remote = await self._link.get()
            if opening.cancelled_caught:
                return silent
            await remote.prepare(oids)  # which has deadlines of its own
            filter_spec = flight.filter if remote.capabilities.filter else None
            scope.deadline = trio.current_time() + stall_s
            with scope:
                async with remote.fetch_pack(
                    oids, filter=filter_spec, urgent=flight.urgent
                ) as chunks:
                    sizes = self._told_sizes(flight, oids)
                    metered = self._metered(flight, chunks, scope, stall_s)
                    receive = partial(self._receive, flight)
                    if flight.in_memory:
                        await memory_only.receive(metered, on_object=receive)
                    elif flight.whole:
                        bounded = _bounded(metered, _most_bytes(sizes, len(oids)))
                        whole = await self._store.ingest_whole(bounded)
                    else:
                        limits = _limits(flight, sizes, len(oids))
                        await self._store.ingest(metered, on_object=receive, limits=limits)
        except ArtifactFSError as error:
            return error
        except OSError as error:
            return disk_failure(error)
        if whole is not None:  # however long git took to index it
            await self._receive_whole(flight, whole)
        elif scope.cancelled_caught:
            return silent
        return None

    async def _metered(
        self,
        flight: Flight,
        chunks: AsyncIterator[bytes],
        scope: trio.CancelScope,
        stall_s: float,
    ) -> AsyncIterator[bytes]:
        """`chunks`, while `scope` is given `stall_s` from each on: from a sign of life without
        content, too, but not for longer than the repository's deadline. Raises: _Abandoned when
        nobody has waited for them for a while."""
        last_chunk_at = waited_for = trio.current_time()
        async for chunk in chunks:
            now = trio.current_time()
            if not flight.urgent or any(want.readers for want in flight.wants.values()):
                waited_for = now
            elif now - waited_for > ABANDONED_S:
                raise _Abandoned("given up: nobody waits for it any more")
            if not chunk:
                scope.deadline = min(now + stall_s, last_chunk_at + self._deadline_s)
                continue
            first = not flight.received
            flight.received += len(chunk)
            self.counters.bytes += len(chunk)
            flight.moved = last_chunk_at = now
            if first:
                self.first_bytes.set()
                self.first_bytes = trio.Event()
            scope.deadline = now + stall_s
            yield chunk
            if flight.reason is Reason.SWEEP and self._urgent:
                # What is not read here leaves the line to the reader's request.
                with trio.move_on_after(GIVE_WAY_S):
                    await self._no_urgent.wait()
                scope.deadline = trio.current_time() + stall_s

    def _told_sizes(self, flight: Flight, oids: list[bytes]) -> list[int] | None:
        """The sizes by which the answer to a request for `oids` is bounded, where all are known."""
        if flight.trees or not flight.trusts_sizes:
            return None
        sizes = [size for oid in oids if (size := self._local.size_of(oid)) is not None]
        return sizes if len(sizes) == len(oids) else None

    def _comes_whole(self, flight: Flight, oids: list[bytes]) -> bool:
        """Whether its objects are handed out together at the end: see `PackStore.ingest_whole`.

        Not with a large blob, which our parser has in a file of its own when it is here; nor where
        sizes turned out wrong, since our parser bounds each object.
        """
        if not flight.trusts_sizes:
            return False
        many = flight.trees or len(oids) >= WHOLE_WANTS
        if not many or flight.reason not in (Reason.SWEEP, Reason.PREFETCH):
            return False
        return all((self._local.size_of(oid) or 0) < LARGE_BLOB for oid in oids)

    async def _receive_whole(self, flight: Flight, pack: PackSummary) -> None:
        """A pack is in place: note what it has. Where somebody waits for all of it and nobody for
        one of its blobs, that is done afterwards (`list_later`)."""
        if flight.trees and flight.reason is Reason.PREFETCH and not len(self._queue):
            flight.objects += pack.objects
            self.counters.blobs += pack.objects
            self._unlisted.append(pack.name)
            self._listing.set()
            return
        for blobs in await self._blobs_of(pack.name):
            flight.objects += len(blobs)
            self.counters.blobs += len(blobs)
            self._note_arrivals(flight, blobs)
            await trio.lowlevel.checkpoint()
        await self._local.save_sizes()

    async def _blobs_of(self, pack: str) -> list[list[tuple[bytes, int]]]:
        """The blobs of a pack with their sizes, sorted by oid, as many as are noted at once."""

        def read() -> list[list[tuple[bytes, int]]]:
            objects = self._store.contents(pack)
            blobs = [(item.oid, item.size) for item in objects if item.kind == "blob"]
            starts = range(0, len(blobs), _NOTED_AT_ONCE)
            return [blobs[start : start + _NOTED_AT_ONCE] for start in starts]

        try:
            return await trio.to_thread.run_sync(read)
        except (CorruptData, OSError) as error:
            log.warning("pack %s cannot be listed: %s", pack, error)
            return []

    async def list_later(self) -> None:
        """Note the blobs of packs that were not looked at when they came. Never returns."""
        while True:
            await self._listing.wait()
            self._listing = trio.Event()
            while self._unlisted:
                await self.give_way(LIST_AFTER_S)
                flight = Flight(Reason.PREFETCH, {})
                for blobs in await self._blobs_of(self._unlisted.popleft()):
                    self._note_arrivals(flight, blobs)
                    await trio.lowlevel.checkpoint()
                await self._local.save_sizes()
                self._tell_corrected(flight)

    def _note_arrivals(self, flight: Flight, blobs: Sequence[tuple[bytes, int]]) -> None:
        """As `_note_arrival` for many, sorted by oid. Most sizes were known: then nothing is to be
        written down."""
        for oid, size, known in self._arrived_many(blobs):
            told = known if known >= 0 else self._local.size_of(oid)
            if told not in (None, size):
                flight.corrected.append((oid, told, size))
            self._local.note_size(oid, size)
        for oid, size in blobs if len(self._queue) else ():
            want = self._queue.get(oid)
            if want is not None:
                if _explicit(want):
                    self._record(want, size)
                self._queue.finish(want)

    def _note_arrival(
        self, flight: Flight, want: Want | None, oid: bytes, size: int, data: bytes | None = None
    ) -> None:
        """The blob `oid` is here: note it, and finish what wanted it."""
        flight.objects += 1
        self.counters.blobs += 1
        told = self._local.size_of(oid)
        if told not in (None, size):
            flight.corrected.append((oid, told, size))
        self._local.note_size(oid, size)
        self._arrived(oid, size)
        if want is None:
            return
        if _explicit(want):
            self._record(want, size)
        self._queue.finish(want, data=data, error=None)

    def _receive(self, flight: Flight, packed: PackedObject) -> None:
        """An object is whole and verified: hand it to its readers. Raises: OSError."""
        if packed.kind != "blob":
            return
        oid = packed.oid
        if flight.wants:
            flight.arrived.add(oid)
        want = self._queue.get(oid)
        self._local.keep(packed, in_memory=flight.soon_read or _explicit(want))
        self._note_arrival(flight, want, oid, packed.size, packed.data)

    def _record(self, want: Want, size: int, error: str = "") -> None:
        ms = (trio.current_time() - want.created) * 1_000
        self._trace.add(
            FetchRecord(want.oid, want.path, Reason.READ.value, want.pid, ms, size, error=error)
        )

    # -- what went wrong

    def _note_trouble(self, flight: Flight, error: ArtifactFSError) -> None:
        for want in flight.wants.values():
            want.trouble = redact(error.message)

    def _drop_missing(self, flight: Flight, oids: list[bytes], error: ObjectsMissing) -> None:
        """The remote lacks something: go on without it, and tell only its readers."""
        trees = error.oids & set(flight.trees)
        if trees or (flight.trees and not error.oids):
            # Not every server takes a tree as a want: name the blobs.
            self.trees_refused = True
            flight.trees, flight.single = (), None
            return
        named = error.oids & set(oids)
        if not named and len(oids) > 1:
            # The remote does not say which: those with readers are asked for one by one.
            self._alone(flight)
            return
        self._lack(flight, named or set(oids))

    def _alone(self, flight: Flight) -> None:
        """Keep one want in this flight; queue the others that have readers on their own."""
        keep: Want | None = None
        for want in flight.wants.values():
            if want.finished or not want.readers:
                continue
            if keep is None:
                keep = want
        flight.single = frozenset({keep.oid}) if keep is not None else frozenset()

    def _lack(self, flight: Flight, oids: Iterable[bytes]) -> None:
        for oid in oids:
            self.lacking.add(oid)
            want = flight.wants.get(oid)
            if want is not None and not want.finished:
                failure = HydrationFailed(f"the remote does not have object {oid.hex()}")
                self._queue.finish(want, error=failure)

    def _fail_unsent(self, flight: Flight, oids: list[bytes]) -> None:
        """The answer was good, and without some of what it was asked for."""
        wanted = set(oids) - set(flight.trees)
        unsent = [oid for oid in wanted if oid in flight.wants and not flight.wants[oid].finished]
        self._lack(flight, self._local.missing(unsent))

    def _fail(self, flight: Flight, error: ArtifactFSError) -> None:
        """Give the error to the readers; a background flight leaves them to an urgent one."""
        if not flight.urgent and not isinstance(error, HydrationFailed):
            return
        for want in flight.wants.values():
            if not want.finished and (flight.urgent or want.priority is not Priority.EXPLICIT):
                self._queue.finish(want, error=_failure(error))


def _limits(flight: Flight, sizes: list[int] | None, count: int) -> PackLimits:
    """What the answer to a request for `count` objects of these sizes may hold."""
    if sizes is None:
        return PackLimits(objects=None if flight.trees else count + EXTRA_OBJECTS)
    return PackLimits(min(max(sizes, default=0), MAX_OBJECT), count + EXTRA_OBJECTS)


def _most_bytes(sizes: list[int] | None, count: int) -> int:
    """How long the pack of a request of the background for such objects may be."""
    if sizes is None:
        return MAX_WHOLE
    return min(sum(map(compressed_bound, sizes)) + EXTRA_OBJECTS * count, MAX_WHOLE)


async def _bounded(chunks: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    """`chunks`. Raises: MoreThanExpected above `most` bytes."""
    left = most
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise MoreThanExpected(f"a pack of more than {most} bytes")
        yield chunk


def _explicit(want: Want | None) -> bool:
    """Whether a program reads it."""
    return want is not None and want.readers > 0 and want.priority is Priority.EXPLICIT


def _backoff_s(attempt: int) -> float:
    return min(FIRST_BACKOFF_S * 2.0 ** (attempt - 1), MAX_BACKOFF_S) * random.uniform(0.5, 1.0)


def _failure(error: ArtifactFSError) -> HydrationFailed:
    if isinstance(error, HydrationFailed):
        return error
    prefix = "the remote sent damaged data: " if isinstance(error, CorruptData) else ""
    return HydrationFailed(prefix + redact(error.message), hint=error.hint)
