"""The jobs behind a mount that can be read already: history, the index, fetches.

Each job is a task of its own and may fail without touching the mount (`keep_trying`). What waits
for what: the primed index needs sizes; git in the mount waits for the index; the sweep yields to
readers by itself; history comes over a connection of its own.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.background.following import Following
from artifactfs.daemon.background.other_tips import learn_sizes
from artifactfs.daemon.background.priming import Priming
from artifactfs.daemon.background.tasks import Background, Refresh
from artifactfs.daemon.repositories.fetching import Record, fetch_recorded, last_fetch
from artifactfs.daemon.repositories.heads import Tracking, ahead_behind, read_tracking
from artifactfs.daemon.repositories.remotes import RemoteConnection
from artifactfs.errors import ArtifactFSError, StateError
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.objects.database import MissingObject, ObjectDatabase
from artifactfs.git.remote.arriving import ArrivingHistory
from artifactfs.git.remote.history import fetch_history
from artifactfs.git.repository.commit_graph import write_changed_paths
from artifactfs.git.repository.gitdir import history_complete
from artifactfs.git.repository.refs import read_head
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.paths import RepoLayout, StateLayout

log = logging.getLogger(__name__)

GIVE_WAY_S = 30.0
"""Reading the trees of all commits is put off so long while somebody works in the mount."""
WATCH_S = 2.0
"""How often HEAD and the index are looked at: three `stat`, 6 µs."""


COUNT_WAIT_S = 1.0

Pair = tuple[str, str]
"""A branch's commit and its upstream's, in hex."""


class Jobs:
    """The background of one mount."""

    def __init__(
        self,
        state: StateLayout,
        layout: RepoLayout,
        settings: RepoSettings,
        *,
        remotes: RemoteConnection,
        odb: ObjectDatabase,
        hydrator: Hydrator,
        filesystem: FileSystem,
        background: Background,
        following: Following,
        history: ArrivingHistory,
        priming: Priming,
    ) -> None:
        """`history` is told here what has come of it."""
        self.settings = settings
        """As they are now: `use` changes them."""
        self._state = state
        self._layout = layout
        self._remotes = remotes
        self._odb = odb
        self._hydrator = hydrator
        self._filesystem = filesystem
        self._background = background
        self._following = following
        self._fetching = trio.Lock()
        self._counts: tuple[Pair, tuple[int, int] | None] | None = None
        self._counting: dict[Pair, trio.Event] = {}
        self._history = history
        self.history_done = history.done
        self._priming = priming
        self._refresh = Refresh(settings.refresh_s, self._fetch_and_follow, repo=settings.name)

    def use(self, settings: RepoSettings) -> None:
        """Use other settings from now on, those that can change while it is mounted."""
        self.settings = settings
        self._refresh.set_interval(settings.refresh_s)

    @property
    def index_primed(self) -> bool:
        """Whether there is an index, by us or by git."""
        return self._priming.done

    async def run(self) -> None:
        """Start everything; runs as long as the mount."""
        self._hydrator.start_sweep(self._filesystem.base.tree)
        self._background.keep("index", self._priming.run)
        self._background.keep("history", self._fetch_history)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh.run)
            nursery.start_soon(self._watch_gitdir)

    # -- history and refs --------------------------------------------------------------------

    async def _fetch_history(self) -> None:
        if not history_complete(self._layout.gitdir):
            try:
                remote = await self._remotes.shared()
                async with self._fetching:
                    await fetch_history(
                        self._layout,
                        self.settings,
                        remote,
                        give_way=self._hydrator.give_way,
                        arriving=self._history,
                    )
            except BaseException:
                self._history.fail()
                raise
            self._odb.refresh()
            log.info("history is complete")
            self._background.start(self._follow)  # a fetch before may have stopped for want of it
        self.history_done.set()
        with suppress(StateError):  # a damaged HEAD: there is nothing that is read ahead of it
            head = read_head(self._layout.gitdir).commit
            if head is not None:
                self._hydrator.start_recent(head)
        parts = (self._layout.gitdir, self._filesystem, self._hydrator)
        self._background.start(learn_sizes, *parts)
        if self.settings.depth is None and not self._layout.gitdir.is_symlink():
            self._background.start(self._write_changed_paths)

    async def _write_changed_paths(self) -> None:
        await self._hydrator.give_way(GIVE_WAY_S)
        await write_changed_paths(self._layout.gitdir)

    async def fetch(self) -> Record:
        """Fetch the remote's refs now. Raises: RemoteError."""
        async with self._fetching:
            remote = await self._remotes.shared()
            record = await fetch_recorded(self._layout, self.settings, remote)
        self._odb.refresh()
        if await self._follow():
            record["followed"] = self._filesystem.base.commit.hex()
        return record

    async def _fetch_and_follow(self) -> None:
        await self.fetch()

    async def _follow(self) -> bool:
        branch = self.settings.follow
        return branch is not None and await self._following.follow(branch, self.settings.remote)

    def last_fetch(self) -> Record | None:
        return last_fetch(self._layout)

    async def head(self) -> tuple[Tracking, tuple[int, int] | None]:
        """HEAD, and its distance from its upstream; None until all of history is here."""
        gitdir = self._layout.gitdir
        head = read_tracking(gitdir)
        if head.oid is None or head.upstream_oid is None:
            return head, None
        if head.oid == head.upstream_oid:
            return head, (0, 0)
        if not history_complete(gitdir):
            return head, None
        return head, await self._distance((head.oid, head.upstream_oid))

    async def _distance(self, pair: Pair) -> tuple[int, int] | None:
        """Known within `COUNT_WAIT_S`, or when it is asked for again: git may take a while for
        it, in which the status must not look as if the mount did not answer."""
        if self._counts is None or self._counts[0] != pair:
            if pair not in self._counting:
                self._counting[pair] = trio.Event()
                self._background.start(self._count, pair)
            with trio.move_on_after(COUNT_WAIT_S):
                await self._counting[pair].wait()
        return self._counts[1] if self._counts is not None and self._counts[0] == pair else None

    async def _count(self, pair: Pair) -> None:
        try:
            self._counts = (pair, await ahead_behind(self._layout.gitdir, *pair))
        finally:
            self._counting.pop(pair).set()

    # -- compaction --------------------------------------------------------------------------

    async def _watch_gitdir(self) -> None:
        """When git has moved HEAD or written the index, dirty files may equal known blobs.

        Waits until git has been quiet for one interval: a rebase writes the index many times.
        """
        gitdir = self._layout.gitdir
        seen = done = _stamps(gitdir)
        if not self._filesystem.has_nothing_written():
            done = ()  # of an earlier process: nothing was compared yet
        while True:
            await trio.sleep(WATCH_S)
            now = _stamps(gitdir)
            if now == seen and now != done:
                done = now
                await self._compact()
            seen = now

    async def _compact(self) -> None:
        try:
            head = await trio.to_thread.run_sync(self._tree_of_head)
            count = await self._filesystem.compact(head)
        except (ArtifactFSError, OSError, MissingObject) as error:
            log.warning("compaction failed: %s", error)
        except Exception as error:  # a full disk, say, as SQLite puts it
            log.error("compaction failed", exc_info=error)
        else:
            if count:
                log.info("compacted", extra={"files": count})

    def _tree_of_head(self) -> bytes | None:
        commit = read_head(self._layout.gitdir).commit
        return None if commit is None else self._odb.commit(commit).tree


def _stamps(gitdir: os.PathLike[str]) -> tuple[int, ...]:
    stamps = []
    for name in ("HEAD", "index", "logs/HEAD"):
        try:
            stamps.append(os.stat(os.path.join(gitdir, name)).st_mtime_ns)
        except OSError:
            stamps.append(0)
    return tuple(stamps)
