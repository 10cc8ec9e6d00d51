"""Request limits: a sliding window for each key, in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

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
