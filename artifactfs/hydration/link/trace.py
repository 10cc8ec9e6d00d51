"""What is told of fetches: the last ones, for ``artifact-fs trace``, and those that failed.

Who waited for what, and why it was fetched; and one log line for each failed read, of which a flood
is cut.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from artifactfs.hydration.errors import HydrationError

log = logging.getLogger(__name__)

CAPACITY = 1024
"""Entries kept. About 300 bytes each."""

LINES_A_SECOND = 10

SAME_READ_S = 5.0
"""After a failed readahead the kernel asks for the page once more, and that may fail for another
reason: what fails again this soon was told already."""

_PATHS_KEPT = 256


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


class FailureLog:
    """What readers of the mount `repo` were told."""

    def __init__(self, repo: str) -> None:
        self._repo = repo
        self._second = -1
        self._lines = 0
        self._told: OrderedDict[bytes, float] = OrderedDict()

    def add(self, path: bytes, error: HydrationError) -> None:
        """A read of `path` failed."""
        now = trio.current_time()
        told = self._told.get(path)
        if told is not None and now - told < SAME_READ_S:
            return
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
        self._lines += 1
        if self._lines > LINES_A_SECOND:
            return
        self._told[path] = now
        self._told.move_to_end(path)
        if len(self._told) > _PATHS_KEPT:
            self._told.popitem(last=False)
        name = os.fsdecode(path)
        fields = {"repo": self._repo, "path": name, "cause": error.message}
        log.warning("%s: reading %s failed: %s", self._repo, name, error.message, extra=fields)
