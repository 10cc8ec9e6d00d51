"""Everything that changes names and attributes: create, rename, link, unlink, chmod and so on.

Each function is one committed transaction, made without an await, and either happens whole or
raises and changes nothing. The order of files and rows is such that the death of the process
between any two steps loses and resurrects nothing: content exists before the row that names it, and
outlives it. Upper files without a row are removed after an unclean end
(`Contents.remove_orphans`).

Nothing here reads content: chmod, rename or link of a file that is not downloaded stays so.
"""

from __future__ import annotations

import errno
import stat
from typing import Protocol

from artifactfs.fs.gitview.journal import ChangeJournal
from artifactfs.fs.inodes.clock import advance_to, now_ns
from artifactfs.fs.inodes.inode import EMPTY, Data, Directory, Inode, Row
from artifactfs.fs.kernel.refusal import fail
from artifactfs.fs.overlay.database import Overlay
from artifactfs.fs.overlay.pending import put_meta
from artifactfs.fs.tree.changes import Change, copy_row, replace_row
from artifactfs.fs.tree.tree import Tree
from artifactfs.inode_numbers import FIRST_ALLOCATED_INO

NAME_MAX = 255
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_RESERVED_AT_ONCE = 1024
"""Inode numbers are reserved in the database by this many, so that none is used twice."""


class Caller(Protocol):
    """Who makes something: the context of a request."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


def check_name(name: bytes) -> None:
    """The kernel passes on names that no disk could keep."""
    if len(name) > NAME_MAX:
        fail(errno.ENAMETOOLONG)


class Mutations:
    """Changes of one tree. All raise OSError with the errno that POSIX gives the case."""

    def __init__(self, tree: Tree, overlay: Overlay, journal: ChangeJournal) -> None:
        self._tree = tree
        self._overlay = overlay
        self._journal = journal
        self._next_ino = int(self._overlay.meta.get("next_ino", FIRST_ALLOCATED_INO))
        self._reserved = self._next_ino

    # Making things

    def create(self, parent: Directory, name: bytes, mode: int, caller: Caller) -> Inode:
        """A new empty file."""
        self._require_absent(parent, name)
        change, now = self._change()
        ino = self.allocate(change)
        row = self._new_row(parent, stat.S_IFREG | stat.S_IMODE(mode), caller, now)
        row.has_data, row.extent = True, EMPTY
        inode = Inode(ino, parent, name, row.mode, None)
        inode.size = 0
        self._publish(change, inode, row, now)
        inode.data = Data()
        return inode

    def mkdir(self, parent: Directory, name: bytes, mode: int, caller: Caller) -> Directory:
        self._require_absent(parent, name)
        self._tree.count_subdirectories(parent)
        change, now = self._change()
        row = self._new_row(parent, stat.S_IFDIR | stat.S_IMODE(mode), caller, now)
        row.mode |= parent.mode & stat.S_ISGID
        directory = Directory(self.allocate(change), parent, name, row.mode, None)
        directory.subdirectories = 0
        self._publish(change, directory, row, now)
        parent.subdirectories += 1
        return directory

    def symlink(self, parent: Directory, name: bytes, target: bytes, caller: Caller) -> Inode:
        row = self._special(parent, name, stat.S_IFLNK | 0o777, caller)
        row.target = target
        return self._make(parent, name, row)

    def mknod(self, parent: Directory, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        """A fifo, socket or device. For a regular file see `create`."""
        row = self._special(parent, name, mode, caller)
        row.rdev = rdev
        return self._make(parent, name, row)

    def link(self, inode: Inode, parent: Directory, name: bytes) -> None:
        self._require_absent(parent, name)
        if type(inode) is Directory:
            fail(errno.EPERM)
        if not inode.linked:
            fail(errno.ENOENT)
        change, now = self._change()
        row = change.edit(inode)
        row.nlink += 1
        row.ctime_ns = now
        change.link(parent, name, inode.ino)
        change.touch(parent, now)
        change.commit()
        self._journal.changed(self._tree.child_path(parent, name))

    # Removing things

    def unlink(self, parent: Directory, name: bytes) -> Inode:
        inode = self._require(parent, name)
        if type(inode) is Directory:
            fail(errno.EISDIR)
        change, now = self._change()
        change.unlink(parent, name, in_base=self._tree.in_base(parent, name))
        change.touch(parent, now)
        self._release_name(change, inode, now)
        path = self._tree.child_path(parent, name)
        change.commit()
        self._after_release(inode, parent, name)
        self._journal.changed(path)
        return inode

    def rmdir(self, parent: Directory, name: bytes) -> Directory:
        inode = self._require(parent, name)
        if type(inode) is not Directory:
            fail(errno.ENOTDIR)
        if not self._tree.is_empty(inode):
            fail(errno.ENOTEMPTY)
        self._tree.count_subdirectories(parent)
        change, now = self._change()
        change.unlink(parent, name, in_base=self._tree.in_base(parent, name))
        change.touch(parent, now)
        self._release_name(change, inode, now)
        path = self._tree.child_path(parent, name)
        change.commit()
        self._after_release(inode, parent, name)
        parent.subdirectories -= 1
        self._journal.directory_changed(path)
        return inode

    # Moving things

    def rename(
        self, old: Directory, old_name: bytes, new: Directory, new_name: bytes, flags: int
    ) -> None:
        """``renameat2``. A directory moves as one dirent, whatever is in it."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == 3:
            fail(errno.EINVAL)
        check_name(new_name)
        inode = self._require(old, old_name)
        target = self._tree.lookup(new, new_name)
        if flags & RENAME_EXCHANGE:
            if target is None:
                fail(errno.ENOENT)
            if target is not inode:
                self._exchange(inode, old, old_name, target, new, new_name)
            return
        if target is not None:
            if flags & RENAME_NOREPLACE:
                fail(errno.EEXIST)
            if target is inode:
                return
            self._check_replace(inode, target)
        elif not new.linked:
            fail(errno.ENOENT)
        self._move(inode, old, old_name, new, new_name, target)

    def _move(
        self,
        inode: Inode,
        old: Directory,
        old_name: bytes,
        new: Directory,
        new_name: bytes,
        target: Inode | None,
    ) -> None:
        tree = self._tree
        is_directory = type(inode) is Directory
        replaces_directory = type(target) is Directory
        tree.count_subdirectories(old)
        tree.count_subdirectories(new)
        paths = tree.child_path(old, old_name), tree.child_path(new, new_name)
        change, now = self._change()
        row = change.edit(inode)
        row.ctime_ns = now
        if target is not None:
            self._release_name(change, target, now)
        change.unlink(old, old_name, in_base=tree.in_base(old, old_name))
        change.link(new, new_name, inode.ino)
        change.touch(old, now)
        change.touch(new, now)
        change.commit()
        if target is not None:
            self._after_release(target, new, new_name)
        if inode.parent is old and inode.name == old_name:
            tree.move(inode, new, new_name)
        old.subdirectories -= is_directory
        new.subdirectories += is_directory - replaces_directory
        for path in paths:
            self._note(path, directory=is_directory or replaces_directory)

    def _exchange(
        self,
        one: Inode,
        old: Directory,
        old_name: bytes,
        other: Inode,
        new: Directory,
        new_name: bytes,
    ) -> None:
        tree = self._tree
        tree.count_subdirectories(old)
        tree.count_subdirectories(new)
        paths = tree.child_path(old, old_name), tree.child_path(new, new_name)
        change, now = self._change()
        for inode in (one, other):
            change.edit(inode).ctime_ns = now
        change.link(old, old_name, other.ino)
        change.link(new, new_name, one.ino)
        change.touch(old, now)
        change.touch(new, now)
        change.commit()
        one_moves = one.parent is old and one.name == old_name
        if other.parent is new and other.name == new_name:
            tree.move(other, old, old_name)
        if one_moves:
            tree.move(one, new, new_name)
        moved = (type(one) is Directory) - (type(other) is Directory)
        old.subdirectories -= moved
        new.subdirectories += moved
        for path in paths:
            self._note(path, directory=Directory in (type(one), type(other)))

    def _check_replace(self, inode: Inode, target: Inode) -> None:
        if type(target) is Directory:
            if type(inode) is not Directory:
                fail(errno.EISDIR)
            if not self._tree.is_empty(target):
                fail(errno.ENOTEMPTY)
        elif type(inode) is Directory:
            fail(errno.ENOTDIR)

    # Attributes

    def set_attributes(
        self,
        inode: Inode,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> None:
        """chmod, chown and utimens."""
        change = None
        if inode.row is None:
            change = Change(self._tree)
            row = change.edit(inode)
        else:
            row = copy_row(self._tree, inode, inode.row)
        if mode is not None:
            row.mode = stat.S_IFMT(row.mode) | stat.S_IMODE(mode)
        if uid is not None:
            row.uid = uid
        if gid is not None:
            row.gid = gid
        if atime_ns is not None:
            row.atime_ns = atime_ns
        if mtime_ns is not None:
            advance_to(mtime_ns)
            row.mtime_ns = mtime_ns
            if row.has_upper:
                self._tree.stamp(inode, mtime_ns)
        row.ctime_ns = now_ns()
        if change is not None:
            change.commit()
        elif row != inode.row:  # `tar` changes nothing of a new file within a tick of the clock
            replace_row(self._tree, inode, row)
        else:
            return
        if type(inode) is not Directory:
            self.note_write(inode)

    # The journal

    def note_file(self, inode: Inode) -> None:
        """Tell the journal that `inode` changed, under every name it has."""
        for directory, name in self._tree.links(inode):
            self._journal.changed(self._tree.child_path(directory, name))
        inode.journaled = self._journal.sequence

    def note_write(self, inode: Inode) -> None:
        """The same for what keeps its names: no more than once between two answers."""
        if inode.journaled <= self._journal.issued:
            self.note_file(inode)

    def _note(self, path: bytes | None, *, directory: bool) -> None:
        self._journal.changed(path)
        if directory:
            self._journal.directory_changed(path)

    # Parts

    def _change(self) -> tuple[Change, int]:
        return Change(self._tree), now_ns()

    def allocate(self, change: Change) -> int:
        ino = self._next_ino
        if ino >= self._reserved:
            self._reserved = ino + _RESERVED_AT_ONCE
            change.also(put_meta("next_ino", self._reserved))
        self._next_ino += 1
        return ino

    def _require(self, parent: Directory, name: bytes) -> Inode:
        inode = self._tree.lookup(parent, name)
        if inode is None:
            fail(errno.ENOENT)
        return inode

    def _require_absent(self, parent: Directory, name: bytes) -> None:
        check_name(name)
        if not parent.linked:
            fail(errno.ENOENT)
        if self._tree.lookup(parent, name) is not None:
            fail(errno.EEXIST)

    def _new_row(self, parent: Directory, mode: int, caller: Caller, now: int) -> Row:
        gid = caller.gid
        if parent.mode & stat.S_ISGID:
            gid = parent.row.gid if parent.row is not None else self._tree.owner.gid
        return Row(mode, caller.uid, gid, 1, 0, now, now, now, base_time_ns=parent.time_ns)

    def _special(self, parent: Directory, name: bytes, mode: int, caller: Caller) -> Row:
        self._require_absent(parent, name)
        return self._new_row(parent, mode, caller, now_ns())

    def _make(self, parent: Directory, name: bytes, row: Row) -> Inode:
        change, now = self._change()
        inode = Inode(self.allocate(change), parent, name, row.mode, None)
        inode.size = len(row.target) if row.target is not None else 0
        self._publish(change, inode, row, now)
        return inode

    def _publish(self, change: Change, inode: Inode, row: Row, now: int) -> None:
        """Commit a new inode under its name."""
        parent = inode.parent
        assert parent is not None
        change.add(inode, row)
        change.link(parent, inode.name, inode.ino)
        change.touch(parent, now)
        change.commit()
        self._tree.insert(inode)
        path = self._tree.path(inode)
        if type(inode) is Directory:
            self._journal.directory_changed(path)
        else:
            self._journal.changed(path)

    def _release_name(self, change: Change, inode: Inode, now: int) -> None:
        """One name of `inode` goes away; with the last one its row goes."""
        row = change.edit(inode)
        row.nlink -= 1
        row.ctime_ns = now

    def _after_release(self, inode: Inode, parent: Directory, name: bytes) -> None:
        tree = self._tree
        if not inode.linked:
            if type(inode) is Directory:
                inode.names, inode.oid, inode.subdirectories = {}, None, -1
            tree.move(inode, None, b"")
        elif inode.parent is parent and inode.name == name:
            parent_ino, other = self._overlay.links(inode.ino)[0]
            place = tree.by_number(parent_ino)
            if type(place) is Directory:
                tree.move(inode, place, other)
        tree.drop_if_unused(inode)
