"""Moves what was written from the overlay of our own mount into an upper folder of overlayfs.

Nothing is mounted meanwhile. Files keep their data, kinds, modes, owners, times, extended
attributes and hard links; names that were removed become whiteouts. A folder that was moved is
marked as such, with nothing fetched, where the base tree has it; what else is not at its place
(a clean file that was moved or got another mode) is fetched, and written.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat

import trio

from artifactfs.daemon.writes import record
from artifactfs.fs.inodes.inode import Directory, Inode, Row
from artifactfs.fs.inodes.listings import base_tree_of, is_directory_entry
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.native.marks import OPAQUE, REDIRECT
from artifactfs.fs.native.view import places_of_trees
from artifactfs.fs.native.writes import make_folders
from artifactfs.fs.tree.xattrs import is_kept
from artifactfs.git.objects.database import ObjectDatabase, Oid, TreeEntry
from artifactfs.system.files import sync_everything, sync_path

log = logging.getLogger(__name__)

_PIECE = 1 << 20


class MoveIn:
    """One move. The file system is not served, and not changed."""

    def __init__(self, filesystem: FileSystem, odb: ObjectDatabase, top_mode: int) -> None:
        self._filesystem = filesystem
        self._tree = filesystem.tree
        self._odb = odb
        self._top_mode = top_mode
        self._places: dict[Oid, bytes] | None = None
        self._links: dict[int, bytes] = {}

    async def run(self, folder: bytes) -> None:
        """Fill `folder`, the upper one. Waits for contents. Raises: OSError, ArtifactFSError."""
        root = self._tree.root
        await self._fill(root, self._filesystem.base.tree, folder)
        self._dress(root, folder)
        os.chmod(folder, self._top_mode if root.mode & 0o777 == 0o755 else root.mode & 0o7777)

    async def _fill(self, directory: Directory, shown: Oid | None, folder: bytes) -> None:
        """`shown` is the tree that overlayfs shows there by itself."""
        tree = self._tree
        names = dict(tree.names(directory))
        before = {entry.name: entry for entry in self._odb.tree(shown)} if shown else {}
        if directory.oid == shown:
            wanted = sorted(names)
        else:
            wanted = sorted({*tree.listing(directory), *before})
        for name in wanted:
            inode = tree.lookup(directory, name)
            path = folder + b"/" + name
            if inode is None:
                if name in before:
                    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
                continue
            inode.pins += 1
            try:
                await self._put(inode, before.get(name), path)
            finally:
                inode.pins -= 1
                tree.drop_if_unused(inode)

    async def _put(self, inode: Inode, before: TreeEntry | None, path: bytes) -> None:
        if isinstance(inode, Directory):
            await self._put_folder(inode, before, path)
            return
        linked = self._links.get(inode.ino)
        if linked is not None:
            os.link(linked, path)
            return
        kind = stat.S_IFMT(inode.mode)
        if kind == stat.S_IFREG:
            await self._put_data(inode, path)
        elif kind == stat.S_IFLNK:
            os.symlink(await self._filesystem.contents.link_target(inode, 0), path)
        else:
            os.mknod(path, inode.mode, inode.row.rdev if inode.row is not None else 0)
        self._dress(inode, path)
        if inode.row is not None and inode.row.nlink > 1:
            self._links[inode.ino] = path

    async def _put_folder(
        self, directory: Directory, before: TreeEntry | None, path: bytes
    ) -> None:
        was_folder = before is not None and is_directory_entry(before)
        below = base_tree_of(before) if before is not None and was_folder else None
        os.mkdir(path)
        shown: Oid | None = None
        if was_folder and directory.oid == below:
            shown = below
        elif directory.oid is not None and (place := self._place_of(directory.oid)) is not None:
            os.setxattr(path, REDIRECT, b"/" + place)
            shown = directory.oid
        elif was_folder:
            os.setxattr(path, OPAQUE, b"y")
        await self._fill(directory, shown, path)
        self._dress(directory, path)

    def _place_of(self, tree: Oid) -> bytes | None:
        """Where the base tree has such a folder."""
        if self._places is None:
            self._places = places_of_trees(self._odb.tree, self._filesystem.base.tree)
        return self._places.get(tree)

    async def _put_data(self, inode: Inode, path: bytes) -> None:
        contents, offset = self._filesystem.contents, 0
        async with await trio.open_file(path, "xb") as file:
            while piece := await contents.read(inode, offset, _PIECE):
                await file.write(piece)
                offset += len(piece)

    def _dress(self, inode: Inode, path: bytes) -> None:
        """Owner, mode, times and attributes; the times last."""
        self._tree.refresh_attributes(inode)
        row: Row = inode.row if inode.row is not None else self._tree.owner.row(inode)
        os.chown(path, row.uid, row.gid, follow_symlinks=False)
        for name, value in self._filesystem.written.overlay.xattrs(inode.ino).items():
            if is_kept(name):
                os.setxattr(path, name, value, follow_symlinks=False)
        if not stat.S_ISLNK(inode.mode):  # after an ACL, which sets the mode as well
            os.chmod(path, stat.S_IMODE(inode.mode))
        os.utime(path, ns=(row.atime_ns, row.mtime_ns), follow_symlinks=False)


async def move_in(filesystem: FileSystem, odb: ObjectDatabase, mode: int) -> None:
    """Have an upper folder hold what `filesystem` holds, which is not served; see `record`.

    `mode` is that of its top. Waits for contents. Raises: OSError, ArtifactFSError; then nothing
    has changed.
    """
    layout, owner = filesystem.layout, filesystem.tree.owner
    temporary = layout.directory / ".native.moving"
    shutil.rmtree(temporary, ignore_errors=True)
    make_folders(temporary, layout, owner, mode)
    upper = os.fsencode(temporary / layout.native_upper.name)
    await MoveIn(filesystem, odb, mode).run(upper)
    record.write(temporary, filesystem.meta)
    await trio.to_thread.run_sync(sync_everything, temporary)
    temporary.rename(layout.native)
    sync_path(layout.directory)
