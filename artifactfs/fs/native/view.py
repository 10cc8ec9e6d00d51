"""The merged view of a base tree and an upper folder, as overlayfs shows it, without a mount."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from artifactfs.fs.inodes.inode import mode_of_entry
from artifactfs.fs.inodes.listings import base_tree_of, is_directory_entry
from artifactfs.fs.native.marks import Marks, is_whiteout, marks_of, redirected
from artifactfs.fs.tree.walk import LocalChange
from artifactfs.git.objects.database import Oid, TreeEntry
from artifactfs.git.pack.format import object_id

MOST_COMPARED = 64 << 20
"""Larger written files are not hashed to find out whether they are their blob."""


@dataclass(frozen=True, slots=True)
class Folder:
    """`upper` is its path on the disk, None where nothing was written. `lower` is the path in the
    base tree that shows through, and `tree` that tree; a submodule has none."""

    path: bytes
    upper: bytes | None
    lower: bytes | None
    tree: Oid | None

    def lower_of(self, name: bytes) -> bytes | None:
        """The path in the base tree that shows at `name`, where nothing says otherwise."""
        return join(self.lower, name) if self.lower is not None else None


@dataclass(frozen=True, slots=True)
class File:
    """Anything that is no folder. `entry` is where its data is, if that is in the base tree, and
    `lower` the path of that."""

    path: bytes
    upper: bytes | None
    entry: TreeEntry | None
    lower: bytes | None = None

    def status(self) -> os.stat_result | None:
        """That of what was written. Raises: OSError."""
        return os.lstat(self.upper) if self.upper is not None else None


Node = Folder | File
TreeReader = Callable[[Oid], Sequence[TreeEntry]]


class View:
    """Reads trees by `read_tree`, and remembers them: it is of one base. For one thread at a time.

    `hidden` are names in the top that are no part of the tree.
    """

    def __init__(
        self, upper: bytes, read_tree: TreeReader, base: Oid, hidden: Container[bytes] = ()
    ) -> None:
        self.upper = upper
        self._read_tree = read_tree
        self.base = base
        self.hidden = hidden
        self._known: dict[Oid, Mapping[bytes, TreeEntry]] = {}

    @property
    def top(self) -> Folder:
        return Folder(b"", self.upper, b"", self.base)

    def entries(self, tree: Oid | None) -> Mapping[bytes, TreeEntry]:
        """Raises: MissingObject, CorruptData."""
        if tree is None:
            return {}
        found = self._known.get(tree)
        if found is None:
            found = self._known[tree] = {entry.name: entry for entry in self._read_tree(tree)}
        return found

    def at(self, path: bytes | None) -> TreeEntry | None:
        """The entry of the base tree at `path`."""
        if not path:
            return None
        tree: Oid | None = self.base
        entry = None
        for name in path.split(b"/"):
            entry = self.entries(tree).get(name)
            if entry is None:
                return None
            tree = base_tree_of(entry)
        return entry

    def tree_at(self, path: bytes | None) -> Oid | None:
        entry = self.at(path)
        return self.base if path == b"" else None if entry is None else base_tree_of(entry)

    def children(self, folder: Folder) -> dict[bytes, Node]:
        """What is in a folder, by name. Raises: OSError, MissingObject, CorruptData."""
        found: dict[bytes, Node] = {}
        for name, entry in self.entries(folder.tree).items():
            found[name] = self._clean(folder, entry)
        if folder.upper is None:
            return found
        with os.scandir(folder.upper) as written:
            for one in written:
                if not folder.path and one.name in self.hidden:
                    continue
                if one.is_dir(follow_symlinks=False):
                    found[one.name] = self._written_folder(folder, one, found.get(one.name))
                    continue
                path = join(folder.path, one.name)
                if one.is_symlink():
                    found[one.name] = File(path, one.path, None)
                elif is_whiteout(one.stat(follow_symlinks=False)):
                    found.pop(one.name, None)
                else:
                    lower = self._data_below(folder, one)
                    found[one.name] = File(path, one.path, self.at(lower), lower)
        return found

    def _clean(self, folder: Folder, entry: TreeEntry) -> Node:
        path = join(folder.path, entry.name)
        if is_directory_entry(entry):
            assert folder.lower is not None
            return Folder(path, None, join(folder.lower, entry.name), base_tree_of(entry))
        assert folder.lower is not None
        return File(path, None, entry, join(folder.lower, entry.name))

    def _written_folder(
        self, folder: Folder, one: os.DirEntry[bytes], below: Node | None
    ) -> Folder:
        path, marks = join(folder.path, one.name), marks_of(one.path)
        if marks.redirect is not None:
            lower = redirected(folder.lower, marks.redirect)
            return Folder(path, one.path, lower, self.tree_at(lower))
        if marks.opaque or not isinstance(below, Folder):
            return Folder(path, one.path, None, None)
        return Folder(path, one.path, below.lower, below.tree)

    def _data_below(self, folder: Folder, one: os.DirEntry[bytes]) -> bytes | None:
        marks = marks_of(one.path) if one.is_file(follow_symlinks=False) else Marks()
        if not marks.metacopy:
            return None
        if marks.redirect is not None:
            return redirected(folder.lower, marks.redirect)
        return folder.lower_of(one.name)

    # Differences

    def changes(
        self, equals: Callable[[bytes, Oid, int], bool] | None = None
    ) -> Iterator[LocalChange]:
        """Differences from the base, sorted within each folder. Raises as `children`.

        `equals(upper file, oid, size)` tells whether written data is that blob.
        """
        return self._compare(self.top, self.base, equals or (lambda *_: False))

    def _compare(
        self, folder: Folder, base: Oid | None, equals: Callable[[bytes, Oid, int], bool]
    ) -> Iterator[LocalChange]:
        if folder.upper is None and folder.tree == base:
            return
        now, before = self.children(folder), self.entries(base)
        for name in sorted({*now, *before}):
            node, entry = now.get(name), before.get(name)
            path = join(folder.path, name)
            if entry is not None and is_directory_entry(entry) != isinstance(node, Folder):
                was_folder = is_directory_entry(entry)
                yield LocalChange(path + b"/" if was_folder else path, "deleted")
                entry = None
            elif entry is not None and node is None:
                yield LocalChange(path, "deleted")
            if isinstance(node, Folder):
                if entry is None:
                    yield LocalChange(path + b"/", "added")
                tree = base_tree_of(entry) if entry is not None else None
                yield from self._compare(node, tree, equals)
            elif node is not None and (node.upper is not None or node.entry != entry):
                yield from _compare_file(node, entry, equals)


def _compare_file(
    file: File, before: TreeEntry | None, equals: Callable[[bytes, Oid, int], bool]
) -> Iterator[LocalChange]:
    if before is None:
        yield LocalChange(file.path, "added")
        return
    found, was = file.status(), mode_of_entry(before.mode)
    if found is None:
        assert file.entry is not None
        mode = mode_of_entry(file.entry.mode)
        same = file.entry.oid == before.oid
    else:
        mode = found.st_mode
        same = _same_content(file, found, before, equals)
    if stat.S_IFMT(mode) != stat.S_IFMT(was) or not same:
        yield LocalChange(file.path, "modified")
    elif stat.S_ISREG(mode) and (mode ^ was) & 0o100:
        yield LocalChange(file.path, "mode")


def _same_content(
    file: File,
    found: os.stat_result,
    before: TreeEntry,
    equals: Callable[[bytes, Oid, int], bool],
) -> bool:
    assert file.upper is not None
    if stat.S_ISLNK(found.st_mode):
        return object_id("blob", os.readlink(file.upper)) == before.oid
    if not stat.S_ISREG(found.st_mode):
        return False
    if file.entry is not None:
        return file.entry.oid == before.oid
    return found.st_size <= MOST_COMPARED and equals(file.upper, before.oid, found.st_size)


def join(folder: bytes, name: bytes) -> bytes:
    """The path of `name` in `folder`, which is empty for the top."""
    return folder + b"/" + name if folder else name


def places_of_trees(read_tree: Callable[[Oid], Iterable[TreeEntry]], base: Oid) -> dict[Oid, bytes]:
    """Where the folders of a base tree are: the path of one of each tree."""
    places: dict[Oid, bytes] = {}
    stack = [(b"", base)]
    while stack:
        path, oid = stack.pop()
        for entry in read_tree(oid):
            below = base_tree_of(entry)
            if below is not None:
                places.setdefault(below, join(path, entry.name))
                stack.append((join(path, entry.name), below))
    return places
