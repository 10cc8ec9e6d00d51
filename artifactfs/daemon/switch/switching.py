"""``artifact-fs switch``: what `git switch` does, in O(changed directories) and without contents.

The order, and what a crash leaves at each point:

1. Trees are fetched, the new index is planned, sizes are asked for. Nothing has changed.
2. The intent is written (``STATE/repos/NAME/switch.json``), then ``index.lock`` is taken.
3. The working tree moves, in one transaction of the overlay. A crash before: nothing has changed.
4. When the sizes are here, the index is replaced, then HEAD is moved. A crash before or between:
   the next worker finds the intent, sees that the overlay has moved, and does the rest before it
   mounts (`recovery`).

Whatever is not the plain case is left to ``git switch`` itself, run in the mount: staged changes
in the way, conflicts, sparse checkouts, local changes that may be in the way. Then git decides,
and its words are the answer.

A racy index: what a switch changes has the mtime of that moment, and git does not trust entries
that are not older than the index file. So once that second is over and if nothing was changed
meanwhile, the index file is made younger (`_make_index_younger`); till then fsmonitor vouches for
them.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from artifactfs.daemon.switch.head import Intent, Move, hook_of, move_head
from artifactfs.daemon.switch.target import Commits, Goal
from artifactfs.errors import ArtifactFSError, CorruptData, StateError
from artifactfs.fs.kernel.stale import StaleEntries
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.tree.switch import Placed, SwitchResult
from artifactfs.git.index.file import StatData
from artifactfs.git.index.move import IndexMove, Unusual
from artifactfs.git.index.primed import LockedIndex
from artifactfs.git.objects.database import MissingObject, ObjectDatabase, Oid, TreeEntry
from artifactfs.git.objects.tree_diff import diff_trees
from artifactfs.git.repository.refs import Head, read_head
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.inode_numbers import derive_ino
from artifactfs.paths import RepoLayout

log = logging.getLogger(__name__)

SIZES_WAIT_S = 3.0
"""Without sizes git is right as well; it only reads a file that it would not have had to."""
SWEEP_AFTER_S = 2.0

_GITLINK = 0o160000

_TURNS_OF_A_REQUEST = 60
"""Of the event loop, until a request is on the wire: below 1 ms. What is done while its answer is
awaited holds the loop for longer."""

_UNFINISHED = {
    "MERGE_HEAD": "merging",
    "rebase-apply": "rebasing",
    "rebase-merge": "rebasing",
    "CHERRY_PICK_HEAD": "cherry-picking",
    "REVERT_HEAD": "reverting",
}
_FOR_GIT = (
    "info/sparse-checkout",
    "worktrees",
    "SQUASH_MSG",
    "MERGE_MSG",
    "AUTO_MERGE",
    "BISECT_LOG",
)
"""Where one of these is in the gitdir, git has more to do than move a tree."""


SizeOf = Callable[[bytes, Oid], int]
"""The size of a path with that blob, as the index holds it."""


Start = Callable[..., None]
"""Takes a coroutine function and its arguments."""


@dataclass(frozen=True, slots=True)
class Switched:
    """What has become of a switch: how many paths were changed; or the arguments of the
    ``git switch`` that is to do it, in the mount, and so not by us; and the arguments of a
    ``post-checkout`` hook that is to be run there, if there may be one."""

    changed: int | None
    git: tuple[str, ...] | None = None
    hook: tuple[str, ...] | None = None


class _KnownTrees:
    """The trees of a mount: those that it has in memory, else from its object database."""

    def __init__(self, filesystem: FileSystem, odb: ObjectDatabase) -> None:
        self._known = filesystem.known_tree
        self._odb = odb

    def tree(self, oid: Oid) -> list[TreeEntry]:
        known = self._known(oid)
        return self._odb.tree(oid) if known is None else known


@dataclass(slots=True)
class _Sizes:
    """Sizes of blobs; `known` has them when `learnt` is set, some `SIZES_WAIT_S` from the start."""

    known: Mapping[Oid, int] = field(default_factory=dict)
    learnt: trio.Event = field(default_factory=trio.Event)


class Switching:
    """Moves one mount to other commits, one at a time."""

    def __init__(
        self,
        layout: RepoLayout,
        *,
        commits: Commits,
        filesystem: FileSystem,
        hydrator: Hydrator,
        start: Start,
        offer_objects: Callable[[], None],
    ) -> None:
        """`start` runs a task behind the mount, and `offer_objects` tells git anew where the
        mount offers objects, since a switch may change that name."""
        self._layout = layout
        self._gitdir = layout.gitdir
        self._commits = commits
        self._odb = commits.odb
        self._filesystem = filesystem
        self._hydrator = hydrator
        self._start = start
        self._offer_objects = offer_objects
        self._busy = trio.Lock()

    async def switch(self, goal: Goal) -> Switched:
        """Check out `goal`, or say how git does it.

        Raises: InvalidInput, StateError, GitFailed, RemoteError.
        """
        await self._filesystem.index_ready.wait()
        if self._filesystem.native is not None:
            return await self._leave_to_git(goal)
        async with self._busy:
            move = Move(await trio.to_thread.run_sync(read_head, self._gitdir), goal)
            self._check_nothing_unfinished()
            try:
                changed = await self._move(move)
            except (Unusual, CorruptData) as error:
                log.info("git switches itself: %s", error.message)
                return Switched(None, git=_by_git(goal))
            return Switched(
                changed, hook=await trio.to_thread.run_sync(hook_of, self._gitdir, move)
            )

    async def _leave_to_git(self, goal: Goal) -> Switched:
        """Where the kernel takes the writes, git writes as fast as the disk is; what it is going
        to write is fetched before, in one batch."""
        self._check_nothing_unfinished()
        head = await trio.to_thread.run_sync(read_head, self._gitdir)
        if head.commit is not None:
            old = self._odb.commit(head.commit).tree
            list_blobs = partial(_new_blobs, self._odb, old, goal.tree)
            try:
                wanted = await trio.to_thread.run_sync(list_blobs)
            except MissingObject:
                await self._commits.fetch_trees(goal.commit)
                wanted = await trio.to_thread.run_sync(list_blobs)
            missing = self._odb.missing(wanted)
            if missing:
                await self._hydrator.prefetch(missing)
        return Switched(None, git=_by_git(goal))

    async def forward(self, head: Head, goal: Goal) -> int:
        """Move the branch that is checked out, with the tree, forward to `goal`.

        Raises: Unusual where anything local is in the way; then nothing has changed.
        """
        async with self._busy:
            self._check_nothing_unfinished()
            return await self._move(Move(head, goal, advance=True))

    def _check_nothing_unfinished(self) -> None:
        for name, what in _UNFINISHED.items():
            if (self._gitdir / name).exists():
                raise StateError(
                    f"cannot switch branch while {what}",
                    hint=f"finish or abort it: see git status in {self._layout.directory.name}",
                )

    # -- by ourselves ------------------------------------------------------------------------

    async def _move(self, move: Move) -> int:
        gitdir, goal = self._gitdir, move.goal
        if move.head.commit is None:
            raise Unusual("HEAD is a branch without commits")
        if any((gitdir / name).exists() for name in _FOR_GIT):
            raise Unusual("git has more to do here")
        old = self._odb.commit(move.head.commit).tree
        plan = await self._plan(gitdir, old, goal)
        sizes = _Sizes()
        self._start(self._learn_sizes, goal.tree, plan.new_blobs(), sizes)
        for _ in range(_TURNS_OF_A_REQUEST):
            await trio.lowlevel.checkpoint()
        self._filesystem.adopt_trees(plan.trees)
        converted = await self._converted(old, plan, goal)
        intent = Intent.of(self._layout)
        with trio.CancelScope(shield=True):
            lock = await trio.to_thread.run_sync(intent.lock_index, gitdir, move)
            try:
                with lock:
                    if not plan.is_current():
                        plan = await self._plan(gitdir, old, goal)
                    if read_head(gitdir) != move.head:
                        raise Unusual("HEAD is being moved")
                    await self._apply(move, old, plan, sizes, converted, lock)
            finally:
                intent.remove()
        return len(plan.changes)

    async def _plan(self, gitdir: Path, old: Oid, goal: Goal) -> IndexMove:
        source = _KnownTrees(self._filesystem, self._odb)
        make = partial(IndexMove, gitdir, source, old, goal.tree)
        try:
            return await trio.to_thread.run_sync(make)
        except FileNotFoundError:
            raise Unusual("there is no index") from None
        except MissingObject:
            await self._commits.fetch_trees(goal.commit)
        try:
            return await trio.to_thread.run_sync(make)
        except MissingObject as error:
            raise Unusual(str(error)) from error

    async def _learn_sizes(self, tree: Oid, oids: list[Oid], sizes: _Sizes) -> None:
        """What can be known of the sizes soon, without any content; while the tree moves."""
        try:
            with trio.move_on_after(SIZES_WAIT_S), suppress(ArtifactFSError):
                remote = await self._commits.remotes.shared()
                if remote.capabilities.object_info and self._hydrator.sizes_are_told:
                    sizes.known = await self._hydrator.sizes(tree, oids)
                    return
            sizes.known = self._hydrator.known_sizes(oids)
        finally:
            sizes.learnt.set()

    async def _converted(self, old: Oid, plan: IndexMove, goal: Goal) -> frozenset[bytes]:
        """The new files that are not their blobs. Raises: Unusual where other files would change,
        too: git leaves what it has written as it is, when only the attributes differ."""
        filesystem = self._filesystem
        base = filesystem.base.tree
        paths = [path for path, _, _ in plan.changes]
        if base != old:
            list_changes = partial(_differing, self._odb, base, goal.tree)
            paths = await trio.to_thread.run_sync(list_changes)
        try:
            if await filesystem.conversions.rules_change(goal.tree, paths):
                raise Unusual("attributes that convert files change")
            return await filesystem.conversions.converted_among(goal.tree, _blobs(plan))
        except MissingObject as error:
            raise Unusual(str(error)) from error

    async def _apply(
        self,
        move: Move,
        old: Oid,
        plan: IndexMove,
        sizes: _Sizes,
        converted: frozenset[bytes],
        lock: LockedIndex,
    ) -> None:
        """Steps 3 and 4. Raises: Unusual, OSError, StateError; then the tree is as it was."""
        filesystem, goal = self._filesystem, move.goal
        changed = filesystem.journal.since(plan.fsmonitor.token) if plan.fsmonitor else None
        moved = self._move_tree(move, old)
        token = filesystem.journal.token()
        try:
            flushed = trio.Event()
            self._start(_flush, filesystem.stale, flushed)
            await sizes.learnt.wait()
            size_of = partial(_size, sizes.known, converted)
            stat_of = partial(_stat, _blobs(plan), moved, size_of)
            finish = partial(plan.finish, stat_of, changed=changed, token=token)
            content = await trio.to_thread.run_sync(finish)
            await flushed.wait()
            await trio.to_thread.run_sync(lock.commit, content)
            await move_head(self._gitdir, move)
        except BaseException:
            await self._take_back(move, old, plan)
            raise
        self._hydrator.offered.expect(goal.tree)
        self._start(trio.to_thread.run_sync, self._offer_objects)  # the name may be another
        self._start(self._make_index_younger, token)
        self._start(self._sweep_later, goal.tree)

    async def _take_back(self, move: Move, old: Oid, plan: IndexMove) -> None:
        """Tree and index as they were; what was written meanwhile stays."""
        assert move.head.commit is not None
        self._filesystem.switch_tree(old, move.head.commit)
        await self._filesystem.stale.flush()
        with suppress(OSError, StateError):
            await trio.to_thread.run_sync(plan.restore)

    def _move_tree(self, move: Move, old: Oid) -> SwitchResult:
        """Without an await: nobody writes between the check and the move. Raises: Unusual."""
        filesystem, head = self._filesystem, move.head.commit
        assert head is not None
        if filesystem.base.tree != old:
            # Git has committed or switched here; the tree is at HEAD in effect, so that is what
            # it can be based on.
            if filesystem.compare_switch(old).changed:
                raise Unusual("the working tree is not at HEAD")
            filesystem.switch_tree(old, head)
        moved = filesystem.switch_tree(move.goal.tree, move.goal.commit, whole=True)
        if moved.kept:
            raise Unusual(f"{os.fsdecode(moved.kept[0])} has local changes")
        return moved

    # -- afterwards --------------------------------------------------------------------------

    async def _sweep_later(self, tree: Oid) -> None:
        """Not at once: walking the tree would slow the commands that come after a switch."""
        await trio.sleep(SWEEP_AFTER_S)
        if self._filesystem.base.tree == tree:
            self._hydrator.start_sweep(tree)

    async def _make_index_younger(self, token: str) -> None:
        """Make the index younger than what the switch changed. See the module's docstring."""
        index = self._gitdir / "index"
        written = _stamp(index)
        await trio.sleep(1.05 - time.time() % 1.0)
        if self._filesystem.journal.since(token) == []:
            await trio.to_thread.run_sync(_rejuvenate, index, written)


async def _flush(stale: StaleEntries, flushed: trio.Event) -> None:
    try:
        await stale.flush()
    finally:
        flushed.set()


def _blobs(plan: IndexMove) -> Mapping[bytes, Oid]:
    """Path → blob of everything that is new or has new content."""
    return {path: now.oid for path, _, now in plan.changes if now is not None}


def _differing(odb: ObjectDatabase, old: Oid, new: Oid) -> list[bytes]:
    return [change.path for change in diff_trees(odb, old, new)]


def _new_blobs(odb: ObjectDatabase, old: Oid, new: Oid) -> list[Oid]:
    """The contents that a checkout of `new` writes where `old` is checked out."""
    found = [change.after for change in diff_trees(odb, old, new)]
    return [entry.oid for entry in found if entry is not None and entry.mode != _GITLINK]


def _stat(
    blobs: Mapping[bytes, Oid], moved: SwitchResult, size_of: SizeOf, path: bytes
) -> StatData:
    """What the mount reports of `path`, which the move has changed."""
    placed = _placed(moved, path)
    size = size_of(path, blobs[path])
    return StatData(moved.time_ns, moved.time_ns, placed.ino, placed.uid, placed.gid, size)


def _size(sizes: Mapping[Oid, int], converted: frozenset[bytes], path: bytes, oid: Oid) -> int:
    """What the index holds: 0 where it is not known, or where the file is not the blob."""
    return 0 if path in converted else sizes.get(oid, 0)


def _placed(moved: SwitchResult, path: bytes) -> Placed:
    """`path` itself, or found from the directory above it that appeared; remembers it."""
    found = moved.placed.get(path)
    if found is None:
        parent, slash, name = path.rpartition(b"/")
        if not slash:
            return Placed(0, 0, 0)
        above = _placed(moved, parent)
        ino = derive_ino(moved.ino_secret, above.ino, name)
        found = moved.placed[path] = Placed(ino, above.uid, above.gid)
    return found


def _by_git(goal: Goal) -> tuple[str, ...]:
    """The arguments of ``git switch``."""
    if goal.branch is None:
        return ("--detach", goal.shown)
    if goal.track is not None:
        return ("--create", goal.branch, goal.track)
    return (goal.branch,)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _rejuvenate(index: Path, written: tuple[int, int, int] | None) -> None:
    """Give the file now as its mtime, if it is the one that was `written`.

    By its descriptor: where git replaces it in this moment, the file that is gone is touched.
    """
    try:
        descriptor = os.open(index, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.warning("cannot open the index: %s", error.strerror)
        return
    try:
        found = os.fstat(descriptor)
        if (found.st_ino, found.st_mtime_ns, found.st_size) == written:
            os.utime(descriptor)
    finally:
        os.close(descriptor)
