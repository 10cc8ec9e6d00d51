"""The one clock of the mount's times."""

from __future__ import annotations

import time

_CLOCK_REALTIME_COARSE = 5

_floor = 0


def now_ns() -> int:
    """The time that things happen at, in ns. Never earlier than a time that it has seen.

    It has to go with the kernel's clock for files, from which `touch` gets its time: the coarse
    clock (4 ms), or a finer time that was given to some file since. With the precise clock here,
    what was touched after a write could be older than what was written.
    """
    return max(time.clock_gettime_ns(_CLOCK_REALTIME_COARSE), _floor)


def precise_ns() -> int:
    """A time after all that it has said and seen, for what changes after somebody looked at it.
    (Linux since 6.13 does the same: "multigrain timestamps".)"""
    global _floor
    _floor = max(time.time_ns(), _floor + 1)
    return _floor


def advance_to(time_ns: int) -> None:
    """Take note of a time that the kernel gave to a file, if it is one: not in the future."""
    global _floor
    if _floor < time_ns <= time.time_ns():
        _floor = time_ns
