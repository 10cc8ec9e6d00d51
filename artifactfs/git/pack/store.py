"""The shared object directory: packs of hydrated objects, written by us, read by every git.

A pack is published whole or not at all: it is written and verified in a directory of its own
under ``tmp/``, then renamed into ``pack/``: ``.pack``, ``.promisor`` (without it `git gc` would
explode the pack into loose objects), and ``.idx`` last, because a pack exists for git once its
index does. Several processes may use one directory: whatever removes packs holds ``store.lock``,
and a writer's temporary directory carries a lock that the kernel drops when the process dies.

How recently a pack was used is the mtime of its ``.pack`` file.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from artifactfs.errors import CorruptData
from artifactfs.git.command import GitFailed
from artifactfs.git.pack import format as packformat
from artifactfs.git.pack.format import Oid
from artifactfs.git.pack.index import PackIndex, encode_index
from artifactfs.git.pack.index_pack import IndexedObject, list_objects, write_index
from artifactfs.git.pack.merge import merge_packs
from artifactfs.git.pack.parser import (
    NO_LIMITS,
    SPOOL_BYTES,
    PackedObject,
    PackLimits,
    PackParser,
)
from artifactfs.git.pack.reader import write_bytes
from artifactfs.system.locks import locked, locked_at_once, try_lock

log = logging.getLogger(__name__)

FEED_BYTES = 1 << 15
"""Packs are parsed this many bytes at a time, with a checkpoint after each (1 to 2 ms)."""

CONSOLIDATED_BYTES = 64 << 20
"""Small packs are put together up to this size; eviction deletes whole packs."""

FAN_IN = 8
"""Packs of one size that are put together at once: at most some 40 small packs ever exist."""

ABANDONED_S = 60.0
"""Temporary files younger than this are left alone even where nobody seems to own them."""


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What came in one pack. `name` is ``pack-<hex>``, "" where the pack was empty.

    `missing` are the expected oids that the pack did not have.
    """

    name: str
    objects: int
    bytes: int
    missing: frozenset[Oid]


EMPTY = PackSummary("", 0, 0, frozenset())
"""Of a pack that had nothing, and was not kept."""


@dataclass(frozen=True, slots=True)
class PackFile:
    """A published pack: `bytes` with its index, `used` is the time of last use (s since 1970)."""

    name: str
    path: Path
    bytes: int
    used: float


async def parse_pack(
    parser: PackParser,
    chunks: AsyncIterator[bytes],
    hand_out: Callable[[list[PackedObject]], None],
) -> None:
    """Feed all of `chunks` to `parser`; the event loop is never held for more than some 4 ms.

    Waits for `chunks` as long as they take. Raises: CorruptData, OSError (no space), and whatever
    `chunks` or `hand_out` raise.
    """
    async for chunk in chunks:
        for start in range(0, len(chunk), FEED_BYTES):
            hand_out(parser.feed(chunk[start : start + FEED_BYTES]))
            await trio.lowlevel.checkpoint()
            while parser.pending or parser.deferred:
                if parser.deferred:
                    hand_out(await trio.to_thread.run_sync(parser.resolve_deferred))
                else:
                    hand_out(parser.feed(b""))
                    await trio.lowlevel.checkpoint()
    parser.finish()


def _parse(parser: PackParser, fd: int) -> Iterator[PackedObject]:
    """Feed the file `fd` to `parser`. Raises: CorruptData, OSError."""
    position = 0
    while chunk := os.pread(fd, FEED_BYTES, position):
        position += len(chunk)
        yield from parser.feed(chunk)
        while parser.pending or parser.deferred:
            yield from parser.resolve_deferred() if parser.deferred else parser.feed(b"")


class PackStore:
    """The packs of one object directory, which is created where it is not there.

    Methods that are not async do file I/O: call those that change or read much in a thread.
    """

    def __init__(self, objects_dir: Path, *, spool_bytes: int = SPOOL_BYTES) -> None:
        self.objects_dir = objects_dir
        self._packs = objects_dir / "pack"
        self._tmp = objects_dir / "tmp"
        self._spool_bytes = spool_bytes
        for directory in (self._packs, self._tmp, objects_dir / "info"):
            directory.mkdir(parents=True, exist_ok=True)

    async def ingest(
        self,
        chunks: AsyncIterator[bytes],
        *,
        on_object: Callable[[PackedObject], None] | None = None,
        expected: Collection[Oid] = (),
        limits: PackLimits = NO_LIMITS,
    ) -> PackSummary:
        """Store the pack that `chunks` are, and hand each object to `on_object` as it completes.

        An object is right when it is handed out, whatever becomes of the pack. A receiver of a
        `spooled` file may rename it away during the call; it is deleted otherwise. Nothing is
        published unless the whole pack is valid. Where `chunks` fails or this is cancelled, the
        objects that are whole by then are published as a pack of their own, so that a bad line
        makes progress; nothing else is left behind. Waits for `chunks` as long as they take.
        Raises: CorruptData, OSError (no space), and whatever `chunks` or `on_object` raise.
        """
        missing = set(expected)

        def hand_out(objects: list[PackedObject]) -> None:
            for item in objects:
                missing.discard(item.oid)
                if on_object is not None:
                    on_object(item)

        with _incoming(self._tmp) as (directory, fd):
            parser = PackParser(
                fd, spool_dir=directory, spool_bytes=self._spool_bytes, limits=limits
            )
            try:
                await parse_pack(parser, chunks, hand_out)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._rescue, directory, fd, parser)
                raise
            finally:
                parser.close()
            if not parser.count:
                return replace(EMPTY, missing=frozenset(missing))
            with trio.CancelScope(shield=True):  # it is whole: too late to throw it away
                name = await trio.to_thread.run_sync(self._publish, directory, fd, parser)
        return PackSummary(name, parser.count, parser.size, frozenset(missing))

    async def ingest_whole(self, chunks: AsyncIterator[bytes]) -> PackSummary:
        """As `ingest`, but git reads the pack, once all of it is here; see `contents`.

        For packs of which nobody waits for an object: it is done in a process beside this one.
        Leaves and raises what `ingest` does.
        """
        with _incoming(self._tmp) as (directory, fd):
            try:
                async for chunk in chunks:
                    write_bytes(fd, chunk)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._rescue_unread, fd)
                raise
            with trio.CancelScope(shield=True):  # it is whole: too late to throw it away
                summary = await self._index_and_publish(directory, fd)
        return summary

    def contents(self, name: str) -> list[IndexedObject]:
        """What a pack of this store has, by oid; nothing of one that is gone. In a thread.

        Raises: CorruptData, OSError.
        """
        path = self._packs / f"{name}.pack"
        try:
            with path.open("rb", buffering=0) as file:
                return list_objects(file.fileno(), PackIndex(path.with_suffix(".idx")))
        except FileNotFoundError:
            return []

    async def _index_and_publish(self, directory: Path, fd: int) -> PackSummary:
        index = directory / "pack.idx"
        try:
            await write_index(directory / "pack", index)
        except GitFailed:  # our own parser tells whether it is the pack or the disk
            return await trio.to_thread.run_sync(self._read_again, fd)
        return await trio.to_thread.run_sync(self._publish_indexed, directory, fd, index)

    def _publish_indexed(self, directory: Path, fd: int, path: Path) -> PackSummary:
        index = PackIndex(path)
        if not len(index):
            return EMPTY
        content = path.read_bytes()
        name = self.publish(directory / "pack", fd, content, index.pack_checksum)
        return PackSummary(name, len(index), os.fstat(fd).st_size, frozenset())

    def _publish(self, directory: Path, fd: int, parser: PackParser) -> str:
        index = encode_index(parser.entries(), parser.checksum)
        return self.publish(directory / "pack", fd, index, parser.checksum)

    def _rescue(self, directory: Path, fd: int, parser: PackParser) -> None:
        """Publish what came before the source failed, if that can be done."""
        with suppress(CorruptData, OSError):  # the failure itself is what the caller hears of
            if parser.cut_to_whole():
                self._publish(directory, fd, parser)

    def _read_again(self, fd: int) -> PackSummary:
        """Parse the received file `fd` after all, and publish it. Raises: CorruptData, OSError."""
        with _incoming(self._tmp) as (again, copy):
            parser = PackParser(copy, spool_dir=again, spool_bytes=self._spool_bytes)
            with closing(parser):
                deque(_parse(parser, fd), maxlen=0)
                parser.finish()
            if not parser.count:
                return EMPTY
            name = self._publish(again, copy, parser)
        return PackSummary(name, parser.count, parser.size, frozenset())

    def _rescue_unread(self, fd: int) -> None:
        """As `_rescue`, for a file that nobody has parsed yet."""
        with suppress(CorruptData, OSError), _incoming(self._tmp) as (again, copy):
            parser = PackParser(copy, spool_dir=again, spool_bytes=self._spool_bytes)
            with closing(parser):
                deque(_parse(parser, fd), maxlen=0)
            self._rescue(again, copy, parser)

    def publish(self, pack: Path, fd: int, index: bytes, checksum: bytes) -> str:
        """Put a verified pack (open as `fd`) and its index in place; returns the pack's name.

        Both are on the disk when this returns, so that a power loss does not leave a pack that
        git complains about. Raises: OSError.
        """
        index_path = pack.with_name("idx")
        with open(index_path, "wb", buffering=0) as file:
            write_bytes(file.fileno(), index)
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        os.fchmod(fd, 0o444)
        os.fsync(fd)
        name = f"pack-{checksum.hex()}"
        with self._in_use():
            os.rename(pack, self._packs / f"{name}.pack")
            (self._packs / f"{name}.promisor").touch()
            os.rename(index_path, self._packs / f"{name}.idx")
        return name

    def packs(self) -> list[PackFile]:
        """The published packs, least recently used first."""
        found = []
        for index in self._packs.glob("pack-*.idx"):
            path = index.with_suffix(".pack")
            with suppress(FileNotFoundError):  # removed meanwhile
                stat = path.stat()
                size = stat.st_size + index.stat().st_size
                found.append(PackFile(path.stem, path, size, stat.st_mtime))
        return sorted(found, key=lambda pack: (pack.used, pack.name))

    def total_bytes(self) -> int:
        """Bytes of all published packs with their indexes."""
        return sum(pack.bytes for pack in self.packs())

    def touch(self, names: Iterable[str]) -> None:
        """Note that these packs were used just now."""
        for name in names:
            with suppress(FileNotFoundError):
                os.utime(self._packs / f"{name}.pack")

    def evict(self, max_bytes: int, *, keep: Collection[str] = ()) -> list[str]:
        """Delete whole packs, least recently used first, until at most `max_bytes` are left.

        Packs named in `keep` stay. A reader that has a pack open goes on reading it. Returns the
        names of the deleted packs. Raises: OSError.
        """
        with self._removing():
            packs = self.packs()
            excess = sum(pack.bytes for pack in packs) - max_bytes
            deleted = []
            for pack in packs:
                if excess <= 0:
                    break
                if pack.name in keep:
                    continue
                self._delete(pack.name)
                excess -= pack.bytes
                deleted.append(pack.name)
        return deleted

    def consolidate(
        self,
        *,
        everything: bool = False,
        max_bytes: int = CONSOLIDATED_BYTES,
        damaged: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Put small packs together, so that look-ups stay fast; returns the new packs' names.

        Does something only where `FAN_IN` packs of about one size have come together, so that
        each byte is copied a few times in its life; `everything` takes all small packs. No new
        pack is larger than `max_bytes`, so that eviction stays fine-grained. Old packs go after
        the new one is in place. `damaged` is told the name of each that was dropped because of
        its content (None: the log is). At once empty where another process is at it. Call it in a
        thread: it copies at some 200 MB a second. Raises: OSError (no space).
        """
        with locked_at_once(self.objects_dir / "consolidate.lock") as alone:
            if not alone:
                return []
            groups = _groups(self.packs(), everything, max_bytes)
            names = [self._merge(group, damaged or _log_damaged) for group in groups]
        return [name for name in names if name]

    def _merge(self, group: list[PackFile], damaged: Callable[[str], None]) -> str:
        """Replace the packs of `group` by one; "" where it is not worth it any more."""
        with _incoming(self._tmp) as (directory, fd):
            merged = merge_packs([pack.path for pack in group], fd)
            for path in merged.corrupt:
                self.drop(path.stem)
                damaged(path.stem)
            if not merged.entries:
                return ""
            index = encode_index(merged.entries, merged.checksum)
            name = self.publish(directory / "pack", fd, index, merged.checksum)
        used = max(pack.used for pack in group)
        os.utime(self._packs / f"{name}.pack", (used, used))
        with self._removing():
            for pack in group:
                if pack.name != name and pack.path not in merged.corrupt:
                    self._delete(pack.name)
        return name

    def drop(self, name: str) -> None:
        """Delete one pack, because its content was found corrupt; its objects are fetched again."""
        with self._removing():
            self._delete(name)

    def repair(self, *, deep: bool = False) -> list[str]:
        """Delete packs that are damaged and return their names.

        Looks at the ends of each file, which finds what a power loss leaves; with `deep` reads
        everything (some 1 GB a second) and checks every checksum.
        """
        damaged = []
        for pack in self.packs():
            try:
                _check(pack.path, deep=deep)
            except FileNotFoundError:
                continue
            except (CorruptData, OSError):
                damaged.append(pack.name)
                self.drop(pack.name)
        return damaged

    def scrub(self, max_bytes: int, older_than_s: float) -> list[str]:
        """Check the packs that were checked least recently, up to `max_bytes` of them, and delete
        what is damaged; returns their names. When a pack was checked is the mtime of its index."""
        due = []
        for pack in self.packs():
            with suppress(FileNotFoundError):
                age = time.time() - pack.path.with_suffix(".idx").stat().st_mtime
                if age > older_than_s:
                    due.append((-age, pack))
        damaged, done = [], 0
        for _, pack in sorted(due, key=lambda item: item[0]):
            if done >= max_bytes:
                break
            done += pack.bytes
            try:
                _check(pack.path, deep=True)
                os.utime(pack.path.with_suffix(".idx"))
            except FileNotFoundError:
                continue
            except (CorruptData, OSError):
                damaged.append(pack.name)
                self.drop(pack.name)
        return damaged

    def clean(self) -> None:
        """Remove what crashed processes left: temporary directories, and packs half removed."""
        self.clean_temporary()
        with self._removing():
            for path in self._packs.glob("pack-*"):
                alone = not path.with_suffix(".idx").exists()
                alone |= path.suffix == ".idx" and not path.with_suffix(".pack").exists()
                if alone and path.suffix in (".pack", ".promisor", ".idx") and _old(path):
                    path.unlink(missing_ok=True)

    def clean_temporary(self) -> None:
        """Remove the temporary directories of processes that are gone."""
        for directory in self._tmp.iterdir():
            if _abandoned(directory):
                shutil.rmtree(directory, ignore_errors=True)

    def _delete(self, name: str) -> None:
        for suffix in (".idx", ".rev", ".promisor", ".pack"):
            (self._packs / f"{name}{suffix}").unlink(missing_ok=True)

    def _in_use(self) -> AbstractContextManager[None]:
        """While this is held, no process removes packs."""
        return locked(self.objects_dir / "store.lock", shared=True)

    def _removing(self) -> AbstractContextManager[None]:
        """Hold this to remove packs."""
        return locked(self.objects_dir / "store.lock")


def _log_damaged(name: str) -> None:
    log.warning("%s was damaged and is removed: what was in it is fetched again", name)


def _groups(packs: list[PackFile], everything: bool, max_bytes: int) -> list[list[PackFile]]:
    """Which packs to put together: those of one order of magnitude, where there are enough.

    Like a log-structured merge tree with tiers: of each tier fewer than `FAN_IN` packs stay.
    """
    tiers: dict[int, list[PackFile]] = {}
    for pack in packs:
        if pack.bytes <= max_bytes // 2:
            magnitude = 0 if everything else max(0, pack.bytes.bit_length() - 16) // 3
            tiers.setdefault(magnitude, []).append(pack)
    groups: list[list[PackFile]] = []
    for tier in tiers.values():
        if len(tier) < (2 if everything else FAN_IN):
            continue
        group: list[PackFile] = []
        amount = 0
        for pack in tier:
            if amount + pack.bytes > max_bytes:
                groups.append(group)
                group, amount = [], 0
            group.append(pack)
            amount += pack.bytes
        groups.append(group)
    return [group for group in groups if len(group) > 1]


@contextmanager
def _incoming(root: Path) -> Iterator[tuple[Path, int]]:
    """A temporary directory with an empty, locked file ``pack`` in it, removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="incoming-", dir=root))
    try:
        fd = os.open(directory / "pack", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try_lock(fd)  # nobody else knows it yet
            yield directory, fd
        finally:
            os.close(fd)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _abandoned(directory: Path) -> bool:
    """Whether the process that made this temporary directory is gone."""
    if not _old(directory):
        return False
    try:
        fd = os.open(directory / "pack", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return try_lock(fd)
    finally:
        os.close(fd)


def _old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False


def _check(path: Path, *, deep: bool) -> None:
    """Check a pack against its index. Raises: CorruptData, OSError."""
    index = PackIndex(path.with_suffix(".idx"))
    with path.open("rb") as file:
        signature, count = file.read(4), int.from_bytes(file.read(8)[4:], "big")
        file.seek(-packformat.TRAILER_BYTES, os.SEEK_END)
        end = file.tell()
        trailer = file.read()
        if signature != packformat.SIGNATURE or count != len(index):
            raise CorruptData(f"{path} does not fit its index")
        if trailer != index.pack_checksum:
            raise CorruptData(f"{path} is cut")
        if deep:
            index.check()
            if packformat.file_checksum(file.fileno(), end) != trailer:
                raise CorruptData(f"{path} does not match its checksum")
