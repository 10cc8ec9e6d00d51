"""One worker at a time sweeps a tree: what one fetches, all mounts of a state root have.

Workers that start together, as after a restart of the daemon, would download the same blobs at the
same time. So the sweep of a tree holds ``STATE/cache/sweeps/OID.lock`` (flock, dropped by the
kernel with the process). Who comes second waits, and then looks again at what is missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from artifactfs.system.locks import open_lock_file, try_lock

log = logging.getLogger(__name__)

POLL_S = 0.5
PATIENCE_S = 120.0
"""The other may be slow, or fetch less than we want: after that, both sweep."""


class SweepTurn:
    """The turn of this worker. `after_wait` runs when it had to be waited for, then `wake`."""

    def __init__(
        self,
        directory: Path,
        *,
        after_wait: Callable[[], Awaitable[None]],
        wake: Callable[[], None],
    ) -> None:
        self.mine = False
        self._directory = directory
        self._after_wait = after_wait
        self._wake = wake
        self._tree: bytes | None = None
        self._wanted = trio.Event()
        self._fd = -1

    def want(self, tree: bytes) -> None:
        """Ask for the turn to sweep `tree`."""
        if self._tree != tree:
            self.release()
            self._tree = tree
            self._wanted.set()

    def release(self) -> None:
        """Let others sweep."""
        self.mine = False
        fd, self._fd = self._fd, -1
        if fd >= 0 and self._tree is not None:
            self._path(self._tree).unlink(missing_ok=True)
            os.close(fd)
        self._tree = None

    async def run(self) -> None:
        """Take the turn whenever it is asked for. Never returns; cancel it."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                if self._tree is not None:
                    await self._take(self._tree)
        finally:
            self.release()

    async def _take(self, tree: bytes) -> None:
        started = trio.current_time()
        waited = False
        while not self._try(tree) and trio.current_time() < started + PATIENCE_S:
            if not waited:
                log.info("another mount fetches the files of this tree")
                waited = True
            with trio.move_on_after(POLL_S):
                await self._wanted.wait()
            if self._tree != tree:
                return
            self._wanted = trio.Event()  # asked for the same tree again
        if waited:
            await self._after_wait()
        if self._tree == tree:
            self.mine = True
            self._wake()

    def _try(self, tree: bytes) -> bool:
        """Whether the lock could be had, or there can be none (the disk is full)."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            fd = open_lock_file(self._path(tree))
        except OSError as error:
            log.info("no lock for the sweep: %s", error)
            return True
        try:
            if try_lock(fd) and os.stat(self._path(tree)).st_ino == os.fstat(fd).st_ino:
                self._fd = fd
                return True
        except OSError:
            pass  # removed a moment ago by who held it
        os.close(fd)
        return False

    def _path(self, tree: bytes) -> Path:
        return self._directory / f"{tree.hex()}.lock"
