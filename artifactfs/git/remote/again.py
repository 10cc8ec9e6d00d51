"""Trying again what failed with `RemoteBusy`, and that alone."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from artifactfs.errors import RemoteBusy

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_DELAY_S = 0.3
LONGEST_DELAY_S = 5.0


async def again(attempt: Callable[[], Awaitable[T]], deadline_s: float) -> T:
    """What `attempt` returns, which is made again after each `RemoteBusy`, with growing delays.

    Not before the remote wants it, and not so late that `deadline_s` from now is over before the
    next attempt begins: then that error is raised, and all others at once.
    """
    ends = trio.current_time() + deadline_s
    delay = FIRST_DELAY_S
    while True:
        try:
            return await attempt()
        except RemoteBusy as error:
            wait = max(delay * random.uniform(0.5, 1.0), error.retry_after_s or 0.0)
            if trio.current_time() + wait > ends:
                raise
            log.info("tried again in %.1f s: %s", wait, error.message)
        await trio.sleep(wait)
        delay = min(2 * delay, LONGEST_DELAY_S)
