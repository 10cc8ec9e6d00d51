"""What becomes of Git processes for which there is no room at first."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import trio

from artifactfs.server.git.process import run_bounded


def test_those_who_wait_for_room_do_not_take_it_from_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is room for one attempt at a time, as with few descriptors: each takes up to ten."""
    start = trio.lowlevel.open_process
    crowded: list[bool] = []

    async def open_process(*arguments: Any, **settings: Any) -> trio.Process:
        me = len(crowded)
        crowded[:] = [True] * me
        crowded.append(bool(me))
        await trio.sleep(0.02)
        refused, crowded[:] = crowded[-1], crowded[:-1]
        if refused:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await start(*arguments, **settings)

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    printed: list[bytes] = []

    async def run() -> None:
        git = ["git", "--version"]
        status, output, _ = await run_bounded(git, environment=os.environ, deadline_s=60)
        assert status == 0
        printed.append(output)

    async def run_twelve() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(run)

    trio.run(run_twelve)
    assert len(printed) == 12
    assert all(output.startswith(b"git version ") for output in printed)
