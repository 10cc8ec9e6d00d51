"""Content of files: reading, copy-up at the first write, writing, truncating, syncing.

A `write` is one ``pwrite`` to the upper file and no transaction: size and mtime are those of the
upper file. A clean file is copied up by its first write (content first, under a draft name, then
the row), but a truncation to nothing downloads nothing.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio

from artifactfs.fs.changes import Change
from artifactfs.fs.compaction import is_blob
from artifactfs.fs.conversion import Conversions, Scope
from artifactfs.fs.converted import ConvertedContents
from artifactfs.fs.inodes import UNKNOWN_SIZE, Data, Directory, Inode
from artifactfs.fs.interrupt import unless_interrupted
from artifactfs.fs.mutations import Mutations, fail
from artifactfs.fs.tree import Tree
from artifactfs.git.objects import Oid
from artifactfs.hydration.blobs import Blob, ReadContext

_BLOBS = (stat.S_IFREG, stat.S_IFLNK)

_COPY_PIECE = 1 << 20
_IN_HANDLER = 256 << 10
"""Larger contents are copied in a thread."""


def _nobody() -> int:
    return 0


class BlobSource(Protocol):
    """What the file system needs of the hydrator."""

    def open_local(self, oid: Oid) -> Blob | None: ...
    async def hydrate(self, oid: Oid, context: ReadContext) -> Blob: ...
    def known_size(self, oid: Oid) -> int | None: ...
    def known_sizes(self, oids: list[Oid]) -> dict[Oid, int]: ...
    async def sizes(self, tree: Oid, oids: list[Oid]) -> dict[Oid, int]: ...


class Contents:
    """Reads and writes the content of regular files."""

    def __init__(
        self,
        tree: Tree,
        mutations: Mutations,
        blobs: BlobSource,
        conversions: Conversions,
        converted: ConvertedContents,
    ) -> None:
        self._tree = tree
        self._conversions = conversions
        self._converted = converted
        self._overlay = tree.overlay
        self._upper = tree.upper
        self._opened = tree.opened
        self.caller: Callable[[], int] = _nobody
        """The process that a read or write is for; 0: not known. See `Adjustments.caller`."""
        self._mutations = mutations
        self._blobs = blobs
        self._copying: dict[int, trio.Event] = {}

    # Reading

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Waits for the content where it is not here. The reader is killable meanwhile."""
        data = inode.data
        if data is not None:
            return os.pread(self._opened.open(inode.ino, data), size, offset)
        blob = self._opened.blob(inode.ino, inode.oid) or await self._open_blob(inode)
        if inode.data is not None:
            blob.close()
            return await self.read(inode, offset, size)
        content = blob.read(offset, size)
        if offset + len(content) >= blob.size:
            self._opened.close_blob(inode.ino)
        return content

    async def _open_blob(self, inode: Inode) -> Blob:
        oid = inode.oid
        if oid is None:
            fail(errno.EIO)
        blob = self._open_here(inode, oid)
        if blob is None:
            blob = await self._bring(inode, oid, self.caller())
        if inode.oid == oid and inode.data is None:
            if inode.size == UNKNOWN_SIZE:
                inode.size = blob.size
            self._opened.keep_blob(inode.ino, oid, blob)
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
        blob = self._open_here(inode, oid)
        if blob is not None:
            return blob
        return await unless_interrupted(pid, functools.partial(self._bring, inode, oid, pid))

    def _open_here(self, inode: Inode, oid: Oid) -> Blob | None:
        """The content of a clean inode, if it can be had without waiting."""
        if stat.S_ISREG(inode.mode) and not self._conversions.shows_blob(inode):
            return None
        return self._blobs.open_local(oid)

    async def _bring(self, inode: Inode, oid: Oid, pid: int) -> Blob:
        """The content of a clean inode; waits for what decides about it and for the network."""
        if not stat.S_ISREG(inode.mode) or self._conversions.shows_blob(inode):
            return await self._blobs.hydrate(oid, self._context(inode, pid))
        path = self._tree.path(inode) or b""
        conversion = await self._conversions.of(inode)
        bring_blob = functools.partial(self._bring_blob, inode, oid, pid)
        if conversion is None:
            return await bring_blob()
        blob = await self._converted.open(oid, conversion, path, bring_blob)
        self._conversions.note_size(oid, conversion, blob.size)
        return blob

    def _context(self, inode: Inode, pid: int) -> ReadContext:
        path = self._tree.path(inode) or b""
        return ReadContext(path=path, trees=self._tree.trees_above(inode), pid=pid)

    async def _bring_blob(self, inode: Inode, oid: Oid, pid: int) -> Blob:
        blob = self._blobs.open_local(oid)
        return blob or await self._blobs.hydrate(oid, self._context(inode, pid))

    # Sizes

    async def ensure_size(self, inode: Inode, pid: int) -> None:
        """Fill in the size of a clean inode, and with it those of its whole directory."""
        if self._tree.settle(inode):
            return
        oid, parent = inode.oid, inode.parent
        assert oid is not None
        if stat.S_ISREG(inode.mode) and not self._conversions.shows_blob(inode):
            if await self._ensure_converted_size(inode, oid, pid):
                return
            parent = inode.parent
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

    async def _ensure_converted_size(self, inode: Inode, oid: Oid, pid: int) -> bool:
        """The same for a file of which it is not known that it is its blob. False: it is, but the
        size of that is not known either."""
        conversion = await unless_interrupted(pid, functools.partial(self._conversions.of, inode))
        if inode.oid != oid or inode.size != UNKNOWN_SIZE:
            return True
        if conversion is None:
            return self._tree.settle(inode)
        path = self._tree.path(inode) or b""
        size = self._converted.kept_size(oid, conversion, path)
        if size is None:
            blob = await self._blob(inode, oid, pid)
            size = blob.size
            blob.close()
        if inode.oid == oid and inode.size == UNKNOWN_SIZE:
            inode.size = size
        return True

    async def equals_blob(self, inode: Inode, oid: Oid) -> bool:
        """Whether the data of `inode` is what it would show if it were clean with the blob `oid`.

        False also where that cannot be told without waiting for the network or for a filter.
        """
        upper = self._upper.file(inode.ino)
        links = self._tree.links(inode)
        if all(self._conversions.shows_blob_at(place, name) for place, name in links):
            return await trio.to_thread.run_sync(is_blob, upper, oid)
        conversion = self._conversions.decided(inode)
        blob = self._blobs.open_local(oid)
        if conversion is None or conversion.filter is not None or blob is None:
            return False

        async def bring() -> Blob:
            assert blob is not None
            return blob

        content = await self._converted.open(oid, conversion, b"", bring)
        try:
            return await trio.to_thread.run_sync(_has_content, upper, content)
        finally:
            content.close()

    def sizes_in(self, directory: Directory) -> dict[Oid, int]:
        """Of the blobs in the base of `directory`, as far as they are known: one query, where
        asking for each takes 6 µs."""
        return self._blobs.known_sizes(list(self._blobs_in(directory)))

    def _unknown_sizes(self, directory: Directory, first: Oid) -> list[Oid]:
        oids = {first: None, **self._blobs_in(directory)}
        known = self._blobs.known_sizes(list(oids))
        return [oid for oid in oids if oid not in known]

    def _blobs_in(self, directory: Directory) -> dict[Oid, None]:
        entries = self._tree.entries(directory).values()
        return {entry.oid: None for entry in entries if entry.mode & 0o170000 in _BLOBS}

    # Writing

    async def write(self, inode: Inode, offset: int, buffer: bytes) -> int:
        """Write to the upper file; the data outlives this process when this returns."""
        data = inode.data
        if data is None:
            await self.copy_up(inode, self.caller())
            data = inode.data
            assert data is not None
        written = os.pwrite(self._opened.open(inode.ino, data), buffer, offset)
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
        os.ftruncate(self._opened.open(inode.ino, data), size)
        inode.size = size
        self._written(inode, data)

    def _written(self, inode: Inode, data: Data) -> None:
        data.blocks = -1  # the times are those of the upper file: see `Tree.settle`
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
        data.fd = draft
        inode.data = data
        inode.size = size
        self._opened.close_blob(inode.ino)
        self._opened.keep(data)

    # Moves: they change no bytes, though attributes may say something else of the new place.

    async def before_move(
        self, old: Directory, old_name: bytes, new: Directory, new_name: bytes, pid: int
    ) -> None:
        """Give data of its own to what would be shown otherwise after a rename or link."""
        inode = self._tree.lookup(old, old_name)
        if inode is None or inode.data is not None:
            return
        if self._conversions.moves_freely(inode, old, new, new_name):
            return
        places = self._conversions.whole(old), self._conversions.whole(new)
        keep = functools.partial(self._keep_bytes, inode, *places, old_name, new_name, pid)
        await unless_interrupted(pid, keep)

    async def _keep_bytes(
        self, inode: Inode, old: Scope, new: Scope, old_name: bytes, new_name: bytes, pid: int
    ) -> None:
        if type(inode) is Directory:
            before = self._conversions.below(old, inode, old_name)
            after = self._conversions.below(new, inode, new_name)
            for name in self._tree.listing(inode):
                child = self._tree.lookup(inode, name)
                if child is not None:
                    await self._keep_bytes(child, before, after, name, name, pid)
                    self._tree.drop_if_unused(child)
            await trio.lowlevel.checkpoint()
        elif stat.S_ISREG(inode.mode) and inode.oid is not None and inode.data is None:
            before_it = await self._conversions.at(old, old_name)
            if before_it != await self._conversions.at(new, new_name):
                await self.copy_up(inode, pid)

    def after_move(self, inode: Inode | None) -> None:
        """`inode` lies elsewhere now."""
        if type(inode) is Directory:
            self._conversions.forget_scopes(self._tree.inodes())

    async def sync(self, inode: Inode | None) -> None:
        """fsync: data, the names of new upper files and every transaction reach the disk."""
        steps: list[Callable[[], None]] = []
        if inode is not None and inode.data is not None and inode.linked:
            # With a descriptor of its own: the other one may be closed meanwhile.
            steps.append(functools.partial(self._upper.sync_file, inode.ino))
        steps += [self._upper.sync, self._overlay.sync]
        await trio.to_thread.run_sync(_run_all, steps)


def _run_all(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()


def _has_content(path: Path, content: Blob) -> bool:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != content.size:
                return False
            pieces = range(0, content.size, _COPY_PIECE)
            return all(file.read(_COPY_PIECE) == content.read(at, _COPY_PIECE) for at in pieces)
    except FileNotFoundError:
        return False


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
