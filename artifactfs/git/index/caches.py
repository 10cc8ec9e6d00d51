"""Git's caches in the index, read, moved to another tree, and written again.

A switch changes some directories of a tree that git knows everything about. What it knows of the
rest stays: TREE (oid of every directory), UNTR (what is untracked in every directory) and FSMN
(which entries need no `stat`). The formats are those of ``gitformat-index``; `extensions`
writes them for a new mount and tells what was measured.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from artifactfs.errors import CorruptData
from artifactfs.git.index.extensions import encode_ewah, extension
from artifactfs.git.pack.format import Oid, encode_base_distance

_STAT = 36
_HEAD = 2 * _STAT + 4 + 2 * 20
"""Stat data of the two exclude files, `dir_flags`, and the hashes of both files."""


@dataclass(slots=True)
class CachedTree:
    """A directory in TREE. `entries` counts the index entries below it; -1: it is not known, and
    neither is `oid`."""

    entries: int
    oid: Oid
    below: dict[bytes, CachedTree] = field(default_factory=dict)


@dataclass(slots=True)
class UntrackedDirectory:
    """A directory in UNTR; `stat` only where `valid`."""

    name: bytes
    untracked: list[bytes]
    below: dict[bytes, UntrackedDirectory] = field(default_factory=dict)
    valid: bool = False
    check_only: bool = False
    stat: bytes = b""
    ignore: Oid | None = None

    def distrust(self) -> None:
        """Let git read the directory again; what is below stays."""
        self.valid = False
        self.untracked = []

    def distrust_all(self) -> None:
        """The same for everything below, too."""
        for directory in _depth_first(self):
            directory.distrust()


@dataclass(slots=True)
class UntrackedCache:
    """UNTR. `head` is what git compares as a whole, kept as it is; no root: nothing is cached."""

    ident: bytes
    head: bytes
    exclude_name: bytes
    root: UntrackedDirectory | None

    def distrust(self, path: bytes, *, below: bool = False) -> None:
        """What git does with a path that its fsmonitor names: every directory above it is read
        again; with `below`, `path` is a directory, and everything in it is read again as well."""
        directory = self.root
        for name in path.split(b"/"):
            if directory is None:
                return
            directory.distrust()
            directory = directory.below.get(name)
        if directory is not None and below:
            directory.distrust_all()

    def find(self, path: bytes) -> UntrackedDirectory | None:
        """The directory at `path` (empty: the root)."""
        directory = self.root
        for name in path.split(b"/") if path else ():
            if directory is None:
                return None
            directory = directory.below.get(name)
        return directory


@dataclass(slots=True)
class Fsmonitor:
    """FSMN: a token, and the numbers of the entries that are not trusted."""

    token: str
    untrusted: set[int]


def decode_cache_tree(payload: bytes) -> CachedTree:
    """Raises: CorruptData."""
    position = 0

    def read() -> tuple[bytes, CachedTree]:
        nonlocal position
        nul = payload.index(b"\0", position)
        line = payload.index(b"\n", nul)
        name = payload[position:nul]
        count, _, children = payload[nul + 1 : line].partition(b" ")
        position = line + 1
        node = CachedTree(int(count), b"")
        if node.entries >= 0:
            node.oid = payload[position : position + 20]
            position += 20
        for _ in range(int(children)):
            child, below = read()
            node.below[child] = below
        return name, node

    try:
        return read()[1]
    except ValueError:
        raise CorruptData("the cache tree of the index is malformed") from None


def encode_cached_tree(root: CachedTree) -> bytes:
    """The inverse of `decode_cache_tree`, as an extension."""
    out: list[bytes] = []
    stack = [(b"", root)]
    while stack:
        name, node = stack.pop()
        out.append(b"%b\0%d %d\n" % (name, node.entries, len(node.below)))
        if node.entries >= 0:
            out.append(node.oid)
        stack.extend(reversed(node.below.items()))
    return extension(b"TREE", b"".join(out))


def decode_fsmonitor(payload: bytes) -> Fsmonitor:
    """Raises: CorruptData, also for version 1, whose token was a time."""
    try:
        if struct.unpack_from(">L", payload)[0] != 2:
            raise CorruptData("this version of the fsmonitor extension is not known")
        nul = payload.index(b"\0", 4)
        bits, _ = decode_ewah(payload, nul + 5)
        return Fsmonitor(payload[4:nul].decode("ascii"), set(bits))
    except (struct.error, ValueError):
        raise CorruptData("the fsmonitor extension is malformed") from None


def decode_untracked_cache(payload: bytes) -> UntrackedCache:
    """Raises: CorruptData."""
    try:
        return _decode_untracked(payload)
    except (struct.error, ValueError, IndexError):
        raise CorruptData("the untracked cache is malformed") from None


def _decode_untracked(payload: bytes) -> UntrackedCache:
    size, position = _varint(payload, 0)
    ident = payload[position : position + size]
    position += size
    head = payload[position : position + _HEAD]
    position += _HEAD
    nul = payload.index(b"\0", position)
    cache = UntrackedCache(ident, head, payload[position:nul], None)
    count, position = _varint(payload, nul + 1)
    if not count:
        return cache
    order: list[UntrackedDirectory] = []
    cache.root, position = _decode_directory(payload, position, order)
    if len(order) != count:
        raise CorruptData("the untracked cache does not hold what it says")
    valid, position = decode_ewah(payload, position)
    check_only, position = decode_ewah(payload, position)
    ignoring, position = decode_ewah(payload, position)
    for number in valid:
        order[number].valid = True
        order[number].stat = payload[position : position + _STAT]
        position += _STAT
    for number in check_only:
        order[number].check_only = True
    for number in ignoring:
        order[number].ignore = payload[position : position + 20]
        position += 20
    return cache


def _decode_directory(
    payload: bytes, position: int, order: list[UntrackedDirectory]
) -> tuple[UntrackedDirectory, int]:
    files, position = _varint(payload, position)
    folders, position = _varint(payload, position)
    nul = payload.index(b"\0", position)
    directory = UntrackedDirectory(payload[position:nul], [])
    order.append(directory)
    position = nul + 1
    for _ in range(files):
        nul = payload.index(b"\0", position)
        directory.untracked.append(payload[position:nul])
        position = nul + 1
    for _ in range(folders):
        child, position = _decode_directory(payload, position, order)
        directory.below[child.name] = child
    return directory, position


def encode_untracked(cache: UntrackedCache) -> bytes:
    """The inverse of `decode_untracked_cache`, as an extension."""
    out = [_encode_varint(len(cache.ident)), cache.ident, cache.head, cache.exclude_name, b"\0"]
    if cache.root is None:
        return extension(b"UNTR", b"".join([*out, b"\0"]))
    order = list(_depth_first(cache.root))
    out.append(_encode_varint(len(order)))
    for directory in order:
        out += [_encode_varint(len(directory.untracked)), _encode_varint(len(directory.below))]
        out += [directory.name, b"\0"]
        out += [name + b"\0" for name in directory.untracked]
    count = len(order)
    out.append(encode_ewah((n for n, one in enumerate(order) if one.valid), count))
    out.append(encode_ewah((n for n, one in enumerate(order) if one.check_only), count))
    out.append(encode_ewah((n for n, one in enumerate(order) if one.ignore), count))
    out += [one.stat for one in order if one.valid]
    out += [one.ignore for one in order if one.ignore]
    return extension(b"UNTR", b"".join([*out, b"\0"]))


def _depth_first(root: UntrackedDirectory) -> Iterator[UntrackedDirectory]:
    stack = [root]
    while stack:
        directory = stack.pop()
        yield directory
        stack.extend(reversed(directory.below.values()))


def decode_ewah(payload: bytes, position: int) -> tuple[list[int], int]:
    """The numbers of the set bits, ascending, and the position after the bitmap."""
    _size, count = struct.unpack_from(">LL", payload, position)
    words = struct.unpack_from(f">{count}Q", payload, position + 8)
    bits: list[int] = []
    at = bit = 0
    while at < count:
        marker = words[at]
        run = (marker >> 1) & 0xFFFFFFFF
        literals = marker >> 33
        if marker & 1:
            bits.extend(range(bit, bit + 64 * run))
        bit += 64 * run
        for word in words[at + 1 : at + 1 + literals]:
            while word:
                low = word & -word
                bits.append(bit + low.bit_length() - 1)
                word ^= low
            bit += 64
        at += 1 + literals
    return [number for number in bits if number < _size], position + 12 + 8 * count


def _varint(payload: bytes, position: int) -> tuple[int, int]:
    byte = payload[position]
    value = byte & 0x7F
    while byte & 0x80:
        position += 1
        byte = payload[position]
        value = (value + 1 << 7) | (byte & 0x7F)
    return value, position + 1


_SMALL = [bytes((value,)) for value in range(128)]


def _encode_varint(value: int) -> bytes:
    return _SMALL[value] if value < 128 else encode_base_distance(value)
