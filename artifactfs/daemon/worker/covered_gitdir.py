"""The gitdir as a folder ``.git`` of the mount, where this process may mount.

A gitfile tells git everything, but not other programs: what looks for ``.git/`` (IDEs, build
tools), ``git worktree list``, ``includeIf "gitdir:…"`` and ``git clone PATH`` name or expect the
folder. So it is bind-mounted there, at the disk's speed. Ordinary users, and trees of another
user than the daemon's, keep the gitfile; so do all with ``ARTIFACT_FS_DISABLE=git-folder``.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.host import mounts
from artifactfs.daemon.host.binds import bind, detach, unbind
from artifactfs.errors import MountError
from artifactfs.features import Features, disabled_features
from artifactfs.fs.gitview.virtual import GitdirPlace
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
        self.place = GitdirPlace(can_be_covered=wanted and may_mount())

    async def cover(
        self, served_at: Path, top: Path, waiting_room: bytes, features: Features
    ) -> None:
        """Mount the gitdir, in the tree at `top`; where that fails, ``.git`` is a gitfile.

        `waiting_room` (a path in our own mount at `served_at`) covers it until `open` where git has
        no index yet.

        Where the kernel's overlayfs is above our mount a gitfile is covered by itself: the kernel
        would let it be removed.
        """
        folder = Path(real_path(str(top))) / ".git"
        if not self.place.is_folder:
            if served_at != top:
                await trio.to_thread.run_sync(self._bind_gitfile, served_at / ".git", folder)
            return
        room = served_at / os.fsdecode(waiting_room)
        has_index = (self._gitdir / "index").exists()
        try:
            await trio.to_thread.run_sync(self._bind, folder, None if has_index else room)
        except (MountError, OSError) as error:
            log.warning(".git is a gitfile: the gitdir cannot be mounted there: %s", error)
            features.lacks("git-folder", f"it cannot be mounted: {error}")
            await self.place.give_up()

    async def open(self) -> None:
        """There is an index: git may look at the gitdir."""
        if self.place.is_folder and self._waits:
            await trio.to_thread.run_sync(self._end_waiting)
        self.place.ready()

    async def uncover(self) -> None:
        """Unmount it again. Raises: MountError where a program uses it."""
        if self.place.is_folder or self._covers_gitfile:
            await trio.to_thread.run_sync(unbind, self._folder())

    def _bind(self, folder: Path, waiting_room: Path | None) -> None:
        if mounts.mounts_at(str(folder), follow=False):
            return
        bind(self._gitdir, folder)
        if waiting_room is not None:
            bind(waiting_room, folder)
            self._waits = True

    def _bind_gitfile(self, gitfile: Path, folder: Path) -> None:
        if not mounts.mounts_at(str(folder), follow=False):
            bind(gitfile, folder)
        self._covers_gitfile = True

    def _end_waiting(self) -> None:
        """Lazily: who waits in it is in it."""
        detach(self._folder())
        self._waits = False

    def _folder(self) -> Path:
        return Path(real_path(self._mount_point)) / ".git"
