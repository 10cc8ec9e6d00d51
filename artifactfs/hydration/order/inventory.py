"""What one tree holds: its blobs, by class and shallow directories first, and which are here.

The inventory of 100,000 files takes 4 MB: oids are packed into byte arrays, and paths are only
looked at while the tree is walked.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio

from artifactfs.hydration.order.nearby import TreeReader, is_gitlink, read_tree
from artifactfs.hydration.order.priority import Priority

OID = 20
_ENTRIES_A_STEP = 250
"""Entries between two checkpoints: about 1 ms. Who waits for an answer of the remote needs a dozen
turns of the event loop, and waits for such a step in each."""
_CHECKS_A_STEP = 200

Classifier = Callable[[bytes, int], Priority]


class PackedOids:
    """A list of oids in 20 bytes each."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | bytearray = b"") -> None:
        self._data = bytearray(data)

    def __len__(self) -> int:
        return len(self._data) // OID

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._data[index * OID : index * OID + OID])

    def slice(self, start: int, count: int) -> Iterator[bytes]:
        """Up to `count` oids from position `start`."""
        data = self._data
        for at in range(start * OID, min(start + count, len(self)) * OID, OID):
            yield bytes(data[at : at + OID])

    def append(self, oid: bytes) -> None:
        self._data += oid

    def index(self, oid: bytes) -> int:
        """The position of `oid`, which is looked for from the start; -1: none."""
        at = self._data.find(oid)
        while at >= 0 and at % OID:
            at = self._data.find(oid, at + 1)
        return at // OID if at >= 0 else -1


@dataclass(slots=True)
class Directory:
    """A directory of the tree; `parent` indexes `TreeInventory.directories`, -1 at the root.

    `blobs` counts files below it, at any depth.
    """

    oid: bytes
    parent: int
    blobs: int = 0


@dataclass(slots=True)
class TreeInventory:
    """The blobs of `tree`, each once: `order` has them shallow directories first, `_classes` the
    priority of each. What is here, and sizes, go by the sorted oids."""

    tree: bytes
    order: PackedOids = field(default_factory=PackedOids)
    directories: list[Directory] = field(default_factory=list)
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
        """Add a blob that is not in `order` yet, in the walk."""
        self.order.append(oid)
        self._classes.append(priority)
        self._places.append(directory)

    def beginning_with(self, byte: int) -> range:
        """The positions, in the order of oids, of the blobs whose oid begins with `byte`."""
        return range(self._fanout[byte], self._fanout[byte + 1]) if self._fanout else range(0)

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
        end = self._fanout[oid[0] + 1]
        at = bisect_left(self._sorted, oid, self._fanout[oid[0]], end)
        return at if at < end and self._sorted[at] == oid else -1

    def chain(self, tree: bytes) -> tuple[bytes, ...]:
        """`tree` and the directories above it, nearest first; only `tree` if it is not known."""
        index = next((i for i, d in enumerate(self.directories) if d.oid == tree), -1)
        return self._chain(index) or (tree,)

    def _chain(self, index: int) -> tuple[bytes, ...]:
        chain: list[bytes] = []
        while index >= 0:
            chain.append(self.directories[index].oid)
            index = self.directories[index].parent
        return tuple(chain)

    def note_here(self, oid: bytes, size: int) -> None:
        """The blob `oid` has come; one that is not in the tree does not count."""
        at = self.position(oid)
        if at < 0:
            return
        self._note_size(at, size)
        if not self._here[at]:
            self._here[at] = 1
            self.here += 1
            self.here_bytes += size

    def note_size(self, oid: bytes, size: int) -> None:
        """The size of the blob `oid` is known."""
        at = self.position(oid)
        if at >= 0:
            self._note_size(at, size)

    def _note_size(self, at: int, size: int) -> None:
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
        """Look again which blobs are here. A checkpoint every millisecond."""
        for start in range(0, len(self._sorted), _CHECKS_A_STEP):
            chunk = list(self._sorted.slice(start, _CHECKS_A_STEP))
            absent = set(missing(chunk))
            for at, oid in enumerate(chunk, start):
                self._set_here(at, oid not in absent)
            await trio.lowlevel.checkpoint()

    def _set_here(self, at: int, here: bool) -> None:
        if here == bool(self._here[at]):
            return
        step = 1 if here else -1
        self._here[at] = here
        self.here += step
        self.here_bytes += step * max(self._sizes[at], 0)

    def finish(self, oids: set[bytes]) -> None:
        """Take the distinct blobs of the walk."""
        self._sorted = PackedOids(b"".join(sorted(oids)))
        self._fanout = [bisect_left(self._sorted, bytes([first])) for first in range(256)]
        self._fanout.append(len(oids))
        self._here = bytearray(len(oids))
        self._sizes = array("q", [-1]) * len(oids)


async def take_inventory(read: TreeReader, tree: bytes, classify: Classifier) -> TreeInventory:
    """Walk `tree` breadth first. A checkpoint every millisecond; no network."""
    inventory = TreeInventory(tree)
    seen: set[bytes] = set()
    queue: deque[tuple[bytes, bytes, int]] = deque([(tree, b"", -1)])
    steps = 0
    while queue:
        oid, prefix, parent = queue.popleft()
        index = len(inventory.directories)
        directory = Directory(oid, parent)
        inventory.directories.append(directory)
        for entry in read_tree(read, oid):
            steps += 1
            if stat.S_ISDIR(entry.mode):
                queue.append((entry.oid, prefix + entry.name + b"/", index))
            elif not is_gitlink(entry.mode):
                directory.blobs += 1
                if entry.oid not in seen:
                    seen.add(entry.oid)
                    priority = classify(prefix + entry.name, entry.mode)
                    inventory.add(entry.oid, priority, index)
        if steps >= _ENTRIES_A_STEP:
            steps = 0
            await trio.lowlevel.checkpoint()
    for directory in reversed(inventory.directories):
        if directory.parent >= 0:
            inventory.directories[directory.parent].blobs += directory.blobs
    inventory.finish(seen)
    return inventory


def partition(inventory: TreeInventory, *, max_blobs: int, min_blobs: int) -> list[bytes]:
    """Trees of `min_blobs` to `max_blobs` files that do not overlap, the largest possible ones.

    Files in directories that are too large themselves, or beside those trees, are in none.
    """
    chosen: list[bytes] = []
    open_above = [False] * len(inventory.directories)
    for index, directory in enumerate(inventory.directories):
        if directory.parent >= 0 and not open_above[directory.parent]:
            continue  # a tree above was chosen, or was too small to be worth a want
        if directory.blobs > max_blobs:
            open_above[index] = True
        elif directory.blobs >= min_blobs:
            chosen.append(directory.oid)
    return list(dict.fromkeys(chosen))
