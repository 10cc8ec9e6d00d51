"""One log line for each failed read; a flood of them is cut."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict

import trio

from artifactfs.hydration.errors import HydrationError

log = logging.getLogger(__name__)

LINES_A_SECOND = 10

SAME_READ_S = 5.0
"""After a failed readahead the kernel asks for the page once more, and that may fail for another
reason: what fails again this soon was told already."""

_PATHS_KEPT = 256


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
