"""What a user names to switch to: a local branch, a remote's branch, a tag, a commit.

The order is that of ``git switch``: a local branch first, then any revision, then a branch that
exactly one remote has, which gets a local branch that tracks it. (``git switch`` wants
``--detach`` for a revision; here it is implied.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from artifactfs.errors import InvalidInput
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.objects.database import MissingObject, Oid
from artifactfs.git.remote.fetch_commit import fetch_commit
from artifactfs.git.repository.gitdir import read_refs, valid_ref

if TYPE_CHECKING:
    from artifactfs.daemon.worker.worker import Worker

_OID = re.compile(r"[0-9a-f]{40}")
_HEADS = "refs/heads/"
_REMOTES = "refs/remotes/"


@dataclass(frozen=True, slots=True)
class Goal:
    """Where to go. `branch` (short name) is checked out, None: HEAD is detached. `track`: the
    branch is made, to track that remote branch. `shown` is what the reflog calls it."""

    commit: Oid
    tree: Oid
    branch: str | None
    track: str | None
    shown: str


async def resolve(worker: Worker, target: str, *, detach: bool) -> Goal:
    """Find `target`; what is not here is fetched, commits and trees only.

    Raises: InvalidInput (no such thing), RemoteError.
    """
    if target == "-":
        target = await _previous(worker)
    if not target or target.startswith("-"):
        raise InvalidInput(f"invalid reference: {target}")
    found = await _find(worker, target, detach=detach)
    if found is None:
        await worker.jobs.fetch()
        found = await _find(worker, target, detach=detach)
    if found is None:
        raise InvalidInput(f"invalid reference: {target}", hint="see `git branch -a` in the mount")
    oid, branch, track = found
    commit, tree = await commit_and_tree(worker, oid, target)
    return Goal(commit, tree, branch, track, target)


async def _previous(worker: Worker) -> str:
    """What ``-`` stands for: where HEAD was before the last switch. Raises: InvalidInput."""
    try:
        name = await run_git("rev-parse", "--abbrev-ref", "@{-1}", gitdir=worker.layout.gitdir)
        if not name.strip():
            name = await run_git("rev-parse", "@{-1}", gitdir=worker.layout.gitdir)
    except GitFailed as error:
        raise InvalidInput("there is no previous branch") from error
    return name.decode("utf-8", "surrogateescape").strip()


async def _find(
    worker: Worker, target: str, *, detach: bool
) -> tuple[Oid, str | None, str | None] | None:
    gitdir = worker.layout.gitdir
    refs = await trio.to_thread.run_sync(read_refs, gitdir)
    local = refs.get(_HEADS + target)
    if local is not None:
        return local, None if detach else target, None
    oid = await _revision(worker, target)
    if oid is not None:
        return oid, None, None
    tracked = [
        name
        for name in refs
        if name.startswith(_REMOTES)
        and name.removeprefix(_REMOTES).partition("/")[2] == target
        and valid_ref(_HEADS + target)
    ]
    if len(tracked) > 1:
        names = ", ".join(name.removeprefix(_REMOTES) for name in tracked)
        raise InvalidInput(f"{target} matches several remote branches: {names}")
    if not tracked:
        return None
    track = tracked[0].removeprefix(_REMOTES)
    return refs[tracked[0]], None if detach else target, None if detach else track


async def _revision(worker: Worker, target: str) -> Oid | None:
    """The object that git calls `target`."""
    if _OID.fullmatch(target):
        return bytes.fromhex(target)
    arguments = ("rev-parse", "--verify", "--quiet", "--end-of-options", target)
    try:
        printed = await run_git(*arguments, gitdir=worker.layout.gitdir)
    except GitFailed:
        return None
    name = printed.decode("ascii", "replace").split()[-1]
    return bytes.fromhex(name) if _OID.fullmatch(name) else None


async def commit_and_tree(worker: Worker, oid: Oid, shown: str) -> tuple[Oid, Oid]:
    """The commit that `oid` is or that it tags, and its tree; fetched where they are not here.

    Raises: InvalidInput, RemoteError, CorruptData.
    """
    for attempt in range(2):
        try:
            commit = worker.odb.commit(oid)
            worker.odb.tree(commit.tree)
        except MissingObject:
            if attempt == 0:
                await fetch_trees(worker, oid)
        else:
            return commit.oid, commit.tree
    raise InvalidInput(f"{shown} is not a commit")


async def fetch_trees(worker: Worker, oid: Oid) -> None:
    """Bring a commit and its trees. Raises: RemoteError."""
    await fetch_commit(worker.layout.gitdir, await worker.remotes.shared(), oid)
    worker.odb.refresh()
