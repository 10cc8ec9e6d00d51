"""What a user names to switch to: a local branch, a remote's branch, a tag, a commit.

The order is that of ``git switch``: a local branch first, then any revision, then a branch that
exactly one remote has, which gets a local branch that tracks it. (``git switch`` wants
``--detach`` for a revision; here it is implied.)
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from artifactfs.daemon.repositories.remotes import RemoteConnection
from artifactfs.errors import InvalidInput
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.configuration.entries import as_bool
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.objects.database import MissingObject, ObjectDatabase, Oid
from artifactfs.git.remote.again import again
from artifactfs.git.remote.fetch import fetch_commit
from artifactfs.git.repository.refs import read_refs, valid_ref
from artifactfs.git.repository.refspecs import remotes_of

AGAIN_S = 30.0
"""What passes is tried again for so long."""
HISTORY_WAIT_S = 60.0
"""For a revision that older commits have to tell: git would fetch each of them by itself."""
_OID = re.compile(r"[0-9a-f]{40}")
_IN_HISTORY = re.compile(r"[~^:@]|^[0-9a-f]{4,39}$|-g[0-9a-f]{4,}$")
_HEADS = "refs/heads/"
_REMOTES = "refs/remotes/"


@dataclass(frozen=True, slots=True)
class Goal:
    """Where to go. `branch` (short name) is checked out, None: HEAD is detached. `track`: the
    branch is made of that remote-tracking branch, which git then has it track unless
    ``branch.autoSetupMerge`` forbids it. `shown` is what the reflog calls it."""

    commit: Oid
    tree: Oid
    branch: str | None
    track: str | None
    shown: str


@dataclass(frozen=True, slots=True)
class Commits:
    """Commits and their trees of one repository: those that are here, and those of the remote."""

    gitdir: Path
    odb: ObjectDatabase
    remotes: RemoteConnection

    async def commit_and_tree(self, oid: Oid, shown: str) -> tuple[Oid, Oid]:
        """The commit that `oid` is or that it tags, and its tree; fetched where they are not here.

        Raises: InvalidInput, RemoteError, CorruptData.
        """
        for attempt in range(2):
            try:
                commit = self.odb.commit(oid)
                self.odb.tree(commit.tree)
            except MissingObject:
                if attempt == 0:
                    await self.fetch_trees(oid)
            else:
                return commit.oid, commit.tree
        raise InvalidInput(f"{shown} is not a commit")

    async def fetch_trees(self, oid: Oid) -> None:
        """Fetch a commit and its trees. Raises: RemoteError."""
        remote = await self.remotes.shared()
        await again(partial(fetch_commit, self.gitdir, remote, oid), AGAIN_S)
        self.odb.refresh()


async def resolve(
    commits: Commits,
    target: str,
    *,
    detach: bool,
    fetch: Callable[[], Awaitable[object]],
    history_done: trio.Event,
) -> Goal:
    """Find `target`; what is not here is fetched, commits and trees only.

    `fetch` fetches the remote's refs. Waits for the history, at most `HISTORY_WAIT_S`, where
    `target` can only be told with it. Raises: InvalidInput (no such thing), RemoteError.
    """
    gitdir = commits.gitdir
    if target == "-":
        target = await _previous(gitdir)
    if not target or target.startswith("-"):
        raise InvalidInput(f"invalid reference: {target}")
    found = await _find(gitdir, target, detach=detach)
    if found is None:
        await fetch()
        found = await _find(gitdir, target, detach=detach)
    if found is None and _IN_HISTORY.search(target) and not history_done.is_set():
        with trio.move_on_after(HISTORY_WAIT_S):
            await history_done.wait()
        found = await _find(gitdir, target, detach=detach)
    if found is None:
        raise InvalidInput(f"invalid reference: {target}", hint="see `git branch -a` in the mount")
    oid, branch, track = found
    commit, tree = await commits.commit_and_tree(oid, target)
    return Goal(commit, tree, branch, track, target)


async def _previous(gitdir: Path) -> str:
    """What ``-`` stands for: where HEAD was before the last switch. Raises: InvalidInput."""
    try:
        name = await run_git("rev-parse", "--abbrev-ref", "@{-1}", gitdir=gitdir)
        if not name.strip():
            name = await run_git("rev-parse", "@{-1}", gitdir=gitdir)
    except GitFailed as error:
        raise InvalidInput("there is no previous branch") from error
    return name.decode("utf-8", "surrogateescape").strip()


async def _find(
    gitdir: Path, target: str, *, detach: bool
) -> tuple[Oid, str | None, str | None] | None:
    refs = await trio.to_thread.run_sync(read_refs, gitdir)
    local = refs.get(_HEADS + target)
    if local is not None:
        return local, None if detach else target, None
    oid = await _revision(gitdir, target)
    if oid is not None:
        return oid, None, None
    tracked = await _tracked(gitdir, target, refs) if valid_ref(_HEADS + target) else []
    if len(tracked) > 1:
        names = ", ".join(name.removeprefix(_REMOTES) for name in tracked)
        raise InvalidInput(f"{target} matches several remote branches: {names}")
    if not tracked:
        return None
    return refs[tracked[0]], None if detach else target, None if detach else tracked[0]


async def _tracked(gitdir: Path, target: str, refs: Mapping[str, Oid]) -> list[str]:
    """The remote-tracking branches of which `git switch` would make the branch `target`
    (``checkout.guess``, ``checkout.defaultRemote``). Takes git processes."""
    configuration = await read_configuration(gitdir)
    guess = configuration.last("checkout.guess")
    if guess is not None and not as_bool(guess):
        return []
    preferred = configuration.last("checkout.defaultremote")
    found: dict[str, bool] = {}
    for remote in await remotes_of(gitdir):
        for name in remote.local_names(_HEADS + target):
            if name in refs:
                found[name] = remote.name == preferred
    return [name for name in found if found[name]][:1] if any(found.values()) else list(found)


async def _revision(gitdir: Path, target: str) -> Oid | None:
    """The object that git calls `target`."""
    if _OID.fullmatch(target):
        return bytes.fromhex(target)
    arguments = ("rev-parse", "--verify", "--quiet", "--end-of-options", target)
    try:
        printed = await run_git(*arguments, gitdir=gitdir)
    except GitFailed:
        return None
    name = printed.decode("ascii", "replace").split()[-1]
    return bytes.fromhex(name) if _OID.fullmatch(name) else None
