"""A push parser of packs: each object is handed out when its last byte has arrived.

Implements ``gitformat-pack`` version 2. The parser appends what it is fed to a pack file, because
deltas may need any earlier object again: it keeps offsets, and re-inflates a base that has left
its small cache. So memory does not grow with contents: an object of more than `spool_bytes` is
never held, but goes through a file. Deltas that make such objects are left to `resolve_deferred`,
which takes long enough to belong in a thread.

A delta may come before its base (REF_DELTA); it is resolved when the base is. Thin packs, whose
bases are elsewhere, are corrupt here: nothing of ours asks a server for them.

What is handed out is right by construction, since its oid is computed from the bytes; a pack that
turns out corrupt later takes nothing back. A remote may lie about everything else, so nothing it
says is without a bound (`PackLimits`). Speed: 30,000 small objects a second.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import CorruptData, MoreThanExpected
from artifactfs.git.pack import format as packformat
from artifactfs.git.pack.format import KINDS, OFS_DELTA, REF_DELTA, Kind
from artifactfs.git.pack.reader import BaseCache, PackBytes, Scratch, write_bytes

SPOOL_BYTES = 1 << 20
"""Objects above this many bytes go to a file by default."""

FEED_OUTPUT = 1 << 19
"""`feed` returns after some this many bytes of content, however much input is left (2 to 4 ms)."""

ENTRY_COST = 6 << 10
"""An entry takes as long as this many bytes of content, besides its own."""

BASE_CACHE = 8 << 20
"""Bytes of recent objects kept as possible delta bases."""

WINDOW = 1 << 16
"""zlib is given this much input at a time: it copies what it does not use."""

SPOOL_PIECE = 1 << 18
"""Large entries are inflated in pieces of this many bytes."""

MAX_OBJECT = 16 << 30
"""Bytes of one object whose size is not known before."""

_ROOM_ABOVE = 64 << 20
"""Whether there is room for an object is looked at before, above this many bytes."""

_SLACK = 1 << 16
"""Bytes that an entry may take beyond what zlib needs, and a delta beyond what it makes."""


@dataclass(frozen=True, slots=True)
class PackLimits:
    """What a pack may hold: bytes in one object, and how many objects (None: any number)."""

    object_bytes: int = MAX_OBJECT
    objects: int | None = None

    def check(self, size: int) -> None:
        """Raises: MoreThanExpected."""
        if size > self.object_bytes:
            raise MoreThanExpected(
                f"an object of {size} bytes, where {self.object_bytes} are the most"
            )


NO_LIMITS = PackLimits()


@dataclass(slots=True)
class PackedObject:
    """One whole object of a pack. Exactly one of `data` and `spooled` is set.

    `spooled` is a file with the content. It is the receiver's to rename away before the next
    `feed`; what is left of it is deleted with the parser's directory.
    """

    kind: Kind
    oid: bytes
    size: int
    data: bytes | None
    spooled: Path | None


@dataclass(frozen=True, slots=True)
class PackEntry:
    """What an index holds of an object: where its entry is, and the CRC-32 of the entry."""

    oid: bytes
    crc: int
    offset: int


def free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class _Spool:
    """The file that a large object is written to."""

    __slots__ = ("_digest", "_fd", "path")

    def __init__(self, path: Path, kind: Kind, size: int) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._digest = hashlib.sha1(b"%s %d\0" % (kind.encode(), size), usedforsecurity=False)

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        write_bytes(self._fd, data)

    def close(self) -> bytes:
        """Close the file and return the oid of what was written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return self._digest.digest()


class _Body:
    """The entry that is being inflated. `base` is the entry number or the oid of a delta's base."""

    __slots__ = ("base", "code", "got", "inflater", "keep", "parts", "size", "spool", "taken")

    def __init__(self, code: int, size: int, base: int | bytes | None, keep: bool) -> None:
        self.code = code
        self.size = size
        self.base = base
        self.keep = keep
        self.inflater = zlib.decompressobj()
        self.got = 0
        self.taken = 0  # bytes of the pack
        self.parts: list[bytes] = []
        self.spool: _Spool | None = None


class PackParser:
    """Parse one pack. `pack_fd` is an empty file, open for reading and writing.

    `spool_dir` gets the files of large objects. `feed`, `resolve_deferred` and `finish` raise
    CorruptData for anything that is not exactly one valid pack, and OSError where the disk fails
    (no space); the parser is of no use after either.
    """

    def __init__(
        self,
        pack_fd: int,
        *,
        spool_dir: Path,
        spool_bytes: int = SPOOL_BYTES,
        cache_bytes: int = BASE_CACHE,
        limits: PackLimits = NO_LIMITS,
    ) -> None:
        self._fd = pack_fd
        self._limits = limits
        self._spool_dir = spool_dir
        self._spool_bytes = spool_bytes
        self._spools = 0
        self._cache = BaseCache(cache_bytes)
        self._pack = PackBytes(
            pack_fd,
            find=self._offset_of,
            cache=self._cache,
            scratch=Scratch(spool_dir, spool_bytes),
            key=0,
        )
        self._buffer = b""
        self._position = 0
        self._buffer_at = 0  # where the buffer's first byte is in the pack
        self._hashed = 0  # position up to which the buffer is in the digest
        self._digest = hashlib.sha1(usedforsecurity=False)
        self._budget = 0
        self._crc = 0
        self._crc_from = 0
        self._body: _Body | None = None
        self._ended = False
        self._offsets = array("Q")
        self._crcs = array("L")
        self._oids: list[bytes] = []  # b"" for a delta that waits
        self._by_oid: dict[bytes, int] | None = None  # made when the first REF_DELTA comes
        self._waiting: dict[int | bytes, list[int]] = {}  # base's number or oid: deltas
        self._ready: list[int] = []  # bases that came, whose waiting deltas are next
        self._deferred: list[int] = []
        self._unresolved = 0
        self._failed = False  # also while a call is under way: it may fail anywhere
        self.count = -1
        """How many objects the pack's header announces; -1 until it is here."""
        self.checksum = b""
        """The pack's own SHA-1, once it has arrived."""

    @property
    def size(self) -> int:
        """Bytes of the pack that have been parsed."""
        return self._buffer_at + self._position

    @property
    def pending(self) -> bool:
        """Whether ``feed(b"")`` would go on without new input."""
        return self._budget <= 0 and self._position < len(self._buffer)

    @property
    def deferred(self) -> bool:
        """Whether large deltas wait for `resolve_deferred`."""
        return bool(self._deferred)

    def feed(self, chunk: bytes) -> list[PackedObject]:
        """Take `chunk` and return the objects that it completes, in order.

        Stops after inflating `FEED_OUTPUT` bytes: while `pending`, call again with ``b""``.
        Synchronous; keep chunks at 64 KB or so. Raises: CorruptData, OSError.
        """
        self._failed = True
        if chunk:
            write_bytes(self._fd, chunk)
            self._buffer_at += self._position
            self._buffer = self._buffer[self._position :] + chunk
            self._position = self._hashed = 0
        self._budget = FEED_OUTPUT
        self._crc_from = self._position
        done: list[PackedObject] = []
        while self._budget > 0 and self._step(done):
            pass
        if self._ended and self._position < len(self._buffer):
            raise CorruptData("there are bytes after the end of the pack")
        view = memoryview(self._buffer)
        self._digest.update(view[self._hashed : self._position])
        self._hashed = self._position
        if self._body is not None:
            self._crc = zlib.crc32(view[self._crc_from : self._position], self._crc)
        self._failed = False
        return done

    def resolve_deferred(self) -> list[PackedObject]:
        """Resolve one delta of those that make large objects, and what was waiting for it.

        May take seconds: call it in a thread while `deferred`. Raises: CorruptData, OSError.
        """
        self._failed = True
        done: list[PackedObject] = []
        self._resolve(self._deferred.pop(), done)
        self._resolve_waiting(done)
        self._failed = False
        return done

    def finish(self) -> None:
        """Check that one whole pack was fed and everything is resolved. Raises: CorruptData."""
        self._failed = not self._ended or bool(self._unresolved)
        if not self._ended:
            raise CorruptData("the pack is cut")
        if self._unresolved:
            raise CorruptData(f"{self._unresolved} deltas have no base in their pack")

    def cut_to_whole(self) -> bool:
        """Make a valid pack of the entries that are here, after the source failed half-way.

        False where that is not possible: nothing is whole, a delta waits for its base, or it was
        the pack that was bad. Reads the file again for its checksum: call it in a thread.
        Raises: CorruptData, OSError.
        """
        count = len(self._oids)
        if self._failed or self._unresolved or not count:
            return False
        if self._ended:
            return True
        end = self.size if self._body is None else self._offsets[count]
        del self._offsets[count:]
        os.ftruncate(self._fd, end)
        header = struct.pack(">4sLL", packformat.SIGNATURE, 2, count)
        os.pwrite(self._fd, header, 0)
        self.checksum = packformat.file_checksum(self._fd, end)
        os.pwrite(self._fd, self.checksum, end)
        self.count = count
        self._ended = True
        return True

    def close(self) -> None:
        """Close the file of an object that did not end. Files stay for their owner to remove."""
        if self._body is not None and self._body.spool is not None:
            self._body.spool.close()

    def entries(self) -> Iterator[PackEntry]:
        """What the index of this pack holds, in pack order. Only after `finish`."""
        for oid, crc, offset in zip(self._oids, self._crcs, self._offsets, strict=True):
            yield PackEntry(oid, crc, offset)

    # The state machine: header, then (entry, body) for each object, then the trailer.

    def _step(self, done: list[PackedObject]) -> bool:
        """Do one piece of work; False where more input is needed."""
        if self._body is not None:
            return self._inflate(self._body, done)
        if self.count < 0:
            return self._read_header()
        if len(self._oids) < self.count:
            return self._begin_entry()
        return not self._ended and self._read_trailer()

    def _read_header(self) -> bool:
        if len(self._buffer) - self._position < packformat.HEADER_BYTES:
            return False
        signature, version, count = struct.unpack_from(">4sLL", self._buffer, self._position)
        if signature != packformat.SIGNATURE or version not in (2, 3):
            raise CorruptData("this is not a pack")
        if self._limits.objects is not None and count > self._limits.objects:
            raise CorruptData(f"{count} objects, where {self._limits.objects} are the most")
        self.count = count
        self._position += packformat.HEADER_BYTES
        return True

    def _read_trailer(self) -> bool:
        position = self._position
        end = position + packformat.TRAILER_BYTES
        if len(self._buffer) < end:
            return False
        self._digest.update(memoryview(self._buffer)[self._hashed : position])
        self.checksum = self._digest.digest()
        if self._buffer[position:end] != self.checksum:
            raise CorruptData("the pack does not match its checksum")
        self._position = self._hashed = end
        self._ended = True
        return True

    def _begin_entry(self) -> bool:
        start = self._position
        entry = packformat.parse_entry(self._buffer, start)
        if entry is None:
            return False
        code, size, position = entry
        offset = self._buffer_at + start
        base: int | bytes | None = None
        if code == OFS_DELTA:
            distance = packformat.parse_base_distance(self._buffer, position)
            if distance is None:
                return False
            base = self._number_at(offset - distance[0])
            position = distance[1]
        elif code == REF_DELTA:
            base = self._buffer[position : position + 20]
            position += 20
            if len(base) < 20:
                return False
        self._limits.check(size if base is None else size - _SLACK)
        small = size <= self._spool_bytes
        self._body = _Body(code, size, base, small)
        if not small and base is None:
            self._body.spool = self._new_spool(KINDS[code], size)
        self._offsets.append(offset)
        self._position = position
        self._crc = 0
        self._crc_from = start
        self._budget -= ENTRY_COST
        return True

    def _inflate(self, body: _Body, done: list[PackedObject]) -> bool:
        position = self._position
        left = body.size - body.got
        end = position + min(packformat.compressed_bound(left), WINDOW)
        window = memoryview(self._buffer)[position:end]
        if not window:
            return False
        limit = left + 1 if body.keep else min(left + 1, SPOOL_PIECE)
        inflater = body.inflater
        try:
            piece = inflater.decompress(window, limit)
        except zlib.error as error:
            raise CorruptData(f"a pack entry does not inflate: {error}") from None
        rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        self._position = position + len(window) - len(rest)
        body.got += len(piece)
        body.taken += self._position - position
        if body.taken > 2 * packformat.compressed_bound(body.size) + _SLACK:
            raise CorruptData("a pack entry does not end")
        if body.got > body.size or (inflater.eof and body.got < body.size):
            raise CorruptData("a pack entry has another size than its header says")
        if body.spool is not None:
            body.spool.write(piece)
            self._budget -= len(piece)
        elif body.keep:
            body.parts.append(piece)
        if inflater.eof:
            self._end_entry(body, done)
            self._resolve_waiting(done)
        return True

    def _end_entry(self, body: _Body, done: list[PackedObject]) -> None:
        view = memoryview(self._buffer)
        self._crcs.append(zlib.crc32(view[self._crc_from : self._position], self._crc))
        self._body = None
        index = len(self._oids)
        self._oids.append(b"")
        if body.spool is not None:
            oid = body.spool.close()
            self._record_spooled(index, KINDS[body.code], body.size, oid, body.spool.path, done)
            return
        data = body.parts[0] if len(body.parts) == 1 else b"".join(body.parts)
        if body.base is None:
            self._record(index, KINDS[body.code], data, done)
        else:
            self._end_delta(index, body, data, done)

    # Deltas

    def _end_delta(self, index: int, body: _Body, delta: bytes, done: list[PackedObject]) -> None:
        base = body.base
        if isinstance(base, bytes):
            base = self._numbers().get(base, base)
        if isinstance(base, bytes) or base is None or not self._oids[base]:
            assert base is not None
            self._unresolved += 1
            self._waiting.setdefault(base, []).append(index)
            return
        if body.keep:
            self._limits.check(packformat.delta_sizes(delta)[1])
        if not body.keep or max(packformat.delta_sizes(delta)[:2]) > self._spool_bytes:
            self._unresolved += 1
            self._deferred.append(index)
            return
        kind, content = self._pack.read(self._offsets[base])
        self._record(index, kind, packformat.apply_delta(content, delta), done)

    def _resolve_waiting(self, done: list[PackedObject]) -> None:
        """Resolve the deltas that waited for what came, or leave large ones for later."""
        while self._ready:
            index = self._ready.pop()
            waiting = self._waiting.pop(index, []) + self._waiting.pop(self._oids[index], [])
            for delta in waiting:
                if self._pack.size(self._offsets[delta]) > self._spool_bytes:
                    self._deferred.append(delta)
                else:
                    self._resolve(delta, done)

    def _resolve(self, index: int, done: list[PackedObject]) -> None:
        """Resolve one delta whose base is known, whatever its size."""
        self._limits.check(self._pack.size(self._offsets[index]))
        kind, content = self._pack.read(self._offsets[index])
        self._unresolved -= 1
        if len(content) <= self._spool_bytes:
            self._record(index, kind, bytes(content), done)
            return
        spool = self._new_spool(kind, len(content))
        try:
            for start in range(0, len(content), SPOOL_PIECE):
                spool.write(content[start : start + SPOOL_PIECE])
        finally:
            oid = spool.close()
        self._record_spooled(index, kind, len(content), oid, spool.path, done)

    # What is known of entries that are whole

    def _record(self, index: int, kind: Kind, data: bytes, done: list[PackedObject]) -> None:
        oid = packformat.object_id(kind, data)
        self._cache.put((0, self._offsets[index]), kind, data)
        self._budget -= len(data)
        done.append(PackedObject(kind, oid, len(data), data, None))
        self._name(index, oid)

    def _record_spooled(
        self, index: int, kind: Kind, size: int, oid: bytes, path: Path, done: list[PackedObject]
    ) -> None:
        done.append(PackedObject(kind, oid, size, None, path))
        self._name(index, oid)

    def _name(self, index: int, oid: bytes) -> None:
        self._oids[index] = oid
        if self._by_oid is not None:
            self._by_oid[oid] = index
        if self._waiting:
            self._ready.append(index)

    def _new_spool(self, kind: Kind, size: int) -> _Spool:
        """Raises: OSError where there is no room for `size` bytes."""
        self._spools += 1
        if size > _ROOM_ABOVE and size > free_bytes(self._spool_dir):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _Spool(self._spool_dir / f"spool-{self._spools}", kind, size)

    def _numbers(self) -> dict[bytes, int]:
        if self._by_oid is None:
            self._by_oid = {oid: index for index, oid in enumerate(self._oids) if oid}
        return self._by_oid

    def _offset_of(self, oid: bytes) -> int | None:
        index = self._numbers().get(oid)
        return None if index is None else self._offsets[index]

    def _number_at(self, offset: int) -> int:
        index = bisect_left(self._offsets, offset)
        if index == len(self._oids) or self._offsets[index] != offset:
            raise CorruptData("a delta's base is not an entry of its pack")
        return index
