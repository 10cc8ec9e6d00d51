"""The lanes: tasks that each carry one flight after another, and what they take next.

`hydrator` describes which task touches what.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import trio

from artifactfs.hydration.background.sweep import AT_A_TIME, Sweep, SweepBatch
from artifactfs.hydration.demand.flight import FlightControl
from artifactfs.hydration.demand.queue import REQUEST_WANTS, WantQueue
from artifactfs.hydration.demand.want import Flight, Reason
from artifactfs.hydration.errors import HydrationFailed
from artifactfs.hydration.link.health import RemoteHealth
from artifactfs.hydration.link.trace import FetchRecord, FetchTrace
from artifactfs.hydration.order.nearby import NearbyBlob
from artifactfs.hydration.order.priority import Priority

URGENT_LANES = 4
"""Readers that come while all of them are busy share the next request."""
RELIEF_LANES = 3
"""More of them for readers that come while the others carry what takes long (large files). With
them there is one request less at a time than a remote has urgent connections."""
RELIEF_S = 0.3
"""A reader's want that no urgent lane has taken for so long gets another one."""
URGENT_WANTS = 512
"""Many at once are the files of a directory whose sizes only their contents can tell."""
URGENT_BYTES = 8 << 20
COMPANIONS = 64
"""Wants of an urgent request, beyond which no small siblings are added."""
WINDOW_LANES = 2
BACKGROUND_LANES = AT_A_TIME
SHARE_WANTS = 250
"""What somebody waits for is divided among the lanes, but not into smaller requests: the remote
makes packs in parallel, and each of them costs it a process."""
MAX_URGENT_LANES = 5
"""With the relief lanes: a remote has 8 urgent connections."""
PREFETCH_BYTES = 32 << 20
DISK_FULL_S = 30.0
"""The sweep waits that long before it tries a full disk again."""
_MAX_WINDOWS = 8
_EXPLICIT = (Priority.EXPLICIT,)
_BACKGROUND = (Priority.PREDICTED, Priority.PREFETCH)


class Lanes:
    """Moves wants from the queue, windows of readahead and batches of the sweep into flights."""

    def __init__(
        self,
        *,
        queue: WantQueue,
        control: FlightControl,
        health: RemoteHealth,
        sweep: Sweep,
        trace: FetchTrace,
        landed: Callable[[], None],
        swept: Callable[[], None],
        concurrency: int | None = None,
    ) -> None:
        """`concurrency`: so many requests of readers, and as many of the background, at a time."""
        self._urgent_lanes = min(concurrency or URGENT_LANES, MAX_URGENT_LANES)
        self._background_lanes = concurrency or BACKGROUND_LANES
        self._swept = swept
        self._queue = queue
        self._control = control
        self._health = health
        self._sweep = sweep
        self._trace = trace
        self._landed = landed
        self._windows: deque[Flight] = deque()
        self._trees: deque[Flight] = deque()

    async def run(self) -> None:
        """Run every lane. Cancel it to stop; wants that are in flight are dropped then."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._urgent_lanes):
                nursery.start_soon(self._urgent_lane)
            for _ in range(RELIEF_LANES):
                nursery.start_soon(self._relief_lane)
            for _ in range(WINDOW_LANES):
                nursery.start_soon(self._window_lane)
            for _ in range(self._background_lanes):
                nursery.start_soon(self._background_lane)

    def add_window(self, window: Sequence[NearbyBlob]) -> None:
        """Fetch a readahead window soon. Readers find its blobs among the wants from now on."""
        if self._control.disk_full:
            return
        wants = {}
        for blob in window:
            if self._queue.get(blob.oid) is None:
                wants[blob.oid] = self._queue.enter(blob.oid, Priority.PREDICTED, path=blob.path)
        if not wants:
            return
        self._windows.append(Flight(Reason.READAHEAD, wants))
        if len(self._windows) > _MAX_WINDOWS:
            self._forget(self._windows.popleft())
        self._queue.wake()

    def drop_windows(self) -> None:
        """Forget every window that has not taken off."""
        while self._windows:
            self._forget(self._windows.popleft())

    def add_trees(self, trees: Iterable[tuple[bytes, ...]], filter_spec: str) -> list[Flight]:
        """Fetch whole trees soon, some in one flight; each has landed when it is over, however it
        ended."""
        flights = [Flight(Reason.PREFETCH, {}, trees=some, filter=filter_spec) for some in trees]
        self._trees.extend(flights)
        self._queue.wake()
        return flights

    def drop_trees(self) -> None:
        """Forget those of them that have not taken off."""
        while self._trees:
            self._trees.popleft().landed.set()

    def _forget(self, flight: Flight) -> None:
        for want in flight.wants.values():
            if want.readers and not want.queued and not want.carriers:
                want.priority = Priority.EXPLICIT
                self._queue.push(want)
            else:
                self._queue.drop_idle(want)

    # -- the tasks

    async def _urgent_lane(self) -> None:
        while True:
            flight = self._next_urgent()
            if flight is None:
                await self._queue.changed()
            else:
                await self._fly(flight)

    async def _relief_lane(self) -> None:
        while True:
            waiting = self._queue.first(Priority.EXPLICIT)
            if waiting is None:
                await self._queue.changed()
                continue
            await trio.sleep(RELIEF_S)
            if self._queue.first(Priority.EXPLICIT) is waiting:
                flight = self._next_urgent()
                if flight is not None:
                    await self._fly(flight)

    async def _window_lane(self) -> None:
        while True:
            if self._windows and self._health.up:
                await self._fly(self._windows.popleft())
            else:
                await self._queue.changed()

    async def _background_lane(self) -> None:
        while True:
            flight: Flight | None = None
            batch: SweepBatch | None = None
            if self._health.up:
                flight = self._trees.popleft() if self._trees else self._next_prefetch()
                if flight is None:
                    self._sweep.with_subtrees &= not self._control.trees_refused
                    batch = self._sweep.next()
            if flight is not None:
                await self._fly(flight)
            elif batch is not None:
                await self._fly_batch(batch)
            elif self._sweep.scanning:
                await trio.lowlevel.checkpoint()
            else:
                if self._sweep.finished:
                    self._swept()
                with trio.move_on_after(self._sweep.wait_s() if self._health.up else math.inf):
                    await self._queue.changed()

    async def _fly_batch(self, batch: SweepBatch) -> None:
        wants = {oid: self._queue.enter(oid, batch.priority) for oid in batch.oids}
        trees = (batch.tree,) if batch.tree is not None else ()
        flight = Flight(Reason.SWEEP, wants, trees=trees, filter=batch.filter)
        try:
            await self._fly(flight)
            if isinstance(flight.error, HydrationFailed) and flight.error.disk_full:
                self._sweep.hold(DISK_FULL_S)
        finally:
            self._sweep.ended(batch, well=flight.error is None)
            self._queue.wake()

    async def _fly(self, flight: Flight) -> None:
        await self._control.fly(flight)
        if flight.reason is not Reason.READ and flight.objects:
            self._record(flight)
        self._landed()

    # -- what to take next

    def _next_urgent(self) -> Flight | None:
        wants = self._queue.take(_EXPLICIT, max_wants=URGENT_WANTS, max_bytes=URGENT_BYTES)
        if not wants:
            return None
        flight = Flight(Reason.READ, {want.oid: want for want in wants}, urgent=True)
        for want in wants:
            companions, want.companions = want.companions, []
            for blob in companions:
                if len(flight.wants) < COMPANIONS and self._queue.get(blob.oid) is None:
                    flight.wants[blob.oid] = self._queue.enter(
                        blob.oid, Priority.PREDICTED, path=blob.path
                    )
        return flight

    def _next_prefetch(self) -> Flight | None:
        waiting = sum(self._queue.lengths()[priority] for priority in _BACKGROUND)
        flying = [flight.reason for flight in self._control.active]
        sweeping = flying.count(Reason.SWEEP)
        lanes = self._background_lanes - sweeping - flying.count(Reason.PREFETCH)
        if sweeping:
            lanes = max(lanes, 2)  # one is about to come back: not all of it at once
        share = min(max(-(-waiting // lanes), SHARE_WANTS), REQUEST_WANTS)
        wants = self._queue.take(_BACKGROUND, max_wants=share, max_bytes=PREFETCH_BYTES)
        if not wants:
            return None
        return Flight(Reason.PREFETCH, {want.oid: want for want in wants})

    def _record(self, flight: Flight) -> None:
        first = next(iter(flight.wants.values()), None)
        self._trace.add(
            FetchRecord(
                first.oid if first is not None else flight.trees[0],
                first.path if first is not None else b"",
                flight.reason.value,
                0,
                (trio.current_time() - flight.started) * 1_000,
                flight.received,
                count=flight.objects,
                error=flight.error.message if flight.error is not None else "",
            )
        )
