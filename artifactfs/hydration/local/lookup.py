"""The blobs that are here: in memory, in files of their own, or in the object database."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import trio

from artifactfs.errors import CorruptData
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.hydration.errors import HydrationFailed, disk_failure
from artifactfs.hydration.local import memory_only
from artifactfs.hydration.local.blobs import Blob, MemoryBlob
from artifactfs.hydration.local.cache import LARGE_BLOB, MemoryCache
from artifactfs.hydration.local.large_blobs import LargeBlobStore


class LocalBlobs:
    """Opens what is here. `unpacked` is told when a large blob needs to be settled."""

    def __init__(
        self,
        *,
        memory: MemoryCache,
        large: LargeBlobStore,
        odb: ObjectDatabase,
        unpacked: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._large = large
        self._odb = odb
        self._unpacked = unpacked
        self._unpacking: dict[bytes, trio.Event] = {}

    def open(self, oid: bytes) -> Blob | None:
        """The content of `oid` if it can be read now; verified. Never waits.

        None also for a large blob that is only in a pack: see `open_or_unpack`. Raises:
        HydrationFailed where `oid` is no blob.
        """
        data = self._memory.get(oid)
        if data is not None:
            return MemoryBlob(data)
        large = self._large.open(oid)
        if large is not None:
            return large
        size = self._odb.header_size(oid)
        if size is None or size >= LARGE_BLOB:
            return None
        try:
            data = self._odb.blob(oid)
        except CorruptData as error:
            raise HydrationFailed(error.message) from error
        if data is None:
            return None
        self._memory.put(oid, data)
        return MemoryBlob(data)

    async def open_or_unpack(self, oid: bytes) -> Blob | None:
        """As `open`, large blobs in packs included: unpacks them in a thread.

        Where the disk is full, into memory. Raises: HydrationFailed (too large for that).
        """
        while True:
            blob = self.open(oid)
            if blob is not None:
                return blob
            size = self._odb.header_size(oid)
            if size is None or size < LARGE_BLOB:
                return None
            unpacking = self._unpacking.get(oid)
            if unpacking is None:
                return await self._unpack(oid)
            await unpacking.wait()

    async def _unpack(self, oid: bytes) -> Blob | None:
        self._unpacking[oid] = trio.Event()
        temporary = self._large.temporary()
        size: int | None = None
        try:
            size = await trio.to_thread.run_sync(_export, self._odb, oid, temporary)
            if size is None:
                return None
            self._large.adopt_temporary(oid, temporary)
            self._unpacked()
            return self._large.open(oid)
        except OSError as error:
            failure = disk_failure(error)
            in_memory = await self._in_memory(oid) if failure.disk_full else None
            if in_memory is None:
                raise failure from error
            return in_memory
        finally:
            if size is None:
                temporary.unlink(missing_ok=True)
            self._unpacking.pop(oid).set()

    async def _in_memory(self, oid: bytes) -> Blob | None:
        size = self._odb.header_size(oid)
        if size is None or size > memory_only.MAX_BYTES:
            return None
        data = await trio.to_thread.run_sync(self._odb.blob, oid)
        return None if data is None else MemoryBlob(data)


def _export(odb: ObjectDatabase, oid: bytes, path: Path) -> int | None:
    """Write a blob of a pack to a new file at `path`; its size, None where it is not there."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return odb.export_blob(oid, fd)
    finally:
        os.close(fd)
