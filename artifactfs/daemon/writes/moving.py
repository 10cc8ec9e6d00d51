"""Moves what was written to where it is wanted, before a mount; see `record` for its order."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

import trio

from artifactfs.daemon.writes import record
from artifactfs.daemon.writes.moving_in import move_in
from artifactfs.daemon.writes.moving_out import move_out
from artifactfs.fs.inodes.inode import Owner
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.native.writes import is_native
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.paths import RepoLayout

log = logging.getLogger(__name__)


async def settle_place(
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
    elif is_native(layout):
        log.info("what was written moves to our own mount")
        await _move_out(layout, odb, open_overlay, owner)


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
