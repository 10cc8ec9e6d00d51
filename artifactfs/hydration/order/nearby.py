"""The files near a file that was missed, nearest first, read from the trees that are here.

A walk starts behind the missed file in its directory, goes on to the end of the directory and
below it, then to what comes before, then the same one directory up, and so on to the root: the
order in which a scan (``grep -r``, ``tar``, ``rsync``) will want them.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from artifactfs.errors import CorruptData
from artifactfs.git.objects.database import MissingObject, TreeEntry

TreeReader = Callable[[bytes], list[TreeEntry]]


@dataclass(frozen=True, slots=True)
class NearbyBlob:
    """One file of the walk: its blob, path and mode."""

    oid: bytes
    path: bytes
    mode: int


def read_tree(tree: TreeReader, oid: bytes) -> list[TreeEntry]:
    """The entries of a tree; none where it is not here (readahead is only a guess)."""
    try:
        return tree(oid)
    except (MissingObject, CorruptData):
        return []


def blobs_below(
    tree: TreeReader, root: bytes, prefix: bytes, *, max_entries: int
) -> list[NearbyBlob] | None:
    """Every blob below the tree `root`; None where it has more than `max_entries` entries."""
    blobs: list[NearbyBlob] = []
    pending = [(root, prefix)]
    seen = 0
    while pending:
        oid, path = pending.pop()
        entries = read_tree(tree, oid)
        seen += len(entries)
        if seen > max_entries:
            return None
        for entry in entries:
            if stat.S_ISDIR(entry.mode):
                pending.append((entry.oid, path + entry.name + b"/"))
            elif not is_gitlink(entry.mode):
                blobs.append(NearbyBlob(entry.oid, path + entry.name, entry.mode))
    return blobs


def is_gitlink(mode: int) -> bool:
    """Whether a tree entry is a submodule, which has no blob."""
    return mode & 0o170000 == 0o160000


class NearbyWalk:
    """An endless-looking iterator over `NearbyBlob`; keeps its position.

    `trees` are the directories above `path` up to the one that the walk stays in, nearest first.
    """

    def __init__(self, tree: TreeReader, path: bytes, trees: Sequence[bytes]) -> None:
        self._tree = tree
        self._steps = self._walk(path.split(b"/"), trees)

    def __iter__(self) -> Iterator[NearbyBlob]:
        return self._steps

    def _walk(self, parts: list[bytes], trees: Sequence[bytes]) -> Iterator[NearbyBlob]:
        for level, directory in enumerate(trees):
            depth = len(parts) - 1 - level
            prefix = b"".join(part + b"/" for part in parts[:depth])
            name = parts[depth] if 0 <= depth < len(parts) else b""
            entries = read_tree(self._tree, directory)
            at = next((i for i, entry in enumerate(entries) if entry.name == name), -1)
            yield from self._below(entries[at + 1 :], prefix)
            yield from self._below(entries[: max(at, 0)], prefix)

    def _below(self, entries: Sequence[TreeEntry], prefix: bytes) -> Iterator[NearbyBlob]:
        stack = [(iter(entries), prefix)]
        while stack:
            iterator, path = stack[-1]
            entry = next(iterator, None)
            if entry is None:
                stack.pop()
            elif stat.S_ISDIR(entry.mode):
                below = path + entry.name + b"/"
                stack.append((iter(read_tree(self._tree, entry.oid)), below))
            elif not is_gitlink(entry.mode):
                yield NearbyBlob(entry.oid, path + entry.name, entry.mode)


def siblings(
    tree: TreeReader, path: bytes, directory: bytes, *, max_entries: int = 2_000
) -> Iterator[NearbyBlob]:
    """The other files of one directory, those behind `path` first."""
    prefix, slash, name = path.rpartition(b"/")
    prefix += slash
    entries = read_tree(tree, directory)[:max_entries]
    at = next((i for i, entry in enumerate(entries) if entry.name == name), -1)
    for entry in (*entries[at + 1 :], *entries[: max(at, 0)]):
        if not stat.S_ISDIR(entry.mode) and not is_gitlink(entry.mode):
            yield NearbyBlob(entry.oid, prefix + entry.name, entry.mode)
