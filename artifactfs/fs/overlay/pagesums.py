"""Checksums of the pages of ``overlay.db``, in ``overlay.db-sums``: SQLite has none of its own.

They are written when the overlay is closed, compared and removed when it is opened. So they tell
whether the disk changed anything while nobody used it. (After a crash the pages of the database
are what they were at the last checkpoint; what came after it is in logs with checksums.)

A page of a B-tree that differs is made unreadable for SQLite, on a copy of its content: then what
was in it is EIO, and everything else is there. Of any other page SQLite would not notice that, so
the overlay is refused.

The file is ``AFSP``, u32 size of a page, for each page a u32 CRC-32 of its content whose lowest
bit says whether it is one of a B-tree, and the CRC-32 of all that, in little-endian order.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import sys
import zlib
from array import array
from pathlib import Path

from artifactfs.fs.overlay.schema import PAGE_SIZE
from artifactfs.system.files import sync_path

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<4sI")
_MAGIC = b"AFSP"
_END = struct.Struct("<I")
_B_TREE = frozenset((2, 5, 10, 13))
"""First bytes of such pages (``fileformat2.html``); overflow pages begin with a page number."""

_UNREADABLE = b"\xff" * PAGE_SIZE


def sums_path(database: Path) -> Path:
    return Path(f"{database}-sums")


def write(database: Path) -> None:
    """Write the checksums of a database that nobody has open. Raises: OSError."""
    content = database.read_bytes()
    if len(content) % PAGE_SIZE or int.from_bytes(content[16:18], "big") != PAGE_SIZE:
        return
    sums = array("I", (_sum(content, at) for at in range(0, len(content), PAGE_SIZE)))
    if sys.byteorder == "big":
        sums.byteswap()
    body = _HEAD.pack(_MAGIC, PAGE_SIZE) + sums.tobytes()
    temporary = sums_path(database).with_name(f"{database.name}-sums.new")
    temporary.write_bytes(body + _END.pack(zlib.crc32(body)))
    temporary.rename(sums_path(database))


def _sum(content: bytes, at: int) -> int:
    crc = zlib.crc32(content[at : at + PAGE_SIZE])
    return crc & ~1 | (at == 0 or content[at] in _B_TREE)


def _read(database: Path) -> array[int] | None:
    try:
        content = sums_path(database).read_bytes()
    except OSError:
        return None
    body = content[: -_END.size]
    if len(body) < _HEAD.size or _END.pack(zlib.crc32(body)) != content[-_END.size :]:
        log.warning("%s is damaged, and not used", sums_path(database))
        return None
    if _HEAD.unpack_from(body) != (_MAGIC, PAGE_SIZE) or len(body) % 4:
        return None
    sums = array("I", body[_HEAD.size :])
    if sys.byteorder == "big":
        sums.byteswap()
    return sums


def compare(database: Path) -> tuple[list[int], str | None]:
    """Numbers (from 1) of the pages of B-trees that were changed, and why the database cannot be
    used at all, if that is so. Reads all of it. Raises: OSError."""
    sums = _read(database)
    wal = Path(f"{database}-wal")
    if sums is None or (wal.exists() and wal.stat().st_size):
        return [], None
    content = database.read_bytes()
    if len(content) != len(sums) * PAGE_SIZE:
        return [], f"it has {len(content)} bytes and had {len(sums) * PAGE_SIZE}"
    changed = []
    for number, wanted in enumerate(sums):
        at = number * PAGE_SIZE
        if zlib.crc32(content[at : at + PAGE_SIZE]) & ~1 == wanted & ~1:
            continue
        if not number or not wanted & 1:
            return [], f"page {number + 1} does not match its checksum"
        changed.append(number + 1)
    return changed, None


def make_unreadable(database: Path, pages: list[int]) -> Path:
    """Have SQLite refuse these pages; a copy of the database as it was is kept, at the path that
    is returned. Raises: OSError."""
    copy = Path(f"{database}.damaged")
    if not copy.exists():
        temporary = copy.with_name(f"{copy.name}.new")
        shutil.copyfile(database, temporary)
        sync_path(temporary)
        temporary.rename(copy)
    fd = os.open(database, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for page in pages:
            os.pwrite(fd, _UNREADABLE, (page - 1) * PAGE_SIZE)
        os.fsync(fd)
    finally:
        os.close(fd)
    return copy


def unreadable_pages(database: Path) -> bool:
    """Whether an earlier start has made some unreadable, and they still are."""
    if not Path(f"{database}.damaged").exists():
        return False
    content = database.read_bytes()
    return any(
        content[at] == 0xFF and content[at : at + PAGE_SIZE] == _UNREADABLE
        for at in range(0, len(content), PAGE_SIZE)
    )


def forget(database: Path) -> None:
    """The database is going to change. Raises: OSError."""
    sums_path(database).unlink(missing_ok=True)
