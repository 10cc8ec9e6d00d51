"""Copies blobs into files, and compares files with blobs, piece by piece."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import trio

from artifactfs.hydration.local.blobs import Blob

_PIECE = 1 << 20
_IN_HANDLER = 256 << 10
"""Larger contents are copied in a thread."""


def has_content(path: Path, content: Blob) -> bool:
    """Whether the file at `path` holds the same bytes. Blocks: call it in a thread."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != content.size:
                return False
            pieces = range(0, content.size, _PIECE)
            return all(file.read(_PIECE) == content.read(at, _PIECE) for at in pieces)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def held_open(fd: int) -> Iterator[int]:
    """A descriptor of its own for a thread, since `fd` may be closed meanwhile."""
    own = os.dup(fd)
    try:
        yield own
    finally:
        os.close(own)


async def copy(blob: Blob, fd: int, size: int) -> None:
    """Write the first `size` bytes of `blob` to the file `fd`. Raises: OSError."""
    if size <= _IN_HANDLER:
        _copy_bytes(blob, fd, size)
    else:
        await trio.to_thread.run_sync(_copy_bytes, blob, fd, size)


def _copy_bytes(blob: Blob, fd: int, size: int) -> None:
    offset = 0
    while offset < size:
        piece = memoryview(blob.read(offset, min(_PIECE, size - offset)))
        if not piece:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        while piece:
            written = os.write(fd, piece)
            offset += written
            piece = piece[written:]
