"""A shorter way from the kernel to pyfuse3's handlers.

pyfuse3 waits for each request through trio's epoll: five system calls and a scheduler pass, 25-58
µs a request. Here a task first polls the FUSE descriptor itself, some 50 times after each reply
(the next request of a busy program comes within that time, and the other CPU is still awake), and
only then waits in pyfuse3's own way: 9-18 µs a request, a third of the CPU.

What keeps pyfuse3's accounting right: a task that returns from here without waiting was never
counted as an idle reader, so pyfuse3 starts another one, which does end up waiting in the
original function. One idle task is always there to take over when a handler waits.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Awaitable, Callable
from types import ModuleType

POLLS = 50
"""Non-blocking polls (0.4 µs each) after a reply before the task goes to sleep."""

IN_A_ROW = 64
"""Requests taken without a scheduler pass; then other tasks get their turn (about 1 ms)."""

AT_ONCE_S = 0.002
"""After that no new turn begins: the extension may have answered others in each."""

_WAIT = "_wait_fuse_readable"


def nothing() -> None:
    pass


def install(
    pyfuse3: ModuleType, fd: int, on_request: Callable[[], None] = nothing, polls: int = POLLS
) -> bool:
    """Make `pyfuse3` poll `fd` first. False where its internals do not fit: then nothing changes.

    `on_request` is called at each request. To be called after ``pyfuse3.init`` and before
    ``pyfuse3.main``; undo it with `remove`. Without `polls` it only makes sure that there is a
    request to be read before pyfuse3 reads one, which would block.
    """
    original = getattr(pyfuse3, _WAIT, None)
    if original is None or "_session_loop" not in vars(pyfuse3) or hasattr(original, "replaces"):
        return False
    wait = _polling(original, fd, on_request, polls)
    wait.replaces = original  # type: ignore[attr-defined]
    setattr(pyfuse3, _WAIT, wait)
    return True


def remove(pyfuse3: ModuleType) -> None:
    """Give `pyfuse3` its own function back."""
    original = getattr(getattr(pyfuse3, _WAIT, None), "replaces", None)
    if original is not None:
        setattr(pyfuse3, _WAIT, original)


def _polling(
    original: Callable[[], Awaitable[bool]], fd: int, on_request: Callable[[], None], polls: int
) -> Callable[[], Awaitable[bool]]:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poll = poller.poll
    attempts = range(polls)
    in_a_row, until = 0, 0.0

    async def wait_fuse_readable() -> bool:
        nonlocal in_a_row, until
        now = time.monotonic()
        if not in_a_row:
            until = now + AT_ONCE_S
        if in_a_row < IN_A_ROW and now < until:
            for _ in attempts:
                if poll(0):
                    in_a_row += 1
                    on_request()
                    return True
        while True:
            if not await original():
                return False
            in_a_row = 0
            if poll(0):  # else another task has taken the request meanwhile
                on_request()
                return True

    return wait_fuse_readable


def fuse_descriptors() -> set[int]:
    """Descriptors of this process on ``/dev/fuse``: pyfuse3 does not tell which is its own."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
    return found
