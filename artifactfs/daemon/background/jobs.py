"""The jobs behind a mount that can be read already: history, the index, fetches.

Each job is a task of its own and may fail without touching the mount (`keep_trying`). What waits
for what: the primed index needs sizes; git in the mount waits for the index; the sweep yields to
readers by itself; history comes over a connection of its own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from contextlib import suppress
from functools import partial

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.background.following import Following
from artifactfs.daemon.background.other_tips import learn_sizes
from artifactfs.daemon.background.tasks import Background, Refresh, run_quietly
from artifactfs.daemon.repositories.fetching import Record, fetch_recorded, last_fetch
from artifactfs.daemon.repositories.heads import Tracking, ahead_behind, read_tracking
from artifactfs.daemon.repositories.remotes import RemoteConnection
from artifactfs.errors import ArtifactFSError, StateError
from artifactfs.features import Version, version_of
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.command import run_git
from artifactfs.git.objects.database import EMPTY_TREE, MissingObject, ObjectDatabase
from artifactfs.git.remote.arriving import ArrivingHistory
from artifactfs.git.remote.history import fetch_history, write_changed_paths
from artifactfs.git.repository.gitdir import history_complete
from artifactfs.git.repository.refs import read_head
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.paths import RepoLayout, StateLayout

log = logging.getLogger(__name__)

INDEX_DEADLINE_S = 300.0
CONFIG_DEADLINE_S = 5.0  # less than the supervisor waits for the end
SIZES_WAIT_S = 10.0
SIZES_POLL_S = 0.02
GIVE_WAY_S = 30.0
"""Reading the trees of all commits is put off so long while somebody works in the mount."""
GIT_FILES_WAIT_S = 5.0
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
        self.index_primed = False
        self._refresh = Refresh(settings.refresh_s, self._fetch_and_follow, repo=settings.name)

    def use(self, settings: RepoSettings) -> None:
        """Use other settings from now on, those that can change while it is mounted."""
        self.settings = settings
        self._refresh.set_interval(settings.refresh_s)

    async def run(self) -> None:
        """Start everything; runs as long as the mount."""
        self._hydrator.start_sweep(self._filesystem.base.tree)
        self._background.keep("index", self._prime_index)
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
        parts = (self._layout.gitdir, self._odb, self._filesystem, self._hydrator)
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

    # -- the index ---------------------------------------------------------------------------

    async def _prime_index(self) -> None:
        """Write the index in a process of its own; git in the mount waits for it.

        Where git has one already (every mount but the first), it is left alone.
        """
        try:
            features = self._filesystem.features
            features.learn(git=await git_version())
            if not (self._layout.gitdir / "index").exists():
                if features.on("primed-index"):
                    await self._wait_for_sizes()
                    await self._git_files_here()
                await self._write_any_index()
                await self._use_fsmonitor()
            elif await trio.to_thread.run_sync(self._asks_elsewhere):
                await self._use_fsmonitor()
            self.index_primed = True
        finally:
            self._filesystem.index_ready.set()

    async def _wait_for_sizes(self) -> None:
        """Until all sizes are known, or will not be soon: git copes, so it is not worth waiting."""
        hydrator = self._hydrator
        if self._filesystem.base.tree == EMPTY_TREE:
            return
        end = trio.current_time() + SIZES_WAIT_S
        while trio.current_time() < end:
            stats = hydrator.stats()
            if stats.remote == "down" or any("object-info" in limit for limit in stats.limits):
                return
            if stats.blobs_total and stats.sizes_known >= stats.blobs_total:
                return
            await trio.sleep(SIZES_POLL_S)

    async def _git_files_here(self) -> None:
        """The untracked cache is primed with hashes of the .gitignore files as git sees them.

        Where attributes convert them that takes the contents; and the first `git status` would
        wait for them anyway. Without them it is only slower.
        """
        with trio.move_on_after(GIT_FILES_WAIT_S):
            try:
                await self._hydrator.fetch_git_files()
            except ArtifactFSError as error:
                log.info("the .gitignore files are not here: %s", error.message)

    async def _write_any_index(self) -> None:
        """Without an index git would take every file for deleted: let git write it at worst."""
        features = self._filesystem.features
        try:
            if features.on("primed-index"):
                await self._write_index()
                return
        except ArtifactFSError as error:
            log.warning("the index could not be primed, git reads the tree: %s", error.message)
            features.lacks("primed-index", error.message)
        unborn = read_head(self._layout.gitdir).commit is None
        await run_git("read-tree", "--empty" if unborn else "HEAD", gitdir=self._layout.gitdir)

    async def _write_index(self) -> None:
        filesystem, settings = self._filesystem, self.settings
        base = filesystem.base
        options = {
            "gitdir": self._layout.gitdir,
            "tree": base.tree.hex(),
            "worktree": settings.mount_point,
            "sizes": self._state.sizes_db,
            "uid": os.getuid() if settings.uid is None else settings.uid,
            "gid": os.getgid() if settings.gid is None else settings.gid,
            "time-ns": base.time_ns,
            "token": filesystem.initial_token,
            "conversion": self._layout.conversion,
        }
        await filesystem.conversions.wait_for_settings()
        command = [sys.executable, "-I", "-m", "artifactfs.git.index.primed"]
        command += [f"--{name}={value}" for name, value in options.items()]
        command.append("--secret-on-stdin")
        run = partial(run_quietly, stdin=filesystem.ino_secret, deadline_s=INDEX_DEADLINE_S)
        started = trio.current_time()
        printed = await run([*command, "--need-attributes"])
        missing = json.loads(printed).get("missing")
        if missing:
            with trio.move_on_after(SIZES_WAIT_S), suppress(ArtifactFSError):
                await self._hydrator.prefetch([bytes.fromhex(oid) for oid in missing])
            printed = await run(command)
        if absent := json.loads(printed).get("absent"):
            what = "the commit has names that git refuses or that are too long; they are not shown"
            log.warning(what, extra={"files": absent})
        log.info("the index is written", extra={"seconds": trio.current_time() - started})

    async def _use_fsmonitor(self) -> None:
        """Let git ask the mount what changed; only at first, so that a user can turn it off."""
        gitdir = self._layout.gitdir
        sound = await git_path() if self._filesystem.features.on("fsmonitor-diff") else None
        command = self._filesystem.fsmonitor_command(sound)
        settings = (
            ("core.fsmonitor", command),
            ("core.untrackedCache", "true"),
            # From 2.55 on git takes FUSE for remote, and asks no monitor there without it.
            ("fsmonitor.allowRemote", "true"),
        )
        for name, value in settings:
            with trio.CancelScope(shield=True):  # git that is killed may leave its config.lock
                await run_git("config", name, value, gitdir=gitdir, deadline_s=CONFIG_DEADLINE_S)

    def _asks_elsewhere(self) -> bool:
        """Whether git asks us still, but where our mount was: it follows who takes the writes."""
        try:
            config = (self._layout.gitdir / "config").read_text(errors="surrogateescape")
        except OSError:
            return False
        here = f'cat \\"{self._filesystem.fsmonitor_folder}/$2\\"'
        return "/fsmonitor/$2" in config and here not in config

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


async def git_version() -> Version:
    return version_of((await run_git("version")).decode("utf-8", "replace"))


async def git_path() -> str | None:
    path = shutil.which("git")
    return None if path is None else str(await trio.Path(path).resolve())


def _stamps(gitdir: os.PathLike[str]) -> tuple[int, ...]:
    stamps = []
    for name in ("HEAD", "index", "logs/HEAD"):
        try:
            stamps.append(os.stat(os.path.join(gitdir, name)).st_mtime_ns)
        except OSError:
            stamps.append(0)
    return tuple(stamps)
