"""Extended attributes of the ``user`` namespace, where ``--xattrs`` turns them on.

Others, which what the kernel wrote may have, are kept for when it takes the writes again.
"""

from __future__ import annotations

import errno

from artifactfs.fs.inodes.clock import now_ns
from artifactfs.fs.inodes.inode import Inode
from artifactfs.fs.kernel.refusal import fail
from artifactfs.fs.overlay.database import Overlay
from artifactfs.fs.overlay.pending import Edit, delete_xattr, put_xattr
from artifactfs.fs.tree.changes import Change
from artifactfs.fs.tree.tree import Tree

_PREFIX = b"user."

KEPT = (_PREFIX, b"trusted.", b"system.posix_acl_")
"""What a file keeps whoever takes the writes, `OVERLAY` aside. ``security.*`` is the kernel's own:
capabilities end with the first write, labels belong to a file system."""

OVERLAY = b"trusted.overlay."
"""overlayfs' own."""


def is_kept(name: bytes) -> bool:
    return name.startswith(KEPT) and not name.startswith(OVERLAY)


class Xattrs:
    """Attributes by inode. They are stored in the overlay and go with the inode's row."""

    def __init__(self, tree: Tree, overlay: Overlay) -> None:
        self._tree = tree
        self._overlay = overlay

    def get(self, ino: int, name: bytes) -> bytes:
        _check(name)
        value = self._overlay.xattrs(ino).get(name)
        if value is None:
            fail(errno.ENODATA)
        return value

    def list(self, ino: int) -> list[bytes]:
        return sorted(name for name in self._overlay.xattrs(ino) if name.startswith(_PREFIX))

    def set(self, inode: Inode, name: bytes, value: bytes) -> None:
        _check(name)
        self._change(inode, put_xattr(inode.ino, name, value))

    def keep(self, inode: Inode, name: bytes, value: bytes) -> None:
        """The same for those of `KEPT` that nobody is shown."""
        self._change(inode, put_xattr(inode.ino, name, value))

    def remove(self, inode: Inode, name: bytes) -> None:
        self.get(inode.ino, name)
        self._change(inode, delete_xattr(inode.ino, name))

    def _change(self, inode: Inode, edit: Edit) -> None:
        change = Change(self._tree)
        change.edit(inode).ctime_ns = now_ns()
        change.also(edit)
        change.commit()


def _check(name: bytes) -> None:
    if not name.startswith(_PREFIX):
        fail(errno.ENOTSUP)
