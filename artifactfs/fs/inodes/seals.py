"""What an upper file is known to have been: by it, a file that was cut or changed on the disk is
told from one that a program wrote.

A seal is kept with the extended attributes of the inode, under a name that no program can ask for.
It is made when a file has not been written for a while, at an ``fsync`` and when the mount ends
(`content/sealing.py`), and goes before a program cuts the file. So whatever the seal says was in
the file is in it, unless the disk lost it:

- A file that is shorter than its seal was cut.
- A file with the mtime of its seal has the content of the seal. After a clean end of the mount,
  every file has the content of its seal.
- Where power was lost before the file was synced, neither can be told: it is as on any disk.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NAME = b"\0seal"
"""No extended attribute of a program: theirs begin with ``user.``."""

_FORMAT = struct.Struct("<BQqI16s")
_SYNCED, _HAS_CRC = 1, 2
_PIECE = 1 << 20


@cache
def boot_id() -> bytes:
    """Of the kernel that runs: another one means that power may have been lost since."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """Size in bytes, mtime in ns, CRC-32 of the whole content where it was read, and the boot."""

    size: int
    mtime_ns: int
    crc: int | None
    synced: bool
    boot: bytes

    def encode(self) -> bytes:
        flags = self.synced * _SYNCED | (self.crc is not None) * _HAS_CRC
        return _FORMAT.pack(flags, self.size, self.mtime_ns, self.crc or 0, self.boot)

    @property
    def holds(self) -> bool:
        """Whether what it says must be on the disk."""
        return self.synced or self.boot == boot_id()


def decode(value: bytes | None) -> Seal | None:
    if value is None or len(value) != _FORMAT.size:
        return None
    flags, size, mtime_ns, crc, boot = _FORMAT.unpack(value)
    return Seal(size, mtime_ns, crc if flags & _HAS_CRC else None, bool(flags & _SYNCED), boot)


def seal_of(fd: int, *, content: bool, synced: bool) -> Seal:
    """The seal of an open file as it is now. With `content` reads all of it. Raises: OSError."""
    found = os.fstat(fd)
    crc = checksum(fd) if content else None
    return Seal(found.st_size, found.st_mtime_ns, crc, synced, boot_id())


def checksum(fd: int) -> int:
    """CRC-32 of a file, at some 4 GB/s from the page cache. Raises: OSError."""
    crc = offset = 0
    while piece := os.pread(fd, _PIECE, offset):
        crc = zlib.crc32(piece, crc)
        offset += len(piece)
    return crc


def cut(seal: Seal, size: int, *, after_clean_end: bool) -> str | None:
    """What is wrong with the size of a file, if anything is."""
    if not seal.holds or size == seal.size or (size > seal.size and not after_clean_end):
        return None
    return f"has {size} bytes where it had {seal.size}"


def changed(seal: Seal, fd: int, *, after_clean_end: bool) -> str | None:
    """What is wrong with an open file, if anything is. Reads all of it. Raises: OSError."""
    found = os.fstat(fd)
    if not seal.holds:
        return None
    wrong = cut(seal, found.st_size, after_clean_end=after_clean_end)
    if wrong is not None or seal.crc is None or found.st_size != seal.size:
        return wrong
    if found.st_mtime_ns != seal.mtime_ns and not after_clean_end:
        return None  # it was written after the seal
    return None if checksum(fd) == seal.crc else "does not match its checksum"
