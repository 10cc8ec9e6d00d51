"""Lets the programs that wait for us die.

The kernel does not tell us that a caller wants to be interrupted (pyfuse3 does not offer
FUSE_INTERRUPT). A reader that waits for readahead dies at once all the same; one that waits in
`lookup`, `getattr`, `open` or `write`, or for a page that could not be read before, stays until it
is answered, SIGKILL or not. So whoever waits looks at the caller's pending signals from time to
time.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from artifactfs.system.processes import status_fields

T = TypeVar("T")

LOOK_EVERY_S = 0.25

_MASKS = (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt")
_KILL = 1 << (signal.SIGKILL - 1)
_HARMLESS = sum(
    1 << (number - 1)
    for number in (
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    )
)
_WISHES = sum(
    1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
)


class Opener(int):
    """The process that has opened a file, where it is not known who reads or writes it: another
    one may have got the descriptor from it, so that its end says nothing."""

    __slots__ = ()


async def unless_interrupted(pid: int, wait: Callable[[], Awaitable[T]]) -> T:
    """Return what `wait` returns; give up with EINTR once `pid` is to be interrupted.

    `wait` is cancelled then. `pid` 0 (a caller of another PID namespace) cannot be watched.
    """
    if pid == 0:
        return await wait()
    result: list[T] = []
    failure: list[Exception] = []

    async def run(scope: trio.CancelScope) -> None:
        try:
            result.append(await wait())
        except Exception as error:
            failure.append(error)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, nursery.cancel_scope)
        while True:
            await trio.sleep(LOOK_EVERY_S)
            if is_interrupted(pid):
                nursery.cancel_scope.cancel()
    if failure:
        raise failure[0]
    if not result:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
    return result[0]


def is_interrupted(pid: int) -> bool:
    """Whether the thread `pid` is gone, will die of a pending signal, or is asked to end.

    Where it cannot be seen (``hidepid=`` of proc(5) hides the processes of other users, and then
    even that they exist), only whether it is gone can be told: kill(2) asks no file system.
    Handlers other than those of SIGINT, SIGTERM, SIGHUP and SIGQUIT do not count: many programs
    do not expect `stat` to fail because a timer or a child ended.
    """
    try:
        fields = status_fields(pid)
    except OSError:
        return not isinstance(pid, Opener) and _is_gone(pid)
    masks = {name: int(fields[name], 16) for name in _MASKS}
    pending = masks[b"SigPnd"] | masks[b"ShdPnd"]
    if pending & _KILL:
        return True
    delivered = pending & ~masks[b"SigBlk"] & ~masks[b"SigIgn"]
    fatal = delivered & ~masks[b"SigCgt"] & ~_HARMLESS
    return bool(fatal or delivered & _WISHES)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False
