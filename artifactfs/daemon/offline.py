"""``add-repo`` without a daemon: clone and register here; the daemon mounts it at its start."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.prepared import adopt_gitdir
from artifactfs.daemon.registration import (
    Reservation,
    Secret,
    check_fuse,
    resolve_mount_point,
)
from artifactfs.daemon.remotes import RemoteConnection
from artifactfs.git.clone import clone_tip
from artifactfs.paths import StateLayout, default_mount_root

Report = Callable[[dict[str, Any]], None]


def clone_and_register(
    state: StateLayout, settings: RepoSettings, secret: dict[str, str] | None, report: Report
) -> dict[str, Any]:
    """Phase 1 of the clone, then the registry; nothing is left behind if that fails.

    Raises: ArtifactFSError.
    """
    from dataclasses import replace

    check_fuse()
    mount_point = resolve_mount_point(settings, default_mount_root())
    reservation = Reservation(state, settings, Path(mount_point))
    # SIGTERM must take everything back too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        reservation.store(Secret(**secret) if secret else None)
        report({"state": "cloning"})
        trio.run(_clone, state, replace(settings, mount_point=mount_point))
        reservation.commit()
    except BaseException:
        reservation.roll_back()
        raise
    return {"name": settings.name, "mount_point": mount_point, "state": "registered"}


async def _clone(state: StateLayout, settings: RepoSettings) -> None:
    layout = state.repo(settings.name)
    if settings.git_dir is not None:
        await adopt_gitdir(layout, settings, shared_objects=state.shared_objects)
        return
    connection = RemoteConnection(layout, settings.remote, settings.deadline_s)
    try:
        remote = await connection.open_for_clone()
        await clone_tip(layout, settings, remote, shared_objects=state.shared_objects)
    finally:
        await connection.aclose()
