"""Prepares the sweep of one tree: lists its blobs, learns their sizes, then has the sweep begin."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from artifactfs.errors import RemoteError
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.hydration.background.sweep import Sweep
from artifactfs.hydration.background.turn import SweepTurn
from artifactfs.hydration.link.connection import RemoteLink
from artifactfs.hydration.link.sizing import Sizing
from artifactfs.hydration.order.inventory import Classifier, TreeInventory, take_inventory
from artifactfs.hydration.order.nearby import TreeReader
from artifactfs.redact import redact
from artifactfs.system.memory import give_back

log = logging.getLogger(__name__)

_MANY = 10_000
"""Files of which walk and sizes leave megabytes of free memory behind."""


class Planner:
    """Walks the tree that is set, learns its sizes and hands it to the sweep.

    `inventory` is that of the last tree that was walked, and `walked` is set while that is the one
    to work on; `wake` is called when the sweep has something to do.
    """

    def __init__(
        self,
        *,
        odb: ObjectDatabase,
        read_tree: TreeReader,
        link: RemoteLink,
        sizing: Sizing,
        sweep: Sweep,
        classify: Classifier,
        wake: Callable[[], None],
        turn: SweepTurn,
    ) -> None:
        self._turn = turn
        self.inventory: TreeInventory | None = None
        self.walked = trio.Event()
        self._odb = odb
        self._read_tree = read_tree
        self._link = link
        self._sizing = sizing
        self._sweep = sweep
        self._classify = classify
        self._wake = wake
        self._tree: bytes | None = None
        self.expected: bytes | None = None
        """The tree of the mount, where it is known before it is worked on."""
        self._tree_set = trio.Event()
        self._scope = trio.CancelScope()

    def start(self, tree: bytes) -> None:
        """Work on `tree` from now on, and no longer on the one before."""
        self._tree = self.expected = tree
        if self.walked.is_set():
            self.walked = trio.Event()
        self._tree_set.set()
        self._scope.cancel()

    async def run(self) -> None:
        """Prepare one tree after another, as they are set. Never returns; cancel it."""
        while True:
            await self._tree_set.wait()
            self._tree_set = trio.Event()
            if self._tree is not None:
                with trio.CancelScope() as self._scope:
                    await self._prepare(self._tree)

    def take_turn(self) -> None:
        """Have the sweep of the tree begin as soon as no other worker is at it."""
        if self.inventory is not None and self._sweep.reach != "none":
            self._turn.want(self.inventory.tree)

    async def recount(self) -> None:
        """Look again what is here, after an eviction."""
        if self.inventory is not None:
            await self.inventory.count(self._odb.missing_sorted)

    async def _prepare(self, tree: bytes) -> None:
        inventory = await take_inventory(self._read_tree, tree, self._classify)
        await inventory.count(self._odb.missing_sorted)
        self.inventory = inventory
        if tree == self._tree:
            self.walked.set()
        self._sweep.begin(inventory)
        self._wake()
        self.take_turn()
        if self._sweep.needs_remote:
            try:
                remote = await self._link.get()
                self._sweep.with_subtrees = remote.capabilities.filter
                self._sweep.reached = True
                self._wake()
            except RemoteError as error:
                log.info("the remote's capabilities are unknown: %s", redact(error.message))
                self._sweep.with_subtrees = False
        await self._sizing.whole(inventory)
        if inventory.total >= _MANY:
            await trio.to_thread.run_sync(give_back)
        self._sweep.sized = True
        self._wake()
