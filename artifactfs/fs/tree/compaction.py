"""Turns written files whose content is a known blob back into clean ones.

When git checks out, merges or commits and pushes, it leaves files whose content is a blob that the
remote can send again. Their data is given up; inode numbers and times stay, so that git's index
remains right, and the content comes from the object store from now on.

A blob that exists only as a local object is no reason: an unpushed commit can be thrown away and
pruned. Only blobs in promisor packs count: what they hold came from the remote. What equals the
blob that HEAD has at its path is noted all the same (`Tree.committed`): its data stays, but it is
no local change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import trio

from artifactfs.errors import CorruptData
from artifactfs.fs.inodes.inode import Inode
from artifactfs.fs.overlay.written import Written
from artifactfs.fs.tree.changes import Change
from artifactfs.fs.tree.tree import Tree
from artifactfs.fs.tree.walk import Walker
from artifactfs.git.apart import alternates_of, is_offered
from artifactfs.git.objects.database import Oid
from artifactfs.git.pack.format import object_id
from artifactfs.git.pack.index import PackIndex

_PIECE = 1 << 20


class PromisedObjects:
    """The oids in the promisor packs of a gitdir and its alternates, as of now."""

    def __init__(self, gitdir: Path) -> None:
        self._indexes = list(_promisor_indexes(gitdir / "objects"))

    def __contains__(self, oid: Oid) -> bool:
        return any(index.offset(oid) is not None for index in self._indexes)


def _promisor_indexes(objects: Path) -> Iterator[PackIndex]:
    for directory in (objects, *alternates_of(objects)):
        if is_offered(directory):  # it leads into the mount that this process serves
            continue
        for mark in directory.glob("pack/pack-*.promisor"):
            try:
                yield PackIndex(mark.with_suffix(".idx"))
            except (OSError, CorruptData):
                continue


class Compaction:
    """Compacts one mount. Remembers what it has looked at in vain."""

    def __init__(
        self,
        tree: Tree,
        walker: Walker,
        gitdir: Path,
        equals_blob: Callable[[Inode, Oid], Awaitable[bool]],
    ) -> None:
        self._tree = tree
        self._equals_blob = equals_blob
        self._walker = walker
        self._gitdir = gitdir
        self._differs: dict[int, tuple[Oid, int]] = {}

    async def run(self, head: Oid | None, others: Iterable[Oid]) -> int:
        """Compact files that equal the blob at their path in one of the trees, `head` is HEAD's.

        Hashes in a thread, one file at a time. Returns how many files became clean.
        """
        promised = await trio.to_thread.run_sync(PromisedObjects, self._gitdir)
        count = 0
        for tree in dict.fromkeys([*([] if head is None else [head]), *others]):
            blobs = list(self._walker.written_blobs(tree))
            if tree == head:
                self._forget_committed(blobs)
            for ino, oid in blobs:
                if oid in promised:
                    count += await self._compact(ino, oid, kept=False)
                elif tree == head and ino not in self._tree.committed:
                    await self._compact(ino, oid, kept=True)
        return count

    def _forget_committed(self, blobs: Iterable[tuple[int, Oid]]) -> None:
        """What is not HEAD's any more."""
        here = dict(blobs)
        known = self._tree.committed
        for ino in [ino for ino, oid in known.items() if here.get(ino) != oid]:
            del known[ino]

    async def _compact(self, ino: int, oid: Oid, *, kept: bool) -> bool:
        """Give up the data of a file if it is the blob, unless it is to be `kept`."""
        inode = self._tree.by_number(ino)
        if inode is None:
            return False
        inode.pins += 1  # else a second inode of this number might be written meanwhile
        try:
            if inode.data is None or not inode.linked:
                return False
            self._tree.refresh_attributes(inode)
            seen = oid, self._mtime(inode)
            if self._differs.get(ino) == seen:
                return False
            version = inode.data.version
            if not await self._equals_blob(inode, oid):
                self._differs[ino] = seen
                return False
            data = inode.data
            if data is None or data.version != version or not inode.linked:
                return False
            if kept:
                self._tree.committed[ino] = oid
                return False
            self._give_up_data(inode, oid)
            return True
        finally:
            inode.pins -= 1
            self._tree.drop_if_unused(inode)

    def _mtime(self, inode: Inode) -> int:
        return inode.row.mtime_ns if inode.row is not None else 0

    def _give_up_data(self, inode: Inode, oid: Oid) -> None:
        change = Change(self._tree)
        row = change.edit(inode)
        row.has_data, row.extent = False, None
        row.oid = oid
        change.commit()
        self._tree.give_up_data(inode)


def holds_blob(written: Written, inode: Inode, oid: Oid) -> bool:
    """Whether the data of `inode` is the blob `oid`. Reads all of it."""
    extent = inode.extent
    if extent is None:
        return is_blob(written.upper.file(inode.ino), oid)
    try:
        return object_id("blob", written.small.read(extent)) == oid
    except OSError:  # it is damaged, and that was said
        return False


def holds_content(written: Written, inode: Inode, content: bytes) -> bool:
    """Whether the data of a small file is `content`."""
    assert inode.extent is not None
    try:
        return written.small.read(inode.extent) == content
    except OSError:  # it is damaged, and that was said
        return False


def is_blob(path: Path, oid: Oid) -> bool:
    """Whether the file at `path` holds the content of the blob `oid`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while piece := file.read(_PIECE):
                digest.update(piece)
    except FileNotFoundError:
        return False
    return digest.digest() == oid
