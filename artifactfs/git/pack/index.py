"""Pack index files (``gitformat-pack``): of version 2 for packs of ours, and read for any.

Git writes version 1 where ``pack.indexVersion`` says so. Such a file is brought into the form of
version 2 when it is opened, 28 bytes of memory for each object.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import filterfalse
from pathlib import Path

from artifactfs.errors import CorruptData
from artifactfs.git.pack.format import split_oids
from artifactfs.git.pack.parser import PackEntry

_SIGNATURE = b"\xfftOc\x00\x00\x00\x02"
_FANOUT_BYTES = 256 * 4
_FANOUT_AT = len(_SIGNATURE)
_OIDS_AT = _FANOUT_AT + _FANOUT_BYTES
_LARGE = 1 << 31
_ENTRY_1 = 24
"""Bytes of an entry in version 1: offset and oid."""
_CHECKSUMS = 40
AS_MANY = 8
"""Entries that are looked through for each that is looked for."""
_OIDS_AT_ONCE = 4_096 * 20
_SCAN_ENTRIES = 24
"""Below this many entries a search in C beats halving in Python."""


def encode_index(entries: Iterable[PackEntry], pack_checksum: bytes) -> bytes:
    """The whole .idx file for `entries` (any order, an oid may come twice)."""
    ordered = sorted((entry.oid, entry.offset, entry.crc) for entry in entries)
    fanout = array("I", bytes(_FANOUT_BYTES))
    for oid, _, _ in ordered:
        fanout[oid[0]] += 1
    for byte in range(1, 256):
        fanout[byte] += fanout[byte - 1]
    large = [offset for _, offset, _ in ordered if offset >= _LARGE]
    numbers = iter(range(len(large)))
    offsets = array("I", (at if at < _LARGE else _LARGE | next(numbers) for _, at, _ in ordered))
    body = b"".join(
        (
            _SIGNATURE,
            _big_endian(fanout),
            b"".join([oid for oid, _, _ in ordered]),
            _big_endian(array("I", (crc for _, _, crc in ordered))),
            _big_endian(offsets),
            struct.pack(f">{len(large)}Q", *large),
            pack_checksum,
        )
    )
    return body + hashlib.sha1(body, usedforsecurity=False).digest()


def _big_endian(words: array[int]) -> bytes:
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()


def _as_version_2(data: mmap.mmap | bytes, path: Path) -> bytes:
    """The content of an index of version 1 in the form of version 2, its CRCs all 0.

    Its checksum is looked at here, since the new form needs one of its own. Raises: CorruptData.
    """
    count = int.from_bytes(data[_FANOUT_BYTES - 4 : _FANOUT_BYTES], "big")
    end = _FANOUT_BYTES + _ENTRY_1 * count
    if len(data) != end + _CHECKSUMS:
        raise CorruptData(f"{path} is not a pack index of version 1 or 2")
    if hashlib.sha1(data[:-20], usedforsecurity=False).digest() != data[-20:]:
        raise CorruptData(f"{path} does not match its checksum")
    table = data[_FANOUT_BYTES:end]
    places, oids = bytearray(4 * count), bytearray(20 * count)
    for byte in range(4):
        places[byte::4] = table[byte::_ENTRY_1]
    for byte in range(20):
        oids[byte::20] = table[4 + byte :: _ENTRY_1]
    offsets = struct.unpack(f">{count}I", places)
    large = [offset for offset in offsets if offset >= _LARGE]
    numbers = iter(range(len(large)))
    small = array("I", (at if at < _LARGE else _LARGE | next(numbers) for at in offsets))
    parts = (
        _SIGNATURE,
        data[:_FANOUT_BYTES],
        oids,
        bytes(4 * count),
        _big_endian(small),
        struct.pack(f">{len(large)}Q", *large),
        data[end : end + 20],
    )
    body = b"".join(parts)
    return body + hashlib.sha1(body, usedforsecurity=False).digest()


class PackIndex:
    """A mapped .idx file. Thread-safe; the mapping ends with the last reference.

    Checks the structure, not the file's own checksum: a wrong offset is found by whoever reads
    the object, because it does not hash to its oid.
    """

    __slots__ = (
        *("_count", "_crcs_at", "_fanout", "_has_crcs", "_large_at", "_map", "_offsets_at"),
        "size",
    )

    def __init__(self, path: Path) -> None:
        """Raises: CorruptData, OSError."""
        with path.open("rb") as file:
            try:
                self._map: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise CorruptData(f"{path} is empty") from None
        self.size = len(self._map)
        """Bytes of the file when it was opened."""
        self._has_crcs = self._map[:_FANOUT_AT] == _SIGNATURE
        if not self._has_crcs:
            self._map = _as_version_2(self._map, path)
        if len(self._map) < _OIDS_AT + _CHECKSUMS:
            raise CorruptData(f"{path} is damaged")
        self._fanout: tuple[int, ...] = (0, *struct.unpack_from(">256I", self._map, _FANOUT_AT))
        self._count = count = self._fanout[256]
        self._crcs_at = _OIDS_AT + 20 * count
        self._offsets_at = self._crcs_at + 4 * count
        self._large_at = self._offsets_at + 4 * count
        rest = len(self._map) - self._large_at - _CHECKSUMS
        if rest < 0 or rest % 8 or list(self._fanout) != sorted(self._fanout):
            raise CorruptData(f"{path} is damaged")

    def __len__(self) -> int:
        return self._count

    @property
    def pack_checksum(self) -> bytes:
        """The checksum of the pack that this index is of."""
        return self._map[-40:-20]

    def check(self) -> None:
        """Check the file's own checksum; reads all of it. Raises: CorruptData."""
        view = memoryview(self._map)
        digest = hashlib.sha1(view[:-20], usedforsecurity=False).digest()
        if digest != self._map[-20:]:
            raise CorruptData("a pack index does not match its checksum")

    def offset(self, oid: bytes) -> int | None:
        """Where the entry of `oid` begins in the pack; None where the pack lacks it."""
        first = oid[0]
        low, high = self._fanout[first], self._fanout[first + 1]
        data = self._map
        while high - low > _SCAN_ENTRIES:
            middle = low + high >> 1
            at = _OIDS_AT + 20 * middle
            if data[at : at + 20] <= oid:
                low = middle
            else:
                high = middle
        at = _OIDS_AT + 20 * low
        end = _OIDS_AT + 20 * high
        at = data.find(oid, at, end)
        while at >= 0:
            if not (at - _OIDS_AT) % 20:
                return self._offset_number((at - _OIDS_AT) // 20)
            at = data.find(oid, at + 1, end)
        return None

    def between(self, first: int, last: int) -> list[bytes]:
        """The oids whose first byte is `first` to `last`, in order."""
        start, end = self._fanout[first], self._fanout[last + 1]
        return split_oids(self._map, _OIDS_AT + 20 * start, _OIDS_AT + 20 * end)

    def count_between(self, first: int, last: int) -> int:
        """How many those are."""
        return self._fanout[last + 1] - self._fanout[first]

    def lacking(self, oids: list[bytes]) -> list[bytes]:
        """Those of `oids` that the pack lacks, in their order. Where they are many to the entries
        that begin with the same bytes, 0.1 us each; else as `offset`."""
        firsts = {oid[0] for oid in oids}
        entries = sum(self.count_between(first, first) for first in firsts)
        if entries > AS_MANY * len(oids):
            return [oid for oid in oids if self.offset(oid) is None]
        here: set[bytes] = set()
        for first in firsts:
            here.update(self.between(first, first))
        return list(filterfalse(here.__contains__, oids))

    def has_prefix(self, digits: str) -> bool:
        """Whether the pack has an object whose oid begins with these (at least two) hex digits."""
        least = bytes.fromhex(digits.ljust(40, "0"))
        low, high = self._fanout[least[0]], self._fanout[least[0] + 1]
        end = high
        while low < high:
            middle = low + high >> 1
            at = _OIDS_AT + 20 * middle
            if self._map[at : at + 20] < least:
                low = middle + 1
            else:
                high = middle
        at = _OIDS_AT + 20 * low
        return low < end and self._map[at : at + 20].hex().startswith(digits)

    def _offset_number(self, number: int) -> int:
        at = self._offsets_at + 4 * number
        offset = int.from_bytes(self._map[at : at + 4], "big")
        if offset < _LARGE:
            return offset
        at = self._large_at + 8 * (offset - _LARGE)
        return int.from_bytes(self._map[at : at + 8], "big")

    def oids(self) -> Iterator[bytes]:
        """Every oid, in order."""
        for at in range(_OIDS_AT, self._crcs_at, _OIDS_AT_ONCE):
            yield from split_oids(self._map, at, min(at + _OIDS_AT_ONCE, self._crcs_at))

    def offsets(self) -> list[int]:
        """Every entry's offset, in the order of oids. Fit for many."""
        words = array("I", self._map[self._offsets_at : self._large_at])
        if sys.byteorder == "little":
            words.byteswap()
        return [at if at < _LARGE else self._offset_number(n) for n, at in enumerate(words)]

    def entries(self) -> Iterator[PackEntry]:
        """Every entry, in order of oids. Raises: CorruptData for version 1, which has no CRCs."""
        if not self._has_crcs:
            raise CorruptData("a pack index of version 1 has no CRC-32 of its entries")
        crcs = struct.unpack_from(f">{self._count}I", self._map, self._crcs_at)
        for number, (oid, crc) in enumerate(zip(self.oids(), crcs, strict=True)):
            yield PackEntry(oid, crc, self._offset_number(number))
