"""Readahead over the tree: a scan of cold files becomes a few large requests.

The first miss fetches the file and its small siblings. A *scan* remembers them; when half of what
it predicted has been used, or the next miss comes nearby, its window grows fourfold and the
walk (`nearby`) goes on where it was, up to thousands of blobs in a request. When most of a window
was not used before the next miss, the reads are random: the window falls back, down to nothing.

A window never leaves the *scope* of its scan: the deepest directory that holds everything it has
missed so far. A scan begins at the top of what it reads, so the scope is usually right at once;
where it is too small, the next miss widens it.

Where the remote tells no sizes, what is usually large (images, archives) is known by its name's
ending, and left out. Where files with such an ending were read and turned out small, the next ones
are taken for small as well: else a scan would wait for each of them alone.

No method waits, so each is atomic on the event loop.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import trio

from artifactfs.hydration.order.nearby import (
    NearbyBlob,
    NearbyWalk,
    TreeReader,
    read_tree,
    siblings,
)
from artifactfs.hydration.order.priority import Priority, classify

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
_SCANNING = 4
"""So many uses between two misses are no accident: directories are read whole."""
_SURE = 16
"""After so many uses a scan gets its first two windows at once: the second is on its way while the
first, which is small and so comes soon, is read."""
MAX_STEPS = 4_096
"""Steps of a walk for one window: 10 ms at most, in which the event loop does nothing else."""
_UNKNOWN_SIZE = 8 << 10
_SAMPLES = 8
"""Files of one ending, the last ones that a program read, that tell how large the next will be."""
_ENDINGS = 64
_SCANS = 8
_PREDICTIONS = 8_192
_RECENT = 256
"""Directories remembered as missed in: a second miss in one is no random read."""
_IDLE_S = 30.0
_NEXT = 8
"""A miss that is among so many blobs that come next in the order of the tree is no random read."""
_NEXT_STEPS = 256
_UNUSED = 4
"""Where less than one in so many predictions was used, the reads are random."""


@dataclass(slots=True, eq=False)
class _Scan:
    """One program (or more) walking through one part of the tree.

    `path` is its last miss, `trees` are the directories above that, nearest first, `scope` is the
    end of that chain from the scope on.
    """

    pid: int
    path: bytes
    trees: tuple[bytes, ...]
    scope: tuple[bytes, ...]
    walk: NearbyWalk
    last: float
    siblings: int = SIBLINGS
    window: int = 0
    predicted: int = 0
    used: int = 0
    hits: int = 0
    missed: bytes = b""


class Readahead:
    """Predicts from misses and uses what to fetch next.

    `absent` tells whether a blob is neither here nor on its way, `size_of` its size in bytes
    where that is known. `on_window` gets the blobs of each window, in the order to ask for them.
    """

    def __init__(
        self,
        *,
        tree: TreeReader,
        absent: Callable[[bytes], bool],
        size_of: Callable[[bytes], int | None],
        on_window: Callable[[Sequence[NearbyBlob]], None],
    ) -> None:
        self._tree = lru_cache(maxsize=2)(tree)  # 1 µs an entry, at each miss in the same folder
        self._absent = absent
        self._size_of = size_of
        self._on_window = on_window
        self._scans: list[_Scan] = []
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._endings: OrderedDict[bytes, deque[bytes]] = OrderedDict()
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
            scan = self._begin(path, trees, pid)
        elif scan.missed != oid:  # else a read that failed is tried again
            self._follow(scan, oid, path, trees)
        scan.missed = oid
        self.note_endings(trees[0], (oid,))
        self._recent[trees[0]] = None
        self._recent.move_to_end(trees[0])
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return self._siblings(scan, path, trees[0])

    def note_endings(self, directory: bytes, oids: Collection[bytes]) -> None:
        """A program wants `oids` of `directory`: their sizes will tell those of others."""
        for entry in read_tree(self._tree, directory):
            if entry.oid in oids and classify(entry.name, entry.mode, None) is Priority.LARGE:
                samples = self._endings.setdefault(_ending(entry.name), deque(maxlen=_SAMPLES))
                if entry.oid not in samples:
                    samples.append(entry.oid)
        while len(self._endings) > _ENDINGS:
            self._endings.popitem(last=False)

    def _expected_size(self, blob: NearbyBlob) -> int | None:
        """Bytes, where they are known or can be guessed; None for what is large by its name."""
        size = self._size_of(blob.oid)
        if size is not None:
            return size
        if classify(blob.path, blob.mode, None) is not Priority.LARGE:
            return _UNKNOWN_SIZE
        samples = self._endings.get(_ending(blob.path), ())
        return max(
            (size for oid in samples if (size := self._size_of(oid)) is not None), default=None
        )

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

    def _begin(self, path: bytes, trees: tuple[bytes, ...], pid: int) -> _Scan:
        walk = NearbyWalk(self._tree, path, trees[:1])
        scan = _Scan(pid, path, trees, trees, walk, trio.current_time())
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
        scope = _common_end(scan.scope, trees) or trees
        moved = trees[0] != scan.trees[0] or scope != scan.scope
        unused = scan.used * _UNUSED < scan.predicted
        doubtful = (unused and scan.hits < _SCANNING) or scan.siblings < SIBLINGS
        if doubtful and self._comes_next(scan, oid):
            unused = doubtful = False
            scan.siblings = SIBLINGS
        scan.path, scan.trees, scan.scope = path, trees, scope
        if doubtful:
            scan.hits = 0
            scan.siblings = SIBLINGS if trees[0] in self._recent else scan.siblings // 2
            scan.window = scan.predicted = scan.used = 0
            scan.scope = trees
            scan.walk = NearbyWalk(self._tree, path, trees[:1])
            return
        if moved:
            levels = len(trees) - len(scope) + 1
            scan.walk = NearbyWalk(self._tree, path, trees[:levels])
        # Whole directories in an order that cannot be foreseen: grow with care.
        self._advance(scan, growth=2 if unused else GROWTH)
        scan.hits = 0

    def _comes_next(self, scan: _Scan, oid: bytes) -> bool:
        """Whether `oid` is what a walk through the tree reads next after the last miss."""
        absent = 0
        for blob in islice(NearbyWalk(self._tree, scan.path, scan.trees), _NEXT_STEPS):
            if blob.oid == oid:
                return True
            absent += self._absent(blob.oid)
            if absent >= _NEXT:
                break
        return False

    def _siblings(self, scan: _Scan, path: bytes, directory: bytes) -> list[NearbyBlob]:
        found: list[NearbyBlob] = []
        budget = SIBLING_BYTES
        for blob in siblings(self._tree, path, directory):
            if len(found) >= scan.siblings:
                break
            size = self._expected_size(blob)
            if size is None or size > min(SIBLING_SIZE, budget) or not self._absent(blob.oid):
                continue
            budget -= size
            found.append(blob)
        self._predict(scan, found)
        return found

    def _advance(self, scan: _Scan, growth: int = GROWTH) -> None:
        """Emit the next window of `scan`, that many times the last one."""
        twice = not scan.window and scan.hits >= _SURE
        scan.predicted = scan.used = 0
        for _ in range(2 if twice else 1):
            size = min(max(scan.window * growth, FIRST_WINDOW), MAX_WINDOW)
            window = self._collect(scan.walk, size)
            if window:
                scan.window = size
                self._predict(scan, window)
                self._on_window(window)

    def _collect(self, walk: NearbyWalk, limit: int) -> list[NearbyBlob]:
        window: list[NearbyBlob] = []
        taken: set[bytes] = set()
        budget = max(MAX_WINDOW_BYTES * limit // MAX_WINDOW, 1 << 20)
        for blob in islice(walk, MAX_STEPS):
            if blob.oid in taken or not self._absent(blob.oid):
                continue
            size = self._expected_size(blob)
            if size is not None and size <= WINDOW_BLOB_SIZE:
                taken.add(blob.oid)
                window.append(blob)
                budget -= size
                if len(window) >= limit or budget <= 0:
                    break
        return window

    def _predict(self, scan: _Scan, blobs: Sequence[NearbyBlob]) -> None:
        scan.predicted += len(blobs)
        for blob in blobs:
            self._predicted[blob.oid] = scan
        while len(self._predicted) > _PREDICTIONS:
            self._predicted.popitem(last=False)


def _ending(name: bytes) -> bytes:
    return name.rpartition(b".")[2].lower()


def _common_end(first: tuple[bytes, ...], second: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """What two chains of directories, nearest first, have in common at their ends."""
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        count += 1
    return first[len(first) - count :]
