"""``add-repo --git-dir DIR``: mounts from a gitdir that other tools made, in place of a clone.

With ``--ref`` or ``--fetch-ref`` that ref is fetched from the gitdir's own remote first, by git and
with the gitdir's own credentials, and HEAD is put on it: so a gitdir that `git init` has just made
is filled.

The gitdir stays where it is; ``STATE/repos/NAME/git`` is a symlink to it, so nothing else needs to
know. It has to hold HEAD's commit and trees; history that it lacks is git's own business. What is
changed in it is what every gitdir of ours has: `core.worktree`, the alternate with the hydrated
blobs, the promisor remote, and no automatic gc.
"""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.host.mounts import mounts_at
from artifactfs.errors import AlreadyExists, ArtifactFSError, InvalidInput, RemoteError
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.configuration.rewriting import effective_remote
from artifactfs.git.objects.database import EMPTY_TREE, MissingObject, ObjectDatabase
from artifactfs.git.remote.clone import Tip, unborn_tip
from artifactfs.git.repository.gitdir import (
    is_bare_worktree,
    mark_history_complete,
    set_remote,
    write_own_config,
)
from artifactfs.git.repository.refs import read_head
from artifactfs.git.repository.refspecs import tracked_remote
from artifactfs.git.surroundings import OWN_CONFIG_PATH
from artifactfs.paths import RepoLayout

HINT = "give a gitdir with a commit, as `git clone --bare --filter=blob:none` makes it"
FETCH_DEADLINE_S = 1800.0
_FETCHED = "refs/artifactfs/fetched"
_OID = re.compile(r"[0-9a-f]{40}")


async def adopt_gitdir(layout: RepoLayout, settings: RepoSettings, *, shared_objects: Path) -> Tip:
    """Make `settings.git_dir` the gitdir of `layout`. Raises: InvalidInput, AlreadyExists."""
    assert settings.git_dir is not None
    gitdir = await trio.to_thread.run_sync(find_gitdir, Path(settings.git_dir))
    await _check_unused(gitdir, settings)
    if settings.fetch_ref is not None:
        await _fetch(gitdir, settings, settings.fetch_ref)
    tip = await trio.to_thread.run_sync(_tip, gitdir)
    if settings.require_commit not in (None, tip.commit.hex()):
        raise InvalidInput(
            f"{gitdir} is at {tip.commit.hex()}, not at the required {settings.require_commit}"
        )
    (shared_objects / "pack").mkdir(parents=True, exist_ok=True)
    await trio.to_thread.run_sync(_add_alternate, gitdir, shared_objects)
    remote = (await tracked_remote(gitdir, settings.remote)).name
    for name, value in (
        ("core.bare", "false"),
        ("core.worktree", settings.mount_point),
        ("core.repositoryformatversion", "1"),
        ("extensions.partialClone", remote),
        (f"remote.{remote}.promisor", "true"),
        (f"remote.{remote}.partialclonefilter", "blob:none"),
        ("gc.auto", "0"),
        ("maintenance.auto", "false"),
        ("include.path", OWN_CONFIG_PATH),
    ):
        await run_git("config", name, value, gitdir=gitdir)
    url = settings.remote
    if settings.fetch_ref is not None:
        url = await remote_of(gitdir) or url
    await set_remote(gitdir, remote, url)
    reached = effective_remote(url, await read_configuration(gitdir))
    await trio.to_thread.run_sync(write_own_config, gitdir, reached.url, layout.credentials)
    mark_history_complete(gitdir)
    layout.gitdir.symlink_to(gitdir)
    return tip


def find_gitdir(directory: Path) -> Path:
    """`directory`, or the ``.git`` in it. Raises: InvalidInput."""
    for candidate in (directory, directory / ".git"):
        if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir():
            return candidate.absolute()
    raise InvalidInput(f"{directory} is not a gitdir", hint=HINT)


async def remote_of(directory: Path) -> str | None:
    """The URL of its remote, None where it has none. Raises: InvalidInput."""
    gitdir = await trio.to_thread.run_sync(find_gitdir, directory)
    return (await tracked_remote(gitdir, "")).url or None


async def _fetch(gitdir: Path, settings: RepoSettings, ref: str) -> None:
    """Fetch `ref` from the gitdir's remote, and put HEAD on it. Raises: InvalidInput, RemoteError.

    A local branch of that name only moves forward.
    """
    remote = (await tracked_remote(gitdir, settings.remote)).name
    branch = _branch_of(ref)
    source = f"refs/heads/{branch}" if branch is not None else ref
    target = ref if ref.startswith("refs/tags/") else _FETCHED
    if branch is not None:
        target = f"refs/remotes/{remote}/{branch}"
    arguments = ["fetch", "--no-auto-gc", "--filter=blob:none", "--no-write-fetch-head"]
    if settings.depth is not None:
        arguments.append(f"--depth={settings.depth}")
    try:
        await run_git(
            *arguments,
            remote,
            f"+{source}:{target}",
            gitdir=gitdir,
            deadline_s=FETCH_DEADLINE_S,
            may_fetch=True,
        )
    except GitFailed as error:
        raise RemoteError(
            f"{source} cannot be fetched from {remote} of {gitdir}: {error.message}",
            hint=f"mend it (git --git-dir={shlex.quote(str(gitdir))} remote -v), then: "
            f"artifact-fs prepare --name {settings.name}",
        ) from error
    commit = (await _rev_parse(gitdir, f"{target}^{{commit}}")) or ""
    await _make_way(gitdir, commit)
    local = _branch_of(settings.ref) if settings.ref is not None else branch
    if local is None:
        await run_git("update-ref", "--no-deref", "HEAD", commit, gitdir=gitdir)
        return
    await _move_branch(gitdir, local, commit)
    await run_git("symbolic-ref", "HEAD", f"refs/heads/{local}", gitdir=gitdir)
    if branch is not None:
        for name, value in (("remote", remote), ("merge", f"refs/heads/{branch}")):
            await run_git("config", f"branch.{local}.{name}", value, gitdir=gitdir)


async def _make_way(gitdir: Path, commit: str) -> None:
    """Remove an index of another commit; a new one is written. Raises: InvalidInput where something
    is staged in it."""
    old = await _rev_parse(gitdir, "HEAD^{commit}")
    if old == commit or not await trio.Path(gitdir / "index").exists():
        return
    try:
        tree = old if old is not None else EMPTY_TREE.hex()
        await run_git("diff-index", "--cached", "--quiet", tree, "--", gitdir=gitdir)
    except GitFailed as error:
        raise InvalidInput(
            f"something is staged in the index of {gitdir}",
            hint="commit it, or mount it as it is, without --ref and --fetch-ref",
        ) from error
    await trio.Path(gitdir / "index").unlink()


async def _move_branch(gitdir: Path, branch: str, commit: str) -> None:
    """Raises: InvalidInput where commits would be lost."""
    old = await _rev_parse(gitdir, f"refs/heads/{branch}^{{commit}}")
    if old is not None and old != commit:
        try:
            await run_git("merge-base", "--is-ancestor", old, commit, gitdir=gitdir)
        except GitFailed as error:
            raise InvalidInput(
                f"{branch} of {gitdir} has commits that its remote does not have",
                hint="mount it as it is, without --ref and --fetch-ref",
            ) from error
    await run_git("update-ref", f"refs/heads/{branch}", commit, gitdir=gitdir)


async def _rev_parse(gitdir: Path, name: str) -> str | None:
    try:
        found = await run_git("rev-parse", "--quiet", "--verify", name, gitdir=gitdir)
    except GitFailed:
        return None
    return found.decode().strip()


def _branch_of(ref: str) -> str | None:
    """The branch that a ref of a user means: ``main``, ``origin/main``, ``refs/heads/main``. None
    for a tag, another full name or a commit."""
    for prefix in ("refs/heads/", "refs/remotes/origin/", "origin/"):
        if ref.startswith(prefix):
            return ref.removeprefix(prefix)
    return None if ref.startswith("refs/") or _OID.fullmatch(ref) else ref


def _tip(gitdir: Path) -> Tip:
    try:
        head = read_head(gitdir)
        odb = ObjectDatabase(gitdir)
        if head.commit is None and head.ref is not None:
            return unborn_tip(head.ref)
        if head.commit is None:
            raise InvalidInput(f"HEAD of {gitdir} has no commit", hint=HINT)
        commit = odb.commit(head.commit)
        odb.tree(commit.tree)
    except MissingObject as error:
        raise InvalidInput(f"{gitdir} lacks HEAD's commit or tree", hint=HINT) from error
    except InvalidInput:
        raise
    except ArtifactFSError as error:
        raise InvalidInput(f"{gitdir} cannot be used: {error.message}", hint=HINT) from error
    return Tip(commit.oid, commit.tree, head.ref, commit.commit_time)


async def _check_unused(gitdir: Path, settings: RepoSettings) -> None:
    """Two working trees with one index would take each other's changes for their own."""
    try:
        worktree = (await run_git("config", "core.worktree", gitdir=gitdir)).decode().rstrip("\n")
    except GitFailed:
        worktree = ""
    if gitdir.name == ".git" and (gitdir / "index").exists() and not worktree:
        worktree = str(gitdir.parent)
    used = partial(_is_used, Path(worktree), gitdir)
    if worktree and worktree != settings.mount_point and await trio.to_thread.run_sync(used):
        raise AlreadyExists(
            f"{gitdir} is the gitdir of {worktree}",
            hint="make one for the mount: git clone --bare --filter=blob:none",
        )


def _is_used(worktree: Path, gitdir: Path) -> bool:
    """Whether there is more in it than the gitfile that `git init --separate-git-dir` makes.

    What is mounted there is in use, and is asked nothing: it may be ours.
    """
    if mounts_at(str(worktree)):
        return True
    return worktree.exists() and not is_bare_worktree(worktree, gitdir)


def _add_alternate(gitdir: Path, objects: Path) -> None:
    path = gitdir / "objects" / "info" / "alternates"
    lines = path.read_text().splitlines() if path.exists() else []
    if str(objects) not in lines:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in [*lines, str(objects)]))
