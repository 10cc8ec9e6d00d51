"""The gitdir as a folder ``.git`` of the mount, where this process may mount.

A gitfile tells git everything, but not other programs: what looks for ``.git/`` (IDEs, build
tools), ``git worktree list``, ``includeIf "gitdir:…"`` and ``git clone PATH`` name or expect the
folder. So it is bind-mounted there, at the disk's speed. Ordinary users, and trees of another
user than the daemon's, keep the gitfile; so do all with ``ARTIFACT_FS_DISABLE=git-folder``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.host import mounts
from artifactfs.daemon.host.binds import bind, detach, unbind
from artifactfs.errors import MountError
from artifactfs.features import Features, disabled_features
from artifactfs.fs.gitview.virtual import GitdirPlace
from artifactfs.git.surroundings import OWN_FOLDER
from artifactfs.paths import real_path
from artifactfs.system.processes import may_mount

log = logging.getLogger(__name__)


class CoveredGitdir:
    """The bind mount of one gitdir, and what the file system has to know of it."""

    def __init__(self, gitdir: Path, settings: RepoSettings) -> None:
        self._gitdir = gitdir
        self._mount_point = settings.mount_point
        own = settings.uid is None or settings.uid == os.geteuid()
        wanted = own and "git-folder" not in disabled_features()
        self._waits = False
        self._covers_gitfile = False
        self._top = Path()  # of `cover`
        self._changing = trio.Lock()
        self.place = GitdirPlace(can_be_covered=wanted and may_mount())

    async def cover(
        self, served_at: Path, top: Path, waiting_room: bytes, features: Features
    ) -> None:
        """Mount the gitdir, in the tree at `top`; where that fails, ``.git`` is a gitfile.

        As long as git has no index, it is only tried whether that can be done, somewhere else:
        nobody shall see a folder that becomes a gitfile. `open` does it then.

        Where the kernel's overlayfs is above our mount, it is done at once, and `waiting_room` (a
        path in our own mount at `served_at`) covers it until `open`. A gitfile is covered by
        itself there: the kernel would let it be removed.
        """
        async with self._changing:
            await self._cover_at(served_at, top, waiting_room, features)

    async def _cover_at(
        self, served_at: Path, top: Path, waiting_room: bytes, features: Features
    ) -> None:
        folder = Path(real_path(str(top))) / ".git"
        if not self.place.is_folder:
            if served_at != top:
                await trio.to_thread.run_sync(self._bind_gitfile, served_at / ".git", folder)
            return
        self._top = folder
        has_index = (self._gitdir / "index").exists()
        if served_at != top:
            self.place.has_waiting_room = True
            room = served_at / os.fsdecode(waiting_room)
            await self._cover(features, partial(self._bind, None if has_index else room))
        else:
            await self._cover(features, self._bind if has_index else self._try)

    async def _cover(self, features: Features, mount: Callable[[], None]) -> None:
        try:
            await trio.to_thread.run_sync(mount)
        except (MountError, OSError) as error:
            log.warning(".git is a gitfile: the gitdir cannot be mounted there: %s", error)
            features.lacks("git-folder", f"it cannot be mounted: {error}")
            await self.place.give_up()

    async def open(self, features: Features) -> None:
        """There is an index: git may look at the gitdir."""
        async with self._changing:
            await self._open(features)

    async def _open(self, features: Features) -> None:
        if self.place.is_folder and self._waits:
            await trio.to_thread.run_sync(self._end_waiting)
        elif self.place.is_folder and not self.place.has_waiting_room:
            await self._cover(features, self._bind)
        self.place.ready()

    async def uncover(self) -> None:
        """Unmount it again. Raises: MountError where a program uses it."""
        async with self._changing:
            if self.place.is_folder or self._covers_gitfile:
                await trio.to_thread.run_sync(self._unbind)

    def _unbind(self) -> None:
        folder = self._folder()
        try:
            unbind(folder)
        finally:
            self._waits = self._waits and len(mounts.mounts_at(str(folder), follow=False)) > 1

    def _bind(self, waiting_room: Path | None = None) -> None:
        folder = self._top
        mounted = mounts.mounts_at(str(folder), follow=False)
        if mounted:  # by a process whose mount this one goes on with
            self._waits = self.place.has_waiting_room and len(mounted) > 1
            return
        bind(self._gitdir, folder)
        if waiting_room is not None:
            bind(waiting_room, folder)
            self._waits = True

    def _try(self) -> None:
        """Mount something where nobody looks. Raises: MountError."""
        folder = self._gitdir.resolve() / OWN_FOLDER
        folder.mkdir(exist_ok=True)
        unbind(folder)  # of a process that was killed just here
        bind(folder, folder)
        unbind(folder)

    def _bind_gitfile(self, gitfile: Path, folder: Path) -> None:
        if not mounts.mounts_at(str(folder), follow=False):
            bind(gitfile, folder)
        self._covers_gitfile = True

    def _end_waiting(self) -> None:
        """Lazily: who waits in it is in it. Somebody may have unmounted it by umount(8)."""
        self._waits = False
        folder = self._folder()
        try:
            detach(folder)
        except MountError:
            if len(mounts.mounts_at(str(folder), follow=False)) > 1:
                raise

    def _folder(self) -> Path:
        return Path(real_path(self._mount_point)) / ".git"
