"""What the cache needs now and then: a size limit, few packs, sizes written down.

Everything that touches many files runs in a thread, one thing at a time.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import trio

from artifactfs.damage import DamageReport
from artifactfs.errors import ArtifactFSError
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.pack.store import PackStore
from artifactfs.hydration.local.large_blobs import LargeBlobStore
from artifactfs.hydration.local.sizes import SizeStore

log = logging.getLogger(__name__)

DEFAULT_CACHE_LIMIT = 20 << 30
"""Bytes under STATE/cache that the limit lets be."""
MANY_PACKS = 40
"""A look-up that fails costs 1 µs for each pack."""
INTERVAL_S = 60.0
SCRUB_BYTES = 64 << 20
"""Of large blobs and of packs, a minute: 20 GB in a working day, at 1 MB of the disk a second."""
SCRUB_AGE_S = 24 * 3600.0
SETTLE_S = 2.0
"""After a download, upkeep waits that long for the next: single reads come in bursts."""
_EVICT_TO = 0.9
"""An eviction frees a tenth, so that it is not needed again at once."""


class Upkeep:
    """Keeps the cache of a state root in order; several workers may each have one."""

    def __init__(
        self,
        *,
        store: PackStore,
        large: LargeBlobStore,
        sizes: SizeStore,
        odb: ObjectDatabase,
        cache_limit: int,
        damage: DamageReport,
    ) -> None:
        self.cache_limit = cache_limit
        self._damage = damage
        self._store = store
        self._large = large
        self._sizes = sizes
        self._odb = odb
        self._lock = trio.Lock()
        self._due = trio.Event()

    def due(self) -> None:
        """Something was downloaded: there may be work."""
        self._due.set()

    async def run(self, recount: Callable[[], Awaitable[None]]) -> None:
        """Do what is due after each burst of downloads, and once a minute. Cancel it to stop.

        `recount` is told each time: contents may have gone, or come by another mount's worker.
        """
        async with self._lock:
            await self._guarded_clean()
        while True:
            with trio.move_on_after(INTERVAL_S):
                await self._due.wait()
                await trio.sleep(SETTLE_S)
            self._due = trio.Event()
            await self.once()
            await _each(self._scrub)
            await recount()

    async def _guarded_clean(self) -> None:
        try:
            await trio.to_thread.run_sync(self._large.remove_stale)
            await trio.to_thread.run_sync(self._store.clean)
        except OSError as error:
            log.warning("old temporary files could not be removed: %s", error)

    async def once(self) -> None:
        """Write sizes, publish large blobs, drop damaged packs, keep the limit, merge small packs.

        What cannot be done is logged; the rest is done all the same.
        """
        await _each(self._sizes.flush, self._publish, self._keep_limit, self._merge)
        self._odb.refresh()

    async def _publish(self) -> None:
        for oid in self._large.unpublished():
            await self._large.publish(oid)

    async def _keep_limit(self) -> None:
        async with self._lock:
            await trio.to_thread.run_sync(self._mend)
            total, _ = await trio.to_thread.run_sync(self._measure)
            if total > self.cache_limit:
                await self._evict(int(self.cache_limit * _EVICT_TO))

    async def _merge(self) -> None:
        """After eviction: for a moment it takes more room."""
        async with self._lock:
            _, packs = await trio.to_thread.run_sync(self._measure)
            if packs > MANY_PACKS:
                damaged: list[str] = []
                merge = partial(self._store.consolidate, damaged=damaged.append)
                try:
                    await trio.to_thread.run_sync(merge)
                finally:
                    self._report_dropped(damaged)

    async def _scrub(self) -> None:
        """Compare some of what nobody reads with its checksums. Raises: OSError."""
        await trio.to_thread.run_sync(self._large.scrub, SCRUB_BYTES, SCRUB_AGE_S)
        damaged = await trio.to_thread.run_sync(self._store.scrub, SCRUB_BYTES, SCRUB_AGE_S)
        self._report_dropped(damaged)

    def _report_dropped(self, names: Iterable[str]) -> None:
        for name in names:
            self._damage.mended(
                self._store.objects_dir / "pack" / f"{name}.pack",
                "or its index does not match its checksum",
                "it was removed, and what was in it is fetched again when it is needed",
            )

    async def evict(self, max_bytes: int) -> int:
        """Shrink the cache to `max_bytes`; returns the bytes freed. Raises: OSError."""
        async with self._lock:
            await trio.to_thread.run_sync(self._mend)
            freed = await self._evict(max_bytes)
        self._odb.refresh()
        return freed

    async def make_room(self, need: int) -> int:
        """Evict at least `need` bytes, or all there is; returns the bytes freed. Raises nothing."""
        try:
            total, _ = await trio.to_thread.run_sync(self._measure)
            return await self.evict(max(total - need, 0)) if total else 0
        except OSError as error:
            log.warning("nothing could be evicted: %s", error)
            return 0

    async def _evict(self, max_bytes: int) -> int:
        before, _ = await trio.to_thread.run_sync(self._measure)
        excess = before - max_bytes
        if excess <= 0:
            return 0
        # Decompressed copies first: the packs that have them are smaller.
        await trio.to_thread.run_sync(self._large.evict, excess)
        left = await trio.to_thread.run_sync(self._large.total_bytes)
        await trio.to_thread.run_sync(self._store.evict, max(max_bytes - left, 0))
        after, _ = await trio.to_thread.run_sync(self._measure)
        log.info("evicted %d bytes from the cache", before - after)
        return before - after

    def _measure(self) -> tuple[int, int]:
        packs = self._store.packs()
        return self._large.total_bytes() + sum(pack.bytes for pack in packs), len(packs)

    def _mend(self) -> None:
        """Note which packs were read from, and drop those that are damaged."""
        ours = self._store.objects_dir / "pack"
        self._store.touch(path.stem for path in self._odb.drain_used() if path.parent == ours)
        if any(path.parent == ours for path in self._odb.drain_corrupt()):
            # An error while reading may be the disk's or ours: only bad checksums cost a pack.
            self._report_dropped(self._store.repair(deep=True))


async def _each(*steps: Callable[[], Awaitable[None]]) -> None:
    """Take each step, whatever becomes of those before: a full disk, a bad sector."""
    for step in steps:
        try:
            await step()
        except (OSError, ArtifactFSError, sqlite3.Error) as error:
            log.warning("the cache could not be kept in order: %s", error)
