"""Walks over the whole tree that leave no inodes in memory: they read overlay and trees only."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from artifactfs.fs.inodes.inode import Row, mode_of_entry
from artifactfs.fs.inodes.listings import Entries, Listings, base_tree_of, is_directory_entry
from artifactfs.fs.overlay.database import Overlay
from artifactfs.git.objects.database import Oid, TreeEntry
from artifactfs.inode_numbers import ROOT_INO, derive_ino

Kind = Literal["added", "modified", "deleted", "mode"]


@dataclass(frozen=True, slots=True)
class LocalChange:
    """A difference from the mounted commit. A directory's path ends in a slash."""

    path: bytes
    kind: Kind


@dataclass(frozen=True, slots=True)
class Place:
    """What is at a path: the row of the overlay, or the entry of the base tree."""

    path: bytes
    ino: int
    row: Row | None
    entry: TreeEntry | None

    @property
    def mode(self) -> int:
        """`st_mode`."""
        if self.row is not None:
            return self.row.mode
        assert self.entry is not None
        return mode_of_entry(self.entry.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def oid(self) -> Oid | None:
        """The blob, or the base tree of a directory."""
        if self.row is not None:
            return self.row.oid
        assert self.entry is not None
        return base_tree_of(self.entry) if is_directory_entry(self.entry) else self.entry.oid

    def child_path(self, name: bytes) -> bytes:
        return self.path + b"/" + name if self.path else name


class Walker:
    """Reads what is committed; so call it between changes, that is without an await."""

    def __init__(self, overlay: Overlay, listings: Listings) -> None:
        self._overlay = overlay
        self._listings = listings

    @property
    def root(self) -> Place:
        return Place(b"", ROOT_INO, self._overlay.row(ROOT_INO), None)

    def find(self, path: bytes) -> Place | None:
        """What is at `path`."""
        place: Place | None = self.root
        for name in path.split(b"/") if path else ():
            if place is None or not place.is_directory:
                return None
            place = self.child(place, name)
        return place

    def names(self, place: Place) -> dict[bytes, int]:
        """Dirents of the overlay in a directory."""
        return self._overlay.names(place.ino) if place.row is not None else {}

    def entries(self, tree: Oid | None) -> Entries:
        return self._listings.entries(tree)

    def child(
        self, place: Place, name: bytes, names: dict[bytes, int] | None = None
    ) -> Place | None:
        """`names` are the dirents of `place`, where the caller has them."""
        ino = (self.names(place) if names is None else names).get(name)
        path = place.child_path(name)
        if ino == 0:
            return None
        if ino is not None:
            return Place(path, ino, self._overlay.row(ino), None)
        entry = self.entries(place.oid).get(name)
        if entry is None:
            return None
        ino = derive_ino(self._overlay.ino_secret, place.ino, name)
        return Place(path, ino, None, entry)

    def directories_below(self, path: bytes, limit: int) -> list[bytes] | None:
        """`path` and every directory below it; none where it is not one, None beyond `limit`."""
        start = self.find(path)
        if start is None or not start.is_directory:
            return []
        found: list[bytes] = []
        stack = [(start.path, start.ino, start.row is not None, start.oid)]
        while stack:
            path, ino, has_row, tree = stack.pop()
            found.append(path)
            if len(found) > limit:
                return None
            names = self._overlay.names(ino) if has_row else {}
            prefix = path + b"/" if path else b""
            for entry in self.entries(tree).values():
                if is_directory_entry(entry) and entry.name not in names:
                    child = derive_ino(self._overlay.ino_secret, ino, entry.name)
                    stack.append((prefix + entry.name, child, False, base_tree_of(entry)))
            if any(names.values()):
                for name, child in self._overlay.subdirectories(ino):
                    row = self._overlay.row(child)
                    stack.append((prefix + name, child, True, row.oid if row else None))
        return found

    def local_changes(self, base: Oid) -> Iterator[LocalChange]:
        """Differences of the tree from `base`, sorted within each directory.

        The work is in proportion to what differs, except below directories that were moved.
        """
        return self._compare(self.root, base)

    def _compare(self, place: Place, base: Oid | None) -> Iterator[LocalChange]:
        names = self.names(place)
        before = self.entries(base)
        if place.oid == base:
            candidates = sorted(names)
        else:
            own = [name for name in self.entries(place.oid) if name not in names]
            candidates = sorted({*before, *own, *names})
        for name in candidates:
            now = self.child(place, name, names)
            path = place.child_path(name)
            yield from self._compare_entry(path, before.get(name), now)

    def _compare_entry(
        self, path: bytes, before: TreeEntry | None, now: Place | None
    ) -> Iterator[LocalChange]:
        was_directory = before is not None and is_directory_entry(before)
        if before is not None and (now is None or now.is_directory != was_directory):
            yield LocalChange(path + b"/" if was_directory else path, "deleted")
            before = None
        if now is None:
            return
        if now.is_directory:
            if before is None:
                yield LocalChange(path + b"/", "added")
            tree = base_tree_of(before) if before is not None else None
            if now.row is not None or now.oid != tree:
                yield from self._compare(now, tree)
        elif before is None:
            yield LocalChange(path, "added")
        elif now.oid != before.oid or stat.S_IFMT(now.mode) != stat.S_IFMT(
            mode_of_entry(before.mode)
        ):
            yield LocalChange(path, "modified")
        elif stat.S_ISREG(now.mode) and (now.mode ^ mode_of_entry(before.mode)) & 0o100:
            yield LocalChange(path, "mode")

    def written_blobs(self, tree: Oid) -> Iterator[tuple[int, Oid]]:
        """Files with data that lie where `tree` has a blob: (inode number, oid of the blob)."""
        stack: list[tuple[int, Oid]] = [(ROOT_INO, tree)]
        while stack:
            directory, oid = stack.pop()
            entries = self.entries(oid)
            for name, ino in self._overlay.names(directory).items():
                entry = entries.get(name)
                row = self._overlay.row(ino) if ino and entry is not None else None
                if row is None or entry is None:
                    continue
                below = base_tree_of(entry)
                if stat.S_ISDIR(row.mode):
                    if below is not None:
                        stack.append((ino, below))
                elif row.has_data and entry.mode & 0o170000 == 0o100000:
                    yield ino, entry.oid
