"""Receiving a pack without a disk: what a reader gets while the disk of the cache is full."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from artifactfs.git.pack.parser import PackedObject, PackParser
from artifactfs.git.pack.store import parse_pack

MAX_BYTES = 32 << 20
"""Of content at a time. A larger blob cannot be read while the disk is full."""
_NOWHERE = Path("/dev/null/spool")


async def receive(
    chunks: AsyncIterator[bytes], *, on_object: Callable[[PackedObject], None]
) -> None:
    """Hand each object of the pack to `on_object`, with its content in `data`; keep nothing.

    Waits for `chunks` as long as they take. Raises: CorruptData, OSError (ENOSPC: an object of
    more than `MAX_BYTES`), and whatever `chunks` or `on_object` raise.
    """

    def hand_out(objects: list[PackedObject]) -> None:
        for packed in objects:
            on_object(packed)

    fd = os.memfd_create("artifactfs-pack", os.MFD_CLOEXEC)
    try:
        parser = PackParser(fd, spool_dir=_NOWHERE, spool_bytes=MAX_BYTES)
        try:
            await parse_pack(parser, chunks, hand_out)
        except NotADirectoryError as error:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        finally:
            parser.close()
    finally:
        os.close(fd)
