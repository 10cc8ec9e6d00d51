"""Puts several packs into one, without inflating anything: in less memory than git takes for it.

See docs/decisions/merging-packs-by-ourselves.md.

Entries are copied as they are, in order. An object that an earlier pack already has is left
out, so OFS deltas get a new distance where their base moved; everything an entry depends on is in
its own pack or in one before it, so no base ever comes later. Each entry is checked against the
CRC-32 in its index: a damaged pack is left out and reported, never given a new valid checksum.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from artifactfs.errors import CorruptData
from artifactfs.git.pack import format as packformat
from artifactfs.git.pack.format import OFS_DELTA, Oid
from artifactfs.git.pack.index import PackIndex
from artifactfs.git.pack.parser import PackEntry
from artifactfs.git.pack.reader import write_bytes

_BUFFER = 1 << 20


@dataclass(slots=True)
class Merged:
    """A pack that was written: its index entries and checksum, and the sources left out."""

    entries: list[PackEntry] = field(default_factory=list)
    checksum: bytes = b""
    corrupt: list[Path] = field(default_factory=list)


class _Source:
    """A pack to copy from, opened; its entries in pack order, with the end of each."""

    __slots__ = ("_file", "by_offset", "entries", "path")

    def __init__(self, path: Path) -> None:
        """Checks every entry's CRC. Raises: CorruptData, OSError."""
        self.path = path
        index = PackIndex(path.with_suffix(".idx"))
        index.check()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - lives as long as the source
        end = os.fstat(self._file.fileno()).st_size - packformat.TRAILER_BYTES
        ordered = sorted(index.entries(), key=lambda entry: entry.offset)
        ends = [entry.offset for entry in ordered[1:]] + [end]
        self.entries = list(zip(ordered, ends, strict=True))
        self.by_offset: dict[int, Oid] = {entry.offset: entry.oid for entry in ordered}
        for entry, entry_end in self.entries:
            crc = 0
            for piece in self.pieces(entry.offset, entry_end):
                crc = zlib.crc32(piece, crc)
            if crc != entry.crc:
                raise CorruptData(f"{path} has a damaged entry")

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            piece = os.pread(self._file.fileno(), min(end - start, _BUFFER), start)
            if not piece:
                raise CorruptData(f"{self.path} is cut")
            start += len(piece)
            yield piece


class _Writer:
    """Appends to the new pack, in large writes, and keeps its checksum."""

    __slots__ = ("_buffer", "_digest", "_fd", "position")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._digest = hashlib.sha1(usedforsecurity=False)
        self._buffer = bytearray()
        self.position = 0

    def write(self, data: bytes) -> None:
        self._buffer += data
        self.position += len(data)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def end(self) -> bytes:
        """Write the trailer and return it."""
        self._flush()
        checksum = self._digest.digest()
        write_bytes(self._fd, checksum)
        return checksum

    def _flush(self) -> None:
        self._digest.update(self._buffer)
        write_bytes(self._fd, bytes(self._buffer))
        self._buffer.clear()


def merge_packs(paths: list[Path], fd: int) -> Merged:
    """Write the objects of the packs at `paths` into the empty file `fd`, none of them twice.

    Packs that vanished are passed over. Raises: OSError (no space), CorruptData where a pack
    changes while it is read.
    """
    merged = Merged()
    sources: list[_Source] = []
    for path in paths:
        try:
            sources.append(_Source(path))
        except FileNotFoundError:
            continue
        except CorruptData:
            merged.corrupt.append(path)
    count = len({oid for source in sources for oid in source.by_offset.values()})
    writer = _Writer(fd)
    writer.write(struct.pack(">4sLL", packformat.SIGNATURE, 2, count))
    written: dict[Oid, int] = {}
    for source in sources:
        for entry, end in source.entries:
            if entry.oid not in written:
                crc = _copy_entry(source, entry, end, writer, written)
                written[entry.oid] = at = writer.position - crc[1]
                merged.entries.append(PackEntry(entry.oid, crc[0], at))
    merged.checksum = writer.end()
    return merged


def _copy_entry(
    source: _Source, entry: PackEntry, end: int, writer: _Writer, written: dict[Oid, int]
) -> tuple[int, int]:
    """Copy one entry; returns its CRC-32 and its length in the new pack."""
    start = writer.position
    pieces = source.pieces(entry.offset, end)
    first = next(pieces)
    parsed = packformat.parse_entry(first, 0)
    if parsed is None:
        raise CorruptData("a pack is cut")
    crc = entry.crc
    if parsed[0] == OFS_DELTA:
        moved = _with_new_distance(first, parsed, source, entry, start, written)
        if moved != first:
            crc = zlib.crc32(moved)
            for piece in source.pieces(entry.offset + len(first), end):
                crc = zlib.crc32(piece, crc)
            first = moved
    writer.write(first)
    for piece in pieces:
        writer.write(piece)
    return crc, writer.position - start


def _with_new_distance(
    first: bytes,
    parsed: tuple[int, int, int],
    source: _Source,
    entry: PackEntry,
    start: int,
    written: dict[Oid, int],
) -> bytes:
    """The opening bytes of an OFS delta, pointing at where its base is in the new pack."""
    code, size, position = parsed
    distance = packformat.parse_base_distance(first, position)
    base = source.by_offset.get(entry.offset - distance[0]) if distance else None
    if distance is None or base is None or base not in written:
        raise CorruptData(f"{source.path} has a delta without a base")
    header = packformat.encode_entry(code, size)
    return header + packformat.encode_base_distance(start - written[base]) + first[distance[1] :]
