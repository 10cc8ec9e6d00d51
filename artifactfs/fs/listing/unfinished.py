"""Listings of directories that the kernel has not read to their end yet."""

from __future__ import annotations

import errno
import os
import secrets
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from artifactfs.fs.kernel.extension import END_OF_LISTING
from artifactfs.git.objects.database import Oid

_POSITION_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_LAST_LISTING = (1 << 31) - 1
"""Cookies are positive 64-bit numbers."""

_LISTINGS_KEPT = 256

_END = END_OF_LISTING
"""The position behind the last entry: the kernel asks once more there, for nothing. Where there is
the extension, we are not asked."""

_FILE_BYTES = 4 << 20
"""Beyond, the file is written anew with the listings that are kept."""

_RECORD = struct.Struct("<III")


class Listing:
    """The names of a directory as they were when it was (re)wound. Nobody opens or closes
    directories (see `extension`), so each position that the kernel is given names the listing."""

    __slots__ = ("_end", "_first", "names", "number", "sizes")

    def __init__(self, number: int, names: list[bytes], sizes: Mapping[Oid, int]) -> None:
        self.number = number
        self.names = names
        self.sizes = sizes
        """Of the blobs in the directory, as far as they were known."""
        self._first = number << _POSITION_BITS
        self._end = len(names) + 2

    def cookie(self, position: int) -> int:
        """Where `readdir` goes on after the entry before `position`."""
        return self._first | (position if position < self._end else _END)


def is_at_end(cookie: int) -> bool:
    return cookie & _POSITION_MASK == _END


class UnfinishedListings:
    """Listings that did not fit into one reply, the most recently used ones.

    A process that takes the mount over goes on with those in the `file` of the process before:
    the directory may have changed since they began. Each is one record: its number, the length and
    the CRC-32 of what follows, and its names with a NUL after each. A record without names ends the
    listing with that number: it was read to its end.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Listing] = OrderedDict()
        # A position that a process before has given is of none of ours.
        self._next = 1 + secrets.randbelow(_LAST_LISTING)
        self._fd = -1
        self._file = Path()
        self._size = 0
        self._largest = _FILE_BYTES

    def outlive(self, file: Path, *, taken_over: bool) -> None:
        """Have the listings in `file`, and begin with those that are there where the mount was
        `taken_over`. Raises: OSError."""
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._file = file
        if taken_over:
            content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
            for listing, end in _decode(content):
                self._size = end
                self._kept.pop(listing.number, None)
                if listing.names:
                    self._kept[listing.number] = listing
        os.ftruncate(self._fd, self._size)

    def _write_anew(self) -> None:
        """In another file: at no moment is there none. Raises: OSError."""
        content = b"".join(map(_record, self._kept.values()))
        fresh = self._file.with_name(self._file.name + ".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(fresh, flags, 0o600)
        try:
            if os.pwrite(fd, content, 0) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.rename(fresh, self._file)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._size = fd, len(content)
        self._largest = max(_FILE_BYTES, 2 * self._size)

    def _write(self, listing: Listing) -> None:
        """A full disk: then it does not outlive this process. What is there of it is written over,
        and until then believed by nobody."""
        with suppress(OSError):
            if self._size > self._largest:
                self._write_anew()
                return
            record = _record(listing)
            if os.pwrite(self._fd, record, self._size) == len(record):
                self._size += len(record)

    def begin(self, names: list[bytes], sizes: Mapping[Oid, int]) -> Listing:
        """A new listing; it is forgotten unless it is kept."""
        listing = Listing(self._next, names, sizes)
        self._next = self._next % _LAST_LISTING + 1
        return listing

    def keep(self, listing: Listing) -> None:
        is_new = listing.number not in self._kept
        self._kept[listing.number] = listing
        self._kept.move_to_end(listing.number)
        while len(self._kept) > _LISTINGS_KEPT:
            self._kept.popitem(last=False)
        if is_new and self._fd >= 0:
            self._write(listing)

    def drop(self, listing: Listing) -> None:
        """It was read to its end."""
        was_kept = self._kept.pop(listing.number, None) is not None
        if was_kept and self._fd >= 0:
            self._write(Listing(listing.number, [], {}))

    def resume(self, cookie: int) -> tuple[Listing | None, int]:
        """The listing and the position that `cookie` names; no listing where a new one begins,
        or the old one was complete."""
        position = cookie & _POSITION_MASK
        return self._kept.get(cookie >> _POSITION_BITS) if position else None, position

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _checksum(number: int, names: bytes) -> int:
    return zlib.crc32(names, number)


def _record(listing: Listing) -> bytes:
    names = b"".join([name + b"\0" for name in listing.names])
    return _RECORD.pack(listing.number, len(names), _checksum(listing.number, names)) + names


def _decode(content: bytes) -> Iterator[tuple[Listing, int]]:
    """Each, and where its record ends. Of a file that may end in the middle of a record, and is
    believed up to one that is damaged. (Where its listing is not here, a directory is listed on as
    it is now.)"""
    at = 0
    while at + _RECORD.size <= len(content):
        number, length, checksum = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        names = content[at : at + length]
        if len(names) < length or checksum != _checksum(number, names):
            return
        at += length
        yield Listing(number, names.split(b"\0")[:-1], {}), at
