"""The last fetches, for ``artifact-fs trace``: who waited for what, and why it was fetched."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

CAPACITY = 1024
"""Entries kept. About 300 bytes each."""


@dataclass(frozen=True, slots=True)
class FetchRecord:
    """One blob, or one bulk request (`oid` is then that of its first want).

    `reason` is ``read``, ``readahead``, ``prefetch``, ``sweep`` or ``sizes``; `ms` the time from
    the wish to the last byte; `size` in bytes of content; `count` the blobs it stands for;
    `error` is empty where it went well. `at` is the time of day, seconds since 1970.
    """

    oid: bytes
    path: bytes
    reason: str
    pid: int
    ms: float
    size: int
    count: int = 1
    error: str = ""
    at: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        """For the control protocol: the oid in hex, the path as text."""
        return asdict(self) | {"oid": self.oid.hex(), "path": os.fsdecode(self.path)}


class FetchTrace:
    """A ring of `FetchRecord`, oldest first."""

    __slots__ = ("_ring", "total")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._ring: deque[FetchRecord] = deque(maxlen=capacity)
        self.total = 0

    def add(self, record: FetchRecord) -> None:
        self._ring.append(record)
        self.total += 1

    def __iter__(self) -> Iterator[FetchRecord]:
        return iter(tuple(self._ring))

    def __len__(self) -> int:
        return len(self._ring)
