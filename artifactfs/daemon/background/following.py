"""``add-repo --follow BRANCH``: after a fetch, the mount moves forward with the remote branch.

Only forward, only while that branch is checked out, and only while there are no local changes; in
every other case it stays where it is, says why in the log once, and is tried after the next fetch.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from artifactfs.daemon.switch.switching import Switching
from artifactfs.daemon.switch.target import Commits, Goal
from artifactfs.errors import StateError
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.index.move import Unusual
from artifactfs.git.objects.ancestry import is_ancestor
from artifactfs.git.objects.database import MissingObject
from artifactfs.git.repository.refs import read_head, read_refs
from artifactfs.git.repository.refspecs import tracked_remote

log = logging.getLogger(__name__)

STATUS_DEADLINE_S = 60.0


class Following:
    """Moves one mount forward with a branch of its remote."""

    def __init__(
        self, gitdir: Path, commits: Commits, filesystem: FileSystem, switching: Switching
    ) -> None:
        self._gitdir = gitdir
        self._commits = commits
        self._filesystem = filesystem
        self._switching = switching

    async def follow(self, branch: str, url: str) -> bool:
        """Move forward with `branch` of the remote at `url` if that can be done now.

        Returns whether it was. Raises: RemoteError, GitFailed.
        """
        await self._filesystem.index_ready.wait()
        head = await trio.to_thread.run_sync(read_head, self._gitdir)
        refs = await trio.to_thread.run_sync(read_refs, self._gitdir)
        remote = await tracked_remote(self._gitdir, url)
        upstream = remote.tracking(f"refs/heads/{branch}") or ""
        new = refs.get(upstream)
        if new is None or head.commit is None or new == head.commit:
            return False
        why = await self._obstacle(branch, head.ref, head.commit, new)
        if why is None:
            commit, tree = await self._commits.commit_and_tree(new, branch)
            goal = Goal(commit, tree, branch, None, upstream.removeprefix("refs/remotes/"))
            try:
                changed = await self._switching.forward(head, goal)
            except (Unusual, StateError) as error:
                why = error.message
            else:
                log.info("followed", extra={"commit": commit.hex(), "changed": changed})
                return True
        log.info("does not follow %s: %s", branch, why)
        return False

    async def _obstacle(self, branch: str, ref: str | None, old: bytes, new: bytes) -> str | None:
        """Why it cannot move; None where it can."""
        if ref != f"refs/heads/{branch}":
            return "another branch is checked out"
        try:
            if not await trio.to_thread.run_sync(is_ancestor, self._commits.odb, old, new):
                return "it has other commits than the remote"
        except MissingObject:
            return "its history is not here yet"
        if await self._has_local_changes(old):
            return "there are local changes"
        return None

    async def _has_local_changes(self, head: bytes) -> bool:
        """Staged, or in a file that HEAD has. Git in the mount would be a child of ours in it."""
        try:
            staged = ("diff-index", "--cached", "--quiet", "HEAD", "--")
            await run_git(*staged, gitdir=self._gitdir, deadline_s=STATUS_DEADLINE_S)
        except GitFailed as error:
            if error.returncode != 1:
                raise
            return True
        tree = self._commits.odb.commit(head).tree
        return await self._filesystem.differs_from(tree)
