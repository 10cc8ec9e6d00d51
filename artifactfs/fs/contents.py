"""Content of files: reading, copy-up at the first write, writing, truncating, syncing.

A `write` is one ``pwrite`` to the upper file and no transaction: size and mtime are those of the
upper file. A clean file is copied up by its first write (content first, under a draft name, then
the row), but a truncation to nothing downloads nothing.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import Protocol

import trio

from artifactfs.fs.changes import Change
from artifactfs.fs.clock import now_ns
from artifactfs.fs.handles import FileHandle
from artifactfs.fs.inodes import UNKNOWN_SIZE, Data, Directory, Inode
from artifactfs.fs.interrupt import unless_interrupted
from artifactfs.fs.mutations import Mutations, fail
from artifactfs.fs.tree import Tree
from artifactfs.git.objects import Oid
from artifactfs.hydration.blobs import Blob
from artifactfs.hydration.hydrator import ReadContext

_COPY_PIECE = 1 << 20
_IN_HANDLER = 256 << 10
"""Larger contents are copied in a thread."""


class BlobSource(Protocol):
    """What the file system needs of the hydrator."""

    def open_local(self, oid: Oid) -> Blob | None: ...
    async def hydrate(self, oid: Oid, context: ReadContext) -> Blob: ...
    def known_size(self, oid: Oid) -> int | None: ...
    def known_sizes(self, oids: list[Oid]) -> dict[Oid, int]: ...
    async def sizes(self, tree: Oid, oids: list[Oid]) -> dict[Oid, int]: ...


class Contents:
    """Reads and writes the content of regular files."""

    def __init__(self, tree: Tree, mutations: Mutations, blobs: BlobSource) -> None:
        self._tree = tree
        self._overlay = tree.overlay
        self._upper = tree.upper
        self._mutations = mutations
        self._blobs = blobs
        self._copying: dict[int, trio.Event] = {}

    # Reading

    async def read(self, handle: FileHandle, offset: int, size: int) -> bytes:
        """Waits for the content where it is not here. The reader is killable meanwhile."""
        inode = handle.inode
        data = inode.data
        if data is not None:
            if data.fd < 0:
                data.fd = self._upper.open(inode.ino)
            return os.pread(data.fd, size, offset)
        blob = handle.blob
        if blob is None or handle.oid != inode.oid:
            blob = await self._open_blob(handle)
            if inode.data is not None:
                return await self.read(handle, offset, size)
        return blob.read(offset, size)

    async def _open_blob(self, handle: FileHandle) -> Blob:
        inode = handle.inode
        oid = inode.oid
        if oid is None:
            fail(errno.EIO)
        blob = self._blobs.open_local(oid)
        if blob is None:
            blob = await self._blobs.hydrate(oid, self._context(inode, handle.pid))
        if inode.size == UNKNOWN_SIZE and inode.oid == oid:
            inode.size = blob.size
        handle.keep(oid, blob)
        return blob

    async def link_target(self, inode: Inode, pid: int) -> bytes:
        row = inode.row
        if row is not None and row.target is not None:
            return row.target
        assert inode.oid is not None
        blob = await self._blob(inode, inode.oid, pid)
        try:
            target = blob.read(0, blob.size)
        finally:
            blob.close()
        return target

    async def _blob(self, inode: Inode, oid: Oid, pid: int) -> Blob:
        """The content of a clean inode, for a caller that the kernel does not let die."""
        blob = self._blobs.open_local(oid)
        if blob is not None:
            return blob
        hydrate = functools.partial(self._blobs.hydrate, oid, self._context(inode, pid))
        return await unless_interrupted(pid, hydrate)

    def _context(self, inode: Inode, pid: int) -> ReadContext:
        path = self._tree.path(inode) or b""
        return ReadContext(path=path, trees=self._tree.trees_above(inode), pid=pid)

    # Sizes

    async def ensure_size(self, inode: Inode, pid: int) -> None:
        """Fill in the size of a clean inode, and with it those of its whole directory."""
        if self._tree.settle(inode):
            return
        oid, parent = inode.oid, inode.parent
        assert oid is not None
        if parent is not None and parent.oid is not None:
            missing = self._unknown_sizes(parent, oid)
            ask = functools.partial(self._blobs.sizes, parent.oid, missing)
            sizes = await unless_interrupted(pid, ask)
            if inode.oid != oid or inode.size != UNKNOWN_SIZE:
                return
            inode.size = sizes.get(oid, UNKNOWN_SIZE)
        if inode.size == UNKNOWN_SIZE:
            blob = await self._blob(inode, oid, pid)
            if inode.oid == oid and inode.size == UNKNOWN_SIZE:
                inode.size = blob.size
            blob.close()

    def _unknown_sizes(self, directory: Directory, first: Oid) -> list[Oid]:
        oids = {first: None}
        for entry in self._tree.entries(directory).values():
            if entry.mode & 0o170000 in (0o100000, 0o120000):
                oids[entry.oid] = None
        known = self._blobs.known_sizes(list(oids))
        return [oid for oid in oids if oid not in known]

    # Writing

    async def write(self, handle: FileHandle, offset: int, buffer: bytes) -> int:
        """Write to the upper file; the data outlives this process when this returns."""
        inode = handle.inode
        data = inode.data
        if data is None:
            await self.copy_up(inode, handle.pid)
            data = inode.data
            assert data is not None
        if data.fd < 0:
            data.fd = self._upper.open(inode.ino)
        written = os.pwrite(data.fd, buffer, offset)
        if offset + written > inode.size:
            inode.size = offset + written
        self._written(inode, data)
        return written

    async def truncate(self, inode: Inode, size: int, pid: int) -> None:
        """Set the size. To 0, or up to the present content, nothing more is read than stays."""
        if inode.data is None:
            await self.copy_up(inode, pid, limit=size)
        data = inode.data
        assert data is not None
        if data.fd >= 0:
            os.ftruncate(data.fd, size)
        else:
            self._upper.truncate(inode.ino, size)
        inode.size = size
        self._written(inode, data)
        if not inode.handles:
            self._tree.flush_times(inode)

    def _written(self, inode: Inode, data: Data) -> None:
        row = inode.row
        assert row is not None
        row.mtime_ns = row.ctime_ns = now_ns()
        data.unsaved = True
        data.blocks = -1
        data.version += 1
        self._mutations.note_write(inode)

    async def copy_up(self, inode: Inode, pid: int, *, limit: int | None = None) -> None:
        """Give a clean file data of its own: its content, or the first `limit` bytes of it."""
        while inode.data is None:
            running = self._copying.get(inode.ino)
            if running is not None:
                await unless_interrupted(pid, running.wait)
                continue
            done = self._copying[inode.ino] = trio.Event()
            try:
                await self._copy_up(inode, pid, limit)
            finally:
                del self._copying[inode.ino]
                done.set()

    def is_copying(self, ino: int) -> bool:
        """Whether a copy-up of `ino` is under way."""
        return ino in self._copying

    async def _copy_up(self, inode: Inode, pid: int, limit: int | None) -> None:
        oid = inode.oid
        draft = self._upper.create_draft(inode.ino)
        try:
            if limit != 0 and oid is not None:
                blob = await self._blob(inode, oid, pid)
                try:
                    size = blob.size if limit is None else min(blob.size, limit)
                    await _copy(blob, draft, size)
                finally:
                    blob.close()
            if inode.oid == oid:  # else the base was switched meanwhile: `copy_up` tries again
                self._adopt(inode, draft)
                draft = -1
        finally:
            if draft >= 0:
                os.close(draft)
                self._upper.discard_draft(inode.ino)

    def _adopt(self, inode: Inode, draft: int) -> None:
        """Make the file `draft` the data of `inode`. The times stay: nothing was changed yet."""
        change = Change(self._tree)
        row = change.edit(inode)
        row.has_data = True
        row.oid = None
        os.utime(draft, ns=(row.mtime_ns, row.mtime_ns))
        size = os.fstat(draft).st_size
        self._upper.publish(inode.ino)
        change.commit()
        data = Data()
        inode.data = data
        inode.size = size
        if inode.handles:
            data.fd = draft
        else:
            os.close(draft)

    # Handles

    def release(self, handle: FileHandle) -> None:
        """The last close of one open file."""
        inode = handle.inode
        inode.handles -= 1
        handle.drop_blob()
        if inode.handles:
            return
        data = inode.data
        if data is not None:
            if inode.linked:
                self._tree.flush_times(inode)
            if data.fd >= 0:
                os.close(data.fd)
                data.fd = -1
        self._tree.drop_if_unused(inode)

    async def sync(self, handle: FileHandle | None) -> None:
        """fsync: data, the names of new upper files and every transaction reach the disk."""
        inode = handle.inode if handle is not None else None
        data = inode.data if inode is not None else None
        steps: list[Callable[[], None]] = []
        if inode is not None and data is not None and inode.linked:
            self._tree.flush_times(inode)
            if data.fd < 0:
                data.fd = self._upper.open(inode.ino)
            steps.append(functools.partial(os.fsync, data.fd))
        steps += [self._upper.sync, self._overlay.sync]
        await trio.to_thread.run_sync(_run_all, steps)


def _run_all(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()


async def _copy(blob: Blob, fd: int, size: int) -> None:
    if size <= _IN_HANDLER:
        _copy_bytes(blob, fd, size)
    else:
        await trio.to_thread.run_sync(_copy_bytes, blob, fd, size)


def _copy_bytes(blob: Blob, fd: int, size: int) -> None:
    offset = 0
    while offset < size:
        piece = memoryview(blob.read(offset, min(_COPY_PIECE, size - offset)))
        if not piece:
            fail(errno.EIO)
        while piece:
            written = os.write(fd, piece)
            offset += written
            piece = piece[written:]
