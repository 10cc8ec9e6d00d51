"""The log of changes: what makes a change outlive the process before its program is answered.

SQLite takes 10 to 30 µs for a transaction; appending a record to a file takes 2. So a change is
one `append` here, and the database gets many of them in one transaction later (`database.py`).

When `append` has returned, the bytes are in the kernel's page cache: they outlive the process, but
not a loss of power. `sync` is for that.

The log is a row of segments beside the database, ``overlay.db-changes-NUMBER``. Records are
numbered without a gap; NUMBER is that of the segment's first one. A record is

    u32 length of the payload, u32 CRC-32 of number and payload, u64 number, payload

in little-endian order. The database knows the number of the last record that it contains, so a
record is never applied to a state that is newer: whatever of the two reached the disk, database
and log together are the tree as it was at one moment. A segment is removed once the database that
contains its records is on the disk.

A record that is not whole has one of two reasons. Power was lost while it was being written: then
it ends the log, since nobody was told that it, or anything after it, was synced. Or it is damaged:
it was synced, or the kernel that had it still runs. Then the sound records after it are replayed as
well (each change says what is, not what to do), and `Overlay` sets the log aside.

``overlay.db-synced`` says what was synced, and by which boot of the kernel. It is written after
each sync and is itself never synced: where it is old, less is known.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import StateError
from artifactfs.fs.inodes import seals
from artifactfs.system.files import sync_path

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<IIQ")
_MARK = struct.Struct("<16sQI")  # boot, number, CRC-32 of both
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes that the log had, and has no more. `path` is the segment that they were in, or the
    one where they are missed."""

    first: int
    last: int
    path: Path

    def __str__(self) -> str:
        what = f"changes {self.first} to {self.last}" if self.last > self.first else "a change"
        return f"lost {what} of the overlay"


@dataclass(frozen=True, slots=True)
class _Synced:
    """`number` is the last record that was synced, `boot` the kernel's that ran."""

    boot: bytes
    number: int


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int
    """The number of its first record."""
    size: int = 0
    linked: bool = False
    """Its name is known to be on the disk."""


_SET_RIGHT = 2_048
"""Bytes of a payload in which a wrong bit is looked for: some 20 ms."""

_SKIPPED = 1_000
"""Records that may be damaged in a row: each costs a search of the rest."""


class CommitLog:
    """The log of one database. One thread appends; `sync` may run in others."""

    def __init__(self, database: Path, folded: int) -> None:
        """`folded` is the last record that the database contains."""
        self._database = database
        self.last = folded
        """Number of the last record."""
        self.gaps: list[Gap] = []
        """What `replay` has missed."""
        self.set_right: list[Path] = []
        """Segments in which one bit of a record was wrong."""
        self._mark_path = Path(f"{database}-synced")
        self._mark_lock = threading.Lock()
        self._synced = 0
        self._segments: tuple[_Segment, ...] = ()
        self._fd = -1

    def replay(self) -> Iterator[bytes]:
        """Payloads of the records that the database lacks. Raises: StateError where some are gone.

        To be used up before the first `append`.
        """
        self._segments = tuple(sorted(_segments(self._database), key=lambda found: found.first))
        if self._segments and self._segments[0].first > self.last + 1:
            raise StateError(
                f"overlay database {self._database} is older than its log:"
                f" changes {self.last + 1} to {self._segments[0].first - 1} are missing",
                hint="restore it and its log (overlay.db*) from one backup",
            )
        synced = self._read_mark()
        end: _End | None = None
        path = self._database
        for segment in self._segments:
            end = _End()
            for number, payload in _records(segment, end):
                if number > self.last + 1:
                    if not _is_damage(self.last + 1, synced):
                        log.warning("changes after %d were not on the disk", self.last)
                        return
                    self.gaps.append(Gap(self.last + 1, number - 1, path))
                if number > self.last:
                    self.last = number
                    yield payload
                path = segment.path
            path = segment.path
            if end.set_right:
                self.set_right.append(path)
        self._judge_end(path, end, synced)

    def _judge_end(self, path: Path, end: _End | None, synced: _Synced | None) -> None:
        """Whether anything is missing at the end of the log."""
        if synced is not None and synced.number > self.last:
            self.gaps.append(Gap(self.last + 1, synced.number, path))
        elif end is not None and end.broken and _is_of_this_boot(synced):
            self.gaps.append(Gap(self.last + 1, self.last + 1, path))
        elif end is not None and end.left:
            log.warning("%s ends with a change that is not whole, after %d", path, self.last)

    # What was synced

    def begin(self) -> None:
        """Note, for the next start, that this boot writes now. Call it once after `replay`."""
        self._write_mark(min(self.last, self._noted()))

    def _noted(self) -> int:
        synced = self._read_mark()
        return 0 if synced is None else synced.number

    def _read_mark(self) -> _Synced | None:
        try:
            boot, number, crc = _MARK.unpack(self._mark_path.read_bytes())
        except (OSError, struct.error):
            return None
        if crc != zlib.crc32(number.to_bytes(8, "little"), zlib.crc32(boot)):
            return None
        return _Synced(boot, number)

    def _write_mark(self, number: int) -> None:
        boot = seals.boot_id()
        crc = zlib.crc32(number.to_bytes(8, "little"), zlib.crc32(boot))
        with suppress(OSError):  # less is known about the log then
            fd = os.open(self._mark_path, _FLAGS, 0o600)
            try:
                os.pwrite(fd, _MARK.pack(boot, number, crc), 0)
            finally:
                os.close(fd)

    # Writing

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def count(self) -> int:
        return len(self._segments)

    def begin_segment(self) -> None:
        """Go on in a new segment. Raises: OSError; then nothing has changed."""
        path = Path(f"{self._database}-changes-{self.last + 1}")
        if self._fd < 0:
            path.unlink(missing_ok=True)  # a damaged one may be set aside under another name
        fd = os.open(path, _FLAGS | os.O_TRUNC, 0o600)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        kept = []
        for segment in self._segments:
            if segment.first <= self.last:
                kept.append(segment)
            elif segment.path != path:  # beyond a gap: nobody was told that it was synced
                segment.path.unlink(missing_ok=True)
        self._segments = (*kept, _Segment(path, self.last + 1))

    def append(self, payload: bytes) -> None:
        """Write one record. It outlives the process when this returns. Raises: OSError."""
        if self._fd < 0:
            self.begin_segment()
        number, segment = self.last + 1, self._segments[-1]
        record = _HEADER.pack(len(payload), _checksum(number, payload), number) + payload
        if os.pwrite(self._fd, record, segment.size) != len(record):
            with suppress(OSError):  # else the next one goes over it
                os.ftruncate(self._fd, segment.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        segment.size += len(record)
        self.last = number

    def sync(self) -> None:
        """Make every record survive power loss. Blocks; any thread may call it."""
        last, segments = self.last, self._segments
        if last == self._synced or not segments:
            return
        ends = [*(segment.first - 1 for segment in segments[1:]), last]
        for segment, end in zip(segments, ends, strict=True):
            if end > self._synced:
                _sync_file(segment.path)
        if not all(segment.linked for segment in segments):
            sync_path(self._database.parent)
            for segment in segments:
                segment.linked = True
        with self._mark_lock:
            if last > self._synced:
                self._synced = last
                self._write_mark(last)

    def drop(self, number: int) -> None:
        """Remove segments whose records are all at most `number`: the database has them."""
        segments = self._segments
        nexts = [segment.first for segment in segments[1:]]
        done = [one for one, after in zip(segments, nexts, strict=False) if after <= number + 1]
        self._segments = segments[len(done) :]
        for segment in done:
            segment.path.unlink(missing_ok=True)

    def close(self, *, folded: bool) -> None:
        """`folded`: the database contains all records, and is on the disk."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if folded:
            for segment in self._segments:
                segment.path.unlink(missing_ok=True)


def _segments(database: Path) -> Iterator[_Segment]:
    prefix = f"{database.name}-changes-"
    for name in os.listdir(database.parent):
        number = name.removeprefix(prefix)
        if number != name and number.isdecimal():
            path = database.parent / name
            yield _Segment(path, int(number), path.stat().st_size, linked=True)


@dataclass(slots=True)
class _End:
    """How a segment ends: `left` are bytes that are no record. They are `broken` where they are
    not the beginning of the next one, which a process that dies in a write leaves."""

    left: int = 0
    broken: bool = False
    set_right: bool = False
    """One bit of a record was wrong."""


def _records(segment: _Segment, end: _End) -> Iterator[tuple[int, bytes]]:
    """The sound records of a segment; what is damaged between them is passed over."""
    content = segment.path.read_bytes()
    at, expected = 0, segment.first
    while at < len(content):
        payload = _record_at(content, at, expected)
        if payload is None:
            found = _next_record(content, at, expected)
            behind = len(content) if found is None else found[0]
            payload = _set_right(content, at, expected, behind)
            if payload is not None:
                end.set_right = True
            elif found is None:
                break
            else:
                at, expected = found
                continue
        yield expected, payload
        at, expected = at + _HEADER.size + len(payload), expected + 1
    end.left = len(content) - at
    if end.left >= _HEADER.size:
        length, _, number = _HEADER.unpack_from(content, at)
        end.broken = number != expected or at + _HEADER.size + length <= len(content)


def _record_at(content: bytes, at: int, expected: int) -> bytes | None:
    """The payload of the record `expected`, if it is at `at` and whole."""
    if at + _HEADER.size > len(content):
        return None
    length, checksum, number = _HEADER.unpack_from(content, at)
    begin = at + _HEADER.size
    payload = content[begin : begin + length]
    whole = number == expected and len(payload) == length
    return payload if whole and checksum == _checksum(number, payload) else None


def _set_right(content: bytes, at: int, number: int, behind: int) -> bytes | None:
    """The payload of a record of which one bit is wrong, wherever it is: the CRC-32 tells which.
    What comes after it is at `behind`."""
    begin = at + _HEADER.size
    if begin > len(content):
        return None
    length, checksum, numbered = _HEADER.unpack_from(content, at)
    for end in dict.fromkeys((begin + length, behind)):
        payload = content[begin:end]
        if not payload or end > len(content):
            continue
        wrong = (numbered ^ number).bit_count() + (length ^ len(payload)).bit_count()
        if wrong + (checksum ^ _checksum(number, payload)).bit_count() == 1:
            return payload  # the bit is in the header
        found = None if wrong else _with_one_bit_changed(payload, number, checksum)
        if found is not None:
            return found
    return None


def _with_one_bit_changed(payload: bytes, number: int, checksum: int) -> bytes | None:
    if len(payload) > _SET_RIGHT:
        return None
    tried = bytearray(payload)
    for at in range(8 * len(payload)):
        tried[at >> 3] ^= 1 << (at & 7)
        if _checksum(number, tried) == checksum:
            return bytes(tried)
        tried[at >> 3] ^= 1 << (at & 7)
    return None


def _next_record(content: bytes, at: int, expected: int) -> tuple[int, int] | None:
    """Where the next whole record after a damaged one is, and its number."""
    for number in range(expected + 1, expected + 2 + min(_SKIPPED, (len(content) - at) // 16)):
        wanted, start = number.to_bytes(8, "little"), at
        while (place := content.find(wanted, start)) >= 0:
            begin = place - (_HEADER.size - len(wanted))
            if begin > at and _record_at(content, begin, number) is not None:
                return begin, number
            start = place + 1
    return None


def _is_damage(number: int, synced: _Synced | None) -> bool:
    """Whether a record that is missing before sound ones was there once for certain."""
    return synced is None or number <= synced.number or _is_of_this_boot(synced)


def _is_of_this_boot(synced: _Synced | None) -> bool:
    return synced is not None and synced.boot == seals.boot_id()


def _checksum(number: int, payload: bytes | bytearray) -> int:
    return zlib.crc32(payload, number & 0xFFFFFFFF)


def _sync_file(path: Path) -> None:
    with suppress(FileNotFoundError):  # dropped meanwhile: the database is on the disk
        sync_path(path)
