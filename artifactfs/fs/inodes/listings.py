"""Entries of base trees, by tree oid: the most recently used ones are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

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

    def entries(self, tree: Oid | None) -> Entries:
        """Entries by name. Raises: MissingObject, CorruptData."""
        return self._listing(tree)[0] if tree is not None else _NONE

    def subdirectories(self, tree: Oid | None) -> int:
        """How many entries are directories (submodules are shown as such)."""
        return self._listing(tree)[1] if tree is not None else 0

    def known(self, tree: Oid) -> list[TreeEntry] | None:
        """The entries of a tree that is kept; None: it is not. For any thread."""
        kept = self._kept.get(tree)
        return None if kept is None else list(kept[0].values())

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


def is_directory_entry(entry: TreeEntry) -> bool:
    return entry.mode & 0o170000 in (GIT_DIRECTORY, GIT_LINK)


def base_tree_of(entry: TreeEntry) -> Oid | None:
    """The tree below a directory entry; a submodule has none."""
    return entry.oid if entry.mode & 0o170000 == GIT_DIRECTORY else None
