"""A shorter way from the kernel to pyfuse3's handlers.

pyfuse3 waits for each request through trio's epoll: five system calls and a scheduler pass, 25-58
µs a request. Here a task first polls the FUSE descriptor itself, some 50 times after each reply
(the next request of a busy program comes within that time, and the other CPU is still awake), and
only then waits in pyfuse3's own way: 9-18 µs a request, a third of the CPU. In a virtual machine in
which waking a CPU takes longer than that (40 µs have been seen, at each end), it polls for longer
as long as that is worth it: see `Patience`.

What keeps pyfuse3's accounting right: a task that returns from here without waiting was never
counted as an idle reader, so pyfuse3 starts another one, which does end up waiting in the
original function. One idle task is always there to take over when a handler waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType

import trio

log = logging.getLogger(__name__)

POLLS = 50
"""Non-blocking polls (0.4 µs each) after a reply before the task goes to sleep."""

LONGER = 5
"""So many times as often where requests come late."""

IN_A_ROW = 64
"""Requests taken without a scheduler pass; then other tasks get their turn (about 1 ms)."""

AT_ONCE_S = 0.002
"""After that no new turn begins: the extension may have answered others in each."""

_WAIT = "_wait_fuse_readable"


class Patience:
    """How often is polled: `polls` times, or `LONGER` times as often while requests come in the
    second part of that. Whether they do is looked at in one of `_TRY_EACH` waits."""

    _TRY_EACH = 16
    _MOST = 8

    def __init__(self, polls: int) -> None:
        more_cpus = len(os.sched_getaffinity(0)) > 1  # else who asks waits for us to wait
        self._short, self._long = range(polls), range(LONGER * polls if more_cpus else polls)
        self._worth = self._waits = 0

    def attempts(self) -> range:
        return self._long if self._worth else self._short

    def hit(self, attempt: int) -> None:
        """There was a request at `attempt`."""
        if attempt >= len(self._short):
            self._worth = min(self._worth + 1, self._MOST)

    def miss(self) -> None:
        """All attempts were in vain."""
        if self._worth:
            self._worth -= 1
            return
        self._waits += 1
        if not self._waits % self._TRY_EACH:
            self._worth = 1


def nothing() -> None:
    pass


@dataclass(slots=True)
class Hooks:
    """What is done beside answering. None of it waits."""

    on_request: Callable[[], None] = nothing
    """At each request."""
    idle: Callable[[], None] = nothing
    """Where the next request is not there yet, before it is polled for: once a wait at most."""
    before_others: Callable[[], None] = nothing
    """Before any task runs but those that only wait for requests: also before a handler goes on
    that has waited for something. Only in `watching_turns`."""
    waiting: set[trio.lowlevel.Task] = field(default_factory=set)
    """The tasks that wait for requests."""


class _Turns(trio.abc.Instrument):
    """Looks at whose turn it is in trio's loop."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task not in self._hooks.waiting:
            try:
                self._hooks.before_others()
            except Exception as error:  # trio would not ask again, but go on
                self._hooks.idle = self._hooks.before_others = nothing
                log.error("idle time is not used any more", exc_info=error)


@contextlib.contextmanager
def watching_turns(hooks: Hooks) -> Iterator[None]:
    """Within the block `hooks.before_others` is called. To be entered in trio's loop."""
    turns = _Turns(hooks)
    trio.lowlevel.add_instrument(turns)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(turns)


def install(pyfuse3: ModuleType, fd: int, hooks: Hooks | None = None, polls: int = POLLS) -> bool:
    """Make `pyfuse3` poll `fd` first. False where its internals do not fit: then nothing changes.

    To be called after ``pyfuse3.init`` and before ``pyfuse3.main``; undo it with `remove`. Without
    `polls` it only makes sure that there is a request to be read before pyfuse3 reads one, which
    would block.
    """
    original = getattr(pyfuse3, _WAIT, None)
    if original is None or "_session_loop" not in vars(pyfuse3) or hasattr(original, "replaces"):
        return False
    wait = _polling(original, fd, hooks or Hooks(), polls)
    wait.replaces = original  # type: ignore[attr-defined]
    setattr(pyfuse3, _WAIT, wait)
    return True


def remove(pyfuse3: ModuleType) -> None:
    """Give `pyfuse3` its own function back."""
    original = getattr(getattr(pyfuse3, _WAIT, None), "replaces", None)
    if original is not None:
        setattr(pyfuse3, _WAIT, original)


def _polling(
    original: Callable[[], Awaitable[bool]], fd: int, hooks: Hooks, polls: int
) -> Callable[[], Awaitable[bool]]:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poll = poller.poll
    patience = Patience(polls)
    in_a_row, until = 0, 0.0

    async def wait_fuse_readable() -> bool:
        nonlocal in_a_row, until
        now = time.monotonic()
        if not in_a_row:
            until = now + AT_ONCE_S
        if in_a_row < IN_A_ROW and now < until:
            for attempt in patience.attempts():
                if poll(0):
                    in_a_row += 1
                    patience.hit(attempt)
                    hooks.on_request()
                    return True
                if not attempt:
                    hooks.idle()
            patience.miss()
        me = trio.lowlevel.current_task()
        hooks.waiting.add(me)
        try:
            while True:
                if not await original():
                    return False
                in_a_row = 0
                if poll(0):  # else another task has taken the request meanwhile
                    hooks.on_request()
                    return True
        finally:
            hooks.waiting.discard(me)

    return wait_fuse_readable


def fuse_descriptors() -> set[int]:
    """Descriptors of this process on ``/dev/fuse``: pyfuse3 does not tell which is its own."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
    return found
