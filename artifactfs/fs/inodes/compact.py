"""Clean files that the kernel refers to and nobody works with: 17 bytes each, an `Inode` takes 400.

Whoever lists a tree of a million files has the kernel refer to a million inodes, of which all is
known from the base tree: where the entry is in it tells name, mode and oid. So what is kept of each
is its number, its directory, its position there, and how many references the kernel holds. When the
kernel asks for one of them, `Tree` makes an `Inode` of it again.

A position is a hint. It may be unknown, or wrong since the directory got another base tree; numbers
are derived from names, so that is noticed, and `reindex` sets all of a directory right.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from artifactfs.fs.inodes.inode import Directory

NOWHERE = (1 << 24) - 1
"""The position of what lies behind that many entries, or of which it is not known."""
MOST_REFERENCES = (1 << 8) - 1

_SHARDS = 256
"""Of a million numbers 4,000 are in each, so a new one moves 16 KB at most."""


class Held(NamedTuple):
    """One of them; `references` are the kernel's."""

    directory: Directory
    position: int
    references: int


class CompactFiles:
    """Sorted numbers in shards (derived numbers are hashes: any bits will do), beside each
    the index of its directory (32 bits), the position (24) and the references (8)."""

    __slots__ = ("_count", "_directories", "_free", "_numbers", "_places", "_users")

    def __init__(self) -> None:
        self._numbers = [array("Q") for _ in range(_SHARDS)]
        self._places = [array("Q") for _ in range(_SHARDS)]
        self._directories: list[Directory | None] = []
        self._users = array("L")
        """How many are in each of the directories."""
        self._free: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def hold(self, ino: int, directory: Directory, position: int, references: int = 1) -> bool:
        """Add references to the entry at `position` of `directory`. False, and nothing is changed,
        where `ino` is known from elsewhere, or they are too many: then it needs an `Inode`."""
        position = min(position, NOWHERE)
        numbers = self._numbers[ino % _SHARDS]
        at = bisect_left(numbers, ino)
        if at < len(numbers) and numbers[at] == ino:
            return self._hold_again(ino % _SHARDS, at, directory, position, references)
        index = directory.compact
        if index < 0:
            index = self._enter(directory)
        numbers.insert(at, ino)
        self._places[ino % _SHARDS].insert(at, index << 32 | position << 8 | references)
        self._users[index] += 1
        self._count += 1
        directory.children += 1
        return True

    def _hold_again(
        self, shard: int, at: int, directory: Directory, position: int, references: int
    ) -> bool:
        place = self._places[shard][at]
        if place & MOST_REFERENCES > MOST_REFERENCES - references:
            return False
        if place >> 8 != directory.compact << 24 | position:
            return False
        self._places[shard][at] = place + references
        return True

    def find(self, ino: int) -> Held | None:
        """What is known of `ino`."""
        numbers = self._numbers[ino % _SHARDS]
        at = bisect_left(numbers, ino)
        if at == len(numbers) or numbers[at] != ino:
            return None
        place = self._places[ino % _SHARDS][at]
        directory = self._directories[place >> 32]
        assert directory is not None
        return Held(directory, place >> 8 & NOWHERE, place & MOST_REFERENCES)

    def forget(self, ino: int, references: int) -> Directory | None:
        """Take references away; with the last one `ino` goes. Returns its directory then, which
        has one child less."""
        numbers = self._numbers[ino % _SHARDS]
        at = bisect_left(numbers, ino)
        if at == len(numbers) or numbers[at] != ino:
            return None
        places = self._places[ino % _SHARDS]
        if places[at] & MOST_REFERENCES > references:
            places[at] -= references
            return None
        return self._remove(numbers, places, at)

    def take(self, ino: int) -> None:
        """Remove `ino`, whatever refers to it."""
        self.forget(ino, MOST_REFERENCES)

    def reindex(self, directory: Directory, inos: Iterable[int]) -> None:
        """`inos` are the numbers of what is in `directory` now, in the order of its entries."""
        for position, ino in enumerate(inos):
            numbers = self._numbers[ino % _SHARDS]
            at = bisect_left(numbers, ino)
            if at < len(numbers) and numbers[at] == ino:
                places = self._places[ino % _SHARDS]
                if places[at] >> 32 == directory.compact:
                    place = directory.compact << 32 | min(position, NOWHERE) << 8
                    places[at] = place | places[at] & MOST_REFERENCES

    def _remove(self, numbers: array[int], places: array[int], at: int) -> Directory:
        index = places[at] >> 32
        del numbers[at], places[at]
        self._count -= 1
        directory = self._directories[index]
        assert directory is not None
        directory.children -= 1
        self._users[index] -= 1
        if not self._users[index]:
            directory.compact = -1
            self._directories[index] = None
            self._free.append(index)
        return directory

    def _enter(self, directory: Directory) -> int:
        if self._free:
            index = self._free.pop()
            self._directories[index] = directory
        else:
            index = len(self._directories)
            self._directories.append(directory)
            self._users.append(0)
        directory.compact = index
        return index
