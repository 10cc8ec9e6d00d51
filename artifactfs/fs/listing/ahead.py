"""Lists the directories that a walk comes to next, while its program is busy with the one before.

``find``, ``ls -R``, ``du`` and most others go through a tree depth first, in the order in which
directories are listed. Once a program has asked for two directories in that order, the next ones
are listed while we wait for it, and the extension answers for them (`keep_listing`): in place of
some 0.1 ms, the program waits 0.02.

What is kept is as the tree is now. Only our event loop changes the tree, so it is taken back before
any other task runs (`fastloop` says so) and before any request that may change something. The
kernel's references to what was listed are counted when it is listed, and given back with it. Who
changes something in each directory, as ``rm -r`` does, makes that vain, and soon nothing is listed
ahead for him.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from artifactfs.errors import ArtifactFSError
from artifactfs.fs.content.contents import Contents
from artifactfs.fs.inodes.attributes import CleanFileAttributes, dots_entry, entry_attributes
from artifactfs.fs.inodes.inode import Directory
from artifactfs.fs.inodes.listings import is_directory_entry
from artifactfs.fs.kernel.extension import Keeps, Session
from artifactfs.fs.listing.direntplus import encode, length_of
from artifactfs.fs.listing.unfinished import UnfinishedListings
from artifactfs.fs.tree.tree import Tree
from artifactfs.git.objects.database import MissingObject, Oid

log = logging.getLogger(__name__)

AHEAD = 4
"""Directories that are kept at a time."""
MOST_ENTRIES = 100
"""Of a directory that is listed ahead. It takes 0.5 ms, in which a request may have to wait."""
MOST_BESIDE = 1_000
"""Entries of a directory in which the next one is looked for: 0.05 ms."""
MOST_COUNTED = 16
"""Directories in it whose own directories are counted for that: each is a tree to be read."""
MOST_VAIN = 64
"""Directories that a walk is asked for in its order, at most, before it gets some ahead again."""
_LARGE_KNOWN = 1_000

LOOKS = {"getattr", "getxattr", "listxattr", "lookup", "opendir", "readdir", "readlink"}
LOOKS |= {"releasedir", "statfs"}
"""Requests that change nothing of which a listing tells. (`open` may truncate; `read` may find that
a size is another one.)"""


class _Unknown(Exception):
    """What comes next cannot be told, or not soon."""


class ListingsAhead:
    """Of one mount. Nothing here waits."""

    def __init__(
        self,
        session: Session,
        keeps: Keeps,
        tree: Tree,
        contents: Contents,
        unfinished: UnfinishedListings,
    ) -> None:
        session.hooks.idle, session.hooks.before_others = self.idle, self.take_back
        self._features = session.features
        self._keeps = keeps
        self._tree = tree
        self._contents = contents
        self._unfinished = unfinished
        self._held: dict[int, list[int]] = {}
        """By directory, in the order of the walk, and until they are asked for: the entries to
        which the kernel gets a reference with its listing."""
        self._last: Directory | None = None
        """What was asked for last, or was listed ahead last."""
        self._walk: Iterator[Directory] | None = None
        """What comes after it; made when it is needed."""
        self._next: Directory | None = None
        """The first of that, which is not listed yet."""
        self._expected = 0
        """The number of the directory that comes next, also when what was kept was taken back."""
        self._in_order = 0
        """Directories in a row that were asked for in the order of a walk."""
        self._needed = 1
        """So many, before any is listed ahead: more, the more often that was in vain."""
        self._large: set[Oid] = set()
        """Trees that are not looked through, of which that is known."""
        self._failed = False

    def listed(self, directory: Directory) -> None:
        """A program has asked for `directory`, and got all of it from us."""
        if self._failed or self._tree.is_arriving:
            return
        if self._held:  # what is kept was passed over, or did not fit
            self.take_back()
        self._in_order = self._in_order + 1 if directory.ino == self._expected else 0
        self._last, self._walk, self._next, self._expected = directory, None, None, 0
        self._keeps.want_listings(True)

    def idle(self) -> None:
        """Nobody asks for anything at the moment: find out what comes next, or list it ahead."""
        if self._last is None:
            return
        try:
            self._prepare(self._last)
        except Exception as error:  # not of pyfuse3's loop, which must go on
            self._fail(error)

    def take_back(self) -> None:
        """Something may change: forget what nobody has asked for."""
        self._last = self._walk = self._next = None
        if not self._held:
            return
        kept = self._keeps.take_listings_back()
        if len(kept) == len(self._held):  # all of it was in vain
            self._was_in_vain()
        held, self._held = self._held, {}
        for ino in kept:
            self._give_back(held[ino])
        if kept:
            self._expected = next(ino for ino in held if ino in kept)

    def _prepare(self, last: Directory) -> None:
        if self._walk is None:
            if len(self._large) > _LARGE_KNOWN:
                self._large.clear()
            self._walk = _following(self._tree, last, self._large)
            self._go_on()
        elif self._next is not None and self._in_order >= self._needed:
            self._list_one(self._next)
        else:
            self._keeps.want_listings(False)

    def _list_one(self, directory: Directory) -> None:
        kept = self._keeps.kept_listings()
        if len(kept) < len(self._held):
            self._held = {ino: held for ino, held in self._held.items() if ino in kept}
            self._needed = 1
        if len(kept) >= AHEAD:
            return
        if self._keep(directory):
            self._go_on()
        else:
            self._last = None  # until the program has come to it

    def _go_on(self) -> None:
        assert self._walk is not None
        try:
            self._next = next(self._walk, None)
        except (_Unknown, OSError, ArtifactFSError, MissingObject):  # who asks for it is told
            self._next = None
        self._expected = 0 if self._next is None else self._next.ino

    def _keep(self, directory: Directory) -> bool:
        held: list[int] = []
        try:
            reply = self._reply(directory, held)
            if reply is not None and self._keeps.keep_listing(directory.ino, reply):
                self._held[directory.ino] = held
                return True
        except (OSError, ArtifactFSError, MissingObject) as error:  # who asks for it is told
            log.debug("a directory is not listed ahead: %s", error)
        except BaseException:
            self._give_back(held)
            raise
        if held:
            self._was_in_vain()
        self._give_back(held)
        return False

    def _was_in_vain(self) -> None:
        self._needed = min(2 * self._needed, MOST_VAIN)
        self._in_order = 0

    def _reply(self, directory: Directory, held: list[int]) -> bytes | None:
        """None where something in it is not as the base tree has it, or it is large. `held` gets
        the entries to which the kernel is given a reference."""
        tree = self._tree
        entries = tree.entries(directory)
        if directory.parent is None or tree.names(directory) or len(entries) > MOST_ENTRIES:
            return None
        if length_of(entries) > self._keeps.listing_room():
            return None
        listing = self._unfinished.begin(list(entries), self._contents.sizes_in(directory))
        parts = [
            encode(dots_entry(dots.ino), b"." * number, listing.cookie(number))
            for number, dots in ((1, directory), (2, directory.parent))
        ]
        attributes = CleanFileAttributes(tree.owner, directory.time_ns)
        is_blob, hold = self._contents.shows_blobs_in(directory), tree.clean_files(directory)
        counted = 0
        for position, (name, entry) in enumerate(entries.items()):
            cookie = listing.cookie(position + 3)
            if is_directory_entry(entry):
                inode = tree.lookup(directory, name)
                assert inode is not None
                inode.nlookup += 1
                held.append(inode.ino)
                counted += type(inode) is Directory and inode.subdirectories < 0
                if inode.row is not None or counted > MOST_COUNTED:
                    return None
                tree.refresh_attributes(inode)
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

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._last = None
        held, self._held = self._held, {}
        for ino in self._keeps.take_listings_back():
            self._give_back(held[ino])
        self._features.lacks("listings-ahead", f"it failed: {error!r}")
        log.error("directories are not listed ahead any more", exc_info=error)


def _following(tree: Tree, directory: Directory, large: set[Oid]) -> Iterator[Directory]:
    """The directories that a walk lists after `directory`: below it, beside it, further up; as far
    as the kernel knows them, as it does after their parent was listed. Valid until something
    changes. `large`: trees that are not looked through, to which it adds what it comes upon.
    Raises: _Unknown, MissingObject, OSError."""
    yield from _below(tree, directory, b"", large)
    while directory.parent is not None:
        yield from _below(tree, directory.parent, directory.name, large)
        directory = directory.parent


def _below(tree: Tree, directory: Directory, after: bytes, large: set[Oid]) -> Iterator[Directory]:
    """Those in `directory` that come `after` that name, each with what is below it."""
    if directory.oid in large:
        raise _Unknown
    entries = tree.entries(directory)
    if len(entries) > MOST_BESIDE and directory.oid is not None:
        large.add(directory.oid)
        raise _Unknown
    if after and after not in entries:
        raise _Unknown
    names = iter(entries)
    if after:
        all(name != after for name in names)  # goes on to what is behind it
    for name in names:
        if not is_directory_entry(entries[name]):
            continue
        child = tree.known_directory(directory, name)
        if child is None:
            raise _Unknown
        yield child
        yield from _below(tree, child, b"", large)
