"""Whether mounts answer, asked without waiting for those that do not."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress


def silent(directories: Sequence[str], deadline_s: float) -> set[str]:
    """Those of `directories` in which nothing answers within `deadline_s`; an error is an answer.

    Each is asked by a process of its own, which is left behind where it waits: it may not die.
    Call it in a process without other threads.
    """
    asking: dict[int, tuple[int, str]] = {}
    for directory in directories:
        pid = os.fork()
        if pid == 0:
            _ask(directory)
        asking[os.pidfd_open(pid)] = (pid, directory)
    poll = select.poll()
    for pidfd in asking:
        poll.register(pidfd, select.POLLIN)
    end = time.monotonic() + deadline_s
    left = dict(asking)
    while left and (seconds := end - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(seconds * 1000):
            poll.unregister(pidfd)
            os.waitpid(left.pop(pidfd)[0], 0)
    for pid, _ in left.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pidfd in asking:
        os.close(pidfd)
    return {directory for _, directory in left.values()}


def _ask(directory: str) -> None:
    """In a child: never returns. ``statfs`` is always the mount's process's to answer."""
    try:
        with os.scandir(directory) as entries:
            next(entries, None)
        os.statvfs(directory)
    except OSError:
        os._exit(1)
    finally:
        os._exit(0)
