"""Running a program that ends together with what it has started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio

KILL_AFTER_S = 2.0
"""In which a program removes its temporary files."""
_LOOK_EVERY_S = 0.02


async def run_group(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    """`trio.run_process`, whose `options` it takes, in a session of its own, so that nothing in it
    can ask at a terminal. Cancelled, it ends all of that: with SIGTERM, and `KILL_AFTER_S` later
    with SIGKILL. Raises: OSError where the program cannot be started."""
    group: list[int] = []

    async def end(process: trio.Process) -> None:
        group.append(process.pid)
        await _signal_until_gone(process.pid)

    run = partial(trio.run_process, deliver_cancel=end, start_new_session=True)
    try:
        return await run(list(command), **options)
    finally:
        if group:  # the program itself has ended; some that it started may not have
            with trio.CancelScope(shield=True):
                await _signal_until_gone(group[0])


async def _signal_until_gone(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # what is left runs as somebody else
        os.killpg(group, signal.SIGTERM)
        with trio.move_on_after(KILL_AFTER_S):
            while True:
                os.killpg(group, 0)
                await trio.sleep(_LOOK_EVERY_S)
        os.killpg(group, signal.SIGKILL)
