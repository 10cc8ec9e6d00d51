"""The blobs that are here: in memory, in files of their own, or in the object database."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import trio

from artifactfs.errors import CorruptData
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.pack.parser import PackedObject
from artifactfs.hydration.errors import HydrationFailed, disk_failure
from artifactfs.hydration.local import memory_only
from artifactfs.hydration.local.blobs import Blob, FileBlob, Found, InPack, MemoryBlob
from artifactfs.hydration.local.cache import LARGE_BLOB, MemoryCache
from artifactfs.hydration.local.large_blobs import LargeBlobStore
from artifactfs.hydration.local.sizes import SizeStore

log = logging.getLogger(__name__)

_MANY_SIZES = 4_096
"""Until then they wait for upkeep, 200 bytes each."""

IN_LOOP = 128 << 10
"""Bytes from which on a blob is inflated and hashed in a thread: below it takes 1 ms at most."""


class LocalBlobs:
    """Finds and opens what is here. `unpacked` is told when a large blob needs to be published."""

    def __init__(
        self,
        *,
        memory: MemoryCache,
        large: LargeBlobStore,
        sizes: SizeStore,
        odb: ObjectDatabase,
        unpacked: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._large = large
        self._sizes = sizes
        self._odb = odb
        self._unpacked = unpacked
        self._unpacking: dict[bytes, trio.Event] = {}

    def find(self, oid: bytes) -> Found:
        """The one answer to "is this blob here, and where?". Never waits; verified.

        Raises: HydrationFailed where `oid` is no blob.
        """
        data = self._memory.get(oid)
        if data is not None:
            return MemoryBlob(data)
        large = self._large.open(oid)
        if large is not None:
            return InPack(large) if isinstance(large, int) else large
        try:
            found = self._odb.small_blob(oid, IN_LOOP)
        except CorruptData as error:
            raise HydrationFailed(error.message) from error
        if found is None:
            return None
        if isinstance(found, int):
            return InPack(found)
        self._memory.put(oid, found)
        return MemoryBlob(found)

    def missing(self, oids: list[bytes]) -> list[bytes]:
        """Those of `oids` that no pack has, in their order: 2 µs each."""
        return self._odb.missing(oids)

    def size_of(self, oid: bytes) -> int | None:
        """The size of a blob, here or not; None where it is not known."""
        return self._sizes.get(oid)

    def note_size(self, oid: bytes, size: int) -> None:
        self._sizes.put(oid, size)

    async def save_sizes(self) -> None:
        """Write the sizes down that were noted, where they are many. Waits for the disk."""
        if self._sizes.unsaved > _MANY_SIZES:
            try:
                await self._sizes.flush()
            except sqlite3.Error as error:
                log.warning("sizes could not be written: %s", error)

    def keep(self, packed: PackedObject, *, in_memory: bool) -> None:
        """Have a blob that was just received here before its pack is: a large one in its file, a
        small one if it is to be kept `in_memory`. Raises: OSError."""
        if packed.spooled is not None:
            self._large.adopt(packed.oid, packed.spooled)
        elif packed.data is not None and in_memory:
            self._memory.put(packed.oid, packed.data)

    async def open(self, oid: bytes, found: Found) -> Blob | None:
        """The content of what `find` found. None: it is not here, or not any more.

        Reads packs in a thread, large blobs into a file; where the disk is full, into memory.
        Raises: HydrationFailed (too large for that, or no blob).
        """
        while isinstance(found, InPack):
            unpacking = self._unpacking.get(oid)
            if unpacking is None:
                return await self._unpack(oid, found.size)
            await unpacking.wait()
            found = self.find(oid)
        return found

    async def _unpack(self, oid: bytes, size: int) -> Blob | None:
        self._unpacking[oid] = trio.Event()
        try:
            if size < LARGE_BLOB:
                return await self._into_memory(oid)
            return await self._into_file(oid)
        finally:
            self._unpacking.pop(oid).set()

    async def _into_memory(self, oid: bytes) -> Blob | None:
        try:
            data = await trio.to_thread.run_sync(self._odb.blob, oid)
        except CorruptData as error:
            raise HydrationFailed(error.message) from error
        if data is None:
            return None
        self._memory.put(oid, data)
        return MemoryBlob(data)

    async def _into_file(self, oid: bytes) -> Blob | None:
        verify, large = self._large.verify, self._large
        if large.size(oid) is not None and await trio.to_thread.run_sync(verify, oid):
            opened = large.open(oid)
            if isinstance(opened, FileBlob):
                return opened
        temporary = self._large.temporary()
        size: int | None = None
        try:
            size = await trio.to_thread.run_sync(_export, self._odb, oid, temporary)
            if size is None:
                return None
            self._large.adopt_temporary(oid, temporary)
            self._unpacked()
            opened = self._large.open(oid)
            return opened if isinstance(opened, FileBlob) else None
        except OSError as error:
            failure = disk_failure(error)
            in_memory = await self._without_disk(oid) if failure.disk_full else None
            if in_memory is None:
                raise failure from error
            return in_memory
        finally:
            if size is None:
                temporary.unlink(missing_ok=True)

    async def _without_disk(self, oid: bytes) -> Blob | None:
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
