"""``add-repo --git-dir DIR``: mounts from a gitdir that other tools made, in place of a clone.

The gitdir stays where it is; ``STATE/repos/NAME/git`` is a symlink to it, so nothing else needs to
know. It has to hold HEAD's commit and trees; history that it lacks is git's own business. What is
changed in it is what every gitdir of ours has: `core.worktree`, the alternate with the hydrated
blobs, the promisor remote, and no automatic gc.
"""

from __future__ import annotations

from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.errors import AlreadyExists, ArtifactFSError, InvalidInput
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.configuration.rewriting import effective_remote
from artifactfs.git.objects.database import MissingObject, ObjectDatabase
from artifactfs.git.remote.clone import Tip, unborn_tip
from artifactfs.git.repository.gitdir import mark_history_complete, set_remote, write_own_config
from artifactfs.git.repository.refs import read_head
from artifactfs.git.repository.refspecs import tracked_remote
from artifactfs.git.surroundings import OWN_CONFIG_PATH
from artifactfs.paths import RepoLayout

HINT = "give a gitdir with a commit, as `git clone --bare --filter=blob:none` makes it"


async def adopt_gitdir(layout: RepoLayout, settings: RepoSettings, *, shared_objects: Path) -> Tip:
    """Make `settings.git_dir` the gitdir of `layout`. Raises: InvalidInput, AlreadyExists."""
    assert settings.git_dir is not None
    gitdir = await trio.to_thread.run_sync(find_gitdir, Path(settings.git_dir))
    tip = await trio.to_thread.run_sync(_tip, gitdir)
    if settings.require_commit not in (None, tip.commit.hex()):
        raise InvalidInput(
            f"{gitdir} is at {tip.commit.hex()}, not at the required {settings.require_commit}"
        )
    await _check_unused(gitdir, settings)
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
    await set_remote(gitdir, remote, settings.remote)
    reached = effective_remote(settings.remote, await read_configuration(gitdir))
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
    if worktree and worktree != settings.mount_point and await trio.Path(worktree).exists():
        raise AlreadyExists(
            f"{gitdir} is the gitdir of {worktree}",
            hint="make one for the mount: git clone --bare --filter=blob:none",
        )


def _add_alternate(gitdir: Path, objects: Path) -> None:
    path = gitdir / "objects" / "info" / "alternates"
    lines = path.read_text().splitlines() if path.exists() else []
    if str(objects) not in lines:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in [*lines, str(objects)]))
