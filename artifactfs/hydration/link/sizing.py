"""True sizes without contents: object headers, the remote's ``object-info``, else the contents.

A remote without ``object-info`` tells a size only with the content, so the blobs of the directory
are hydrated in one batch, and readahead goes on from there.
"""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

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
_WRITES = 20
"""Oids are random: each transaction writes nearly every page of the database that there is, so the
sizes of a large tree are not written in smaller parts than this."""
_LOOKUPS_A_STEP = 150
"""Look-ups between two checkpoints: about 1 ms."""
_FEW = 1_000
"""Blobs that are here: 80 KB as a set."""
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

    def known_many(self, oids: Sequence[bytes]) -> dict[bytes, int]:
        """Those of `oids` whose size can be told now."""
        sizes = self._store.get_many(oids)
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
        """Learn the sizes of a whole tree in the background, shallow directories first.

        Returns early where the remote cannot tell them. Raises nothing but cancellation.
        """
        learnt: dict[bytes, int] = {}
        at_once = max(CHUNK, len(inventory.order) // _WRITES)
        async with aclosing(self._unknown(inventory)) as chunks:
            async for chunk in chunks:
                sizes = await self._ask_in_background(chunk)
                if not sizes:
                    break
                learnt |= sizes
                if len(learnt) >= at_once:
                    await self._note(inventory, learnt)
                    learnt = {}
        await self._note(inventory, learnt)

    async def _note(self, inventory: TreeInventory, sizes: dict[bytes, int]) -> None:
        await self._write(sizes)
        for count, (oid, size) in enumerate(sizes.items()):
            inventory.note_size(oid, size)
            if count % _LOOKUPS_A_STEP == 0:
                await trio.lowlevel.checkpoint()

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

    async def _write(self, sizes: dict[bytes, int]) -> None:
        if sizes:
            try:
                await self._store.add_many(sizes)
            except sqlite3.Error as error:
                log.warning("sizes could not be written: %s", error)

    async def _unknown(self, inventory: TreeInventory) -> AsyncGenerator[list[bytes], None]:
        """Chunks of oids without a known size; notes the known ones in the inventory."""
        chunk: list[bytes] = []
        here = set(inventory.present()) if inventory.here <= _FEW else None
        for start in range(0, len(inventory.order), _LOOKUPS_A_STEP):
            oids = list(inventory.order.slice(start, _LOOKUPS_A_STEP))
            if here is None:
                known = self.known_many(oids)
            else:  # of a new mount: nothing need be looked for in packs once more
                known = self._store.get_many(oids)
                known |= self._by_headers([o for o in oids if o in here and o not in known])
            for oid, size in known.items():
                inventory.note_size(oid, size)
            chunk += [oid for oid in oids if oid not in known]
            if len(chunk) >= CHUNK:
                yield chunk[:CHUNK]
                chunk = chunk[CHUNK:]
            await trio.lowlevel.checkpoint()
        if chunk:
            yield chunk
