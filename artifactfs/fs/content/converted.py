"""The converted contents of clean files.

What git converts itself is made again whenever it is needed, in memory (1 ms per MB). What a filter
made is kept in ``converted/``, complete or absent: filters take long, may need the network, and may
make something else the next time, while a clean file must not change.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import trio

from artifactfs.damage import DamageReport
from artifactfs.git.checkout.conversion import Conversion
from artifactfs.git.checkout.filters import FilterFailed, Filters
from artifactfs.git.checkout.smudge import to_worktree
from artifactfs.git.objects.database import Oid
from artifactfs.hydration.local import checksums
from artifactfs.hydration.local.blobs import Blob, FileBlob, MemoryBlob
from artifactfs.hydration.local.checksums import CheckedBlob
from artifactfs.system.files import write_all

log = logging.getLogger(__name__)

IN_MEMORY = 8 << 20
"""Larger contents are converted once, and kept in a file."""

_IN_HANDLER = 64 << 10
"""Larger contents are converted in a thread."""

_PIECE = 1 << 16
_DRAFT = ".new"


class ConvertedContents:
    """Makes and keeps converted contents."""

    def __init__(self, directory: Path, filters: Filters, damage: DamageReport) -> None:
        self._damage = damage
        self._directory = directory
        self._filters = filters
        self._making: dict[str, trio.Event] = {}
        with contextlib.suppress(FileNotFoundError):
            for left_by_a_crash in directory.glob(f"*{_DRAFT}"):
                left_by_a_crash.unlink()

    def kept_size(self, oid: Oid, conversion: Conversion, path: bytes) -> int | None:
        """The size of a content that is kept; None: it has to be made. Never waits."""
        if conversion.filter is None:
            return None
        kept = self._open(self._place(oid, conversion, path))
        if kept is None:
            return None
        kept.close()
        return kept.size

    async def open(
        self,
        oid: Oid,
        conversion: Conversion,
        path: bytes,
        open_blob: Callable[[], Awaitable[Blob]],
    ) -> Blob:
        """What git would write to `path` for the blob `oid`, which `open_blob` gets.

        Waits for `open_blob`, and for a filter. Cancelled, it leaves nothing behind. Raises: what
        `open_blob` raises; FilterFailed, where a filter that is required fails; OSError.
        """
        place = self._place(oid, conversion, path)
        while True:
            kept = self._open(place)
            if kept is not None:
                return kept
            making = self._making.get(place.name)
            if making is None:
                break
            await making.wait()
        done = self._making[place.name] = trio.Event()
        try:
            blob = await open_blob()
            try:
                return await self._make(blob, oid, conversion, path, place)
            finally:
                blob.close()
        finally:
            del self._making[place.name]
            done.set()

    def _open(self, place: Path) -> Blob | None:
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        sums = checksums.load(place)
        if sums is None:  # it was made by a version that kept none
            return FileBlob(fd)
        size = os.fstat(fd).st_size
        if size == sums.size:
            return CheckedBlob(fd, place, sums, self._drop)
        os.close(fd)
        self._drop(place, f"has {size} bytes in place of {sums.size}")
        return None

    def _drop(self, place: Path, what: str) -> None:
        place.unlink(missing_ok=True)
        checksums.sums_path(place).unlink(missing_ok=True)
        self._damage.mended(place, what, "it was removed, and the filter makes it again")

    def _place(self, oid: Oid, conversion: Conversion, path: bytes) -> Path:
        """Filters are told the path, so their output may depend on it."""
        key = repr((oid, conversion, path if conversion.filter else b""))
        return self._directory / hashlib.sha256(key.encode()).hexdigest()

    async def _make(
        self, blob: Blob, oid: Oid, conversion: Conversion, path: bytes, place: Path
    ) -> Blob:
        content = None
        if conversion.eol or conversion.ident or conversion.encoding:
            content = await _convert(blob, oid, conversion)
        if conversion.filter is None:
            assert content is not None
            if len(content) <= IN_MEMORY:
                return MemoryBlob(content)
        source: Blob = blob if content is None else MemoryBlob(content)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        draft = place.with_name(place.name + _DRAFT)
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if conversion.filter is None or not await self._filter(
                conversion.filter, path, oid, source, fd
            ):
                os.ftruncate(fd, 0)
                os.lseek(fd, 0, os.SEEK_SET)
                for piece in _pieces(source):
                    write_all(fd, piece)
            await trio.to_thread.run_sync(_seal, fd, place)
            os.rename(draft, place)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        made = self._open(place)
        assert made is not None
        return made

    async def _filter(self, name: str, path: bytes, oid: Oid, source: Blob, fd: int) -> bool:
        """Write what the filter makes to `fd`. False: it makes nothing of it, so that git, too,
        would go on without it. Raises: FilterFailed."""
        driver = await self._filters.driver(name)
        if not driver.smudge and not driver.process:
            return False
        try:
            await self._filters.smudge(
                driver, path, oid, _pieces(source), lambda piece: write_all(fd, piece)
            )
        except FilterFailed as error:
            log.warning("%s: filter %s failed: %s", os.fsdecode(path), name, error.message)
            if driver.required:
                raise
            return False
        return True


async def _convert(blob: Blob, oid: Oid, conversion: Conversion) -> bytes:
    def convert() -> bytes:
        return to_worktree(b"".join(_pieces(blob)), oid, conversion)

    return convert() if blob.size <= _IN_HANDLER else await trio.to_thread.run_sync(convert)


def _seal(fd: int, place: Path) -> None:
    """Before the file gets its name: it is on the disk, and has checksums."""
    os.fsync(fd)
    checksums.save(place, checksums.make(fd))


def _pieces(blob: Blob) -> Iterator[bytes]:
    offset = 0
    while offset < blob.size:
        piece = blob.read(offset, _PIECE)
        if not piece:
            raise OSError(5, "a blob is shorter than it says")
        yield piece
        offset += len(piece)
