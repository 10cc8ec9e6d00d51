"""``.artifact-fs/objects``: an object directory, to git, that has every blob of the mounted tree.

Git never asks us for an object: it looks into its object directories, and what it does not find
there it fetches, one process and one connection for each request. And before it writes a tree (at
every commit, merge, checkout) a git with a promisor remote makes sure that *all* blobs of the index
exist, and would download those of the whole tree for a commit of one line.

So the gitdir names this directory among its alternates. It shows a loose object for each blob
that the remote has promised with the mounted tree: enough for git to know that the blob exists.
The "objects" are symlinks: ``lstat`` finds them, and only an ``open``, by which git begins to read
an object, has the kernel ask for the target. By then we have fetched the blob into a pack of the
shared cache, with what comes next in the tree. The target does not exist, so git takes the object
for one that was "just packed", looks for new packs, and finds it. Where it could not be fetched,
git fetches it as it always would, and says what went wrong.

While a command moves the tree to another commit, the blobs that come for it are shown as well
(`OfferedObjects.offer_also`), else git would begin a fetch of its own for them.

A name is shown only for what the remote surely has. Commands that want to know what is really here
(`fsck`, `gc`, a fetch) and other programs see an empty directory. What git looks for in vain tells
us what it is about to fetch: see `OfferedObjects.before_missing`.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from typing import Protocol

import pyfuse3
import trio

from artifactfs.errors import ArtifactFSError
from artifactfs.fs.gitview.callers import GitCommand, git_command
from artifactfs.fs.gitview.gate import HistoryGate
from artifactfs.fs.inodes.attributes import FOREVER, negative_entry
from artifactfs.fs.kernel.extension import Offers
from artifactfs.fs.kernel.interrupt import unless_interrupted
from artifactfs.git.objects.database import Oid

log = logging.getLogger(__name__)

OFFERED_INO = 5
_FOLDERS = 1 << 59
_OBJECTS = 1 << 60
_END = 1 << 61
"""Numbers of the 256 folders, and of the objects: apart from all others (see `virtual`)."""
_FOLDER_BITS = 8
_OBJECT_BITS = 32
_GENERATIONS = 1 << 27
"""So many to begin with, and as many again to count on to."""

_BESIDE = 1 << (_OBJECT_BITS - 1)
"""From this position on: what is offered beside the inventory."""

_TARGET = b"/nonexistent/in-a-pack"

_ADMITTED_S = 0.02
"""So long the extension answers the next look-ups of a command that was offered something. After
that it is asked again what the command is, whether it has to wait, and which tree is mounted."""

_OFFERED_TO = frozenset(
    """
    add am annotate apply archive bisect blame branch cat-file check-attr check-ignore checkout
    checkout--worker checkout-index cherry cherry-pick clean commit commit-tree describe diff-files
    diff-index difftool fast-export fast-import grep hash-object ls-files ls-tree merge merge-base
    merge-file merge-index merge-octopus merge-ours merge-recursive merge-recursive-ours
    merge-recursive-theirs merge-resolve merge-subtree merge-tree mktag mktree mv name-rev notes
    pull range-diff read-tree rebase replace replay rerere reset restore rev-parse revert rm
    shortlog show-branch show-ref sparse-checkout stage stash status submodule--helper switch
    symbolic-ref tag unpack-file update-index update-ref verify-commit verify-tag worktree
    write-tree
    """.split()  # noqa: SIM905 - a list of 80 strings is 80 lines
)
"""Commands that read single blobs of the tree, or write trees. Nothing is offered to others: to
those that check, pack, receive or send what is really here, to those that fetch all that they need
at once (`diff`, `log -p`, `show`, `backfill`) and would read it one by one, to `fetch`, which would
fetch nothing; nor to a command that we do not know."""

_ASKED_FOR_FIRST = (b"info", b"pack")
"""What each git command looks for in an object directory before it looks for an object: its own
alternates; and its packs, from 2.55 on only when it has not found an object before."""

_COPYING = ("pack-objects", "upload-pack")
"""Commands that send what they find, and fetch nothing: they are told to wait (`Copying`)."""


class Inventory(Protocol):
    """The blobs of a tree in the order of their oids."""

    def beginning_with(self, byte: int) -> range: ...
    @property
    def packed_oids(self) -> bytearray: ...
    def oid_at(self, position: int) -> Oid: ...
    def position(self, oid: Oid) -> int: ...


class BlobOffer(Protocol):
    """Where the blobs come from."""

    @property
    def inventory(self) -> Inventory | None: ...
    @property
    def is_walked(self) -> bool: ...
    async def walked(self) -> None: ...
    async def fetch(self, oid: Oid, pid: int) -> None: ...


class Copying(Protocol):
    """What has everything here for a copy of the repository."""

    async def before_missing(self, command: GitCommand, oid: Oid) -> None: ...
    async def before_packs(self, command: GitCommand) -> None: ...


class OfferedObjects:
    """The inodes of the directory. Numbers tell the inventory that they were made for, so that
    the kernel asks anew when the tree is another one."""

    def __init__(self, offer: BlobOffer, *, uid: int, gid: int, time_ns: int) -> None:
        self._offer = offer
        self._uid = uid
        self._gid = gid
        self._time_ns = time_ns
        self._shown: Inventory | None = None
        self._lists_beside: list[Sequence[Oid]] = []
        self._beside: list[Oid] = []
        """Of all of them, sorted; some may be in the inventory as well."""
        self._generation = secrets.randbelow(_GENERATIONS)  # not that of a process before
        self.before_missing: Callable[[GitCommand, Oid | None], Awaitable[None]] | None = None
        """Awaited where a git command looks for an object that it is not offered, or lists some
        (None); and where its lazy fetch looks whether the objects have come meanwhile."""
        self.told_of: frozenset[str] = frozenset()
        """The commands that it is awaited for."""
        self.on_work: Callable[[GitCommand], None] | None = None
        """Is told of the looks of a git command, except for some soon after another."""
        self.before_folder: Callable[[GitCommand], trio.Event | None] = lambda _: None
        """What a git command waits for before it is shown a folder of objects."""
        self.before_read: Callable[[GitCommand], Awaitable[None]] | None = None
        """Awaited where a git command reads an object that it is offered."""
        self.gate: HistoryGate | None = None
        """Where programs wait for history that is on its way."""
        self.copying: Copying | None = None
        self.extension: Offers | None = None
        """What answers look-ups of those who have just been answered."""

    @staticmethod
    def owns(ino: int) -> bool:
        return ino == OFFERED_INO or _FOLDERS <= ino < _END

    @staticmethod
    def is_object(ino: int) -> bool:
        return _OBJECTS <= ino < _END

    def attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_uid = self._uid
        entry.st_gid = self._gid
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._time_ns
        entry.attr_timeout = FOREVER
        if self.is_object(ino):
            entry.st_mode = stat.S_IFLNK | 0o777
            entry.st_size = len(_TARGET)
        else:
            entry.st_mode = stat.S_IFDIR | 0o555
            entry.st_nlink = 2
        # Who looks decides what is there.
        entry.entry_timeout = FOREVER if ino == OFFERED_INO else 0
        return entry

    async def lookup(self, parent: int, name: bytes, pid: int) -> pyfuse3.EntryAttributes:
        """Waits for the first walk of the tree, for history that is on its way (`gate`) and for
        what `before_missing` waits for; the caller can be killed."""
        if parent == OFFERED_INO and name in _ASKED_FOR_FIRST:
            await self._before_packs(pid)
            return _hidden()
        digits = 2 if parent == OFFERED_INO else 38
        if self.is_object(parent) or not _is_hex(name, digits):
            return negative_entry()
        command = git_command(pid)
        if command is not None and self.on_work is not None:
            self.on_work(command)
        oid = bytes.fromhex(f"{parent & 0xFF:02x}{name.decode()}") if digits == 38 else None
        gate = self.gate
        if gate is None or not gate.concerns(command):
            await self._before_folder(command, oid)
            return await self._look_up(command, name, oid)
        if oid is None:
            await gate.before_folder(command, name.decode(), pid)
            entry = await self._look_up(command, name, oid)
            # Names in it will be looked up, and wait.
            return entry if entry.st_ino else self._empty_folder(name)
        if self._offer.inventory is None or self._offer.inventory.position(oid) < 0:
            await gate.before_object(command, oid, pid)
        return await self._look_up(command, name, oid)

    async def _before_folder(self, command: GitCommand | None, oid: Oid | None) -> None:
        if command is not None and oid is None:
            event = self.before_folder(command)
            if event is not None and not event.is_set():
                await unless_interrupted(command.pid, event.wait)

    async def _look_up(
        self, command: GitCommand | None, name: bytes, oid: Oid | None
    ) -> pyfuse3.EntryAttributes:
        if command is None or "--batch-all-objects" in command.arguments:
            return _hidden()
        if command.name not in _OFFERED_TO:
            await self._announce(command, oid)
            return _hidden() if oid else self._empty_folder(name)
        if not self._offer.is_walked:
            await unless_interrupted(command.pid, self._offer.walked)
        self._note_inventory()
        if self._shown is None:
            return _hidden()
        if oid is None:
            await self._announce(command, None)
            self._admit(command)
            folder = _FOLDERS | self._generation << _FOLDER_BITS | int(name, 16)
            return self.attributes(folder)
        position = self._position(oid)
        if position < 0:
            await self._announce(command, oid)
            return _hidden()
        self._admit(command)
        return self.attributes(_OBJECTS | self._generation << _OBJECT_BITS | position)

    def _admit(self, command: GitCommand) -> None:
        if self.extension is not None and not self._may_wait(command):
            self.extension.admit(command.pid, _ADMITTED_S)

    def _may_wait(self, command: GitCommand) -> bool:
        """Whether another look-up of `command` may have to wait, though the name is there."""
        if command.name in self.told_of:
            return True
        return self.gate is not None and self.gate.may_wait_in_folders(command)

    def _empty_folder(self, name: bytes) -> pyfuse3.EntryAttributes:
        """A folder of no inventory, of which nothing is listed."""
        return self.attributes(_FOLDERS | int(name, 16))

    async def _before_packs(self, pid: int) -> None:
        """A git command has begun: it looks for alternates and packs of each object directory."""
        command = git_command(pid)
        if command is not None and self.copying is not None:
            await unless_interrupted(pid, partial(self.copying.before_packs, command))

    async def _announce(self, command: GitCommand, oid: Oid | None) -> None:
        if command.name in _COPYING and oid is not None and self.copying is not None:
            await unless_interrupted(
                command.pid, partial(self.copying.before_missing, command, oid)
            )
        if self.before_missing is not None and command.name in self.told_of:
            await unless_interrupted(command.pid, partial(self.before_missing, command, oid))

    def offer_also(self, oids: Sequence[Oid]) -> None:
        """Show these (sorted) until they are withdrawn: git is about to write them, and the remote
        has begun to send them."""
        self._lists_beside.append(oids)
        self._show()

    def withdraw(self, oids: Sequence[Oid]) -> None:
        """Show the `oids` of an `offer_also` no more. Those that have come are in packs."""
        for at, known in enumerate(self._lists_beside):
            if known is oids:
                del self._lists_beside[at]
                self._show()
                return

    def _note_inventory(self) -> None:
        if self._offer.inventory is not self._shown:
            self._shown = self._offer.inventory
            self._show()

    def _show(self) -> None:
        """Let the kernel ask anew."""
        self._beside = sorted(chain(*self._lists_beside))
        self._generation += 1
        if self.extension is None or self._shown is None:
            return
        self.extension.offer_objects(
            self._shown.packed_oids,
            b"".join(self._beside),
            OFFERED_INO,
            _FOLDERS | self._generation << _FOLDER_BITS,
            _OBJECTS | self._generation << _OBJECT_BITS,
            self._uid,
            self._gid,
            self._time_ns,
            len(_TARGET),
            FOREVER,
        )

    def entries(self, ino: int, start: int) -> Iterator[tuple[bytes, pyfuse3.EntryAttributes, int]]:
        """What a folder of now holds from `start` on: (name, attributes, next start).

        The attributes are one object, changed from entry to entry.
        """
        generation = (ino - _FOLDERS) >> _FOLDER_BITS
        if not _FOLDERS <= ino < _OBJECTS or generation != self._generation or not self._shown:
            return
        first = _OBJECTS | generation << _OBJECT_BITS
        entry = self.attributes(first)
        byte = ino & 0xFF
        positions = chain(self._shown.beginning_with(byte), self._beside_beginning_with(byte))
        for number, position in enumerate(islice(positions, start, None), start):
            entry.st_ino = first + position
            yield self._oid_at(position).hex()[2:].encode(), entry, number + 1

    def _beside_beginning_with(self, byte: int) -> range:
        first, end = (bisect_left(self._beside, byte + more, key=itemgetter(0)) for more in (0, 1))
        return range(_BESIDE + first, _BESIDE + end)

    def _position(self, oid: Oid) -> int:
        """Where `oid` is among what is offered; -1: it is not."""
        assert self._shown is not None
        position = self._shown.position(oid)
        if position >= 0 or not self._beside:
            return position
        at = bisect_left(self._beside, oid)
        return _BESIDE + at if self._beside[at : at + 1] == [oid] else -1

    def _oid_at(self, position: int) -> Oid:
        assert self._shown is not None
        if position >= _BESIDE:
            return self._beside[position - _BESIDE]
        return self._shown.oid_at(position)

    async def fetch(self, ino: int, pid: int) -> bytes:
        """Have the object `ino` in a pack, if it can be had; the target of its symlink.

        Waits for the network; the caller can be killed.
        """
        position = ino & (1 << _OBJECT_BITS) - 1
        generation = (ino - _OBJECTS) >> _OBJECT_BITS
        if self._shown is not None and generation == self._generation:
            oid = self._oid_at(position)
            command = git_command(pid)
            try:
                if command is not None and self.before_read is not None:
                    await unless_interrupted(pid, partial(self.before_read, command))
                await unless_interrupted(pid, partial(self._offer.fetch, oid, pid))
            except ArtifactFSError as error:
                log.info("left to git: %s", error.message, extra={"oid": oid.hex()})
        return _TARGET


def _is_hex(name: bytes, digits: int) -> bool:
    return len(name) == digits and not name.strip(b"0123456789abcdef")


def _hidden() -> pyfuse3.EntryAttributes:
    """There is no such name for who asks; another may see it."""
    entry = negative_entry()
    entry.entry_timeout = 0
    return entry


def alternate_line(mount_point: str, control_name: bytes) -> bytes:
    """What names the directory in a file of alternates; empty where no line can."""
    path = os.fsencode(mount_point) + b"/" + control_name + b"/objects"
    return b"" if b"\n" in path or path.startswith((b'"', b"#")) else path + b"\n"
