"""Moves the working tree to another base tree, in O(changed directories), downloading nothing.

What was changed locally stays; a written file whose content is what the old tree says is not a
change (it was committed), and its data is given up. A clean file that differs and that the kernel
does not know keeps its number and gets the new blob and a new mtime. What the kernel knows may be
open, so it gives its name to another file, as when git checks out. Whatever appears gets a new
number: the kernel may still hold pages of what had the derived number before.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from artifactfs.fs.gitview.journal import ChangeJournal
from artifactfs.fs.inodes.inode import (
    UNKNOWN_SIZE,
    Directory,
    Inode,
    Row,
    mode_of_entry,
)
from artifactfs.fs.inodes.listings import Listings, base_tree_of, is_directory_entry
from artifactfs.fs.kernel.stale import StaleEntries, invalidate_attributes
from artifactfs.fs.overlay.pending import put_meta
from artifactfs.fs.overlay.written import Written
from artifactfs.fs.tree.changes import Change
from artifactfs.fs.tree.compaction import holds_blob
from artifactfs.fs.tree.mutations import Mutations
from artifactfs.fs.tree.tree import Tree
from artifactfs.fs.tree.walk import Walker
from artifactfs.git.objects.database import Oid, TreeEntry

_HASHED_BYTES = 16 << 20
"""Written files that one switch compares with blobs: some 30 ms. Beyond, they count as changed."""


class Placed(NamedTuple):
    """Number and owner of an inode that a switch made or gave other content."""

    ino: int
    uid: int
    gid: int


@dataclass(slots=True)
class SwitchResult:
    """`changed`: paths whose content, mode or existence changed (of a directory that appeared or
    vanished, itself with a slash). `kept`: paths that the trees differ in, but that were changed
    locally and stayed as they are. `placed`: what is at the paths that are new or have other
    content, by path without a slash; below a directory that appeared, numbers are derived.
    `time_ns`: the mtime and ctime of all that; `ino_secret`: the key of derived numbers."""

    time_ns: int
    ino_secret: bytes
    changed: list[bytes] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)
    placed: dict[bytes, Placed] = field(default_factory=dict)


@dataclass(slots=True)
class _Effects:
    """What has to follow once the change is committed."""

    files: list[Inode] = field(default_factory=list)
    directories: list[Directory] = field(default_factory=list)
    touched: list[Directory] = field(default_factory=list)
    """Those of `directories` in which a name came, went, or is another file now."""
    gone: list[Inode] = field(default_factory=list)
    entries: list[tuple[Directory, bytes]] = field(default_factory=list)


class Switch:
    """One move of the base. Use it once, without an await in between."""

    def __init__(
        self,
        tree: Tree,
        written: Written,
        listings: Listings,
        mutations: Mutations,
        journal: ChangeJournal,
        stale: StaleEntries,
        time_ns: int,
    ) -> None:
        self._tree = tree
        self._written = written
        self._listings = listings
        self._stale = stale
        self._mutations = mutations
        self._journal = journal
        self._time_ns = time_ns
        self._change = Change(tree)
        self._effects = _Effects()
        self._to_hash = _HASHED_BYTES
        self.result = SwitchResult(time_ns, written.overlay.ino_secret)

    def run(
        self, old: Oid, new: Oid, commit: Oid, *, in_kernel: bool, whole: bool = False
    ) -> SwitchResult:
        """`whole`: change nothing where something would be kept.

        Raises: MissingObject, OSError; then nothing has changed.
        """
        self._directory(self._tree.root, b"", old, new)
        if whole and self.result.kept:
            self._let_go()
            return self.result
        self._change.also(put_meta("base_commit", commit))
        self._change.also(put_meta("base_tree", new))
        self._change.commit()
        self._drop_old_contents()
        if in_kernel:
            self._invalidate()
        self._let_go()
        for path in self.result.changed:
            if path.endswith(b"/"):
                self._journal.directory_changed(path[:-1])
            else:
                self._journal.changed(path)
        return self.result

    def compare(self, old: Oid, new: Oid) -> SwitchResult:
        """What `run` would do; changes nothing."""
        self._directory(self._tree.root, b"", old, new)
        self._let_go()
        return self.result

    def _let_go(self) -> None:
        effects = self._effects
        for inode in [*effects.files, *effects.gone, *effects.directories]:
            self._tree.drop_if_unused(inode)

    # Planning: below, nothing in memory is changed but the table of inodes.

    def _directory(self, directory: Directory, prefix: bytes, old: Oid, new: Oid) -> None:
        listings, names = self._listings, self._tree.names(directory)
        before, after = listings.entries(old), listings.entries(new)
        row = self._change.edit(directory)
        row.oid = new
        self._effects.directories.append(directory)
        touched = False
        rows = self._written.overlay.rows_in(directory.ino) if len(names) > 1 else {}
        for name in sorted({*before, *after}):
            was, now = before.get(name), after.get(name)
            if was is not None and now is not None and (was.oid, was.mode) == (now.oid, now.mode):
                continue
            changed = self._entry(directory, prefix + name, names.get(name), was, now, rows)
            touched = touched or changed
        if touched:
            self._effects.touched.append(directory)
            row.mtime_ns = row.ctime_ns = self._time_ns

    def _entry(
        self,
        directory: Directory,
        path: bytes,
        dirent: int | None,
        was: TreeEntry | None,
        now: TreeEntry | None,
        rows: Mapping[int, Row],
    ) -> bool:
        """Move one name. True where the directory's own list of names changed."""
        name = path.rpartition(b"/")[2]
        if dirent == 0:  # removed locally
            if now is None:
                self._change.unlink(directory, name, in_base=False)
            else:
                self.result.kept.append(path)
            return False
        if was is None and dirent is not None:  # made locally where the new tree has something
            self.result.kept.append(path)
            return False
        if was is None:
            assert now is not None
            self._appear(directory, name, path, now)
            return True
        inode = self._tree.lookup(directory, name, rows)
        assert inode is not None
        if not self._is_unchanged(inode, was):
            self._tree.drop_if_unused(inode)
            self.result.kept.append(path)
            return False
        return self._move_on(directory, inode, path, was, now)

    def _is_unchanged(self, inode: Inode, was: TreeEntry) -> bool:
        """Whether `inode` is what the old tree says; of a directory, whether it is based on it."""
        if stat.S_IFMT(inode.mode) != stat.S_IFMT(mode_of_entry(was.mode)):
            return False
        if isinstance(inode, Directory):
            return inode.oid == base_tree_of(was)
        if inode.row is not None and inode.row.nlink > 1:
            return False
        if (inode.mode ^ mode_of_entry(was.mode)) & 0o100:
            return False
        return self._holds(inode, was.oid) if inode.has_data else inode.oid == was.oid

    def _holds(self, inode: Inode, oid: Oid) -> bool:
        """Whether the data of a written file is the blob `oid`."""
        self._to_hash -= max(inode.size, 1 << 10)
        return self._to_hash > 0 and holds_blob(self._written, inode, oid)

    def _move_on(
        self,
        directory: Directory,
        inode: Inode,
        path: bytes,
        was: TreeEntry,
        now: TreeEntry | None,
    ) -> bool:
        name = path.rpartition(b"/")[2]
        if isinstance(inode, Directory):
            new = base_tree_of(now) if now is not None and is_directory_entry(now) else None
            old = base_tree_of(was)
            if old is not None and new is not None:
                self._directory(inode, path + b"/", old, new)
                return False
            if now is not None and is_directory_entry(now) and old is None and new is None:
                return False  # a submodule at another commit: its directory is nobody's business
            if self._has_local(inode):
                self.result.kept.append(path)
                return False
        elif self._can_replace(inode, now):
            assert now is not None
            self._replace(inode, path, now)
            return True
        self._vanish(directory, inode, path)
        if now is not None:
            self._appear(directory, name, path, now)
        return True

    def _can_replace(self, inode: Inode, now: TreeEntry | None) -> bool:
        """Whether the same inode gets the new content. Not where the kernel knows it: as on a
        disk, where git makes a new file, whoever has it open goes on with what was there."""
        if now is None or self._tree.in_kernel(inode):
            return False
        return stat.S_IFMT(mode_of_entry(now.mode)) == stat.S_IFMT(inode.mode)

    def _has_local(self, directory: Directory) -> bool:
        """Whether anything was changed below a directory that the new tree does not have."""
        for name, ino in self._tree.names(directory).items():
            entry = self._tree.entries(directory).get(name)
            if ino == 0:
                continue
            inode = self._tree.lookup(directory, name)
            if inode is None or entry is None or not self._is_unchanged(inode, entry):
                return True
            if isinstance(inode, Directory) and self._has_local(inode):
                return True
        return False

    def _replace(self, inode: Inode, path: bytes, now: TreeEntry) -> None:
        row = self._change.edit(inode)
        row.oid = now.oid
        row.has_data, row.extent = False, None
        row.target = None
        self.result.placed[path] = Placed(inode.ino, row.uid, row.gid)
        if stat.S_ISREG(row.mode):
            row.mode = row.mode & ~0o111 | (mode_of_entry(now.mode) & 0o111)
        row.mtime_ns = row.ctime_ns = self._time_ns
        self._effects.files.append(inode)
        self.result.changed.append(path)

    def _vanish(self, directory: Directory, inode: Inode, path: bytes) -> None:
        row = self._change.edit(inode)
        row.nlink = 0
        name = path.rpartition(b"/")[2]
        self._change.unlink(directory, name, in_base=False)
        self._effects.gone.append(inode)
        self._effects.entries.append((directory, name))
        self.result.changed.append(path + b"/" if isinstance(inode, Directory) else path)
        if isinstance(inode, Directory):
            self._forget_rows(inode)

    def _forget_rows(self, directory: Directory) -> None:
        """Rows of unchanged files below a directory that vanishes (they had other times)."""
        for name, ino in self._tree.names(directory).items():
            inode = self._tree.lookup(directory, name) if ino else None
            if inode is not None:
                self._change.edit(inode).nlink = 0
                self._effects.gone.append(inode)
                if isinstance(inode, Directory):
                    self._forget_rows(inode)

    def _appear(self, directory: Directory, name: bytes, path: bytes, now: TreeEntry) -> None:
        mode = mode_of_entry(now.mode)
        owner, time_ns = self._tree.owner, self._time_ns
        ino = self._mutations.allocate(self._change)
        row = Row(mode, owner.uid, owner.gid, 1, 0, time_ns, time_ns, time_ns)
        make: Callable[..., Inode] = Inode
        row.oid = now.oid
        if is_directory_entry(now):
            make = Directory
            row.oid = base_tree_of(now)
            row.base_time_ns = time_ns
        self._change.add(make(ino, directory, name, mode, row.oid), row)
        self._change.link(directory, name, ino)
        self._effects.entries.append((directory, name))
        changed = path + b"/" if is_directory_entry(now) else path
        if self.result.changed[-1:] != [changed]:  # else it has just vanished
            self.result.changed.append(changed)
        self.result.placed[path] = Placed(ino, owner.uid, owner.gid)

    # After the commit

    def _drop_old_contents(self) -> None:
        for inode in self._effects.files:
            inode.size = UNKNOWN_SIZE
            self._written.opened.forget(inode)
            if inode.data is not None:
                self._tree.give_up_data(inode)
        for directory in self._effects.directories:
            directory.subdirectories = -1
        for inode in self._effects.gone:
            self._tree.move(inode, None, b"")

    def _invalidate(self) -> None:
        """Of directories: the kernel knows no file that got other content. Attributes here:
        attribute-only invalidation takes no lock that somebody may hold who waits for us. Names
        later, see `StaleEntries`."""
        for directory in self._effects.touched:
            if self._tree.in_kernel(directory) or directory is self._tree.root:
                invalidate_attributes(directory.ino)
                self._stale.add_listing(directory.ino)
        for directory, name in self._effects.entries:
            if self._tree.in_kernel(directory) or directory is self._tree.root:
                self._stale.add(directory.ino, name)


def note_stale(
    walker: Walker, stale: StaleEntries, old: Oid | None, new: Oid | None, path: bytes = b""
) -> None:
    """Note what a process may not have told the kernel any more, that died while it made the base
    `new` of `old`. Raises: MissingObject, OSError."""
    place = walker.find(path)
    if place is None or not place.is_directory:
        return
    before, after = walker.entries(old), walker.entries(new)
    changed = False
    for name in {*before, *after}:
        was, now = before.get(name), after.get(name)
        if was is not None and now is not None:
            if (was.oid, was.mode) == (now.oid, now.mode):
                continue
            if is_directory_entry(was) and is_directory_entry(now):
                below = place.child_path(name)
                note_stale(walker, stale, base_tree_of(was), base_tree_of(now), below)
                continue
        changed = True
        stale.add(place.ino, name)
    if changed:
        stale.add_listing(place.ino)
