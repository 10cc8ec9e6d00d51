"""Blobs that are wanted and not here: each oid once, in order of priority.

Plain data for one event loop: no method awaits, so each of them is atomic. The hydrator moves a
`Want` through its life: queued, carried by one or two flights (requests on the wire), finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence

import trio

from artifactfs.hydration.demand.want import Want
from artifactfs.hydration.errors import HydrationError
from artifactfs.hydration.order.priority import Priority

_UNKNOWN_SIZE = 8 << 10
"""Bytes assumed for a blob of unknown size: the mean of source files."""

REQUEST_WANTS = 1_500
"""Wants of one request. A tree of 6,000 files comes in four: with 500 in each it takes a tenth
longer, since each costs the remote two processes and us one."""
AHEAD = 4 * REQUEST_WANTS
"""Wants that are in the queue at a time: some 6 MB."""


class WantQueue:
    """The wants that are not finished, and the order of those that are queued."""

    def __init__(self) -> None:
        self._wants: dict[bytes, Want] = {}
        self._lanes: dict[Priority, deque[Want]] = {p: deque() for p in Priority}
        self._lengths: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._lot = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._wants)

    def get(self, oid: bytes) -> Want | None:
        return self._wants.get(oid)

    def __iter__(self) -> Iterator[Want]:
        return iter(self._wants.values())

    def lengths(self) -> dict[Priority, int]:
        """How many wants wait in each class, those in flight not counted."""
        return dict(self._lengths)

    def has(self, priorities: Iterable[Priority]) -> bool:
        return any(self._lengths[p] for p in priorities)

    def join(
        self,
        oid: bytes,
        priority: Priority,
        *,
        path: bytes = b"",
        pid: int = 0,
        size: int | None = None,
    ) -> Want:
        """The want of `oid`, made or raised to `priority` where it waits with a lower one."""
        want = self._wants.get(oid)
        if want is None:
            want = self._enter(oid, priority, path, pid, size)
            self.push(want)
        elif priority < want.priority:
            want.path, want.pid = path or want.path, pid or want.pid
            if want.queued:
                self._lengths[want.priority] -= 1
                want.queued = False
                want.priority = priority
                self.push(want)
            else:
                want.priority = priority
        return want

    def enter(self, oid: bytes, priority: Priority, *, path: bytes = b"") -> Want:
        """As `join`, for a want that a flight takes up at once: it is not queued."""
        return self._wants.get(oid) or self._enter(oid, priority, path, 0, None)

    def _enter(
        self, oid: bytes, priority: Priority, path: bytes, pid: int, size: int | None
    ) -> Want:
        want = Want(oid, priority, path, pid, size)
        self._wants[oid] = want
        return want

    def push(self, want: Want) -> None:
        """Queue `want` (again) at its priority, and wake whoever waits for work."""
        if want.queued or want.finished:
            return
        want.queued = True
        self._lanes[want.priority].append(want)
        self._lengths[want.priority] += 1
        self._lot.unpark_all()

    def wake(self) -> None:
        """Let every waiting lane look again."""
        self._lot.unpark_all()

    async def changed(self) -> None:
        """Wait for the next `push` or `wake`. A checkpoint; check your condition again after."""
        await self._lot.park()

    def first(self, priority: Priority) -> Want | None:
        """The want of that priority that `take` would give first."""
        lane = self._lanes[priority]
        while lane and (not lane[0].queued or lane[0].priority is not priority):
            lane.popleft()  # was raised, taken or finished: its real entry is elsewhere
        return lane[0] if lane else None

    def take(self, priorities: Sequence[Priority], *, max_wants: int, max_bytes: int) -> list[Want]:
        """Remove up to that much from the queue, in order; at least one where there is one.

        The wants stay findable by `get` until they are finished. Bytes are content bytes; where a
        size is not known, the mean of source files counts.
        """
        taken: list[Want] = []
        budget = max_bytes
        for priority in priorities:
            while len(taken) < max_wants and (want := self.first(priority)) is not None:
                cost = want.size if want.size is not None else _UNKNOWN_SIZE
                if taken and cost > budget:
                    return taken
                self._lanes[priority].popleft()
                want.queued = False
                self._lengths[priority] -= 1
                budget -= cost
                taken.append(want)
        return taken

    def finish(
        self, want: Want, *, data: bytes | None = None, error: HydrationError | None = None
    ) -> None:
        """End the life of `want`: wake its readers with the content or the error."""
        if want.finished:
            return
        if want.queued:
            want.queued = False
            self._lengths[want.priority] -= 1
        if self._wants.get(want.oid) is want:
            del self._wants[want.oid]
        want.data = data if want.takers else None
        want.error = error
        want.done.set()

    def drop_idle(self, want: Want) -> None:
        """Forget a want that nobody reads and no flight carries (a prediction that failed)."""
        if not want.readers and not want.carriers:
            self.finish(want, error=None)


async def fetch_in_order(
    oids: Sequence[bytes],
    *,
    join: Callable[[Sequence[bytes]], list[Want]],
    admit: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Want, None]:
    """Yield a want of each of `oids`, in their order, when it is finished. Close it if you leave.

    `join` makes wants with one reader each; before, `admit` waits or raises while the remote is
    down. Waits for the network without a deadline.
    """
    joined: deque[Want] = deque()
    try:
        for start in range(0, len(oids), REQUEST_WANTS):
            await admit()
            joined += join(oids[start : start + REQUEST_WANTS])
            await trio.lowlevel.checkpoint()
            while len(joined) > AHEAD:
                yield await _first(joined)
        while joined:
            yield await _first(joined)
    finally:
        for want in joined:
            want.readers -= 1


async def _first(joined: deque[Want]) -> Want:
    want = joined[0]
    if not want.finished:  # a checkpoint for each of thousands takes longer than what they are for
        await want.done.wait()
    want.readers -= 1
    return joined.popleft()
