"""Whether somebody works in the mount just now, so that what nobody waits for waits.

Not only a read that has to wait is a sign of it: git that looks for objects, or fetches some by
itself, and programs that write, want the CPU, the line and our event loop for themselves. A machine
of two cores has nothing left over in the first minute after a mount.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

SIGN_S = 0.3
"""So long after a sign of work somebody is taken to be at it."""
PROCESS_S = 20.0
"""A process that fetches something is waited for, at most so long: it gives no other sign."""
PATIENCE_S = 15.0
"""Who works without a pause for so long no longer stops the background."""
POLL_S = 0.1
_KEPT = 64
_KEPT_LISTINGS = 4096


class Attention:
    """Signs of work in one mount."""

    def __init__(self, changes: Callable[[], int] = lambda: 0) -> None:
        """`changes` counts those of the tree."""
        self.changes = changes
        self._seen = 0
        self._last = self._since = float("-inf")
        self._processes: dict[int, float] = {}
        self._listed: set[bytes] = set()

    def note_listing(self, first: bytes) -> None:
        """A directory is listed, `first` is a blob in it.

        Who walks through the tree sees each once. Who comes back to the same one waits for us, as
        `artifact-fs status` does, which looks whether the mount answers.
        """
        if first in self._listed:
            return
        if len(self._listed) >= _KEPT_LISTINGS:
            self._listed.clear()
        self._listed.add(first)
        self.note()

    def note(self) -> None:
        """A program of the mount does something."""
        now = trio.current_time()
        if now > self._last + SIGN_S:
            self._since = now
        self._last = now

    def note_process(self, pid: int) -> None:
        """Somebody waits for the end of the process `pid`."""
        if pid not in self._processes:
            if len(self._processes) >= _KEPT:
                self._processes.clear()
            self._processes[pid] = trio.current_time() + PROCESS_S
        self.note()

    def somebody_works(self) -> bool:
        """Ask it now and then: what was written is noticed here. 1 to 20 µs."""
        changes = self.changes()
        if changes != self._seen:
            self._seen = changes
            self.note()
        now = trio.current_time()
        if self._processes:
            for pid, until in list(self._processes.items()):
                if now > until or not os.path.exists(f"/proc/{pid}"):
                    del self._processes[pid]
                else:
                    self.note()
        return now <= self._last + SIGN_S and now <= self._since + PATIENCE_S

    async def pause(self, most_s: float) -> None:
        """Wait until nobody works in the mount, at most so long."""
        with trio.move_on_after(most_s):
            while True:
                if not self.somebody_works():
                    return
                await trio.sleep(POLL_S)
