"""Entries of base trees, by tree oid: the most recently used ones are kept."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from artifactfs.fs.inodes.compact import NOWHERE
from artifactfs.fs.inodes.inode import GIT_DIRECTORY, GIT_LINK
from artifactfs.git.objects.database import ObjectDatabase, Oid, TreeEntry

KEPT_ENTRIES = 20_000
"""Entries kept in all, some 250 bytes each."""

Entries = Mapping[bytes, TreeEntry]

_NONE: Entries = MappingProxyType({})


class Listings:
    """Reads trees from the object database. `EMPTY` stands for a directory without a base."""

    EMPTY = _NONE

    def __init__(self, odb: ObjectDatabase) -> None:
        self._odb = odb
        self._kept: OrderedDict[Oid, tuple[Entries, int]] = OrderedDict()
        self._count = 0
        self._last: tuple[Oid, tuple[TreeEntry, ...]] = (b"", ())
        """The tree that was last looked into by position."""

    def entries(self, tree: Oid | None) -> Entries:
        """Entries by name. Raises: MissingObject, CorruptData."""
        return self._listing(tree)[0] if tree is not None else _NONE

    def subdirectories(self, tree: Oid | None) -> int:
        """How many entries are directories (submodules are shown as such)."""
        return self._listing(tree)[1] if tree is not None else 0

    def at(self, tree: Oid | None, position: int) -> TreeEntry | None:
        """The entry at `position` of `entries`. Raises: MissingObject, CorruptData."""
        if tree is None:
            return None
        ordered = self._ordered(tree)
        return ordered[position] if position < len(ordered) else None

    def position(self, tree: Oid | None, name: bytes) -> int:
        """Where the file `name` is; `NOWHERE` if that cannot be told without reading the tree."""
        if tree is None or tree not in self._kept:
            return NOWHERE
        ordered = self._ordered(tree)
        at = bisect_left(ordered, name, key=_order)
        return at if at < len(ordered) and ordered[at].name == name else NOWHERE

    def _ordered(self, tree: Oid) -> tuple[TreeEntry, ...]:
        if self._last[0] != tree:
            self._last = tree, tuple(self._listing(tree)[0].values())
        return self._last[1]

    def read(self, tree: Oid) -> list[TreeEntry]:
        """The entries of a tree, for who walks through all of them: they are kept while there is
        room, and nothing that others use goes for them. Raises: MissingObject, CorruptData."""
        kept = self.known(tree)
        if kept is not None:
            return kept
        found = self._odb.tree(tree)
        if self._count + len(found) <= KEPT_ENTRIES:
            self._keep(tree, found)
        return found

    def known(self, tree: Oid) -> list[TreeEntry] | None:
        """The entries of a tree that is kept; None: it is not. For any thread."""
        kept = self._kept.get(tree)
        return None if kept is None else list(kept[0].values())

    def forget(self, tree: Oid) -> None:
        """Read it anew when it is asked for."""
        kept = self._kept.pop(tree, None)
        if kept is not None:
            self._count -= len(kept[0])
        self._last = b"", ()

    def adopt(self, trees: Mapping[Oid, Iterable[TreeEntry]]) -> None:
        """Trees that were just read by somebody else, off the event loop."""
        for oid, entries in trees.items():
            if oid not in self._kept:
                self._keep(oid, entries)

    def _listing(self, tree: Oid) -> tuple[Entries, int]:
        kept = self._kept.get(tree)
        if kept is not None:
            self._kept.move_to_end(tree)
            return kept
        return self._keep(tree, self._odb.tree(tree))

    def _keep(self, tree: Oid, found: Iterable[TreeEntry]) -> tuple[Entries, int]:
        entries = {entry.name: entry for entry in found}
        subdirectories = sum(is_directory_entry(entry) for entry in entries.values())
        self._kept[tree] = entries, subdirectories
        self._count += len(entries)
        while self._count > KEPT_ENTRIES and len(self._kept) > 1:
            _, (dropped, _) = self._kept.popitem(last=False)
            self._count -= len(dropped)
        return entries, subdirectories


def _order(entry: TreeEntry) -> bytes:
    """What git sorts trees by."""
    return entry.name + b"/" if entry.mode & 0o170000 == GIT_DIRECTORY else entry.name


def is_directory_entry(entry: TreeEntry) -> bool:
    return entry.mode & 0o170000 in (GIT_DIRECTORY, GIT_LINK)


def base_tree_of(entry: TreeEntry) -> Oid | None:
    """The tree below a directory entry; a submodule has none."""
    return entry.oid if entry.mode & 0o170000 == GIT_DIRECTORY else None
