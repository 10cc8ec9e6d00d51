"""Differences between two trees, from the object database alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from artifactfs.git.objects.database import Oid, TreeEntry

_TREE = 0o040000


class TreeSource(Protocol):
    """An object database."""

    def tree(self, oid: Oid) -> list[TreeEntry]: ...


class TreeChange(NamedTuple):
    """A file, symlink or submodule that differs. None: it is not there.

    A file that became a directory is two.
    """

    path: bytes
    before: TreeEntry | None
    after: TreeEntry | None


def diff_trees(odb: TreeSource, old: Oid | None, new: Oid | None) -> Iterator[TreeChange]:
    """Every file, symlink and submodule that differs, in O(changed directories).

    Raises: MissingObject.
    """
    stack = [(b"", old, new)]
    while stack:
        prefix, before_tree, after_tree = stack.pop()
        for before, after in changed_entries(odb, before_tree, after_tree):
            name = (before or after).name  # type: ignore[union-attr]
            path = prefix + name
            before_below = before.oid if before is not None and before.mode == _TREE else None
            after_below = after.oid if after is not None and after.mode == _TREE else None
            if before_below is not None or after_below is not None:
                stack.append((path + b"/", before_below, after_below))
            was = before if before_below is None else None
            now = after if after_below is None else None
            if was is not None or now is not None:
                yield TreeChange(path, was, now)


def changed_entries(
    odb: TreeSource, old: Oid | None, new: Oid | None
) -> Iterator[tuple[TreeEntry | None, TreeEntry | None]]:
    """Entries of one directory that differ, directories among them."""
    before = {entry.name: entry for entry in odb.tree(old)} if old is not None else {}
    after = odb.tree(new) if new is not None else []
    for entry in after:
        was = before.pop(entry.name, None)
        if was is None or was.oid != entry.oid or was.mode != entry.mode:
            yield was, entry
    for entry in before.values():
        yield entry, None
