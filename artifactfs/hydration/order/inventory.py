"""What one tree holds: its blobs, by class and shallow directories first, and which are here.

The inventory of 100,000 files takes 4 MB: oids are packed into byte arrays, and paths are only
looked at while the tree is walked.
"""

from __future__ import annotations

import stat
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import trio

from artifactfs.git.pack.format import split_oids
from artifactfs.hydration.order.nearby import TreeReader, is_gitlink, read_tree
from artifactfs.hydration.order.priority import Priority

OID = 20
_ENTRIES_A_STEP = 250
"""Entries between two checkpoints: about 1 ms. Who waits for an answer of the remote needs a dozen
turns of the event loop, and waits for such a step in each."""
_CHECKS_A_STEP = 4_000
_SWAPPED = bytes((1, 0)).ljust(256, b"\0")
_NEAR = 100
_CHECKS_IN_A_ROW = 4_096

Classifier = Callable[[bytes, int], Priority]


class PackedOids:
    """A list of oids in 20 bytes each."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | bytearray = b"") -> None:
        self._data = data if isinstance(data, bytearray) else bytearray(data)

    def __len__(self) -> int:
        return len(self._data) // OID

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._data[index * OID : index * OID + OID])

    def slice(self, start: int, count: int) -> list[bytes]:
        """Up to `count` oids from position `start`."""
        return split_oids(self._data, start * OID, min(start + count, len(self)) * OID)

    def append(self, oid: bytes) -> None:
        self._data += oid

    @property
    def packed(self) -> bytearray:
        """All of them, one after the other. Not to be changed."""
        return self._data

    def extend(self, other: PackedOids, start: int, end: int) -> None:
        """Append those of `other` from position `start` on, before `end`."""
        self._data += memoryview(other._data)[start * OID : end * OID]

    def first_byte(self, index: int) -> int:
        """The first byte of the oid there."""
        return self._data[index * OID]

    def place(self, oid: bytes, start: int, end: int) -> int:
        """The position of `oid` from `start` on and before `end`; -1: none."""
        at = self._data.find(oid, start * OID, end * OID)
        while at >= 0 and at % OID:
            at = self._data.find(oid, at + 1, end * OID)
        return at // OID if at >= 0 else -1

    def index(self, oid: bytes) -> int:
        """The position of `oid`, which is looked for from the start; -1: none."""
        at = self._data.find(oid)
        while at >= 0 and at % OID:
            at = self._data.find(oid, at + 1)
        return at // OID if at >= 0 else -1


class Directories:
    """The directories of a tree in the order of the walk: 28 bytes each, where objects among those
    of the walk that go again would keep its memory."""

    __slots__ = ("blobs", "oids", "parents")

    def __init__(self) -> None:
        self.oids = PackedOids()
        self.parents = array("i")
        """The position of the directory above, -1 at the root."""
        self.blobs = array("I")
        """Files below, at any depth."""

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, oid: bytes, parent: int, blobs: int) -> None:
        self.oids.append(oid)
        self.parents.append(parent)
        self.blobs.append(blobs)

    def sum_up(self) -> None:
        """Have those above count what is below: each is behind its parent."""
        for index in range(len(self) - 1, 0, -1):
            self.blobs[self.parents[index]] += self.blobs[index]


@dataclass(slots=True)
class TreeInventory:
    """The blobs of `tree`, each once: `order` has them shallow directories first, `_classes` the
    priority of each. What is here, and sizes, go by the sorted oids."""

    tree: bytes
    order: PackedOids = field(default_factory=PackedOids)
    directories: Directories = field(default_factory=Directories)
    _classes: bytearray = field(default_factory=bytearray)
    _places: array[int] = field(default_factory=lambda: array("I"))
    """For each blob in `order`, the directory in which it was met first."""
    _sorted: PackedOids = field(default_factory=PackedOids)
    _fanout: list[int] = field(default_factory=list)
    """Where the oids begin that begin with each byte, and their end; empty before `finish`."""
    _here: bytearray = field(default_factory=bytearray)
    _sizes: array[int] = field(default_factory=lambda: array("q"))
    here: int = 0
    here_bytes: int = 0
    total_bytes: int = 0
    sizes_known: int = 0

    @property
    def total(self) -> int:
        return len(self._sorted)

    def find(self, priority: Priority, start: int) -> int:
        """The first position in `order` from `start` with a blob of that priority; -1: none."""
        return self._classes.find(priority, start)

    def of_priority(self, priority: Priority) -> list[bytes]:
        """Every blob of that priority, shallow directories first."""
        found = []
        position = self.find(priority, 0)
        while position >= 0:
            found.append(self.order[position])
            position = self.find(priority, position + 1)
        return found

    def reclass(self, position: int, priority: Priority) -> None:
        """Give the blob at `position` of `order` another priority."""
        self._classes[position] = priority

    def remaining(self, priority: Priority) -> int:
        """How many blobs have that priority, here or not."""
        return self._classes.count(priority)

    def add(self, oid: bytes, priority: Priority, directory: int = 0) -> None:
        """Add a blob that was met in the walk."""
        self.order.append(oid)
        self._classes.append(priority)
        self._places.append(directory)

    def beginning_with(self, byte: int) -> range:
        """The positions, in the order of oids, of the blobs whose oid begins with `byte`."""
        return range(self._fanout[byte], self._fanout[byte + 1]) if self._fanout else range(0)

    def oids_from(self, position: int, count: int) -> list[bytes]:
        """Up to `count` oids from a position in the order of oids."""
        return self._sorted.slice(position, count)

    def sample(self, count: int) -> list[bytes]:
        """About so many oids from all over the tree."""
        return [self._sorted[at] for at in range(0, self.total, max(self.total // count, 1))]

    @property
    def packed_oids(self) -> bytearray:
        """The oids in their order, 20 bytes each; none before `finish`. Not to be changed."""
        return self._sorted.packed

    def oid_at(self, position: int) -> bytes:
        """The oid at a position in the order of oids."""
        return self._sorted[position]

    def directory_of(self, oid: bytes) -> tuple[bytes, ...]:
        """The trees above the blob `oid`, nearest first; 0.1 ms. Empty: it is not in the tree."""
        position = self.order.index(oid)
        return self._chain(self._places[position]) if position >= 0 else ()

    def position(self, oid: bytes) -> int:
        """Where `oid` is in the order of oids; -1: it is not a blob of the tree."""
        if not self._fanout:
            return -1
        start, end = self._fanout[oid[0]], self._fanout[oid[0] + 1]
        if end - start > 2 * _NEAR:  # oids are hashes: it is near where it is to be expected
            guess = start + (int.from_bytes(oid[1:4], "big") * (end - start) >> 24)
            at = self._sorted.place(oid, max(start, guess - _NEAR), min(end, guess + _NEAR))
            if at >= 0:
                return at
        return self._sorted.place(oid, start, end)

    def chain(self, tree: bytes) -> tuple[bytes, ...]:
        """`tree` and the directories above it, nearest first; only `tree` if it is not known."""
        index = self.directories.oids.index(tree)
        return self._chain(index) or (tree,)

    def _chain(self, index: int) -> tuple[bytes, ...]:
        chain: list[bytes] = []
        while index >= 0:
            chain.append(self.directories.oids[index])
            index = self.directories.parents[index]
        return tuple(chain)

    def sizes_of(self, oids: Iterable[bytes]) -> dict[bytes, int]:
        """Those of `oids` whose size is known here: 1 us each, of one directory or of many."""
        found: dict[bytes, int] = {}
        for oid in oids:
            at = self.position(oid)
            if at >= 0 and self._sizes[at] >= 0:
                found[oid] = self._sizes[at]
        return found

    def note_here(self, oid: bytes, size: int) -> None:
        """The blob `oid` has come; one that is not in the tree does not count."""
        at = self.position(oid)
        if at < 0:
            return
        self.note_size_at(at, size)
        if not self._here[at]:
            self._here[at] = 1
            self.here += 1
            self.here_bytes += size

    def note_many_here(self, blobs: Sequence[tuple[bytes, int]]) -> list[tuple[bytes, int, int]]:
        """As `note_here` for many, sorted by oid. Returns those whose size was not known to be
        that: oid, size, and what was known (-1: nothing)."""
        others: list[tuple[bytes, int, int]] = []
        first, start = -1, 0
        for oid, size in blobs:
            if oid[0] != first:
                first = oid[0]
                start = self._fanout[first] if self._fanout else 0
            end = self._fanout[first + 1] if self._fanout else 0
            at = self._sorted.place(oid, start, end)
            before = self._sizes[at] if at >= 0 else -1
            if before != size:
                others.append((oid, size, before))
                if at < 0:
                    continue
                self.note_size_at(at, size)
            start = at
            if not self._here[at]:
                self._here[at] = True
                self.here += 1
                self.here_bytes += size
        return others

    def absent(self) -> list[bytes]:
        """The blobs that are not here, in the order of oids."""
        return self._marked(0)

    def present(self) -> list[bytes]:
        """The blobs that are here, in the order of oids."""
        return self._marked(1)

    def _marked(self, here: int) -> list[bytes]:
        found = []
        at = self._here.find(here)
        while at >= 0:
            found.append(self._sorted[at])
            at = self._here.find(here, at + 1)
        return found

    def note_size(self, oid: bytes, size: int) -> None:
        """The size of the blob `oid` is known."""
        at = self.position(oid)
        if at >= 0:
            self.note_size_at(at, size)

    def note_size_at(self, at: int, size: int) -> None:
        """The size of the blob at position `at` in the order of oids is known."""
        before = self._sizes[at]
        if before == size:
            return
        self._sizes[at] = size
        if before < 0:
            self.sizes_known += 1
            before = 0
        self.total_bytes += size - before
        if self._here[at]:
            self.here_bytes += size - before

    async def count(self, missing: Callable[[list[bytes]], list[bytes]]) -> None:
        """Look again which blobs are here: `missing` picks out of sorted oids those that are not.
        A checkpoint every millisecond."""
        for start in range(0, self.total, _CHECKS_A_STEP):
            chunk = self._sorted.slice(start, _CHECKS_A_STEP)
            absent = set(missing(chunk))
            self._set_here(start, bytes(map(absent.__contains__, chunk)).translate(_SWAPPED))
            await trio.lowlevel.checkpoint()

    def _set_here(self, start: int, here: bytes) -> None:
        """What is here of the blobs from `start` on: 1 for each that is, 0 for the others."""
        end = start + len(here)
        before = self._here[start:end]
        if here == before:
            return
        sizes = self._sizes[start:end]
        self._here[start:end] = here
        self.here += here.count(1) - before.count(1)
        self.here_bytes += _known(compress(sizes, here)) - _known(compress(sizes, before))

    async def finish(self) -> None:
        """Take the blobs of the walk, each once, the first time. A checkpoint every millisecond."""
        buckets = [array("I") for _ in range(256)]
        for at in range(len(self.order)):
            buckets[self.order.first_byte(at)].append(at)
            if not at % _CHECKS_IN_A_ROW:
                await trio.lowlevel.checkpoint()
        ordered = bytearray()
        again = bytearray(len(self.order))
        for bucket in buckets:
            self._fanout.append(len(ordered) // OID)
            seen: set[bytes] = set()
            for at in bucket:
                oid = self.order[at]
                again[at] = oid in seen
                seen.add(oid)
            ordered += b"".join(sorted(seen))
            await trio.lowlevel.checkpoint()
        count = len(ordered) // OID
        self._fanout.append(count)
        self._sorted = PackedOids(ordered)
        if count < len(self.order):
            await self._leave_out(again)
        self._here = bytearray(count)
        self._sizes = array("q", [-1]) * count

    async def _leave_out(self, marked: bytearray) -> None:
        """Keep of the walk what is not marked."""
        order, classes, places = PackedOids(), bytearray(), array("I")
        start = 0
        while start < len(marked):
            end = marked.find(1, start)
            end = len(marked) if end < 0 else end
            order.extend(self.order, start, end)
            classes += self._classes[start:end]
            places += self._places[start:end]
            start = end + 1
            if not start % _CHECKS_IN_A_ROW:
                await trio.lowlevel.checkpoint()
        self.order, self._classes, self._places = order, classes, places


def _known(sizes: Iterable[int]) -> int:
    """The sum of the sizes that are known."""
    counted = array("q", sizes)
    return sum(counted) + counted.count(-1)


async def take_inventory(read: TreeReader, tree: bytes, classify: Classifier) -> TreeInventory:
    """Walk `tree` breadth first. A checkpoint every millisecond; no network."""
    inventory = TreeInventory(tree)
    queue: deque[tuple[bytes, bytes, int]] = deque([(tree, b"", -1)])
    steps = 0
    while queue:
        oid, prefix, parent = queue.popleft()
        index = len(inventory.directories)
        blobs = 0
        for entry in read_tree(read, oid):
            steps += 1
            if stat.S_ISDIR(entry.mode):
                queue.append((entry.oid, prefix + entry.name + b"/", index))
            elif not is_gitlink(entry.mode):
                blobs += 1
                inventory.add(entry.oid, classify(prefix + entry.name, entry.mode), index)
        inventory.directories.add(oid, parent, blobs)
        if steps >= _ENTRIES_A_STEP:
            steps = 0
            await trio.lowlevel.checkpoint()
    inventory.directories.sum_up()
    await inventory.finish()
    return inventory


def partition(inventory: TreeInventory, *, max_blobs: int, min_blobs: int) -> dict[bytes, int]:
    """Trees of `min_blobs` to `max_blobs` files that do not overlap, the largest possible ones,
    with how many files each has.

    Files in directories that are too large themselves, or beside those trees, are in none.
    """
    chosen: dict[bytes, int] = {}
    directories = inventory.directories
    open_above = bytearray(len(directories))
    for index, parent in enumerate(directories.parents):
        if parent >= 0 and not open_above[parent]:
            continue  # a tree above was chosen, or was too small to be worth a want
        if directories.blobs[index] > max_blobs:
            open_above[index] = True
        elif directories.blobs[index] >= min_blobs:
            chosen.setdefault(directories.oids[index], directories.blobs[index])
    return chosen


def bundles(trees: Mapping[bytes, int], *, most: int, at_least: int) -> list[tuple[bytes, ...]]:
    """`trees` for requests of about the same number of files: `most` at most, where one tree has
    not more, and `at_least` requests, where there are so many trees."""
    share = sum(trees.values()) / at_least
    found: list[tuple[bytes, ...]] = []
    count = 0
    for tree, blobs in trees.items():
        if found and count < share and count + blobs <= most:
            found[-1] += (tree,)
            count += blobs
        else:
            found.append((tree,))
            count = blobs
    return found
