"""Times: stored as integer milliseconds since the epoch, shown as ISO 8601 in UTC."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import trio


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def iso(ms: int) -> str:
    """``2026-01-02T03:04:05.678Z``."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def iso_or_none(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)


async def ticks(seconds: float) -> AsyncIterator[None]:
    """Every so many seconds, without end."""
    while True:
        await trio.sleep(seconds)
        yield


def day_of(ms: int) -> str:
    """``2026-01-02``, in UTC."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%d")


def parse_iso(text: str) -> int:
    """Milliseconds of an ISO 8601 time (UTC where it names no zone). Raises: ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)
