"""True sizes without contents: object headers, the remote's ``object-info``, else the contents.

A remote without ``object-info`` tells a size only with the content, so the blobs of the directory
are hydrated in one batch, and readahead goes on from there.
"""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence

import trio

from artifactfs.errors import RemoteError
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.hydration.link.connection import RemoteLink
from artifactfs.hydration.local.sizes import SizeStore
from artifactfs.hydration.order.inventory import TreeInventory
from artifactfs.redact import redact

log = logging.getLogger(__name__)

CHUNK = 10_000
"""Oids a request: half a megabyte out, some 30 ms on the server."""
EMPTY = bytes.fromhex("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
"""The blob without content. Of another one 0 bytes cannot be true, and the kernel would never read
the file and find out."""
_LOOKUPS_A_STEP = 500
"""Look-ups between two checkpoints: about 1 ms."""
_FEW = 1_000
"""Blobs that are here: 80 KB as a set."""
_NOTES_A_STEP = 2_000
"""Sizes that are noted between two checkpoints: less than 1 ms."""
MAX_BACKOFF_S = 5.0


class Sizing:
    """Sizes of blobs, by whatever way is cheapest. `fetch` hydrates the blobs of a directory."""

    def __init__(
        self,
        *,
        store: SizeStore,
        odb: ObjectDatabase,
        link: RemoteLink,
        fetch: Callable[[bytes, list[bytes]], Awaitable[None]],
    ) -> None:
        self._store = store
        self._odb = odb
        self._link = link
        self._fetch_directory = fetch

    def known(self, oid: bytes) -> int | None:
        """The size of one blob if it can be told now. 1 to 40 µs."""
        size = self._store.get(oid)
        if size is None:
            size = self._odb.header_size(oid)
            if size is not None:
                self._store.put(oid, size)
        return size

    def known_many(self, oids: Sequence[bytes], *, keep: bool = True) -> dict[bytes, int]:
        """Those of `oids` whose size can be told now. `keep` as in `SizeStore.get_many`."""
        sizes = self._store.get_many(oids, keep=keep)
        if len(sizes) == len(oids):
            return sizes
        unknown = [oid for oid in oids if oid not in sizes]
        absent = set(self._odb.missing(unknown))
        return sizes | self._by_headers([oid for oid in unknown if oid not in absent])

    def _by_headers(self, oids: Sequence[bytes]) -> dict[bytes, int]:
        """Sizes of blobs that are here."""
        sizes = {}
        for oid in oids:
            size = self._odb.header_size(oid)
            if size is not None:
                sizes[oid] = size
                self._store.put(oid, size)
        return sizes

    async def directory(self, tree: bytes, oids: Sequence[bytes]) -> dict[bytes, int]:
        """The sizes of all of `oids`, blobs of the directory `tree`. Waits for the network.

        The caller sets the deadline. Raises: HydrationError.
        """
        sizes = self.known_many(oids)
        unknown = [oid for oid in oids if oid not in sizes]
        if not unknown:
            return sizes
        sizes |= await self._ask_until_answered(unknown)
        unknown = [oid for oid in unknown if oid not in sizes]
        if unknown:
            await self._fetch_directory(tree, unknown)
            sizes |= self.known_many(unknown)
        return sizes

    async def _ask_until_answered(self, oids: list[bytes]) -> dict[bytes, int]:
        """By object-info, again and again until the remote answers or is known to be down."""
        backoff_s = 0.1
        while True:
            await self._link.health.admit()
            epoch = self._link.health.epoch
            try:
                sizes = await self._ask(oids, urgent=True)
            except RemoteError as error:
                self._link.note_failure(error, epoch)
                await trio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                continue
            known = self._store.get_many(sizes)  # the content came meanwhile: it knows better
            for oid, size in sizes.items():
                if oid not in known:
                    self._store.put(oid, size)
            return sizes | known

    async def _ask(self, oids: list[bytes], *, urgent: bool) -> dict[bytes, int]:
        remote = await self._link.get()
        if not remote.capabilities.object_info:
            return {}
        sizes = await remote.object_sizes(oids, urgent=urgent)
        self._link.health.note_success()
        return {oid: size for oid, size in sizes.items() if size or oid == EMPTY}

    async def whole(self, inventory: TreeInventory) -> None:
        """Learn the sizes of a whole tree in the background, in the order of oids: a transaction
        then writes few pages of the database, and it is known where in the inventory each is.
        (Whoever lists a directory meanwhile asks for its sizes himself.)

        Returns early where the remote cannot tell them. Raises nothing but cancellation.
        """
        places: list[int] = []
        oids: list[bytes] = []
        here = set(inventory.present()) if inventory.here <= _FEW else None
        for start in range(0, inventory.total, _LOOKUPS_A_STEP):
            some = inventory.oids_from(start, _LOOKUPS_A_STEP)
            if here is None:
                known = self.known_many(some, keep=False)  # the inventory has them all
            else:  # of a new mount: nothing need be looked for in packs once more
                known = self._store.get_many(some, keep=False)
                known |= self._by_headers([o for o in some if o in here and o not in known])
            for place, oid in enumerate(some, start):
                size = known.get(oid)
                if size is None:
                    places.append(place)
                    oids.append(oid)
                else:
                    inventory.note_size_at(place, size)
            await trio.lowlevel.checkpoint()
            if len(oids) > CHUNK - _LOOKUPS_A_STEP:
                if not await self._learn_at(inventory, places, oids):
                    return
                places, oids = [], []
        if oids:
            await self._learn_at(inventory, places, oids)

    async def _learn_at(
        self, inventory: TreeInventory, places: list[int], oids: list[bytes]
    ) -> bool:
        """The sizes of `oids`, which are at `places` of the inventory. False: none was told."""
        sizes = await self._ask_in_background(oids)
        await self._write(sizes, keep=False)
        for start in range(0, len(oids), _NOTES_A_STEP):
            end = start + _NOTES_A_STEP
            for place, oid in zip(places[start:end], oids[start:end], strict=True):
                size = sizes.get(oid)
                if size is not None:
                    inventory.note_size_at(place, size)
            await trio.lowlevel.checkpoint()
        return bool(sizes)

    async def in_background(self, oids: Sequence[bytes]) -> dict[bytes, int]:
        """The sizes of any blobs, as far as the remote tells them.

        Waits for the network as long as it takes. Raises nothing but cancellation.
        """
        sizes = self._store.get_many(oids)
        unknown = [oid for oid in oids if oid not in sizes]
        return sizes | await self._learn(unknown) if unknown else sizes

    async def _learn(self, oids: list[bytes]) -> dict[bytes, int]:
        sizes = await self._ask_in_background(oids)
        await self._write(sizes)
        return sizes

    async def _ask_in_background(self, oids: list[bytes]) -> dict[bytes, int]:
        while True:
            epoch = self._link.health.epoch
            try:
                return await self._ask(oids, urgent=False)
            except RemoteError as error:
                log.info("sizes are asked for again later: %s", redact(error.message))
                self._link.note_failure(error, epoch)
                await trio.sleep(MAX_BACKOFF_S)

    async def _write(self, sizes: dict[bytes, int], *, keep: bool = True) -> None:
        if sizes:
            try:
                await self._store.add_many(sizes, keep=keep)
            except sqlite3.Error as error:
                log.warning("sizes could not be written: %s", error)
