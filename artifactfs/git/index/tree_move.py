"""What moving an index from one tree to another means: the paths, and the cache tree after it.

Reads the trees of changed directories only. `TREE` of the index is moved along: a directory that
is the same in both trees keeps what the index knows of it, one that differs gets its new oid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from artifactfs.git.index.caches import CachedTree
from artifactfs.git.objects.database import Oid, TreeEntry
from artifactfs.git.objects.tree_diff import TreeChange, TreeSource

_KIND = 0o170000
_TREE = 0o040000


class TreesRead:
    """A tree source that remembers what was read through it."""

    def __init__(self, odb: TreeSource) -> None:
        self._odb = odb
        self.trees: dict[Oid, list[TreeEntry]] = {}

    def tree(self, oid: Oid) -> list[TreeEntry]:
        entries = self.trees.get(oid)
        if entries is None:
            entries = self.trees[oid] = self._odb.tree(oid)
        return entries


@dataclass(slots=True)
class TreeMove:
    """`changes` in no particular order; a file that became a directory is several. `folders` are
    directories that appear or vanish. `cached` is the new cache tree, if there was one."""

    changes: list[TreeChange] = field(default_factory=list)
    folders: list[bytes] = field(default_factory=list)
    cached: CachedTree | None = None


def compare_trees(odb: TreeSource, old: Oid, new: Oid, cached: CachedTree | None) -> TreeMove:
    """From the tree `old`, of whose index `cached` is the cache tree, to `new`.

    Raises: MissingObject.
    """
    move = TreeMove()
    if old == new:
        move.cached = cached
        return move
    trusted = cached is not None and cached.entries >= 0 and cached.oid == old
    comparison = _Comparison(odb, move, trusted=trusted)
    after = comparison.directory(b"", old, new, cached)
    move.cached = after if cached is not None else None
    return move


class _Comparison:
    def __init__(self, odb: TreeSource, move: TreeMove, *, trusted: bool) -> None:
        self._odb = odb
        self._move = move
        self._trusted = trusted
        """The index is exactly the old tree, so that it will be exactly the new one."""

    def directory(
        self, prefix: bytes, old: Oid | None, new: Oid, node: CachedTree | None
    ) -> CachedTree:
        """`node` is what the index knows of the directory before; the result, after."""
        before = {entry.name: entry for entry in self._odb.tree(old)} if old is not None else {}
        result = CachedTree(0, new)
        known = self._trusted if node is None else node.entries >= 0 and node.oid == old
        for entry in self._odb.tree(new):
            was = before.pop(entry.name, None)
            below = node.below.get(entry.name) if node is not None else None
            if entry.mode & _KIND != _TREE:
                result.entries += 1
                self._file(prefix, was, entry)
                continue
            child = self._folder(prefix, was, entry, below)
            if child is None:
                known = False
                continue
            result.below[entry.name] = child
            result.entries += child.entries
            known = known and child.entries >= 0
        for was in before.values():
            self._gone(prefix, was)
        if not known:
            result.entries, result.oid = -1, b""
        return result

    def _file(self, prefix: bytes, was: TreeEntry | None, now: TreeEntry) -> None:
        if was is not None and (was.oid, was.mode) == (now.oid, now.mode):
            return
        path = prefix + now.name
        if was is not None and was.mode & _KIND == _TREE:
            self._gone(prefix, was)
            was = None
        self._move.changes.append(TreeChange(path, was, now))

    def _folder(
        self, prefix: bytes, was: TreeEntry | None, now: TreeEntry, node: CachedTree | None
    ) -> CachedTree | None:
        if was is not None and (was.oid, was.mode) == (now.oid, now.mode):
            return node
        path = prefix + now.name
        if was is not None and was.mode & _KIND == _TREE:
            return self.directory(path + b"/", was.oid, now.oid, node)
        if was is not None:
            self._move.changes.append(TreeChange(path, was, None))
        self._move.folders.append(path)
        return self.directory(path + b"/", None, now.oid, None)

    def _gone(self, prefix: bytes, was: TreeEntry) -> None:
        if was.mode & _KIND != _TREE:
            self._move.changes.append(TreeChange(prefix + was.name, was, None))
            return
        self._move.folders.append(prefix + was.name)
        for path, entry in _files_below(self._odb, prefix + was.name + b"/", was.oid):
            self._move.changes.append(TreeChange(path, entry, None))


def _files_below(odb: TreeSource, prefix: bytes, tree: Oid) -> Iterator[tuple[bytes, TreeEntry]]:
    for entry in odb.tree(tree):
        if entry.mode & _KIND == _TREE:
            yield from _files_below(odb, prefix + entry.name + b"/", entry.oid)
        else:
            yield prefix + entry.name, entry
