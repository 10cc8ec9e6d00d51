"""What the log says of reads that failed. The clock is trio's mock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from artifactfs.hydration.errors import HydrationFailed, HydrationTimeout
from artifactfs.hydration.link.trace import LINES_A_SECOND, SAME_READ_S, FailureLog


def test_one_line_though_the_kernel_asks_twice(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        failures = FailureLog("r")
        failures.add(b"src/a", HydrationTimeout("not here after 4 s"))
        await trio.sleep(1)
        failures.add(b"src/a", HydrationFailed("the remote is down"))
        failures.add(b"src/b", HydrationFailed("the remote is down"))
        await trio.sleep(SAME_READ_S)
        failures.add(b"src/a", HydrationFailed("the remote is down"))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [record.message for record in caplog.records] == [
        "r: reading src/a failed: not here after 4 s",
        "r: reading src/b failed: the remote is down",
        "r: reading src/a failed: the remote is down",
    ]


def test_a_flood_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        failures = FailureLog("r")
        for number in range(5 * LINES_A_SECOND):
            failures.add(b"%d" % number, HydrationFailed("the remote is down"))

    trio.run(main, clock=trio.testing.MockClock())
    assert len(caplog.records) == LINES_A_SECOND
