"""How long a reader waits for a request of the background before it sends one of its own."""

from __future__ import annotations

from artifactfs.hydration.demand.want import Reason, Want

STALLED_S = 0.3
"""A reader sends an urgent request after a readahead that brought nothing for so long."""
MAX_PATIENCE_S = 2.0
"""A reader waits for a readahead that does bring something at most so long."""
SWEEP_PATIENCE_S = 0.05
"""The same for what the sweep or a prefetch is bringing: their requests are large. No time at all
where a request hands out nothing before its end."""


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
