"""Gives back the room of small files that are gone: removes segments, and moves what is left.

A segment goes when the rows that are on the disk do not name it any more. What was fsynced is on
the disk elsewhere before a row says so (`Contents._spill`, and here), so nothing is lost by it.
"""

from __future__ import annotations

import trio

from artifactfs.fs.changes import replace_row
from artifactfs.fs.inodes import Extent
from artifactfs.fs.overlay import SegmentUse
from artifactfs.fs.tree import Tree

WASTE_BYTES = 16 << 20
"""Segments that are mostly empty are cleared where more bytes than this, and than the contents
themselves, are named by nothing."""

_MOVED_AT_ONCE = 50
"""Files between two syncs: about 1 ms in the event loop."""


class Collection:
    """Collects the segments of one mount. Use it around a checkpoint of the overlay."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._small = tree.small

    def begin(self) -> dict[int, int]:
        """Before the fold: the segments to look at, with their sizes."""
        return self._small.sealed()

    async def finish(self, sealed: dict[int, int], use: SegmentUse) -> None:
        """`use` is what the disk knows of the sealed segments. Raises: OSError."""
        held = set(self._small.held.values())
        sparse = []
        for number, size in sealed.items():
            if number not in use and number not in held:
                self._small.remove_segment(number)
            elif use.get(number, 0) <= size // 2:
                sparse.append(number)
        sizes = self._small.sealed()
        live = sum(use.get(number, 0) for number in sizes)
        if sum(sizes.values()) - live > max(WASTE_BYTES, live):
            await self._clear(set(sparse) - held)

    async def _clear(self, numbers: set[int]) -> None:
        """Move what is in these segments to the current one; the next collection removes them."""
        inos = self._tree.overlay.inodes_in_segments(numbers)
        for at in range(0, len(inos), _MOVED_AT_ONCE):
            moved: dict[int, tuple[Extent, Extent]] = {}
            for ino in inos[at : at + _MOVED_AT_ONCE]:
                row = self._tree.overlay.row(ino)
                if row is not None and row.extent is not None and row.extent.segment in numbers:
                    moved[ino] = row.extent, self._small.append(self._small.read(row.extent))
            for segment in {new.segment for _, new in moved.values()}:
                await trio.to_thread.run_sync(self._small.sync, segment)
            for ino, (old, new) in moved.items():
                self._place(ino, old, new)

    def _place(self, ino: int, old: Extent, new: Extent) -> None:
        inode = self._tree.by_number(ino)
        if inode is not None and inode.row is not None and inode.linked and inode.extent == old:
            row = inode.row.copy()
            row.extent = new
            replace_row(self._tree, inode, row)
        self._tree.drop_if_unused(inode)
