"""Large blobs, decompressed: ``STATE/cache/blobs/ab/cdef…``, shared by every worker.

A file there is complete and on the disk, or absent: it is written under another name, synced,
then renamed. Until it is synced only the worker that wrote it knows it, by its temporary name, so
that a power loss cannot leave a file of the right name and the wrong content.

The content is also in a pack, so a blob that was removed here is unpacked again when it is read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from artifactfs.hydration.local.blobs import FileBlob

_TEMPORARY = "tmp-"
_STALE_S = 3600.0
"""Age after which a temporary file belongs to no living writer, in seconds."""
_TOUCH_S = 60.0
"""A file's mtime, which is its last use, is refreshed at most this often."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """One file of the store. `used_at` is in seconds since 1970."""

    path: Path
    size: int
    used_at: float


class LargeBlobStore:
    """Blobs in files of their own. Used from one event loop; the files by many processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._settling: dict[bytes, Path] = {}
        self._counter = 0

    def path_of(self, oid: bytes) -> Path:
        name = oid.hex()
        return self.directory / name[:2] / name[2:]

    def open(self, oid: bytes) -> FileBlob | None:
        """The content of `oid` if it is here. Costs one failed ``open`` (3 µs) if it is not."""
        name = oid.hex()
        path = f"{self.directory}/{name[:2]}/{name[2:]}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._open_settling(oid)
        blob = FileBlob(fd)
        if time.time() - os.fstat(fd).st_mtime > _TOUCH_S:
            with suppress(OSError):  # a file system that became read-only can still be read
                os.utime(fd)
        return blob

    def _open_settling(self, oid: bytes) -> FileBlob | None:
        temporary = self._settling.get(oid)
        if temporary is None:
            return None
        try:
            return FileBlob(os.open(temporary, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:  # renamed a moment ago by the thread that settles it
            try:
                return FileBlob(os.open(self.path_of(oid), os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                return None

    def size(self, oid: bytes) -> int | None:
        try:
            return self.path_of(oid).stat().st_size
        except FileNotFoundError:
            return None

    def adopt(self, oid: bytes, spooled: Path) -> None:
        """Take over the verified content that a pack parser spooled to a file.

        Synchronous: a hard link where both are on one file system, which they are under a state
        root. Readers in this worker see it at once; `settle` makes it durable and public.
        One that two requests brought is kept once. Raises: OSError.
        """
        if oid in self._settling:
            return
        temporary = self.temporary()
        try:
            os.link(spooled, temporary)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            shutil.copyfile(spooled, temporary)
        self._settling[oid] = temporary

    def adopt_temporary(self, oid: bytes, temporary: Path) -> None:
        """Take over a complete, verified file that was written at a path from `temporary`."""
        if oid in self._settling:
            temporary.unlink()
            return
        self._settling[oid] = temporary

    def unsettled(self) -> list[bytes]:
        """What still needs `settle`."""
        return list(self._settling)

    async def settle(self, oid: bytes) -> None:
        """Sync the file of `oid` and give it its name, in a thread. Raises: OSError."""
        temporary = self._settling.get(oid)
        if temporary is None:
            return
        try:
            await trio.to_thread.run_sync(_publish, temporary, self.path_of(oid))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            if self._settling.get(oid) is temporary:
                del self._settling[oid]

    def temporary(self) -> Path:
        """A new path in this store for a file that is being written."""
        self._counter += 1
        return self.directory / f"{_TEMPORARY}{os.getpid()}-{id(self):x}-{self._counter}"

    def files(self) -> Iterator[StoredBlob]:
        """Every complete blob. Walks the directory: call it in a thread."""
        for folder in os.scandir(self.directory):
            if len(folder.name) != 2:
                continue
            with os.scandir(folder.path) as entries:
                for entry in entries:
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield StoredBlob(Path(entry.path), info.st_size, info.st_mtime)

    def total_bytes(self) -> int:
        """Bytes of content in the store. Walks the directory: call it in a thread."""
        return sum(blob.size for blob in self.files())

    def evict(self, excess: int) -> int:
        """Remove least recently used blobs until `excess` bytes are free. Call it in a thread.

        Passes by every blob that any worker has open. Returns the bytes freed.
        """
        freed = 0
        for blob in sorted(self.files(), key=lambda blob: blob.used_at):
            if freed >= excess:
                break
            if _remove_unless_open(blob.path):
                freed += blob.size
        return freed

    def remove_stale(self) -> None:
        """Remove temporary files that a killed worker left. Call it in a thread."""
        oldest = time.time() - _STALE_S
        for path in self.directory.glob(_TEMPORARY + "*"):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                continue


def _publish(temporary: Path, final: Path) -> None:
    fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    final.parent.mkdir(exist_ok=True, mode=0o700)
    os.utime(temporary)
    temporary.rename(final)


def _remove_unless_open(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
