"""Content of one blob, ready to be read without waiting for anything but the local disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from artifactfs.system.locks import try_lock


class Blob(Protocol):
    """The whole content of one Git blob. `size` is in bytes."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; shorter only at the end. Raises: OSError."""

    def close(self) -> None:
        """Let go of the content. Safe to call twice."""


class MemoryBlob:
    """A small blob in memory. Any number of readers share the same bytes."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, size: int) -> bytes:
        if offset == 0 and size >= len(self._data):
            return self._data
        return self._data[offset : offset + size]

    def close(self) -> None:
        """Nothing to let go of."""


class FileBlob:
    """A large blob in a file of its own, read by ``pread``.

    Holds a shared ``flock`` on the file, so that eviction by any process under the state root
    passes it by while it is open. Owns `fd`, also when the constructor raises.
    """

    __slots__ = ("_fd", "_size")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            self._size = os.fstat(fd).st_size
            # An evictor that has the lock at this moment unlinks the file: the descriptor stays
            # good, so there is nothing to wait for.
            try_lock(fd, shared=True)
        except OSError:
            self.close()
            raise

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        wanted = min(size, self._size - offset)
        if len(data) >= wanted:
            return data
        return self._read_on(data, offset, wanted)

    def _read_on(self, data: bytes, offset: int, wanted: int) -> bytes:
        """`pread` may stop early (a signal, 2 GB at a time): go on until the end."""
        parts = [data]
        have = len(data)
        while have < wanted:
            part = os.pread(self._fd, wanted - have, offset + have)
            if not part:
                break
            parts.append(part)
            have += len(part)
        return b"".join(parts)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class InPack:
    """Where a blob is: in a pack, or in a file that was not compared with its oid yet, and of a
    `size` that takes too long for the event loop."""

    size: int


Found = Blob | InPack | None
"""What is known of a blob after one look: it is in memory or in a file (or was so small that it
was read from its pack), it is in a pack, or it is absent. True until the next await."""


@dataclass(frozen=True, slots=True)
class ReadContext:
    """Who reads what: `path` in the tree, `trees` the clean trees of the directories above it,
    nearest first, and the reading process."""

    path: bytes = b""
    trees: tuple[bytes, ...] = ()
    pid: int = 0
