"""What ``artifact-fs status`` and ``top`` show of a mount's hydration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class WaitingReader:
    """A program that waits for content: for `age_s` seconds."""

    path: str
    pid: int
    age_s: float


@dataclass(frozen=True, slots=True)
class HydrationStats:
    """A snapshot. Bytes are of content, except `received_bytes`, which came over the wire.

    `blobs_total` counts the distinct blobs of the mounted tree (0 until it was walked),
    `bytes_total` those whose size is known. `reads_here` counts contents that were here when a
    program asked, `reads_waited` those that had to be fetched: what the kernel has cached is in
    neither. `queue` has the length for each priority.
    `remote` is ``up``, ``down`` or ``unused``; the `outage_…` fields say since when (seconds since
    1970) and why. `recent_state` is that of recent history: ``off``, ``waiting``, ``running`` or
    ``done``; ``done`` also where nobody asked for it.
    """

    blobs_here: int
    blobs_total: int
    bytes_here: int
    bytes_total: int
    sizes_known: int
    queue: dict[str, int]
    in_flight: int
    requests: int
    requests_by_reason: dict[str, int]
    failures: int
    blobs_received: int
    received_bytes: int
    reads_here: int
    reads_waited: int
    readers: tuple[WaitingReader, ...]
    remote: str
    outage_since: float | None
    outage_kind: str
    outage_cause: str
    limits: tuple[str, ...]
    sweep_state: str
    sweep_stage: str
    recent_state: str
    memory_bytes: int

    def as_json(self) -> dict[str, Any]:
        """For the control protocol."""
        return asdict(self)
