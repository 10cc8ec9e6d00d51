"""Entries of a reply to FUSE_READDIRPLUS, as libfuse makes them of pyfuse3's attributes."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable

from pyfuse3 import EntryAttributes

_ENTRY = struct.Struct("=4Q2I6Q10I2Q2I")
"""``fuse_direntplus`` of linux/fuse.h without its name: entry_out, in it the attributes, dirent."""

_NS = 1_000_000_000
_U64 = (1 << 64) - 1


def length_of(names: Iterable[bytes]) -> int:
    """Bytes of the entries of these names, with ``.`` and ``..``."""
    return sum([_ENTRY.size + (len(name) + 7 & ~7) for name in (b".", b"..", *names)])


def encode(entry: EntryAttributes, name: bytes, cookie: int) -> bytes:
    """One entry, padded to 8 bytes. The three times of `entry` are the same, as those of whatever
    was never written are."""
    seconds, ns = divmod(entry.st_mtime_ns, _NS)
    seconds &= _U64
    head = _ENTRY.pack(
        *(entry.st_ino, 0, int(entry.entry_timeout), int(entry.attr_timeout), 0, 0),
        *(entry.st_ino, entry.st_size, entry.st_blocks, seconds, seconds, seconds, ns, ns, ns),
        *(entry.st_mode, entry.st_nlink, entry.st_uid, entry.st_gid, entry.st_rdev),
        *(entry.st_blksize, 0),
        *(entry.st_ino, cookie, len(name), stat.S_IFMT(entry.st_mode) >> 12),
    )
    return head + name + bytes(-len(name) % 8)
