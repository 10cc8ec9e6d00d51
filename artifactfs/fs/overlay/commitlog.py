"""The log of changes: what makes a change outlive the process before its program is answered.

SQLite takes 10 to 30 µs for a transaction; appending a record to a file takes 2. So a change is
one ``write`` here, and the database gets many of them in one transaction later (`overlay.py`).

The log is a row of segments beside the database, ``overlay.db-changes-NUMBER``. Records are
numbered without a gap; NUMBER is that of the segment's first one. A record is

    u32 length of the payload, u32 CRC-32 of number and payload, u64 number, payload

in little-endian order. The database knows the number of the last record that it contains, so a
record is never applied to a state that is newer: whatever of the two reached the disk, database
and log together are the tree as it was at one moment. A segment is removed once the database that
contains its records is on the disk.

The first record that is not whole ends the log: it was being written when the power went, and
nobody was told that it, or anything after it, was synced.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import StateError
from artifactfs.git.repository.gitdir import sync_path

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<IIQ")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int
    """The number of its first record."""
    size: int = 0
    linked: bool = False
    """Its name is known to be on the disk."""


class CommitLog:
    """The log of one database. One thread appends; `sync` may run in others."""

    def __init__(self, database: Path, folded: int) -> None:
        """`folded` is the last record that the database contains."""
        self._database = database
        self.last = folded
        """Number of the last record."""
        self._synced = 0
        self._segments: tuple[_Segment, ...] = ()
        self._fd = -1

    def replay(self) -> Iterator[bytes]:
        """Payloads of the records that the database lacks. Raises: StateError where some are gone.

        To be used up before the first `append`.
        """
        self._segments = tuple(sorted(_segments(self._database), key=lambda found: found.first))
        for segment in self._segments:
            if segment.first > self.last + 1:
                if self.last + 1 > self._segments[0].first:
                    log.warning("changes after %d were not on the disk", self.last)
                    return
                raise StateError(
                    f"overlay database {self._database} is older than its log:"
                    f" changes {self.last + 1} to {segment.first - 1} are missing",
                    hint="restore it and its log (overlay.db*) from one backup",
                )
            for number, payload in _records(segment):
                if number == self.last + 1:
                    self.last = number
                    yield payload

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
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the next one goes over it
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
        self._synced = max(self._synced, last)

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


def _records(segment: _Segment) -> Iterator[tuple[int, bytes]]:
    content = segment.path.read_bytes()
    at, expected = 0, segment.first
    while at + _HEADER.size <= len(content):
        length, checksum, number = _HEADER.unpack_from(content, at)
        begin = at + _HEADER.size
        payload = content[begin : begin + length]
        whole = number == expected and len(payload) == length
        if not whole or checksum != _checksum(number, payload):
            break
        yield number, payload
        at, expected = begin + length, expected + 1
    if at < len(content):
        log.warning("%s ends with a change that is not whole, after %d", segment.path, expected - 1)


def _checksum(number: int, payload: bytes) -> int:
    return zlib.crc32(payload, number & 0xFFFFFFFF)


def _sync_file(path: Path) -> None:
    with suppress(FileNotFoundError):  # dropped meanwhile: the database is on the disk
        sync_path(path)
