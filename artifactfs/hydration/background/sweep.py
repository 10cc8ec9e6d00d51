"""The background sweep: what to fetch while nobody waits for anything.

It goes class by class in the order of `priority`. Manifests have landed before source begins, and
source before binaries. Where all of a large tree is wanted, whole subtrees come without their large
blobs: one want fetches thousands. What is here is never asked for, so a restart goes on where the
last run ended. Blobs of recent history come last.

No method waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from artifactfs.hydration.order.inventory import TreeInventory, bundles, partition
from artifactfs.hydration.order.priority import SWEEP_ORDER, Priority

QUIET_S = 0.3
"""Seconds without a miss before the sweep goes on. What git reads at every command is exempt."""
_BARRIERS = (Priority.FIRST, Priority.GIT, Priority.MANIFEST, Priority.OTHER)
"""Classes that have landed before the next one begins."""
BATCH_WANTS = 500
"""With 4 connections of 500 wants a tree comes fastest, and shows its first blob in 0.1 s."""
BATCH_BYTES = 4 << 20
SUBTREE_BLOBS = 3_000
"""Blobs in one want of a subtree, at most: what a cut connection can cost."""
PREFETCHED_BLOBS = 30_000
"""In one request where somebody waits for everything: fewer of them, and of git's processes."""
AT_A_TIME = 4
"""Requests of the background, on both sides."""
SUBTREE_MIN = 100
"""Smaller directories come with the blobs that are named one by one."""
SUBTREE_LIMIT = 64 << 10
"""Blobs of so many bytes do not come with their subtree."""
MOSTLY_ABSENT = 0.95
"""Where so much of the tree is not here, no subtree is looked at before it is asked for."""
MIN_FOR_SUBTREES = 2_000
"""Fewer missing blobs are fetched one by one, in the exact order of their priority."""
MAX_ROUNDS = 3
"""How often failed requests make the sweep go through the tree again."""
_UNKNOWN_SIZE = 8 << 10
_SCAN = 2_000
"""Look-ups in one call of `next`: about 7 ms."""

_SOURCE = (Priority.FIRST, Priority.GIT, Priority.MANIFEST, Priority.SOURCE)
CLASSES = {"none": (), "source": _SOURCE, "all": SWEEP_ORDER}


@dataclass(frozen=True, slots=True)
class SweepBatch:
    """What one request of the sweep is to fetch: blobs of one class, or a whole subtree."""

    priority: Priority
    oids: tuple[bytes, ...] = ()
    tree: bytes | None = None
    filter: str | None = None


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """`state` is ``off``, ``waiting`` (for quiet, or for a tree), ``running``, ``done`` or
    ``budget`` (the repository's byte budget is used up); `stage` names the class at work."""

    state: str
    stage: str


class Sweep:
    """Chooses the next batch. `missing` filters oids that are not here nor on their way;
    `absent_share` tells how much of the blobs below a tree is not here (0 to 1)."""

    def __init__(
        self,
        *,
        reach: str,
        budget: int,
        max_blob: int,
        missing: Callable[[list[bytes]], list[bytes]],
        size_of: Callable[[bytes], int | None],
        absent_share: Callable[[bytes], float],
        my_turn: Callable[[], bool],
        somebody_works: Callable[[], bool] = lambda: False,
    ) -> None:
        self._my_turn = my_turn
        self._somebody_works = somebody_works
        self._absent_share = absent_share
        self.reach = reach
        self._budget = budget
        self._max_blob = max_blob
        self._missing = missing
        self._size_of = size_of
        self._inventory: TreeInventory | None = None
        self._stages: list[Priority] = []
        self._position = 0
        self._trees: list[bytes] | None = None
        self._took_trees = False
        self._active = 0
        self._in_trees = 0
        self._last_read = -1e9
        self._spent = False
        self._failed = False
        self._rounds = 0
        self.with_subtrees = True
        """Whether the remote can be asked for subtrees without their large blobs."""
        self.reached = False
        """Whether `with_subtrees` is known. Subtrees are asked for before sizes are known."""
        self.sized = False
        """Whether the sizes of the tree are known, as far as they can be."""
        self.recent_pending = False
        """Blobs of recent history are being listed."""
        self._recent: deque[bytes] = deque()
        self._recent_active = 0
        self._recent_tries = 0
        self.scanning = False
        """`next` stopped looking to let others run: call it again after a checkpoint."""

    @property
    def needs_remote(self) -> bool:
        """Whether `with_subtrees` matters."""
        return self.reach == "all"

    def begin(self, inventory: TreeInventory) -> None:
        """Work on this tree from now on."""
        if inventory is not self._inventory:
            self._rounds = 0
        self._inventory = inventory
        self._stages = list(CLASSES.get(self.reach, _SOURCE))
        self._position = 0
        self._trees = None
        self._took_trees = False
        self._spent = False
        self._failed = False
        self.sized = False

    def begin_again(self) -> None:
        """Look at every blob of the tree once more: requests failed meanwhile."""
        if self._inventory is not None:
            sized = self.sized
            self.begin(self._inventory)
            self.sized = sized

    def note_read(self) -> None:
        """A program had to wait for content."""
        self._last_read = max(self._last_read, trio.current_time())

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do in the tree."""
        return (
            self._inventory is not None and not self._active and (self._spent or not self._stages)
        )

    def hold(self, seconds: float) -> None:
        """Choose nothing for so long; what git reads at every command is exempt."""
        self._last_read = trio.current_time() + seconds - QUIET_S

    def set_recent(self, oids: Iterable[bytes]) -> None:
        """Fetch these when everything else is here."""
        self.recent_pending = False
        self._recent = deque(oids)
        self._recent_tries = MAX_ROUNDS

    def wait_s(self) -> float:
        """Seconds until `next` may have something that it did not have for want of quiet."""
        if not (self._stages or self._recent) or self._spent:
            return float("inf")
        left = self._last_read + QUIET_S - trio.current_time()
        if left <= 0 and self._somebody_works():
            return QUIET_S
        return left if left > 0 else float("inf")

    def next(self) -> SweepBatch | None:
        """The next batch; None where there is nothing to do now. Tell `ended` about each."""
        self.scanning = False
        inventory = self._inventory
        budget = _SCAN
        while inventory is not None and self._stages and not self._spent:
            stage = self._stages[0]
            if stage is not Priority.GIT and (self._disturbed() or not self._my_turn()):
                return None
            if inventory.here_bytes >= self._budget:
                self._spent = True
                return None
            may_choose = self._active == 0 and (self.reached or self.sized)
            if stage is Priority.SOURCE and self._trees is None and may_choose:
                self._trees = self._choose_trees(inventory)
                self._took_trees = bool(self._trees)
            if self._trees and stage is Priority.SOURCE and self.with_subtrees:
                tree = self._trees.pop()
                mostly_absent = inventory.here < (1 - MOSTLY_ABSENT) * inventory.total
                if not mostly_absent and self._absent_share(tree) < 0.5:
                    continue  # its blobs are named one by one
                self._active += 1
                self._in_trees += 1
                limit = f"blob:limit={min(self._max_blob, SUBTREE_LIMIT)}"
                return SweepBatch(stage, tree=tree, filter=limit)
            if self._in_trees:
                return None  # what they do not fetch is known when they have landed
            if stage >= Priority.SOURCE and not self.sized:
                return None  # which blobs are too large is not known yet
            oids, budget = self._gather(inventory, stage, budget)
            if oids:
                self._active += 1
                return SweepBatch(stage, oids=tuple(oids))
            if budget <= 0:
                self.scanning = True
                return None
            if self._active and (self._is_barrier(stage) or len(self._stages) == 1):
                return None
            self._stages.pop(0)
            self._position = 0
            if not self._stages and self._failed and self._rounds < MAX_ROUNDS:
                self._rounds += 1
                self.begin_again()
        return self._next_recent()

    def _is_barrier(self, stage: Priority) -> bool:
        """Whether `stage` has landed before the next one begins. After subtrees, which have
        fetched of every class, little is left: it comes at once."""
        return stage in _BARRIERS and not (stage is Priority.OTHER and self._took_trees)

    def _next_recent(self) -> SweepBatch | None:
        if self._inventory is None or self._stages or self._spent or self._active:
            return None
        if self._disturbed():
            return None
        batch: list[bytes] = []
        while self._recent and len(batch) < BATCH_WANTS:
            count = min(BATCH_WANTS // 4, len(self._recent))
            batch += self._missing([self._recent.popleft() for _ in range(count)])
        if not batch:
            return None
        self._active += 1
        self._recent_active += 1
        return SweepBatch(Priority.RECENT, oids=tuple(batch))

    def ended(self, batch: SweepBatch, *, well: bool) -> None:
        """The request for `batch` is over; what did not come is asked for again at the end."""
        self._active -= 1
        if batch.priority is Priority.RECENT:
            self._recent_active -= 1
            if not well and self._recent_tries > 0:
                self._recent_tries -= 1
                self._recent.extend(batch.oids)
            return
        self._in_trees -= batch.tree is not None
        self._failed |= not well

    @property
    def recent_state(self) -> str:
        """Of recent history: ``off``, ``waiting`` (for its listing, or for the sweep), ``running``
        or ``done``."""
        if self.reach == "none":
            return "off"
        if self._recent_active:
            return "running"
        return "waiting" if self._recent or self.recent_pending else "done"

    def progress(self) -> SweepProgress:
        if self.reach == "none":
            return SweepProgress("off", "")
        if self._inventory is None:
            return SweepProgress("waiting", "")
        if self._spent:
            return SweepProgress("budget", "")
        if not self._stages:
            return SweepProgress("done", "")
        stage = self._stages[0]
        held = self._disturbed() or not self._my_turn()
        waiting = stage is not Priority.GIT and held and not self._active
        return SweepProgress("waiting" if waiting else "running", stage.name.lower())

    def _disturbed(self) -> bool:
        return trio.current_time() < self._last_read + QUIET_S or self._somebody_works()

    def _choose_trees(self, inventory: TreeInventory) -> list[bytes]:
        absent = inventory.total - inventory.here
        if (
            self.reach != "all"
            or not self.with_subtrees
            or absent < MIN_FOR_SUBTREES
            or absent * 2 < inventory.total
        ):
            return []
        trees = partition(inventory, max_blobs=SUBTREE_BLOBS, min_blobs=SUBTREE_MIN)
        return list(trees)[::-1]

    def trees_of(self, inventory: TreeInventory) -> list[tuple[bytes, ...]]:
        """Trees to ask for where somebody waits for all of it, by requests; none where that is
        not worth it."""
        absent = inventory.total - inventory.here
        if not self.with_subtrees or absent < MIN_FOR_SUBTREES or absent * 2 < inventory.total:
            return []
        trees = partition(inventory, max_blobs=PREFETCHED_BLOBS, min_blobs=SUBTREE_MIN)
        return bundles(trees, most=PREFETCHED_BLOBS, at_least=AT_A_TIME)

    def _gather(
        self, inventory: TreeInventory, stage: Priority, budget: int
    ) -> tuple[list[bytes], int]:
        """Up to a batch of blobs of `stage`, and what is left of the look-ups."""
        batch: list[bytes] = []
        content = 0
        while budget > 0 and len(batch) < BATCH_WANTS and content < BATCH_BYTES:
            positions, self._position = self._positions(inventory, stage, BATCH_WANTS // 4)
            if not positions:
                break
            budget -= len(positions)
            for oid in self._missing([inventory.order[at] for at in positions]):
                size = self._size_of(oid)
                content += _UNKNOWN_SIZE if size is None else size
                batch.append(oid)
        return batch, budget

    def _positions(
        self, inventory: TreeInventory, stage: Priority, count: int
    ) -> tuple[list[int], int]:
        """The next positions of `stage`, and where to go on; too large blobs are put off."""
        found: list[int] = []
        at = self._position
        while len(found) < count:
            at = inventory.find(stage, at)
            if at < 0:
                return found, len(inventory.order)
            size = self._size_of(inventory.order[at]) if stage is not Priority.LARGE else None
            if size is not None and size > self._max_blob:
                inventory.reclass(at, Priority.LARGE)
            else:
                found.append(at)
            at += 1
        return found, at
