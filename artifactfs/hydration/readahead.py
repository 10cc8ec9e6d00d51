"""Readahead over the tree: a scan of cold files becomes a few large requests.

The first miss brings the file and its small siblings. A *scan* remembers them; when half of what
it predicted has been used, or the next miss comes nearby, its window grows fourfold and the
walk (`nearby`) goes on where it was, up to thousands of blobs in a request. When most of a window
was not used before the next miss, the reads are random: the window falls back, down to nothing.

No method waits, so each is atomic on the event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from artifactfs.hydration.nearby import (
    NearbyBlob,
    NearbyTree,
    NearbyWalk,
    TreeReader,
    blobs_below,
    siblings,
)
from artifactfs.hydration.priority import Priority, classify

SIBLINGS = 32
"""Small siblings that come with the first miss. On the loopback they cost it 1 to 3 ms."""
SIBLING_BYTES = 256 << 10
SIBLING_SIZE = 64 << 10
"""A sibling above this many bytes is not small."""

FIRST_WINDOW = 128
GROWTH = 4
MAX_WINDOW = 2_048
MAX_WINDOW_BYTES = 32 << 20
WINDOW_BLOB_SIZE = 1 << 20
"""A blob above this many bytes is only fetched when it is read."""
TREE_WANT = 64
"""A subtree of which at least so many blobs are missing, and none is here, is wanted by its tree
oid: the server then has path names for its delta search."""

_SCANNING = 4
"""So many uses between two misses are no accident: directories are read whole."""
MAX_STEPS = 4_096
"""Steps of a walk for one window: 10 ms at most, in which the event loop does nothing else."""
_UNKNOWN_SIZE = 8 << 10
_SCANS = 8
_PREDICTIONS = 8_192
_RECENT = 256
"""Directories remembered as missed in: a second miss in one is no random read."""
_IDLE_S = 30.0
_UNUSED = 4
"""Where less than one in so many predictions was used, the reads are random."""


@dataclass(slots=True, eq=False)
class _Scan:
    """One program (or more) walking through one part of the tree."""

    pid: int
    trees: tuple[bytes, ...]
    walk: NearbyWalk
    last: float
    siblings: int = SIBLINGS
    window: int = 0
    predicted: int = 0
    used: int = 0
    hits: int = 0
    missed: bytes = b""


@dataclass(slots=True)
class Window:
    """What one readahead request is to bring: `trees` are whole subtrees, whose blobs are among
    `blobs`; `single` are the blobs to be wanted one by one."""

    blobs: list[NearbyBlob] = field(default_factory=list)
    single: list[bytes] = field(default_factory=list)
    trees: list[bytes] = field(default_factory=list)


class Readahead:
    """Predicts from misses and uses what to fetch next.

    `absent` tells whether a blob is neither here nor on its way, `size_of` its size in bytes
    where that is known. `on_window` gets each window that is worth a request.
    """

    def __init__(
        self,
        *,
        tree: TreeReader,
        absent: Callable[[bytes], bool],
        size_of: Callable[[bytes], int | None],
        on_window: Callable[[Window], None],
        tree_wants: bool = True,
    ) -> None:
        self._tree = tree
        self._absent = absent
        self._size_of = size_of
        self._on_window = on_window
        self.tree_wants = tree_wants
        self._scans: list[_Scan] = []
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._predicted: OrderedDict[bytes, _Scan] = OrderedDict()

    def missed(
        self, oid: bytes, path: bytes, trees: tuple[bytes, ...], pid: int
    ) -> list[NearbyBlob]:
        """A program reads `oid`, which is not here: the siblings to fetch with it.

        May emit a larger window for the background.
        """
        self._predicted.pop(oid, None)
        if not trees:
            return []
        scan = self._find(trees, pid)
        if scan is None:
            scan = self._begin(oid, path, trees, pid)
        elif scan.missed != oid:  # else a read that failed is tried again
            self._follow(scan, oid, path, trees)
        scan.missed = oid
        self._recent[trees[0]] = None
        self._recent.move_to_end(trees[0])
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return self._siblings(scan, path, trees[0])

    def used(self, oid: bytes) -> None:
        """A program reads `oid`, which is here. Cheap: called for every open of a file."""
        scan = self._predicted.pop(oid, None)
        if scan is None:
            return
        scan.used += 1
        scan.hits += 1
        scan.last = trio.current_time()
        if scan.used * 2 >= scan.predicted:
            self._advance(scan)

    def _begin(self, oid: bytes, path: bytes, trees: tuple[bytes, ...], pid: int) -> _Scan:
        walk = NearbyWalk(self._tree, path, trees, oid)
        scan = _Scan(pid, trees, walk, trio.current_time())
        self._scans.append(scan)
        if len(self._scans) > _SCANS:
            self._scans.remove(min(self._scans, key=lambda scan: scan.last))
        return scan

    def _find(self, trees: tuple[bytes, ...], pid: int) -> _Scan | None:
        """The scan that this miss belongs to: its nearest, or that of the same process."""
        oldest = trio.current_time() - _IDLE_S
        self._scans = [scan for scan in self._scans if scan.last >= oldest]
        own = next((scan for scan in self._scans if scan.pid == pid), None)
        if own is not None:
            return own
        below_root = trees[:-1] or trees
        for tree in below_root:
            for scan in self._scans:
                if tree in scan.trees:
                    return scan
        return None

    def _follow(self, scan: _Scan, oid: bytes, path: bytes, trees: tuple[bytes, ...]) -> None:
        """A further miss of `scan`: grow it, or see that the reads are random."""
        scan.last = trio.current_time()
        moved = trees[0] != scan.trees[0]
        scan.trees = trees
        unused = scan.used * _UNUSED < scan.predicted
        scanning = scan.hits >= _SCANNING
        scan.hits = 0
        random = scan.siblings < SIBLINGS
        if (unused and not scanning) or random:
            scan.siblings = SIBLINGS if trees[0] in self._recent else scan.siblings // 2
            scan.window = scan.predicted = scan.used = 0
            scan.walk = NearbyWalk(self._tree, path, trees, oid)
            return
        if moved:
            scan.walk = NearbyWalk(self._tree, path, trees, oid)
        # Whole directories in an order that cannot be foreseen: grow with care.
        self._advance(scan, growth=2 if unused else GROWTH)

    def _siblings(self, scan: _Scan, path: bytes, directory: bytes) -> list[NearbyBlob]:
        found: list[NearbyBlob] = []
        budget = SIBLING_BYTES
        for blob in siblings(self._tree, path, directory):
            if len(found) >= scan.siblings:
                break
            size = self._size_of(blob.oid)
            cost = _UNKNOWN_SIZE if size is None else size
            if cost > min(SIBLING_SIZE, budget) or not self._absent(blob.oid):
                continue
            if size is None and classify(blob.path, blob.mode, None) is Priority.LARGE:
                continue
            budget -= cost
            found.append(blob)
        self._predict(scan, found)
        return found

    def _advance(self, scan: _Scan, growth: int = GROWTH) -> None:
        """Emit the next window of `scan`, that many times the last one."""
        scan.window = min(max(scan.window * growth, FIRST_WINDOW), MAX_WINDOW)
        window = self._collect(scan.walk, scan.window)
        scan.predicted = scan.used = 0
        if window.blobs:
            self._predict(scan, window.blobs)
            self._on_window(window)

    def _collect(self, walk: NearbyWalk, limit: int) -> Window:
        window = Window()
        taken: set[bytes] = set()
        share = limit / MAX_WINDOW
        budget = max(int(MAX_WINDOW_BYTES * share), 1 << 20)
        steps = MAX_STEPS
        for step in walk:
            steps -= 1
            if isinstance(step, NearbyTree):
                below = self._whole_subtree(step, limit - len(window.blobs), budget)
                if below:
                    walk.skip()
                    window.trees.append(step.oid)
                    window.blobs += below
                    taken.update(blob.oid for blob in below)
                    budget -= sum(map(self._cost, below))
            elif step.oid not in taken and self._absent(step.oid):
                cost = self._cost(step)
                if cost <= WINDOW_BLOB_SIZE:
                    taken.add(step.oid)
                    window.blobs.append(step)
                    window.single.append(step.oid)
                    budget -= cost
            if len(window.blobs) >= limit or budget <= 0 or steps <= 0:
                break
        return window

    def _whole_subtree(
        self, step: NearbyTree, limit: int, budget: int
    ) -> Sequence[NearbyBlob] | None:
        """The blobs below `step`, where all of them are absent and fit; else None."""
        if not self.tree_wants or limit < TREE_WANT:
            return None
        below = blobs_below(self._tree, step.oid, step.path, max_entries=limit)
        if below is None or len(below) < TREE_WANT:
            return None
        for blob in below:
            cost = self._cost(blob)
            budget -= cost
            if budget < 0 or cost > WINDOW_BLOB_SIZE or not self._absent(blob.oid):
                return None
        return below

    def _cost(self, blob: NearbyBlob) -> int:
        size = self._size_of(blob.oid)
        return _UNKNOWN_SIZE if size is None else size

    def _predict(self, scan: _Scan, blobs: Sequence[NearbyBlob]) -> None:
        scan.predicted += len(blobs)
        for blob in blobs:
            self._predicted[blob.oid] = scan
        while len(self._predicted) > _PREDICTIONS:
            self._predicted.popitem(last=False)
