"""Lists the directories that a walk comes to next, while its program is busy with the one before.

``find``, ``ls -R``, ``du`` and most others go through a tree depth first, in the order in which
directories are listed. Once a program has asked for two directories in that order, the next ones
are listed while we wait for it, and the extension answers for them (`keep_listing`): in place of
some 0.1 ms, the program waits 0.02.

What is kept is as the tree is now. Only our event loop changes the tree, so it is taken back before
any other task runs (`fastloop` says so) and before any request that may change something. The
kernel's references to what was listed are counted when it is listed, and given back with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from artifactfs.errors import ArtifactFSError
from artifactfs.fs.content.contents import Contents
from artifactfs.fs.inodes.attributes import CleanFileAttributes, dots_entry, entry_attributes
from artifactfs.fs.inodes.inode import Directory
from artifactfs.fs.inodes.listings import is_directory_entry
from artifactfs.fs.kernel.extension import Keeps
from artifactfs.fs.kernel.fastloop import Hooks
from artifactfs.fs.listing.direntplus import encode
from artifactfs.fs.listing.unfinished import UnfinishedListings
from artifactfs.fs.tree.tree import Tree
from artifactfs.git.objects.database import MissingObject

log = logging.getLogger(__name__)

AHEAD = 4
"""Directories that are kept at a time."""
MOST_ENTRIES = 100
"""Of a directory that is listed ahead, which takes 0.5 ms then: a request may come meanwhile."""

LOOKS = {"getattr", "getxattr", "listxattr", "lookup", "opendir", "read", "readdir", "readlink"}
LOOKS |= {"releasedir", "statfs"}
"""Requests that change nothing of which a listing tells. (`open` may truncate.)"""


class ListingsAhead:
    """Of one mount. Nothing here waits."""

    def __init__(
        self,
        keeps: Keeps,
        hooks: Hooks,
        tree: Tree,
        contents: Contents,
        unfinished: UnfinishedListings,
    ) -> None:
        hooks.idle, hooks.before_others = self.idle, self.take_back
        self._keeps = keeps
        self._tree = tree
        self._contents = contents
        self._unfinished = unfinished
        self._held: dict[int, list[int]] = {}
        """By directory: the entries to which the kernel gets a reference with its listing."""
        self._walk: Iterator[Directory] | None = None
        self._next: Directory | None = None
        """What a walk would ask for next."""
        self._is_walk = False
        self._failed = False

    def listed(self, directory: Directory) -> None:
        """A program has asked for `directory`, and got all of it."""
        if self._tree.is_arriving or self._failed:
            return
        if self._next is not None:
            self._is_walk = directory is self._next
        self._walk = _following(self._tree, directory)
        self._go_on()
        self._keeps.want_listings(self._is_walk)

    def idle(self) -> None:
        """Nobody asks for anything at the moment: list one directory ahead."""
        if not self._is_walk or self._next is None:
            return
        try:
            self._list_one(self._next)
        except Exception as error:  # of pyfuse3's loop, which must go on
            log.error("directories are not listed ahead any more", exc_info=error)
            self._failed, self._is_walk = True, False

    def _list_one(self, directory: Directory) -> None:
        kept = self._keeps.kept_listings()
        if len(kept) >= AHEAD:
            return
        self._held = {ino: self._held[ino] for ino in kept}
        if directory.ino in self._held or self._keep(directory):
            self._go_on()
        else:
            self._is_walk = False  # until the program has come to it

    def take_back(self) -> None:
        """Something may change: forget what nobody has asked for."""
        if self._walk is None:
            return
        self._walk = self._next = None
        for ino in self._keeps.take_listings_back():
            self._give_back(self._held[ino])
        self._held.clear()

    def _go_on(self) -> None:
        assert self._walk is not None
        try:
            self._next = next(self._walk, None)
        except (OSError, ArtifactFSError, MissingObject):  # who asks for it is told
            self._next = None

    def _keep(self, directory: Directory) -> bool:
        held: list[int] = []
        try:
            reply = self._reply(directory, held)
        except (OSError, ArtifactFSError, MissingObject):
            reply = None
        if reply is not None and self._keeps.keep_listing(directory.ino, reply):
            self._held[directory.ino] = held
            return True
        self._give_back(held)
        return False

    def _reply(self, directory: Directory, held: list[int]) -> bytes | None:
        """None where something in it is not as the base tree has it, or it is large. `held` gets
        the entries to which the kernel is given a reference."""
        tree = self._tree
        entries = tree.entries(directory)
        if directory.parent is None or tree.names(directory) or len(entries) > MOST_ENTRIES:
            return None
        listing = self._unfinished.begin(list(entries), self._contents.sizes_in(directory))
        parts = [
            encode(dots_entry(dots.ino), b"." * number, listing.cookie(number))
            for number, dots in ((1, directory), (2, directory.parent))
        ]
        attributes = CleanFileAttributes(tree.owner, directory.time_ns)
        is_blob, hold = self._contents.shows_blobs_in(directory), tree.clean_files(directory)
        for position, (name, entry) in enumerate(entries.items()):
            cookie = listing.cookie(position + 3)
            if is_directory_entry(entry):
                inode = tree.lookup(directory, name)
                assert inode is not None
                tree.refresh_attributes(inode)
                inode.nlookup += 1
                held.append(inode.ino)
                if inode.row is not None:
                    return None
                parts.append(encode(entry_attributes(inode, tree.owner), name, cookie))
                continue
            file = hold(name, position) if is_blob is None or is_blob(name) else None
            if file is None:
                return None
            held.append(file.ino)
            size = listing.sizes.get(file.oid)
            parts.append(encode(attributes.of(file.ino, file.mode, size), name, cookie))
        return b"".join(parts)

    def _give_back(self, held: list[int]) -> None:
        for ino in held:
            self._tree.forget(ino, 1)


def _following(tree: Tree, directory: Directory) -> Iterator[Directory]:
    """The directories that a walk lists after `directory`: below it, beside it, further up; as far
    as the kernel knows them, as it does after their parent was listed. Valid until something
    changes. Raises: MissingObject, OSError."""
    yield from _below(tree, directory, b"")
    while directory.parent is not None:
        yield from _below(tree, directory.parent, directory.name)
        directory = directory.parent


def _below(tree: Tree, directory: Directory, after: bytes) -> Iterator[Directory]:
    """Those in `directory` that come `after` that name, each with what is below it."""
    entries = tree.entries(directory).values()
    names = iter([entry.name for entry in entries if is_directory_entry(entry)])
    if after and after not in names:  # else `names` is behind it now
        return
    for name in names:
        child = tree.lookup(directory, name)
        if type(child) is Directory and child.nlookup > 0:
            yield child
            yield from _below(tree, child, b"")
        else:
            tree.drop_if_unused(child)
