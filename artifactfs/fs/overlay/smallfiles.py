"""The data of small written files: many to a segment, ``small/NUMBER``.

A file of its own costs more than its content: ext4 takes 13 µs to make one and as much to remove
it, and where many were removed in the last five minutes 400 µs (it looks for an inode that was not
used lately, ``recently_deleted``). So what is written to a new or emptied file at once, up to
`LARGEST` bytes, is appended here, and its row says where it is (`Extent`). Bytes in a segment
never change; a file that is written in the middle, or grows, gets an upper file (`Contents`).

A segment is removed when no row names it any more and the disk knows that (`collection.py`). How
much of each is named is counted here. Each start goes on in a new one. What was lost by power loss
without fsync is beyond the end of its segment; how much of each was synced is kept in the
overlay, so that it is not taken for that when a segment was cut. Each row has the CRC-32 of its
content, which is compared at each read (1 µs for 2 KB).
"""

from __future__ import annotations

import errno
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from artifactfs.damage import DamageReport
from artifactfs.fs.inodes.inode import EMPTY, Extent
from artifactfs.system.files import sync_path

LARGEST = 32 << 10
"""Bytes of a file. Larger ones are mostly written in pieces, which would be copied again."""

SEGMENT_BYTES = 8 << 20
"""A segment that is as long is followed by another one."""

WASTE_BYTES = 16 << 20
"""Bytes that nothing names and that are left alone."""

_WORTH_THE_ROOM = 1 << 20

_DESCRIPTORS_KEPT = 32
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class SmallFiles:
    """The directory of segments. Calls are short enough for the event loop but `sync`."""

    def __init__(
        self,
        path: Path,
        begin: Callable[[], int],
        *,
        damage: DamageReport,
        synced: Mapping[int, int],
        power_lost: bool,
    ) -> None:
        """`begin` gives the number of a new segment; it was never used before. `synced`: bytes of
        each that are on the disk for certain; `power_lost`: the others may not be."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._begin = begin
        self._damage = damage
        self._synced = dict(synced)
        self._power_lost = power_lost
        self._sizes = {int(n): os.stat(path / n).st_size for n in os.listdir(path) if n.isdecimal()}
        self._descriptors: dict[int, int] = {}
        self._current = 0
        self._on_disk = dict(self._sizes)
        self._unlisted = self._listed = 0
        """How many segments were made, and how many of them are on the disk by name."""
        self._live: Counter[int] = Counter()
        self._knows_use = False
        self.held: dict[int, int] = {}
        """Of files that are open without a name: the segment, by inode number."""

    # Writing

    def append(self, data: bytes) -> Extent:
        """Raises: OSError (ENOSPC, …)."""
        number = self._current
        if not number or self._sizes[number] >= SEGMENT_BYTES:
            number = self._begin_segment()
        offset = self._sizes[number]
        self._write(number, offset, data)
        return Extent(number, offset, len(data), zlib.crc32(data))

    def extend(self, extent: Extent, data: bytes) -> Extent | None:
        """The same content and `data` after it; None where something else follows it already."""
        number, offset, size, crc = extent
        if number != self._current or offset + size != self._sizes[number] or crc is None:
            return None
        self._write(number, offset + size, data)
        return Extent(number, offset, size + len(data), zlib.crc32(data, crc))

    def cut(self, extent: Extent, size: int) -> Extent:
        """The first `size` bytes of it. Raises: OSError."""
        if not size:
            return EMPTY
        return Extent(extent.segment, extent.offset, size, zlib.crc32(self.read(extent, 0, size)))

    def _write(self, number: int, offset: int, data: bytes) -> None:
        if os.pwrite(self._descriptor(number), data, offset) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the next one goes over it
        self._sizes[number] = offset + len(data)

    def _begin_segment(self) -> int:
        number = self._begin()
        flags = _FLAGS | os.O_CREAT | os.O_TRUNC
        self._keep(number, os.open(self._path / str(number), flags, 0o600))
        self._sizes[number] = 0
        self._current = number
        self._unlisted += 1
        return number

    # Reading

    def read(self, extent: Extent, offset: int = 0, size: int = LARGEST) -> bytes:
        """Raises: OSError, EIO where it is not what was written."""
        if offset >= extent.size or size <= 0:
            return b""
        try:
            content = os.pread(self._descriptor(extent.segment), extent.size, extent.offset)
        except FileNotFoundError:
            self._report(extent, "is missing")
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
        if len(content) < extent.size:
            self._report(extent, f"is cut after {extent.offset + len(content)} bytes")
        elif extent.crc is None or zlib.crc32(content) == extent.crc:
            return content[offset : offset + size]
        else:
            self._report(extent, "does not match the checksums of what was written")
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def has(self, extent: Extent) -> bool:
        """Whether its segment is there, and long enough."""
        return not extent.size or extent.offset + extent.size <= self._sizes.get(extent.segment, -1)

    def may_have_been_lost(self, extent: Extent) -> bool:
        """Of what is not there: whether it may never have reached the disk."""
        synced = self._synced.get(extent.segment, 0)
        return self._power_lost and extent.offset + extent.size > synced

    def report_missing(self, extent: Extent) -> None:
        """Of what is not there, but was."""
        size = self._sizes.get(extent.segment)
        self._report(extent, "is missing" if size is None else f"is cut after {size} bytes")

    def _report(self, extent: Extent, what: str) -> None:
        self._damage.found(
            self._path / str(extent.segment),
            f"{what}: files whose content was in it cannot be read",
            "restore it from a backup with the mount unmounted, or remove or overwrite the files"
            " in the mount that say Input/output error",
        )

    def _descriptor(self, number: int) -> int:
        fd = self._descriptors.get(number)
        if fd is None:
            fd = os.open(self._path / str(number), _FLAGS)
            self._keep(number, fd)
        return fd

    def _keep(self, number: int, fd: int) -> None:
        self._descriptors[number] = fd
        if len(self._descriptors) > _DESCRIPTORS_KEPT:
            oldest = next(n for n in self._descriptors if n != self._current)
            os.close(self._descriptors.pop(oldest))

    # The disk

    def sync(self, number: int) -> None:
        """Make what is in a segment survive power loss. Blocks: call it in a thread.

        Several threads may: each returns when it is true, whatever the others do.
        """
        size = self._sizes.get(number, 0)
        try:
            sync_path(self._path / str(number))
        except FileNotFoundError:
            return  # nothing names it any more
        generation = self._unlisted
        if generation != self._listed:
            sync_path(self._path)
            self._listed = max(self._listed, generation)
        self._on_disk[number] = max(size, self._on_disk.get(number, 0))

    def newly_synced(self, number: int) -> int | None:
        """Bytes of a segment that are on the disk, where that was not noted yet. To be noted."""
        size = self._on_disk.get(number, 0)
        if size <= self._synced.get(number, 0):
            return None
        self._synced[number] = size
        return size

    @property
    def current(self) -> int:
        """The segment that is written to, 0 where there is none."""
        return self._current

    # Segments

    def is_on_disk(self, extent: Extent) -> bool:
        """Whether it was synced. What a start finds may have been."""
        end = extent.offset + extent.size
        return extent.size > 0 and end <= self._on_disk.get(extent.segment, 0)

    def account(self, before: Extent | None, after: Extent | None) -> None:
        """A row names `after` instead of `before` now."""
        if before is not None:
            self._live[before.segment] -= before.size
        if after is not None:
            self._live[after.segment] += after.size

    def count_from_here(self) -> None:
        """`learn` is going to tell what the rows name now."""
        self._live.clear()

    def learn(self, use: dict[int, int]) -> None:
        """Bytes that rows named at that moment, by segment."""
        self._live.update(use)
        self._knows_use = True

    @property
    def live_bytes(self) -> int:
        """Size of the small files, once it is learnt."""
        return self._live.total()

    def dead(self) -> set[int]:
        """Segments that nothing names. The current one counts where it is worth the room."""
        if not self._knows_use:
            return set()
        unnamed = {n for n in self._sizes if self._live[n] <= 0}
        if self._sizes.get(self._current, 0) < _WORTH_THE_ROOM:
            unnamed.discard(self._current)
        return unnamed - set(self.held.values())

    def sparse(self) -> set[int]:
        """Segments of which less than half is named, where they waste more than is in use."""
        sealed = {n: size for n, size in self._sizes.items() if n != self._current}
        live = sum(self._live[n] for n in sealed)
        if not self._knows_use or sum(sealed.values()) - live <= max(WASTE_BYTES, live):
            return set()
        mostly_empty = {n for n, size in sealed.items() if self._live[n] <= size // 2}
        return mostly_empty - set(self.held.values())

    def remove_segment(self, number: int) -> None:
        if number == self._current:
            self._current = 0
        fd = self._descriptors.pop(number, None)
        if fd is not None:
            os.close(fd)
        self._sizes.pop(number, None)
        self._on_disk.pop(number, None)
        self._synced.pop(number, None)
        self._live.pop(number, None)
        (self._path / str(number)).unlink(missing_ok=True)

    def close(self) -> None:
        for fd in self._descriptors.values():
            os.close(fd)
        self._descriptors.clear()
