"""Large blobs, decompressed: ``STATE/cache/blobs/ab/cdef…``, shared by every worker.

A file there is complete and on the disk, or absent: it is written under another name, synced,
then renamed. Until it is synced only the worker that wrote it knows it, by its temporary name, so
that a power loss cannot leave a file of the right name and the wrong content.

The content is also in a pack, so a blob that was removed here is unpacked again when it is read.

What is opened is compared with the checksums beside it (`checksums.py`): the size at each opening,
each block when it is read for the first time. A file without them is compared with its oid as a
whole before it is used (`verify`). What is damaged is removed at once, and so unpacked or fetched
again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from artifactfs.damage import DamageReport
from artifactfs.hydration.local import checksums
from artifactfs.hydration.local.blobs import FileBlob
from artifactfs.hydration.local.checksums import CheckedBlob, Checksums
from artifactfs.system.locks import try_lock

_TEMPORARY = "tmp-"
_NAME_LENGTH = 38
_SUMS_KEPT = 256
_PIECE = 1 << 20
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

    def __init__(self, directory: Path, damage: DamageReport | None = None) -> None:
        self.directory = directory
        self._damage = DamageReport() if damage is None else damage
        self._sums: OrderedDict[bytes, tuple[int, Checksums]] = OrderedDict()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._unpublished: dict[bytes, Path] = {}
        self._counter = 0

    def path_of(self, oid: bytes) -> Path:
        name = oid.hex()
        return self.directory / name[:2] / name[2:]

    def open(self, oid: bytes) -> FileBlob | int | None:
        """The content of `oid` if it is here; its size where `verify` has to read it first. Costs
        one failed ``open`` (3 µs) if it is not here."""
        name = oid.hex()
        path = f"{self.directory}/{name[:2]}/{name[2:]}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._open_unpublished(oid)
        try:
            found = os.fstat(fd)
            sums = self._sums_of(oid, path, found)
        except BaseException:
            os.close(fd)
            raise
        if sums is None or sums.size != found.st_size:
            os.close(fd)
            if sums is None:
                return found.st_size
            self.drop(Path(path), f"has {found.st_size} bytes in place of {sums.size}")
            return None
        blob = CheckedBlob(fd, Path(path), sums, self.drop)
        if time.time() - found.st_mtime > _TOUCH_S:
            with suppress(OSError):  # a file system that became read-only can still be read
                os.utime(fd)
        return blob

    def _sums_of(self, oid: bytes, path: str, found: os.stat_result) -> Checksums | None:
        kept = self._sums.get(oid)
        if kept is not None and kept[0] == found.st_ino:
            self._sums.move_to_end(oid)
            return kept[1]
        sums = checksums.load(path)
        if sums is not None:
            self._keep_sums(oid, found.st_ino, sums)
        return sums

    def _keep_sums(self, oid: bytes, inode: int, sums: Checksums) -> None:
        self._sums[oid] = inode, sums
        self._sums.move_to_end(oid)
        if len(self._sums) > _SUMS_KEPT:
            self._sums.popitem(last=False)

    def drop(self, path: Path, what: str) -> None:
        """Remove a damaged file; whoever has it open, has it until its end."""
        path.unlink(missing_ok=True)
        checksums.sums_path(path).unlink(missing_ok=True)
        self._damage.mended(path, what, "it was removed, and is unpacked or fetched again")

    def verify(self, oid: bytes) -> bool:
        """Compare a file that has no checksums with its oid, and give it some; remove it where
        it is damaged. True where it can be opened now. Reads all of it: call it in a thread.
        """
        path = self.path_of(oid)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if not _is_blob(fd, oid):
                self.drop(path, "does not match its name, the hash of its content")
                return False
            sums = checksums.make(fd)
            self._keep_sums(oid, os.fstat(fd).st_ino, sums)
            with suppress(OSError):  # a full disk: it is compared again by the next process
                checksums.save(path, sums)
            return True
        finally:
            os.close(fd)

    def scrub(self, max_bytes: int, older_than_s: float) -> int:
        """Compare the files that were compared least recently, up to `max_bytes` of them, and
        remove what is damaged. Returns the bytes read. Call it in a thread. Raises: OSError.

        When a file was compared last is the mtime of its checksums.
        """
        due = []
        for blob in self.files():
            with suppress(FileNotFoundError):
                age = time.time() - checksums.sums_path(blob.path).stat().st_mtime
                if age > older_than_s:
                    due.append((-age, blob))
        done = 0
        for _, blob in sorted(due, key=lambda item: item[0]):
            if done >= max_bytes:
                break
            with suppress(FileNotFoundError):
                self._scrub(blob.path)
            done += blob.size
        return done

    def _scrub(self, path: Path) -> None:
        sums = checksums.load(path)
        if sums is None:  # `verify` does it, where it is opened
            checksums.sums_path(path).unlink(missing_ok=True)
            return
        with path.open("rb", buffering=0) as file:
            wrong = sums.first_wrong(file.fileno())
        if wrong is not None:
            self.drop(path, f"does not match its checksum at byte {wrong * checksums.BLOCK}")
        else:
            os.utime(checksums.sums_path(path))

    def _open_unpublished(self, oid: bytes) -> FileBlob | None:
        temporary = self._unpublished.get(oid)
        if temporary is None:
            return None
        try:
            return FileBlob(os.open(temporary, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:  # renamed a moment ago by the thread that publishes it
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
        root. Readers in this worker see it at once; `publish` makes it durable and public.
        One that two requests fetched is kept once. Raises: OSError.
        """
        if oid in self._unpublished:
            return
        temporary = self.temporary()
        try:
            os.link(spooled, temporary)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            shutil.copyfile(spooled, temporary)
        self._unpublished[oid] = temporary

    def adopt_temporary(self, oid: bytes, temporary: Path) -> None:
        """Take over a complete, verified file that was written at a path from `temporary`."""
        if oid in self._unpublished:
            temporary.unlink()
            return
        self._unpublished[oid] = temporary

    def unpublished(self) -> list[bytes]:
        """What still needs `publish`."""
        return list(self._unpublished)

    async def publish(self, oid: bytes) -> None:
        """Sync the file of `oid` and give it its name, in a thread. Raises: OSError."""
        temporary = self._unpublished.get(oid)
        if temporary is None:
            return
        try:
            await trio.to_thread.run_sync(_publish, temporary, self.path_of(oid))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            if self._unpublished.get(oid) is temporary:
                del self._unpublished[oid]

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
                    if len(entry.name) != _NAME_LENGTH:
                        continue
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
        for path in self.directory.glob(f"*/*{checksums.SUFFIX}"):
            if not path.with_suffix("").exists():
                path.unlink(missing_ok=True)


def _is_blob(fd: int, oid: bytes) -> bool:
    digest = hashlib.sha1(b"blob %d\0" % os.fstat(fd).st_size, usedforsecurity=False)
    offset = 0
    while piece := os.pread(fd, _PIECE, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.digest() == oid


def _publish(temporary: Path, final: Path) -> None:
    fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        final.parent.mkdir(exist_ok=True, mode=0o700)
        with suppress(OSError):  # without them it is compared as a whole
            checksums.save(final, checksums.make(fd))
    finally:
        os.close(fd)
    os.utime(temporary)
    temporary.rename(final)


def _remove_unless_open(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not try_lock(fd):
            return False
        path.unlink(missing_ok=True)
        checksums.sums_path(path).unlink(missing_ok=True)
        return True
    finally:
        os.close(fd)
