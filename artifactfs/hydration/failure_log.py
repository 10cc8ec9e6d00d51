"""One log line for each failed read; a flood of them is cut."""

from __future__ import annotations

import logging
import os

import trio

from artifactfs.hydration.errors import HydrationError

log = logging.getLogger(__name__)

LINES_A_SECOND = 10


class FailureLog:
    """What readers of the mount `repo` were told."""

    def __init__(self, repo: str) -> None:
        self._repo = repo
        self._second = -1
        self._lines = 0

    def add(self, path: bytes, error: HydrationError) -> None:
        """A read of `path` failed."""
        second = int(trio.current_time())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= LINES_A_SECOND:
            name = os.fsdecode(path)
            fields = {"repo": self._repo, "path": name, "cause": error.message}
            log.warning("%s: reading %s failed: %s", self._repo, name, error.message, extra=fields)
