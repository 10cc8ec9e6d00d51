"""Which repositories and pools are being written to: one empty file each in the folder ``open``.

A server that was killed leaves behind what it had begun there and nowhere else: a folder without a
row, a quarantine, a lock file, files that a power failure emptied. So the next start looks at these
alone, however many others there are. A mark outlives its work until the disk has everything.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from artifactfs.errors import StateError
from artifactfs.server.storage.settings import DataLayout
from artifactfs.system.locks import locked_at_once

log = logging.getLogger(__name__)

SYNC_EVERY_S = 30.0
_POOL = "pool."
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def locked(layout: DataLayout) -> Iterator[None]:
    """Hold the data folder: one server at a time. Raises: StateError."""
    with locked_at_once(layout.lock) as alone:
        if not alone:
            raise StateError(f"another server is using {layout.root}")
        yield


def pool_mark(pool_id: str) -> str:
    """The mark of a pool; that of a repository is its id."""
    return f"{_POOL}{pool_id}"


def marked_ids(names: list[str]) -> tuple[set[str], set[str]]:
    """The ids of the repositories and of the pools among marks."""
    pools = {name.removeprefix(_POOL) for name in names if name.startswith(_POOL)}
    repos = {name.partition(".")[0] for name in names if not name.startswith(_POOL)}
    return repos, pools


@contextmanager
def marked(folder: Path, mark: str) -> Iterator[None]:
    """For commands beside the server: a mark of their own, for as long as they work."""
    path = folder / f"{mark}.{os.getpid()}"
    if not folder.exists():  # of a server without marks: the next start looks at everything
        yield
        return
    path.touch(mode=0o600)
    yield  # not `finally`: who is interrupted leaves it
    path.unlink(missing_ok=True)


class OpenMarks:
    """The marks of a running server: of what it does in one folder, until it begins another."""

    def __init__(self, folder: Path, *, in_threads: bool = False) -> None:
        """`in_threads`: the file system may be slow, or away."""
        self._current = _Marks(folder)
        self._in_threads = in_threads

    def begin(self, folder: Path) -> None:
        """Be another server from now on. What goes on leaves its marks in the folder of before,
        for whoever takes over."""
        self._current = _Marks(folder)

    @asynccontextmanager
    async def open(self, *marks: str) -> AsyncIterator[None]:
        """While this lasts, what `marks` name is written to. What ends by an exception may have
        left something: its marks stay for the next start."""
        current = self._current
        missing = current.missing(*marks)
        with current.open(*marks):  # from here on `sync` leaves them
            if self._in_threads and missing:
                await trio.to_thread.run_sync(current.make, missing)
            else:
                current.make(missing)
            yield

    async def run(self) -> None:
        """Take away marks whose work is on the disk, from time to time; until cancelled."""
        while True:
            await trio.sleep(SYNC_EVERY_S)
            await self.sync()

    async def sync(self) -> None:
        """Have everything on the disk, and take away the marks of what had ended by then."""
        await self._current.sync()


class _Marks:
    """Those in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._users: Counter[str] = Counter()
        self._done: set[str] = set()
        self._kept: set[str] = set()

    @contextmanager
    def open(self, *marks: str) -> Iterator[None]:
        """While this lasts, what `marks` name is written to. What ends by an exception may have
        left something: its marks stay for the next start."""
        for mark in marks:
            self._begin(mark)
        ended = False
        try:
            yield
            ended = True
        finally:
            for mark in marks:
                self._end(mark, finished=ended)

    def missing(self, *marks: str) -> list[str]:
        """Those that are not on the disk."""
        return [mark for mark in marks if not self._users[mark] and mark not in self._done]

    def make(self, marks: list[str]) -> None:
        """Put them there. Raises: OSError."""
        for mark in marks:
            (self._folder / mark).touch(mode=0o600)

    def _begin(self, mark: str) -> None:
        self._users[mark] += 1
        self._done.discard(mark)

    def _end(self, mark: str, *, finished: bool) -> None:
        self._users[mark] -= 1
        if not finished:
            self._kept.add(mark)
        if self._users[mark] <= 0:
            del self._users[mark]
            if mark not in self._kept:
                self._done.add(mark)

    async def sync(self) -> None:
        """Have everything on the disk, and take away the marks of what had ended by then."""
        ended = set(self._done)
        if not ended:
            return
        try:
            await trio.to_thread.run_sync(self._sync_file_system)
        except OSError as error:
            log.error("the disk does not take what was written: %s", error.strerror)
            return
        for mark in ended & self._done:
            self._done.discard(mark)
            (self._folder / mark).unlink(missing_ok=True)

    def _sync_file_system(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(descriptor) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(descriptor)
