"""The first index of a mount, written before git may look at the gitdir.

Who runs git in the mount waits for it, so everything that it takes goes on at the same time: the
tree is listed by a process of its own (`primer`), the remote tells the sizes and sends what git
reads at every command, and git's configuration is written.
"""

from __future__ import annotations

import logging
import os
import shutil

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.background.primer import Primer
from artifactfs.errors import ArtifactFSError
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.command import git_version, run_git
from artifactfs.git.index.primer import encode_options
from artifactfs.git.objects.database import EMPTY_TREE
from artifactfs.git.repository.refs import read_head
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.paths import RepoLayout, StateLayout

log = logging.getLogger(__name__)

CONFIG_DEADLINE_S = 5.0  # less than the supervisor waits for the end
SIZES_WAIT_S = 10.0
SIZES_POLL_S = 0.005
GIT_FILES_WAIT_S = 5.0


class Priming:
    """Of one mount. `settings` are those of now, each time."""

    def __init__(
        self,
        state: StateLayout,
        layout: RepoLayout,
        settings: RepoSettings,
        *,
        hydrator: Hydrator,
        filesystem: FileSystem,
        primer: Primer,
    ) -> None:
        self.done = False
        self._settings = settings
        self._state = state
        self._layout = layout
        self._hydrator = hydrator
        self._filesystem = filesystem
        self._primer = primer

    async def run(self) -> None:
        """Have an index. Where git has one already (every mount but the first), it is left alone.

        Raises: ArtifactFSError.
        """
        features = self._filesystem.features
        try:
            if not (self._layout.gitdir / "index").exists():
                await self._begin()
                features.learn(git=await git_version())
                await self._write_and_configure()
            else:
                features.learn(git=await git_version())
                if await trio.to_thread.run_sync(self._asks_elsewhere):
                    await self._use_fsmonitor()
            self.done = True
        finally:
            self._filesystem.index_ready.set()
            await self._primer.aclose()

    async def _write_and_configure(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._use_fsmonitor)
                if self._filesystem.features.on("primed-index"):
                    nursery.start_soon(self._wait_for_sizes)
                    nursery.start_soon(self._git_files_here)
                    nursery.start_soon(self._filesystem.conversions.wait_for_settings)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        await self._write_any_index()

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
            if hydrator.offered.is_walked and stats.sizes_known >= stats.blobs_total:
                return
            await trio.sleep(SIZES_POLL_S)

    async def _git_files_here(self) -> None:
        """The untracked cache is primed with hashes of the .gitignore files as git sees them.

        Where attributes convert them that takes the contents; and the first `git status` would
        wait for them anyway. Without them it is only slower.
        """
        with trio.move_on_after(GIT_FILES_WAIT_S):
            try:
                await self._hydrator.offered.walked()
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

    async def _begin(self) -> None:
        filesystem, settings = self._filesystem, self._settings
        base = filesystem.base
        await self._primer.begin(
            encode_options(
                gitdir=self._layout.gitdir,
                tree=base.tree,
                worktree=settings.mount_point,
                sizes=self._state.sizes_db,
                uid=os.getuid() if settings.uid is None else settings.uid,
                gid=os.getgid() if settings.gid is None else settings.gid,
                time_ns=base.time_ns,
                token=filesystem.initial_token,
                conversion=self._layout.conversion,
                ino_secret=filesystem.ino_secret,
            )
        )

    async def _write_index(self) -> None:
        started = trio.current_time()
        written = await self._primer.write(need_attributes=True)
        if missing := written.get("missing"):
            with trio.move_on_after(SIZES_WAIT_S):
                try:
                    await self._hydrator.prefetch([bytes.fromhex(oid) for oid in missing])
                except ArtifactFSError as error:
                    log.info("attribute files are not here: %s", error.message)
            written = await self._primer.write(need_attributes=False)
        if absent := written.get("absent"):
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


async def git_path() -> str | None:
    path = shutil.which("git")
    return None if path is None else str(await trio.Path(path).resolve())
