"""One mount's file system, put together from its parts."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import shlex
import sqlite3
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from artifactfs.config import RepoSettings
from artifactfs.damage import DamageReport
from artifactfs.features import Features
from artifactfs.fs.content.contents import BlobSource, Contents
from artifactfs.fs.content.converted import ConvertedContents
from artifactfs.fs.content.faults import report_faults, report_unreadable_pages
from artifactfs.fs.content.sealing import Sealing, look_for_damage
from artifactfs.fs.content.workplace import FilterWorkplace
from artifactfs.fs.gitview.journal import ChangeJournal
from artifactfs.fs.gitview.offered import BlobOffer, OfferedObjects, alternate_line
from artifactfs.fs.gitview.virtual import WAITING, GitdirPlace, VirtualFiles
from artifactfs.fs.inodes import seals
from artifactfs.fs.inodes.clock import now_ns
from artifactfs.fs.inodes.conversion import Conversions
from artifactfs.fs.inodes.inode import Base, Directory, Inode, Owner, mode_of_entry
from artifactfs.fs.inodes.listings import Listings, base_tree_of
from artifactfs.fs.kernel.handover import Handover
from artifactfs.fs.kernel.stale import StaleEntries
from artifactfs.fs.mount import once
from artifactfs.fs.mount.arriving import ArrivingTrees
from artifactfs.fs.mount.creation import TipLike, create
from artifactfs.fs.mount.operations import Operations
from artifactfs.fs.native.writes import KernelWrites, hidden_names
from artifactfs.fs.overlay import nameless
from artifactfs.fs.overlay.database import DAMAGE, Overlay, damaged
from artifactfs.fs.overlay.opened import Opened
from artifactfs.fs.overlay.pending import Edit, delete_meta, put_meta
from artifactfs.fs.overlay.smallfiles import SmallFiles
from artifactfs.fs.overlay.upper import Upper
from artifactfs.fs.overlay.written import Written
from artifactfs.fs.tree import places
from artifactfs.fs.tree.collection import Collection
from artifactfs.fs.tree.compaction import Compaction
from artifactfs.fs.tree.mutations import Mutations
from artifactfs.fs.tree.recall import Recall
from artifactfs.fs.tree.switch import Switch, SwitchResult
from artifactfs.fs.tree.tree import Tree
from artifactfs.fs.tree.walk import LocalChange, Walker
from artifactfs.fs.tree.xattrs import Xattrs
from artifactfs.git.checkout.filters import Filters
from artifactfs.git.objects.database import ObjectDatabase, Oid, TreeEntry
from artifactfs.git.pack.format import object_id
from artifactfs.paths import RepoLayout

log = logging.getLogger(__name__)

_COUNTED_AT_ONCE = 2_000
"""Written files whose sizes are summed up on demand (3 µs each); beyond, in the background."""

_CALLS = 20_000
"""Nested calls of Python that this process may make: a walk down a tree takes up to four a level,
and git takes trees of 2,048 levels."""

_MAINTENANCE_S = 0.5
_ANOTHER_INDEX = "+"
"""After the token of a git that was told to use another index than the mount's."""

_IDLE_ROUNDS = 20
"""A blob that nobody reads is closed after one to two times as many rounds: 10 to 20 s."""

_SEAL_ROUNDS = 8
"""A written file gets its checksum when it was not written for one to two times as many rounds."""

_COUNT_EVERY = 1_000
"""Changes of the overlay after which many files are counted again."""


@dataclass(frozen=True, slots=True)
class OverlayStats:
    """Files with data of their own, and its size."""

    dirty_files: int
    dirty_bytes: int


@dataclass(frozen=True, slots=True)
class FileStat:
    """The fields of ``struct stat`` that Git's index keeps."""

    ino: int
    mode: int
    size: int | None
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int


class FileSystem:
    """The file system of one repository, ready to be served by `session.serve`."""

    def __init__(
        self,
        *,
        layout: RepoLayout,
        settings: RepoSettings,
        odb: ObjectDatabase,
        hydrator: BlobSource,
        tip: TipLike | None,
        offer: BlobOffer | None = None,
        damage: DamageReport | None = None,
        place: GitdirPlace | None = None,
        native: bool = False,
        features: Features | None = None,
        handover: Handover | None = None,
        arriving: ArrivingTrees | None = None,
    ) -> None:
        """Open the overlay, or create it from `tip`. Raises: StateError, InvalidInput.

        `offer` is what git is told to have beside what is in its packs; `place` is what becomes of
        ``.git``, a gitfile without it. `native`: the kernel takes the writes, above this tree,
        which is then served at `RepoLayout.lower` and never changes. `handover`: with which
        another process may go on with the mount, or has left it. `arriving`: only the root of the
        base tree is here.
        """
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _CALLS))
        self._is_native = native
        self._handover = handover
        self.arriving = arriving
        self.taken_over = handover is not None and handover.taken_over
        self.native: KernelWrites | None = None
        self._place = place
        self.features = Features() if features is None else features
        if place is None or not place.is_folder:
            why = "only root may mount the gitdir there, for a tree of its own"
            self.features.lacks("git-folder", why, expected=True)
        self._offer = offer
        self.damage = DamageReport(settings.name) if damage is None else damage
        self.layout = layout
        self.settings = settings
        self.odb = odb
        self.hydrator = hydrator
        self.index_ready = trio.Event()
        """Set it when the index is written: until then reading the gitfile waits."""
        self.looked_through = trio.Event()
        """Set when it is known whether the data of written files is there."""
        self._upper = Upper(layout.upper)
        try:
            self._open_or_create(tip)
        except BaseException:
            self._upper.close()
            raise

    def _open_or_create(self, tip: TipLike | None) -> None:
        layout, settings = self.layout, self.settings
        self._owner = owner = Owner(
            os.getuid() if settings.uid is None else settings.uid,
            os.getgid() if settings.gid is None else settings.gid,
            # overlayfs never asks again, and copy_file_range(2) then takes the file for empty.
            unknown_size=1 if self._is_native else 0,
        )
        self._served = False
        self._dirty_bytes = (-1, 0)
        self._last_switch_ns = 0
        self._counted_at = -_COUNT_EVERY
        self.journal = ChangeJournal()
        self.stale = StaleEntries()
        if not layout.overlay_db.exists():
            create(layout, tip, owner, self.journal)
        self._overlay = Overlay(layout.overlay_db)
        self._overlay.when_unreadable = partial(report_unreadable_pages, layout, self.damage)
        try:
            self._compose()
        except BaseException as error:
            self._overlay.close()
            unreadable = isinstance(error, OSError) and error.errno == errno.EIO
            if unreadable or isinstance(error, DAMAGE):  # a page of zeros has empty values
                raise damaged(layout.overlay_db, str(error)) from error
            raise

    def _compose(self) -> None:
        overlay, owner = self._overlay, self._owner
        meta = overlay.meta
        self.base = Base(meta["base_commit"], meta["base_tree"], int(meta["base_time_ns"]))
        self._power_lost = meta.get("boot") != seals.boot_id()
        self._small = SmallFiles(
            self.layout.small,
            overlay.allocate_segment,
            damage=self.damage,
            synced=overlay.synced_segments(),
            power_lost=self._power_lost,
        )
        self.written = Written(overlay, self._upper, self._small, Opened(self._upper))
        self._listings = Listings(self.odb)
        self.conversions = Conversions(
            self.layout, self._listings, self.hydrator, self.damage, self.settings.mount_point
        )
        self.filters = Filters(self.layout.gitdir, self._prepare_filter)
        self.tree = Tree(
            written=self.written,
            listings=self._listings,
            owner=owner,
            known_size=self.hydrator.known_size,
            conversions=self.conversions,
            damage=self.damage,
            after_clean_end="closed" in meta,
        )
        self.sealing = Sealing(self.tree, self.written)
        self._has_orphans = "closed" not in meta or "orphans" in meta
        if self._has_orphans:
            self._mark([put_meta("orphans", 1)])  # until they are swept, however this ends
        self._load_journal(meta.pop("closed", None))
        self.walker = Walker(overlay, self._listings)
        self.mutations = Mutations(self.tree, overlay, self.journal)
        self.contents = Contents(
            self.tree,
            self.written,
            self.mutations,
            self.hydrator,
            self.conversions,
            ConvertedContents(self.layout.converted, self.filters, self.damage),
        )
        self._workplace = FilterWorkplace(self.layout.filtering, self.tree, self.contents.stored)
        self._workplace.remove()  # what a crash left
        self.collection = Collection(self.tree, self.written)
        self._compaction = Compaction(
            self.tree, self.walker, self.layout.gitdir, self.contents.equals_blob
        )
        if self._is_native:
            self._compose_native(owner)
        of_owner = {"uid": owner.uid, "gid": owner.gid, "time_ns": self.base.time_ns}
        self.offered = OfferedObjects(self._offer, **of_owner) if self._offer else None
        self._virtual = VirtualFiles(
            os.fsencode(self.layout.gitdir),
            self._answer_fsmonitor,
            offered=self.offered,
            place=self._place,
            **of_owner,
        )
        self._virtual.avoid(self.tree.entries(self.tree.root))
        if self.native is not None:
            self._virtual.before_answer = self.native.look
        self.operations = Operations(
            name=self.settings.name,
            tree=self.tree,
            written=self.written,
            mutations=self.mutations,
            contents=self.contents,
            virtual=self._virtual,
            xattrs=Xattrs(self.tree, overlay) if self.settings.xattrs else None,
            index_ready=self.index_ready,
        )
        if self.taken_over:
            self.operations.recall = Recall(self.tree, overlay, self._listings)
            self.features.lacks("listings-ahead", "another process began this mount", expected=True)
            self.tree.taken_over = True
            self.tree.recall_nameless()
        else:
            self._forget_before()
        self.operations.on_begin = self._outlive
        self.operations.arriving = self.arriving
        self.tree.is_arriving = self.arriving is not None

    def _outlive(self) -> None:
        """The session has begun: it is known whether writes can outlive this process."""
        on = self.features.on("handover-writes") and not self._is_native
        if self._handover is None or not on:
            return
        try:
            self.operations.outlive(self.layout.listings, taken_over=self.taken_over)
        except OSError as error:
            self.features.lacks("handover-writes", f"{self.layout.listings}: {error.strerror}")
            return
        self.tree.keeps_nameless = True

    def _forget_before(self) -> None:
        """What was of another mount of this tree: nobody uses it, and requests count anew."""
        edits = once.forget(self._overlay)
        edits += [nameless.let_go(found.ino) for found in nameless.kept(self._overlay.meta)]
        if edits and not self._mark(edits):
            self.features.lacks("handover-writes", "the disk is full")

    def _compose_native(self, owner: Owner) -> None:
        hidden = hidden_names(self.tree.entries(self.tree.root))
        self.native = KernelWrites(self.layout, self.odb, self.base.tree, owner, hidden)

    async def trees_have_come(self) -> None:
        """All of the base tree is here: answer who has waited for that."""
        root = self.tree.root
        before = self.tree.entries(root)
        if root.oid is not None:
            self._listings.forget(root.oid)
        for name in before.keys() - self.tree.entries(root).keys():
            self.stale.add(root.ino, name)  # a folder that holds no file at any depth
            self.stale.add_listing(root.ino)
        self.tree.is_arriving = False
        await self.stale.flush()
        if self.arriving is not None:
            self.arriving.have_come()

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the overlay keeps of itself: its base among it."""
        return self._overlay.meta

    @property
    def served_at(self) -> str:
        """Where the kernel finds our own mount."""
        return str(self.layout.lower) if self._is_native else self.settings.mount_point

    async def _prepare_filter(self, command: str) -> Path:
        return await self._workplace.prepare(command)

    # Git's fsmonitor

    def _load_journal(self, dumped: bytes | None) -> None:
        """Go on with the journal of a clean end; after any other one nothing is known."""
        if dumped is None:
            self.journal.everything_changed()
            return
        self.journal.load(dumped)
        if not self._mark([delete_meta("closed")]):
            self.journal.everything_changed()

    def _mark(self, edits: list[Edit]) -> bool:
        """Note something about the overlay as a whole. False on a full disk: the mount works."""
        try:
            self._overlay.apply(edits, frees=True)
        except OSError as error:
            log.warning("the overlay could not be marked: %s", error)
            return False
        return True

    def _answer_fsmonitor(self, token: str) -> bytes:
        """With `.gitmodules` always among what changed, where there is one.

        `git rm` and `git mv` of a submodule write it and then stage it by an index that still
        trusts the entry: without this git (2.39) leaves the change unstaged, with any fsmonitor.
        """
        another_index = token.endswith(_ANOTHER_INDEX)
        token = token.removesuffix(_ANOTHER_INDEX)
        if not self.features.on("fsmonitor"):
            token = ""  # of nobody: everything may have changed
        if self.native is not None:
            answer = self.native.journal.answer(token, any_index=another_index)
        else:
            answer = self.journal.answer(token, self.walker.directories_below)
        if self.tree.lookup(self.tree.root, b".gitmodules") is None:
            return answer
        return answer + (b"" if answer.endswith(b"\0") else b"\0") + b".gitmodules"

    def fsmonitor_command(self, sound_git: str | None = None) -> str:
        """The value of ``core.fsmonitor``: one line for ``sh``, run in the top of the tree.

        Git calls it with the version of the protocol and a token. Where the mount is not there,
        it answers that everything may have changed. The trailing ``#`` swallows what git appends.

        So it does where the caller is ``git diff`` or ``diff-index``: git before 2.43 looks at an
        uninitialised `struct stat` for entries that a fsmonitor vouches for, and in one of twenty
        runs of ``git diff HEAD`` takes every file for deleted, on any file system. `sound_git` is
        the path of a git that does not.
        """
        file = self.fsmonitor_folder
        sound = f"[ /proc/$PPID/exe -ef {shlex.quote(sound_git)} ] || " if sound_git else ""
        return (
            f"{{ {sound}read -r caller </proc/$PPID/cmdline; }} 2>/dev/null; "
            "case $caller in *diff*) printf '%s\\0/' \"$2\";; "
            f'*) cat "{file}/$2${{GIT_INDEX_FILE:+{_ANOTHER_INDEX}}}" 2>/dev/null ||'
            " printf 'unknown\\0/\\0';; esac #"
        )

    @property
    def fsmonitor_folder(self) -> str:
        """Where the answers are, as a word within double quotes in ``sh``.

        Not through the kernel's overlayfs, which takes a name that has changed below for stale.
        """
        folder = f"{os.fsdecode(self._virtual.control_name)}/fsmonitor"
        if not self._is_native:
            return folder
        return re.sub(r'([$`"\\])', r"\\\1", f"{self.layout.lower}/{folder}")

    @property
    def ino_secret(self) -> bytes:
        """The key of the inode numbers of what is clean."""
        return self._overlay.ino_secret

    def count_of_changes(self) -> int:
        """How often the tree was changed so far."""
        return self._overlay.changes

    @property
    def offered_alternate(self) -> bytes:
        """The line of an alternates file that names what git is offered; empty: there is none."""
        if self.offered is None:
            return b""
        return alternate_line(self.served_at, self._virtual.control_name)

    @property
    def waiting_room(self) -> bytes:
        """The path in the mount of the folder in which git waits for its index."""
        return self._virtual.control_name + b"/" + WAITING

    @property
    def initial_token(self) -> str:
        """What git's fsmonitor is told to know when it has seen the base tree alone."""
        journal = self.journal if self.native is None else self.native.journal
        return journal.initial_token

    # Looking

    async def measure(self) -> OverlayStats:
        """What is local, whoever takes the writes."""
        if self.native is not None:
            return OverlayStats(*await self.native.measure())
        try:
            return self.overlay_stats()
        except OSError:  # what names them is on a damaged page: then what the disk has
            sizes = await trio.to_thread.run_sync(self._upper.sizes)
            return OverlayStats(len(sizes), sum(sizes.values()) + self._small.live_bytes)

    async def changes(self) -> list[LocalChange]:
        """Differences of the working tree from the base commit, whoever takes the writes."""
        if self.native is not None:
            return await self.native.changes()
        return list(self.local_changes())

    def has_nothing_written(self) -> bool:
        """Surely: then there is nothing to `compact`."""
        return self.native is None and not self.overlay_stats().dirty_files

    def overlay_stats(self) -> OverlayStats:
        """What is local, that is neither of the mounted commit nor HEAD's. `dirty_bytes` may be
        some seconds old where there are many files, and then counts what HEAD has as well."""
        files = self._overlay.count_with_data()
        if files > _COUNTED_AT_ONCE and not self.tree.committed:
            return OverlayStats(files, self._dirty_bytes[1])
        local = self._overlay.inodes_with_data()
        local = [ino for ino in local if ino not in self.tree.committed]
        if files <= _COUNTED_AT_ONCE:
            self._dirty_bytes = self._overlay.changes, self._count_bytes(local)
        return OverlayStats(len(local), self._dirty_bytes[1])

    def _count_bytes(self, inodes: Iterable[int]) -> int:
        total = 0
        for ino in inodes:
            row = self._overlay.row(ino)
            if row is not None and row.extent is not None:
                total += row.extent.size
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                total += self._upper.stat(ino).st_size
        return total

    def local_changes(self) -> Iterator[LocalChange]:
        """Differences of the working tree from the base commit. Use it without an await."""
        return self.walker.local_changes(self.base.tree)

    def stat(self, path: bytes) -> FileStat | None:
        """What ``lstat`` of `path` in the mount says; `size` None where it is not known yet."""
        place = self.walker.find(path)
        if place is None:
            return None
        inode: Inode | None = self.tree.root
        for name in path.split(b"/") if path else ():
            assert isinstance(inode, Directory)
            inode = self.tree.lookup(inode, name)
        assert inode is not None
        known = self.tree.refresh_attributes(inode)
        row = inode.row if inode.row is not None else self._owner.row(inode)
        size = inode.size if known else None
        found = FileStat(inode.ino, inode.mode, size, row.mtime_ns, row.ctime_ns, row.uid, row.gid)
        self.tree.drop_if_unused(inode)
        return found

    # Changing the base

    def read_tree(self, tree: Oid) -> list[TreeEntry]:
        """The entries of a tree, which whoever lists it need not read again (`Listings.read`)."""
        return self._listings.read(tree)

    def known_tree(self, tree: Oid) -> list[TreeEntry] | None:
        """The entries of a tree that is in memory. For any thread."""
        return self._listings.known(tree)

    def adopt_trees(self, trees: Mapping[Oid, list[TreeEntry]]) -> None:
        """Use trees that were read already; a switch then reads none in the event loop."""
        self._listings.adopt(trees)

    def compare_switch(self, tree: Oid) -> SwitchResult:
        """What `switch_tree` would change, and which local changes are in its way."""
        switch = self._switch(now_ns())
        return switch.compare(self.base.tree, tree)

    def _switch(self, time_ns: int) -> Switch:
        return Switch(
            self.tree,
            self.written,
            self._listings,
            self.mutations,
            self.journal,
            self.stale,
            time_ns,
        )

    def switch_tree(
        self, tree: Oid, commit: Oid, time_ns: int | None = None, *, whole: bool = False
    ) -> SwitchResult:
        """Make `tree` the base; local changes stay. Downloads nothing, and never waits: when
        `stale` are flushed, everybody sees it.

        `time_ns` is the mtime of what changes. `whole`: do nothing, and tell what is `kept`, where
        local changes are in the way. Raises: MissingObject, OSError; then nothing has changed.
        """
        now = now_ns() if time_ns is None else time_ns
        now = self._last_switch_ns = max(now, self._last_switch_ns + 1)  # always a new mtime
        switch = self._switch(now)
        result = switch.run(self.base.tree, tree, commit, in_kernel=self._served, whole=whole)
        if whole and result.kept:
            return result
        self.base = Base(commit, tree, self.base.time_ns)
        self.conversions.forget_scopes()
        self._virtual.avoid(self.tree.entries(self.tree.root))
        return result

    def make_folder(self, path: bytes) -> None:
        """A folder, with those above it, before it is mounted. Raises: OSError, MissingObject."""
        if self.native is not None:
            self.native.make_folder(path)
        else:
            places.make_folder(self.tree, self.mutations, path)

    def make_link(self, path: bytes, target: str) -> None:
        """The same for a symlink to `target`."""
        if self.native is not None:
            self.native.make_link(path, target)
        else:
            places.make_link(self.tree, self.mutations, path, target)

    async def differs_from(self, tree: Oid) -> bool:
        """Whether a file of `tree` was removed, or has another content or mode; files that it
        does not have do not count. Hashes written files. Raises: MissingObject, OSError."""
        for change in list(self.walker.local_changes(tree)):
            if change.kind != "added" and not await self._equals(change.path, tree):
                return True
        return False

    async def _equals(self, path: bytes, tree: Oid) -> bool:
        """Whether what is at `path` is of the kind and mode that it has in `tree`, and the same."""
        inode: Inode | None = self.tree.root
        below: Oid | None = tree
        entry: TreeEntry | None = None
        for part in path.split(b"/"):
            if below is None or not isinstance(inode, Directory):
                return False
            entry = self._listings.entries(below).get(part)
            inode = self.tree.lookup(inode, part)
            below = base_tree_of(entry) if entry is not None else None
        if inode is None or entry is None:
            return False
        if stat.S_ISLNK(inode.mode) and inode.row is not None and inode.row.target is not None:
            target = object_id("blob", inode.row.target)
            return stat.S_ISLNK(mode_of_entry(entry.mode)) and target == entry.oid
        same_mode = not (inode.mode ^ mode_of_entry(entry.mode)) & (0o100 | stat.S_IFMT(0o777777))
        if not same_mode or not inode.has_data:
            return same_mode and inode.oid == entry.oid
        return await self.contents.equals_blob(inode, entry.oid)

    async def compact(self, head: Oid | None = None) -> int:
        """Make files clean again that equal a blob of the base or of the tree `head`, if the remote
        has it. Returns how many. Can be cancelled at any time. Where the kernel takes the writes
        they stay in the upper folder, and only do not count as local any more."""
        if self.native is not None:
            await self.native.compare(head)
            return 0
        return await self._compaction.run(head, [self.base.tree])

    # Life

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """While this lasts, the kernel has the mount."""
        self._served = True
        try:
            yield
        finally:
            self._served = False

    async def convert(self) -> None:
        """What conversions need in the background of a served mount; runs until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.filters.run)
                nursery.start_soon(self.conversions.run, self.tree.root)
        finally:
            self._workplace.remove()

    async def maintain(self) -> None:
        """Background work of a served mount; runs until cancelled."""
        report_faults(self._overlay, self.layout, self.damage)
        await look_for_damage(self.tree, self.written)
        self.looked_through.set()
        if self._power_lost:
            self._mark([put_meta("boot", seals.boot_id())])
        if not self._overlay.logs_set_aside and not self._overlay.has_unreadable_pages:
            if self._has_orphans:
                await self._sweep_orphans()
            await self.collection.begin()
        for round_number in itertools.count():
            await trio.sleep(_MAINTENANCE_S)
            self._forget_nameless()
            if round_number % _IDLE_ROUNDS == 0:
                self.written.opened.close_idle()
            if round_number % _SEAL_ROUNDS == 0:
                await self.sealing.run()
            if self._overlay.needs_checkpoint:
                await self._checkpoint()
            elif self._overlay.needs_fold:
                self._overlay.fold()
            await self.collection.run()
            changes = self._overlay.changes
            if changes != self._dirty_bytes[0]:
                await self._count_many(changes)

    def _forget_nameless(self) -> None:
        try:
            self.tree.forget_nameless()
        except OSError as error:
            log.debug("left to the next process: %s", error)

    async def _sweep_orphans(self) -> None:
        try:
            await self.contents.remove_orphans()
            self._overlay.apply([delete_meta("orphans")])
        except OSError as error:
            log.warning("left-over files stay until the next start: %s", error)

    async def _checkpoint(self) -> None:
        self._overlay.begin_checkpoint()
        try:
            await trio.to_thread.run_sync(self._overlay.checkpoint)
        except (sqlite3.Error, OSError) as error:
            log.warning("cannot write the overlay's log back: %s", error)
        else:
            self._overlay.finish_checkpoint()
            await trio.to_thread.run_sync(self._overlay.note_pages)

    async def _count_many(self, changes: int) -> None:
        """The size of written files where there are too many to ask for it in between."""
        if self._overlay.changes - self._counted_at < _COUNT_EVERY:
            return
        self._counted_at = changes
        try:
            count = self._overlay.count_with_data()
        except OSError as error:  # of damaged pages nobody knows what was on them
            log.warning("what was written cannot be counted: %s", error)
            return
        if count > _COUNTED_AT_ONCE:
            total = await trio.to_thread.run_sync(self._upper.total_bytes)
            self._dirty_bytes = changes, total + self._small.live_bytes

    def close(self) -> None:
        """To be called when the mount is no longer served."""
        if self._handover is None or not self._handover.stays:
            for inode in self.tree.inodes():
                if inode.data is not None and not inode.linked and inode.extent is None:
                    self._upper.remove(inode.ino)
        self.operations.close()
        self.written.opened.close_all()
        self._finish_data()
        # Where this fails, the next start looks for orphans and git stats everything once.
        self._mark([put_meta("closed", self.journal.dump())])
        self._overlay.close()
        self._small.close()
        self._upper.close()

    def _finish_data(self) -> None:
        """Have it known what the data of written files is."""
        try:
            self.sealing.finish()
            self._small.sync(self._small.current)
            self.contents.note_synced(self._small.current)
        except OSError as error:
            log.warning("some written files have no checksums yet: %s", error)
