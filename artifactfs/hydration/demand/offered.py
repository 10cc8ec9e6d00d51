"""What git is told that it has: the blobs of the mounted tree, fetched when it opens one.

Git looks into its own object directories and never asks us, so `fs/gitview/offered.py` shows it an
object directory in which these blobs have names. This is what stands behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from artifactfs.errors import CorruptData
from artifactfs.git.objects.database import MissingObject, ObjectDatabase
from artifactfs.hydration.background.planner import Planner
from artifactfs.hydration.demand.flight import FlightControl
from artifactfs.hydration.demand.want import STALLED_S
from artifactfs.hydration.local.blobs import Blob, ReadContext
from artifactfs.hydration.order.inventory import TreeInventory
from artifactfs.hydration.order.nearby import blobs_below

WALK_S = 10.0
"""Git waits so long at most for the first walk through the tree (100,000 files: 0.5 s)."""

AROUND = 2_000
"""Entries of the largest directory that is fetched as a whole for one blob of it."""


class Prefetch(Protocol):
    """`Hydrator.prefetch`."""

    async def __call__(
        self, oids: Sequence[bytes], *, progress: Callable[[int, int], None] | None
    ) -> None: ...


OpenBlob = Callable[[bytes, ReadContext], Awaitable[Blob]]


class OfferedBlobs:
    """The blobs of the tree of the last `start_sweep`, by name."""

    def __init__(
        self,
        *,
        planner: Planner,
        odb: ObjectDatabase,
        control: FlightControl,
        open_blob: OpenBlob,
        prefetch: Prefetch,
    ) -> None:
        self._planner = planner
        self._odb = odb
        self._control = control
        self._open = open_blob
        self._prefetch = prefetch

    @property
    def inventory(self) -> TreeInventory | None:
        """That of the tree; of the one before while it is walked; None before the first walk."""
        return self._planner.inventory

    def expect(self, tree: bytes) -> None:
        """The tree is this one from now on; it is walked when somebody asks, or for the sweep."""
        self._planner.expected = tree

    @property
    def is_walked(self) -> bool:
        """Whether `inventory` is that of the tree."""
        return self._planner.walked.is_set() and not self._is_old

    @property
    def _is_old(self) -> bool:
        inventory, expected = self._planner.inventory, self._planner.expected
        return inventory is not None and expected not in (None, inventory.tree)

    async def walked(self) -> None:
        """Wait until `inventory` is that of the tree, or for `WALK_S`."""
        expected = self._planner.expected
        if expected is not None and self._planner.walked.is_set() and self._is_old:
            self._planner.start(expected)
        with trio.move_on_after(WALK_S):
            await self._planner.walked.wait()

    async def fetch(self, oid: bytes, pid: int) -> None:
        """Fetch `oid`, with what a scan in the order of the tree needs next, into a pack.

        Waits for the network, and until the pack is in place: git will look for it there.
        Raises: HydrationTimeout, HydrationFailed.
        """
        if self._odb.contains(oid):
            return
        path, trees = self._place(oid)
        blob = await self._open(oid, ReadContext(path, trees, pid))
        blob.close()
        await self._landed({oid})
        if not self._odb.contains(oid):
            # In memory since it was read, while its pack was evicted; so are others, then.
            await self.fetch_all([oid, *self._missing_around(oid, trees)])

    def _missing_around(self, oid: bytes, trees: Sequence[bytes]) -> list[bytes]:
        """Blobs near `oid` that no pack has, of as many of `trees` as hold few: for one request."""
        missing: list[bytes] = []
        for tree in trees:
            blobs = blobs_below(self._odb.tree, tree, b"", max_entries=AROUND)
            if blobs is None:
                break
            missing = self._odb.missing(blob.oid for blob in blobs if blob.oid != oid)
        return missing

    async def fetch_all(
        self, oids: Sequence[bytes], *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Fetch all of `oids` into packs, as `fetch`, without readahead; `progress(done, total)` is
        called as they come. Raises: HydrationFailed, after trying all."""
        try:
            await self._prefetch(oids, progress=progress)
        finally:
            await self._landed(set(oids))

    async def first_bytes(self, oid: bytes, *, since: float) -> None:
        """Wait until the remote has begun to send what it is asked for together with `oid`, or has
        sent some of it after `since` (`trio.current_time`)."""
        while self._control.moved(oid) < since:
            await self._control.first_bytes.wait()

    async def _landed(self, oids: set[bytes]) -> None:
        """Wait for the packs in which `oids` have come, but not for a remote that stalls."""
        with trio.move_on_after(STALLED_S):
            for flight in list(self._control.active):
                if not oids.isdisjoint(flight.arrived):
                    await flight.landed.wait()

    def _place(self, oid: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        """The path of a blob, and the trees above it, nearest first."""
        inventory = self._planner.inventory
        trees = inventory.directory_of(oid) if inventory is not None else ()
        names = []
        try:
            for child, tree in zip((oid, *trees), trees, strict=False):
                names.append(next(e.name for e in self._odb.tree(tree) if e.oid == child))
        except (MissingObject, CorruptData, StopIteration):
            return b"", ()
        return b"/".join(reversed(names)), trees
