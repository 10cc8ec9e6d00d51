"""``add-repo --follow BRANCH``: after a fetch, the mount moves forward with the remote branch.

Only forward, only while that branch is checked out, and only while there are no local changes; in
every other case it stays where it is, says why in the log once, and is tried after the next fetch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from artifactfs.daemon.switch.target import Goal, commit_and_tree
from artifactfs.errors import StateError
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.index.move import Unusual
from artifactfs.git.repository.gitdir import read_head, read_refs
from artifactfs.git.repository.refspecs import tracked_remote

if TYPE_CHECKING:
    from artifactfs.daemon.worker.worker import Worker

log = logging.getLogger(__name__)

STATUS_DEADLINE_S = 60.0


async def follow(worker: Worker) -> bool:
    """Move forward if that can be done now; True if it was. Raises: RemoteError, GitFailed."""
    branch = worker.settings.follow
    if branch is None:
        return False
    gitdir = worker.layout.gitdir
    await worker.filesystem.index_ready.wait()
    head = await trio.to_thread.run_sync(read_head, gitdir)
    refs = await trio.to_thread.run_sync(read_refs, gitdir)
    remote = await tracked_remote(gitdir, worker.settings.remote)
    upstream = remote.tracking(f"refs/heads/{branch}") or ""
    new = refs.get(upstream)
    if new is None or head.commit is None or new == head.commit:
        return False
    why = await _obstacle(worker, branch, head.ref, head.commit, new)
    if why is None:
        commit, tree = await commit_and_tree(worker, new, branch)
        goal = Goal(commit, tree, branch, None, upstream.removeprefix("refs/remotes/"))
        try:
            changed = await worker.switching.forward(head, goal)
        except (Unusual, StateError) as error:
            why = error.message
        else:
            log.info("followed", extra={"commit": commit.hex(), "changed": changed})
            return True
    log.info("does not follow %s: %s", branch, why)
    return False


async def _obstacle(
    worker: Worker, branch: str, ref: str | None, old: bytes, new: bytes
) -> str | None:
    """Why it cannot move; None where it can."""
    if ref != f"refs/heads/{branch}":
        return "another branch is checked out"
    try:
        ancestry = ("merge-base", "--is-ancestor", old.hex(), new.hex())
        await run_git(*ancestry, gitdir=worker.layout.gitdir, deadline_s=STATUS_DEADLINE_S)
    except GitFailed as error:
        if error.returncode != 1:
            raise
        return "it has other commits than the remote"
    top = worker.settings.mount_point
    status = ("-C", top, "status", "--porcelain=v1", "-z", "--untracked-files=no")
    if await run_git(*status, deadline_s=STATUS_DEADLINE_S):
        return "there are local changes"
    return None
