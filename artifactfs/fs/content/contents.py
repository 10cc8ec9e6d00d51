"""Content of files: reading, copy-up at the first write, writing, truncating, syncing.

A `write` is one ``pwrite`` to the upper file and no transaction: size and mtime are those of the
upper file. A clean file is copied up by its first write (content first, under a draft name, then
the row), but a truncation to nothing downloads nothing. An empty file has no upper file; what is
written to it at once, if it is small, goes to a segment (`smallfiles.py`) and into the row.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

import trio

from artifactfs.fs.content import copying
from artifactfs.fs.content.converted import ConvertedContents
from artifactfs.fs.inodes import seals
from artifactfs.fs.inodes.clock import now_ns, precise_ns
from artifactfs.fs.inodes.conversion import Conversions
from artifactfs.fs.inodes.inode import EMPTY, UNKNOWN_SIZE, Data, Directory, Extent, Inode
from artifactfs.fs.inodes.scope import PLAIN, Scope
from artifactfs.fs.inodes.seals import Seal
from artifactfs.fs.kernel.interrupt import unless_interrupted
from artifactfs.fs.kernel.refusal import fail
from artifactfs.fs.kernel.stale import invalidate_attributes
from artifactfs.fs.overlay.pending import delete_xattr, put_xattr
from artifactfs.fs.overlay.smallfiles import LARGEST
from artifactfs.fs.overlay.written import Written
from artifactfs.fs.tree.changes import Change, replace_row
from artifactfs.fs.tree.compaction import holds_blob, holds_content, is_blob
from artifactfs.fs.tree.mutations import Mutations
from artifactfs.fs.tree.tree import Tree
from artifactfs.git.objects.database import Oid
from artifactfs.hydration.local.blobs import Blob, Found, InPack, ReadContext
from artifactfs.hydration.local.checksums import BlobDamaged

_BLOBS = (stat.S_IFREG, stat.S_IFLNK)
_ORPHANS_AT_ONCE = 200

_COMPARED_AT_ONCE = 1 << 20
"""Upper files up to this size are compared with their checksum in the event loop: 0.3 ms."""


def _nobody() -> int:
    return 0


class BlobSource(Protocol):
    """What the file system needs of the hydrator."""

    def find(self, oid: Oid) -> Found: ...
    async def hydrate(
        self, oid: Oid, context: ReadContext, found: InPack | None = None
    ) -> Blob: ...
    async def open(self, oid: Oid, context: ReadContext) -> Blob: ...
    async def open_here(self, oid: Oid) -> Blob | None: ...
    def known_size(self, oid: Oid) -> int | None: ...
    def known_sizes(self, oids: list[Oid]) -> dict[Oid, int]: ...
    async def sizes(self, tree: Oid, oids: list[Oid]) -> dict[Oid, int]: ...


class Contents:
    """Reads and writes the content of regular files."""

    def __init__(
        self,
        tree: Tree,
        written: Written,
        mutations: Mutations,
        blobs: BlobSource,
        conversions: Conversions,
        converted: ConvertedContents,
    ) -> None:
        self._tree = tree
        self._conversions = conversions
        self._converted = converted
        self._written_data = written
        self._overlay = written.overlay
        self._upper = written.upper
        self._small = written.small
        self._opened = written.opened
        self.caller: Callable[[], int] = _nobody
        """The process that a read or write is for; 0: not known. See `extension.Session`."""
        self._mutations = mutations
        self._blobs = blobs
        self._copying: dict[int, trio.Event] = {}

    # Reading

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Waits for the content where it is not here. The reader is killable meanwhile."""
        data = inode.data
        if data is not None:
            extent = inode.extent
            if extent is not None:
                return self._small.read(extent, offset, size)
            if data.seal is not None or data.lost:
                await self._check_upper(inode, data)
            return self._read_upper(inode, data, offset, size)
        blob = self._opened.blob(inode.ino, inode.oid) or await self._open_blob(inode)
        if inode.data is not None:
            blob.close()
            return await self.read(inode, offset, size)
        try:
            content = blob.read(offset, size)
        except BlobDamaged:
            return await self._read_anew(inode, offset, size)
        if offset + len(content) >= blob.size:
            self._opened.close_blob(inode.ino)
        return content

    def _read_upper(self, inode: Inode, data: Data, offset: int, size: int) -> bytes:
        fd = self._open_upper(inode, data)
        try:
            return os.pread(fd, size, offset)
        except OSError as error:
            self._tree.report(inode, f"cannot be read ({error.strerror})")
            raise

    def _open_upper(self, inode: Inode, data: Data) -> int:
        """Raises: OSError (EIO where it was lost while it is mounted)."""
        try:
            return self._opened.open(inode.ino, data)
        except (FileNotFoundError, NotADirectoryError):
            self._tree.lose(inode, data, "is missing")
            fail(errno.EIO)

    async def stored(self, inode: Inode, path: bytes, limit: int) -> bytes:
        """The first `limit` bytes of a written file, or of the blob of a clean one.

        Waits for it. Raises: OSError, ArtifactFSError.
        """
        if inode.data is not None or inode.oid is None:
            return await self.read(inode, 0, limit)
        blob = await self._blobs.open(inode.oid, ReadContext(path))
        try:
            return blob.read(0, limit)
        finally:
            blob.close()

    async def _read_anew(self, inode: Inode, offset: int, size: int) -> bytes:
        """After the file of its blob was found to be damaged, and removed."""
        self._opened.close_blob(inode.ino)
        blob = await self._open_blob(inode)
        return blob.read(offset, size)

    async def _check_upper(self, inode: Inode, data: Data) -> None:
        """Before an upper file is used for the first time: that it is what it was.

        Large ones are read in a thread. Raises: OSError (EIO).
        """
        while data.seal is not None and not data.lost:
            seal = data.seal
            wrong = await self._compare(inode, data, seal)
            if data.seal is not seal:
                continue
            if wrong is None:
                self._tree.compared(inode)
            else:
                self._tree.lose(inode, data, wrong)
        if data.lost:
            fail(errno.EIO)

    async def _compare(self, inode: Inode, data: Data, seal: Seal) -> str | None:
        fd, after = self._open_upper(inode, data), self._tree.after_clean_end
        if inode.size <= _COMPARED_AT_ONCE:
            return seals.changed(seal, fd, after_clean_end=after)
        inode.pins += 1
        try:
            with copying.held_open(fd) as own:
                compare = functools.partial(seals.changed, seal, own, after_clean_end=after)
                return await trio.to_thread.run_sync(compare)
        finally:
            inode.pins -= 1
            self._tree.drop_if_unused(inode)

    async def _open_blob(self, inode: Inode) -> Blob:
        oid = inode.oid
        if oid is None:
            fail(errno.EIO)
        found = self._find(inode, oid)
        if found is None or isinstance(found, InPack):
            pid = self.caller()
            hydrate = functools.partial(self._hydrate, inode, oid, pid, found)
            blob = await unless_interrupted(pid, hydrate)
        else:
            blob = found
        if inode.oid == oid and inode.data is None:
            if inode.size not in (UNKNOWN_SIZE, blob.size):
                self._correct_size(inode, blob)
            inode.size = blob.size
            self._opened.keep_blob(inode.ino, oid, blob)
        return blob

    def _correct_size(self, inode: Inode, blob: Blob) -> NoReturn:
        """The kernel was told a wrong size (of a damaged header in a pack, say), and cuts what it
        reads by it: it has to ask again. Raises: Refused (EIO)."""
        path = os.fsdecode(self._tree.path(inode) or b"")
        self._tree.damage.mended(
            path, f"was shown with {inode.size} bytes and has {blob.size}", "read it again"
        )
        inode.size = blob.size
        blob.close()
        invalidate_attributes(inode.ino)
        fail(errno.EIO)

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
        found = self._find(inode, oid)
        if found is not None and not isinstance(found, InPack):
            return found
        hydrate = functools.partial(self._hydrate, inode, oid, pid, found)
        return await unless_interrupted(pid, hydrate)

    def _find(self, inode: Inode, oid: Oid) -> Found:
        """The content of a clean inode if it can be had without waiting, else where it is.

        A file that may be converted counts as absent: `_hydrate` finds out.
        """
        if stat.S_ISREG(inode.mode) and not self._conversions.shows_blob(inode):
            return None
        return self._blobs.find(oid)

    async def _hydrate(self, inode: Inode, oid: Oid, pid: int, found: InPack | None) -> Blob:
        """The content of a clean inode of which `_find` has said `found`; waits for what decides
        about it and for the network."""
        if not stat.S_ISREG(inode.mode) or self._conversions.shows_blob(inode):
            return await self._blobs.hydrate(oid, self._context(inode, pid), found)
        path = self._tree.path(inode) or b""
        conversion = await self._conversions.of(inode)
        open_blob = functools.partial(self._blobs.open, oid, self._context(inode, pid))
        if conversion is None:
            return await open_blob()
        try:
            blob = await self._converted.open(oid, conversion, path, open_blob)
        except BlobDamaged:  # once more: it comes from the pack or the remote now
            blob = await self._converted.open(oid, conversion, path, open_blob)
        self._conversions.note_size(oid, conversion, blob.size)
        return blob

    def _context(self, inode: Inode, pid: int) -> ReadContext:
        path = self._tree.path(inode) or b""
        return ReadContext(path=path, trees=self._tree.trees_above(inode), pid=pid)

    # Sizes

    async def ensure_size(self, inode: Inode, pid: int) -> None:
        """Fill in the size of a clean inode, and with it those of its whole directory."""
        if self._tree.refresh_attributes(inode):
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
            return self._tree.refresh_attributes(inode)
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
            if inode.extent is not None:
                return holds_blob(self._written_data, inode, oid)
            return await trio.to_thread.run_sync(is_blob, upper, oid)
        conversion = self._conversions.decided(inode)
        if conversion is None or conversion.filter is not None:
            return False
        blob = await self._blobs.open_here(oid)
        if blob is None:
            return False
        open_blob = functools.partial(_same, blob)
        content = await self._converted.open(oid, conversion, b"", open_blob)
        try:
            if inode.extent is not None:
                return holds_content(self._written_data, inode, content.read(0, LARGEST + 1))
            return await trio.to_thread.run_sync(copying.has_content, upper, content)
        finally:
            content.close()

    def shows_blobs_in(self, directory: Directory) -> Callable[[bytes], bool] | None:
        """Tells of a name whether a clean file of `directory` is known to be its blob, byte for
        byte. None: all are."""
        if self._conversions.scope(directory) is PLAIN:
            return None
        return functools.partial(self._conversions.shows_blob_at, directory)

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
        extent = inode.extent
        if extent is not None:
            grown = self._grow(inode, extent, offset, buffer)
            if grown is not None:
                self._set_extent(inode, data, grown)
                return len(buffer)
            data = await self._upper_data(inode, self.caller())
        if data.seal is not None or data.lost:
            await self._check_upper(inode, data)
        written = os.pwrite(self._open_upper(inode, data), buffer, offset)
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
        if data.lost and not size and inode.extent is None:
            self._become_empty(inode)
            self._tree.forget_upper(inode.ino)
            data = inode.data
            assert data is not None
        extent = inode.extent
        if extent is not None:
            if size <= extent.size and inode.linked:
                self._set_extent(inode, data, self._small.cut(extent, size))
                return
            data = await self._upper_data(inode, pid)
        if size and (data.seal is not None or data.lost):
            await self._check_upper(inode, data)
        if size < inode.size:
            self._unseal(inode)
        os.ftruncate(self._open_upper(inode, data), size)
        inode.size = size
        self._written(inode, data)

    def _unseal(self, inode: Inode) -> None:
        """Before a program cuts an upper file: else a start would take it for damaged."""
        if seals.NAME in self._overlay.xattrs(inode.ino):
            self._overlay.apply([delete_xattr(inode.ino, seals.NAME)])
        self._tree.compared(inode)

    def _grow(self, inode: Inode, extent: Extent, offset: int, buffer: bytes) -> Extent | None:
        """Put a write to a small file into a segment. None where it has to get an upper file: it
        becomes large, is written in the middle, or something else follows it."""
        end = offset + len(buffer)
        if end > LARGEST or not inode.linked:
            return None
        if offset == 0 and end >= extent.size:
            return self._small.append(buffer)
        if offset == extent.size:
            return self._small.extend(extent, buffer)
        return None

    def _set_extent(self, inode: Inode, data: Data, extent: Extent) -> None:
        row = inode.row
        assert row is not None
        row = row.copy()
        row.extent = extent
        now = now_ns()
        if data.seen and now in (row.mtime_ns, row.ctime_ns):
            now = precise_ns()
        row.mtime_ns = row.ctime_ns = now
        replace_row(self._tree, inode, row)
        data.seen = data.lost = False
        inode.size = extent.size
        self._written(inode, data)

    async def _upper_data(self, inode: Inode, pid: int) -> Data:
        """Have it in an upper file, whatever it takes."""
        while (data := inode.data) is None or inode.extent is not None:
            if data is None:
                await self.copy_up(inode, pid)
            else:
                spill = functools.partial(self._spill, inode)
                await self._alone(inode, pid, lambda: inode.extent is not None, spill)
        return data

    async def _spill(self, inode: Inode) -> None:
        """Give a small file an upper file, with its content.

        Where that was synced it must not be lost: its row may be on the disk before the new file.
        """
        extent = inode.extent
        assert extent is not None

        async def fill(draft: int) -> None:
            if os.write(draft, self._small.read(extent)) < extent.size:
                fail(errno.ENOSPC)
            if self._small.is_on_disk(extent):
                await trio.to_thread.run_sync(os.fsync, draft)

        # Where it was written meanwhile, once more.
        await self._by_draft(inode, fill, lambda: inode.extent == extent)

    async def _by_draft(
        self, inode: Inode, fill: Callable[[int], Awaitable[None]], holds: Callable[[], bool]
    ) -> None:
        """Have `fill` write a file, and make it the data of `inode` if `holds` says so then."""
        draft = self._upper.create_draft(inode.ino)
        try:
            await fill(draft)
            if holds():
                self._adopt(inode, draft)
                draft = -1
        finally:
            if draft >= 0:
                os.close(draft)
                self._upper.discard_draft(inode.ino)

    def _written(self, inode: Inode, data: Data) -> None:
        data.blocks = -1  # and the times are those of an upper file: see `Tree.refresh_attributes`
        data.version += 1
        self._tree.committed.pop(inode.ino, None)
        if inode.extent is None:
            self._tree.unsealed.add(inode.ino)
        self._mutations.note_write(inode)

    async def copy_up(self, inode: Inode, pid: int, *, limit: int | None = None) -> None:
        """Give a clean file data of its own: its content, or the first `limit` bytes of it."""
        copy = functools.partial(self._copy_up, inode, pid, limit)
        await self._alone(inode, pid, lambda: inode.data is None, copy)

    async def _alone(
        self,
        inode: Inode,
        pid: int,
        needed: Callable[[], bool],
        copy: Callable[[], Awaitable[None]],
    ) -> None:
        """Run `copy`, never twice at a time for an inode, until it is not `needed` any more."""
        while needed():
            running = self._copying.get(inode.ino)
            if running is not None:
                await unless_interrupted(pid, running.wait)
                continue
            done = self._copying[inode.ino] = trio.Event()
            try:
                await copy()
            finally:
                del self._copying[inode.ino]
                done.set()

    async def remove_orphans(self) -> int:
        """Remove upper files that no row names, after an unclean end. Returns how many.

        They are left when the process dies between making a file and committing its row, and by
        files that were open when their last name was removed. A few at a time between requests.
        """
        count = 0
        stored = await trio.to_thread.run_sync(self._upper.stored)
        for number, (ino, is_draft) in enumerate(stored):
            if number % _ORPHANS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if ino in self._copying:
                continue
            if is_draft:
                self._upper.discard_draft(ino)
            elif self._is_named(ino):
                continue
            else:
                self._upper.remove(ino)
            count += 1
        return count

    def _is_named(self, ino: int) -> bool:
        inode = self._tree.find(ino)
        if inode is None:
            return self._overlay.has_upper(ino)
        return inode.extent is None

    async def _copy_up(self, inode: Inode, pid: int, limit: int | None) -> None:
        oid = inode.oid
        if limit == 0 and inode.linked:
            self._become_empty(inode)
            return

        async def fill(draft: int) -> None:
            if limit == 0 or oid is None:
                return
            try:
                await self._copy_blob(inode, oid, pid, limit, draft)
            except BlobDamaged:  # once more: it comes from the pack or the remote now
                os.ftruncate(draft, 0)
                os.lseek(draft, 0, os.SEEK_SET)
                await self._copy_blob(inode, oid, pid, limit, draft)

        # Where the base was switched meanwhile, `copy_up` tries again.
        await self._by_draft(inode, fill, lambda: inode.oid == oid)

    async def _copy_blob(
        self, inode: Inode, oid: Oid, pid: int, limit: int | None, draft: int
    ) -> None:
        blob = await self._blob(inode, oid, pid)
        try:
            size = blob.size if limit is None else min(blob.size, limit)
            await copying.copy(blob, draft, size)
        finally:
            blob.close()

    def _become_empty(self, inode: Inode) -> None:
        change = Change(self._tree)
        row = change.edit(inode)
        row.has_data, row.extent, row.oid = True, EMPTY, None
        change.commit()
        inode.data = Data()
        inode.size = 0
        self._opened.close_blob(inode.ino)

    def _adopt(self, inode: Inode, draft: int) -> None:
        """Make the file `draft` the data of `inode`. The times stay: nothing was changed yet."""
        change = Change(self._tree)
        row = change.edit(inode)
        row.has_data, row.extent = True, None
        row.oid = None
        if seals.NAME in self._overlay.xattrs(inode.ino):  # of an upper file that it had before
            change.also(delete_xattr(inode.ino, seals.NAME))
        os.utime(draft, ns=(row.mtime_ns, row.mtime_ns))
        size = os.fstat(draft).st_size
        self._upper.publish(inode.ino)
        change.commit()
        data = inode.data or Data()
        data.fd = draft
        data.blocks = -1
        data.lost = False
        self._tree.unsealed.add(inode.ino)
        self._tree.committed.pop(inode.ino, None)
        inode.data = data
        inode.size = size
        self._tree.compared(inode)
        self._small.held.pop(inode.ino, None)
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
            self._conversions.forget_scopes()

    async def sync(self, inode: Inode | None) -> None:
        """fsync: data, the names of new upper files and every transaction reach the disk.

        What is on the disk by then is noted: from now on less of it is damage.
        """
        steps: list[Callable[[], None]] = []
        extent = None if inode is None else inode.extent
        if inode is not None and inode.data is not None and inode.data.lost:
            fail(errno.EIO)
        if extent is not None:
            await trio.to_thread.run_sync(self._small.sync, extent.segment)
            self.note_synced(extent.segment)
        elif inode is not None and inode.data is not None and inode.linked:
            await self._sync_upper(inode, inode.data)
        steps += [self._upper.sync, self._overlay.sync]
        await trio.to_thread.run_sync(_run_all, steps)

    def note_synced(self, segment: int) -> None:
        """Note how much of a segment was synced, where that is more than before."""
        size = self._small.newly_synced(segment)
        if size is not None:
            self._overlay.note_segment(segment, size)

    async def _sync_upper(self, inode: Inode, data: Data) -> None:
        version = data.version
        # With a descriptor of its own: the other one may be closed meanwhile.
        sealed = await trio.to_thread.run_sync(self._upper.sync_file, inode.ino)
        unchanged = inode.linked and data is inode.data and data.version == version
        if sealed is None and unchanged and not data.lost:
            self._tree.lose(inode, data, "is missing")
            fail(errno.EIO)
        if sealed is not None and unchanged and inode.ino in self._tree.unsealed:
            self._overlay.apply([put_xattr(inode.ino, seals.NAME, sealed.encode())])


async def _same(blob: Blob) -> Blob:
    return blob


def _run_all(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()
