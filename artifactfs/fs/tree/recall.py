"""Finding inodes that the kernel knows and this process does not: another one has served the mount.

The kernel asks by number. What the overlay has a row of is found there. Numbers of what is clean
are derived from the parent's and the name (`inode_numbers`), so the base trees are walked until the
number comes up: 4 ms for a thousand files, a slice at a time between requests. What was walked is
kept as number → directory, some 100 bytes each, and the walk goes on where it stopped.

References are counted from one: whatever was counted before, the kernel lets go of all at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from artifactfs.fs.inodes.inode import Directory, Inode
from artifactfs.fs.inodes.listings import Listings, base_tree_of, is_directory_entry
from artifactfs.fs.overlay.database import Overlay
from artifactfs.fs.tree.tree import Tree
from artifactfs.git.objects.database import Oid
from artifactfs.inode_numbers import ROOT_INO, derive_ino, is_derived

_AT_ONCE = 1_000
"""Entries between two turns of the other tasks: some 3 ms."""


@dataclass(frozen=True, slots=True)
class _Place:
    ino: int
    tree: Oid | None
    has_row: bool


class Recall:
    """What the kernel may know of one tree."""

    def __init__(self, tree: Tree, overlay: Overlay, listings: Listings) -> None:
        self._tree = tree
        self._overlay = overlay
        self._listings = listings
        self._lock = trio.Lock()
        self._begin()

    def _begin(self) -> None:
        base = self._tree.root.oid
        self._base = base
        self._where: dict[int, int] = {}
        """Number → number of its directory, of what is clean."""
        self._ahead = [_Place(ROOT_INO, base, True)]

    async def bring(self, ino: int) -> None:
        """Have the inode `ino` in memory, if it is anywhere in the tree."""
        inode = self._find(ino)
        if inode is None and is_derived(ino):
            async with self._lock:
                inode = await self._walk_to(ino)
        if inode is not None and inode.nlookup <= 0:
            inode.nlookup = 1

    def _find(self, ino: int) -> Inode | None:
        """By what is known so far."""
        inode = self._tree.by_number(ino)
        above = self._where.get(ino)
        if inode is not None or above is None:
            return inode
        directory = self._find(above)
        if type(directory) is not Directory:
            return None
        secret = self._overlay.ino_secret
        for name in self._tree.entries(directory):
            if derive_ino(secret, above, name) == ino:
                return self._tree.lookup(directory, name)
        return None

    async def _walk_to(self, ino: int) -> Inode | None:
        if self._base != self._tree.root.oid:  # the tree was switched
            self._begin()
        looked_at = 0
        while ino not in self._where and self._ahead:
            looked_at += self._walk(self._ahead.pop())
            if looked_at >= _AT_ONCE:
                looked_at = 0
                await trio.lowlevel.checkpoint()
        return self._find(ino)

    def _walk(self, place: _Place) -> int:
        """Note what is in a directory; how many entries that are."""
        secret, above, where = self._overlay.ino_secret, place.ino, self._where
        names = self._overlay.names(above) if place.has_row else {}
        entries = self._listings.entries(place.tree)
        for name, entry in entries.items():
            if name in names:
                continue
            ino = derive_ino(secret, above, name)
            where[ino] = above
            if is_directory_entry(entry):
                self._ahead.append(_Place(ino, base_tree_of(entry), False))
        if any(names.values()):
            for _name, ino in self._overlay.subdirectories(above):
                row = self._overlay.row(ino)
                self._ahead.append(_Place(ino, row.oid if row else None, True))
        return len(entries) + len(names) + 1
