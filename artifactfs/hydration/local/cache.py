"""The bounded memory of small blobs that were just received or read."""

from __future__ import annotations

from collections import OrderedDict

from artifactfs.git.pack.parser import SPOOL_BYTES

DEFAULT_MEMORY = 16 << 20
"""Bytes. A worker with it stays far under 120 MB RSS; a directory scan fits into it."""

LARGE_BLOB = SPOOL_BYTES + 1
"""Blobs of at least this many bytes are kept decompressed on disk and never in memory.

They are those that the pack parser spools to a file. A read of 128 KB of a 1 MB blob out of a pack
inflates all of it (3 ms with the interpreter lock held); below that, inflating once and keeping it
is cheaper than a file, a descriptor and a lock.
"""

_ENTRY_OVERHEAD = 200
"""Bytes that a dictionary entry, an oid and a bytes header cost besides the content."""


class MemoryCache:
    """Contents by oid, least recently used out first. For one event loop, not thread-safe."""

    __slots__ = ("_bytes", "_entries", "max_bytes")

    def __init__(self, max_bytes: int = DEFAULT_MEMORY) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """What the entries hold, with their overhead."""
        return self._bytes

    def get(self, oid: bytes) -> bytes | None:
        data = self._entries.get(oid)
        if data is not None:
            self._entries.move_to_end(oid)
        return data

    def put(self, oid: bytes, data: bytes) -> None:
        """Keep `data`, unless it alone would push out a quarter of the others."""
        cost = len(data) + _ENTRY_OVERHEAD
        if cost > self.max_bytes // 4 or oid in self._entries:
            return
        self._entries[oid] = data
        self._bytes += cost
        while self._bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= len(dropped) + _ENTRY_OVERHEAD

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0
