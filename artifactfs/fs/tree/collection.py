"""Gives back the room of small files that are gone: removes segments, and moves what is left.

A segment goes when no row names it, and the log that says so is on the disk. What was fsynced is
on the disk elsewhere before a row says so (`Contents._spill`, and here). So nothing is lost by it,
whenever the power goes.
"""

from __future__ import annotations

import errno
import logging
import sqlite3

import trio

from artifactfs.fs.inodes.inode import Extent
from artifactfs.fs.overlay.written import Written
from artifactfs.fs.tree.changes import replace_row
from artifactfs.fs.tree.tree import Tree

log = logging.getLogger(__name__)

_MOVED_AT_ONCE = 50
"""Files between two syncs: about 1 ms in the event loop."""


class Collection:
    """Collects the segments of one mount."""

    def __init__(self, tree: Tree, written: Written) -> None:
        self._tree = tree
        self._overlay = written.overlay
        self._small = written.small
        self._lock = trio.Lock()  # what is being moved is named by no row yet

    async def begin(self) -> None:
        """Learn what is named; nothing is collected before."""
        try:
            use = self._overlay.segment_use()
            self._small.count_from_here()
            self._small.learn(await trio.to_thread.run_sync(use))
        except (OSError, sqlite3.Error) as error:
            log.warning("the room of small files stays until the next start: %s", error)

    async def run(self) -> None:
        """Does nothing in most cases; the disk is asked only where there is something to do."""
        try:
            async with self._lock:
                await self._collect()
        except (OSError, sqlite3.Error) as error:
            log.warning("the room of small files stays for now: %s", error)

    async def _collect(self) -> None:
        dead = self._small.dead()
        if dead:
            await self._remove(dead)
        sparse = self._small.sparse()
        if sparse:
            await self._clear(sparse)

    async def _remove(self, numbers: set[int]) -> None:
        """Remove segments. Counting is quick, but the rows have the last word."""
        overlay = self._overlay
        await trio.to_thread.run_sync(overlay.sync)
        inos = await trio.to_thread.run_sync(overlay.inodes_in_segments, numbers)
        named = overlay.segments_named(inos)
        for number in self._small.dead() & numbers:
            if number not in named:
                self._small.remove_segment(number)
                overlay.note_segment(number, None)
        if named & numbers:
            log.error("the use of segments %s was counted wrong", sorted(named & numbers))
            await self.begin()

    async def _clear(self, numbers: set[int]) -> None:
        """Move what is in these segments to the current one, so that they can go."""
        self._overlay.fold()  # few changes may be pending for long, and are not found
        find = self._overlay.inodes_in_segments
        inos = await trio.to_thread.run_sync(find, numbers)
        for at in range(0, len(inos), _MOVED_AT_ONCE):
            moved: dict[int, tuple[Extent, Extent]] = {}
            for ino in inos[at : at + _MOVED_AT_ONCE]:
                row = self._overlay.row(ino)
                if row is not None and row.extent is not None and row.extent.segment in numbers:
                    content = self._content(row.extent)
                    if content is not None:
                        moved[ino] = row.extent, self._small.append(content)
            for segment in {new.segment for _, new in moved.values()}:
                await trio.to_thread.run_sync(self._small.sync, segment)
            for ino, (old, new) in moved.items():
                self._place(ino, old, new)

    def _content(self, extent: Extent) -> bytes | None:
        """None where it is damaged: then it stays, and so does its segment."""
        if not self._small.has(extent):
            return None
        try:
            return self._small.read(extent)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None

    def _place(self, ino: int, old: Extent, new: Extent) -> None:
        inode = self._tree.by_number(ino)
        if inode is not None and inode.row is not None and inode.linked and inode.extent == old:
            row = inode.row.copy()
            row.extent = new
            replace_row(self._tree, inode, row)
        self._tree.drop_if_unused(inode)
