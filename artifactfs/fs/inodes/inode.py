"""Inodes in memory.

Memory follows what the kernel holds: an inode is dropped with the kernel's last `forget`, so the
classes are slots only. A clean file takes 400 bytes with its name, oid and place in the table, so
only some thousands that were asked for last are here; the others are `CompactFiles`.

- `Inode.row is None`: the inode is **clean**. Everything about it follows from the base tree.
- `Inode.row`: what the overlay stores of it. Content is `oid` (a blob here or at the remote), or,
  where `has_data`, ours: `extent` of a segment (`smallfiles.py`) or the file ``upper/XX/INO``.
- `Inode.data`: such content in use.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import NamedTuple

from artifactfs.fs.inodes.scope import Scope
from artifactfs.fs.inodes.seals import Seal
from artifactfs.git.objects.database import Oid

UNKNOWN_SIZE = -1

GIT_DIRECTORY = 0o040000
GIT_LINK = 0o160000


def mode_of_entry(git_mode: int) -> int:
    """`st_mode` of a clean entry. A gitlink (submodule) is an empty directory."""
    kind = git_mode & 0o170000
    if kind in (GIT_DIRECTORY, GIT_LINK):
        return stat.S_IFDIR | 0o755
    if kind == stat.S_IFLNK:
        return stat.S_IFLNK | 0o777
    return stat.S_IFREG | (0o755 if git_mode & 0o100 else 0o644)


class Extent(NamedTuple):
    """Where the content of a small file is: `size` bytes at `offset` of the segment `segment`."""

    segment: int
    offset: int
    size: int
    crc: int | None = None
    """CRC-32 of the content. None: it was written by a version that kept none."""


EMPTY = Extent(0, 0, 0, 0)
"""Of a file without content. No segment has the number 0."""


@dataclass(slots=True)
class Row:
    """The row of one inode in the overlay. Times in ns since the epoch.

    Where there is an upper file (`has_data` without `extent`), `mtime_ns` is the mtime that it had
    when the row was written, or when it was last looked at (`Tree.refresh_attributes`). A different
    mtime of the upper file tells that data was written after that: then it is both mtime and ctime.
    """

    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    oid: Oid | None = None
    has_data: bool = False
    target: bytes | None = None
    base_time_ns: int = 0
    """Of a directory: mtime and ctime of everything clean in it."""
    extent: Extent | None = None

    @property
    def has_upper(self) -> bool:
        """Whether the content is an upper file."""
        return self.has_data and self.extent is None

    def copy(self) -> Row:
        return Row(
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.rdev,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.oid,
            self.has_data,
            self.target,
            self.base_time_ns,
            self.extent,
        )


class Data:
    """Content of ours in use. `fd` is the descriptor of its upper file, -1 where that is not open
    (see `Opened`) or there is none.
    `version` counts changes of the content. `blocks` is -1 where they and the times have to be
    asked again.
    """

    __slots__ = ("blocks", "fd", "lost", "seal", "seen", "version")

    def __init__(self) -> None:
        self.fd = -1
        self.version = 0
        self.blocks = -1
        self.lost = False
        """It is missing or cut: whoever reads gets EIO."""
        self.seal: Seal | None = None
        """What an upper file was, where nobody has compared it yet."""
        self.seen = False
        """Somebody was told the times of a file with content."""


class Inode:
    """A file, symlink, fifo, socket or device, or (as `Directory`) a directory."""

    __slots__ = (
        "data",
        "ino",
        "journaled",
        "mode",
        "name",
        "nlookup",
        "oid",
        "parent",
        "pins",
        "row",
        "size",
    )

    def __init__(
        self, ino: int, parent: Directory | None, name: bytes, mode: int, oid: Oid | None
    ) -> None:
        self.ino = ino
        self.parent = parent
        """None for the root, and for an inode whose last name was removed."""
        self.name = name
        self.mode = mode
        self.oid = oid
        self.size = UNKNOWN_SIZE
        self.nlookup = 0
        """References of the kernel."""
        self.pins = 0
        """Tasks of our own that hold on to it while they wait."""
        self.row: Row | None = None
        self.data: Data | None = None
        self.journaled = 0
        """Sequence number under which the journal last noted a write."""

    @property
    def has_data(self) -> bool:
        return self.row is not None and self.row.has_data

    @property
    def extent(self) -> Extent | None:
        """Where the content is, of a small file with data."""
        return None if self.row is None else self.row.extent

    @property
    def linked(self) -> bool:
        """False once the last name was removed."""
        return self.row is None or self.row.nlink > 0


class Directory(Inode):
    """A directory: its base tree `oid` (None: no base), minus and under the dirents in `names`."""

    __slots__ = (
        "children",
        "compact",
        "names",
        "scope",
        "scope_age",
        "subdirectories",
        "time_ns",
    )

    def __init__(
        self, ino: int, parent: Directory | None, name: bytes, mode: int, oid: Oid | None
    ) -> None:
        super().__init__(ino, parent, name, mode, oid)
        self.size = 4096
        self.names: dict[bytes, int] | None = None
        """Dirents of the overlay: inode number, or 0 for a removed name. None: not loaded."""
        self.children = 0
        """Inodes in memory whose `parent` this is; keeps the directory in memory."""
        self.compact = -1
        """Its index in `CompactFiles`, where some of them are there."""
        self.subdirectories = -1
        """Number of subdirectories, -1 where it was not counted yet."""
        self.time_ns: int = 0 if parent is None else parent.time_ns
        """mtime and ctime of everything clean in it."""
        self.scope: Scope | None = None
        """Which attributes bear on the files in it; None: to be looked up."""
        self.scope_age = 0
        """When that was looked up, see `Conversions`."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns everything clean. `unknown_size` is what is told of a file whose size is not known
    yet, with the request to ask again."""

    uid: int
    gid: int
    unknown_size: int = 0

    def row(self, inode: Inode) -> Row:
        """The row that a clean inode gets when it is changed for the first time."""
        time_ns = clean_time_ns(inode)
        base_time_ns = inode.time_ns if type(inode) is Directory else 0
        return Row(
            mode=inode.mode,
            uid=self.uid,
            gid=self.gid,
            nlink=1,
            rdev=0,
            atime_ns=time_ns,
            mtime_ns=time_ns,
            ctime_ns=time_ns,
            oid=inode.oid,
            base_time_ns=base_time_ns,
        )


def clean_time_ns(inode: Inode) -> int:
    """mtime and ctime of a clean inode."""
    parent = inode.parent
    if parent is not None:
        return parent.time_ns
    return inode.time_ns if type(inode) is Directory else 0


@dataclass(slots=True)
class Base:
    """What the working tree is based on. `time_ns`: mtime and ctime of what never changed since
    the first mount."""

    commit: Oid
    tree: Oid
    time_ns: int
