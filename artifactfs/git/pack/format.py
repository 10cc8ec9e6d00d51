"""The pack format, as pure functions: entry headers, deltas, varints.

Implements ``gitformat-pack`` (version 2). Only `file_checksum` does I/O.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Literal, TypeAlias

from artifactfs.errors import CorruptData

Oid: TypeAlias = bytes
"""20 raw bytes."""
Kind: TypeAlias = Literal["commit", "tree", "blob", "tag"]
Content: TypeAlias = bytes | mmap.mmap
"""An object's content: in memory, or a mapped temporary file where it is too large for that."""

SIGNATURE = b"PACK"
HEADER_BYTES = 12
TRAILER_BYTES = 20

OFS_DELTA = 6
REF_DELTA = 7

OID_BYTES = 20
_SPLIT_AT_ONCE = 256
_SPLIT = struct.Struct(f"{OID_BYTES}s" * _SPLIT_AT_ONCE)

KINDS: dict[int, Kind] = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}
KIND_NAMES: dict[bytes, Kind] = {kind.encode(): kind for kind in KINDS.values()}

MAX_ENTRY_HEADER = 10 + 20
"""A size takes at most 10 bytes, a delta's base 10 (offset) or 20 (oid) more."""


def object_id(kind: Kind, content: Content) -> bytes:
    """The oid of an object: SHA-1 over ``kind size NUL content``."""
    digest = hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)), usedforsecurity=False)
    digest.update(content)
    return digest.digest()


def split_oids(packed: bytes | bytearray | mmap.mmap, start: int, end: int) -> list[Oid]:
    """The oids from byte `start` of `packed` on, before `end`: 60 ns each, slices take 170."""
    found: list[Oid] = []
    step = _SPLIT.size
    while end - start >= step:
        found += _SPLIT.unpack_from(packed, start)
        start += step
    rest = packed[start:end]
    found += [bytes(rest[at : at + OID_BYTES]) for at in range(0, len(rest), OID_BYTES)]
    return found


def compressed_bound(size: int) -> int:
    """Bytes that zlib needs at most, with usual settings, for `size` bytes of content."""
    return size + (size >> 12) + (size >> 14) + 32


def parse_entry(buffer: bytes, position: int) -> tuple[int, int, int] | None:
    """Read an entry's type and size at `position`.

    Returns (type code, size of the inflated data, position after it), or None where `buffer`
    ends too early. Raises: CorruptData.
    """
    end = len(buffer)
    if position >= end:
        return None
    byte = buffer[position]
    position += 1
    code = byte >> 4 & 7
    size = byte & 15
    shift = 4
    while byte & 0x80:
        if position >= end:
            return None
        byte = buffer[position]
        position += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if shift > 67:
            raise CorruptData("a pack entry has an impossible size")
    if code in (0, 5):
        raise CorruptData(f"a pack entry has the unknown type {code}")
    return code, size, position


def parse_base_distance(buffer: bytes, position: int) -> tuple[int, int] | None:
    """Read an OFS_DELTA's distance to its base: (distance, position after it), None if cut."""
    end = len(buffer)
    if position >= end:
        return None
    byte = buffer[position]
    position += 1
    distance = byte & 0x7F
    while byte & 0x80:
        if position >= end:
            return None
        byte = buffer[position]
        position += 1
        distance = (distance + 1 << 7) | (byte & 0x7F)
        if distance >> 63:
            raise CorruptData("a delta's base is impossibly far away")
    return distance, position


def encode_entry(code: int, size: int) -> bytes:
    """The inverse of `parse_entry`."""
    out = bytearray()
    byte = code << 4 | size & 15
    size >>= 4
    while size:
        out.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    out.append(byte)
    return bytes(out)


def encode_base_distance(distance: int) -> bytes:
    """The inverse of `parse_base_distance`."""
    out = [distance & 0x7F]
    distance >>= 7
    while distance:
        distance -= 1
        out.append(distance & 0x7F | 0x80)
        distance >>= 7
    return bytes(reversed(out))


def delta_sizes(delta: Content) -> tuple[int, int, int]:
    """The header of a delta: (size of the base, size of the result, position after it).

    Raises: CorruptData.
    """
    base_size, position = _little_varint(delta, 0)
    size, position = _little_varint(delta, position)
    return base_size, size, position


def _little_varint(data: Content, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift > 63:
            break
    raise CorruptData("a delta's header is cut or impossible")


def apply_delta(base: Content, delta: Content) -> bytes:
    """The object that `delta` makes of `base`. Raises: CorruptData."""
    return b"".join(delta_pieces(base, delta))


def delta_pieces(base: Content, delta: Content) -> Iterator[bytes]:
    """Yield the pieces of the object that `delta` makes of `base`.

    The pieces add up to exactly the size in the delta's header. Raises: CorruptData.
    """
    base_size, size, position = delta_sizes(delta)
    if base_size != len(base):
        raise CorruptData("a delta does not fit its base")
    end = len(delta)
    left = size
    try:
        while position < end:
            op = delta[position]
            position += 1
            if op & 0x80:
                # One of the hottest loops of all: each operand byte by hand is twice as fast.
                offset = count = 0
                if op & 0x01:
                    offset = delta[position]
                    position += 1
                if op & 0x02:
                    offset |= delta[position] << 8
                    position += 1
                if op & 0x04:
                    offset |= delta[position] << 16
                    position += 1
                if op & 0x08:
                    offset |= delta[position] << 24
                    position += 1
                if op & 0x10:
                    count = delta[position]
                    position += 1
                if op & 0x20:
                    count |= delta[position] << 8
                    position += 1
                if op & 0x40:
                    count |= delta[position] << 16
                    position += 1
                if not count:
                    count = 0x10000
                piece = base[offset : offset + count]
            elif op:
                count = op
                piece = delta[position : position + op]
                position += op
            else:
                raise CorruptData("a delta has the reserved instruction 0")
            left -= count
            if left < 0 or len(piece) != count:
                raise CorruptData("a delta reaches beyond its base or its result")
            yield piece
    except IndexError:
        raise CorruptData("a delta is cut") from None
    if left:
        raise CorruptData("a delta makes too little")


def file_checksum(fd: int, end: int) -> bytes:
    """SHA-1 of the first `end` bytes of a pack file. Raises: CorruptData (cut), OSError."""
    digest = hashlib.sha1(usedforsecurity=False)
    position = 0
    while position < end:
        piece = os.pread(fd, min(end - position, 1 << 20), position)
        if not piece:
            raise CorruptData("the pack is cut")
        digest.update(piece)
        position += len(piece)
    return digest.digest()
