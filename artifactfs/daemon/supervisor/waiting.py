"""Waiting for another process, in time in which both of us could run.

A machine that was suspended, a container that was frozen and thawed, or a load of hundreds makes
every answer late without anybody being stuck. So time is counted in short steps: a step that ended
late counts as one, and not at all while the other process waited for a CPU.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

STEP_S = 0.5


async def steps(pid: int | None) -> AsyncIterator[float]:
    """The seconds of each step, at most `STEP_S`, in which the process `pid` could have run."""
    waited = _waited_for_cpu(pid)
    while True:
        await trio.sleep(STEP_S)
        before, waited = waited, _waited_for_cpu(pid)
        yield max(0.0, STEP_S - max(0.0, waited - before))


async def sleep_beside(pid: int | None, seconds: float) -> None:
    """Sleep so long as both of us could run. `pid` None: as we could."""
    left = seconds
    async for step in steps(pid):
        left -= step
        if left <= 0:
            return


def _waited_for_cpu(pid: int | None) -> float:
    """Seconds that the main thread of `pid` was ready to run and had no CPU, since it began.

    The second field of ``/proc/PID/schedstat`` (kernel: Documentation/scheduler/sched-stats.rst);
    0 where the kernel does not count.
    """
    if pid is None:
        return 0.0
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
