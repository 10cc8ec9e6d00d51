"""Checksums of the pages of ``overlay.db``, in ``overlay.db-sums``: SQLite has none of its own.

The pages change at checkpoints alone: what is written in between is in SQLite's WAL and in our log,
which have checksums. So the file goes before a checkpoint, and from the disk, and is written anew
after it, and when the overlay is opened and closed; the next opening compares. What was written
while the overlay was open counts as long as nobody else has written to the database. After a loss
of power it counts where the database was synced before: after a checkpoint, and at an opening that
found it as it was. Else the disk may have one file and not the other: it is of one boot.

A page of a B-tree that differs is made unreadable for SQLite, on a copy of its content: then what
was in it is EIO, and everything else is there. Of any other page SQLite would not notice that, so
the overlay is refused.

The file is ``AFSP``, u32 size of a page, for each page a u32 CRC-32 of its content whose lowest
bit says whether it is one of a B-tree, and the CRC-32 of all that, in little-endian order. Of an
open overlay it begins with ``AFSU``, and before the first CRC-32 are the boot (16 bytes; zeros: of
any) and the database's mtime (i64, ns).
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import sys
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path

from artifactfs.fs.inodes.seals import boot_id
from artifactfs.fs.overlay.schema import PAGE_SIZE
from artifactfs.system.files import sync_path

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<4sI")
_CLOSED, _IN_USE = b"AFSP", b"AFSU"
_MOMENT = struct.Struct("<16sq")
_ANY_BOOT = bytes(16)
_END = struct.Struct("<I")
_B_TREE = frozenset((2, 5, 10, 13))
"""First bytes of such pages (``fileformat2.html``); overflow pages begin with a page number."""

_UNREADABLE = b"\xff" * PAGE_SIZE
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """`changed`: numbers (from 1) of the pages of B-trees that are not as they were; `wrong`: why
    the database cannot be used at all, if that is so; `lasts`: what was compared is on the disk."""

    changed: list[int]
    wrong: str | None = None
    lasts: bool = False


def sums_path(database: Path) -> Path:
    return Path(f"{database}-sums")


def write(database: Path, *, in_use: bool = False, lasts: bool = False) -> None:
    """Write the checksums of a database that nobody changes meanwhile; `in_use`: that somebody has
    open; `lasts`: and that is on the disk. Reads all of it: 1 ms a MB. Raises: OSError."""
    head = _HEAD.pack(_IN_USE if in_use else _CLOSED, PAGE_SIZE)
    if in_use:
        boot = _ANY_BOOT if lasts else boot_id()
        head += _MOMENT.pack(boot, database.stat().st_mtime_ns)
    sums = array("I")
    with database.open("rb", buffering=0) as file:
        while content := file.read(_PIECE):
            if len(content) % PAGE_SIZE:
                return
            if not sums and int.from_bytes(content[16:18], "big") != PAGE_SIZE:
                return
            sums.extend(_sum(content, at) for at in range(0, len(content), PAGE_SIZE))
    if sys.byteorder == "big":
        sums.byteswap()
    body = head + sums.tobytes()
    temporary = sums_path(database).with_name(f"{database.name}-sums.new")
    temporary.write_bytes(body + _END.pack(zlib.crc32(body)))
    temporary.rename(sums_path(database))


def _sum(content: bytes, at: int) -> int:
    crc = zlib.crc32(content[at : at + PAGE_SIZE])
    return crc & ~1 | (content[at] in _B_TREE)


def _read(database: Path) -> tuple[array[int], bool] | None:
    """What is known of the pages, and whether after any boot; None where that does not count any
    more. Raises: OSError."""
    try:
        content = sums_path(database).read_bytes()
    except OSError:
        return None
    body = content[: -_END.size]
    if len(body) < _HEAD.size or _END.pack(zlib.crc32(body)) != content[-_END.size :]:
        log.warning("%s is damaged, and not used", sums_path(database))
        return None
    magic, page_size = _HEAD.unpack_from(body)
    start, boot = _HEAD.size, _ANY_BOOT
    if magic == _IN_USE:
        start += _MOMENT.size
        boot, mtime_ns = _MOMENT.unpack_from(body, _HEAD.size)
        if boot not in (_ANY_BOOT, boot_id()) or mtime_ns != database.stat().st_mtime_ns:
            return None
    elif magic != _CLOSED or _is_filled(Path(f"{database}-wal")):
        return None
    if page_size != PAGE_SIZE or len(body) % 4:
        return None
    sums = array("I", body[start:])
    if sys.byteorder == "big":
        sums.byteswap()
    return sums, boot == _ANY_BOOT


def _is_filled(wal: Path) -> bool:
    return wal.exists() and wal.stat().st_size > 0


def compare(database: Path) -> Comparison:
    """What has become of the pages since their checksums were written. Reads all of them. Raises:
    OSError."""
    known = _read(database)
    if known is None:
        return Comparison([])
    sums, lasts = known
    content = database.read_bytes()
    if len(content) != len(sums) * PAGE_SIZE:
        return Comparison([], f"it has {len(content)} bytes and had {len(sums) * PAGE_SIZE}")
    changed = []
    for number, wanted in enumerate(sums):
        at = number * PAGE_SIZE
        if zlib.crc32(content[at : at + PAGE_SIZE]) & ~1 == wanted & ~1:
            continue
        if not number or not wanted & 1:
            return Comparison([], f"page {number + 1} does not match its checksum")
        changed.append(number + 1)
    return Comparison(changed, lasts=lasts and not changed)


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
    """The database is going to change. Waits for the disk, which may not have the new pages and
    the old checksums. Raises: OSError."""
    try:
        sums_path(database).unlink()
    except FileNotFoundError:
        return
    sync_path(database.parent)
