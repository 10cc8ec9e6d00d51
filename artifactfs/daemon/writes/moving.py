"""Moves what was written to where it is wanted, before a mount; see `record` for its order."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from functools import partial

import trio

from artifactfs.daemon.writes import record
from artifactfs.daemon.writes.moving_in import move_in
from artifactfs.daemon.writes.moving_out import move_out
from artifactfs.daemon.writes.rebase import rebase
from artifactfs.errors import ArtifactFSError
from artifactfs.fs.inodes.inode import Owner
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.native.writes import is_native
from artifactfs.fs.overlay.database import read_base
from artifactfs.git.command import GitFailed, run_git
from artifactfs.git.objects.database import MissingObject, ObjectDatabase
from artifactfs.git.repository.refs import read_head
from artifactfs.paths import RepoLayout

log = logging.getLogger(__name__)


async def move_written(
    layout: RepoLayout,
    odb: ObjectDatabase,
    open_overlay: Callable[[], FileSystem],
    owner: Owner,
    *,
    native: bool,
    top_mode: int,
) -> None:
    """Have everything that was written in the upper folder (`native`) or in our own overlay.

    `open_overlay` opens what is in our overlay. Where nothing is to be moved, nothing happens.
    Waits for contents. Raises: OSError, ArtifactFSError, MissingObject; then what was written is
    where it was.
    """
    await trio.to_thread.run_sync(_remove_leftovers, layout)
    if native:
        if not is_native(layout) and layout.overlay_db.exists():
            filesystem = open_overlay()
            try:
                log.info("what was written moves to the kernel's overlayfs")
                await move_in(filesystem, odb, top_mode)
            finally:
                filesystem.close()
        if record.is_moving(layout):
            await trio.to_thread.run_sync(record.finish_move_in, layout, owner)
        if is_native(layout):
            await _follow_head(layout, odb, open_overlay, owner)
    elif is_native(layout):
        log.info("what was written moves to our own mount")
        await _move_out(layout, odb, open_overlay, owner)


async def _follow_head(
    layout: RepoLayout,
    odb: ObjectDatabase,
    open_overlay: Callable[[], FileSystem],
    owner: Owner,
) -> None:
    """Have the tree of HEAD below, where that can be: see `rebase`."""
    try:
        head = read_head(layout.gitdir).commit
        base = await trio.to_thread.run_sync(read_base, layout.overlay_db)
        if head is None or head == base[1] or not (layout.gitdir / "index").exists():
            return
        with contextlib.suppress(GitFailed):
            await run_git("diff-index", "--cached", "--quiet", "HEAD", gitdir=layout.gitdir)
            filesystem = open_overlay()
            filesystem.close()
            move = partial(rebase, layout, odb, filesystem.meta, owner, head)
            await trio.to_thread.run_sync(move)
    except (ArtifactFSError, MissingObject, OSError) as error:
        log.warning("the base stays at the commit that was mounted: %s", error)


async def _move_out(
    layout: RepoLayout,
    odb: ObjectDatabase,
    open_overlay: Callable[[], FileSystem],
    owner: Owner,
) -> None:
    if not record.is_moving(layout):
        filesystem = open_overlay()
        filesystem.close()
        await trio.to_thread.run_sync(record.write, layout.native, filesystem.meta)
    await trio.to_thread.run_sync(record.empty_overlay, layout, owner)
    filesystem = open_overlay()
    try:
        await move_out(filesystem, odb)
    finally:
        filesystem.close()
    await trio.to_thread.run_sync(record.remove_native, layout)


def _remove_leftovers(layout: RepoLayout) -> None:
    """What a move that was cut has left beside."""
    for name in (".native.new", ".native.moving", ".native.old"):
        shutil.rmtree(layout.directory / name, ignore_errors=True)
