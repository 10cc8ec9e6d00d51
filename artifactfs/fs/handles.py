"""Open files and directories. The number of a handle is its key in `Handles`."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from artifactfs.fs.inodes import Inode
from artifactfs.git.objects import Oid
from artifactfs.hydration.blobs import Blob

_POSITION_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_LAST_LISTING = (1 << 31) - 1
"""Cookies are positive 64-bit numbers."""

_LISTINGS_KEPT = 256


class FileHandle:
    """One open file. `pid` is the process that opened it."""

    __slots__ = ("blob", "inode", "oid", "pid")

    def __init__(self, inode: Inode, pid: int) -> None:
        self.inode = inode
        self.pid = pid
        self.blob: Blob | None = None
        self.oid: Oid | None = None

    def keep(self, oid: Oid, blob: Blob) -> None:
        """Read from `blob`, the content of `oid`, from now on."""
        if self.blob is not None and self.blob is not blob:
            self.blob.close()
        self.oid = oid
        self.blob = blob

    def drop_blob(self) -> None:
        if self.blob is not None:
            self.blob.close()
            self.blob = None


class VirtualHandle:
    """An open virtual file: its content is fixed when it is opened."""

    __slots__ = ("content",)

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        """None: to be asked for when it is read (it may have to wait)."""


class Listing:
    """The names of a directory as they were when it was (re)wound. There are no handles on
    directories (see `lowlevel`), so each position that the kernel is given names the listing."""

    __slots__ = ("_first", "names", "number")

    def __init__(self, number: int, names: list[bytes]) -> None:
        self.number = number
        self.names = names
        self._first = number << _POSITION_BITS

    def cookie(self, position: int) -> int:
        """Where `readdir` goes on after the entry before `position`."""
        return self._first | position


class UnfinishedListings:
    """Listings that did not fit into one reply, the most recently used ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Listing] = OrderedDict()
        self._next = 1

    def begin(self, names: list[bytes]) -> Listing:
        """A new listing; it is forgotten unless it is kept."""
        listing = Listing(self._next, names)
        self._next = self._next % _LAST_LISTING + 1
        return listing

    def keep(self, listing: Listing) -> None:
        self._kept[listing.number] = listing
        self._kept.move_to_end(listing.number)
        while len(self._kept) > _LISTINGS_KEPT:
            self._kept.popitem(last=False)

    def resume(self, cookie: int) -> tuple[Listing | None, int]:
        """The listing and the position that `cookie` names; no listing where a new one begins,
        or the old one was complete."""
        position = cookie & _POSITION_MASK
        return self._kept.get(cookie >> _POSITION_BITS) if position else None, position


H = TypeVar("H")


class Handles(Generic[H]):
    """Handles by number."""

    def __init__(self) -> None:
        self._open: dict[int, H] = {}
        self._next = 1

    def add(self, handle: H) -> int:
        number = self._next
        self._next += 1
        self._open[number] = handle
        return number

    def __getitem__(self, number: int) -> H:
        return self._open[number]

    def remove(self, number: int) -> H:
        return self._open.pop(number)

    def __len__(self) -> int:
        return len(self._open)
