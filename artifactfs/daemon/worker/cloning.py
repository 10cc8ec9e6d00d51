"""The gitdir of a mount before it is served: cloned the first time, else brought up to date."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.prepared import adopt_gitdir
from artifactfs.daemon.repositories.remotes import RemoteConnection
from artifactfs.daemon.worker.gitdir_health import GitdirHealth
from artifactfs.git.command import run_git
from artifactfs.git.configuration.kept import refresh, write_settings
from artifactfs.git.remote.again import again
from artifactfs.git.remote.clone import Tip, clone_tip, fetch_trees, tip_wish
from artifactfs.git.repository.alternates import follow_state_root
from artifactfs.git.repository.gitdir import config_text, trees_to_come
from artifactfs.paths import RepoLayout, StateLayout


async def clone_or_refresh(
    state: StateLayout,
    layout: RepoLayout,
    settings: RepoSettings,
    *,
    remotes: RemoteConnection,
    health: GitdirHealth,
    on_clone: Callable[[], Awaitable[None]],
    arriving: trio.Nursery,
) -> Tip | None:
    """The tip where it had to be cloned (`on_clone` is told before), None where it was here. Trees
    of a tip that take long go on to come in `arriving`.

    Raises: RemoteError, InvalidInput, StateError.
    """
    if layout.gitdir.exists():
        follow_state_root(state, layout)
        health.drop_damaged_own_config()
        await refresh(layout, settings)
        await _follow_mount_point(layout, settings.mount_point)
        if await trio.to_thread.run_sync(trees_to_come, layout.gitdir) is not None:
            await on_clone()  # by a process before, which has ended in the middle
            await again(partial(bring_trees, layout, remotes), settings.deadline_s)
        return None
    await on_clone()
    await trio.to_thread.run_sync(write_settings, layout, settings.uid)
    shared_objects = state.shared_objects
    if settings.git_dir is not None:
        return await adopt_gitdir(layout, settings, shared_objects=shared_objects)
    remote = await remotes.open_for_clone(tip_wish(settings), arriving)
    clone = partial(
        clone_tip,
        layout,
        settings,
        remote,
        shared_objects=shared_objects,
        # What is redirected has to be found before the mount is there.
        arriving=None if (layout.redirects / "list.json").exists() else arriving,
    )
    return await again(clone, settings.deadline_s)


async def bring_trees(layout: RepoLayout, remotes: RemoteConnection) -> None:
    """Fetch the trees that a clone has left out. Raises: RemoteError, CorruptData."""
    await fetch_trees(layout.gitdir, await remotes.open_for_trees())


async def _follow_mount_point(layout: RepoLayout, mount_point: str) -> None:
    """The daemon's mount root may be another than at the last start."""
    config = layout.gitdir / "config"
    section = config_text([("core", [("worktree", mount_point)])])
    try:
        known = config.read_text(errors="surrogateescape")
    except OSError:  # `GitdirHealth.look` says so
        return
    if "[" in known and section.splitlines()[1] not in known:
        arguments = ("config", "--file", str(config), "core.worktree")
        with trio.CancelScope(shield=True):  # git that is killed may leave its config.lock
            await run_git(*arguments, mount_point)
