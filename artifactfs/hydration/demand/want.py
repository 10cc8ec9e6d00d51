"""What is wanted, and the requests that carry it: plain data of one event loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import trio

from artifactfs.errors import ArtifactFSError
from artifactfs.hydration.errors import HydrationError
from artifactfs.hydration.order.nearby import NearbyBlob
from artifactfs.hydration.order.priority import Priority

STALLED_S = 0.3
"""A reader sends an urgent request after a readahead that fetched nothing for so long."""
MAX_PATIENCE_S = 2.0
"""A reader waits for a readahead that does fetch something at most so long."""
SWEEP_PATIENCE_S = 0.05
"""The same for what the sweep or a prefetch is fetching: their requests are large. No time at all
where a request hands out nothing before its end."""


@dataclass(slots=True, eq=False)
class Want:
    """One blob that somebody wants. `created` is in seconds of `trio.current_time`.

    Finished means that `done` is set, and then either `error` is there, or the content is: in
    `data`, in the store of large blobs or in the object database.
    """

    oid: bytes
    priority: Priority
    path: bytes = b""
    pid: int = 0
    size: int | None = None
    created: float = field(default_factory=trio.current_time)
    queued: bool = False
    carriers: list[Flight] = field(default_factory=list)
    readers: int = 0
    takers: int = 0
    """Those of the readers that take the content; the others wait until it is here."""
    companions: list[NearbyBlob] = field(default_factory=list)
    """Small siblings to fetch with it."""
    trouble: str = ""
    """Why it is not here yet, where an attempt failed."""
    data: bytes | None = None
    error: HydrationError | None = None
    done: trio.Event = field(default_factory=trio.Event)

    @property
    def finished(self) -> bool:
        return self.done.is_set()


class Reason(StrEnum):
    """Why a request is made."""

    READ = "read"
    READAHEAD = "readahead"
    PREFETCH = "prefetch"
    SWEEP = "sweep"


@dataclass(slots=True, eq=False)
class Flight:
    """One request: `wants` by oid, in the order in which they should come.

    `trees` are wanted whole; their blobs may be among `wants` so that readers find them, and then
    are not in `single`, which lists the blobs to name in the request (None: all of `wants`).
    `arrived` has the oids that came, unless nobody could look for them (`wants` is empty).
    `trusts_sizes` until an answer is larger than the sizes that the remote told: they may be wrong.
    On a full disk an urgent flight has room made once, and then goes on `in_memory`. What is
    `whole` hands out nothing before all of it is here.
    """

    reason: Reason
    wants: dict[bytes, Want]
    urgent: bool = False
    trees: tuple[bytes, ...] = ()
    single: frozenset[bytes] | None = None
    filter: str | None = None
    started: float = field(default_factory=trio.current_time)
    moved: float = field(default_factory=trio.current_time)
    received: int = 0
    objects: int = 0
    arrived: set[bytes] = field(default_factory=set)
    error: ArtifactFSError | None = None
    made_room: bool = False
    in_memory: bool = False
    whole: bool = False
    trusts_sizes: bool = True
    corrected: list[tuple[bytes, int, int]] = field(default_factory=list)
    """Of objects that came with another size: the oid, what was told, and the size."""
    landed: trio.Event = field(default_factory=trio.Event)

    @property
    def soon_read(self) -> bool:
        """Whether what it fetches is worth being kept in memory."""
        return self.reason in (Reason.READ, Reason.READAHEAD)


def patience_ends(want: Want, joined: float) -> float:
    """When a reader of `want`, who came at `joined`, asks for it urgently (on trio's clock)."""
    if want.queued or any(flight.urgent for flight in want.carriers):
        return float("inf")
    ends = joined + SWEEP_PATIENCE_S
    if want.carriers and all(flight.whole for flight in want.carriers):
        ends = joined
    for flight in want.carriers:
        if flight.reason is Reason.READAHEAD:
            moved = max(joined, flight.moved) + STALLED_S
            ends = max(ends, min(moved, joined + MAX_PATIENCE_S))
    return ends
