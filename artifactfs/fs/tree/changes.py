"""One change of the tree: written to the overlay first, to memory when that has succeeded.

A `Change` collects edited copies of rows and dirents. `commit` writes them as one record and only
then lets them replace what is in memory, so that a full disk leaves both as they were.

Invariant: whoever has a row is reached by dirents from the root. So the first change below a
clean directory gives rows and dirents to it and to its parents.
"""

from __future__ import annotations

from artifactfs.fs.inodes.inode import Directory, Inode, Row
from artifactfs.fs.overlay.pending import ABSENT, Edit, drop_inode, put_dirent, put_inode
from artifactfs.fs.tree.tree import Tree


def replace_row(tree: Tree, inode: Inode, row: Row) -> None:
    """The short way for a change of nothing but the row of an inode that has one already.

    Raises: OSError; then nothing has changed.
    """
    if row.nlink > 0:
        tree.apply((put_inode(inode.ino, row),))
    elif tree.keeps_nameless:
        tree.apply((tree.nameless(inode, row),))
    tree.take_row(inode, row)


def copy_row(tree: Tree, inode: Inode, row: Row) -> Row:
    """A copy of the inode's present `row`, to be changed; it is up to date."""
    data = inode.data
    if data is not None and data.blocks < 0:
        tree.look_at_upper(inode, data)
    return row.copy()


class Change:
    """A transaction in the making. Use it once, without an await in between."""

    __slots__ = ("_dirents", "_frees", "_inodes", "_more", "_rows", "_tree")

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._rows: dict[int, Row] = {}
        self._inodes: dict[int, Inode] = {}
        self._dirents: dict[tuple[Directory, bytes], int] = {}
        self._more: list[Edit] = []
        self._frees = False

    def edit(self, inode: Inode) -> Row:
        """A copy of the inode's row to be changed; a clean inode gets one."""
        row = self._rows.get(inode.ino)
        if row is None:
            if inode.row is not None:
                row = copy_row(self._tree, inode, inode.row)
            else:
                self._tree.check_number(inode)
                row = self._tree.owner.row(inode)
                parent = inode.parent
                if parent is not None:
                    if parent.row is None and parent.ino not in self._rows:
                        self.edit(parent)
                    # A name that this change has removed or replaced stays so.
                    self._dirents.setdefault((parent, inode.name), inode.ino)
            self._rows[inode.ino] = row
            self._inodes[inode.ino] = inode
        return row

    def add(self, inode: Inode, row: Row) -> None:
        """A new inode with its row; `link` gives it a name."""
        self._rows[inode.ino] = row
        self._inodes[inode.ino] = inode

    def link(self, parent: Directory, name: bytes, ino: int) -> None:
        self._dirents[parent, name] = ino

    def unlink(self, parent: Directory, name: bytes, *, in_base: bool) -> None:
        """Remove a name; `in_base`: the base tree has it, so that its absence must be kept."""
        self._dirents[parent, name] = 0 if in_base else ABSENT
        self._frees = True

    def touch(self, directory: Directory, time_ns: int) -> None:
        row = directory.row
        if row is not None and row.mtime_ns == row.ctime_ns == time_ns:
            return  # the clock is coarse: 30 files are made in one of its ticks
        row = self.edit(directory)
        row.mtime_ns = row.ctime_ns = time_ns

    def also(self, edit: Edit) -> None:
        self._more.append(edit)

    def commit(self) -> None:
        """Raises: OSError; then nothing has changed."""
        edits = self._more
        for ino, row in self._rows.items():
            if row.nlink > 0:
                edits.append(put_inode(ino, row))
                continue
            inode = self._inodes[ino]
            if inode.row is not None and inode.row.nlink > 0:
                edits.append(drop_inode(ino))
            if self._tree.keeps_nameless and self._tree.in_kernel(inode):
                edits.append(self._tree.nameless(inode, row))
        for (parent, name), ino in self._dirents.items():
            edits.append(put_dirent(parent.ino, name, ino))
        if edits:
            self._tree.apply(edits, frees=self._frees)
        for ino, row in self._rows.items():
            inode = self._inodes[ino]
            if inode.row is None and type(inode) is Directory:
                inode.names = {}  # it had no row, so it has no dirents
            self._tree.take_row(inode, row)
        for (parent, name), ino in self._dirents.items():
            names = parent.names
            assert names is not None, "a directory with changed names has a row and its names"
            if ino == ABSENT:
                names.pop(name, None)
            else:
                names[name] = ino
