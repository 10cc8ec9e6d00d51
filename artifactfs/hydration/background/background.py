"""What a mount fetches while nobody waits: the tree's sizes and contents, then recent history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.hydration.background.attention import Attention
from artifactfs.hydration.background.planner import Planner
from artifactfs.hydration.background.recent import RecentHistory
from artifactfs.hydration.background.sweep import SUBTREE_BLOBS, Sweep
from artifactfs.hydration.background.turn import SweepTurn
from artifactfs.hydration.link.connection import RemoteLink
from artifactfs.hydration.link.sizing import Sizing
from artifactfs.hydration.order.inventory import TreeInventory
from artifactfs.hydration.order.nearby import TreeReader, blobs_below
from artifactfs.hydration.order.priority import classify, compile_globs


class Background:
    """Plans the sweep of one tree; `demand.lanes` carries what `sweep` asks for.

    `turns` is the directory of the state root in which workers take turns. `missing` says which
    blobs are neither here nor on their way, `wake` wakes the lanes.
    """

    def __init__(
        self,
        *,
        settings: RepoSettings,
        turns: Path,
        odb: ObjectDatabase,
        read_tree: TreeReader,
        link: RemoteLink,
        sizing: Sizing,
        size_of: Callable[[bytes], int | None],
        missing: Callable[[list[bytes]], list[bytes]],
        wake: Callable[[], None],
    ) -> None:
        self._odb = odb
        self.attention = Attention()
        self.turn = SweepTurn(turns, after_wait=self.recount, wake=wake)
        self.sweep = Sweep(
            reach=settings.hydrate,
            budget=settings.hydrate_budget,
            max_blob=settings.hydrate_max_blob,
            missing=missing,
            size_of=size_of,
            absent_share=self._absent_share,
            my_turn=lambda: self.turn.mine,
            somebody_works=self.attention.somebody_works,
        )
        first = compile_globs(settings.hydrate_first)
        self.planner = Planner(
            odb=odb,
            read_tree=read_tree,
            link=link,
            sizing=sizing,
            sweep=self.sweep,
            classify=lambda path, mode: classify(path, mode, None, first=first),
            wake=wake,
            turn=self.turn,
        )
        self.recent = RecentHistory(odb=odb, sizing=sizing, sweep=self.sweep, wake=wake)

    @property
    def inventory(self) -> TreeInventory | None:
        """The blobs of the tree, once the planner has walked it."""
        return self.planner.inventory

    async def run(self) -> None:
        """Own the tasks of the background. Never returns; cancel it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.planner.run)
            nursery.start_soon(self.recent.run)
            nursery.start_soon(self.turn.run)

    async def recount(self) -> None:
        """Look again at what is here: blobs were evicted, or others have fetched some."""
        await self.planner.recount()

    def remote_down(self) -> None:
        """The remote cannot be reached: let another worker have the turn."""
        self.turn.release()

    def remote_up(self) -> None:
        """The remote answers again: what failed meanwhile is asked for again."""
        self.sweep.begin_again()
        self.planner.take_turn()

    def _absent_share(self, tree: bytes) -> float:
        blobs = blobs_below(self._odb.tree, tree, b"", max_entries=4 * SUBTREE_BLOBS) or []
        return len(self._odb.missing(blob.oid for blob in blobs)) / max(len(blobs), 1)
