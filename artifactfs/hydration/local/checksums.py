"""Checksums of the blocks of a file that does not change, in a file beside it, ``NAME.sums``.

They are made when the file is, of content that was just verified. Each block is compared when it
is read for the first time by a process: a quarter of a millisecond for the 1 MB that the kernel
asks for at once, where the SHA-1 of all of it would keep the first reader waiting.

A file is ``AFSS``, u32 size of a block, u64 size of the content, a u32 CRC-32 for each block, and
the CRC-32 of all that, in little-endian order.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from artifactfs.hydration.local.blobs import FileBlob

SUFFIX = ".sums"
BLOCK = 128 << 10
_HEAD = struct.Struct("<4sIQ")
_MAGIC = b"AFSS"
_END = struct.Struct("<I")


class BlobDamaged(OSError):
    """The file of a content was changed or cut on the disk. It is gone by now: whoever needs the
    content opens it anew, and so gets it made or fetched again."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EIO, f"{path} was damaged")


@dataclass(slots=True)
class Checksums:
    """Those of one file, and which of its blocks this process has compared."""

    size: int
    crcs: array[int]
    compared: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.compared = bytearray(len(self.crcs))

    def first_wrong(self, fd: int) -> int | None:
        """The number of the first block that differs, after reading all. Raises: OSError."""
        if os.fstat(fd).st_size != self.size:
            return 0
        for number, crc in enumerate(self.crcs):
            if zlib.crc32(os.pread(fd, BLOCK, number * BLOCK)) != crc:
                return number
            self.compared[number] = 1
        return None


def sums_path(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def make(fd: int) -> Checksums:
    """Of an open file, at some 4 GB/s from the page cache. Raises: OSError."""
    crcs = array("I")
    while piece := os.pread(fd, BLOCK, len(crcs) * BLOCK):
        crcs.append(zlib.crc32(piece))
    return Checksums(os.fstat(fd).st_size, crcs)


def save(path: Path, sums: Checksums) -> None:
    """Write the checksums of the file at `path`; they appear whole or not at all. Not synced:
    without them the content is compared as a whole. Raises: OSError."""
    crcs = array("I", sums.crcs)
    if sys.byteorder == "big":
        crcs.byteswap()
    content = _HEAD.pack(_MAGIC, BLOCK, sums.size) + crcs.tobytes()
    final = sums_path(path)
    temporary = final.with_name(f"tmp-{os.getpid()}-{final.name}")
    try:
        temporary.write_bytes(content + _END.pack(zlib.crc32(content)))
        temporary.rename(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: str | Path) -> Checksums | None:
    """The checksums of the file at `path`; None where there are none that can be used."""
    try:
        with open(f"{path}{SUFFIX}", "rb", buffering=0) as file:
            content = file.read()
    except OSError:
        return None
    if len(content) < _HEAD.size + _END.size:
        return None
    magic, block, size = _HEAD.unpack_from(content)
    if (magic, block) != (_MAGIC, BLOCK) or _END.pack(zlib.crc32(content[:-4])) != content[-4:]:
        return None
    crcs = array("I", content[_HEAD.size : -_END.size])
    if sys.byteorder == "big":
        crcs.byteswap()
    return Checksums(size, crcs) if len(crcs) == -(-size // BLOCK) else None


class CheckedBlob(FileBlob):
    """A file whose blocks are compared with their checksums as they are read."""

    __slots__ = ("_damaged", "_path", "_sums")

    def __init__(
        self, fd: int, path: Path, sums: Checksums, damaged: Callable[[Path, str], None]
    ) -> None:
        """`damaged` removes the file, and says why."""
        super().__init__(fd)
        self._path = path
        self._sums = sums
        self._damaged = damaged

    def read(self, offset: int, size: int) -> bytes:
        """Raises: BlobDamaged, OSError."""
        end = min(offset + size, self._size)
        if offset >= end:
            return b""
        first, behind = offset // BLOCK, -(-end // BLOCK)
        if 0 not in self._sums.compared[first:behind]:
            data = super().read(offset, size)
            if len(data) < end - offset:
                self._fail("was cut")
            return data
        start = first * BLOCK
        data = super().read(start, min(behind * BLOCK, self._size) - start)
        view = memoryview(data)
        for number in range(first, behind):
            at = (number - first) * BLOCK
            if zlib.crc32(view[at : at + BLOCK]) != self._sums.crcs[number]:
                self._fail(f"does not match its checksum at byte {number * BLOCK}")
            self._sums.compared[number] = 1
        return (
            data
            if (start, start + len(data)) == (offset, end)
            else data[offset - start : end - start]
        )

    def _fail(self, what: str) -> None:
        self._damaged(self._path, what)
        raise BlobDamaged(self._path)
