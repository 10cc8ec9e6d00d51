"""Reads objects out of a pack file, by offset: inflates them and resolves their deltas.

Both the parser of a pack that is arriving (deltas need their bases again) and the reader of packs
on disk use this. Reads are `pread`: no mapped pages that count as our memory, and safe from any
thread. Contents above a limit go to a mapped temporary file, so that memory stays bounded.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from artifactfs.errors import CorruptData
from artifactfs.git.pack import format as packformat
from artifactfs.git.pack.format import KINDS, OFS_DELTA, REF_DELTA, Content, Kind

FIRST_READ = 8192
"""Bytes of the first `pread`: most blobs of a source tree are whole in it, and it costs 1 µs."""

_DELTA_OPENING = 512
"""Bytes that surely inflate to the sizes at the head of a delta: the code tables of a deflate
block alone can take 300, and nothing comes out before they are whole."""

PIECE = 1 << 20
"""Large contents are inflated in pieces of this many bytes."""


class Scratch:
    """Holds contents: up to `limit` bytes in memory, above it in a mapped, unnamed file."""

    __slots__ = ("directory", "limit")

    def __init__(self, directory: Path | None, limit: int) -> None:
        self.directory = directory
        self.limit = limit

    def collect(self, pieces: Iterator[bytes], size: int) -> Content:
        """Join `pieces`, which add up to `size` bytes. Raises: OSError (no space)."""
        if size <= self.limit:
            return b"".join(pieces)
        with tempfile.TemporaryFile(dir=self.directory, buffering=0) as file:
            write_all(file.fileno(), pieces)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def write_all(fd: int, pieces: Iterator[bytes]) -> None:
    """Write `pieces` to `fd`, collected into writes of some `PIECE` bytes. Raises: OSError."""
    pending: list[bytes] = []
    amount = 0
    for piece in pieces:
        pending.append(piece)
        amount += len(piece)
        if amount >= PIECE:
            write_bytes(fd, b"".join(pending))
            pending.clear()
            amount = 0
    write_bytes(fd, b"".join(pending))


def write_bytes(fd: int, data: bytes) -> None:
    """Write all of `data`; a short write is continued. Raises: OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class BaseCache:
    """Recently resolved objects by (pack, offset): bases of the deltas that come next.

    At most `max_bytes` of content. Races between threads lose an entry, never the order of bytes.
    """

    __slots__ = ("_bytes", "_items", "_max")

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._bytes = 0
        self._items: OrderedDict[tuple[int, int], tuple[Kind, bytes]] = OrderedDict()

    def get(self, key: tuple[int, int]) -> tuple[Kind, bytes] | None:
        found = self._items.get(key)
        if found is not None:
            with suppress(KeyError):  # another thread may just have dropped it
                self._items.move_to_end(key)
        return found

    def put(self, key: tuple[int, int], kind: Kind, content: Content) -> None:
        """Remember `content`, unless it is too large to be worth its place."""
        if not isinstance(content, bytes) or len(content) > self._max >> 2:
            return
        if key in self._items:
            return
        self._items[key] = (kind, content)
        self._bytes += len(content)
        with suppress(KeyError):  # emptied by another thread
            while self._bytes > self._max:
                _, (_, dropped) = self._items.popitem(last=False)
                self._bytes -= len(dropped)


class PackBytes:
    """The entries of one pack file, by offset.

    `find` gives the offset of an oid in this pack, for REF_DELTA. Every method raises
    CorruptData where the bytes are not a valid entry, and OSError where the disk fails.
    """

    __slots__ = ("_cache", "_fd", "_find", "_key", "_scratch")

    def __init__(
        self,
        fd: int,
        *,
        find: Callable[[bytes], int | None],
        cache: BaseCache,
        scratch: Scratch,
        key: int,
    ) -> None:
        self._fd = fd
        self._find = find
        self._cache = cache
        self._scratch = scratch
        self._key = key

    def read(self, offset: int) -> tuple[Kind, Content]:
        """The object whose entry begins at `offset`, deltas resolved."""
        kind: Kind
        content: Content
        deltas: list[tuple[int, Content]] = []
        seen = offset
        while True:
            cached = self._cache.get((self._key, seen))
            if cached is not None:
                kind, content = cached[0], cached[1]
                break
            code, data, base = self._entry(seen)
            if base is None:
                kind, content = KINDS[code], data
                break
            deltas.append((seen, data))
            seen = base
            if len(deltas) > 10_000:
                raise CorruptData("a chain of deltas has no end")
        if not deltas:
            return kind, content
        self._cache.put((self._key, seen), kind, content)
        for at, delta in reversed(deltas):
            _, size, _ = packformat.delta_sizes(delta)
            content = self._scratch.collect(packformat.delta_pieces(content, delta), size)
            self._cache.put((self._key, at), kind, content)
        return kind, content

    def size(self, offset: int) -> int:
        """The size of the object at `offset`; inflates a few bytes at most."""
        return self.outline(offset)[1]

    def outline(self, offset: int) -> tuple[Kind | int, int]:
        """The kind of the object at `offset` (of a delta, the offset of its base), and its size."""
        code, size, base, start = self._header(offset)
        if base is None:
            return KINDS[code], size
        head = os.pread(self._fd, _DELTA_OPENING, start)
        try:
            opening = zlib.decompressobj().decompress(head, 32)
        except zlib.error as error:
            raise CorruptData(f"a pack entry does not inflate: {error}") from None
        return base, packformat.delta_sizes(opening)[1]

    def pieces(self, offset: int) -> tuple[Kind, int, Iterator[bytes]] | None:
        """Kind, size and the inflated pieces of an entry, or None where it is a delta."""
        code, size, base, start = self._header(offset)
        if base is not None:
            return None
        return KINDS[code], size, self._inflated(start, size)

    def _header(self, offset: int) -> tuple[int, int, int | None, int]:
        """(type code, inflated size, offset of the base or None, where the zlib data begin)."""
        head = os.pread(self._fd, packformat.MAX_ENTRY_HEADER, offset)
        return self._parse_header(head, offset)

    def _parse_header(self, head: bytes, offset: int) -> tuple[int, int, int | None, int]:
        entry = packformat.parse_entry(head, 0)
        if entry is None:
            raise CorruptData("a pack is cut")
        code, size, position = entry
        base: int | None = None
        if code == OFS_DELTA:
            distance = packformat.parse_base_distance(head, position)
            if distance is None:
                raise CorruptData("a pack is cut")
            base, position = offset - distance[0], distance[1]
            if not packformat.HEADER_BYTES <= base < offset:
                raise CorruptData("a delta's base lies outside of the pack")
        elif code == REF_DELTA:
            oid = head[position : position + 20]
            position += 20
            base = self._find(oid) if len(oid) == 20 else None
            if base is None:
                raise CorruptData("a delta's base is not in its pack")
        return code, size, base, offset + position

    def _entry(self, offset: int) -> tuple[int, Content, int | None]:
        """(type code, inflated data, offset of the base or None) of one entry."""
        buffer = os.pread(self._fd, FIRST_READ, offset)
        code, size, base, start = self._parse_header(buffer, offset)
        if size <= self._scratch.limit:
            try:
                inflater = zlib.decompressobj()
                view = memoryview(buffer)[start - offset :]
                data = inflater.decompress(view, size + 1)
            except zlib.error as error:
                raise CorruptData(f"a pack entry does not inflate: {error}") from None
            if inflater.eof and len(data) == size:
                return code, data, base
        return code, self._scratch.collect(self._inflated(start, size), size), base

    def _inflated(self, start: int, size: int) -> Iterator[bytes]:
        """Inflate the zlib stream at `start`, exactly `size` bytes, in pieces."""
        inflater = zlib.decompressobj()
        pending = b""
        left = size
        while not inflater.eof:
            if not pending:
                pending = os.pread(self._fd, min(PIECE, packformat.compressed_bound(left)), start)
                start += len(pending)
                if not pending:
                    raise CorruptData("a pack is cut")
            try:
                piece = inflater.decompress(pending, min(PIECE, left + 1))
            except zlib.error as error:
                raise CorruptData(f"a pack entry does not inflate: {error}") from None
            pending = inflater.unconsumed_tail
            left -= len(piece)
            if left < 0:
                break
            if piece:
                yield piece
        if left:
            raise CorruptData("a pack entry has another size than its header says")
