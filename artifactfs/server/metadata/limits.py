"""Request limits: a sliding window for each key, in memory or shared by all servers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from artifactfs.server.metadata.clock import now_ms
from artifactfs.server.metadata.database import Store, Transaction

_MAX_KEYS = 10_000


@dataclass(slots=True)
class _Window:
    start: float
    count: int
    before: int


class RateLimiter:
    """At most about `limit` requests for a key in any `window_s` seconds.

    Two counters a key: those of this window, and those of the one before, weighted by how much of
    it still lies within the last `window_s` seconds.
    """

    def __init__(
        self, limit: int, window_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._clock = clock
        self._windows: dict[str, _Window] = {}

    def take(self, key: str) -> int | None:
        """Count a request; None if it may pass, else after how many seconds to try again."""
        now = self._clock()
        window = self._window(key, now)
        elapsed = (now - window.start) / self._window_s
        if window.count + window.before * (1 - elapsed) >= self._limit:
            return max(1, math.ceil(self._window_s * (1 - elapsed)))
        window.count += 1
        return None

    def _window(self, key: str, now: float) -> _Window:
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= _MAX_KEYS:
                self._forget_idle(now)
            window = self._windows[key] = _Window(now, 0, 0)
        passed = int((now - window.start) / self._window_s)
        if passed:
            window.before = window.count if passed == 1 else 0
            window.count = 0
            window.start += passed * self._window_s
        return window

    def _forget_idle(self, now: float) -> None:
        limit = 2 * self._window_s
        self._windows = {k: w for k, w in self._windows.items() if now - w.start < limit}


class Limiter(Protocol):
    """What a request has to pass."""

    async def take(self, key: str) -> int | None:
        """Count a request; None if it may pass, else after how many seconds to try again."""


class OwnLimit:
    """A limit of this process: all there are."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._limiter = RateLimiter(limit, window_s)

    async def take(self, key: str) -> int | None:
        return self._limiter.take(key)


class SharedLimit:
    """A limit that counts over all servers of a database. `area` keeps it apart from others.

    Windows begin at multiples of their length, by the clocks of the servers.
    """

    def __init__(self, store: Store, area: str, limit: int, window_s: float) -> None:
        self._store = store
        self._area = area
        self._limit = limit
        self._window_ms = int(window_s * 1000)

    async def take(self, key: str) -> int | None:
        now = now_ms()
        passed = now % self._window_ms
        params = {
            "key": f"{self._area} {key}",
            "start": now - passed,
            "before": now - passed - self._window_ms,
            "share": 1 - passed / self._window_ms,
            "limit": self._limit,
        }
        if await self._store.read(lambda tx: tx.row(_TAKE, params)) is not None:
            return None
        return max(1, math.ceil((self._window_ms - passed) / 1000))


_TAKE = """
    INSERT INTO request_windows AS mine (key, start_at, requests) VALUES (:key, :start, 1)
    ON CONFLICT (key, start_at) DO UPDATE SET requests = mine.requests + 1
    WHERE mine.requests + :share * coalesce((SELECT old.requests FROM request_windows AS old
        WHERE old.key = :key AND old.start_at = :before), 0) < :limit
    RETURNING requests
"""
"""No row: the limit is reached. The first request of a window always passes."""


def forget_windows(tx: Transaction, *, older_than_s: float) -> None:
    """Forget counts that no limit looks at any more."""
    before = now_ms() - int(older_than_s * 1000)
    tx.run("DELETE FROM request_windows WHERE start_at < :before", {"before": before})
