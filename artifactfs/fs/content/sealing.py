"""Makes the seals of upper files (`inodes/seals.py`), and looks for what was lost at the start."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import trio

from artifactfs.fs.inodes import seals
from artifactfs.fs.inodes.inode import EMPTY
from artifactfs.fs.inodes.seals import Seal
from artifactfs.fs.overlay.pending import Edit, put_xattr
from artifactfs.fs.overlay.written import Written
from artifactfs.fs.tree.changes import replace_row
from artifactfs.fs.tree.tree import Tree

log = logging.getLogger(__name__)

_READ_AT_THE_END = 64 << 20
"""Bytes that are read for checksums when a mount ends: some 30 ms. Of the rest sizes are kept."""

_AT_ONCE = 100


class Sealing:
    """The seals of one mount."""

    def __init__(self, tree: Tree, written: Written) -> None:
        self._tree = tree
        self._overlay = written.overlay
        self._upper = written.upper
        self._seen: dict[int, int] = {}

    async def run(self) -> None:
        """Seal what was not written since this was called last."""
        unsealed = self._tree.unsealed
        seen, self._seen = self._seen, {ino: self._version(ino) for ino in unsealed}
        for ino, version in self._seen.items():
            if seen.get(ino) == version and ino in unsealed:
                await self._seal(ino, version)

    def _version(self, ino: int) -> int:
        inode = self._tree.find(ino)
        return -1 if inode is None or inode.data is None else inode.data.version

    async def _seal(self, ino: int, version: int) -> None:
        self._tree.unsealed.discard(ino)
        make = partial(self._upper.seal, ino, content=True, synced=False)
        try:
            sealed = await trio.to_thread.run_sync(make)
            if self._version(ino) == version and ino not in self._tree.unsealed:
                self._overlay.apply(list(self._edits(ino, sealed)))
        except OSError as error:
            log.warning("a written file has no checksum yet: %s", error)
            self._tree.unsealed.add(ino)

    def _edits(self, ino: int, sealed: Seal | None) -> Iterator[Edit]:
        overlay = self._overlay
        if sealed is None or not overlay.has_upper(ino):
            return
        before = seals.decode(overlay.xattrs(ino).get(seals.NAME))
        now = sealed.size, sealed.mtime_ns
        if before is not None and before.synced and (before.size, before.mtime_ns) == now:
            sealed = replace(sealed, synced=True)
        yield put_xattr(ino, seals.NAME, sealed.encode())

    def finish(self) -> None:
        """The mount has ended: seal the rest. Raises: OSError (no space)."""
        budget = _READ_AT_THE_END
        edits: list[Edit] = []
        for ino in self._tree.unsealed:
            if not self._overlay.has_upper(ino):
                continue
            size = self._size(ino)
            edits += self._edits(ino, self._upper.seal(ino, content=size <= budget, synced=False))
            budget -= min(budget, size)
        for start in range(0, len(edits), _AT_ONCE):
            self._overlay.apply(edits[start : start + _AT_ONCE])

    def _size(self, ino: int) -> int:
        try:
            return self._upper.stat(ino).st_size
        except OSError:
            return 0


async def look_for_damage(tree: Tree, written: Written) -> None:
    """Find the written files whose data is missing or cut, so that somebody is told before
    anybody reads them."""
    try:
        sizes = await trio.to_thread.run_sync(written.upper.sizes)
        places = await trio.to_thread.run_sync(written.overlay.places)
    except (OSError, sqlite3.Error) as error:
        log.error("what the overlay names cannot be looked through: %s", error)
        return
    for number, (ino, extent, sealed) in enumerate(places):
        if number % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        if extent is not None:
            sound = written.small.has(extent)
        else:
            seal = seals.decode(sealed)
            sound = ino in sizes and (seal is None or sizes[ino] == seal.size)
        if not sound:
            _look_at(tree, ino)


def _look_at(tree: Tree, ino: int) -> None:
    """To have it in memory is to know, and to say, what is wrong with it. What may have been lost
    with the power is empty from now on."""
    try:
        inode = tree.by_number(ino)
        if inode is not None and inode.row is not None and inode.extent == EMPTY:
            replace_row(tree, inode, inode.row)
        tree.drop_if_unused(inode)
    except OSError as error:
        log.error("inode %d cannot be looked at: %s", ino, error)
