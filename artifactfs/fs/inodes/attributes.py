"""The one place that turns inodes into what the kernel is told."""

from __future__ import annotations

import stat

import pyfuse3

from artifactfs.fs.inodes.inode import UNKNOWN_SIZE, Directory, Inode, Owner, clean_time_ns

FOREVER = 1 << 30
"""Seconds. Only the mount itself changes anything, so the kernel's caches stay valid; whatever
the daemon changes on its own is invalidated by it. (Infinity does not survive libfuse.)"""

BLOCK_SIZE = 64 << 10
"""`st_blksize`. Programs size their buffers by it: with 64 KiB instead of 4, Python and stdio
send a sixteenth of the requests."""

UNREADABLE_INO = 15
"""Of every name of which nothing can be told; never an inode's (see `FIRST_ALLOCATED_INO`)."""


def entry_attributes(inode: Inode, owner: Owner) -> pyfuse3.EntryAttributes:
    """Attributes of `inode`. Where its size is not known yet the kernel may not keep them."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.ino
    entry.st_mode = inode.mode
    entry.entry_timeout = FOREVER
    size = inode.size
    if size == UNKNOWN_SIZE:
        entry.attr_timeout = 0
        entry.st_size = owner.unknown_size
    else:
        entry.attr_timeout = FOREVER
        entry.st_size = size
    entry.st_blksize = BLOCK_SIZE
    data = inode.data
    if data is not None:
        entry.st_blocks = data.blocks
    elif stat.S_ISREG(inode.mode):
        entry.st_blocks = (size + 511) >> 9
    elif type(inode) is Directory:
        entry.st_blocks = 8
    row = inode.row
    if row is None:
        entry.st_uid = owner.uid
        entry.st_gid = owner.gid
        time_ns = clean_time_ns(inode)
        entry.st_atime_ns = time_ns
        entry.st_mtime_ns = time_ns
        entry.st_ctime_ns = time_ns
    else:
        entry.st_uid = row.uid
        entry.st_gid = row.gid
        entry.st_nlink = row.nlink
        entry.st_rdev = row.rdev
        entry.st_atime_ns = row.atime_ns
        entry.st_mtime_ns = row.mtime_ns
        entry.st_ctime_ns = row.ctime_ns
    if type(inode) is Directory and (row is None or row.nlink):
        if inode.subdirectories >= 0:
            entry.st_nlink = 2 + inode.subdirectories
        else:
            entry.st_nlink = 1  # how file systems say that they do not know
            entry.attr_timeout = 0
    return entry


class CleanFileAttributes:
    """Attributes of the clean files of one directory, one after the other in the same object: a
    listing has pyfuse3 copy them, and most are the same for all."""

    __slots__ = ("_entry", "_unknown_size")

    def __init__(self, owner: Owner, time_ns: int) -> None:
        self._unknown_size = owner.unknown_size
        self._entry = entry = pyfuse3.EntryAttributes()
        entry.entry_timeout = FOREVER
        entry.st_blksize = BLOCK_SIZE
        entry.st_uid = owner.uid
        entry.st_gid = owner.gid
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time_ns

    def of(self, ino: int, mode: int, size: int | None) -> pyfuse3.EntryAttributes:
        """As `entry_attributes`; valid until the next call. `size` None: it is not known."""
        entry = self._entry
        entry.st_ino = ino
        entry.st_mode = mode
        entry.attr_timeout = 0 if size is None else FOREVER
        entry.st_size = size = self._unknown_size if size is None else size
        entry.st_blocks = (size + 511) >> 9 if stat.S_ISREG(mode) else 0
        return entry


def dots_entry(ino: int) -> pyfuse3.EntryAttributes:
    """``.`` or ``..`` in a listing. The kernel takes nothing of them but number and type
    (``fuse_direntplus_link``)."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = ino
    entry.st_mode = stat.S_IFDIR
    return entry


def negative_entry() -> pyfuse3.EntryAttributes:
    """There is no such name, and the kernel may remember that."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = FOREVER
    return entry


def unreadable_entry() -> pyfuse3.EntryAttributes:
    """There is such a name, but nothing about it can be told. In a listing it appears without a
    type; the kernel keeps nothing of it, and whoever looks at it asks again (Linux'
    ``fuse_direntplus_link`` takes no entry without a type)."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = UNREADABLE_INO
    entry.st_mode = 0
    entry.entry_timeout = entry.attr_timeout = 0
    return entry
