"""Moves what was written from an upper folder of overlayfs into the overlay of our own mount.

Nothing is mounted meanwhile. What the kernel has moved, with its data still in the base tree, is
moved in our overlay as well, so nothing has to be fetched: everything that was moved gets a name of
its own first, the deepest first, since folders may have changed places; then the tree is walked
from the top. Extended attributes are kept, though our mount shows ``user.*`` alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Iterator

import trio

from artifactfs.fs.inodes.inode import Directory, Inode
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.native.view import File, Folder, Node, View
from artifactfs.fs.native.writes import hidden_names
from artifactfs.fs.tree.xattrs import OVERLAY, Xattrs, is_kept
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.system.files import sync_everything

log = logging.getLogger(__name__)

_PIECE = 1 << 20


class MoveOut:
    """One move, into a file system that is not served and holds nothing."""

    def __init__(self, filesystem: FileSystem, view: View) -> None:
        self._filesystem = filesystem
        self._tree = filesystem.tree
        self._mutations = filesystem.mutations
        self._view = view
        self._owner = filesystem.tree.owner
        self._xattrs = Xattrs(self._tree, filesystem.written.overlay)
        self._moved: dict[bytes, bytes] = {}
        """Path in the base tree → the name in the top that it has meanwhile."""
        self._links: dict[tuple[int, int], Inode] = {}
        self.lost_attributes: list[str] = []
        """Extended attributes that are not kept."""

    async def run(self) -> None:
        """Raises: OSError, MissingObject, ArtifactFSError."""
        self._take_aside()
        top = self._view.top
        await self._fill(top, self._tree.root)
        assert top.upper is not None
        self._dress(self._tree.root, top.upper)

    # What was moved

    def _take_aside(self) -> None:
        lowers = {lower for lower, _ in self._all_moved(self._view.top)}
        prefix = b".moving-%s-" % secrets.token_hex(6).encode()
        for number, lower in enumerate(sorted(lowers, key=lambda path: -path.count(b"/"))):
            parent, _, name = lower.rpartition(b"/")
            directory = self._directory(parent)
            aside = prefix + b"%d" % number
            self._mutations.rename(directory, name, self._tree.root, aside, 0)
            self._moved[lower] = aside

    def _all_moved(self, folder: Folder) -> Iterator[tuple[bytes, Node]]:
        for name, node in self._view.children(folder).items():
            if node.upper is None:
                continue
            if node.lower is not None and node.lower != folder.lower_of(name):
                yield node.lower, node
            if isinstance(node, Folder):
                yield from self._all_moved(node)

    def _directory(self, path: bytes) -> Directory:
        found: Inode | None = self._tree.root
        for name in path.split(b"/") if path else ():
            assert isinstance(found, Directory)
            found = self._tree.lookup(found, name)
        assert isinstance(found, Directory)
        return found

    # From the top

    async def _fill(self, folder: Folder, directory: Directory) -> None:
        """Make `directory`, which is as the base tree has `folder.lower`, as `folder` is."""
        wanted = self._view.children(folder)
        for name in self._tree.listing(directory):
            if name not in wanted and not self._is_aside(directory, name):
                self._remove(directory, name)
        for name, node in sorted(wanted.items()):
            if node.upper is None:
                continue
            inode = await self._put(folder, node, directory, name)
            inode.pins += 1
            try:
                if isinstance(node, Folder):
                    assert isinstance(inode, Directory)
                    await self._fill(node, inode)
                self._dress(inode, node.upper)
            finally:
                inode.pins -= 1
                self._tree.drop_if_unused(inode)

    def _is_aside(self, directory: Directory, name: bytes) -> bool:
        return directory is self._tree.root and name in self._moved.values()

    async def _put(self, folder: Folder, node: Node, directory: Directory, name: bytes) -> Inode:
        there = self._tree.lookup(directory, name)
        if node.lower is not None:
            if node.lower == folder.lower_of(name):
                assert there is not None
                return there
            if there is not None:
                self._remove(directory, name)
            aside = self._moved.pop(node.lower)
            self._mutations.rename(self._tree.root, aside, directory, name, 0)
            moved = self._tree.lookup(directory, name)
            assert moved is not None
            return moved
        if there is not None:
            self._remove(directory, name)
        if isinstance(node, Folder):
            return self._mutations.mkdir(directory, name, 0o755, self._owner)
        return await self._put_file(node, directory, name)

    async def _put_file(self, file: File, directory: Directory, name: bytes) -> Inode:
        assert file.upper is not None
        found = os.lstat(file.upper)
        linked = self._links.get((found.st_dev, found.st_ino)) if found.st_nlink > 1 else None
        if linked is not None:
            self._mutations.link(linked, directory, name)
            return linked
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFLNK:
            target = os.readlink(file.upper)
            inode = self._mutations.symlink(directory, name, target, self._owner)
        elif kind == stat.S_IFREG:
            inode = await self._put_data(file.upper, directory, name)
        else:
            mode, rdev = found.st_mode, found.st_rdev
            inode = self._mutations.mknod(directory, name, mode, rdev, self._owner)
        if found.st_nlink > 1:
            inode.pins += 1  # for the other names
            self._links[found.st_dev, found.st_ino] = inode
        return inode

    async def _put_data(self, path: bytes, directory: Directory, name: bytes) -> Inode:
        inode = self._mutations.create(directory, name, 0o644, self._owner)
        inode.pins += 1
        try:
            offset = 0
            async with await trio.open_file(path, "rb") as file:
                while piece := await file.read(_PIECE):
                    while piece:  # a disk that is nearly full takes a part of it
                        written = await self._filesystem.contents.write(inode, offset, piece)
                        offset, piece = offset + written, piece[written:]
        finally:
            inode.pins -= 1
        return inode

    def _remove(self, directory: Directory, name: bytes) -> None:
        inode = self._tree.lookup(directory, name)
        if isinstance(inode, Directory):
            for inside in self._tree.listing(inode):
                self._remove(inode, inside)
            self._mutations.rmdir(directory, name)
        else:
            self._mutations.unlink(directory, name)

    def _dress(self, inode: Inode, upper: bytes) -> None:
        """Owner, mode, attributes, and times last."""
        found = os.lstat(upper)
        for name in os.listxattr(upper, follow_symlinks=False):
            encoded = os.fsencode(name)
            if is_kept(encoded):
                value = os.getxattr(upper, name, follow_symlinks=False)
                self._xattrs.keep(inode, encoded, value)
            elif not encoded.startswith(OVERLAY):
                self.lost_attributes.append(f"{os.fsdecode(self._tree.path(inode) or b'.')} {name}")
        link = stat.S_ISLNK(found.st_mode)
        self._mutations.set_attributes(
            inode,
            mode=None if link or inode is self._tree.root else stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            atime_ns=found.st_atime_ns,
            mtime_ns=found.st_mtime_ns,
        )


async def move_out(filesystem: FileSystem, odb: ObjectDatabase) -> None:
    """Fill `filesystem`, which is empty and not served, with what the upper folder beside it says;
    see `record`.

    Raises: OSError, MissingObject, ArtifactFSError; then it is to be done again from the start.
    """
    upper, base = os.fsencode(filesystem.layout.native_upper), filesystem.base.tree
    hidden = hidden_names({entry.name for entry in odb.tree(base)})
    move = MoveOut(filesystem, View(upper, odb.tree, base, hidden))
    await move.run()
    if move.lost_attributes:
        some = ", ".join(move.lost_attributes[:5])
        what = "extended attributes that only a disk can keep were dropped: %s"
        log.warning(what, some, extra={"count": len(move.lost_attributes)})
    await trio.to_thread.run_sync(sync_everything, filesystem.layout.directory)
