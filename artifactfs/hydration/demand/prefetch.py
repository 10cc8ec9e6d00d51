"""Many wants for which somebody waits as a whole: ``artifact-fs prefetch`` and the like."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import trio

from artifactfs.hydration.demand.want import Want

REQUEST_WANTS = 1_500
"""Wants of one request. A tree of 6,000 files comes in four: with 500 in each it takes a tenth
longer, since each costs the remote two processes and us one."""
AHEAD = 4 * REQUEST_WANTS
"""Wants that are in the queue at a time: some 6 MB."""


async def bring(
    oids: Sequence[bytes],
    *,
    join: Callable[[Sequence[bytes]], list[Want]],
    admit: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Want, None]:
    """Yield a want of each of `oids`, in their order, when it is settled. Close it if you leave.

    `join` makes wants with one reader each; before, `admit` waits or raises while the remote is
    down. Waits for the network without a deadline.
    """
    coming: deque[Want] = deque()
    try:
        for start in range(0, len(oids), REQUEST_WANTS):
            await admit()
            coming += join(oids[start : start + REQUEST_WANTS])
            await trio.lowlevel.checkpoint()
            while len(coming) > AHEAD:
                yield await _first(coming)
        while coming:
            yield await _first(coming)
    finally:
        for want in coming:
            want.readers -= 1


async def _first(coming: deque[Want]) -> Want:
    want = coming[0]
    if not want.settled:  # a checkpoint for each of thousands takes longer than what they are for
        await want.done.wait()
    want.readers -= 1
    return coming.popleft()
